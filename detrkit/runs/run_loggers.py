"""Where the numbers of a training go beside metrics.jsonl: the loggers that its recipe names, kept from ending it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from detrkit.errors import UserError
from detrkit.runs.loggers import LOGGERS, Logger, Start
from detrkit.wording import typed
from detrkit.writing import write_text


class Loggers:
    """All loggers of a run. One that fails is named in a warning and left out from then on: no training ends of it.

    What each keeps stands in the run's loggers.json, so that a resumed run goes on in the tool's same run. What was
    logged there after the checkpoint cannot be taken back, so that those steps are not logged a second time.

    Args:
        names: keys of `LOGGERS`

    Raises:
        UserError: a package is not installed
    """

    FILE: ClassVar = "loggers.json"

    def __init__(self, names: Sequence[str] = ()) -> None:
        for name in names:
            if find_spec(LOGGERS[name].package) is None:
                raise UserError(f"train.loggers has {name!r}, which is not installed: pip install 'detrkit[{name}]'")
        self._loggers = {name: LOGGERS[name]() for name in names}
        self._again: set[str] = set()  # those that still have the steps up to `_logged`
        self._logged: dict[str, int] = {}
        self._warn: Callable[[str], None] = print

    def begin(
        self,
        folder: Path,
        recipe: Mapping[str, Any],
        *,
        step: int,
        resumed: bool,
        forgotten: Mapping[str, int],
        warn: Callable[[str], None],
    ) -> None:
        """Begin, or go on after `step` steps.

        Args:
            recipe: nested plain values
            forgotten: the last step of each kind that was logged after the checkpoint
            warn: what to do with a warning

        Raises:
            UserError: one cannot begin with a new run; when a run is resumed, that is a warning
        """
        self._warn, path = warn, folder / self.FILE
        kept, self._logged = _read(path)
        for kind, last in forgotten.items():
            self._logged[kind] = max(last, self._logged.get(kind, 0))
        self._again = {name for name, logger in self._loggers.items() if name in kept and not logger.purges}
        for name, logger in list(self._loggers.items()):
            try:
                kept[name] = logger.begin(Start(folder, recipe, step, kept.get(name)))
            except Exception as error:
                if not resumed:
                    on = f"and go on with --resume {typed(folder)}" if (folder / "recipe.toml").is_file() else "first"
                    advice = f"mend that {on}, or leave it out of train.loggers"
                    raise UserError(f"the logger {name} cannot begin ({_first_line(error)}); {advice}") from error
                self._drop(name, error)
        if self._loggers:
            write_text(path, json.dumps({"kept": kept, "logged": self._logged}, indent=1))

    def log(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Hand finite numbers on."""
        for name in self._that_need(kind, step):
            self._try(name, lambda logger: logger.log(kind, step, values))

    def picture(self, name: str, path: Path, step: int) -> None:
        """Hand on a picture that belongs to the evaluation at `step`."""
        for each in self._that_need("evaluate", step):
            self._try(each, lambda logger: logger.picture(name, path, step))

    def close(self, *, finished: bool) -> None:
        """Close all."""
        for name in list(self._loggers):
            self._try(name, lambda logger: logger.close(finished=finished))
        self._loggers = {}

    def _that_need(self, kind: str, step: int) -> list[str]:
        is_new = step > self._logged.get(kind, 0)
        return [name for name in self._loggers if is_new or name not in self._again]

    def _try(self, name: str, act: Callable[[Logger], None]) -> None:
        try:
            act(self._loggers[name])
        except Exception as error:
            self._drop(name, error)

    def _drop(self, name: str, error: Exception) -> None:
        del self._loggers[name]
        self._warn(f"the logger {name} failed and is left out from here on ({_first_line(error)}); "
                   "metrics.jsonl has all numbers")  # fmt: skip


def _read(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """What each logger keeps, by its name, and the last step of each kind; nothing where the file is damaged or absent.

    A logger then begins anew, which stops no training.
    """
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        logged = {str(kind): int(step) for kind, step in before["logged"].items()}
        return {str(name): value for name, value in before["kept"].items()}, logged
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return {}, {}


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0] or type(error).__name__
