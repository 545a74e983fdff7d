"""What a timm model needs and how it is laid out, found by trying it on torch's meta device: no memory, no arithmetic.

Model families differ in names, modules and limits; a trial asks the model itself and knows no family.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cache
from typing import Any

import timm
import torch
from torch import Tensor

import detrkit.backbones.resnet_vd  # noqa: F401 (registers models with timm)
from detrkit.errors import UserError


@dataclass(frozen=True)
class Needs:
    """What was found of a timm model.

    options: for `timm.create_model`, so that it takes images of any size; strides: of its feature levels, fine to
    coarse; indices: what `timm.create_model` calls these levels; multiple: images are to be padded to whole multiples
    of so many pixels; mean, std: of RGB in [0, 1], that its pretrained weights were trained with; names: of the whole
    model's tensors.
    """

    options: dict[str, bool]
    strides: tuple[int, ...]
    indices: tuple[int, ...]
    multiple: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    names: frozenset[str]


def features(name: str, **options: Any) -> Any:
    """A timm model that gives feature maps, and says in `feature_info` what they are."""
    return timm.create_model(name, features_only=True, **options)


@cache
def needs_of(name: str) -> Needs:
    """What a timm model needs.

    Raises UserError if there is no such model, if it gives no feature maps, or if it takes images of one size only.
    """
    with torch.device("meta"):
        try:
            whole: Any = timm.create_model(name, pretrained=False)
        except Exception as error:  # an unknown name, one that looks like a place of a hub, a hub that is away, ...
            raise UserError(
                f"backbone.name = {name!r}: {_cause(error)}; `timm.list_models()` lists the names"
            ) from None
        known = inspect.signature(type(whole).__init__).parameters
        wanted = {"strict_img_size": False, "dynamic_img_size": True}
        options = {key: value for key, value in wanted.items() if key in known}
        try:
            body = features(name, pretrained=False, **options)
        except Exception as error:  # each family has its own way to say that it has no feature maps
            raise UserError(
                f"backbone.name = {name!r}: timm gives no feature maps of this model ({_cause(error)}); take another, "
                "such as one of `timm.list_models('resnet*')`"
            ) from None
    strides = tuple(body.feature_info.reduction())
    step = max(strides)
    # Patches and their merging want whole steps; windows want whole windows of the coarsest map besides.
    candidates = ([] if options else [1]) + [step * factor for factor in (1, 2, 4, 7, 8)]
    for multiple in candidates:
        failure = _failure(body, multiple)
        if failure is None:
            break
    else:
        raise UserError(
            f"backbone.name = {name!r}: this model does not take images of any size ({failure}), and photographs "
            "have many; take another, such as one of `timm.list_models('resnet*')`"
        )
    config = whole.pretrained_cfg
    return Needs(
        options=options,
        strides=strides,
        indices=tuple(body.feature_info.out_indices),
        multiple=multiple,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        names=frozenset(whole.state_dict()),
    )


def dilated_layout(name: str) -> dict[str, int]:
    """What `timm.create_model` is told so that a model's last stage is dilated and has the stride of the one before.

    Raises UserError if it cannot be.
    """
    found = needs_of(name)
    layout = {"output_stride": found.strides[-1] // 2}
    try:
        with torch.device("meta"):
            features(name, pretrained=False, **found.options, **layout)
    except Exception as error:  # each family has its own way to say no
        raise UserError(
            f"backbone.dilated = true: timm cannot dilate {name} ({_cause(error)}); leave it false, or take another "
            "model, such as one of `timm.list_models('resnet*')`"
        ) from None
    return layout


def trial_sizes(multiple: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Two (height, width) to try a model at that takes whole multiples of so many pixels."""
    if multiple == 1:
        return (101, 141), (171, 133)  # multiples of nothing
    return (3 * multiple, 5 * multiple), (2 * multiple, multiple)


@cache
@torch.inference_mode(False)  # whatever the detector is built under, this asks for gradients
@torch.enable_grad()
def frozen_names(name: str, stride: int, **options: Any) -> frozenset[str]:
    """The parameters that make the features of up to this stride, by their names in the model of feature maps.

    options: of the model besides what it needs, for `timm.create_model`.
    """
    found = needs_of(name)
    levels = [level for level, reduction in enumerate(found.strides) if reduction <= stride]
    if not levels:
        return frozenset()
    with torch.device("meta"):
        body = features(name, pretrained=False, out_indices=[found.indices[levels[-1]]], **found.options, **options)
    size = max(found.multiple, found.strides[-1]) * 2
    [last] = _maps(body, size, size)
    parameters = dict(body.named_parameters())
    with torch.autograd.set_detect_anomaly(False):  # it looks for nan, and nothing here has numbers
        gradients = torch.autograd.grad(last.sum(), list(parameters.values()), allow_unused=True)
    return frozenset(key for key, gradient in zip(parameters, gradients, strict=True) if gradient is not None)


def _failure(body: Any, multiple: int) -> str | None:
    """What happens to images that are whole multiples of so many pixels; None if all goes well."""
    try:
        for height, width in trial_sizes(multiple):
            _maps(body, height, width)
    except Exception as error:  # each family has its own way to say no
        return _cause(error)
    return None


def _maps(body: Any, height: int, width: int) -> list[Tensor]:
    return body(torch.zeros(2, 3, height, width, device="meta"))


def _cause(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
