"""Checkpoints of other codes in our names, and the published results.

The names below are imported when they are first used, so that a list of recipes does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detrkit.zoo.conversion import Conversion, convert, match
    from detrkit.zoo.fitting import Fitted, fit

__all__ = ["Conversion", "Fitted", "convert", "fit", "match"]

_HOMES = {
    "Conversion": "detrkit.zoo.conversion",
    "Fitted": "detrkit.zoo.fitting",
    "convert": "detrkit.zoo.conversion",
    "fit": "detrkit.zoo.fitting",
    "match": "detrkit.zoo.conversion",
}


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'detrkit.zoo' has no attribute {name!r}")
