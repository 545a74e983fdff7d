"""What a geometry is: how a reference starts, becomes a box, and moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor

from detrkit.errors import UserError, lacking
from detrkit.layers import Part
from detrkit.recipe import define_slot
from detrkit.structures import Reference

# Outputs of an exported file and columns of detections, then keys of a detection in a file.
TAKEN = frozenset(("logits", "boxes", "points", "objectness", "scores", "labels", "queries"))
TAKEN |= {"image_id", "category_id", "bbox", "score", "point", "file_name", "frame", "time"}


def _shape(values: object) -> tuple[int, ...]:
    return tuple(values.shape) if isinstance(values, Tensor) else ()


def _told(values: object) -> str:
    return str(list(values.shape)) if isinstance(values, Tensor) else f"a {type(values).__name__}"


class Decoded(NamedTuple):
    """A layer's prediction in image coordinates."""

    boxes: Tensor
    """[B, N, 4] as (cx, cy, w, h), not clipped; widths and heights are never negative"""
    points: Tensor | None
    """[B, N, 2], None where the geometry predicts no point"""
    named: Mapping[str, Tensor] = MappingProxyType({})
    """[B, N, F] each, what else it says, by name (`Output.named`); none of the names that a detection has already. What
    only losses and costs are to read begins with "_", and is in no detection"""

    def check(self, queries: Sequence[int]) -> None:
        """Raise UserError unless boxes are [B, N, 4] of so many `queries` [B, N], points [B, N, 2], and what is said
        by name [B, N, F] under a free name.
        """
        for name, values, width in (("boxes", self.boxes, 4), ("points", self.points, 2)):
            if (values is not None or name == "boxes") and _shape(values) != (*queries, width):
                raise UserError(f"the geometry predicts {name} {_told(values)}, should be {[*queries, width]}")
        for name, values in self.named.items():
            if name in TAKEN:
                raise UserError(
                    f'the geometry predicts something of the name "{name}", which a detection has already; take a name '
                    f"that is none of {', '.join(sorted(TAKEN))}"
                )
            if len(shape := _shape(values)) != 3 or shape[:2] != tuple(queries):
                raise UserError(
                    f'what the geometry predicts as "{name}" is {_told(values)}, should be [B, N, F] = '
                    f"{[*queries, 'F']}".replace("'", "")
                )


class Geometry(Part):
    """The hinge of a detector: every part that deals with places asks its geometry.

    A geometry owns no parameters. Heads read `offset_widths` to know what to predict.
    """

    holds_boxes = True
    """whether a reference keeps anything of the box that it was made of"""
    offset_widths: dict[str, int]
    """name of an offset -> its numbers; a head makes one MLP for each"""
    size_offsets: tuple[int, ...] = (2, 3)
    """which numbers of the offset "box" are sizes, in logit space"""
    moves = True
    """whether references move from layer to layer; those that stay keep their graph in every layer"""

    def encode(self, boxes: Tensor) -> Reference:
        """Given boxes [B, N, 4] (cx, cy, w, h) as references of this geometry."""
        raise lacking(self, Geometry.encode)

    def encode_noised(self, boxes: Tensor, truth: Tensor, positive: Tensor, place: Tensor) -> Reference:
        """References for denoising: known boxes with noise.

        Args:
            boxes: [B, N, 4] the noised boxes.
            truth: [B, N, 4] the objects' own.
            positive: [B, N] bool, whether the query is to answer for its object.
            place: [B, N, 2] random numbers in [0, 1), for geometries that choose a point.
        """
        return self.encode(boxes)

    def start(self, points: Tensor, sides: Tensor, corners: Tensor, cell: tuple[float, float]) -> Reference:
        """References from points [B, N, 2] of a grid, with sides [B, N, 4].

        `corners` [B, N, 2] are the top left corners of the points' cells, `cell` the cells' (width, height).
        """
        raise lacking(self, Geometry.start)

    def decode(self, offsets: dict[str, Tensor], reference: Reference) -> Decoded:
        """The box (and point) that raw offsets mean at a reference."""
        raise lacking(self, Geometry.decode)

    def move(self, offsets: dict[str, Tensor], reference: Reference) -> Reference:
        """The next layer's reference."""
        raise lacking(self, Geometry.move)

    def on_grid(self, grid: tuple[int, int]) -> None:
        """Hears from the query generator that its points are the corners of a grid of (rows, columns) cells.

        Raises UserError if that does not go with the geometry's own options.
        """


define_slot("geometry", offers=(), base=Geometry)
