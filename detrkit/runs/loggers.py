"""The tools that a training's numbers can go to: TensorBoard, Weights & Biases, MLflow, trackio."""

from __future__ import annotations

import os
import secrets
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

PROJECT = "detrkit"  # where the tool's own environment variable names no other


@dataclass(frozen=True)
class Start:
    """What a logger begins with."""

    folder: Path
    """the run's"""
    recipe: Mapping[str, Any]
    """the whole recipe as nested plain values; None is "none" """
    step: int
    """steps done before"""
    kept: str | None
    """what `begin` gave when the run was first begun with this logger"""


class Logger(ABC):
    """One tool. Its methods may raise what they like: `run_loggers.Loggers` sees to that."""

    package: ClassVar[str]
    """what has to be installed, by the name that is imported"""
    purges: ClassVar[bool] = False
    """whether it forgets by itself, when a run is resumed, what was logged after the checkpoint"""

    @abstractmethod
    def begin(self, start: Start) -> str:
        """Begin a run, or go on with the one that `start.kept` names. Returns what to keep for that."""

    @abstractmethod
    def log(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Take finite numbers by name; kind: "train", "evaluate" or "result"."""

    def picture(self, name: str, path: Path, step: int) -> None:  # noqa: B027 (not every tool takes them)
        """Take an image file. Without a method of its own a logger leaves pictures to the run's folder."""

    @abstractmethod
    def close(self, *, finished: bool) -> None:
        """Write everything out. finished: whether the training came to its end."""


class TensorBoard(Logger):
    """Event files in the run's folder, with the recipe as text."""

    package = "tensorboard"
    purges = True
    _events: SummaryWriter

    def begin(self, start: Start) -> str:
        from torch.utils.tensorboard import SummaryWriter

        self._others_hook, threading.excepthook = threading.excepthook, self._pass_over
        self._events = SummaryWriter(str(start.folder / "tensorboard"), purge_step=start.step + 1)
        if start.kept is None:
            values = "\n".join(f"    {name} = {value}" for name, value in flat(start.recipe))
            self._events.add_text("recipe", values)
        return "tensorboard"

    def log(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._events.add_scalar(f"{kind}/{name}", value, step)

    def close(self, *, finished: bool) -> None:
        self._events.close()
        threading.excepthook = self._others_hook

    def _pass_over(self, failed: threading.ExceptHookArgs) -> None:
        """Leave the error of tensorboard's writing thread to the next call, which raises it: no traceback till then."""
        if not type(failed.thread).__module__.startswith("tensorboard."):
            self._others_hook(failed)


class WeightsAndBiases(Logger):
    """A run of project WANDB_PROJECT; `WANDB_MODE=offline` writes it into the run's folder alone."""

    package = "wandb"

    def begin(self, start: Start) -> str:
        import wandb

        kept = start.kept or secrets.token_hex(4)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=start.folder.name,
            id=kept,
            resume="allow",
            dir=str(start.folder),
            reinit="create_new",  # a run that the caller has open is the caller's
            settings=wandb.Settings(console="off"),  # log.txt has the lines, and the live bar is none
        )
        self._run.config.update(dict(start.recipe), allow_val_change=True)
        return kept

    def log(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        self._run.log({f"{kind}/{name}": value for name, value in values.items()}, step=step)

    def picture(self, name: str, path: Path, step: int) -> None:
        import wandb

        self._run.log({name: wandb.Image(str(path))}, step=step)

    def close(self, *, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


class MLflow(Logger):
    """A run of experiment MLFLOW_EXPERIMENT_NAME at MLFLOW_TRACKING_URI, MLflow's own default where it is not set."""

    package = "mlflow"
    AT_ONCE: ClassVar = 100  # parameters that a server takes
    LONGEST: ClassVar = 500  # characters of a parameter that every store takes

    def begin(self, start: Start) -> str:
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient()
        if start.kept is not None:
            self._id = start.kept
            self._client.update_run(self._id, status="RUNNING")
        else:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            known = self._client.get_experiment_by_name(name)
            experiment = known.experiment_id if known is not None else self._client.create_experiment(name)
            self._id = self._client.create_run(experiment, run_name=start.folder.name).info.run_id
            params = [Param(name, str(value)[: self.LONGEST]) for name, value in flat(start.recipe)]
            for first in range(0, len(params), self.AT_ONCE):
                self._client.log_batch(self._id, params=params[first : first + self.AT_ONCE])
        if (recipe := start.folder / "recipe.toml").is_file():  # a run of `fit` has none
            self._client.log_artifact(self._id, str(recipe))
        return self._id

    def log(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(f"{kind}/{name}", value, now, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def picture(self, name: str, path: Path, step: int) -> None:
        self._client.log_artifact(self._id, str(path), f"pictures/step_{step}")

    def close(self, *, finished: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")


class Trackio(Logger):
    """A run of project TRACKIO_PROJECT in trackio's folder (TRACKIO_DIR), or where its other variables say."""

    package = "trackio"

    def begin(self, start: Start) -> str:
        import trackio

        # Its runs go by their names, which two folders of runs may have in common.
        kept = start.kept or f"{start.folder.name}-{secrets.token_hex(2)}"
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        recipe = dict(flat(start.recipe))
        self._run = trackio.init(project=project, name=kept, resume="allow", config=recipe, embed=False)
        return kept

    def log(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        self._run.log({f"{kind}/{name}": value for name, value in values.items()}, step=step)

    def picture(self, name: str, path: Path, step: int) -> None:
        import trackio

        self._run.log({name: trackio.Image(str(path))}, step=step)

    def close(self, *, finished: bool) -> None:
        import trackio

        trackio.finish()


LOGGERS: dict[str, type[Logger]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
    "trackio": Trackio,
}


def flat(values: Mapping[str, Any], prefix: str = "", between: str = ".") -> Iterator[tuple[str, Any]]:
    """The values of nested tables with their dotted keys."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}{between}", between)
        else:
            yield prefix + name, value
