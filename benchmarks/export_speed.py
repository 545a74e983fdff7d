"""Detection by exported files beside PyTorch, in turn in one process: milliseconds, and how many times eager's speed.

    python benchmarks/export_speed.py                                    # SAP-DETR-R50 and DAB-DETR-R50, 640 x 640
    python benchmarks/export_speed.py dab_detr_r50_50ep --size 800 1066 --rounds 10
    python benchmarks/export_speed.py --threads 1

One image a pass, random weights, on the CPU. Needs onnxruntime and OpenVINO. A row's last two columns are the largest
differences of logits and boxes (shares of the image) from eager PyTorch, in float32.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

import detrkit
from detrkit.compare.costs import for_counting
from detrkit.compare.timing import Ratio, milliseconds, take_turns
from detrkit.data import Category
from detrkit.export.card import Card
from detrkit.export.form import ExportedForm, Form
from detrkit.export.loading import open_exported, open_written
from detrkit.export.writing import SUFFIXES, write
from detrkit.trained import Trained

SYSTEMS = ["sap_detr_r50_50ep", "dab_detr_r50_50ep"]
FORM = Form(pixels="normalised", detections=False)
CPU = torch.device("cpu")
Answer = Callable[[], tuple[Tensor, Tensor]]


def pytorch_and_files(name: str, images: Tensor, folder: Path) -> tuple[dict[str, Answer], dict[str, float]]:
    """What gives (logits, boxes) of the images, by name, and the seconds of each export."""
    recipe, _ = for_counting(detrkit.load_recipe(name))
    torch.manual_seed(0)
    detector = detrkit.build_detector(recipe).eval()
    categories = tuple(Category(label + 1, f"thing {label}") for label in range(91))
    trained = Trained(recipe, detector, None, categories, None, None, None)
    module = ExportedForm(detector, FORM)
    card = Card.of(trained, FORM, module.output_names())
    mask, sizes = torch.zeros_like(images[:, 0], dtype=torch.bool), torch.tensor([list(images.shape[-2:])])

    def eager(one: torch.nn.Module) -> tuple[Tensor, Tensor]:
        output = one(images, mask)
        return output.logits[-1], output.boxes[-1]

    answers: dict[str, Answer] = {
        "PyTorch, eager": partial(eager, detector),
        "PyTorch, `for_inference()`": partial(eager, detector.for_inference()),
    }
    seconds = {}
    for kind in SUFFIXES:
        path, began = folder / f"file{SUFFIXES[kind]}", time.perf_counter()
        write(module, card, path, kind)
        seconds[kind] = time.perf_counter() - began
        for precision in ("fp32", "bf16") if kind == "openvino" else ("fp32",):
            file = open_written(path, card) if kind == "torch-export" else open_exported(path, CPU, precision)

            def run(file=file) -> tuple[Tensor, Tensor]:
                given = file.outputs(images, mask, sizes)
                return given["logits"], given["boxes"]

            answers[f"{kind}, {precision}"] = run
    return answers, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", nargs="*", default=SYSTEMS, help="recipes")
    parser.add_argument("--size", type=int, nargs=2, default=(640, 640), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    for name in given.systems:
        images = torch.randn(1, 3, *given.size, generator=torch.Generator().manual_seed(0))
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
            with torch.inference_mode(False), torch.no_grad():
                answers, seconds = pytorch_and_files(name, images, Path(folder))
            logits, boxes = next(iter(answers.values()))()
            off = {}
            for key, answer in answers.items():
                theirs = answer()
                off[key] = float((theirs[0] - logits).abs().max()), float((theirs[1] - boxes).abs().max())
            runs = {key: partial(milliseconds, answer, CPU) for key, answer in answers.items()}
            times = take_turns(runs, rounds=given.rounds)
        plain = next(iter(times.values()))
        height, width = given.size
        print(
            f"\n{name}, one image of {height} x {width}, {given.threads} threads, torch {torch.__version__}; seconds to"
        )
        print("export: " + ", ".join(f"{kind} {value:.0f}" for kind, value in seconds.items()) + "\n")
        print("| form | ms | times eager | quartiles | logits | boxes |\n| --- " + "| ---: " * 5 + "|")
        for key, each in times.items():
            ratio = Ratio.of(plain, each)
            print(
                f"| {key} | {median(each):.0f} | {ratio.middle:.2f} | {ratio.low:.2f} to {ratio.high:.2f} "
                f"| {off[key][0]:.1e} | {off[key][1]:.1e} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
