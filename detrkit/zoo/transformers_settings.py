"""What a `config.json` of the package `transformers` says of a DETR, as values of a recipe, and what always differs.

A key that the file leaves out has transformers' default. What detrkit's parts cannot compute is refused by its key.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import nn

from detrkit.backbones.needs import features, needs_of
from detrkit.detections import DetectOptions
from detrkit.errors import CheckpointError
from detrkit.layers import ACTIVATIONS
from detrkit.recipe.library import recipe_names
from detrkit.zoo.names import Setting

Config = Mapping[str, Any]
FILE = "config.json"

# transformers' own ResNets by block and blocks a stage, as timm names them.
RESNETS: dict[tuple[str, tuple[int, ...]], str] = {
    ("basic", (2, 2, 2, 2)): "resnet18",
    ("basic", (3, 4, 6, 3)): "resnet34",
    ("bottleneck", (3, 4, 6, 3)): "resnet50",
    ("bottleneck", (3, 4, 23, 3)): "resnet101",
    ("bottleneck", (3, 8, 36, 3)): "resnet152",
}
WIDTHS = {"basic": [64, 128, 256, 512], "bottleneck": [256, 512, 1024, 2048]}


def detr(config: Config | None) -> list[Setting]:
    """DETR's."""
    if config is None:
        return [_carried(None)]
    kept = all_kept(count(config, "num_queries", 100))
    return [*_sizes(config, queries=100), *_backbone(config).settings(levels=1), *kept, _carried(config)]


def conditional_detr(config: Config | None) -> list[Setting]:
    """Conditional DETR's."""
    own = [] if config is None else [*_sizes(config), *_backbone(config).settings(levels=1)]
    return [*own, _carried(config)]


def dab_detr(config: Config | None) -> list[Setting]:
    """DAB-DETR's."""
    clipped = Setting("geometry.eps", 1e-5, "transformers clips boxes' logits at 1e-5, the official code at 1e-3")
    if config is None:
        return [clipped]
    require(config, "normalize_before", (None, False))
    require(config, "keep_query_pos", (None, False))
    require(config, "sine_position_embedding_scale", (None, 2 * math.pi))
    temperature = number(config, "temperature_height", 20)
    require(config, "temperature_width", (temperature,), default=20)
    return [
        clipped,
        *_sizes(config, width="hidden_size", activation="prelu"),
        *_backbone(config).settings(levels=1),
        Setting("queries.patterns", config.get("num_patterns", 0), FILE),
        Setting("position.temperature", temperature, FILE),
    ]


def deformable_detr(config: Config | None) -> list[Setting]:
    """Deformable DETR's."""
    if config is None:
        return []
    levels, two_stage = count(config, "num_feature_levels", 4), config.get("two_stage", False)
    refined = config.get("with_box_refine", False)
    if two_stage and not refined:
        refuse("two_stage", True, "with_box_refine = true beside it, without which transformers cannot run it either")
    backbone = _backbone(config, default=[2, 3, 4] if levels > 1 else [4])
    taken = len(backbone.levels) if levels > 1 else 1
    own = {
        "encoder.points": config.get("encoder_n_points", 4),
        "decoder.cross_attention.points": config.get("decoder_n_points", 4),
        "encoder.extra_levels": levels - taken,
        "queries.type": "two_stage" if two_stage else "learned_points",
        "geometry.type": "box" if two_stage else "point",
        **({"geometry.eps": 1e-5} if two_stage else {"geometry.refined": refined}),
        "head.class_sharing": "none" if refined else "all",
        "head.offset_sharing": "none" if refined else "all",
        "head.size_start": 0.0 if two_stage else -2.0,
    }
    return [
        *_sizes(config, feedforward=1024, asked="two_stage_num_proposals" if two_stage else "num_queries"),
        *backbone.settings(levels=taken),
        *(Setting(key, value, FILE) for key, value in own.items()),
    ]


def detr_recipe(config: Config) -> str:
    """The shipped recipe that is nearest; `conditional_detr_recipe` and so on likewise."""
    return _nearest("detr", "500ep", config)


def conditional_detr_recipe(config: Config) -> str:
    return _nearest("conditional_detr", "50ep", config)


def dab_detr_recipe(config: Config) -> str:
    return _nearest("dab_detr", "50ep", config)


def deformable_detr_recipe(config: Config) -> str:
    if count(config, "num_feature_levels", 4) == 1:
        return _nearest("deformable_detr", "50ep", config)
    form = "_refined" if config.get("with_box_refine") else ""
    form = "_two_stage" if config.get("two_stage") else form
    return _nearest("deformable_detr_4scale", "50ep", config, form=form)


def _nearest(system: str, epochs: str, config: Config, form: str = "") -> str:
    backbone = _backbone(config)
    depth = backbone.name.replace("resnet", "r")
    name = f"{system}{form}_{'dc5_' if backbone.dilated else ''}{depth}_{epochs}"
    return name if name in recipe_names() else f"base/{system}"


def _carried(config: Config | None) -> Setting:
    why = "transformers norms what goes from decoder layer to layer, and the last twice, where auxiliary_loss = true"
    if config is None:
        return Setting("decoder.norm_carried", False, f"{why}; {FILE} would say, and there is none", assumed=True)
    return Setting("decoder.norm_carried", bool(config.get("auxiliary_loss", False)), why)


def _sizes(
    config: Config,
    *,
    queries: int = 300,
    asked: str = "num_queries",
    width: str = "d_model",
    feedforward: int = 2048,
    activation: str = "relu",
) -> Iterator[Setting]:
    """What all four have; `width` and `asked` are keys of the file, the others defaults."""
    require(config, "position_embedding_type", ("sine",), default="sine")
    require(config, "num_channels", (3,), default=3)
    require(config, "activation_function", tuple(ACTIVATIONS), default=activation)
    heads = config.get("encoder_attention_heads", 8)
    require(config, "decoder_attention_heads", (heads,), default=8)
    values = {
        "detector.width": config.get(width, 256),
        "detector.heads": heads,
        "queries.count": config.get(asked, queries),
    }
    for part in ("encoder", "decoder"):
        values[f"{part}.layers"] = config.get(f"{part}_layers", 6)
        values[f"{part}.feedforward"] = config.get(f"{part}_ffn_dim", feedforward)
        values[f"{part}.activation"] = config.get("activation_function", activation)
    return (Setting(key, value, FILE) for key, value in values.items())


@dataclass(frozen=True)
class _Backbone:
    """name: timm's, without the tag of weights; levels: counted from the last one, -1."""

    name: str
    dilated: bool
    levels: tuple[int, ...]

    def settings(self, levels: int) -> Iterator[Setting]:
        """Those values of a recipe that say the same; `levels`: how many of the last ones are read."""
        yield Setting("backbone.name", self.name, FILE)
        yield Setting("backbone.dilated", self.dilated, FILE)
        yield Setting("backbone.levels", list(self.levels[-levels:]), FILE)


def _backbone(config: Config, default: Sequence[int] = (1, 2, 3, 4)) -> _Backbone:
    inner = table(config, "backbone_config")
    if inner is not None and inner.get("model_type") == "resnet":
        return _own_resnet(inner)
    if inner is not None and inner.get("model_type") != "timm_backbone":
        refuse("backbone_config.model_type", inner.get("model_type"), '"timm_backbone" and "resnet"')
    if inner is None and not config.get("use_timm_backbone", True):
        refuse("use_timm_backbone", False, "true, or a backbone_config")
    options = inner or table(config, "backbone_kwargs") or {}
    name = (inner or config).get("backbone") or "resnet50"
    if not isinstance(name, str):
        refuse("backbone", name, "the name of a timm model")
    strides = needs_of(name).strides
    _check_norms(name)
    stride = count(options, "output_stride", strides[-1])
    dilated = bool(config.get("dilation")) or stride != strides[-1]
    if dilated and stride not in (strides[-1], strides[-1] // 2):
        refuse("output_stride", stride, f"{strides[-1]} and {strides[-1] // 2}")
    maps = len(strides)
    levels = numbers(options, "out_indices", default)
    return _Backbone(name, dilated, tuple(level % maps - maps for level in levels))


def _own_resnet(inner: Config) -> _Backbone:
    name = resnet_of(inner, RESNETS)
    for key, value in {
        "embedding_size": 64,
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
    }.items():
        require(inner, key, (value,), default=value, where="backbone_config.")
    named = inner.get("out_features") or ["stage4"]
    if not isinstance(named, list) or not set(named) <= {f"stage{number}" for number in range(1, 5)}:
        refuse("backbone_config.out_features", named, "a list of stage1 to stage4")
    levels = numbers(inner, "out_indices", [int(one[-1]) for one in named], where="backbone_config.")
    return _Backbone(name, False, tuple(level % 5 - 5 for level in levels))


def resnet_of(inner: Config, known: Mapping[tuple[str, tuple[int, ...]], str]) -> str:
    """timm's name of a ResNet of transformers' own, which must be among the known ones, by block and depths."""
    where = "backbone_config."
    require(inner, "layer_type", tuple(WIDTHS), default="bottleneck", where=where)
    block = inner.get("layer_type", "bottleneck")
    depths = tuple(numbers(inner, "depths", (3, 4, 6, 3), where=where))
    if (block, depths) not in known:
        told = ", ".join(f"{list(d)} of {b}" for b, d in known)
        refuse(f"{where}depths", f"{list(depths)} of {block}", told)
    widths = numbers(inner, "hidden_sizes", WIDTHS["bottleneck"], where=where)
    if list(widths) != WIDTHS[block]:
        refuse(f"{where}hidden_sizes", widths, str(WIDTHS[block]))
    return known[block, depths]


def _check_norms(name: str) -> None:
    """Refuse models whose norms are more than norms: transformers puts bare frozen ones in their place."""
    with torch.device("meta"):
        norms = [m for m in features(name, pretrained=False).modules() if isinstance(m, nn.BatchNorm2d)]
    if any(type(norm) is not nn.BatchNorm2d or norm.eps != 1e-5 for norm in norms):
        refuse("backbone", name, "models such as timm's ResNets; transformers changes what this one's norms compute")


def all_kept(queries: int) -> list[Setting]:
    """Of systems whose processor hands on as many detections as there are queries, without another limit."""
    few = DetectOptions().keep
    return [Setting("detect.keep", queries, f"{FILE}: num_queries")] if queries > few else []


def require(config: Config, key: str, accepted: tuple, *, default: Any = None, where: str = "") -> None:
    """Raise CheckpointError unless a configuration's value, or transformers' default, is among the accepted ones."""
    if config.get(key, default) not in accepted:
        refuse(where + key, config.get(key, default), " and ".join(map(repr, accepted)))


def count(config: Config, key: str, default: int) -> int:
    """A configuration's whole number, or transformers' default where it has none. CheckpointError where it is none."""
    value = config.get(key)
    value = default if value is None else value
    return value if type(value) is int else refuse(key, value, "a whole number")


def number(config: Config, key: str, default: float) -> float:
    """Any number likewise."""
    value = config.get(key)
    value = default if value is None else value
    return float(value) if type(value) in (int, float) else refuse(key, value, "a number")


def numbers(config: Config, key: str, default: Sequence[int], *, where: str = "") -> Sequence[int]:
    """A list of whole numbers likewise."""
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, list | tuple) or any(type(one) is not int for one in value):
        refuse(where + key, value, "a list of whole numbers")
    return value


def table(config: Config, key: str) -> Config | None:
    """A configuration within one; None where there is none."""
    value = config.get(key)
    return value if value is None or isinstance(value, Mapping) else refuse(key, value, "an object with keys")


def refuse(key: str, value: Any, accepted: str) -> NoReturn:
    raise CheckpointError(f"{FILE}: {key} = {value!r} is not what detrkit's parts compute; accepted: {accepted}")
