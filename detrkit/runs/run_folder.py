"""A run's folder: everything that is needed to resume, evaluate or compare it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from detrkit.errors import UserError
from detrkit.writing import write_text

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class RunFolder:
    """Writes and reads one run's folder.

    recipe.toml        the merged recipe, with the class count
    categories.json    label i is the i-th entry
    environment.json   versions, commit, hardware, command, one entry for each start
    metrics.jsonl      one line for each log interval ("train") and each evaluation ("evaluate")
    log.txt            what was printed, without the bars
    tensorboard/       the same numbers as events
    last/, best/       checkpoints
    pictures/          validation images with what was found, step by step
    """

    RECIPE: ClassVar = "recipe.toml"
    CATEGORIES: ClassVar = "categories.json"
    METRICS: ClassVar = "metrics.jsonl"

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.last = self.path / "last"
        self.best = self.path / "best"
        self.pictures = self.path / "pictures"
        self.metrics_path = self.path / self.METRICS
        self._events: SummaryWriter | None = None  # opened with the first number

    @property
    def exists(self) -> bool:
        """Whether a run was begun here."""
        return (self.path / self.RECIPE).is_file()

    def create(self, *, recipe: str, categories: str) -> None:
        """Begin a run: write its recipe (TOML) and categories (JSON).

        Raises UserError if there is one already.
        """
        if self.exists:
            raise UserError(
                f"{self.path} already holds a run. Go on with it: detrkit train --resume {self.path}; "
                "or choose another folder with --run"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        # The recipe comes last: with it the folder counts as a run.
        write_text(self.path / self.CATEGORIES, categories)
        write_text(self.path / self.RECIPE, recipe)

    def replace_recipe(self, recipe: str) -> None:
        """Write the recipe (TOML) that the run goes on with."""
        write_text(self.path / self.RECIPE, recipe)

    def add_environment(self, environment: Mapping[str, Any]) -> None:
        """Append one start of the run to environment.json."""
        path = self.path / "environment.json"
        starts = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        write_text(path, json.dumps([*starts, environment], indent=1))

    def rewind_metrics(self, size: int, step: int) -> None:
        """Forget what was logged after a checkpoint: metrics.jsonl was `size` bytes long then, at `step`."""
        if self.metrics_path.exists() and self.metrics_path.stat().st_size > size:
            os.truncate(self.metrics_path, size)
        self._open_events(purge_step=step + 1)

    def metrics_size(self) -> int:
        """Bytes in metrics.jsonl."""
        return self.metrics_path.stat().st_size if self.metrics_path.exists() else 0

    def log(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Append a line to metrics.jsonl, and its numbers to the TensorBoard events."""
        line = json.dumps({"kind": kind, "step": step, **_finite(values)}, allow_nan=False)
        with self.metrics_path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        events = self._events or self._open_events()
        for name, value in _numbers(values):
            events.add_scalar(f"{kind}/{name}", value, step)

    def print(self, text: str) -> None:
        """Append to log.txt."""
        with (self.path / "log.txt").open("a", encoding="utf-8") as file:
            file.write(text + "\n")

    def close(self) -> None:
        """Write out the TensorBoard events."""
        if self._events is not None:
            self._events.close()
            self._events = None

    def _open_events(self, purge_step: int | None = None) -> SummaryWriter:
        from torch.utils.tensorboard import SummaryWriter

        self._events = SummaryWriter(str(self.path / "tensorboard"), purge_step=purge_step)
        return self._events


def new_run_folder(parent: Path, name: str) -> Path:
    """The first of parent/name, parent/name-2, parent/name-3, ... that does not exist."""
    path, number = parent / name, 2
    while path.exists():
        path, number = parent / f"{name}-{number}", number + 1
    return path


def _numbers(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    found = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            found += _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and math.isfinite(value):
            found.append((prefix + name, value))
    return found


def _finite(value: Any) -> Any:
    """The same with None in place of numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
