"""Another augmentation from each of several epochs on."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from detrkit.data.choosing import ChoosingAugment
from detrkit.data.transforms import Augment
from detrkit.errors import DataError
from detrkit.recipe import Given, Slot, as_factory, register


@register("augment", "by_epoch")
class AugmentByEpoch(ChoosingAugment):
    """Stages of a training, each with an augmentation of its own: strong ones only in its middle, say (DEIM).

    A resumed run goes on as if it had not stopped. Without an epoch, and in evaluation, it is the last stage's.

    Args:
        stages: the augmentations by names of your own, in their order.
        changes: the first epoch of each but the first, counted from 0.
    """

    def __init__(
        self,
        *,
        stages: Annotated[dict[str, Given], Slot("augment")],
        changes: tuple[Annotated[int, Field(ge=1, le=1_000_000)], ...],
    ):
        if len(stages) != len(changes) + 1:
            raise DataError(
                f"changes are {list(changes)}: {len(stages)} stages want {max(len(stages) - 1, 0)} changes between "
                f"them, and there are {len(changes)}"
            )
        if any(later <= sooner for sooner, later in pairwise(changes)):
            raise DataError(f"changes are {list(changes)}, and each has to be later than the one before it")
        self.stages: list[Augment] = [as_factory("augment", stage)() for stage in stages.values()]
        self.changes = changes
        super().__init__(self.stages[-1])

    @classmethod
    def usual_at(cls, table: Mapping[str, Any]) -> tuple[str, ...]:
        return "stages", list(table["stages"])[-1]

    def chosen(self, epoch: int, rng: np.random.Generator) -> Augment:
        return self.stages[bisect_right(self.changes, epoch)].chosen(epoch, rng)
