"""SMCA's spatial prior: for each query and head a Gaussian around a place of its own."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from detrkit.attention.gaussian import GaussianTerm
from detrkit.attention.multihead import split_heads
from detrkit.errors import UserError
from detrkit.layers import Part, at_least_float32
from detrkit.recipe import register
from detrkit.structures import Memory, QueryPosition, Reference


class UnitLinear(nn.Linear, Part):
    """A linear layer that starts as one for any input, and stays so whatever the decoder draws."""

    own_start = True

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs)
        nn.init.zeros_(self.weight)
        nn.init.ones_(self.bias)


@register("term", "head_gaussian")
class HeadGaussianTerm(GaussianTerm):
    """The logit -(g_x (x - c_x)^2 + g_y (y - c_y)^2) / 8 in cells, with c and g read off the query (SMCA, section 3.2).

    s = LayerNorm(content entering the layer + all position embeddings); c = reference point + linear(s), and
    g = linear(s)^2, which starts at 1. The official code measures images in cells of 32 pixels even where the map's
    stride is 16; here in the map's own.

    Needs the position "entering" in `decoder.positions`, and a memory of one level.

    Args:
        width: D.
        heads: H.
        first: whether this is the decoder's first layer.
        first_norm: whose norm the first layer takes: its "own", or that of the "queries", with which they read their
            points (SMCA: one norm for both; queries.point_norm = true).
        shift: cells that centres sit too far right and down. 0.5 in SMCA, which numbers the cells' middles from 0.
    """

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        first: bool,
        first_norm: Literal["own", "queries"] = "own",
        shift: float = 0.0,
    ):
        super().__init__()
        self.heads, self.shift = heads, shift
        self.norm = None if first and first_norm == "queries" else nn.LayerNorm(width)
        self.offset = nn.Linear(width, 2 * heads)
        self.scale = UnitLinear(width, 2 * heads)

    def read(self, position: QueryPosition) -> Tensor:
        """[B, N, D] what centres and scales are read off, or a UserError that says what gives it."""
        wanted = "read_from" if self.norm is None else "entering"
        if wanted not in position.codes:
            remedy = {"read_from": "queries.point_norm = true", "entering": '"entering" in decoder.positions'}[wanted]
            raise UserError(f'the term "head_gaussian" needs {remedy}')
        code = position.codes[wanted]
        return code if self.norm is None else self.norm(sum(position.embeddings.values(), code))

    def forward(self, content: Tensor, position: QueryPosition, reference: Reference, memory: Memory) -> Tensor:
        read = self.read(position)
        offset, scale = (split_heads(at_least_float32(layer(read)), self.heads) for layer in (self.offset, self.scale))
        cells = memory.image_cells().to(offset.dtype)[:, None, None]  # [B, 1, 1, 2]
        center = reference.point[:, None] * cells + offset + self.shift  # [B, H, N, 2]
        return self.features(center, scale.square() / 8, memory)
