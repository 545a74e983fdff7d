"""The optimiser over a handful of parameter groups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from detrkit.engine.options import TrainOptions
from detrkit.engine.parameter_rules import Biases, Norms, ParameterRule
from detrkit.errors import CheckpointError, UserError
from detrkit.layers import Part
from detrkit.recipe import as_factory
from detrkit.recipe.problems import nearest, one_of
from detrkit.wording import counted, first_of


def freeze(detector: nn.Module, parts: Sequence[str]) -> None:
    """Stop the training of parts, by the beginnings of their parameters' names, up to a dot.

    Raises:
        UserError: a detector has no such part, or would train nothing at all.
    """
    names = dict(detector.named_parameters())
    for part in parts:
        for name in parameters_of(detector, part, "train.freeze"):
            names[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in names.values()):
        raise UserError("train.freeze leaves nothing to train; take a part out of it")


def parameters_of(detector: nn.Module, part: str, key: str) -> list[str]:
    """The names of a part's parameters, by the beginning that they share up to a dot.

    Raises UserError, which names the recipe's key, if there are none.
    """
    names = [name for name, _ in detector.named_parameters()]
    mine = [name for name in names if f"{name}.".startswith(f"{part}.")]
    if not mine:
        tops = sorted({name.split(".")[0] for name in names})
        hint = nearest(part, {".".join(name.split(".")[:n]) for name in names for n in range(1, name.count(".") + 1)})
        raise UserError(f'{key}: this detector has no "{part}"; its parts are {one_of(tops)}{hint}')
    return mine


def build_optimiser(detector: nn.Module, options: TrainOptions) -> torch.optim.Optimizer:
    """AdamW, or SGD with momentum, over the trainable parameters, one group for each pair of rate and decay.

    A parameter is the backbone's if its name begins with one of `options.backbone`, up to a dot; the rest has the
    learning rate, times `place_rate_factor` in layers that a part lists as its `place_layers`. Norms and biases may go
    without decay, and `options.parameters` say what else differs. A backbone with rate 0 is frozen (`requires_grad` is
    cleared): no gradient is computed for it.

    Every group keeps its full rate as `full_rate`, which the schedule scales, and its `names` in order.

    Raises:
        UserError: a factor for such layers is given, and no part has any; or a part to freeze, or one that is said to
            be the backbone, is not there; or a rule finds no parameter.
    """
    places = set(_places(detector))
    if options.place_rate_factor != 1 and not places:
        raise UserError(
            f"train.place_rate_factor = {options.place_rate_factor:g} has nothing to act on: no part of this detector "
            "learns where to look by a layer of its own, as deformable attention does"
        )
    has_usual = any(name.startswith("backbone.") for name, _ in detector.named_parameters())
    named = options.backbone if has_usual or options.backbone != ("backbone",) else ()  # a detector need not have one
    bodies = {name for part in named for name in parameters_of(detector, part, "train.backbone")}
    freeze(detector, [*options.freeze, *(named if options.backbone_learning_rate == 0 else [])])
    rules = list(_rules(detector, options).values())
    if not options.decay_norms:
        rules += [(rule, set(rule.names(detector))) for rule in (Norms(decay_factor=0), Biases(decay_factor=0))]
    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in detector.named_parameters():
        if not parameter.requires_grad:
            continue
        if name in bodies:
            rate = options.backbone_learning_rate
        else:
            rate = options.learning_rate * (options.place_rate_factor if name in places else 1)
        decay = options.weight_decay
        for rule, chosen in rules:
            if name in chosen:
                rate, decay = rate * rule.rate_factor, decay * rule.decay_factor
        group = groups.setdefault(
            (rate, decay),
            {"params": [], "names": [], "lr": rate, "full_rate": rate, "weight_decay": decay},
        )
        group["params"].append(parameter)
        group["names"].append(name)
    # The fused kernels are those that can leave a step out on the device (`found_inf`).
    if options.optimizer == "sgd":
        return torch.optim.SGD(list(groups.values()), momentum=options.momentum, fused=True)
    return torch.optim.AdamW(list(groups.values()), betas=(0.9, 0.999), eps=1e-8, fused=True)


def require_none_to_train(criterion: nn.Module, detector: nn.Module) -> None:
    """Raise UserError if a criterion has parameters that are not the detector's: nothing would train them."""
    own = {id(parameter) for parameter in detector.parameters()}
    left = [name for name, one in criterion.named_parameters() if one.requires_grad and id(one) not in own]
    if left:
        raise UserError(
            f"the criterion has parameters of its own, {first_of(left)}, and only the detector's are trained and kept: "
            "make them the detector's too (detector.weighing = criterion.weighing), or buffers"
        )


def without_effect(detector: nn.Module, options: TrainOptions) -> list[str]:
    """What to say of the backbone's rate where no parameter has it, though some part is called a backbone, and of each
    of `train.parameters` that changes nothing, since all that it is about is frozen by now.
    """
    named = dict(detector.named_parameters())
    trained = {name for name, parameter in named.items() if parameter.requires_grad}
    found = []
    inner = {before + "backbone" for name in named for before, part, _ in [name.partition("backbone.")] if part}
    if options.backbone == ("backbone",) and inner and "backbone" not in inner:
        part = min(inner, key=len)
        found = [
            'train.backbone_learning_rate is of no parameter: train.backbone is ["backbone"], and none begins so. '
            f'All have train.learning_rate now; of this detector the backbone is ["{part}"], as it seems'
        ]
    return found + [
        f"train.parameters.{key} changes nothing: it is about {counted(len(chosen), 'parameter')}, all of them frozen"
        for key, (_, chosen) in _rules(detector, options).items()
        if not chosen & trained
    ]


def set_rate(optimiser: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's rate to `factor` times its full rate."""
    for group in optimiser.param_groups:
        group["lr"] = group["full_rate"] * factor


def clip_and_step(optimiser: torch.optim.Optimizer, clip_norm: float, scale: Tensor | None = None) -> Tensor:
    """Clip the gradients, update the weights and clear the gradients, without waiting for the device.

    If the gradient is not finite, the weights and the optimiser's state stay as they were: what follows can
    still be stopped, saved and resumed in a sound state.

    Args:
        scale: [] what the gradients are to be divided by; None for nothing

    Returns:
        [] the divided gradient's norm before clipping, over all parameters
    """
    parameters = [p for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
    norm = get_total_norm([p.grad for p in parameters])
    divisor = torch.ones_like(norm) if scale is None else scale
    norm = norm / divisor
    if clip_norm > 0:
        divisor = divisor * ((norm + 1e-6) / clip_norm).clamp(min=1)  # as `torch.nn.utils.clip_grad_norm_`
    # The fused kernels divide the gradients while they read them, which spares clipping a pass of its own.
    vars(optimiser)["grad_scale"] = divisor.float()  # they take no other, of whatever type the weights are
    _begin_momentum(optimiser)
    # The fused kernels leave out the update where `found_inf` is 1 (the gradient scaler's own route).
    vars(optimiser)["found_inf"] = (~norm.isfinite()).float()  # no attribute that its class declares
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return norm


def _begin_momentum(optimiser: torch.optim.Optimizer) -> None:
    """Give SGD a momentum of zero for each gradient that is a parameter's first, which leaves its step as it is.

    Without it PyTorch 2.14's fused kernel keeps whatever was in memory where that step is left out, and takes no
    parameters together of which some have a momentum and others have none yet.
    """
    for group in optimiser.param_groups:
        for parameter in group["params"] if group.get("momentum") else ():
            if parameter.grad is not None and "momentum_buffer" not in (state := optimiser.state[parameter]):
                state["momentum_buffer"] = torch.zeros_like(parameter)


def restore_optimiser(
    optimiser: torch.optim.Optimizer,
    names: Sequence[Sequence[str]],
    moments: Mapping[int, Mapping[str, Tensor]],
    origin: Path,
) -> None:
    """Load the moments of a checkpoint; rates, decays and by them the groups are as the recipe says now.

    Args:
        names: of the parameters there, by group
        moments: of each parameter by its place among all; a counter is [], the others have the parameter's shape

    Raises CheckpointError if other parameters were trained there, or moments do not fit them.
    """
    places = {name: place for place, name in enumerate(name for group in names for name in group)}
    own_names = [name for group in optimiser.param_groups for name in group["names"]]
    if others := sorted(places.keys() ^ set(own_names)):
        raise CheckpointError(
            f"{origin} was trained with other parameters ({first_of(others)}): what is frozen, by train.freeze or by "
            "train.backbone_learning_rate = 0, cannot change when a run is resumed"
        )
    wanted = {"momentum_buffer"} if isinstance(optimiser, torch.optim.SGD) else {"step", "exp_avg", "exp_avg_sq"}
    parameters = [(n, p) for g in optimiser.param_groups for n, p in zip(g["names"], g["params"], strict=True)]
    own = {}
    for place, (name, parameter) in enumerate(parameters):
        if (kept := moments.get(places[name])) is None:
            continue
        if set(kept) != wanted:
            raise CheckpointError(f"{origin}: {', '.join(sorted(kept))} of {name} are no moments of this optimiser")
        for key, value in kept.items():
            shape = torch.Size() if key == "step" else parameter.shape
            if value.shape != shape:
                raise CheckpointError(f"{origin}: {key} of {name} is {list(value.shape)}, should be {list(shape)}")
        own[place] = _laid_out(kept, parameter)
    optimiser.load_state_dict({"state": own, "param_groups": optimiser.state_dict()["param_groups"]})


def _laid_out(kept: Mapping[str, Tensor], parameter: Tensor) -> dict[str, Tensor]:
    """A copy of a parameter's moments, with its own strides.

    With others PyTorch 2.14's fused kernel for a CPU gives each number the moments of another one, for it takes them in
    the order of memory.
    """
    return {
        key: value.clone() if key == "step" else value.new_empty_strided(value.shape, parameter.stride()).copy_(value)
        for key, value in kept.items()
    }


def _rules(detector: nn.Module, options: TrainOptions) -> dict[str, tuple[ParameterRule, set[str]]]:
    """Those of `train.parameters`, each with the names of the parameters that it is about."""
    rules = {}
    for key, given in options.parameters.items():
        rule = as_factory("parameter_rule", given)()
        chosen = set(rule.names(detector)) & {name for name, _ in detector.named_parameters()}
        if rule.part:
            chosen &= set(parameters_of(detector, rule.part, f"train.parameters.{key}.part"))
        if not chosen:
            where = f'"{rule.part}"' if rule.part else "this detector"
            raise UserError(f"train.parameters.{key} has nothing to act on: {where} has no such parameters")
        rules[key] = rule, chosen
    return rules


def _places(detector: nn.Module) -> Iterator[str]:
    """The parameters of the layers that parts list in `place_layers`."""
    for prefix, module in detector.named_modules():
        for layer in module.place_layers if isinstance(module, Part) else ():
            for name, _ in module.get_submodule(layer).named_parameters():
                yield f"{prefix}.{layer}.{name}"
