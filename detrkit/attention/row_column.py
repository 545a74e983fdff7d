"""Attention along rows and columns apart (RCDA, Anchor DETR)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detrkit.attention.multihead import merge_heads, split_heads
from detrkit.attention.summed import Summand, SummedLogits
from detrkit.casts import CastsOnce
from detrkit.dropout import Dropout
from detrkit.recipe import register
from detrkit.structures import AxisCodes, Extent, Memory, QueryPosition, Reference


class RowColumnAttention(CastsOnce):
    """softmax over columns times softmax over rows, in place of one softmax over all cells (Anchor DETR, section 3.4).

    A column's key is the mean of its cells' keys, a row's likewise, over the `extent`: the "padded" map, where an
    image's result depends on the padding of its batch (as published, with one image a process), or the "image".
    Projections are packed in one matrix [5 D, D]: queries to columns and rows, keys of columns and rows, values.
    """

    def __init__(self, *, width: int, heads: int, dropout: float = 0.0, extent: Extent = "padded"):
        super().__init__()
        self.heads, self.dropout, self.extent = heads, Dropout(dropout), extent
        self.in_proj_weight = nn.Parameter(torch.empty(5 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(5 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query_x: Tensor, query_y: Tensor, cells: Tensor, codes: AxisCodes, mask: Tensor | None) -> Tensor:
        """Queries to columns and to rows [B, N, D], cells [B, L, D], padding mask [B, L] or None, to [B, N, D]."""
        query_x, query_y = self.queries(query_x, query_y)
        key_x, key_y, value = self.keys_and_values(cells, codes, mask)
        padded = None if mask is None else mask.unflatten(1, value.shape[2:4])
        to_x = self._weights(query_x, key_x, None if padded is None else padded[:, 0])  # [B, H, N, w]
        to_y = self._weights(query_y, key_y, None if padded is None else padded[:, :, 0])  # [B, H, N, h]
        return self.out_proj(merge_heads(mix(to_x, to_y, value)))

    def queries(self, query_x: Tensor, query_y: Tensor) -> list[Tensor]:
        """Queries to columns and to rows [B, N, D], projected, scaled and split: [B, H, N, F] each."""
        weights, biases = (packed.chunk(5) for packed in self.cast("in_proj_weight", "in_proj_bias"))
        projected = F.linear(query_x, weights[0], biases[0]), F.linear(query_y, weights[1], biases[1])
        split = (split_heads(query, self.heads) for query in projected)
        return [query * query.shape[-1] ** -0.5 for query in split]

    def keys_and_values(
        self, cells: Tensor, codes: AxisCodes, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Keys of columns [B, H, w, F] and rows [B, H, h, F], and values [B, H, h, w, F], of cells [B, L, D]."""
        shape = codes.y.shape[1], codes.x.shape[1]  # (h, w)
        weights, biases = (packed.chunk(5) for packed in self.cast("in_proj_weight", "in_proj_bias"))
        mapped = F.linear(cells, torch.cat(weights[2:]), torch.cat(biases[2:])).unflatten(1, shape)  # [B, h, w, 3 D]
        key_x, key_y, value = mapped.chunk(3, dim=-1)
        if self.extent == "padded" or mask is None:
            key_x, key_y = key_x.mean(1), key_y.mean(2)  # the mean of keys is the key of means
        else:
            inside = (~mask.unflatten(1, shape)).to(mapped.dtype)
            key_x, key_y = mean_along(key_x, inside[:, :, 0], 1), mean_along(key_y, inside[:, 0], 2)
        key_x = key_x + F.linear(codes.x, weights[2])
        key_y = key_y + F.linear(codes.y, weights[3])
        value = value.unflatten(-1, (self.heads, -1)).permute(0, 3, 1, 2, 4)
        return split_heads(key_x, self.heads), split_heads(key_y, self.heads), value

    def _weights(self, query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
        logits = query @ key.transpose(-1, -2)
        if mask is not None:
            logits = logits.masked_fill(mask[:, None, None], float("-inf"))
        return self.dropout(logits.softmax(-1))


def mean_along(cells: Tensor, inside: Tensor, axis: int) -> Tensor:
    """The mean of cells [B, h, w, D] along axis 1 or 2 over the rows or columns where `inside` [B, h or w] is 1."""
    inside = inside / inside.sum(1, keepdim=True)
    return (cells * (inside[:, :, None, None] if axis == 1 else inside[:, None, :, None])).sum(axis)


def mix(to_x: Tensor, to_y: Tensor, value: Tensor) -> Tensor:
    """Weights over columns [B, H, N, w] and rows [B, H, N, h] and values [B, H, h, w, F] to [B, H, N, F].

    The longer axis is summed first, so that what lies between is as small as it can be; in an exported graph, which
    serves every shape, the columns are.
    """
    if not torch.compiler.is_exporting() and value.shape[2] > value.shape[3]:
        to_x, to_y, value = to_y, to_x, value.transpose(2, 3)
    _, _, rows, _, features = value.shape
    along = to_x.to(value.dtype) @ value.transpose(2, 3).flatten(3)  # [B, H, N, h * F]
    return (to_y.to(value.dtype)[..., None, :] @ along.unflatten(-1, (rows, features))).squeeze(-2)


@register("cross_attention", "row_column")
class RowColumnCrossAttention(SummedLogits):
    """RCDA from queries to memory: each query looks along the columns from its x, along the rows from its y.

    A cell's weight is softmax over columns times softmax over rows, w + h logits in place of w h (Anchor DETR, section
    3.4). Its column's key is the mean of the column's cells, its row's that of the row's.

    Needs codes of rows and columns apart (`position.type = "axes"`), and a memory of one level.

    Args:
        width: D.
        heads: H.
        dropout: on attention weights.
        extent: what these means are over: the "padded" map (published: an image's result depends on the padding of its
            batch), or the "image".
    """

    def __init__(self, *, width: int, heads: int, dropout: float, extent: Extent = "padded"):
        super().__init__()
        self.attention = RowColumnAttention(width=width, heads=heads, dropout=dropout, extent=extent)

    def forward(self, content: Tensor, position: QueryPosition, reference: Reference, memory: Memory) -> Tensor:
        """Content [B, N, D] to its update [B, N, D]."""
        query_x, query_y = self._placed(content, reference, memory)
        return self.attention(query_x, query_y, memory.tokens, self._codes(memory), memory.mask)

    def summands(
        self, content: Tensor, position: QueryPosition, reference: Reference, memory: Memory
    ) -> Iterator[Summand]:
        """Columns and rows: the product of their two softmaxes is the softmax of their sum."""
        query_x, query_y = self.attention.queries(*self._placed(content, reference, memory))
        yield Summand("columns", "columns", query_x)
        yield Summand("rows", "rows", query_y)

    def key_features(self, memory: Memory) -> dict[str, Tensor]:
        key_x, key_y, value = self.attention.keys_and_values(memory.tokens, self._codes(memory), memory.mask)
        shape = value.shape[2:4]
        columns = key_x[:, :, None].expand(-1, -1, shape[0], -1, -1)
        rows = key_y[:, :, :, None].expand(-1, -1, -1, shape[1], -1)
        return {"columns": columns.flatten(2, 3), "rows": rows.flatten(2, 3)}

    def _placed(self, content: Tensor, reference: Reference, memory: Memory) -> tuple[Tensor, Tensor]:
        """Content [B, N, D] with the code of its reference's x, and with that of its y."""
        x, y = self._codes(memory).of(reference.point).unbind(-2)
        return content + x, content + y

    @staticmethod
    def _codes(memory: Memory) -> AxisCodes:
        return memory.require_axes('decoder.cross_attention "row_column"')
