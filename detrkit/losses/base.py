"""What a loss term is, and what sums them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from detrkit.recipe import define_slot
from detrkit.structures import Matches, Output, Target, Targets


class Loss:
    """One term; the criterion multiplies it by `weight`."""

    weight: float
    needs: tuple[str, ...] = ()
    """options of the head that it cannot do without"""

    def applies_to(self, output: Output) -> bool:
        """Whether the predictions have what the term asks for; decides for extras, the answer has to have it."""
        return True

    def __call__(self, output: Output, targets: Targets, matches: Matches, objects: Tensor) -> Tensor:
        """The term [Y] of every decoder layer. `objects` is the normaliser, a scalar (see `Criterion`)."""
        raise NotImplementedError


class BaseCriterion(nn.Module):
    """What a system's detector is trained by; `Criterion` is the DETRs'."""

    @property
    def bad_costs(self) -> int:
        """How many matching costs were not finite so far; the record of a training counts them."""
        return 0

    def forward(
        self, output, targets: Sequence[Target], objects: Tensor | None = None, images: int | None = None
    ) -> dict[str, Tensor]:
        """The losses of a batch: "total", which is backpropagated, and the terms by name, without graph.

        Args:
            output: the detector's in training.
            targets: the truth of each of B images.
            objects: the number of objects that losses are divided by, where the caller knows it.
            images: of the whole batch in this process, where this is a piece of it; None: B.
        """
        raise NotImplementedError


define_slot("loss", offers=(), base=Loss)
