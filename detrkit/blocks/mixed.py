"""Several queries for each object on the answer's own queries (MS-DETR)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from detrkit.blocks.base import Block
from detrkit.boxes import center_to_corners, overlaps
from detrkit.decoder import QueryDecoder
from detrkit.errors import UserError
from detrkit.heads import Head
from detrkit.layers import Arriving, Count, sent
from detrkit.matching.costs import pairs
from detrkit.recipe import Given, as_factory, register
from detrkit.structures import Extra, Matches, Output, Targets

Share = Annotated[float, Field(ge=0, le=1)]


@register("block", "mixed")
class MixedSupervision(Block):
    """A second assignment on the answer's queries, of many to each object (Zhao et al., "MS-DETR", CVPR 2024).

    One-to-many predictions are trained by the recipe's losses over the pairs of `assign`, divided by the number of
    objects. Outside training nothing is added.

    Needs a decoder that says how deep it is and what its heads read, as "transformer" does; from "decoder", one with
    `many_first`.

    Args:
        width: D.
        classes: K.
        head: factory of the decoder's head; the block gets class heads of that kind.
        source: where the predictions come from. "own_heads": what the answer's heads read is read by class heads (and
            objectness, where the head has it) of the block's own, the boxes are the answer's (section 3.3,
            implementation (a)). "decoder": its layers make them before self-attention (the main implementation).
        threshold: the least score of a query that counts for an object.
        count: k, how many queries an object gets at most.
        box, label: shares of IoU and class probability in a score.
        most: of the queries that count, so many are drawn, as a share of N but one at least, where there are more;
            "none": all. 0.25 in the official code.
        one_class: a query of objects of several classes learns the class of that which it scores best with (official
            code), not all of them.
    """

    def __init__(
        self,
        *,
        width: int,
        classes: int,
        head: Given,
        source: Literal["own_heads", "decoder"] = "own_heads",
        threshold: Share = 0.4,
        count: Count = 6,
        box: Share = 0.7,
        label: Share = 0.3,
        most: Annotated[float, Field(gt=0, le=1)] | None = None,
        one_class: bool = False,
    ):
        super().__init__()
        self.width, self.classes, self.kind = width, classes, as_factory("head", head)
        self.trains_many = source == "decoder"
        self.head: Head | None = None
        self.threshold, self.count, self.box, self.label = threshold, count, box, label
        self.most, self.one_class = most, one_class

    def join(self, decoder: QueryDecoder) -> None:
        if decoder.depth is None:
            raise UserError("the block mixed reads what the decoder's heads read, and this decoder does not say it")
        if self.trains_many:
            if not decoder.gives_many:
                raise UserError(
                    'blocks: source = "decoder" of "mixed" trains one-to-many predictions, and the decoder makes none; '
                    'set decoder.many_first = true, or source = "own_heads"'
                )
            return
        self.head = self.kind(
            width=self.width, classes=self.classes, layers=decoder.depth, offset_widths={}, size_offsets=()
        )

    def supervise(self, answer: Output) -> Extra:
        if self.head is None and answer.many is not None:
            return Extra(replace(answer.many, repeats=answer.repeats), assign=self.assign)
        if self.head is None or answer.content is None:
            raise UserError("the block mixed reads what the decoder's heads read, and this decoder does not say it")
        head = self.head
        raw = [head(layer, content) for layer, content in enumerate(answer.content)]
        objectness = [one.objectness for one in raw if one.objectness is not None]
        output = replace(
            answer,
            logits=torch.stack([one.logits for one in raw]),
            objectness=torch.stack(objectness) if objectness else None,
            content=None,
            many=None,
            extras={},
        )
        return Extra(output, assign=self.assign)

    @torch.no_grad()
    def assign(self, output: Output, targets: Targets) -> Callable[[], Sequence[Matches]]:
        """Begins to bring over who counts for whom; what it returns gives the pairs of each layer.

        A query whose best score reaches the threshold, or that is the best one of some object, counts for the object
        that it scores best with. An object gets as many queries as count for it, k at most: those that score best
        with it, by whomever they count for. Before that, `most` N of the queries that count are drawn.
        """
        scores = self.scores(output, targets)  # [Y, B, N, T]
        queries, objects = scores.shape[2:]
        if not objects:
            empty = torch.zeros(0, dtype=torch.int64, device=scores.device)
            return lambda: [Matches(empty, empty[None], empty[None])] * len(scores)
        best, owner = scores.max(-1)
        first = scores.max(-2)  # of each object
        firsts = torch.zeros_like(best).scatter_add(-1, first.indices, first.values.isfinite().to(best.dtype))
        counting = (best >= self.threshold) | (firsts > 0)
        if self.most is not None:
            chances = sent(self.chances(counting.shape), scores.device).masked_fill(~counting, -1.0)
            drawn = chances.topk(max(1, int(self.most * queries)), dim=-1).indices
            counting = counting & torch.zeros_like(counting).scatter(-1, drawn, True)
        numbers = torch.zeros_like(scores[:, :, 0], dtype=torch.int64).scatter_add(-1, owner, counting.long())
        count = min(self.count, queries)
        chosen = scores.topk(count, dim=2).indices  # [Y, B, k, T]
        taken = torch.arange(count, device=scores.device)[:, None] < numbers[:, :, None]
        return partial(_pairs, Arriving(taken), chosen, scores if self.one_class else None)

    def chances(self, shape: torch.Size) -> Tensor:
        """A number in [0, 1) for each query, on the CPU; those of the largest are drawn."""
        return torch.rand(shape)

    def scores(self, output: Output, targets: Targets) -> Tensor:
        """[Y, B, N, T] how well queries fit objects, in [0, 1]; -inf where no object is or a number is broken."""
        predicted, truth = pairs(center_to_corners(output.boxes), center_to_corners(targets.boxes))
        index = targets.labels[None, :, None].expand(*output.logits.shape[:3], -1)
        chance = output.logits.softmax(-1) if output.background else output.logits.sigmoid()
        scores = self.box * overlaps(predicted, truth, 0.0)[0] + self.label * chance.gather(-1, index)
        return scores.masked_fill(~(targets.filled[None, :, None] & scores.isfinite()), -torch.inf)


def _pairs(taken: Arriving, chosen: Tensor, scores: Tensor | None) -> list[Matches]:
    """Those of `chosen` [Y, B, k, T], queries of objects, that are `taken` [Y, B, k, T].

    With scores [Y, B, N, T], a query learns the class of that object alone which it scores best with.
    """
    found = []
    for layer, (here, rows) in enumerate(zip(taken.read(), chosen, strict=True)):
        image, rank, target = (sent(x, chosen.device) for x in here.nonzero(as_tuple=True))
        query, teaches = rows[image, rank, target], None
        if scores is not None:
            reached, size = scores[layer, image, query, target], scores.shape[1:3]
            best = scores.new_zeros(size).flatten().scatter_reduce(0, image * size[1] + query, reached, "amax")
            teaches = (reached == best.view(size)[image, query])[None]
        found.append(Matches(image, query[None], target[None], teaches=teaches))
    return found
