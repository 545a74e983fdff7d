"""What decoder layers are given while they work, for pictures: recorded by hooks that the decoder knows nothing of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from detrkit.attention.deformable import DeformableCrossAttention
from detrkit.attention.gaussian import GaussianTerm, gaussian_center
from detrkit.attention.multihead import key_mask
from detrkit.attention.summed import SummedLogits
from detrkit.structures import Memory, QueryPosition, Reference


@dataclass(frozen=True)
class LayerRecord:
    """The cross-attention of one decoder layer: what went in, and the update that came out."""

    attention: nn.Module
    content: Tensor
    """[B, N, D]"""
    position: QueryPosition
    reference: Reference
    memory: Memory
    update: Tensor
    """[B, N, D]"""

    @property
    def has_terms(self) -> bool:
        """Whether the logits are a sum of terms, which can be shown one by one."""
        return isinstance(self.attention, SummedLogits)

    @property
    def _summed(self) -> SummedLogits:
        assert isinstance(self.attention, SummedLogits)  # see `has_terms`
        return self.attention

    @torch.no_grad()
    def term_logits(self, queries: list[int]) -> dict[str, Tensor]:
        """Each summand's logits [B, H, n, L] for the n queries, without the padding mask."""
        keys = self._summed.key_features(self.memory)
        summands = self._summed.summands(self.content, self.position, self.reference, self.memory)
        return {s.name: s.query[:, :, queries] @ keys[s.key].mT for s in summands}

    def weights(self, logits: Tensor) -> Tensor:
        """Softmax of logits [B, H, n, L] over the cells that are not padded."""
        mask = key_mask(self.memory.mask)
        return (logits if mask is None else logits.masked_fill(~mask, -torch.inf)).softmax(-1)

    @property
    def has_samples(self) -> bool:
        """Whether queries read single places, which can be shown."""
        return isinstance(self.attention, DeformableCrossAttention)

    @torch.no_grad()
    def samples(self, query: int) -> tuple[Tensor, Tensor]:
        """The places [H, levels, K, 2] that a query reads, in shares of the image, and their weights [H, levels, K]."""
        assert isinstance(self.attention, DeformableCrossAttention)  # see `has_samples`
        locations, weights = self.attention.samples(self.content, self.position, self.reference, self.memory)
        return locations[0, query], weights[0, query]

    @torch.no_grad()
    def gaussian_centers(self, queries: list[int]) -> dict[str, Tensor]:
        """For each Gaussian term its centres [B, H, n, 2] as (x, y) in shares of the map.

        Not finite where a Gaussian is flat. Of a detector that ran in float32 or float64.
        """
        height, width = self.memory.shape
        summands = self._summed.summands(self.content, self.position, self.reference, self.memory)
        return {
            s.name: gaussian_center(s.query[:, :, queries], self.memory.shape) / s.query.new_tensor([width, height])
            for s in summands
            if s.key == GaussianTerm.key
        }


@contextmanager
def record_layers(decoder: nn.Module) -> Iterator[list[LayerRecord]]:
    """Fills a list with one record for each layer that runs inside the `with` block, first layer first."""
    records: list[LayerRecord] = []

    def keep(attention: nn.Module, given: tuple, update: Tensor) -> None:
        content, position, reference, memory = given
        records.append(LayerRecord(attention, content, position, reference, memory, update))

    layers = decoder.get_submodule("layers").children()
    hooks = [layer.get_submodule("cross_attention").register_forward_hook(keep) for layer in layers]
    try:
        yield records
    finally:
        for hook in hooks:
            hook.remove()
