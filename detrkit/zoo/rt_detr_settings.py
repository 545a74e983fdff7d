"""What a `config.json` of the package `transformers` says of a RT-DETR, as values of a recipe."""

from __future__ import annotations

from typing import Any

from detrkit.layers import ACTIVATIONS
from detrkit.recipe.library import recipe_names
from detrkit.zoo.names import Setting
from detrkit.zoo.transformers_settings import (
    FILE,
    Config,
    all_kept,
    count,
    number,
    numbers,
    refuse,
    require,
    resnet_of,
    table,
)

# ResNet-vd by block and blocks a stage, as timm names them.
RESNETS: dict[tuple[str, tuple[int, ...]], str] = {
    ("basic", (2, 2, 2, 2)): "resnet18vd",
    ("basic", (3, 4, 6, 3)): "resnet34vd",
    ("bottleneck", (3, 4, 6, 3)): "resnet50d",
    ("bottleneck", (3, 4, 23, 3)): "resnet101d",
}
ALWAYS: dict[str, tuple[Any, ...]] = {
    "activation_function": ("silu",),
    "normalize_before": (False,),
    "learn_initial_query": (False,),  # transformers cannot run it
    "eval_size": (None,),  # with it, transformers leaves out the cells' codes in evaluation
    "layer_norm_eps": (1e-5,),
    "batch_norm_eps": (1e-5,),
}
"""what no recipe can say otherwise; the first is transformers' default"""


def raw_pixels(config: Config | None = None) -> list[Setting]:
    """What all its checkpoints were trained with, the official ones too."""
    why = "RT-DETR reads pixels in [0, 1] as they are"
    return [Setting("backbone.mean", (0.0, 0.0, 0.0), why), Setting("backbone.std", (1.0, 1.0, 1.0), why)]


def rt_detr(config: Config | None) -> list[Setting]:
    """RT-DETR's."""
    if config is None:
        return raw_pixels()
    for key, accepted in ALWAYS.items():
        require(config, key, accepted, default=accepted[0])
    width = config.get("d_model", 256)
    levels = len(numbers(config, "encoder_in_channels", (512, 1024, 2048)))
    require(config, "encoder_hidden_dim", (width,), default=256)
    require(config, "num_feature_levels", (levels,), default=3)
    if list(numbers(config, "encode_proj_layers", [2])) != [levels - 1]:
        refuse("encode_proj_layers", config.get("encode_proj_layers"), f"[{levels - 1}], the coarsest level")
    heads = config.get("encoder_attention_heads", 8)
    require(config, "decoder_attention_heads", (heads,), default=8)
    for key, default in (("encoder_activation_function", "gelu"), ("decoder_activation_function", "relu")):
        require(config, key, tuple(ACTIVATIONS), default=default)
    values = {
        "detector.width": width,
        "detector.heads": heads,
        "backbone.name": _backbone(config),
        "backbone.norm": "frozen" if config.get("freeze_backbone_batch_norms", True) else "batch",
        "backbone.levels": list(range(-levels, 0)),
        "position.temperature": number(config, "positional_encoding_temperature", 10000),
        "encoder.layers": config.get("encoder_layers", 1),
        "encoder.feedforward": config.get("encoder_ffn_dim", 1024),
        "encoder.activation": config.get("encoder_activation_function", "gelu"),
        "encoder.expansion": number(config, "hidden_expansion", 1.0),
        "queries.count": count(config, "num_queries", 300),
        "decoder.layers": config.get("decoder_layers", 6),
        "decoder.feedforward": config.get("decoder_ffn_dim", 1024),
        "decoder.activation": config.get("decoder_activation_function", "relu"),
        "decoder.cross_attention.points": config.get("decoder_n_points", 4),
    }
    if not config.get("num_denoising", 100):
        values["blocks.denoising.type"] = "none"
    settings = [Setting(key, value, FILE) for key, value in values.items()]
    return [*raw_pixels(), *settings, *all_kept(values["queries.count"])]


def rt_detr_recipe(config: Config) -> str:
    """The shipped recipe that is nearest."""
    name = f"rt_detr_{_backbone(config).replace('resnet', 'r').rstrip('vd')}_72ep"
    return name if name in recipe_names() else "base/rt_detr"


def _backbone(config: Config) -> str:
    inner = table(config, "backbone_config") or {"model_type": "rt_detr_resnet"}
    require(inner, "model_type", ("rt_detr_resnet",), where="backbone_config.")
    name = resnet_of(inner, RESNETS)
    for key, value in {"embedding_size": 64, "hidden_act": "relu", "downsample_in_first_stage": False}.items():
        require(inner, key, (value,), default=value, where="backbone_config.")
    require(inner, "downsample_in_bottleneck", (False,), default=False, where="backbone_config.")
    return name
