"""Checkpoints: a folder of weights (safetensors) and trainer state, written whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from detrkit.errors import CheckpointError
from detrkit.reading import not_finite, unlike
from detrkit.wording import first_of
from detrkit.writing import bring_to_disk, naming, patient_file

if TYPE_CHECKING:
    from detrkit.data import Category
    from detrkit.recipe import Recipe
    from detrkit.system import BaseDetector

WEIGHTS, AVERAGE, STATE = "weights.safetensors", "ema.safetensors", "state.pt"
FORMAT = 1


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """An empty temporary folder, which takes `folder`'s place when the block ends without an error.

    A folder cannot be exchanged in one step on every system: for a moment the old one stands beside as
    `.<name>.old`, where `find_folder` finds it. So a kill at any time leaves a whole folder, old or new.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    old = folder.with_name(f".{folder.name}.old")
    for leftover in folder.parent.glob(f".{folder.name}.*.tmp"):
        shutil.rmtree(leftover)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        with naming(folder):
            yield temporary
        for path in temporary.iterdir():
            bring_to_disk(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if folder.exists():
        if old.exists():
            shutil.rmtree(old)
        folder.rename(old)
    temporary.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def find_folder(folder: Path) -> Path | None:
    """The checkpoint folder, or the one that a kill in the middle of its replacement has left; None if neither."""
    for candidate in (folder, folder.with_name(f".{folder.name}.old")):
        if (candidate / WEIGHTS).is_file():
            return candidate
    return None


def remove_leftovers(folder: Path) -> None:
    """Remove what a kill in the middle of a replacement has left beside a whole checkpoint folder."""
    if (folder / WEIGHTS).is_file():
        for leftover in [folder.with_name(f".{folder.name}.old"), *folder.parent.glob(f".{folder.name}.*.tmp")]:
            shutil.rmtree(leftover, ignore_errors=True)


def write_checkpoint(
    folder: Path,
    *,
    weights: Mapping[str, Tensor],
    average: Mapping[str, Tensor] | None,
    state: Mapping[str, Any],
    metadata: Mapping[str, str],
) -> None:
    """Write a checkpoint folder, replacing the one that is there.

    Args:
        average: the moving average's weights, if there is one
        state: what the trainer needs to go on: tensors, numbers, strings, lists, tuples and dicts only
        metadata: goes into the weights' files, so that one of them explains itself alone
    """
    with replaced_folder(folder) as temporary:
        save_weights(weights, temporary / WEIGHTS, metadata)
        if average is not None:
            save_weights(average, temporary / AVERAGE, metadata)
        with patient_file(temporary / STATE) as file:
            torch.save({"format": FORMAT, **state}, file)


def copy_checkpoint(source: Path, folder: Path) -> None:
    """Make `folder` the same checkpoint as `source`. Its files never change, so a hard link will do."""
    with replaced_folder(folder) as temporary:
        for path in source.iterdir():
            try:
                os.link(path, temporary / path.name)
            except OSError:
                shutil.copyfile(path, temporary / path.name)


def save_weights(weights: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file; a tensor that has several names is stored under each."""
    stored: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in weights.items():
        tensor = tensor.detach().cpu().contiguous()
        shared = tensor.untyped_storage().data_ptr()
        stored[name] = tensor.clone() if shared in seen else tensor
        seen.add(shared)
    try:
        save_file(stored, path, metadata=dict(metadata))
    except SafetensorError as error:  # what it makes of a full disk
        raise OSError(errno.EIO, f"cannot be written ({error})", str(path)) from error
    mask = os.umask(0)  # reading it means setting it
    os.umask(mask)
    path.chmod(0o666 & ~mask)  # safetensors leaves the file to its owner alone


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors (on the CPU) and the metadata of a safetensors file.

    Raises CheckpointError if it is another kind of file, incomplete, or not there.
    """
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file, without its tensors. Raises CheckpointError as `read_weights` does."""
    with _opened(path) as file:
        return file.metadata() or {}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not path.exists():
        raise CheckpointError(f"{path}: there is no such file")
    if not path.is_file():
        raise CheckpointError(f"{path} is a folder, not a file")
    if path.suffix != ".safetensors":
        raise CheckpointError(
            f"{path} is not a .safetensors file. Other formats (.pt, .pth, .pkl) can run code while they are "
            "loaded, so detrkit does not load them; `detrkit convert` reads official checkpoints safely"
        )
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors ({error})") from None


def pixels_metadata(mean: Sequence[float], std: Sequence[float]) -> dict[str, str]:
    """How pixels were normalised, as it stands in weights' metadata: "mean" and "std", lists of three in JSON."""
    return {"mean": json.dumps(list(mean)), "std": json.dumps(list(std))}


def parse_pixels(metadata: Mapping[str, str]) -> dict[str, list[float]]:
    """What `pixels_metadata` wrote; empty where nothing, or nothing that can be used, stands there."""
    found = {}
    for key in ("mean", "std"):
        try:
            values = json.loads(metadata[key])
        except (KeyError, ValueError, RecursionError):
            return {}
        if not isinstance(values, list) or len(values) != 3 or not all(type(value) in (int, float) for value in values):
            return {}
        found[key] = [float(value) for value in values]
    return found


def metadata_number(metadata: Mapping[str, str], key: str) -> int | None:
    """A count that detrkit wrote into a weights file's metadata; None where it is not said.

    A file of another program may hold something else under the same name.
    """
    said = metadata.get(key, "")
    return int(said) if said.isdecimal() and len(said) < 16 else None


def read_state(folder: Path) -> dict[str, Any]:
    """The trainer's state of a checkpoint folder; nothing in it is executed.

    Raises CheckpointError if it is missing, damaged or of a later format.
    """
    path = folder / STATE
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such file, so the run cannot be resumed from here") from None
    except Exception as error:  # damaged zip archives and refused pickles raise many kinds
        # The first sentence: torch goes on to advise loading without the check.
        first = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
        raise CheckpointError(f"{path} cannot be read safely ({first})") from None
    if not isinstance(state, dict) or type(state.get("format")) is not int or state["format"] != FORMAT:
        raise CheckpointError(f"{path} is not a trainer state that this version of detrkit (format {FORMAT}) knows")
    return state


def load_exactly(detector: nn.Module, weights: Mapping[str, Tensor], origin: Path) -> None:
    """Load weights that must fit name by name and shape by shape.

    Raises CheckpointError that says what differs: then the weights are another recipe's.
    """
    own = detector.state_dict()
    if own and weights and not own.keys() & weights.keys():
        raise CheckpointError(
            f"{origin} has none of this detector's names, but {first_of(list(weights))}: weights of another code go "
            "through `detrkit convert` first"
        )
    faults = [f"{name} is missing in the file" for name in own if name not in weights]
    faults += [f"{name} is not part of the detector" for name in weights if name not in own]
    both = [(name, weights[name], tensor) for name, tensor in own.items() if name in weights]
    faults += [
        f"{name} is {list(given.shape)} in the file, {list(tensor.shape)} in the detector"
        for name, given, tensor in both
        if given.shape != tensor.shape
    ]
    faults += [
        f"{name} {other}"
        for name, given, tensor in both
        if given.shape == tensor.shape and (other := unlike(given, tensor))
    ]
    if faults:
        shown = "\n  ".join(faults[:8] + ([f"... and {len(faults) - 8} more"] if len(faults) > 8 else []))
        raise CheckpointError(f"{origin} belongs to another recipe than this detector:\n  {shown}")
    detector.load_state_dict(dict(weights))


def build_trained(recipe: Recipe, weights: Mapping[str, Tensor], origin: Path) -> BaseDetector:
    """A recipe's detector with weights that must fit, on the CPU in evaluation mode.

    Raises CheckpointError if they do not, or if one is no finite number: all that it computes would be none.
    """
    from detrkit.detector import build_detector

    with torch.random.fork_rng(devices=[]):  # weights drawn only to be replaced are to change no other draw
        detector = build_detector(recipe, pretrained=False)
    exempt = set(not_finite(detector.state_dict()))  # a part may keep a mask of -inf
    load_exactly(detector, weights, origin)
    if faults := [name for name in not_finite(detector.state_dict()) if name not in exempt]:
        raise CheckpointError(
            f"{origin} holds numbers that are not finite, in {first_of(faults)}: with them nothing can be found. A run "
            "that detrkit trained keeps finite weights only, so the file was damaged or made elsewhere"
        )
    return detector.eval()


def locate(path: Path, which: str = "best") -> tuple[Path, Path]:
    """The run's folder and the checkpoint's folder that `path` (either of them) and `which` mean.

    Raises CheckpointError if there is none.
    """
    from detrkit.runs.run_folder import RunFolder

    if which not in ("best", "last"):
        raise CheckpointError(f"checkpoint {which!r}: accepted are 'best' and 'last'")
    if (path / WEIGHTS).is_file() and (path.parent / RunFolder.RECIPE).is_file():
        return path.parent, path
    if not (path / RunFolder.RECIPE).is_file():
        raise CheckpointError(f"{path} is not the folder of a run: it has no {RunFolder.RECIPE}")
    for name in (which, "last") if which == "best" else (which,):
        folder = find_folder(path / name)
        if folder is not None:
            return path, folder
    raise CheckpointError(f"{path} holds no checkpoint yet: there is no {which}/ in it")


def read_categories(path: Path, metadata: Mapping[str, str] | None = None) -> tuple[Category, ...]:
    """The categories of a run, from its categories.json, or from the metadata of its weights if that is damaged.

    Raises CheckpointError if neither can be read.
    """
    try:
        return parse_categories(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
    try:
        return parse_categories((metadata or {})["categories"])
    except (KeyError, ValueError):
        raise CheckpointError(f"{path} cannot be read: {reason}") from None


def parse_categories(text: str) -> tuple[Category, ...]:
    """The categories from JSON, a list of {"id": ..., "name": ...} in the order of the labels.

    Raises ValueError if it is something else.
    """
    from detrkit.data import Category

    try:
        rows = json.loads(text)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    if not isinstance(rows, list) or not all(map(_is_category, rows)):
        raise ValueError('should be a list of {"id": number, "name": text}')
    return tuple(Category(id=row["id"], name=row["name"]) for row in rows)


def _is_category(row: Any) -> bool:
    return isinstance(row, dict) and type(row.get("id")) is int and isinstance(row.get("name"), str)


def format_categories(categories: Sequence[Category]) -> str:
    """The categories as JSON."""
    return json.dumps([{"id": category.id, "name": category.name} for category in categories], indent=1)
