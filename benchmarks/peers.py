"""Our detectors beside the same ones of other packages: detection and a training step, same images, in turns.

    pip install transformers
    python benchmarks/peers.py                                   # all, 640 x 640
    python benchmarks/peers.py dab detr --size 800x1066 --rounds 20 --precision fp32
    python benchmarks/peers.py dab sap --precision fp32 --also-bf16
    python benchmarks/peers.py faster_rcnn --out peers.json

`transformers` has DETR, Conditional, DAB and Deformable DETR, torchvision Faster R-CNN; all with ResNet-50, fresh
weights, frozen norms, the same dropout and losses of all layers. Detection is ours to the boxes, and `transformers`' to
the raw output; its matching and losses are part of its forward pass. A ratio is the peer's time over ours. SAP-DETR has
no peer, and stands beside our DAB-DETR. All keep the memory that they free, as in `detrkit train`.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import detrkit
from detrkit.boxes import center_to_corners
from detrkit.c_memory import keep_freed_memory
from detrkit.compare.benchmark import Stopwatch, Subject, measure, of_recipe
from detrkit.compare.benchmark_sheets import benchmark_record, benchmark_sheets
from detrkit.compare.files import to_markdown
from detrkit.engine.optimiser import clip_and_step
from detrkit.evaluation.evaluate import autocast
from detrkit.evaluation.precision import choose_device, choose_precision

CLASSES = 91
OURS = {
    "detr": "detr_r50_500ep",
    "conditional": "conditional_detr_r50_50ep",
    "dab": "dab_detr_r50_50ep",
    "deformable": "deformable_detr_4scale_r50_50ep",
    "faster_rcnn": "faster_rcnn_r50_108ep",
    "sap": "sap_detr_r50_50ep",
}
THEIRS = {"detr": "Detr", "conditional": "ConditionalDetr", "dab": "DabDetr", "deformable": "DeformableDetr"}


def of_transformers(name: str, dropout: float) -> tuple[nn.Module, Callable[[Tensor], Any], Callable[..., Tensor]]:
    """A model that drops out where ours does, what detects and what gives the loss."""
    import transformers

    # Theirs is 0.1 for outputs alone unless told: more than DAB-DETR's official code has, and less than DETR's.
    drops = {f"{where}dropout": dropout for where in ("", "attention_", "activation_")}
    config = getattr(transformers, f"{THEIRS[name]}Config")(num_labels=CLASSES, auxiliary_loss=True, **drops)
    model = getattr(transformers, f"{THEIRS[name]}ForObjectDetection")(config)

    def loss(images: Tensor, targets: list[dict[str, Tensor]]) -> Tensor:
        labels = [{"class_labels": t["labels"], "boxes": t["boxes"]} for t in targets]
        return model.train()(pixel_values=images, labels=labels).loss

    return model, lambda images: model.eval()(pixel_values=images), loss


def of_torchvision(height: int, width: int) -> tuple[nn.Module, Callable[[Tensor], Any], Callable[..., Tensor]]:
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.ops.misc import FrozenBatchNorm2d

    body = resnet_fpn_backbone(backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3)
    model = FasterRCNN(body, CLASSES, min_size=min(height, width), max_size=max(height, width))

    def loss(images: Tensor, targets: list[dict[str, Tensor]]) -> Tensor:
        size = torch.tensor([width, height], device=images.device).repeat(2)
        absolute = [{"labels": t["labels"], "boxes": center_to_corners(t["boxes"]) * size} for t in targets]
        return sum(model.train()(list(images), absolute).values())

    return model, lambda images: model.eval()(list(images)), loss


def peer(name: str, ours: Any, device: torch.device, precision: str, height: int, width: int) -> Subject:
    if name == "sap":
        dab = detrkit.load_recipe(OURS["dab"], [f"detector.classes={CLASSES}"])
        return of_recipe(dab, device=device, precision=precision, height=height, width=width)
    if name == "faster_rcnn":
        model, detect, loss = of_torchvision(height, width)
    else:
        model, detect, loss = of_transformers(name, ours.get("decoder.dropout"))
    model.to(device)
    options = ours.section("train")
    optimiser = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-4, fused=True)

    def step(images: Tensor, targets: list[dict[str, Tensor]], watch: Stopwatch) -> None:
        with autocast(device, precision):
            total = loss(images, targets)
        watch.lap("forward")
        total.backward()
        watch.lap("backward")
        clip_and_step(optimiser, options.clip_norm)
        watch.lap("optimiser")

    return Subject(f"{name} of {'torchvision' if name == 'faster_rcnn' else 'transformers'}", detect, step, CLASSES)


def in_bf16(subject: Subject, device: torch.device) -> Subject:
    """The same, detecting in bf16 whatever the others do; its step was made so."""

    def detect(images: Tensor) -> Any:
        with autocast(device, "bf16"):
            return subject.detect(images)

    return replace(subject, name=f"{subject.name} in bf16", detect=detect)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[[], *OURS], help="which; all if none is named")
    parser.add_argument("--size", default="640x640")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--step-batch", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", help="of both: auto, fp32, bf16 or fp16")
    parser.add_argument("--also-bf16", action="store_true", help="ours in bf16 too, in turn with the others")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    keep_freed_memory()
    height, width = (int(side) for side in arguments.size.split("x"))
    device = choose_device(arguments.device)
    precision = choose_precision(arguments.precision, device)
    how = {"device": device, "precision": precision, "height": height, "width": width}
    logging.getLogger("transformers").setLevel(logging.ERROR)
    records = {}
    for name in arguments.names or OURS:
        torch.manual_seed(0)
        recipe = detrkit.load_recipe(OURS[name], [f"detector.classes={CLASSES}"])
        subjects = [peer(name, recipe, **how), of_recipe(recipe, **how)]
        if arguments.also_bf16:
            subjects.append(in_bf16(of_recipe(recipe, **{**how, "precision": "bf16"}), device))
        found = measure(
            subjects, **how, batches=arguments.batch, step_batch=arguments.step_batch, rounds=arguments.rounds
        )
        print(to_markdown(benchmark_sheets(found)), flush=True)
        records[name] = benchmark_record(found)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(records, indent=1))


if __name__ == "__main__":
    main()
