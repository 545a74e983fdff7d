"""What a backbone is."""

from __future__ import annotations

from torch import Tensor

from detrkit.errors import lacking
from detrkit.layers import Part
from detrkit.pixels import MEAN, STD
from detrkit.recipe import define_slot
from detrkit.structures import FeatureMap


class Backbone(Part):
    """Images to feature maps."""

    channels: tuple[int, ...]
    """of each level that it gives, fine to coarse"""
    mean: tuple[float, ...] = MEAN
    """of RGB in [0, 1], that its weights were trained with; kept in the weights' metadata"""
    std: tuple[float, ...] = STD
    """the deviation likewise"""

    def forward(self, images: Tensor, mask: Tensor | None) -> list[FeatureMap]:
        """Images [B, 3, H, W] and padding mask [B, H, W] to one FeatureMap a level, fine to coarse."""
        raise lacking(self, Backbone.forward)

    def prepare_for_detection(self) -> None:
        """Changes it in place to what detects in the least time and no longer trains: norms in weights, and so on."""


define_slot("backbone", offers=(), base=Backbone)
