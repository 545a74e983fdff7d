"""A file of weights for a timm model, read without running code, and what of it arrived."""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from torch import Tensor, nn

from detrkit.errors import CheckpointError
from detrkit.reading import not_finite, read_checkpoint
from detrkit.wording import first_of

SHOWN = 5


def read_weights(path: Path | str, known: Collection[str]) -> dict[str, Tensor]:
    """The tensors of a weights file by timm's names (.safetensors, .pth, ...).

    What stands before the names, as codes put "backbone." there, is taken off with a warning, where more names are
    `known` (the model's own) without it. Raises CheckpointError.
    """
    state = read_checkpoint(path)
    if not state:
        raise CheckpointError(f"{path} holds no weights")
    fitting = Counter(prefix for name in state for prefix in _prefixes(name) if name.removeprefix(prefix) in known)
    best = max(fitting, key=lambda prefix: fitting[prefix], default="")
    if fitting[best] == fitting[""]:
        return state
    taken = {name.removeprefix(best): tensor for name, tensor in state.items() if name.startswith(best)}
    warnings.warn(f'{path}: "{best}" before {len(taken)} of {len(state)} names was taken off', stacklevel=2)
    return taken


def require_all(body: nn.Module, state: Mapping[str, Tensor], path: Path | str, name: str) -> None:
    """Raise CheckpointError if a weight of the model is none of the file's, or is not finite.

    Told by values and not by names, since timm renames what it reads. Counters do not count.
    """
    given = {_print(tensor) for tensor in state.values()}
    own = list(_floating(body))
    missing = [key for key, tensor in own if _print(tensor) not in given]
    if missing:
        raise CheckpointError(
            f"backbone.weights = {str(path)!r} fills {len(own) - len(missing)} of the {len(own)} tensors of {name}; "
            f"not in the file: {first_of(missing, SHOWN)}. The file is of another model, is a part of one, or has "
            "other names than timm's"
        )
    if broken := not_finite(dict(own)):
        raise CheckpointError(
            f"backbone.weights = {str(path)!r}: {len(broken)} of the {len(own)} tensors of {name} hold numbers that "
            f"are not finite: {first_of(broken, SHOWN)}"
        )


def _prefixes(name: str) -> Iterator[str]:
    """Nothing, then ever more of the name, up to each point in it."""
    yield ""
    for place, letter in enumerate(name, start=1):
        if letter == ".":
            yield name[:place]


def _floating(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for key, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            yield key, tensor


def _print(tensor: Tensor) -> tuple[tuple[int, ...], bytes]:
    """What tells one tensor from another: shape, and a digest of its numbers in float32."""
    plain = tensor.detach().float().contiguous().cpu().numpy()
    return tuple(tensor.shape), hashlib.blake2b(plain.tobytes(), digest_size=16).digest()
