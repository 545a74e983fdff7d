"""detrkit: compose, train and compare DETR object detectors from TOML recipes.

    recipe = detrkit.load_recipe("sap_detr_r50_50ep", ["train.epochs=12"])
    detector = detrkit.build_detector(recipe)
    criterion = detrkit.build_criterion(recipe)

The names below are imported when they are first used, so that `detrkit --help` does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detrkit import zoo
    from detrkit.detector import Detector, build_criterion, build_detector
    from detrkit.losses.criterion import Criterion
    from detrkit.predictor import Found, Predictor, load
    from detrkit.recipe import Recipe, list_recipes, load_recipe, part, register
    from detrkit.structures import Output

__version__ = "0.1.0"
__all__ = [
    "Criterion",
    "Detector",
    "Found",
    "Output",
    "Predictor",
    "Recipe",
    "build_criterion",
    "build_detector",
    "list_recipes",
    "load",
    "load_recipe",
    "part",
    "register",
    "zoo",
]

_HOMES = {
    "Criterion": "detrkit.losses.criterion",
    "Detector": "detrkit.detector",
    "Found": "detrkit.predictor",
    "Output": "detrkit.structures",
    "Predictor": "detrkit.predictor",
    "Recipe": "detrkit.recipe",
    "build_criterion": "detrkit.detector",
    "build_detector": "detrkit.detector",
    "list_recipes": "detrkit.recipe",
    "load": "detrkit.predictor",
    "load_recipe": "detrkit.recipe",
    "part": "detrkit.recipe",
    "register": "detrkit.recipe",
}


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name == "zoo":
        return import_module("detrkit.zoo")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'detrkit' has no attribute {name!r}")
