"""What the decoder starts from, and what its layers know of the queries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from detrkit.errors import UserError, require_given
from detrkit.structures.output import Extra
from detrkit.structures.reference import Reference


@dataclass(frozen=True)
class QueryLayout:
    """Who sees whom in the decoder's self-attention, where training blocks have added queries.

    Denoising slots stand first; then come the groups of matching queries, of which the first is the answer, and last a
    second set. A matching query sees its own group, one of the second set sees that. A slot sees its own denoising
    group and the answer.
    """

    queries: int
    """N of one group of matching queries"""
    groups: int = 1
    """groups of matching queries"""
    slots: Tensor | None = None
    """[S] int64, the denoising group of each slot, from 0 on; -1 for slots that only fill up"""
    second: int = 0
    """queries of the second set, of which several answer for one object"""
    passed_over: Tensor | None = None
    """[B, N] bool of all queries, True for those that do not see one another, nor themselves; in no slot and not in the
    second set"""
    kept: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)
    """what was computed of the fields and is asked for again"""

    @property
    def matching(self) -> tuple[int, ...]:
        """The queries of each set of matching queries that sees itself alone."""
        return (self.queries,) * self.groups + ((self.second,) if self.second else ())

    @property
    def answer(self) -> slice:
        """The places of the first group of matching queries, which alone exists outside training."""
        first = 0 if self.slots is None else len(self.slots)
        return slice(first, first + self.queries)

    @property
    def visible(self) -> Tensor:
        """[S + N, S + N] bool, True where a slot or a query of the answer may look at another; on the slots' device."""
        if "visible" not in self.kept:
            self.kept["visible"] = self._sight((self.queries,), None if self.slots is None else self.slots.device)
        return self.kept["visible"]

    def attention_mask(self, device: torch.device | str | None = None) -> Tensor:
        """[N, N] bool, True where a row may not look at a column: `attn_mask` of `torch.nn.MultiheadAttention`.

        N counts slots, all groups and the second set. `torch.nn.functional.scaled_dot_product_attention` wants its
        negation.
        """
        return ~self._sight(self.matching, device)

    def _sight(self, sets: Sequence[int], device: torch.device | str | None) -> Tensor:
        parts = [torch.full((size,), -2 - place, device=device) for place, size in enumerate(sets)]
        owner = torch.cat(parts)  # -2 is the answer
        if self.slots is not None:
            owner = torch.cat((self.slots.to(owner.device), owner))
        return (owner[:, None] == owner) | ((owner > -2)[:, None] & (owner == -2))


@dataclass(frozen=True)
class Queries:
    """What the decoder starts from."""

    content: Tensor
    """[B, N, D]"""
    reference: Reference
    embedding: Tensor | None = None
    """[B, N, D] a learned embedding of each query's place, the same in every layer (query position "learned")"""
    extras: Mapping[str, Extra] = field(default_factory=dict)
    """what is trained where the queries came from, for the output's extras"""
    layout: QueryLayout | None = None
    """None: all queries see one another"""
    labels: Tensor | None = None
    """[K + 1, D - 1] the label table that content was made of, where it was"""
    read_from: Tensor | None = None
    """[B, N, D] what the reference points were read off, where it was normed for that"""
    boxes: tuple[Tensor, Tensor] | None = None
    """[B, N, 4] the boxes that the two decoder layers before predicted, without graph; the second layer has those of
    the first references and the first layer's (where references are points that layer's twice), the first has none"""

    def __post_init__(self) -> None:
        if torch.compiler.is_compiling():
            return
        require_given(self.reference, Reference, "what makes the queries' references, such as the geometry's encode,")
        if self.content.dim() != 3 or self.reference.point.shape != (*self.content.shape[:2], 2):
            raise UserError(
                f"queries have content {list(self.content.shape)} and references with points "
                f"{list(self.reference.point.shape)}; they are [B, N, D] and [B, N, 2]"
            )


@dataclass(frozen=True)
class QueryLimit:
    """How many objects of an image can be learned and found, since each needs a query."""

    count: int
    """queries of one group, at most"""
    key: str
    """the key of a recipe that changes it"""


Relation = Callable[[slice], Tensor]
"""Numbers among the queries at these places: to [B, H, N, N], rows look at columns."""


@dataclass(frozen=True)
class QueryPosition:
    """What a decoder layer knows of its queries' places."""

    embeddings: dict[str, Tensor] = field(default_factory=dict)
    """name -> [B, N, D], learned embeddings, for self-attention and the first layer's content"""
    codes: dict[str, Tensor] = field(default_factory=dict)
    """name -> [B, N, F], scaled sine codes, for the position terms of cross-attention"""
    relations: dict[str, Relation | None] = field(default_factory=dict)
    """name -> numbers among queries, for the terms of self-attention; None in a layer that has none"""
