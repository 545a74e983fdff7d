"""Starting from the weights of another run, with another class count perhaps."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from detrkit.backbones.base import Backbone
from detrkit.data import Category
from detrkit.errors import CheckpointError
from detrkit.paths import with_home
from detrkit.reading import not_finite, unlike
from detrkit.runs.checkpoint import (
    AVERAGE,
    WEIGHTS,
    locate,
    metadata_number,
    parse_categories,
    parse_pixels,
    read_weights,
)
from detrkit.wording import first_of


@dataclass(frozen=True)
class TransferReport:
    """What `init_from` did."""

    path: Path
    loaded: int
    """tensors"""
    total: int
    """tensors of the detector"""
    fresh: tuple[str, ...]
    """the detector's tensors that keep their random start, each with the reason"""
    unused: tuple[str, ...]
    """names in the file that the detector does not have"""
    names: str = ""
    """which classes' rows hold what the file knows of others"""
    pixels: str = ""
    """how the weights' images were normalised, where the detector's are not"""

    def __str__(self) -> str:
        lines = [f"{self.loaded} of {self.total} tensors from {self.path}"]
        lines += [f"  {line}" for line in (self.names, self.pixels) if line]
        lines += [f"  left fresh: {entry}" for entry in self.fresh]
        lines += [f"  not used: {name}" for name in self.unused]
        return "\n".join(lines)


def init_from(detector: nn.Module, path: Path | str, *, classes: int, names: Sequence[str] = ()) -> TransferReport:
    """Load into `detector` what fits of other weights.

    Tensors with a row for each class or each query whose count differs are left fresh, and so are tensors that the
    file does not have. Everything is reported by name.

    Args:
        path: a run's folder (its best checkpoint), a checkpoint's folder, or a .safetensors file; the moving
            average's weights are taken where there are any
        classes: K of the detector
        names: of the classes that it is to know, in the order of the labels; () for not known

    Raises:
        CheckpointError: the file cannot be read safely, or holds numbers that are not finite; a tensor has another
            shape for a reason other than the number of classes or queries; or less than half of the detector's tensors
            are in it: then it is another recipe's
    """
    path = weights_path(with_home(path))
    weights, metadata = read_weights(path)
    old_classes = _classes_of(metadata)
    own = detector.state_dict()
    fitting: dict[str, Tensor] = {}
    fresh, conflicts = [], []
    for name, tensor in own.items():
        if name not in weights:
            fresh.append(f"{name} (not in the file)")
        elif weights[name].shape == tensor.shape and (other := unlike(weights[name], tensor)):
            conflicts.append(f"{name} {other}")
        elif weights[name].shape == tensor.shape:
            fitting[name] = weights[name]
        elif _differs_in_classes(weights[name], tensor, old_classes, classes):
            rows = f"{len(weights[name])} rows in the file, {len(tensor)} here"
            fresh.append(f"{name} (class count: {rows})")
        elif name.startswith("queries.") and weights[name].shape[1:] == tensor.shape[1:]:
            rows = f"{len(weights[name])} rows in the file, {len(tensor)} here"
            fresh.append(f"{name} (number of queries: {rows})")
        else:
            conflicts.append(f"{name} is {list(weights[name].shape)} there, {list(tensor.shape)} here")
    unused = tuple(name for name in weights if name not in own)
    if conflicts or 2 * len(fitting) < len(own):
        found = f"{len(fitting)} of the detector's {len(own)} tensors fit"
        examples = conflicts or [*fresh, *(f"{name} (only in the file)" for name in unused)]
        shown = "\n  ".join(examples[:6] + (["..."] if len(examples) > 6 else []))
        raise CheckpointError(f"{path} belongs to another kind of detector ({found}):\n  {shown}")
    if faults := not_finite(fitting):
        raise CheckpointError(
            f"{path} holds numbers that are not finite, in {first_of(faults)}: nothing can start from it"
        )
    detector.load_state_dict(fitting, strict=False)
    beside = {"names": _other_names(names, metadata, classes), "pixels": _other_pixels(detector, metadata)}
    return TransferReport(path, len(fitting), len(own), tuple(fresh), unused, **beside)


def _other_names(names: Sequence[str], metadata: Mapping[str, str], classes: int) -> str:
    """A sentence where as many classes are called otherwise, or stand in another order: rows go by their places."""
    before = [category.name for category in _categories_of(metadata)]
    if not names or not before or _classes_of(metadata) != classes:
        return ""
    others = [f"{there!r} for {here!r}" for there, here in zip(before, names, strict=False) if there != here]
    if not others:
        return ""
    return f"of as many classes, taken by their places and not by their names: {first_of(others)}"


def _other_pixels(detector: nn.Module, metadata: Mapping[str, str]) -> str:
    """A sentence where the weights were trained on images of another mean or deviation than the detector sees."""
    backbone, theirs = getattr(detector, "backbone", None), parse_pixels(metadata)
    if not theirs or not isinstance(backbone, Backbone):
        return ""
    own = {"mean": backbone.mean, "std": backbone.std}
    if all(math.isclose(a, b, rel_tol=1e-6) for key in own for a, b in zip(own[key], theirs[key], strict=True)):
        return ""
    asked = " ".join(f"backbone.{key}={json.dumps(values, separators=(',', ':'))}" for key, values in theirs.items())
    return f"these weights were trained on images normalised otherwise than here, which they get with {asked}"


def weights_path(path: Path) -> Path:
    """The safetensors file that a run's folder, a checkpoint's folder or a file means."""
    if not path.is_dir():
        return path
    folder = path if (path / WEIGHTS).is_file() else locate(path)[1]
    return folder / (AVERAGE if (folder / AVERAGE).is_file() else WEIGHTS)


def _classes_of(metadata: Mapping[str, str]) -> int | None:
    """K of the detector that a file's weights are of, which may be more than its data set has; None: not known."""
    if (classes := metadata_number(metadata, "classes")) is not None:
        return classes
    return len(_categories_of(metadata)) or None


def _categories_of(metadata: Mapping[str, str]) -> Sequence[Category]:
    """Those of the data set that a file's weights were trained on; () if it does not say."""
    try:
        return parse_categories(metadata.get("categories", "[]"))
    except ValueError:  # another program's, or damaged
        return ()


def _differs_in_classes(theirs: Tensor, own: Tensor, old_classes: int | None, classes: int) -> bool:
    """Whether only the rows differ, by as much as the class counts do.

    A class may have several rows (the sides of its own box), and some tables have rows beyond K (the background's).
    """
    if own.dim() == 0 or theirs.shape[1:] != own.shape[1:]:
        return False
    if old_classes is None:
        return len(own) - classes in (0, 1)
    if old_classes == classes:
        return False
    rows, rest = divmod(len(theirs) - len(own), old_classes - classes)
    return rest == 0 and rows >= 1 and len(own) >= rows * classes
