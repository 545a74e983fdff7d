"""Whose code may be imported: what a person named, and what the runs that were made on this machine import.

A run's folder, a checkpoint and a base in another folder may come from anybody. What they import is refused until it is
trusted; a private record, outside the run, tells the runs that were made here, by their place and their code.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.machinery
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from detrkit.errors import UserError
from detrkit.paths import with_home
from detrkit.recipe.problems import Source
from detrkit.writing import write_text


def require_trust(strange: Mapping[str, Source], run: Path | None, *, trust: bool) -> None:
    """Raise UserError that lists the imports which nobody named here, unless they are trusted or remembered.

    Args:
        strange: files (absolute) and modules, with where each is said.
        run: the folder that they came along in; None for a recipe.
        trust: they are trusted, and remembered for the run where there is a place for it.
    """
    if not strange:
        return
    if trust:
        if run is not None:
            with suppress(OSError):  # where it cannot be remembered, it is to be said again
                remember(run, strange)
        return
    known = _record(run) if run is not None else {}
    refused = {name: source for name, source in strange.items() if known.get(name) != _fingerprint(name)}
    if refused:
        listed = "".join(
            f"\n  {name} ({source}{'; has changed since it was last trusted here' if name in known else ''})"
            for name, source in refused.items()
        )
        raise UserError(
            f"code would be run that you did not name, and that came along with what you did:{listed}\n"
            "Read it first. If you trust it, say --trust (in Python: trust=True)"
        )


def remember(run: Path, imports: Iterable[str]) -> None:
    """Note that a run, at its place, may import these as they are now."""
    found = fingerprints(imports)
    if found:
        write_text(_place(run), json.dumps({"run": str(run.resolve()), "imports": _record(run) | found}, indent=1))


def fingerprints(imports: Iterable[str]) -> dict[str, str]:
    """A hash of the code behind each file or module."""
    return {name: _fingerprint(name) for name in imports}


def _record(run: Path) -> dict[str, str]:
    try:
        content = json.loads(_place(run).read_text(encoding="utf-8"))
        return dict(content["imports"]) if content["run"] == str(run.resolve()) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _place(run: Path) -> Path:
    """The file of a run, in the folder for what programs keep of a person (XDG's, or the like on Windows).

    Raises OSError where there is none.
    """
    base = os.environ.get("XDG_STATE_HOME") or os.environ.get("LOCALAPPDATA") or with_home("~/.local/state")
    if str(base).startswith("~"):  # a container's user without a name
        raise FileNotFoundError(errno.ENOENT, "no home folder; HOME or XDG_STATE_HOME would say one", "~")
    return Path(base) / "detrkit" / "runs" / f"{hashlib.sha256(os.fsencode(run.resolve())).hexdigest()[:32]}.json"


def _fingerprint(name: str) -> str:
    """Of a file's content, or of an installed module's file."""
    path = Path(name)
    if not name.endswith(".py"):
        # The package that it is in, found without importing anything.
        spec = importlib.machinery.PathFinder.find_spec(name.partition(".")[0])
        path = Path(spec.origin) if spec is not None and spec.origin else path
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return "not there"
