"""What a whole system is: a kind of detector that a recipe can describe, and what it builds."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from detrkit.backbones.base import Backbone
from detrkit.casts import keep_casts
from detrkit.errors import UserError, lacking
from detrkit.losses.base import BaseCriterion
from detrkit.recipe import Factory, Recipe, Slot, define_slot
from detrkit.structures import QueryLimit, Sizes, require_bool

define_slot("checkpoint_names")
CheckpointNames = Annotated[Factory | None, Slot("checkpoint_names")]


class System(ABC):
    """A part of the slot "detector": what kind of detector a recipe describes, and how it is built.

    Besides the options `classes` (K; None: the data set's) and `checkpoint_names` (a factory of the `zoo.names.Family`
    whose official parameter names `detrkit convert` reads) it names in `sections` those tables of a recipe that only
    some detectors have.
    """

    sections: ClassVar[tuple[str, ...]] = ()
    classes: int | None = None
    checkpoint_names: Factory | None = None

    @abstractmethod
    def build_detector(self, recipe: Recipe, classes: int) -> BaseDetector:
        """The detector, for K classes."""

    @abstractmethod
    def build_criterion(self, recipe: Recipe) -> BaseCriterion:
        """What trains such a detector."""


define_slot("detector", offers=(), base=System)


class BaseDetector(nn.Module):
    """What a system builds: a module with `forward(images, mask, targets)` and `detect(images, mask, sizes)`."""

    backbone: Backbone
    no_export = ""
    """why `detrkit export` cannot write it, where it cannot"""

    def check_input(self, images: Tensor, mask: Tensor | None) -> None:
        """Look at what `forward` is given, before it gives numbers that mean nothing.

        Raises:
            UserError: the images are no batch of floats; the mask is not bool, or not of their size; or the weights are
                in half precision: places are computed in float32, and meet them.
        """
        if images.dim() != 4 or not images.is_floating_point():
            raise UserError(
                f"images are {str(images.dtype).removeprefix('torch.')} {list(images.shape)}, and a detector takes "
                "floats [B, 3, H, W]: RGB of 0 to 1, minus detrkit.pixels.MEAN, divided by STD; detrkit.load(...) "
                "takes files, arrays and tensors of pixels as they are"
            )
        dtype = next(self.parameters()).dtype
        if dtype in (torch.float16, torch.bfloat16):
            raise UserError(
                f"the detector's weights are in {str(dtype).removeprefix('torch.')}, and places do not survive that; "
                "keep them in float32 (detector.float()) and run it under torch.autocast(DEVICE, torch.bfloat16), "
                "which saves as much time"
            )
        require_bool(mask, "the mask of images")
        # In an exported graph sizes are free, and no question may be asked of them.
        if mask is not None and not torch.compiler.is_exporting() and mask.shape != images[:, 0].shape:
            raise UserError(
                f"the mask of images is {list(mask.shape)}, and the images are {list(images.shape)}; a mask is "
                "[B, H, W], a value for each pixel"
            )

    @property
    def limit(self) -> QueryLimit | None:
        """How many objects of an image it can find at most, for want of queries; None: as many as there are."""
        return None

    def detect(self, images: Tensor, mask: Tensor | None, sizes: Sizes) -> list[dict[str, Tensor]]:
        """Detections of a batch, in torchvision's form, best first; see `Detector.detect`."""
        raise lacking(self, BaseDetector.detect)

    def compiled(self, **options: Any) -> Callable[..., Any]:
        """`forward` for training by `torch.compile`, whose `options` these are.

        Raises:
            UserError: this detector is no graph that holds for batches of other shapes.
        """
        raise UserError(
            "train.compile = true needs a detector that is one graph for torch.compile, and this one is not "
            f"({type(self).__name__}); leave it false"
        )

    def for_inference(self) -> Self:
        """A copy for detection alone: the same detections in less time, in evaluation mode, not to be trained or saved.

        Norms after convolutions are in their weights for good; other weights share their memory with this detector's.
        """
        shared = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in self.parameters()}
        form = copy.deepcopy(self, {**shared, **{id(b): b.detach() for b in self.buffers()}}).eval()
        form._prepare_for_detection()
        keep_casts(form)  # of the layers that are left
        return form

    def _prepare_for_detection(self) -> None:
        self.backbone.prepare_for_detection()


def check_sizes(sizes: Sizes, images: Tensor) -> None:
    """Raise UserError if there is not a (height, width) for each image."""
    if len(sizes) != len(images):
        raise UserError(f"{len(sizes)} sizes for a batch of {len(images)} images; each has its (height, width)")
