"""Training blocks: queries that exist in training only, beside those that give the answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from detrkit.decoder import QueryDecoder
from detrkit.errors import UserError, lacking, require_given
from detrkit.layers import Part, can_be_named, sent
from detrkit.queries.base import SECOND, QueryGenerator
from detrkit.recipe import define_slot
from detrkit.structures import Extra, Matches, Output, Queries, QueryLayout, Reference, Target, Targets


def exact(slots: int) -> int:
    """As many slots as are asked for."""
    return slots


def rounded(slots: int) -> int:
    """The next power of two, from 32 on, so that batches of like numbers of objects have tensors of one shape."""
    return max(32, 1 << (slots - 1).bit_length())


@dataclass(frozen=True)
class Slots:
    """Denoising queries of one step, all but their content, and which of them stand for which object. M pairs."""

    labels: Tensor
    """[B, S] int64, the classes that content is made of, 0 in empty slots"""
    filled: Tensor
    """[B, S] bool, False in empty slots, whose content is 0"""
    reference: Reference
    """of S slots"""
    boxes: Tensor
    """[B, S, 4] what the references were made of; four times `Denoising.empty` in empty slots"""
    sizes: tuple[int, ...]
    """slots of each denoising group; those of S that are left over only fill up: no other slot or query sees them, and
    nothing is learned from them"""
    image: Tensor
    """[M] int64"""
    slot: Tensor
    """[M] int64, in 0 .. sum(sizes) - 1"""
    target: Tensor
    """[M] int64, the object's place within its image"""
    truth: Targets | None
    """the M objects as if they were one image's, `images` 0: then slots without a pair enter no loss; None: they are
    background"""
    repeats: int
    """pairs of each object"""

    @property
    def room(self) -> int:
        """S"""
        return self.labels.shape[1]

    def read(self, output: Output) -> Extra:
        """What is to be learned from the slots' predictions [Y, B, S, ...].

        Their points are left out: a slot's object is given, so there is nothing for an inner rule to choose.
        """
        output, layers = replace(output.rows(slice(0, sum(self.sizes))), points=None), len(output.logits)
        if self.truth is None:
            image, query, target = self.image, self.slot, self.target
        else:
            output = output.with_predicted(self._paired)
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
    trains_many = False
    """whether it trains the decoder's one-to-many predictions (`QueryDecoder.gives_many`)"""
    joins_groups = False
    """whether those beyond the answer are one second set, of which several queries answer for one object"""
    second = 0
    """how many queries of a second set it wants that the query generator finds by proposals of their own, beside the
    groups; they see one another, and several of them answer for one object"""

    def join(self, decoder: QueryDecoder) -> None:
        """Hears from which decoder it gets its predictions, before any weights are loaded or moved.

        Raises UserError if that does not give what the block needs.
        """

    def check(self, queries: QueryGenerator, decoder: QueryDecoder) -> None:
        """Raise UserError if the block does not go with the query generator or the decoder."""

    def slots(self, targets: Sequence[Target], dtype: torch.dtype, room: Callable[[int], int] = exact) -> Slots | None:
        """The denoising queries of a batch, without anything learned; None for a block that has none.

        Args:
            targets: the truth of each image.
            dtype: of boxes and references.
            room: how many slots there are to be, at least as many as it is given.
        """
        return None

    def content(self, labels: Tensor, queries: Queries) -> Tensor:
        """The content [..., D] of slots with these labels [...]; `queries` are the generator's."""
        raise lacking(self, Block.content)

    def share(self, answer: Output, others: Output) -> tuple[Output, Extra]:
        """The predictions of the first group and of the others, with what each counts for; where it wants groups."""
        raise lacking(self, Block.share)

    def share_second(self, output: Output, proposals: Output) -> tuple[Extra, Extra]:
        """The second set's predictions and what they start from, with what each counts for; where it wants a set."""
        raise lacking(self, Block.share_second)

    def supervise(self, answer: Output) -> Extra | None:
        """What is learned from the answer's own queries, or what it `encoded`, beside the answer; None for nothing."""
        return None


define_slot("block", offers=("width", "classes", "geometry", "head"), base=Block)


@dataclass(frozen=True)
class Extension:
    """What is added to the queries of one step, and how to part the decoder's output again.

    Nothing of it depends on weights: it is worked out before the forward pass, which is one graph for `torch.compile`.
    """

    slots: dict[str, Slots]
    """by block"""
    owner: Tensor | None
    """[S] int64, `QueryLayout.slots` of all blocks; None where there are no slots"""
    blocks: TrainingBlocks
    """whose blocks they are of"""

    def cut(self, output: Output) -> Output:
        """The answer, of the first group of matching queries, with everything else in its extras.

        Raises UserError if a block has the name of something else that is trained.
        """
        extras, start = {}, 0
        given = dict(output.extras)
        for name, slots in self.slots.items():
            extras[name] = slots.read(output.rows(slice(start, start + slots.room)))
            start += slots.room
        second = given.pop(SECOND, None)
        last = output.logits.shape[2] - _count(second)
        end = start + (last - start) // self.blocks.groups
        answer = output.rows(slice(start, end))
        if grouping := self.blocks.grouping:
            others = output.rows(slice(end, last))
            answer, extras[grouping] = self.blocks.named[grouping].share(answer, others)
        if second is not None:
            name = self.blocks.seconding
            shared = self.blocks.named[name].share_second(output.rows(slice(last, None)), second.output)
            extras[name], extras[f"{name}_encoder"] = shared
        for name, block in self.blocks.named.items():
            if (extra := block.supervise(answer)) is not None:
                require_given(extra, Extra, f"supervise of blocks.{name}")
                extras[name] = extra
        if taken := extras.keys() & given.keys():
            raise UserError(f"blocks.{min(taken)}: the detector trains something else of that name; take another name")
        return replace(answer, extras={**given, **extras})


def _count(second: Extra | None) -> int:
    """The queries of a second set, by what they start from."""
    return 0 if second is None else second.output.logits.shape[2]


class TrainingBlocks(nn.ModuleDict):
    """All blocks of a detector, by name.

    Args:
        blocks: name -> block; at most one of them wants groups, and one a second set.

    Raises:
        UserError: two blocks want groups or a second set, or a name is one that modules have for something else.
    """

    def __init__(self, blocks: dict[str, Block]):
        super().__init__()
        grouping = [name for name, block in blocks.items() if block.groups > 1]
        if len(grouping) > 1:
            raise UserError(f"the blocks {' and '.join(grouping)} both make groups of queries; keep one of them")
        seconding = [name for name, block in blocks.items() if block.second or block.joins_groups]
        if len(seconding) > 1:
            raise UserError(f"the blocks {' and '.join(seconding)} both make a second set of queries; keep one of them")
        if taken := [name for name in blocks if not can_be_named(name) or hasattr(self, name)]:
            raise UserError(f'a block cannot be named "{taken[0]}"; take another name, such as "denoising"')
        self.update(blocks)
        self.grouping, self.seconding = "".join(grouping), "".join(seconding)

    @property
    def named(self) -> dict[str, Block]:
        """The blocks by name."""
        return {name: cast(Block, block) for name, block in self.items()}

    @property
    def groups(self) -> int:
        """Groups of matching queries that the query generator is to make in training."""
        return self.named[self.grouping].groups if self.grouping else 1

    @property
    def second(self) -> int:
        """Queries of a second set that the query generator is to make in training, with proposals of their own."""
        return self.named[self.seconding].second if self.seconding else 0

    def prepare(
        self, targets: Sequence[Target], dtype: torch.dtype = torch.float32, room: Callable[[int], int] = exact
    ) -> Extension:
        """What the blocks add to the queries of a batch; the host works out where, so nothing waits for the device.

        Args:
            targets: the truth of each image.
            dtype: of boxes and references.
            room: how many slots a block's are filled up to, `exact` or `rounded`.
        """
        added = {name: block.slots(targets, dtype, room) for name, block in self.named.items()}
        slots = {name: one for name, one in added.items() if one is not None}
        owner = list[int]()
        first = 0
        for one in slots.values():
            own = [first + group for group, size in enumerate(one.sizes) for _ in range(size)]
            owner += own + [-1] * (one.room - len(own))
            first += len(one.sizes)
        on_device = sent(torch.tensor(owner), targets[0]["boxes"].device) if owner else None
        return Extension(slots, on_device, self)

    def extend(
        self, queries: Queries, extension: Extension, embed_boxes: Callable[[Tensor], Tensor] | None = None
    ) -> Queries:
        """The generator's queries [B, groups * N, D], and a second set after them, with the blocks' own in front.

        `embed_boxes` is the generator's, where it makes embeddings [..., D] of boxes [..., 4]; else None.
        """
        groups, second = self.groups, _count(queries.extras.get(SECOND))
        size = (queries.content.shape[1] - second) // groups
        if groups > 1 and self.named[self.grouping].joins_groups:
            groups, second = 1, (groups - 1) * size
        layout = QueryLayout(queries=size, groups=groups, slots=extension.owner, second=second)
        content, reference, embedding = queries.content, queries.reference, queries.embedding
        for name, one in reversed(extension.slots.items()):
            known = self.named[name].content(one.labels, queries).to(queries.content.dtype)
            known = known.masked_fill(~one.filled[..., None], 0.0)
            content, reference = torch.cat((known, content), dim=1), one.reference.join(reference)
            if embedding is not None:  # without `embed_boxes` it is not looked at (see `Denoising.check`)
                own = torch.zeros_like(known) if embed_boxes is None else embed_boxes(one.boxes)
                embedding = torch.cat((own, embedding), dim=1)
        return replace(queries, content=content, reference=reference, embedding=embedding, layout=layout)
