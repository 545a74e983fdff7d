"""Every system of Tables 1 and 2 as an exported file beside PyTorch, at a batch and size other than the traced ones.

python benchmarks/exports.py --out benchmarks/results/exports_DATE.md           # ONNX, by onnxruntime
python benchmarks/exports.py --format openvino dab_detr_r50_50ep               # one system

Small detectors: the backbone is timm's test_resnet, one encoder layer, two decoder layers, D = 32, random weights. What
differs between two systems is all there; the numbers of a whole ResNet-50 are a little larger, its export takes longer.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from detrkit.export.check import NONE, compare
from detrkit.export.form import Form
from detrkit.export.loading import open_written
from detrkit.export.writing import SUFFIXES, write
from tests.export.systems import SYSTEMS, form_and_card, images, trained

BATCHES = [[(170, 300), (77, 200), (170, 130)], [(330, 140)]]  # traced: two of 416 x 544
HEAD = (
    "| system | seconds | MB | logits | boxes | detections: scores | boxes | alone |\n" + "| --- " + "| ---: " * 7 + "|"
)


def row(name: str, kind: str, folder: Path) -> str:
    """One system's line: the time of the export, and the largest differences over both batches."""
    one, path = trained(name), folder / f"file{SUFFIXES[kind]}"
    module, card = form_and_card(one, Form(pixels="normalised", detections=False))
    began = time.perf_counter()
    write(module, card, path, kind)
    seconds = time.perf_counter() - began
    exported = open_written(path, card)
    size = sum(file.stat().st_size for file in folder.glob("file.*")) / 1e6
    logits = boxes = 0.0
    found = NONE
    for shapes in BATCHES:
        batch, mask, sizes = images(shapes)
        with torch.no_grad():
            output = one.detector(batch, mask)
            ours = one.detector.detect(batch, mask, sizes)
        given = exported.outputs(batch, mask, sizes)
        logits = max(logits, float((given["logits"] - output.logits[-1]).abs().max()))
        boxes = max(boxes, float((given["boxes"] - output.boxes[-1]).abs().max()))
        for mine, theirs, shape in zip(ours, exported.detect(batch, mask, sizes), sizes.tolist(), strict=True):
            found |= compare(mine, theirs, (shape[0], shape[1]), 1e-4)
    return (
        f"| {name} | {seconds:.0f} | {size:.1f} | {logits:.1e} | {boxes:.1e} | {found.scores:.1e} | {found.boxes:.1e} "
        f"| {found.unpaired} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", nargs="*", default=list(SYSTEMS))
    parser.add_argument("--format", choices=list(SUFFIXES), default="onnx")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    lines = [HEAD]
    print(HEAD, flush=True)
    for name in options.systems:
        with tempfile.TemporaryDirectory() as folder:
            lines.append(row(name, options.format, Path(folder)))
        print(lines[-1], flush=True)
        if options.out is not None:
            options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
