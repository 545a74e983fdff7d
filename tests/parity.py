"""How a reference case becomes a recipe, and official loss names ours."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import detrkit
from detrkit.blocks.denoising import Draws
from detrkit.recipe import Recipe
from detrkit.structures import Output

GOLDEN = Path(os.environ.get("DETRKIT_GOLDEN", Path(__file__).parent / "golden"))
sys.path.insert(0, str(Path(__file__).parent / "golden"))
import golden  # noqa: E402


def _sap_recipe(model: dict, settings: dict) -> Recipe:
    side = math.isqrt(model["queries"])
    grid = [17, 18] if model["queries"] == 306 else [side, side]
    activation = model.get("transformer_activation", "relu")
    terms = ["content", "point", "side"] + (["side_directed_gaussian"] if model["sdg"] else [])
    return detrkit.load_recipe(
        "base/sap_detr",
        [
            *_common(model),
            f"queries.grid={grid}",
            f"queries.content={'memory' if model['newconvinit'] else 'zero'}",
            f"decoder.cross_attention.terms={terms}",
            f"encoder.activation={activation}",
            f"decoder.activation={activation}",
            f"head.offset_sharing={'none' if settings.get('bbox_embed_diff_each_layer', True) else 'all'}",
            f"head.class_sharing={'none' if settings.get('class_embed_diff_each_layer') else 'first_own'}",
        ],
    )


def _dab_recipe(model: dict, settings: dict, *, base: str = "base/dab_detr", own: Sequence[str] = ()) -> Recipe:
    activation = model.get("transformer_activation", "prelu")
    return detrkit.load_recipe(
        base,
        [
            *_common(model),
            *own,
            f"queries.count={model['queries']}",
            f"queries.patterns={model.get('num_patterns', 0)}",
            f"encoder.activation={activation}",
            f"decoder.activation={activation}",
        ],
    )


def _deformable_recipe(model: dict, settings: dict) -> Recipe:
    return detrkit.load_recipe(
        "base/deformable_detr",
        [*_common(model), f"queries.count={model['queries']}", "encoder.dropout=0.0", "decoder.dropout=0.0"],
    )


def _dino_recipe(model: dict, settings: dict) -> Recipe:
    one_stage = ["queries.type=anchor_boxes", "queries.content=learned"]
    return detrkit.load_recipe(
        "base/dino",
        [
            *_common(model),
            *(one_stage if model["two_stage_type"] == "no" else []),
            f"queries.count={model['queries']}",
            f"blocks.denoising.count={settings['dn_number']}",
            f"blocks.denoising.noise.label={settings['dn_label_noise_ratio'] / 2}",
            f"blocks.denoising.noise.box={settings['dn_box_noise_scale']}",
        ],
    )


def _dn_recipe(model: dict, settings: dict) -> Recipe:
    own = [
        f"blocks.denoising.groups={settings['scalar']}",
        f"blocks.denoising.noise.label={settings['label_noise_scale']}",
        f"blocks.denoising.noise.box={settings['box_noise_scale']}",
    ]
    return _dab_recipe(model, settings, base="base/dn_detr", own=own)


def _anchor_recipe(model: dict, settings: dict) -> Recipe:
    counts = {"points": model["num_query_position"], "patterns": model["num_query_pattern"]}
    return detrkit.load_recipe(
        "base/anchor_detr", [*_common(model), *(f"queries.{name}={count}" for name, count in counts.items())]
    )


def _dense(base: str, *extra: str):
    """Recipes of the systems that only differ in their base and in how many queries they have."""

    def recipe(model: dict, settings: dict) -> Recipe:
        own = [f"queries.count={model['queries']}", "encoder.dropout=0.0", "decoder.dropout=0.0", *extra]
        return detrkit.load_recipe(f"base/{base}", [*_common(model), *own])

    return recipe


def _common(model: dict) -> list[str]:
    return [
        f"backbone.name={model['backbone']}",
        "backbone.pretrained=false",
        f"backbone.dilated={str(model.get('dc5', False)).lower()}",
        f"encoder.layers={model['encoder_layers']}",
        f"decoder.layers={model['decoder_layers']}",
        f"detector.classes={model['classes']}",
    ]


RECIPES = {
    "sap_detr": _sap_recipe,
    "dab_detr": _dab_recipe,
    "dn_detr": _dn_recipe,
    "deformable_detr": _deformable_recipe,
    "dino": _dino_recipe,
    "detr": _dense("detr"),
    "conditional_detr": _dense("conditional_detr"),
    "anchor_detr": _anchor_recipe,
    "smca_detr": _dense("smca_detr"),
    "sam_detr": lambda model, settings: _dense("sam_detr_smca" if model["smca"] else "sam_detr")(model, settings),
}
LOSSES = {
    "loss_ce": "class",
    "loss_bbox": "box",
    "loss_giou": "giou",
    "loss_ce_obj": "objectness",
    "loss_inner": "inner",
    "class_error": "class_error",
    **{f"loss_{term}_interm": f"encoder/{ours}" for term, ours in (("ce", "class"), ("bbox", "box"), ("giou", "giou"))},
    **{f"loss_{term}_dn": f"denoising/{ours}" for term, ours in (("ce", "class"), ("bbox", "box"), ("giou", "giou"))},
    "tgt_loss_ce": "denoising/class",
    "tgt_loss_bbox": "denoising/box",
    "tgt_loss_giou": "denoising/giou",
}
"""Official loss names without their layer; other official entries are logged numbers that nothing trains on."""


def cases() -> list[Path]:
    """Every case folder below `GOLDEN` whose method has a recipe."""
    found = sorted(path.parent for path in GOLDEN.rglob("case.json"))
    return [path for path in found if golden.load(path).meta["method"] in RECIPES]


class Run:
    """A reference case, run through the public interface."""

    def __init__(self, path: Path, dtype: torch.dtype = torch.float32):
        self.case = golden.load(path)
        meta = self.case.meta
        self.recipe = RECIPES[meta["method"]](meta["model"], meta.get("settings", {}))
        self.official = self.case.weights()
        self.conversion = detrkit.zoo.match(self.official, self.recipe)
        self.detector = detrkit.build_detector(self.recipe).to(dtype)
        self.detector.load_state_dict(detrkit.zoo.convert(self.official, self.recipe))
        self.criterion = detrkit.build_criterion(self.recipe)
        self.images, self.mask = pad(self.case.images())
        self.images = self.images.to(dtype)
        self.targets = self.case.targets()
        self.sizes = torch.tensor(meta["original_sizes"])
        self.denoising = dict(self.detector.blocks).get("denoising")
        if self.denoising is not None:
            draws = stored_draws(self.case.tensors)
            self.denoising.draw = lambda entries: draws

    def counted(self) -> dict[str, int]:
        """How many numbers the official model has and trains, by its own list: frozen norms are no parameters there."""
        entries = json.loads((self.case.path / "weights.json").read_text())
        sizes = {e["name"]: math.prod(e["shape"]) for e in entries if e["rule"] != "alias"}
        norm = re.compile(r"backbone\..*(\.bn\d\.|\.downsample\.1\.)")
        return {
            "all": sum(size for name, size in sizes.items() if not norm.search(name)),
            "trainable": sum(sizes[name] for name in self.case.meta["expected_grad_norms"]),
        }

    def predict(self) -> Output:
        """Predictions; `hidden` then holds every decoder layer's own output."""
        self.hidden: list[torch.Tensor] = []
        hooks = [x.register_forward_hook(lambda *x: self.hidden.append(x[-1][0])) for x in self.detector.decoder.layers]
        with torch.no_grad():
            output = self.detector.eval()(self.images, self.mask)
        for hook in hooks:
            hook.remove()
        return output

    def losses_and_gradients(self) -> tuple[dict[str, float], dict[str, float | None]]:
        """All losses, and the gradient norm of every trained parameter by our names (None: no gradient)."""
        losses = self.criterion(self.detector.train()(self.images, self.mask, self.targets), self.targets)
        losses["total"].backward()
        norms = {
            name: None if p.grad is None else float(p.grad.double().norm())
            for name, p in self.detector.named_parameters()
        }
        return {name: value.item() for name, value in losses.items()}, norms


def stored_draws(tensors: dict[str, torch.Tensor]) -> Draws:
    """The random numbers that a case with denoising was made with."""
    noise = {name.removeprefix("input/noise/"): t for name, t in tensors.items() if name.startswith("input/noise/")}
    boxes = noise["box_part"] if "box_part" in noise else noise["box_uniform"]
    return Draws(
        flip=noise["label_uniform"],
        labels=noise["label_new"],
        boxes=boxes,
        place=torch.zeros(len(boxes), 2),
        signs=noise.get("box_sign"),
    )


def pad(images: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [3, H, W] at the top left of a zero canvas, and the mask that is True on padding."""
    height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
    batch = torch.zeros(len(images), 3, height, width)
    mask = torch.ones(len(images), height, width, dtype=torch.bool)
    for row, hidden, image in zip(batch, mask, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
        hidden[: image.shape[1], : image.shape[2]] = False
    return batch, mask


def our_loss(official: str, layers: int) -> str | None:
    """Our name of an official loss; None for one that is only logged there."""
    stem, _, layer = official.rpartition("_")
    if layer.isdigit():
        return f"{LOSSES[stem]}.{layer}" if stem in LOSSES else None
    return LOSSES.get(official)
