"""What a loss term is, and what sums them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from detrkit.errors import lacking
from detrkit.layers import total
from detrkit.recipe import define_slot
from detrkit.structures import Matches, Output, Target, Targets


class Loss:
    """One term; the criterion multiplies it by `weight`."""

    weight: float
    extra_weights: Mapping[str, float] = {}
    """its weight in extras, by their names ("denoising", "encoder"), where that is another than `weight`"""
    needs: tuple[str, ...] = ()
    """options of the head that it cannot do without"""
    weighs_pairs = False
    """whether it knows that pairs may count differently (`Matches.weight`)"""

    def applies_to(self, output: Output) -> bool:
        """Whether the predictions have what the term asks for; decides for extras, the answer has to have it."""
        return True

    def __call__(self, output: Output, targets: Targets, matches: Matches, objects: Tensor) -> Tensor:
        """The term [Y] of every decoder layer. `objects` is the normaliser, a scalar (see `Criterion`).

        Y is 1 for an encoder's proposals, and for each layer on its own where layers have different numbers of pairs
        (`Matcher.match`, `Extra.assign`): what compares layers finds nothing to compare there.
        """
        raise lacking(self, Loss.__call__)


BESIDE = ("norm", "loss_scale", "left_out", "bad_costs", "stop")
"""what a training tells of its steps beside a criterion's numbers, by these names"""


class BaseCriterion(nn.Module):
    """What a system's detector is trained by; `Criterion` is the DETRs'.

    Its buffers go into a training's checkpoints. Parameters that the detector does not have are refused: nothing would
    train them.
    """

    @property
    def bad_costs(self) -> int:
        """How many matching costs were not finite so far; the record of a training counts them."""
        return 0

    def forward(
        self, output, targets: Sequence[Target], objects: Tensor | None = None, images: int | None = None
    ) -> dict[str, Tensor]:
        """The losses of a batch: "total", which is backpropagated, and the terms by name (none of `BESIDE`), without
        graph.

        Args:
            output: the detector's in training.
            targets: the truth of each of B images.
            objects: the number of objects that losses are divided by, where the caller knows it.
            images: of the whole batch in this process, where this is a piece of it; None: B.
        """
        raise lacking(self, BaseCriterion.forward)

    def weighted(
        self, output, targets: Sequence[Target], objects: Tensor | None = None, images: int | None = None
    ) -> dict[str, Tensor]:
        """Scalars by name whose sum is the total, with their graph, for a loop that sums them itself.

        The arguments are those of `forward`.
        """
        return {"total": self(output, targets, objects, images)["total"]}


class OwnLosses(BaseCriterion):
    """The criterion of a detector that computes its losses itself: their sum."""

    def forward(
        self,
        output: dict[str, Tensor],
        targets: Sequence[Target],
        objects: Tensor | None = None,
        images: int | None = None,
    ) -> dict[str, Tensor]:
        """The losses by name, and "total".

        Args:
            output: losses, each a mean over the images.
            objects: not needed: what these losses are divided by is their detector's affair.
            images: of the whole batch in this process, where this is a piece of it; each piece has its share.
        """
        losses = self.weighted(output, targets, objects, images)
        return {"total": total(losses.values()), **{name: value.detach() for name, value in losses.items()}}

    def weighted(
        self,
        output: dict[str, Tensor],
        targets: Sequence[Target],
        objects: Tensor | None = None,
        images: int | None = None,
    ) -> dict[str, Tensor]:
        share = len(targets) / (images or len(targets))
        return {name: value.float() * share for name, value in output.items()}


define_slot("loss", offers=(), base=Loss)
