"""Detection and training step by `torch.compile` beside eager, on one CPU thread, the two in turn.

    python benchmarks/compiled.py sap_detr_r50_50ep
    python benchmarks/compiled.py deformable_detr_4scale_r50_50ep --size 480 --only detection

A step is forward, losses and backward of one image with seven objects; the first call, which compiles, is told apart.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from torch import nn

import detrkit
from detrkit.compare.timing import Ratio, milliseconds, take_turns

CPU, CLASSES, OBJECTS = torch.device("cpu"), 80, 7


def step(detector: nn.Module, predict: Callable, criterion: Callable, images: torch.Tensor, targets: list) -> None:
    detector.zero_grad(set_to_none=True)
    criterion(predict(images, None, targets), targets)["total"].backward()


def compare(name: str, forms: dict[str, Callable[[], object]], rounds: int) -> None:
    begin = time.perf_counter()
    forms["compiled"]()
    first = time.perf_counter() - begin
    times = take_turns({form: partial(milliseconds, run, CPU) for form, run in forms.items()}, rounds=rounds, warmup=1)
    ratio = Ratio.of(times["eager"], times["compiled"])
    print(
        f"  {name:10} eager {median(times['eager']):7.0f} ms, compiled {median(times['compiled']):7.0f} ms: "
        f"{ratio.middle:.2f} times (quartiles {ratio.low:.2f} to {ratio.high:.2f}), the first {first:.0f} s",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("detection", "step"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    values = ["backbone.pretrained=false", f"detector.classes={CLASSES}", *arguments.overrides]
    recipe = detrkit.load_recipe(arguments.recipe, values)
    detector, criterion = detrkit.build_detector(recipe), detrkit.build_criterion(recipe)
    images = torch.randn(1, 3, arguments.size, arguments.size)
    targets = [{"labels": torch.randint(0, CLASSES, (OBJECTS,)), "boxes": torch.rand(OBJECTS, 4) * 0.4 + 0.3}]
    print(f"{arguments.recipe}, {arguments.size} x {arguments.size}, torch {torch.__version__}")
    if arguments.only != "step":
        detector.eval()
        with torch.no_grad():
            compiled = torch.compile(detector.forward)
            compare(
                "detection",
                {"eager": partial(detector, images), "compiled": partial(compiled, images)},
                arguments.rounds,
            )
    if arguments.only != "detection":
        detector.train()
        forms = {"eager": detector, "compiled": detector.compiled()}
        steps = {form: partial(step, detector, predict, criterion, images, targets) for form, predict in forms.items()}
        compare("step", steps, arguments.rounds)


if __name__ == "__main__":
    main()
