"""SAP-DETR's attention: positions of the box sides (PECA) and side-directed Gaussians (SDG)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from detrkit.attention.gaussian import GaussianTerm
from detrkit.attention.multihead import split_heads
from detrkit.attention.query_position import QueryPositionPart
from detrkit.attention.terms import CodeTerm
from detrkit.layers import MLP, at_least_float32, constant
from detrkit.position import Temperature, sine_code
from detrkit.recipe import register
from detrkit.structures import Extent, Memory, Queries, QueryPosition, Reference


@register("query_position", "side")
class SidePosition(QueryPositionPart):
    """The box's two corners (x0, y0, x1, y1): code [B, N, 2 D], embedding an MLP of it (SAP-DETR, section 3.3).

    Needs references with sides: geometry "box" or "salient_point".

    Args:
        width: D, half for each coordinate.
        temperature: base of the code's frequencies.
        embedding: "mlp"; or "none", for the code only, in a decoder whose self-attention has positions of its own.
    """

    codes = ("side",)

    def __init__(self, *, width: int, temperature: Temperature = 20.0, embedding: Literal["mlp", "none"] = "mlp"):
        super().__init__()
        self.half_width, self.temperature = width // 2, temperature
        self.embeddings = ("side",) if embedding == "mlp" else ()
        self.embed = MLP(2 * width, width, width, 2) if embedding == "mlp" else None

    def forward(self, queries: Queries, scale: Tensor | None, memory: Memory) -> QueryPosition:
        code = sine_code(queries.reference.corners("query position 'side'"), self.half_width, self.temperature)
        embeddings = {} if self.embed is None else {"side": self.embed(code)}
        if scale is not None:
            code = code * torch.cat((scale, scale), dim=-1)
        return QueryPosition(embeddings, {"side": code})


@register("term", "side")
class SideTerm(CodeTerm):
    """The box's corners against the same cell codes that the point term meets (PECA; SAP-DETR, section 3.3).

    The official code concatenates a third copy of those keys; sharing them gives the same logits for the cost of
    conditional attention: the logit is (W_q b) . (W_k s), with b the query's code "side" [B, N, 2 D] and W_k s the
    point term's. The scale still counts three head widths, as published.

    Needs the position "side" in `decoder.positions`, which gives that code.

    Args:
        width: D.
        heads: H.
    """

    code = "side"

    def __init__(self, *, width: int, heads: int):
        super().__init__(inputs=2 * width, width=width, heads=heads)


@register("term", "side_directed_gaussian")
class SideDirectedGaussianTerm(GaussianTerm):
    """For each head a Gaussian whose centre moves from the point towards two sides (SDG; SAP-DETR, section 3.4).

    An MLP of the content gives, for each head and axis, an offset u = tanh(.) and a width w. With u > 0 the centre
    moves by u times the right (bottom) side, else by u times the left (top) side; the logit is
    -w^2 (cell - centre)^2 / 8, in cells of the padded map, summed over the two axes. The choice of side has no
    gradient.

    Needs references with sides where it is `scaled` (geometry "box" or "salient_point"), and a memory of one level.

    Args:
        width: D.
        heads: H.
        scaled: multiply the offset by the side; without it the centre moves by the raw offset in cells (Table 6).
        extent: what points and sides are shares of: the "padded" map (published: an image's Gaussians shift with
            the padding of its batch), or the "image".
    """

    def __init__(self, *, width: int, heads: int, scaled: bool = True, extent: Extent = "padded"):
        super().__init__()
        self.heads, self.scaled, self.extent = heads, scaled, extent
        self.predict = MLP(width, width, 4 * heads, 3)

    def forward(self, content: Tensor, position: QueryPosition, reference: Reference, memory: Memory) -> Tensor:
        predicted = at_least_float32(self.predict(content))  # what follows is element by element
        offset, width = (split_heads(x, self.heads) for x in predicted.chunk(2, dim=-1))  # [B, H, N, 2]
        offset = offset.tanh()
        point = reference.point[:, None]
        if self.extent == "image":
            cells = memory.whole_cells()[:, None, None]  # [B, 1, 1, 2]
        else:
            cells = constant(memory.shape[::-1], point)
        if self.scaled:
            low, high = reference.require_sides("side_directed_gaussian")[:, None].chunk(2, dim=-1)
            center = (point + offset * torch.where(offset > 0, high, low)) * cells
        else:
            center = point * cells + offset
        return self.features(center, width.square() / 8, memory)
