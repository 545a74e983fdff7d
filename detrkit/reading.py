"""Reading a checkpoint that somebody else wrote, without running any code that it may carry, and what is unsound."""

from __future__ import annotations

import argparse
import json
import re
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from detrkit.errors import CheckpointError
from detrkit.paths import with_home
from detrkit.wording import first_of

# Where training codes keep the weights inside a checkpoint, the plain ones before averages of them.
ENTRIES = ("model", "state_dict", "model_state_dict", "model_ema", "ema_model", "ema", "module", "weights", "net")
# What the package `transformers` calls the weights in a folder of its own, the newer form first.
FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")
INDEX = ".index.json"
# What wrappers (data parallel, torch.compile) put before every name.
WRAPPERS = ("module.", "_orig_mod.")


def read_checkpoint(path: Path | str, entry: str | None = None) -> dict[str, Tensor]:
    """The weights of a checkpoint (of torch.save, or safetensors, whatever its name ends in), on the CPU.

    A folder as the package `transformers` saves it will do too, in one file or in several with an index; so will that
    index.

    A pickle may call any function while it is loaded. This one is read by PyTorch's restricted reader, which
    knows tensors, numbers, texts and containers; beside those only argparse.Namespace (the options that official
    DETR codes store) is let through.

    Args:
        entry: which entry of the checkpoint holds the weights, "ema" say; the first of ``ENTRIES`` that has some
            if None, with a warning where others have some too, or the checkpoint itself where it is names and
            tensors only

    Returns:
        name -> tensor, without "module." and the like before the names

    Raises:
        CheckpointError: the file is missing, damaged or no checkpoint, holds a class that could run code, or has
            no weights where they were looked for
    """
    path = with_home(path)
    files = files_of(path)
    if files != [path]:
        state: dict[str, Tensor] = {}
        for piece in files:
            state |= read_checkpoint(piece, entry)
        return state
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file")
    with path.open("rb") as file:
        start = file.read(64)
    if start.lstrip()[:1] == b"<" or start.startswith(b"version https://git-lfs"):
        kind = "a Git LFS pointer" if start.startswith(b"version") else "a web page"
        raise CheckpointError(f"{path} is {kind}, not a checkpoint: the download did not bring the file itself")
    content = _read_safetensors(path) if _is_safetensors(path, start) else _read_pickle(path)
    return _without_wrappers(_weights(path, content, entry))


def read_json(path: Path) -> dict[str, Any] | None:
    """The object that a JSON file holds; None if there is no such file. Raises CheckpointError if it is no JSON."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))  # Windows marks a text
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error})") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not an object with keys")
    return content


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of the tensors with a number that is not finite, with one wait for each device."""
    found = []
    for device in dict.fromkeys(tensor.device for tensor in tensors.values()):
        names = [name for name, tensor in tensors.items() if tensor.device == device]
        # Floats of 8 bits do not know `isfinite`.
        values = [tensors[name].float() if tensors[name].element_size() == 1 else tensors[name] for name in names]
        sound = torch.stack([value.isfinite().all() for value in values]).tolist()
        found += [name for name, is_sound in zip(names, sound, strict=True) if not is_sound]
    return found


def unlike(given: Tensor, own: Tensor) -> str:
    """What keeps a tensor of the right shape out of the place of another one, in words; "" if nothing does.

    Bytes of quantised weights would become other numbers in silence, as complex ones would lose a part.
    """
    if given.is_meta:
        return "has a shape and no values"
    if given.layout is not torch.strided:
        return f"is stored as {given.layout}, not as plain values"
    if own.is_floating_point() and not given.is_floating_point():
        return f"is of {given.dtype}, where floating point numbers belong: it was quantised, or is no weight"
    return ""


def files_of(path: Path) -> list[Path]:
    """The files that hold a checkpoint's weights: itself, or those of its folder or index. CheckpointError if none."""
    if path.is_dir():
        return _files_in(path)
    return _pieces_of(path) if path.name.endswith(INDEX) else [path]


def _files_in(folder: Path) -> list[Path]:
    for name in FOLDER_FILES:
        if (folder / name).is_file():
            return [folder / name]
        if (index := folder / f"{name}{INDEX}").is_file():
            return _pieces_of(index)
    raise CheckpointError(
        f"{folder} holds no weights that are known by name ({', '.join(FOLDER_FILES)}, or these in pieces with an "
        "index); name the file itself"
    )


def _pieces_of(index: Path) -> list[Path]:
    content = read_json(index)
    if content is None:
        raise CheckpointError(f"{index}: there is no such file")
    places = content.get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{index} has no weight_map that says where the weights are")
    return [index.parent / Path(str(place)).name for place in dict.fromkeys(places.values())]


def _is_safetensors(path: Path, start: bytes) -> bool:
    """By how it begins, with a length and then JSON; by its name where that is neither so nor as torch.save's do."""
    is_json, of_torch = start[8:9] == b"{", start.startswith((b"PK", b"\x80"))
    return is_json or (path.suffix.lower() == ".safetensors" and not of_torch)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors ({error})") from None


def _read_pickle(path: Path) -> Any:
    try:
        # PyTorch goes by a path's ending, but not by a file's.
        with path.open("rb") as file, torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or foreign file raises many kinds
        text = str(error)
        foreign = re.search(r"GLOBAL (\S+) (was not an allowed global|whose module)", text)
        if foreign:
            raise CheckpointError(
                f"{path} is refused: it asks for {foreign[1]}, which could run code while it is loaded. "
                "Accepted are tensors, numbers, texts, lists, dicts and argparse.Namespace. If you trust the file, "
                "load it where it was made and save its state dict alone"
            ) from None
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: it is damaged, cut short or another kind of file "
            f"({_cause(text, error)})"
        ) from None


def _cause(text: str, error: Exception) -> str:
    """The line of PyTorch's message that says what is wrong, without its advice to load the file unsafely."""
    lines = [line.split("WeightsUnpickler error:")[-1].strip() for line in text.splitlines()]
    told = [line for line in lines if line and "weights_only" not in line and "torch.load" not in line]
    return told[0] if told else type(error).__name__


def _weights(path: Path, content: Any, entry: str | None) -> Mapping[str, Tensor]:
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a dict of weights")
    if entry is not None:
        if entry not in content:
            raise CheckpointError(f"{path} has no entry {entry!r}; there are: {_listed(content)}")
        content = content[entry]
    # An entry may hold an entry again: {"ema": {"module": {...}}}.
    while isinstance(content, Mapping) and not _is_state(content):
        having = [name for name in ENTRIES if _has_weights(content.get(name))]
        having = having or [name for name in ENTRIES if isinstance(content.get(name), Mapping)][:1]
        states = [name for name, value in content.items() if isinstance(value, Mapping) and _is_state(value)]
        if not having and entry is not None and len(states) == 1:  # {"ema": {"shadow": {...}}}
            having = states
        if not having:
            hint = "; name the one that holds them (--entry, in Python entry)" if states else ""
            raise CheckpointError(
                f"{path} has no weights where they usually are ({', '.join(ENTRIES)}); "
                f"there are: {_listed(content)}{hint}"
            )
        if others := [*having[1:], *_with_the_same(content, having)]:
            told = f"{path}: the weights of its entry {having[0]} are taken, and there are others in {first_of(others)}"
            warnings.warn(told, stacklevel=3)
        content = content[having[0]]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: entry {entry!r} holds a {type(content).__name__}, not weights")
    return content


def _is_state(content: Mapping) -> bool:
    return bool(content) and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())


def _has_weights(content: Any) -> bool:
    nested = isinstance(content, Mapping) and any(_has_weights(content.get(name)) for name in ENTRIES)
    return nested or (isinstance(content, Mapping) and _is_state(content))


def _with_the_same(content: Mapping, having: Collection[str]) -> list[str]:
    """Entries that hold weights of the same names as the first of ``having``, under whatever name: averages of them."""
    known = _names(content[next(iter(having))])
    return [str(name) for name, value in content.items() if name not in having and known & _names(value)]


def _names(content: Any, deep: int = 3) -> set[str]:
    """The names of all tensors in entries, entries of entries and so on, without wrappers."""
    if not isinstance(content, Mapping) or not deep:
        return set()
    own = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    inner = (_names(value, deep - 1) for value in content.values())
    return set(_without_wrappers(own)).union(*inner)


def _listed(content: Mapping) -> str:
    return first_of([str(name) for name in content], 12) or "none"


def _without_wrappers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    state = dict(state)
    while state and (prefix := next((p for p in WRAPPERS if all(name.startswith(p) for name in state)), None)):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state
