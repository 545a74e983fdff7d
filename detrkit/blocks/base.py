"""Training blocks: queries that exist in training only, beside those that give the answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from detrkit.decoder import QueryDecoder
from detrkit.errors import UserError
from detrkit.layers import Part
from detrkit.queries.base import QueryGenerator
from detrkit.recipe import define_slot
from detrkit.structures import Extra, Matches, Output, Queries, QueryLayout, Reference, Target, Targets


@dataclass(frozen=True)
class Slots:
    """Denoising queries of one step, and which of them stand for which object. M pairs."""

    content: Tensor
    """[B, S, D], 0 in empty slots"""
    reference: Reference
    """of S slots"""
    boxes: Tensor
    """[B, S, 4] what the references were made of, (0.5, 0.5, 0.5, 0.5) in empty slots"""
    sizes: tuple[int, ...]
    """slots of each denoising group; they sum to S"""
    image: Tensor
    """[M] int64"""
    slot: Tensor
    """[M] int64, in 0 .. S - 1"""
    target: Tensor
    """[M] int64, the object's place within its image"""
    truth: Targets | None
    """the M objects as if they were one image's: then slots without a pair enter no loss; None: they are background"""
    repeats: int
    """pairs of each object"""

    def read(self, output: Output) -> Extra:
        """What is to be learned from the slots' predictions [Y, B, S, ...].

        Their points are left out: a slot's object is given, so there is nothing for an inner rule to choose.
        """
        output, layers = replace(output, points=None), len(output.logits)
        if self.truth is None:
            image, query, target = self.image, self.slot, self.target
        else:
            output = replace(output, logits=self._paired(output.logits), boxes=self._paired(output.boxes))
            if output.objectness is not None:
                output = replace(output, objectness=self._paired(output.objectness))
            query = target = torch.arange(len(self.slot), device=self.slot.device)
            image = torch.zeros_like(query)
        matches = Matches(image, query.expand(layers, -1), target.expand(layers, -1))
        return Extra(replace(output, groups=self.repeats, repeats=self.repeats), matches, targets=self.truth)

    def _paired(self, predictions: Tensor) -> Tensor:
        """The rows [Y, 1, M, ...] that have an object."""
        return predictions[:, self.image, self.slot][:, None]


class Block(Part):
    """One source of training queries."""

    groups = 1
    """how many groups of matching queries it wants of the query generator"""

    def check(self, queries: QueryGenerator, decoder: QueryDecoder) -> None:
        """Raise UserError if the block does not go with the query generator or the decoder."""

    def slots(self, queries: Queries, targets: Sequence[Target]) -> Slots | None:
        """The denoising queries of a batch; None for a block that has none."""
        return None


define_slot("block", offers=("width", "classes", "geometry"), base=Block)


@dataclass(frozen=True)
class Extension:
    """What was added to the queries of one step, and how to part the decoder's output again."""

    layout: QueryLayout
    slots: dict[str, Slots]
    """by block"""
    grouping: str
    """the block that wanted groups; "" if there is one group only"""

    def cut(self, output: Output) -> Output:
        """The answer, of the first group of matching queries, with everything else in its extras."""
        extras, start = {}, 0
        for name, slots in self.slots.items():
            extras[name] = slots.read(output.rows(slice(start, start + sum(slots.sizes))))
            start += sum(slots.sizes)
        groups, answer = self.layout.groups, self.layout.answer
        if self.grouping:
            others = replace(output.rows(slice(answer.stop, None)), groups=groups - 1, repeats=groups)
            extras[self.grouping] = Extra(others)
        if shared := extras.keys() & output.extras.keys():
            raise UserError(f"blocks.{min(shared)}: the detector trains something else of that name; take another name")
        return replace(output.rows(answer), extras={**output.extras, **extras}, repeats=groups)


class TrainingBlocks(nn.ModuleDict):
    """All blocks of a detector, by name.

    Args:
        blocks: name -> block; at most one of them wants groups.

    Raises:
        UserError: two blocks want groups, or a name is one that modules have for something else.
    """

    def __init__(self, blocks: dict[str, Block]):
        super().__init__()
        grouping = [name for name, block in blocks.items() if block.groups > 1]
        if len(grouping) > 1:
            raise UserError(f"the blocks {' and '.join(grouping)} both make groups of queries; keep one of them")
        if taken := [name for name in blocks if "." in name or hasattr(self, name)]:
            raise UserError(f'a block cannot be named "{taken[0]}"; take another name, such as "denoising"')
        self.update(blocks)
        self.grouping = "".join(grouping)

    @property
    def named(self) -> dict[str, Block]:
        """The blocks by name."""
        return {name: cast(Block, block) for name, block in self.items()}

    @property
    def groups(self) -> int:
        """Groups of matching queries that the query generator is to make in training."""
        return self.named[self.grouping].groups if self.grouping else 1

    def extend(
        self, queries: Queries, targets: Sequence[Target], embed_boxes: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Queries, Extension]:
        """The generator's queries [B, groups * N, D] with the blocks' own in front, and how to part them again.

        `embed_boxes` is the generator's, where it makes embeddings [..., D] of boxes [..., 4]; else None.
        """
        added = {name: block.slots(queries, targets) for name, block in self.named.items()}
        slots = {name: one for name, one in added.items() if one is not None}
        layout = QueryLayout(
            queries=queries.content.shape[1] // self.groups,
            groups=self.groups,
            slots=tuple(size for one in slots.values() for size in one.sizes),
        )
        content, reference, embedding = queries.content, queries.reference, queries.embedding
        for one in reversed(slots.values()):
            content, reference = torch.cat((one.content, content), dim=1), one.reference.join(reference)
            if embedding is not None:  # without `embed_boxes` it is not looked at (see `Denoising.check`)
                own = torch.zeros_like(one.content) if embed_boxes is None else embed_boxes(one.boxes)
                embedding = torch.cat((own, embedding), dim=1)
        extended = replace(queries, content=content, reference=reference, embedding=embedding, layout=layout)
        return extended, Extension(layout, slots, self.grouping)
