"""The criterion: match once for all layers, then sum the loss terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from detrkit.errors import UserError
from detrkit.layers import total
from detrkit.losses.base import BESIDE, BaseCriterion, Loss
from detrkit.losses.truths import check_truths
from detrkit.matching.base import Matcher
from detrkit.recipe import Given, as_factory
from detrkit.structures import Extra, Matches, Output, Target, Targets

_TAKEN = ("total", "class_error", *BESIDE)
"""what a criterion, or the loop around it, reports beside the losses"""


class Criterion(BaseCriterion):
    """Matches every decoder layer and sums the weighted loss terms over terms and layers.

    Args:
        matcher: gives the pairs.
        losses: the terms, by the names under which they are reported.

    Both take built parts as well as what `detrkit.recipe.as_factory` does.

    Raises:
        UserError: there is no loss, one has a name that is taken, something is no part, or a loss counts pairs alike
            that the matcher weighs.
    """

    def __init__(self, *, matcher: Given, losses: Mapping[str, Given]):
        super().__init__()
        if not isinstance(losses, Mapping):
            raise UserError(f'losses is a {type(losses).__name__}, should be losses by name, such as {{"box": "l1"}}')
        if not losses:
            raise UserError("losses is empty, so nothing would be learned; name a loss")
        if taken := [name for name in losses if name in _TAKEN or not {".", "/"}.isdisjoint(name)]:
            raise UserError(
                f'a loss cannot be named "{taken[0]}": {", ".join(_TAKEN)} are said beside the losses of a training, '
                'where "." stands between a loss and its decoder layer and "/" between an extra and its loss'
            )
        self.matcher: Matcher = as_factory("matcher", matcher)()
        self.losses: dict[str, Loss] = {name: as_factory("loss", given)() for name, given in losses.items()}
        if self.matcher.weighs_pairs:
            for name, loss in self.losses.items():
                if not loss.weighs_pairs:
                    raise UserError(
                        f"losses.{name} counts all pairs alike, and this matcher gives several queries to an object, "
                        'which count less and less; take losses that know it, such as "iou_aware", "l1" and "giou", '
                        'or matcher.type = "hungarian"'
                    )

    @property
    def bad_costs(self) -> int:
        """How many matching costs were not finite so far, and counted as the worst."""
        return self.matcher.bad_costs

    def normalizer(self, targets: Sequence[Target], device: torch.device) -> Tensor:
        """The number of objects in all processes' batches, at least 1, over the processes: a scalar tensor.

        So gradients that are averaged over the processes are those of one process with the joined batch.
        """
        return _over_processes(torch.full((), float(sum(len(t["labels"]) for t in targets)), device=device))

    def forward(
        self,
        output: Output,
        targets: Sequence[Target],
        objects: Tensor | None = None,
        images: int | None = None,
    ) -> dict[str, Tensor]:
        """The losses of a batch.

        Args:
            output: the detector's, stacked over Y layers.
            targets: for each of B images `labels` [T] int64 in 0 .. K - 1 and `boxes` [T, 4] as (cx, cy, w, h) in
                shares of the image.
            objects: the normaliser, where the caller knows better (a batch in several pieces); None: `normalizer`.
            images: of the whole batch in this process, where this is a piece of it; None: B.

        Returns:
            "total", the weighted sum to backpropagate; and, without graph or weight, each term by its name for the
            last layer and as "name.i" for layer i before, those of `output.extras` as "extra/name" and
            "extra/name.i"; and "class_error", 100 less the share in percent of matched
            queries of the last layer whose best class is right.

        Raises:
            UserError: predictions or truths in another form; labels and boxes out of range, or predicted boxes of
                negative sizes, where they are on the CPU.
        """
        terms, matches, padded = self._matched(output, targets, objects, images)
        report = {"total": total(weight * value.sum() for weight, value in terms.values())}
        for name, (_, value) in terms.items():
            *earlier, last = value.detach().unbind()
            report[name] = last
            report |= {f"{name}.{layer}": x for layer, x in enumerate(earlier)}
        report["class_error"] = class_error(output, padded, matches)
        return report

    def terms(
        self,
        output: Output,
        targets: Sequence[Target],
        objects: Tensor | None = None,
        images: int | None = None,
    ) -> dict[str, Tensor]:
        """The terms [Y] by their names, with graph and without weight, for a loop that weighs and sums them itself.

        Names, arguments and errors are those of `forward`, whose total is the sum of `losses[name].weight` times these
        (in an extra, `losses[name].extra_weights` comes first).
        """
        terms, _, _ = self._matched(output, targets, objects, images)
        return {name: value for name, (_, value) in terms.items()}

    def weighted(
        self,
        output: Output,
        targets: Sequence[Target],
        objects: Tensor | None = None,
        images: int | None = None,
    ) -> dict[str, Tensor]:
        """The terms by their names, each times its weight and summed over the layers."""
        terms, _, _ = self._matched(output, targets, objects, images)
        return {name: weight * value.sum() for name, (weight, value) in terms.items()}

    def _matched(
        self, output: Output, targets: Sequence[Target], objects: Tensor | None, images: int | None
    ) -> tuple[dict[str, tuple[float, Tensor]], Matches | Sequence[Matches], Targets]:
        """Each term with its weight; the answer's pairs, and the truths that they speak of."""
        _check_output(output)
        self._check_background(output)
        check_truths(targets, images=output.logits.shape[1], classes=output.logits.shape[-1] - output.background)
        self._check_extras(output)
        output = output.float() if output.logits.dtype != torch.float64 else output
        padded = Targets.pad(targets, output.boxes.dtype, images)
        with torch.autocast(output.logits.device.type, enabled=False):
            truths = {name: extra.truth(padded) for name, extra in output.extras.items()}
            unknown = {name: extra for name, extra in output.extras.items() if extra.matches is None}
            asked = {name: extra for name, extra in unknown.items() if extra.assign is None}
            begun = {
                name: extra.assign(extra.output, truths[name])
                for name, extra in unknown.items()
                if extra.assign is not None
            }
            for name, finish in begun.items():
                if not callable(finish):
                    raise UserError(
                        f"assign of the extra {name!r} gives a {type(finish).__name__}, should be what gives the pairs "
                        "when it is called: lambda: matches"
                    )
            requests = [(output, padded)]
            requests += [(extra.matched_as or extra.output, truths[name]) for name, extra in asked.items()]
            answers = self.matcher.match(requests)
            if not isinstance(answers, Sequence) or len(answers) != len(requests):
                raise UserError(f"the matcher gives no list of {len(requests)}, the matches of each output asked of")
            matches, *matched = answers
            pairs: dict[str, Matches | Sequence[Matches]] = dict(zip(asked, matched, strict=True))
            pairs |= {name: finish() for name, finish in begun.items()}
            if objects is None:
                objects = self.normalizer(targets, output.logits.device)
            terms = self._of_layers("", output, padded, matches, objects)
            for name, extra in output.extras.items():
                found = extra.matches or pairs[name]
                share = len(extra.output.logits[0]) / padded.images
                counted = self._weights(found, share) if extra.by_weight else objects * extra.copies
                terms |= self._of_extra(name, extra, truths[name], found, counted)
        return terms, matches, padded

    def _weights(self, matches: Matches | Sequence[Matches], share: float) -> Tensor:
        """[Y] what a layer's pairs count in sum, in all processes, at least 1, over the processes (see `normalizer`).

        `share`: of the process's images in this piece of its batch; the other pieces are taken to count as much.
        """
        layers = [matches] if isinstance(matches, Matches) else matches
        weights = torch.stack([one.weighed(torch.ones_like(one.query, dtype=torch.float32)).sum() for one in layers])
        return _over_processes(weights / share)

    def _of_extra(
        self, name: str, extra: Extra, targets: Targets, matches: Matches | Sequence[Matches], objects: Tensor
    ) -> dict[str, tuple[float, Tensor]]:
        """The terms of an extra, without those that ask for what it does not predict."""
        terms = self._of_layers(name, extra.output, targets, matches, objects)
        return {key: (weight, extra.weight * value) for key, (weight, value) in terms.items()}

    def _of_layers(
        self, extra: str, output: Output, targets: Targets, matches: Matches | Sequence[Matches], objects: Tensor
    ) -> dict[str, tuple[float, Tensor]]:
        """The terms of an output whose layers have matches of one number, or of a number of its own each.

        `objects` is one normaliser, or one of each layer [Y].
        """
        if isinstance(matches, Matches):
            return self._terms(extra, output, targets, matches, objects)
        each = objects.expand(len(matches)).unbind()
        layers = [
            self._terms(extra, output.layer(index), targets, pairs, each[index]) for index, pairs in enumerate(matches)
        ]
        return {key: (weight, torch.cat([layer[key][1] for layer in layers])) for key, (weight, _) in layers[0].items()}

    def _terms(
        self, extra: str, output: Output, targets: Targets, matches: Matches, objects: Tensor
    ) -> dict[str, tuple[float, Tensor]]:
        """The terms of the answer (""); of an extra's output without those that ask for what it does not predict."""
        terms, layers = {}, len(output.logits)
        for name, loss in self.losses.items():
            if extra and not loss.applies_to(output):
                continue
            value = loss(output, targets, matches, objects)
            if not isinstance(value, Tensor) or value.shape != (layers,):
                given = list(value.shape) if isinstance(value, Tensor) else f"a {type(value).__name__}"
                raise UserError(
                    f"losses.{name} gives {given}, should be [Y] = [{layers}]: a number of each decoder layer"
                )
            key = f"{extra}/{name}" if extra else name
            terms[key] = (loss.extra_weights.get(extra, loss.weight), value / output.repeats)
        return terms

    def _check_background(self, output: Output) -> None:
        """Refuse losses and costs that take the last logit for "no object" where it is a class."""
        told = {f"losses.{name}": loss.needs for name, loss in self.losses.items()}
        told |= {f"matcher.costs.{name}": cost.needs for name, cost in self.matcher.costs.items()}
        if not output.background and (asking := [key for key, needs in told.items() if "background" in needs]):
            raise UserError(
                f'{asking[0]} takes the last logit for "no object", and this output says that it is a class; set '
                "head.background = true, in code Output(..., background=True)"
            )

    def _check_extras(self, output: Output) -> None:
        """Refuse weights of extras that this training does not have; an evaluation has fewer."""
        for name, loss in self.losses.items():
            unknown = loss.extra_weights.keys() - output.extras.keys()
            if output.content is not None and output.extras and unknown:
                raise UserError(
                    f"losses.{name}.extra_weights: nothing that this detector trains is named {min(unknown)!r}; "
                    f"there is {', '.join(map(repr, output.extras))}"
                )


@torch.no_grad()
def class_error(output: Output, targets: Targets, matches: Matches | Sequence[Matches]) -> Tensor:
    """100 less the percentage of the last layer's matched queries whose best class is the object's; 0 without any."""
    if not isinstance(matches, Matches):
        output, matches = output.layer(-1), matches[-1]
    if not matches.query.shape[1]:
        return output.logits.new_zeros(())
    best = matches.take(output.logits)[-1].argmax(-1)
    return 100 - 100 * (best == matches.take_targets(targets.labels)[-1]).float().mean()


def _over_processes(counts: Tensor) -> Tensor:
    """Counts of this process, summed over all processes, at least 1, over the number of processes."""
    world = 1
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(counts)
        world = dist.get_world_size()
    return counts.clamp(min=1) / world


def _check_output(output: Output) -> None:
    """Raise UserError unless these are predictions of layers, which whoever has one layer forgets."""
    if not isinstance(output, Output):
        raise UserError(f"predictions are {type(output).__name__}; the criterion takes detrkit.Output(logits, boxes)")
    shapes = {"logits": tuple(output.logits.shape), "boxes": tuple(output.boxes.shape)}
    if len(shapes["logits"]) != 4 or shapes["boxes"] != (*shapes["logits"][:3], 4):
        raise UserError(
            f"predictions have logits {list(shapes['logits'])} and boxes {list(shapes['boxes'])}; they are "
            "[Y, B, N, K] and [Y, B, N, 4] of Y decoder layers; of a single one take logits[None] and boxes[None]"
        )
    sizes = output.boxes.detach()[..., 2:]
    # As of truths: on a GPU it would have to be waited for, and a graph of torch.compile would break off at a value.
    if sizes.device.type == "cpu" and not torch.compiler.is_compiling() and (sizes < 0).any():
        raise UserError(
            f"a predicted box has a width or height of {float(sizes.min()):.3g}, of which overlaps mean nothing; boxes "
            "are (cx, cy, w, h) in [0, 1]: take the sigmoid of what a layer gives"
        )
