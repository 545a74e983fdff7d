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
from detrkit.structures import Memory, QueryPosition, Reference

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
    """

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        dropout: float,
        temperature: Temperature = 10000.0,
        gaussian: bool = False,
    ):
        super().__init__(heads=heads, dropout=dropout)
        self.width, self.temperature = width, temperature
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
        regions = self.resample(reference, memory)  # [B * N, D, 7, 7]
        named = at_least_float32(self.places(regions)).unflatten(0, content.shape[:2])
        place, *spread = (split_heads(x, self.heads) for x in named.split(2 * self.heads, dim=-1))  # [B, H, N, 2]
        place = place.tanh()
        image_place = reference.point[:, None] + reference.size("semantics_aligned")[:, None] / 2 * place
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

    def resample(self, reference: Reference, memory: Memory) -> Tensor:
        """The memory inside each query's box as 7 x 7 cells [B * N, D, 7, 7]; zeros beyond the padded map."""
        corners = reference.corners("semantics_aligned").detach() * memory.whole_cells().repeat(1, 2)[:, None]
        values, (batch, count, _) = memory.as_map(), corners.shape
        image = torch.arange(batch, device=corners.device)[:, None, None].expand(-1, count, -1)
        regions = torch.cat((image.to(values.dtype), corners.to(values.dtype)), dim=-1).flatten(0, 1)  # [B * N, 5]
        return roi_align(values, regions, CELLS, sampling_ratio=-1, aligned=True)
