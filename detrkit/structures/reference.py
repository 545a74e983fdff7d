"""Where queries look."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

from detrkit.boxes import corners_to_center
from detrkit.errors import UserError
from detrkit.layers import take


@dataclass(frozen=True)
class Reference:
    """Where each query looks: a point, and where known the four sides of a box around it.

    A box reference is a point in the middle with equal opposite sides; a salient point lies anywhere in
    its box; a pure point has no sides. Geometries subclass it to carry what only they need.
    """

    point: Tensor
    """[B, N, 2] (x, y) in [0, 1] of the unpadded image"""
    sides: Tensor | None = None
    """[B, N, 4] distances (left, top, right, bottom) from the point, in [0, 1]"""

    def cells(self) -> Tensor | None:
        """[B, N, 4] (x0, y0, x1, y1) of the cells that the points move in; None where they move anywhere."""
        return None

    def detach(self) -> Self:
        """The same reference, cut off from the graph, as it is between decoder layers.

        A geometry's own may leave the graph to what is no place, such as logits that all layers add to (D-FINE).
        """
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: t.detach() for name, t in tensors.items() if t is not None})

    def take(self, order: Tensor) -> Self:
        """The references at places [B, N]."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {n: take(t.expand(*order.shape, -1), order) for n, t in tensors.items() if t is not None}
        return replace(self, **moved)

    def join(self, other: Self) -> Self:
        """Both references' queries, one after the other; `other` is of the same geometry."""
        pairs = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in fields(self)}
        return replace(self, **{n: torch.cat(pair, dim=1) for n, pair in pairs.items() if pair[0] is not None})

    def require_sides(self, asker: str) -> Tensor:
        """The sides, or an error that names who needs them."""
        if self.sides is None:
            raise UserError(
                f"{asker} needs references with sides, but this geometry's have points only; "
                'set geometry.type = "box" or "salient_point"'
            )
        return self.sides

    def corners(self, asker: str) -> Tensor:
        """[B, N, 4] the box as (x0, y0, x1, y1), not clipped to the image."""
        sides = self.require_sides(asker)
        return torch.cat((self.point - sides[..., :2], self.point + sides[..., 2:]), dim=-1)

    def boxes(self) -> Tensor:
        """[B, N, 4] the box as (cx, cy, w, h) in [0, 1]. Raises UserError if the geometry has points only."""
        return corners_to_center(self.corners("a box"))

    def size(self, asker: str) -> Tensor:
        """[B, N, 2] the box's (width, height)."""
        sides = self.require_sides(asker)
        return sides[..., :2] + sides[..., 2:]
