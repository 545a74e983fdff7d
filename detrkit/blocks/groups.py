"""Several groups of queries in training, of which one is kept (Group DETR)."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from pydantic import Field

from detrkit.blocks.base import Block
from detrkit.recipe import register
from detrkit.structures import Extra, Output


@register("block", "groups")
class QueryGroups(Block):
    """K groups of queries, each matched with all objects on its own (Chen et al., "Group DETR", 2022, section 3.2).

    The query generator owns all K groups; outside training only the first one is used. A group sees itself alone in
    self-attention, everything else is shared. Every group's losses weigh 1 / K: they are divided by K times the number
    of objects. (The official code divides a batch without any object by 1 and not by K.)

    With denoising beside it, the slots see the first group and not the others.

    Needs queries that come in groups: all but "anchor_points".

    Args:
        count: K.
    """

    def __init__(self, *, count: Annotated[int, Field(ge=2, le=1000)] = 11):
        super().__init__()
        self.groups = count

    def share(self, answer: Output, others: Output) -> tuple[Output, Extra]:
        others = replace(others, groups=self.groups - 1, repeats=self.groups)
        return replace(answer, repeats=self.groups), Extra(others)
