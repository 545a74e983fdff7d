"""Detection whose convolutions add and activate in one pass, from weights cast once, or go in Winograd's tiles.

    OMP_NUM_THREADS=1 python benchmarks/one_pass.py sap_detr_r50_50ep
    python benchmarks/one_pass.py dab_detr_r50_50ep --size 800x1066 --threads 2 --precision bf16

All are a detector's `for_inference()`, norms in the weights, the last layer's heads alone. What a tensor is cast to
another format is counted, in one detection.
"""

from __future__ import annotations

import argparse
from functools import partial
from statistics import median
from unittest.mock import patch

import torch
from torch.profiler import profile

import detrkit
from detrkit import one_pass, winograd
from detrkit.backbones import timm_backbone
from detrkit.c_memory import keep_freed_memory
from detrkit.compare.timing import Ratio, milliseconds, take_turns
from detrkit.evaluation.evaluate import autocast

CPU = torch.device("cpu")
NEITHER, ONE_PASS, CAST, TILES = "neither", "one pass", "and cast once", "and in tiles"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--size", default="640x640", metavar="HxW")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=("fp32", "bf16"), action="append")
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    height, width = (int(side) for side in arguments.size.split("x"))
    values = ["backbone.pretrained=false", "detector.classes=80", *arguments.overrides]
    detector = detrkit.build_detector(detrkit.load_recipe(arguments.recipe, values))
    images = torch.randn(1, 3, height, width)
    with patch("detrkit.system.keep_casts", lambda _: None):
        joined = detector.for_inference()
        as_it_is = {"in_one_pass": lambda body: body}
        with patch.multiple(timm_backbone, **as_it_is), patch.multiple(one_pass, **as_it_is):  # an encoder's, too
            neither = detector.for_inference()
    both = detector.for_inference()
    forms = {NEITHER: neither, ONE_PASS: joined, CAST: both, TILES: detector.for_inference()}

    def detect(name: str) -> object:
        with patch.object(winograd, "gains", winograd.gains if name == TILES else lambda *_: False):
            return forms[name].detect(images, None, [[height, width]])

    print(f"{arguments.recipe}, {height} x {width}, torch {torch.__version__}, {arguments.threads} threads")
    for precision in arguments.precision or ("fp32", "bf16"):
        with torch.inference_mode(), autocast(CPU, precision):
            runs = {name: partial(detect, name) for name in forms if name != TILES or precision == "fp32"}
            timed = {name: partial(milliseconds, run, CPU) for name, run in runs.items()}
            times = take_turns(timed, rounds=arguments.rounds, warmup=2)
            for name, run in runs.items():
                with profile() as seen:
                    run()
                casts = sum(event.count for event in seen.key_averages() if event.key == "aten::_to_copy")
                ratio = Ratio.of(times[NEITHER], times[name])
                print(
                    f"  {precision}  {name:13} {median(times[name]):6.0f} ms, {ratio.middle:.2f} times as fast "
                    f"(quartiles {ratio.low:.2f} to {ratio.high:.2f}), {casts} casts",
                    flush=True,
                )


if __name__ == "__main__":
    main()
