"""From a layer's content to raw predictions: class logits, objectness, and the geometry's offsets."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal, NamedTuple, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from detrkit.errors import lacking
from detrkit.layers import MLP, Depth, Part, Smooth, at_least_float32
from detrkit.recipe import define_slot, register

Sharing = Literal["all", "first_own", "none"]


class HeadOutput(NamedTuple):
    """Raw predictions of one decoder layer."""

    logits: Tensor
    """[B, N, K]"""
    objectness: Tensor | None
    """[B, N, 1] logits"""
    offsets: dict[str, Tensor]
    """name -> [B, N, width], for the geometry to decode"""


class Head(Part):
    """Raw predictions from a layer's content.

    `needs` of losses and costs are options of a head's constructor; one without such an option is taken to have it.
    Others than the decoder build one more, with `offset_widths` of their own: queries that are chosen among the
    encoder's tokens {"box": 4}, in one layer, added to a box in logit space; a block that asks for classes alone {}.
    """

    background: bool = False
    """whether the last logit is "no object", beyond the K classes"""

    def offsets(self, layer: int, content: Tensor) -> dict[str, Tensor]:
        """The geometry's raw offsets by name, from content [B, N, D] of decoder layer `layer`, at least float32."""
        raise lacking(self, Head.offsets)

    def certainty(self, layer: int, content: Tensor) -> Tensor:
        """[B, N] how sure the layer is that there is an object, for those who choose among tokens."""
        raise lacking(self, Head.certainty)

    def forward(self, layer: int, content: Tensor) -> HeadOutput:
        """All raw predictions of decoder layer `layer` from content [B, N, D]."""
        raise lacking(self, Head.forward)


class HeadPair:
    """A head for the queries up to a place, and another for those from there on."""

    def __init__(self, head: Head, other: Head, place: int):
        self.head, self.other, self.place = head, other, place

    def offsets(self, layer: int, content: Tensor) -> dict[str, Tensor]:
        """As of a head."""
        first, second = (head.offsets(layer, part) for head, part in self._parts(content))
        return {name: torch.cat((numbers, second[name]), dim=1) for name, numbers in first.items()}

    def certainty(self, layer: int, content: Tensor) -> Tensor:
        """As of a head."""
        return torch.cat([head.certainty(layer, part) for head, part in self._parts(content)], dim=1)

    def __call__(self, layer: int, content: Tensor) -> HeadOutput:
        """As of a head."""
        first, second = (head(layer, part) for head, part in self._parts(content))
        objectness = None
        if first.objectness is not None and second.objectness is not None:
            objectness = torch.cat((first.objectness, second.objectness), dim=1)
        offsets = {name: torch.cat((numbers, second.offsets[name]), dim=1) for name, numbers in first.offsets.items()}
        return HeadOutput(torch.cat((first.logits, second.logits), dim=1), objectness, offsets)

    def _parts(self, content: Tensor) -> tuple[tuple[Head, Tensor], ...]:
        return (self.head, content[:, : self.place]), (self.other, content[:, self.place :])


define_slot("head", offers=("width", "classes", "layers", "offset_widths", "size_offsets"), base=Head)


def shared_index(sharing: Sharing, layer: int) -> int:
    """Which module a decoder layer uses: one for all, the first layer's own and one for the rest, or one each."""
    return {"all": 0, "first_own": min(layer, 1), "none": layer}[sharing]


class SharedHeads(nn.ModuleList):
    """The MLPs of one kind of head; each decoder layer uses one. They start as copies of one another."""

    def __init__(self, make: Callable[[], MLP], sharing: Sharing, layers: int):
        made = [make() for _ in range(shared_index(sharing, layers - 1) + 1)]
        for other in made[1:]:
            other.load_state_dict(made[0].state_dict())
        super().__init__(made)
        self.sharing = sharing

    @property
    def first(self) -> MLP:
        """The first layer's."""
        return cast(MLP, self[0])

    def forward(self, layer: int, content: Tensor) -> Tensor:
        """Content [B, N, D] of decoder layer `layer` to its head's numbers [B, N, numbers]."""
        return self[shared_index(self.sharing, layer)](content)


@register("head", "mlp")
class PredictionHead(Head):
    """Class scores from a linear layer or an MLP, offsets from three-layer MLPs (DETR, section 3.2), objectness from a
    linear layer (SAP-DETR).

    Args:
        width: D.
        classes: K.
        layers: decoder layers.
        offset_widths: the geometry's offsets, name -> numbers.
        size_offsets: which numbers of the offset "box" are sizes that may start elsewhere than at 0; none for a head
            whose boxes have sizes of their own to start from.
        class_depth: linear layers of the class head: 1 in DETR and its descendants, 3 in SAP-DETR.
        class_sharing: which layers share a class head: "all", "first_own" (the first has its own, as SAP-DETR's
            released weights), or "none".
        offset_sharing: the same for the offset heads.
        objectness: also predict whether a query has an object, one linear layer for all decoder layers.
        prior: class and objectness probability at the start (RetinaNet, section 4.1); "none" starts the class layer as
            any other (DETR).
        background: one more class logit, the last, for "no object" (DETR; SMCA has it, and never trains it upwards).
        zero_offsets: start with offsets of zero; without it the offset heads start as any other MLP (DETR, SMCA).
        activation: between the linear layers of its MLPs; "silu" in DEIM.
        size_start: where raw sizes, width and height or the four sides of a salient point, start in the first layer's
            box head: 0, or -2 where references are points (Anchor and Deformable DETR: a box of 0.12 of the image).
    """

    def __init__(
        self,
        *,
        width: int,
        classes: int,
        layers: int,
        offset_widths: dict[str, int],
        size_offsets: tuple[int, ...] = (2, 3),
        class_depth: Depth = 1,
        class_sharing: Sharing = "all",
        offset_sharing: Sharing = "all",
        objectness: bool = False,
        prior: Annotated[float, Field(gt=0, lt=1)] | None = 0.01,
        background: bool = False,
        zero_offsets: bool = True,
        size_start: Annotated[float, Field(ge=-20, le=20)] = 0.0,
        activation: Smooth = "relu",
    ):
        super().__init__()
        self.background = background
        bias = None if prior is None else -math.log((1 - prior) / prior)
        logits = classes + background

        def class_head() -> MLP:
            head = MLP(width, width, logits, class_depth, activation)
            if bias is not None:
                nn.init.constant_(head.last.bias, bias)
            return head

        def offset_head(numbers: int) -> MLP:
            head = MLP(width, width, numbers, 3, activation)
            return head.zero_last() if zero_offsets else head

        self.classes = SharedHeads(class_head, class_sharing, layers)
        offset_heads = {
            name: SharedHeads(partial(offset_head, numbers), offset_sharing, layers)
            for name, numbers in offset_widths.items()
        }
        if size_start and "box" in offset_heads:
            with torch.no_grad():
                offset_heads["box"].first.last.bias[list(size_offsets)] = size_start
        self.offset_heads = nn.ModuleDict(offset_heads)
        self.objectness = nn.Linear(width, 1) if objectness else None
        if self.objectness is not None and bias is not None:
            nn.init.constant_(self.objectness.bias, bias)

    def offsets(self, layer: int, content: Tensor) -> dict[str, Tensor]:
        """The geometry's raw offsets from content [B, N, D], at least in float32."""
        raw = {name: heads(layer, content) for name, heads in self.offset_heads.items()}
        return {name: at_least_float32(x) for name, x in raw.items()}

    def certainty(self, layer: int, content: Tensor) -> Tensor:
        """[B, N] how sure the layer is that there is an object: its best class logit, "no object" not counted."""
        logits = self._logits(layer, content)
        return (logits[..., :-1] if self.background else logits).amax(-1)

    def forward(self, layer: int, content: Tensor) -> HeadOutput:
        """All raw predictions of decoder layer `layer` from content [B, N, D]."""
        logits = self._logits(layer, content)
        objectness = None if self.objectness is None else self.objectness(content)
        return HeadOutput(logits, objectness, self.offsets(layer, content))

    def _logits(self, layer: int, content: Tensor) -> Tensor:
        """[B, N, K], or K + 1 with "no object"."""
        return self.classes(layer, content)
