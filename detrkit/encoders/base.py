"""What an encoder is."""

from __future__ import annotations

from detrkit.errors import lacking
from detrkit.layers import Part
from detrkit.recipe import define_slot
from detrkit.structures import FeatureMap, Memory


class Encoder(Part):
    """Feature maps to the memory that queries look at."""

    levels: int = 1
    """of the memory"""

    def forward(self, features: list[FeatureMap]) -> Memory:
        """One feature map a level of the backbone, fine to coarse, to memory [B, L, D]."""
        raise lacking(self, Encoder.forward)

    def prepare_for_detection(self) -> None:
        """Changes it in place to what detects in the least time and no longer trains: norms in weights, and so on."""


define_slot("encoder", offers=("channels", "width", "heads", "position"), base=Encoder)
