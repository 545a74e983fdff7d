"""Runs, weights, bases and data that bring code along: no verb runs it until it is trusted."""

from __future__ import annotations

import os
import pickle
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from PIL import Image

from detrkit.errors import UserError
from detrkit.runs.checkpoint import read_weights, save_weights

from .hunting import REFUSED, WENT_ON, Case, Hunt, verb
from .small_run import SMALL_RUN, make_run


class Evil:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple:
        return open, (self.path, "w")


def _module(path: Path, ran: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"open({str(ran)!r}, 'w').close()\n")
    return path


def _prepend(path: Path, line: str) -> None:
    path.write_text(f"{line}\n{path.read_text()}")


def _in_metadata(run: Path, line: str, names: tuple[str, ...] = ("weights", "ema")) -> None:
    for path in (run / which / f"{name}.safetensors" for which in ("last", "best") for name in names):
        weights, metadata = read_weights(path)
        path.unlink()
        save_weights(weights, path, metadata | {"recipe": f"{line}\n{metadata['recipe']}"})


def _beside(run: Path, ran: Path) -> None:
    _module(run / "part.py", ran)
    _prepend(run / "recipe.toml", 'imports = ["part.py"]')


def _by_path(run: Path, ran: Path) -> None:
    _prepend(run / "recipe.toml", f'imports = ["{_module(run.parent / "far" / "part.py", ran)}"]')


def _by_name(run: Path, ran: Path) -> None:
    _module(run / "a_strange_part.py", ran)
    sys.path.insert(0, str(run))  # as where a person begins in the run's folder
    _prepend(run / "recipe.toml", 'imports = ["a_strange_part"]')


def _by_base(run: Path, ran: Path) -> None:
    _module(run.parent / "far" / "part.py", ran)
    (run.parent / "far" / "base.toml").write_text('extends = "quickstart"\nimports = ["part.py"]\n')
    _prepend(run / "recipe.toml", 'extends = "../far/base.toml"')


def _by_base_inside(run: Path, ran: Path) -> None:
    _module(run / "part.py", ran)
    (run / "base.toml").write_text('extends = "quickstart"\nimports = ["part.py"]\n')
    _prepend(run / "recipe.toml", 'extends = "base.toml"')


def _by_weights(run: Path, ran: Path) -> None:
    _in_metadata(run, f"imports = ['{_module(run / 'part.py', ran)}']")


def _by_weights_alone(run: Path, ran: Path) -> None:
    """The run's own recipe cannot be read, so that the weights' counts."""
    _by_weights(run, ran)
    (run / "recipe.toml").write_text("")


def _by_average(run: Path, ran: Path) -> None:
    _in_metadata(run, f"imports = ['{_module(run / 'part.py', ran)}']", ("ema",))


def _by_copy(run: Path, ran: Path) -> None:
    """A run that was made here and is trusted, copied elsewhere: what is copied may have been changed."""
    own = run.with_name("own")
    shutil.copytree(run, own)
    _beside(own, ran)
    verb("inspect", own, "--trust")
    ran.unlink()
    shutil.rmtree(run)
    shutil.copytree(own, run)
    shutil.rmtree(own)  # where its code is trusted, and may run


def _by_exchange(run: Path, ran: Path) -> None:
    """A run that is trusted, and whose code was exchanged since."""
    _beside(run, ran)
    (run / "part.py").write_text("")
    verb("inspect", run, "--trust")
    _module(run / "part.py", ran)


def _by_pickled_state(run: Path, ran: Path) -> None:
    for which in ("last", "best"):
        (run / which / "state.pt").unlink()
        torch.save({"format": 1, "evil": Evil(ran)}, run / which / "state.pt")


def _by_pickled_weights(run: Path, ran: Path) -> None:
    for which in ("last", "best"):
        for name in ("weights", "ema"):
            (run / which / f"{name}.safetensors").write_bytes(pickle.dumps(Evil(ran)))


def _by_backbone(run: Path, ran: Path) -> None:
    torch.save({"model": Evil(ran)}, run / "evil.pth")
    text = (run / "recipe.toml").read_text()
    (run / "recipe.toml").write_text(text.replace("[backbone]", f'[backbone]\nweights = "{run / "evil.pth"}"'))
    _in_metadata(run, "[backbone]")  # is no TOML any more: the run's recipe counts


WAYS: dict[str, Callable[[Path, Path], None]] = {
    "beside the recipe": _beside,
    "by an absolute path": _by_path,
    "by a module's name": _by_name,
    "by a base elsewhere": _by_base,
    "by a base inside": _by_base_inside,
    "by the weights' recipe": _by_weights,
    "by the weights' recipe alone": _by_weights_alone,
    "by the average's recipe": _by_average,
    "in a copy of a trusted run": _by_copy,
    "exchanged in a trusted run": _by_exchange,
    "by a pickled state": _by_pickled_state,
    "by pickled weights": _by_pickled_weights,
    "by the backbone's weights": _by_backbone,
}
CODE = list(WAYS)[:10]  # of which --trust runs the code


def verbs(run: Path) -> dict[str, tuple[object, ...]]:
    """Every verb that opens a run, a recipe or weights."""
    image, out = run.with_name("a.png"), run.with_name("out")
    out.mkdir(exist_ok=True)
    Image.new("RGB", (64, 48), "orange").save(image)
    weights = run / "last" / "weights.safetensors"
    begin = ("train", "quickstart", *SMALL_RUN, "train.max_minutes=1e-9", "--run-dir", out / "new")
    return {
        "evaluate": ("evaluate", run),
        "evaluate last": ("evaluate", run / "last"),
        "evaluate a recipe": ("evaluate", run / "recipe.toml", "--weights", weights, "--out", out),
        "predict": ("predict", run, image, "--out", out / "drawn"),
        "show": ("show", run, "val:1", "--out", out / "shown"),
        "report": ("report", run, "--out", out / "a.html"),
        "export": ("export", run, "--out", out / "a.pt2"),
        "compare": ("compare", run, "--size", "64x64"),
        "compare the folder above": ("compare", run.parent, "--size", "64x64"),
        "train --resume": ("train", "--resume", run, "train.epochs=3"),
        "train --resume best": ("train", "--resume", run / "best", "train.epochs=3"),
        "train.init_from": (*begin, f"train.init_from={run}"),
        "backbone.weights": (*begin, f"backbone.weights={run / 'evil.pth'}"),
        "inspect": ("inspect", run),
        "check-data": ("check-data", run),
        "benchmark": ("benchmark", run, "--size", "64x64", "--batch", 1, "--rounds", 2, "--only", "detection"),
        "convert": ("convert", weights, run, "-o", out / "a.safetensors"),
        "convert evil.pth": ("convert", run / "evil.pth", "quickstart", "-o", out / "a.safetensors"),
        "replay": ("replay", weights),
    }


def cases(place: Path) -> Iterator[Case]:
    whole = make_run(place / "whole")
    for way in WAYS:
        for name in verbs(whole):
            yield Case(f"{way}: {name}", partial(_try, way, name, whole))
        if way in CODE:
            yield Case(f"{way}: --trust", partial(_trust, way, whole))


def _made(way: str, whole: Path, folder: Path) -> tuple[Path, Path]:
    """A run with a stranger's code, and the file that is there once that was run; nothing is trusted here yet."""
    os.environ["XDG_STATE_HOME"] = str(folder / "state")
    run, ran = shutil.copytree(whole, folder / "run"), folder / "ran"
    WAYS[way](run, ran)
    sys.modules.pop("part", None)  # where it was imported before, it would not be run again
    return run, ran


def _try(way: str, name: str, whole: Path, folder: Path) -> str:
    run, ran = _made(way, whole, folder)
    told = REFUSED
    with suppress(UserError):
        verb(*verbs(run)[name])
        told = WENT_ON
    assert not ran.exists(), "a stranger's code was run"
    return told


def _trust(way: str, whole: Path, folder: Path) -> str:
    """That it would have run at all."""
    run, ran = _made(way, whole, folder)
    for name in ("inspect", "evaluate"):
        with suppress(UserError):  # some damage the run's recipe, so that the weights' is read
            verb(name, run, "--trust")
    assert ran.exists(), "it is not run where it is trusted"
    return WENT_ON


HUNT = Hunt("strangers", "strangers refused", cases)
