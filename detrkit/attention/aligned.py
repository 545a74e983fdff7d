"""SAM-DETR's cross-attention: queries are resampled from the memory, so that both speak one language."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from detrkit.attention.gaussian import GaussianTerm
from detrkit.attention.multihead import split_heads
from detrkit.attention.summed import Summand, SummedAttention
from detrkit.layers import MLP, at_least_float32, zero_bias
from detrkit.position import Temperature, sine_code
from detrkit.recipe import register
from detrkit.structures import Extent, Memory, QueryPosition, Reference

CELLS = 7
"""A box is resampled to as many cells a side."""


@register("cross_attention", "semantics_aligned")
class SemanticsAlignedAttention(SummedAttention):
    """Each head searches with what it finds at one salient place of the query's box (SAM-DETR, sections 3.2 to 3.4).

    The memory inside the box is resampled to 7 x 7 cells; a network names one place in it for each head. The content
    there, gated by the query's, is the head's query, D channels wide, and meets the same keys for all heads. Boxes get
    no gradient through the resampling, and places none through their codes, as published.

    Needs references with sides (geometry "box" or "salient_point"), and a memory of one level.

    Args:
        width: D.
        heads: H.
        dropout: on attention weights.
        temperature: base of the place codes' frequencies, the map's.
        gaussian: add a Gaussian around each head's place, whose widths the same network gives (SAM-DETR with SMCA).
        extent: what is resampled where a box reaches over the image's right or lower edge: the "padded" map (published:
            a result depends on what padding its batch has), or the "image", at whose edges boxes are then cut.
    """

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        dropout: float,
        temperature: Temperature = 10000.0,
        gaussian: bool = False,
        extent: Extent = "padded",
    ):
        super().__init__(heads=heads, dropout=dropout)
        self.width, self.temperature, self.extent = width, temperature, extent
        squeezed = width // 4
        named = nn.Linear(2 * width, (4 if gaussian else 2) * heads)
        zero_bias(named)
        self.places = nn.Sequential(
            nn.Conv2d(width, squeezed, kernel_size=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(squeezed * CELLS**2, width),
            nn.ReLU(),
            nn.Linear(width, 2 * width),
            nn.ReLU(),
            nn.Linear(2 * width, 2 * width),
            nn.ReLU(),
            named,
        )
        self.content_gate = nn.Linear(width, heads * width)
        self.position_gate = nn.Linear(width, heads * width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.query_position, self.key_position = (MLP(width, width, width, 2) for _ in range(2))
        self.gaussian = GaussianTerm() if gaussian else None
        self.gaussian_key = GaussianTerm().make_key(width=width, heads=heads) if gaussian else None
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.bias)

    def summands(
        self, content: Tensor, position: QueryPosition, reference: Reference, memory: Memory
    ) -> Iterator[Summand]:
        """What each head found, then its Gaussian where there is one."""
        corners = reference.corners("semantics_aligned")
        if self.extent == "image":
            corners = corners.clamp(0, 1)
        regions = self.resample(corners, memory)  # [B * N, D, 7, 7]
        named = at_least_float32(self.places(regions)).unflatten(0, content.shape[:2])
        place, *spread = (split_heads(x, self.heads) for x in named.split(2 * self.heads, dim=-1))  # [B, H, N, 2]
        place = place.tanh()
        low, high = corners[:, None].chunk(2, dim=-1)
        image_place = low + (high - low) * (place + 1) / 2
        found = F.grid_sample(
            regions, place.transpose(1, 2).flatten(0, 1)[:, :, None].to(regions.dtype), align_corners=False
        )  # [B * N, D, H, 1]
        found = found.squeeze(-1).transpose(1, 2).unflatten(0, content.shape[:2]).transpose(1, 2)  # [B, H, N, D]
        code = sine_code(image_place.detach().flip(-1), self.width // 2, self.temperature)  # y first, as the map's
        query = self.query(found * split_heads(self.content_gate(content).sigmoid(), self.heads))
        query = query + self.query_position(code * split_heads(self.position_gate(content).sigmoid(), self.heads))
        yield Summand("aligned", "aligned", query * self.width**-0.5)
        if self.gaussian is not None:
            cells = memory.whole_cells()[:, None, None]
            features = self.gaussian.features(image_place * cells, spread[0].square() / 8, memory)
            yield Summand("gaussian", self.gaussian.key, features)

    def key_features(self, memory: Memory) -> dict[str, Tensor]:
        keys = {"aligned": (self.key(memory.tokens) + self.key_position(memory.position))[:, None]}
        if self.gaussian is not None and self.gaussian_key is not None:
            keys[self.gaussian.key] = self.gaussian_key(memory)
        return keys

    def forward(self, content: Tensor, position: QueryPosition, reference: Reference, memory: Memory) -> Tensor:
        """Content [B, N, D] to its update [B, N, D]."""
        value = split_heads(self.value(memory.tokens), self.heads)
        return self.out(self.attend(value, content, position, reference, memory))

    def resample(self, corners: Tensor, memory: Memory) -> Tensor:
        """The memory inside each query's box [B, N, 4] (x0, y0, x1, y1) as 7 x 7 cells [B * N, D, 7, 7].

        Zeros beyond the padded map; with the extent "image", which no box leaves, padding repeats the image's edge, as
        the map's own edge does.
        """
        whole = memory.whole_cells()
        corners = corners.detach() * whole.repeat(1, 2)[:, None]
        values, (batch, count, _) = at_least_float32(memory.as_map()), corners.shape  # it takes places in this type
        if self.extent == "image" and memory.mask is not None:
            values = edge_repeated(values, whole)
        image = torch.arange(batch, device=corners.device)[:, None, None].expand(-1, count, -1)
        regions = torch.cat((image.to(values.dtype), corners.to(values.dtype)), dim=-1).flatten(0, 1)  # [B * N, 5]
        return roi_align(values, regions, CELLS, sampling_ratio=-1, aligned=True)


def edge_repeated(values: Tensor, whole: Tensor) -> Tensor:
    """A map [B, D, h, w] whose padding repeats the last of the (columns, rows) `whole` [B, 2] that are the image's."""
    height, width = values.shape[-2:]
    columns, rows = (
        torch.arange(size, device=values.device).minimum(whole[:, axis : axis + 1].round().long() - 1)
        for axis, size in ((0, width), (1, height))
    )  # [B, w] and [B, h]
    index = (rows[:, :, None] * width + columns[:, None]).flatten(1)[:, None]
    return values.flatten(2).gather(2, index.expand(-1, values.shape[1], -1)).unflatten(2, (height, width))
