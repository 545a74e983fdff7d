"""Damages every file of a run in many ways, and tries with each what a person would."""

from __future__ import annotations

import json
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from PIL import Image

from detrkit.engine.train import train
from detrkit.export import writing
from detrkit.recipe import load_recipe
from detrkit.runs.checkpoint import read_weights, save_weights
from detrkit.runs.history import read_run
from detrkit.runs.recipes import run_recipe
from detrkit.trained import open_trained

from .hunting import Case, Hunt, verb
from .small_run import SMALL_RUN, make_run

FILES = (
    "last/state.pt",
    "last/weights.safetensors",
    "last/ema.safetensors",
    "recipe.toml",
    "categories.json",
    "environment.json",
    "loggers.json",
    "metrics.jsonl",
    "log.txt",
)
Damage = Callable[[Path], None]


def damages() -> dict[str, Damage]:
    """All damages by name; each is called with the folder of a run."""
    found: dict[str, Damage] = {}
    for file in FILES:
        found |= {f"{file}: {name}": _on(file, change) for name, change in _bytes().items()}
        found[f"{file}: absent"] = lambda run, file=file: (run / file).unlink()
        found[f"{file}: a folder"] = lambda run, file=file: ((run / file).unlink(), (run / file).mkdir())
    found |= {f"last/state.pt: {name}": _on_state(change) for name, change in _states().items()}
    for file in ("last/weights.safetensors", "last/ema.safetensors"):
        for key in ("recipe", "categories", "classes", "step", "mean"):
            for name, text in _TEXTS.items():
                found[f"{file}: metadata {key} {name}"] = _on_metadata(file, key, text)
        found |= {f"{file}: {name}": _on_tensors(file, change) for name, change in _tensors().items()}
    for name, text in _TEXTS.items():
        for file in ("environment.json", "categories.json", "recipe.toml"):
            found[f"{file}: {name}"] = lambda run, file=file, text=text: (run / file).write_text(text)
        found[f"metrics.jsonl: a line {name}"] = lambda run, text=text: _insert(run / "metrics.jsonl", text)
    found |= {f"metrics.jsonl: {name}": _on_record(change) for name, change in _records().items()}
    found["last: absent"] = lambda run: shutil.rmtree(run / "last")
    found["last and best: absent"] = lambda run: [shutil.rmtree(run / name) for name in ("last", "best")]
    found["last: a file"] = lambda run: (shutil.rmtree(run / "last"), (run / "last").write_text("x"))
    return found


_TEXTS = {
    "empty": "",
    "a number": "7",
    "null": "null",
    "a list": "[1, [2], null]",
    "an object": '{"a": {"b": []}}',
    "other rows": '[{"id": "x", "name": 3}, {"id": 1}]',
    "no UTF-8 after all": "\ud7ff\u0000\u001b[31m",
    "deep": "[" * 20_000,
    "deep in a key": "a = " + "[" * 20_000,
    "a large number": "9" * 6000,
    "negative": "-3",
    "a name": "quickstart",
    "half a recipe": 'title = "x"\n\n[train]\nepochs = ',
    "another recipe": 'title = "x"\n\n[train]\nepochs = 2\n',
    "a base": 'extends = "quickstart"\ntitle = "x"\n',
    "unknown section": 'title = "x"\n[nothing]\na = 1\n',
    "not a number": "NaN",
}


def _bytes() -> dict[str, Callable[[bytes], bytes]]:
    changes: dict[str, Callable[[bytes], bytes]] = {
        "empty": lambda content: b"",
        "zeros": lambda content: bytes(len(content)),
        "text": lambda content: b"not what it was\n",
        "random": lambda content: random.Random(0).randbytes(2000),
        "half": lambda content: content[: len(content) // 2],
        "first 9 bytes": lambda content: content[:9],
        "without its last byte": lambda content: content[:-1],
        "more at its end": lambda content: content + b"\x00\xffmore",
        "twice": lambda content: content + content,
    }
    for seed in range(3):
        changes[f"a byte changed ({seed})"] = lambda content, seed=seed: _flip(content, seed, 1)
        changes[f"many bytes changed ({seed})"] = lambda content, seed=seed: _flip(content, seed, 40)
    return changes


def _flip(content: bytes, seed: int, count: int) -> bytes:
    draw, changed = random.Random(seed), bytearray(content)
    for _ in range(count):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _states() -> dict[str, Callable[[dict], object]]:
    found: dict[str, Callable[[dict], object]] = {}
    values = {
        "none": None,
        "a text": "x",
        "a list": [1],
        "negative": -5,
        "too large": 2**70,
        "far too large": 10**400,
        "not a number": float("nan"),
        "infinite": float("inf"),
        "a tensor": torch.zeros(3),
        "an empty table": {},
    }
    keys = ("position", "meter", "metrics_size", "optimiser", "average_updates", "steps_per_epoch", "format")
    for key in keys:
        found[f"{key} absent"] = lambda state, key=key: state.pop(key)
        found[f"{key} is itself"] = lambda state, key=key: state.__setitem__(key, state)
        for name, value in values.items():
            found[f"{key} {name}"] = lambda state, key=key, value=value: state.__setitem__(key, value)
    for key in ("step", "evaluated", "best_ap", "best_step", "waited", "minutes"):
        found[f"position.{key} absent"] = lambda state, key=key: state["position"].pop(key)
        for name, value in values.items():
            found[f"position.{key} {name}"] = lambda state, key=key, value=value: state["position"].update({key: value})
    for key in ("sums", "count"):
        for name, value in values.items():
            found[f"meter.{key} {name}"] = lambda state, key=key, value=value: state["meter"].update({key: value})
    found["a sum that is a text"] = lambda state: state["meter"]["sums"].update(total="x")
    found["sums hold themselves"] = lambda state: state["meter"]["sums"].update(total=state["meter"]["sums"])

    def moments(change: Callable[[dict], object]) -> Callable[[dict], object]:
        return lambda state: change(state["optimiser"]["state"][0])

    shapes = {
        "empty": torch.zeros(0),
        "another shape": torch.zeros(5, 7),
        "a number": 1.0,
        "of integers": torch.zeros(3, dtype=torch.int64),
        "of large numbers": torch.full((3,), 3e38),
        "sparse": torch.zeros(3, 3).to_sparse(),
        "expanded": torch.zeros(1).expand(100_000, 100_000),
        "complex": torch.zeros(3, dtype=torch.complex64),
        "a list": [0.0],
        "itself": None,
    }
    for key in ("step", "exp_avg", "exp_avg_sq"):
        found[f"moments without {key}"] = moments(lambda one, key=key: one.pop(key))
        for name, value in shapes.items():
            found[f"moments: {key} {name}"] = moments(lambda one, key=key, value=value: one.update({key: value}))
        found[f"moments: {key} not a number"] = moments(lambda one, key=key: one[key].fill_(float("nan")))
        found[f"moments: {key} negative"] = moments(lambda one, key=key: one[key].fill_(-1e30))
    found["moments of a strange name"] = moments(lambda one: one.update(strange=torch.zeros(3)))
    found["moments hold themselves"] = moments(lambda one: one.update(exp_avg=one))
    found["moments of another place"] = lambda state: state["optimiser"]["state"].update({10**6: {}})
    found["moments of a text"] = lambda state: state["optimiser"]["state"].update(x={})
    found["moments swapped"] = _swap
    found["no moments"] = lambda state: state["optimiser"]["state"].clear()
    found["groups: none"] = lambda state: state["optimiser"]["param_groups"].clear()
    found["groups: texts"] = lambda state: state["optimiser"].update(param_groups=["x"])
    for key, value in (("lr", "x"), ("betas", None), ("params", [10**9]), ("fused", False), ("names", [1])):
        found[f"groups: {key} {value!r}"] = lambda state, key=key, value=value: state["optimiser"]["param_groups"][
            0
        ].update({key: value})
    return found


def _swap(state: dict) -> None:
    kept = state["optimiser"]["state"]
    kept[0], kept[len(kept) - 1] = kept[len(kept) - 1], kept[0]


def _tensors() -> dict[str, Callable[[dict], object]]:
    def first(tensors: dict) -> str:
        return next(iter(tensors))

    return {
        "no tensors": lambda tensors: tensors.clear(),
        "a tensor less": lambda tensors: tensors.pop(first(tensors)),
        "a tensor more": lambda tensors: tensors.update(more=torch.zeros(2)),
        "another shape": lambda tensors: tensors.update({first(tensors): torch.zeros(2, 2)}),
        "integers": lambda tensors: tensors.update({n: t.to(torch.int64) for n, t in tensors.items()}),
        "8 bits": lambda tensors: tensors.update({n: t.to(torch.float8_e4m3fn) for n, t in tensors.items()}),
        "not a number": lambda tensors: tensors[first(tensors)].fill_(float("nan")),
        "infinite": lambda tensors: tensors[first(tensors)].fill_(float("inf")),
    }


def _records() -> dict[str, Callable[[dict], object]]:
    found: dict[str, Callable[[dict], object]] = {}
    for key in ("kind", "step", "epoch", "AP", "minutes"):
        found[f"an evaluation without {key}"] = lambda record, key=key: record.pop(key)
        for name, value in (("a text", "x"), ("a list", [1]), ("zero", 0), ("negative", -1), ("large", 2**80)):
            found[f"an evaluation's {key} {name}"] = lambda record, key=key, value=value: record.update({key: value})
    return found


def _on(file: str, change: Callable[[bytes], bytes]) -> Damage:
    def damage(run: Path) -> None:
        content = (run / file).read_bytes()
        (run / file).unlink()  # `best` may be the same file by a hard link
        (run / file).write_bytes(change(content))

    return damage


def _on_state(change: Callable[[dict], object]) -> Damage:
    def damage(run: Path) -> None:
        path = run / "last/state.pt"
        state = torch.load(path, weights_only=True)
        change(state)
        path.unlink()
        torch.save(state, path)

    return damage


def _on_tensors(file: str, change: Callable[[dict], object]) -> Damage:
    def damage(run: Path) -> None:
        tensors, metadata = read_weights(run / file)
        change(tensors)
        (run / file).unlink()
        save_weights(tensors, run / file, metadata)

    return damage


def _on_metadata(file: str, key: str, text: str) -> Damage:
    def change(content: bytes) -> bytes:
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        header["__metadata__"][key] = text
        said = json.dumps(header).encode()
        said += b" " * (-len(said) % 8)
        return struct.pack("<Q", len(said)) + said + content[8 + length :]

    return _on(file, change)


def _on_record(change: Callable[[dict], object]) -> Damage:
    def damage(run: Path) -> None:
        path = run / "metrics.jsonl"
        records = [json.loads(line) for line in path.read_text().splitlines()]
        change(next(record for record in records if record["kind"] == "evaluate"))
        path.write_text("".join(json.dumps(record) + "\n" for record in records))

    return damage


def _insert(path: Path, text: str) -> None:
    path.write_text(text.replace("\n", " ") + "\n" + path.read_text())


def attempts(run: Path) -> dict[str, Callable[[], object]]:
    """What a person would try with a run and its last checkpoint."""
    more = ["train.epochs=3", "train.max_minutes=1e-9", "evaluate.pictures=0"]
    out = run.with_name(f"{run.name}-out")

    def begin() -> None:
        recipe = load_recipe("quickstart", [*SMALL_RUN, f"train.init_from={run}/last", *more])
        train(recipe, run.with_name(f"{run.name}-from"))

    def predict() -> None:
        Image.new("RGB", (64, 48), "orange").save(run.with_name("a.png"))
        verb("predict", run, run.with_name("a.png"), "--out", out, "--which", "last")

    def export() -> None:
        # Tracing takes seconds, and knows nothing of the run.
        writing._WRITERS["torch-export"] = lambda form, card, path: path.write_text(card.to_json())
        verb("export", run, "--out", out / "a.pt2", "--which", "last")

    return {
        "open": lambda: open_trained(str(run), [], which="last"),
        "read": lambda: read_run(run),
        "resume": lambda: train(run_recipe(run, more), run, resume=True),
        "begin from": begin,
        "evaluate": lambda: verb("evaluate", run, "--which", "last"),
        "predict": predict,
        "show": lambda: verb("show", run, "val:1", "--which", "last"),
        "report": lambda: verb("report", run, "--which", "last"),
        "compare": lambda: verb("compare", run, "--size", "64x64", "--out", out),
        "export": export,
        "train --resume": lambda: verb("train", "--resume", run, *more),
    }


_OPEN = ("open", "evaluate", "predict", "show", "report", "export")
_GO_ON = ("resume", "train --resume")
READ_BY = {  # what reads a file at all
    "last/state.pt": _GO_ON,
    "environment.json": _GO_ON,
    "loggers.json": _GO_ON,
    "log.txt": _GO_ON,
    "metrics.jsonl": ("read", "compare", "report", *_GO_ON),
    "categories.json": (*_OPEN, *_GO_ON),
    "last/weights.safetensors": _GO_ON,
    "last/ema.safetensors": (*_OPEN, *_GO_ON, "begin from"),
}


def cases(place: Path) -> Iterator[Case]:
    """Every damage with everything that reads the file."""
    whole = make_run(place / "whole")
    for name in damages():
        for attempt in READ_BY.get(name.partition(":")[0], tuple(attempts(whole))):
            yield Case(f"{name}, {attempt}", partial(_try, name, attempt, whole))


def _try(damage: str, attempt: str, whole: Path, folder: Path) -> None:
    run = shutil.copytree(whole, folder / "run")
    damages()[damage](run)
    attempts(run)[attempt]()


HUNT = Hunt("damages", "files damaged", cases)
