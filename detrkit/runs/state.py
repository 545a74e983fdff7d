"""What a trainer keeps to go on: checked in full before anything is taken from it, since any file may be damaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detrkit.errors import CheckpointError
from detrkit.runs.checkpoint import STATE, find_folder, read_state
from detrkit.wording import typed

LARGEST = 2**53  # of a count; no run has as many steps, or bytes of metrics
# What fused optimisers keep of a parameter, beside counters ([]) always in the parameter's own shape.
MOMENTS = {"step", "exp_avg", "exp_avg_sq", "momentum_buffer"}


@dataclass(frozen=True)
class TrainerState:
    """The checked state of a checkpoint.

    position: "step", "evaluated", "best_ap" (in [0, 1] or None), "best_step", "minutes", and
        "waited", which older runs do not have.
    names: of the parameters, by group; moments: of each parameter by its place among all, tensors by name.
    loss_scale: "value" and "sound"; empty if there was none.
    criterion: its tensors by name; None in the state of an older run.
    """

    position: Mapping[str, Any]
    steps_per_epoch: int
    metrics_size: int
    average_updates: int
    meter: Mapping[str, Any]
    names: Sequence[Sequence[str]]
    moments: Mapping[int, Mapping[str, Tensor]]
    loss_scale: Mapping[str, float]
    criterion: Mapping[str, Tensor] | None


def read_trainer_state(folder: Path) -> TrainerState:
    """The state of a checkpoint's folder.

    Raises CheckpointError that names the file, the entry and what can still be done.
    """
    try:
        return _checked(read_state(folder))
    except CheckpointError as error:
        fault = str(error)
    except _DamageError as error:
        fault = f"{folder / STATE} is damaged: {error}"
    raise CheckpointError(f"{fault}. {way_out(folder)}")


def way_out(folder: Path) -> str:
    """What can be done where a checkpoint cannot be gone on from."""
    run, best = folder.parent, folder.parent / "best"
    go_on = f"detrkit train --resume {typed(best)} goes on from the best checkpoint; "
    other = go_on if folder != best and find_folder(best) is not None else ""
    return f"{other}train.init_from={typed(folder)} begins a new run from the weights of this one, {run} stays as it is"


class _DamageError(Exception):
    """An entry of a state is not what it should be."""


def _checked(state: Mapping[str, Any]) -> TrainerState:
    position = _table(state, "position")
    wanted = {"step", "evaluated", "best_ap", "best_step", "minutes"}
    if set(position) - {"waited"} != wanted:
        raise _DamageError(f"position should have {', '.join(sorted(wanted))}")
    step, evaluated, best_step = (_count(position, key, "position.") for key in ("step", "evaluated", "best_step"))
    if "waited" in position:
        _count(position, "waited", "position.")
    if not best_step <= evaluated <= step:
        raise _DamageError(f"position says best step {best_step}, evaluated {evaluated}, of {step} steps")
    if position["best_ap"] is not None and not 0 <= _number(position, "best_ap", "position.") <= 1:
        raise _DamageError(f"position.best_ap is {position['best_ap']}, not in [0, 1]")
    if _number(position, "minutes", "position.") < 0:
        raise _DamageError(f"position.minutes is {position['minutes']}")
    meter = _table(state, "meter")
    sums = _table(meter, "sums", "meter.")
    for name in sums:
        if not isinstance(name, str) or not isinstance(sums[name], float):
            raise _DamageError("meter.sums should be numbers by name")
    names, moments = _optimiser(_table(state, "optimiser"))
    steps_per_epoch = _count(state, "steps_per_epoch")
    if steps_per_epoch == 0:
        raise _DamageError("steps_per_epoch is 0")
    return TrainerState(
        position=position,
        steps_per_epoch=steps_per_epoch,
        metrics_size=_count(state, "metrics_size"),
        average_updates=_count(state, "average_updates"),
        meter={
            "sums": dict(sums),
            "count": _count(meter, "count", "meter."),
            "bad_costs": _count(meter, "bad_costs", "meter.") if "bad_costs" in meter else 0,  # of an older run
        },
        names=names,
        moments=moments,
        loss_scale=_loss_scale(state),
        criterion=_criterion(state),
    )


def _optimiser(optimiser: Mapping[str, Any]) -> tuple[list[list[str]], dict[int, dict[str, Tensor]]]:
    groups = optimiser.get("param_groups")
    if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
        raise _DamageError("optimiser.param_groups should be a list of tables")
    names = []
    for group in groups:
        found = group.get("names")
        if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
            raise _DamageError("optimiser.param_groups should have the names of their parameters")
        names.append(list(found))
    total, moments = sum(map(len, names)), {}
    if len({name for group in names for name in group}) < total:
        raise _DamageError("optimiser.param_groups have a parameter twice")
    for place, kept in _table(optimiser, "state", "optimiser.").items():
        where = f"optimiser.state.{place if isinstance(place, int) else '?'}"
        if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < total:
            raise _DamageError(f"{where} is of no parameter")
        if not isinstance(kept, dict) or not set(kept) <= MOMENTS:
            raise _DamageError(f"{where} should be a table of {', '.join(sorted(MOMENTS))}")
        if not all(value is None or _is_plain(value) for value in kept.values()):
            raise _DamageError(f"{where} should hold tensors of floating-point numbers")
        moments[place] = {name: value for name, value in kept.items() if value is not None}
    return names, moments


def _loss_scale(state: Mapping[str, Any]) -> Mapping[str, float]:
    found = _table(state, "loss_scale") if "loss_scale" in state else {}  # older runs have none
    if found:
        if _number(found, "value", "loss_scale.") < 1:
            raise _DamageError(f"loss_scale.value is {found['value']}, not 1 or more")
        _count(found, "sound", "loss_scale.")
    return found


def _criterion(state: Mapping[str, Any]) -> dict[str, Tensor] | None:
    if "criterion" not in state:
        return None
    kept = _table(state, "criterion")
    if not all(isinstance(name, str) and _is_tensor(value) for name, value in kept.items()):
        raise _DamageError("criterion should be tensors by name")
    return dict(kept)


def _is_plain(value: Any) -> bool:
    return _is_tensor(value) and value.is_floating_point()


def _is_tensor(value: Any) -> bool:
    return type(value) is Tensor and value.layout == torch.strided and value.device.type == "cpu"


def _table(of: Mapping[str, Any], key: str, where: str = "") -> Mapping[Any, Any]:
    if not isinstance(of.get(key), dict):
        raise _DamageError(f"{where}{key} is {_called(of, key)}, not a table")
    return of[key]


def _count(of: Mapping[str, Any], key: str, where: str = "") -> int:
    value = of.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < LARGEST:
        raise _DamageError(f"{where}{key} is {_called(of, key)}, not a count")
    return value


def _number(of: Mapping[str, Any], key: str, where: str = "") -> float:
    value = of.get(key)
    # A comparison with nan is never true.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
        raise _DamageError(f"{where}{key} is {_called(of, key)}, not a number")
    return value


def _called(of: Mapping[str, Any], key: str) -> str:
    """A value in a message: containers and tensors, which may be of any size or hold themselves, by their type."""
    value = of.get(key)
    if key not in of:
        return "absent"
    if isinstance(value, int | float | str):
        text = str(value) if not isinstance(value, int) or abs(value) < 10**30 else "too large"
        return repr(text[:40]) if isinstance(value, str) else text
    return type(value).__name__
