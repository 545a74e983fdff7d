"""Attention whose logits are a sum of dot products.

Each summand gives query features and names the key features that they meet. Summands that meet the same keys add their
query features, since q1.k + q2.k = (q1 + q2).k, and the rest is concatenated, so one call of fused attention serves any
sum and no [B, H, N, L] tensor is built.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from detrkit.attention import by_head
from detrkit.attention.base import CrossAttention
from detrkit.attention.multihead import key_mask, merge_heads
from detrkit.attention.written_out import attend_written_out, draws_cheaply
from detrkit.errors import UserError, lacking
from detrkit.structures import Memory, QueryPosition, Reference


@dataclass(frozen=True)
class ProductForms:
    """Multiply-adds by which a sum of terms differs from the plain form, a key of its own for each term.

    saved: what adding the queries of terms that share a key saves; zeros: spent on channels that are zero, which
    fused kernels want.
    """

    saved: int
    zeros: int


class Summand(NamedTuple):
    """One summand of the logits: the dot product of its query features with the key features it names."""

    name: str
    key: str
    query: Tensor
    """[B, H, N, F], scaled"""


class SummedLogits(CrossAttention):
    """Cross-attention that can say what its logits are the sum of."""

    def summands(
        self, content: Tensor, position: QueryPosition, reference: Reference, memory: Memory
    ) -> Iterator[Summand]:
        """What the logits are the sum of; the arguments are those of `forward`."""
        raise lacking(self, SummedLogits.summands)

    def key_features(self, memory: Memory) -> dict[str, Tensor]:
        """The key features [B or 1, H or 1, L, F] by the name that summands call them by."""
        raise lacking(self, SummedLogits.key_features)


class SummedAttention(SummedLogits):
    """Such attention in one fused call.

    Args:
        heads: H.
        dropout: on attention weights.
    """

    def __init__(self, *, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout

    def attend(
        self, value: Tensor, content: Tensor, position: QueryPosition, reference: Reference, memory: Memory
    ) -> Tensor:
        """softmax(sum of the summands) value, [B, N, D], for values [B, H, L, F] and what `forward` is given."""
        queries: dict[str, Tensor] = {}
        summands = list(self.summands(content, position, reference, memory))
        keys = self.key_features(memory)
        for summand in summands:
            _check_shapes(summand, keys[summand.key], (*value.shape[:2], content.shape[1]), value.shape[2])
            features = summand.query
            queries[summand.key] = queries[summand.key] + features if summand.key in queries else features
        dropout = self.dropout if self.training else 0.0
        mixed = fused_attention([queries[name] for name in keys], list(keys.values()), value, memory.mask, dropout)
        return merge_heads(mixed)

    def product_forms(
        self, content: Tensor, position: QueryPosition, reference: Reference, memory: Memory
    ) -> ProductForms:
        """How the work of `forward` on the same arguments differs from the plain form's."""
        batch, cells, width = memory.tokens.shape
        pairs = batch * self.heads * content.shape[1] * cells
        widths = {name: key.shape[-1] for name, key in self.key_features(memory).items()}
        zeros = zero_channels(sum(widths.values()), width // self.heads)
        return ProductForms(saved=pairs * self.shared_channels(widths), zeros=pairs * zeros)

    def shared_channels(self, widths: dict[str, int]) -> int:
        """How many channels `attend` saves of the plain form's, where key features have `widths`."""
        return 0


def _check_shapes(summand: Summand, key: Tensor, places: tuple[int, ...], cells: int) -> None:
    """Raise UserError unless query and key features of a term, a person's own perhaps, can meet."""
    if torch.compiler.is_compiling():
        return
    query = summand.query
    if (
        query.shape[:-1] != places
        or key.shape[2:] != (cells, query.shape[-1])
        or any(a not in (1, b) for a, b in zip(key.shape, places[:2], strict=False))
    ):
        raise UserError(
            f'the term "{summand.name}" gives query features {list(query.shape)}, its key "{summand.key}" '
            f"{list(key.shape)}; they are [B, H, N, F] and [B, H, L, F], here {[*places, 'F']} and "
            f"{[*places[:2], cells, 'F']}".replace("'", "")
        )


def zero_channels(keys: int, values: int) -> int:
    """Channels of zeros that `fused_attention` adds to keys and to values of so many channels."""
    full = _padded_width(keys, values)
    return full - keys + _value_width(values, full) - values


def _padded_width(keys: int, values: int) -> int:
    return -(-max(keys, values) // 8) * 8


def _value_width(width: int, full: int) -> int:
    """Channels of the values in the fused call, where queries and keys have `full`."""
    return full if full <= 4 * width else width


def fused_attention(
    queries: list[Tensor], keys: list[Tensor], value: Tensor, mask: Tensor | None, dropout: float
) -> Tensor:
    """softmax(sum of q_i k_i) v in one fused call.

    Args:
        queries, keys: one [B, H, N, F_i] and [B or 1, H or 1, L, F_i] for each sum of terms.
        value: [B, H, L, F].
        mask: [B, L], True where padded, or None.

    Fused kernels want one width for queries, keys and values, a multiple of eight: the missing channels are zeros,
    which change nothing, and those of the result are dropped. Values of less than a quarter of the width stay as they
    are: zeros would cost more than they save. On a CPU that goes head by head instead, where it is faster, and with
    dropout written out.
    """
    width, used, allowed = value.shape[-1], sum(k.shape[-1] for k in keys), key_mask(mask)
    by_heads = by_head.gains(value, queries=queries[0].shape[-2], width=used, dropout=dropout)
    dtype = torch.float32 if by_heads else value.dtype
    query = torch.cat([q.to(dtype) for q in queries], dim=-1)
    key = torch.cat([k.to(dtype).expand(*value.shape[:2], -1, -1) for k in keys], dim=-1)
    if by_heads:
        return by_head.attend_by_head(query, key, value, allowed, 1.0, dropout)
    if draws_cheaply(value, dropout):
        return attend_written_out(query, key, value, allowed, 1.0, dropout)
    full = _padded_width(used, width)
    query, key = (F.pad(x, (0, full - used)) for x in (query, key))
    value = F.pad(value, (0, _value_width(width, full) - width))
    return F.scaled_dot_product_attention(query, key, value, allowed, dropout, scale=1.0)[..., :width]
