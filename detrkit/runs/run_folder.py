"""A run's folder: everything that is needed to resume, evaluate or compare it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

from detrkit.errors import UserError
from detrkit.paths import with_home
from detrkit.recipe.trust import fingerprints
from detrkit.runs.loggers import flat
from detrkit.runs.run_loggers import Loggers
from detrkit.wording import typed, visible
from detrkit.writing import naming, write_text


class RunFolder:
    """Writes and reads one run's folder.

    recipe.toml        the merged recipe, with the class count
    categories.json    label i is the i-th entry
    environment.json   versions, commit, hardware, command, one entry for each start
    metrics.jsonl      one line for each log interval ("train") and each evaluation ("evaluate")
    log.txt            what was printed, without the bars
    tensorboard/       the same numbers as events, where `train.loggers` names it
    loggers.json       how each logger finds its own run again
    last/, best/       checkpoints
    pictures/          validation images with what was found, step by step

    Args:
        loggers: where the numbers go beside metrics.jsonl, after `begin_loggers`
    """

    RECIPE: ClassVar = "recipe.toml"
    CATEGORIES: ClassVar = "categories.json"
    METRICS: ClassVar = "metrics.jsonl"
    ENVIRONMENT: ClassVar = "environment.json"

    def __init__(self, path: Path | str, loggers: Loggers | None = None) -> None:
        self.path = with_home(path)
        self.loggers = loggers or Loggers()
        self.last = self.path / "last"
        self.best = self.path / "best"
        self.pictures = self.path / "pictures"
        self.metrics_path = self.path / self.METRICS
        self._forgotten: dict[str, int] = {}

    @property
    def exists(self) -> bool:
        """Whether a run was begun here; a project of `detrkit init` has a recipe.toml, too, and nothing beside it."""
        beside = (self.path / self.CATEGORIES, self.metrics_path, self.last, self.best)
        return (self.path / self.RECIPE).is_file() and any(path.exists() for path in beside)

    @property
    def way_on(self) -> str:
        """What goes on with the run, as a person types it."""
        return f"detrkit train --resume {typed(self.path)}" if self.exists else "fit(..., resume=True)"

    def create(self, *, recipe: str, categories: str) -> None:
        """Begin a run: write its recipe (TOML) and categories (JSON).

        Raises UserError if there is one already.
        """
        if self.exists:
            raise UserError(
                f"{self.path} already holds a run. Go on with it: {self.way_on}; "
                "or choose another folder with --run-dir"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        # The recipe comes last: with it the folder counts as a run.
        write_text(self.path / self.CATEGORIES, categories)
        write_text(self.path / self.RECIPE, recipe)

    def replace_recipe(self, recipe: str, categories: str) -> None:
        """Write the recipe (TOML) that the run goes on with, and its categories (JSON), which may have been damaged."""
        write_text(self.path / self.CATEGORIES, categories)
        write_text(self.path / self.RECIPE, recipe)

    def add_environment(self, environment: Mapping[str, Any]) -> None:
        """Append one start of the run to environment.json."""
        path = self.path / self.ENVIRONMENT
        starts = []
        try:
            starts = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            pass
        except (ValueError, RecursionError):  # damaged: kept aside, and no reason to stop a training
            path.replace(path.with_name("environment.json.damaged"))
        starts = starts if isinstance(starts, list) else [starts]
        write_text(path, json.dumps([*starts, environment], indent=1))

    def code_of_last_start(self) -> dict[str, str]:
        """Hashes of the code that the recipe imported at the last start, by its files; empty where none is noted."""
        try:
            last = json.loads((self.path / self.ENVIRONMENT).read_text(encoding="utf-8"))[-1]["imports"]
            return {str(name): str(found) for name, found in last.items()}
        except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
            return {}  # of an older run, or damaged, which is no reason to stop a training

    def changed_code(self, imports: Iterable[str]) -> list[str]:
        """Those files or modules of a recipe's `imports` whose code is not what the run imported at its last start."""
        before = self.code_of_last_start()
        return [name for name, found in fingerprints(imports).items() if before.get(name, found) != found]

    def begin_loggers(
        self, recipe: Mapping[str, Any], *, step: int, resumed: bool, warn: Callable[[str], None]
    ) -> None:
        """Begin to log elsewhere too, after `step` steps. recipe: nested plain values; warn: takes a line.

        Raises UserError if a logger cannot begin with a new run.
        """
        self.loggers.begin(self.path, recipe, step=step, resumed=resumed, forgotten=self._forgotten, warn=warn)

    def rewind_metrics(self, size: int) -> None:
        """Forget what was logged after a checkpoint: metrics.jsonl was `size` bytes long then."""
        if self.metrics_size() <= size:
            return
        with self.metrics_path.open("rb") as file:
            file.seek(size)
            for line in file:
                # Not the one that a kill has cut; and of a damaged one nobody knows what it told the loggers.
                with suppress(ValueError, RecursionError, KeyError, TypeError):
                    entry = json.loads(line) if line.endswith(b"\n") else {}
                    self._forgotten[str(entry["kind"])] = int(entry["step"])
        os.truncate(self.metrics_path, size)

    def metrics_size(self) -> int:
        """Bytes in metrics.jsonl."""
        return self.metrics_path.stat().st_size if self.metrics_path.exists() else 0

    def log(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Append a line to metrics.jsonl, and hand its finite numbers to the loggers."""
        line = json.dumps({"kind": kind, "step": step, **_finite(values)}, allow_nan=False)
        size = self.metrics_size()
        try:
            with naming(self.metrics_path), self.metrics_path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError:
            with suppress(OSError):  # half a line would spoil the one that a resumed training adds
                os.truncate(self.metrics_path, size)
            raise
        self.loggers.log(kind, step, _numbers(values))

    def print(self, text: str) -> None:
        """Append to log.txt."""
        path = self.path / "log.txt"
        with naming(path), path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(visible(text) + "\n")


@contextmanager
def new_run_folder(parent: Path, name: str) -> Iterator[Path]:
    """Makes the first of parent/name, parent/name-2, parent/name-3, ... that does not exist, and takes it away if the
    block leaves nothing in it. It is made at once, as another training may begin before this one has anything to write.
    """
    path, number = parent / name, 2
    while True:
        try:
            path.mkdir(parents=True)
            break
        except FileExistsError:
            path, number = parent / f"{name}-{number}", number + 1
    try:
        yield path
    finally:
        with suppress(OSError):
            path.rmdir()
            path.parent.rmdir()


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    named = flat(values, between="/")
    return {name: value for name, value in named if isinstance(value, int | float) and math.isfinite(value)}


def _finite(value: Any) -> Any:
    """The same with None in place of numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
