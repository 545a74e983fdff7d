"""One small step before a training begins, so that parts which do not go together are named before a run is made."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from detrkit.data import Batch
from detrkit.data.dataset import DataSource
from detrkit.engine.learner import Learner
from detrkit.errors import UserError
from detrkit.losses.base import BaseCriterion
from detrkit.wording import first_of

HEIGHT, WIDTH = 64, 96
CPU = torch.device("cpu")


def rehearse(
    detector: nn.Module,
    criterion: BaseCriterion,
    *,
    name: str,
    device: torch.device = CPU,
    precision: str = "fp32",
    source: DataSource | None = None,
) -> list[str]:
    """Take a step, but for the update, on two small images with copies of both, which stay as they were.

    Some needs show only there: a term that asks for a box's sides, a cost that asks for points.

    Args:
        name: the recipe's, for the message.
        device, precision: of the training.
        source: a step that fails on the small images is tried on two of its own, as a part of a person's own may want
            larger ones.

    Returns:
        the detector's modules and parameters, by name, that train and that no gradient reached: they would stay as
        they start

    Raises:
        UserError: what a part needs and does not get.
        Exception: whatever a part's own code raises, as the first step of the training would.
    """
    try:
        detector, criterion = copy.deepcopy(detector), copy.deepcopy(criterion)
    except Exception:
        return []  # a part that cannot be copied: the training itself tells
    mask = torch.zeros(2, HEIGHT, WIDTH, dtype=torch.bool)
    mask[1, :, WIDTH // 2 :] = True
    targets = [{"labels": torch.zeros(n, dtype=torch.int64), "boxes": torch.full((n, 4), 0.5)} for n in (2, 0)]
    small = Batch(torch.zeros(2, 3, HEIGHT, WIDTH), mask, targets, [0, 1], torch.tensor([[HEIGHT, WIDTH]] * 2))
    learner = Learner(detector, criterion, device, precision).to(device).train()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            _step(learner, small)
        except UserError as error:
            raise UserError(f"the parts of {name} do not go together: {error}") from error
        except Exception:
            if source is None:
                raise
            _step(learner, next(iter(source.loader(split="train", batch_size=2, epoch=0, seed=0, workers=0))))
    return _unreached({name: one.grad is None for name, one in detector.named_parameters() if one.requires_grad})


def without_gradient(names: Sequence[str]) -> list[str]:
    """What to say of modules and parameters that no gradient reached; nothing where there are none."""
    return [f"no loss depends on the weights of {first_of(names)}: they stay as they start"] if names else []


def _unreached(idle: Mapping[str, bool]) -> list[str]:
    """The idle of these parameters, by the outermost module that has no others."""
    found = []
    for name in [name for name, is_idle in idle.items() if is_idle]:
        parts = name.split(".")
        modules = (".".join(parts[: length + 1]) for length in range(len(parts)))
        found.append(next(m for m in modules if all(idle[n] for n in idle if f"{n}.".startswith(f"{m}."))))
    return list(dict.fromkeys(found))


def _step(learner: Learner, batch: Batch) -> None:
    # The number of objects is given, as processes would have to agree on it.
    objects = torch.ones((), device=learner.device)
    learner(batch.to(learner.device), objects, len(batch))["total"].backward()
