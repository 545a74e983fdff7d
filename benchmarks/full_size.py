"""One training step and one detection of a full-size detector at 800 x 1066: does it run, and what does it take?

python benchmarks/full_size.py                                # SAP-DETR, ResNet-50
python benchmarks/full_size.py dab_detr_r50_50ep --device cuda
"""

from __future__ import annotations

import argparse
import resource
import time

import torch

import detrkit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="sap_detr_r50_50ep")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--width", type=int, default=1066)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    torch.manual_seed(0)

    recipe = detrkit.load_recipe(arguments.recipe, ["backbone.pretrained=false", "detector.classes=91"])
    detector, criterion = detrkit.build_detector(recipe).to(device), detrkit.build_criterion(recipe)
    images = torch.randn(1, 3, arguments.height, arguments.width, device=device)
    targets = [
        {
            "labels": torch.tensor([1, 17, 44], device=device),
            "boxes": torch.tensor([[0.5, 0.5, 0.4, 0.6], [0.2, 0.3, 0.2, 0.2], [0.7, 0.8, 0.1, 0.1]], device=device),
        }
    ]
    options = recipe.section("train")
    optimiser = torch.optim.AdamW(
        (p for p in detector.parameters() if p.requires_grad),
        lr=options.learning_rate,
        weight_decay=options.weight_decay,
    )
    start = time.perf_counter()
    losses = criterion(detector.train()(images, None, targets), targets)
    losses["total"].backward()
    norm = torch.nn.utils.clip_grad_norm_(detector.parameters(), options.clip_norm)
    optimiser.step()
    print(f"{recipe.name} at {arguments.height} x {arguments.width} on {device}, torch {torch.__version__}")
    print(f"training step  total {losses['total'].item():.3f}  gradient norm {norm.item():.1f}", end="  ")
    print(f"{time.perf_counter() - start:.1f} s")

    start = time.perf_counter()
    found = detector.eval().detect(images, None, torch.tensor([[arguments.height, arguments.width]], device=device))
    scores = found[0]["scores"]
    best = f", best score {scores[0].item():.3f}" if len(scores) else ""
    print(f"detection      {len(scores)} boxes{best}", end="  ")
    print(f"{time.perf_counter() - start:.1f} s")
    if device.type == "cuda":
        print(f"peak memory {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")
    else:
        print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB (whole process)")


if __name__ == "__main__":
    main()
