"""bfloat16 training of full-size SAP-DETR on shapes at 800 px on a CUDA GPU: images a second and peak memory.

    python benchmarks/gpu_training.py --out benchmarks/results
    python benchmarks/gpu_training.py --recipes sap_detr_r50_50ep dab_detr_r50_50ep --batch 16 --steps 200

Batches are drawn once and kept on the GPU, so that this measures the training step and not the drawing of shapes.
Recipes are timed in one process, in turn, so that their ratio means something.
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from pathlib import Path

import torch

import detrkit
from detrkit.evaluation.evaluate import autocast


def measure(name: str, batch_size: int, steps: int, pixels: int) -> dict:
    device = torch.device("cuda")
    recipe = detrkit.load_recipe(
        name,
        [
            "backbone.pretrained=false",
            "detector.classes=8",
            "data.type=shapes",
            f"data.image_size={pixels}",
            f"data.train_images={4 * batch_size}",
        ],
    )
    torch.manual_seed(0)
    detector, criterion = detrkit.build_detector(recipe).to(device).train(), detrkit.build_criterion(recipe)
    loader = recipe.section("data")().loader(split="train", batch_size=batch_size, epoch=0, seed=0, workers=8)
    batches = [batch.to(device) for batch in loader]
    parameters = [p for p in detector.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=1e-4, fused=True)
    torch.cuda.reset_peak_memory_stats()
    warm_up, losses = 20, []
    for step in range(warm_up + steps):
        if step == warm_up:
            torch.cuda.synchronize()
            start = time.perf_counter()
        batch = batches[step % len(batches)]
        with autocast(device, "bf16"):
            output = detector(batch.images, batch.mask, batch.targets)
        loss = criterion(output, batch.targets)["total"]
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 0.1)
        optimiser.step()
        losses.append(loss.detach())
    torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    curve = torch.stack(losses).tolist()
    return {
        "recipe": name,
        "batch": batch_size,
        "pixels": pixels,
        "steps": steps,
        "images_per_second": round(steps * batch_size / seconds, 1),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
        "loss_first": round(curve[0], 2),
        "loss_last": round(sum(curve[-10:]) / 10, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=["sap_detr_r50_50ep", "dab_detr_r50_50ep"])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--pixels", type=int, default=800)
    parser.add_argument("--out", type=Path, help="folder for a JSON file with the result")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("this measures a CUDA GPU, and there is none")
    result = {
        "date": datetime.date.today().isoformat(),
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "runs": [measure(name, arguments.batch, arguments.steps, arguments.pixels) for name in arguments.recipes],
    }
    print(json.dumps(result, indent=2))
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        gpu = result["gpu"].replace(" ", "-").lower()
        path = arguments.out / f"gpu_training_{gpu}_{result['date']}.json"
        path.write_text(json.dumps(result, indent=2) + "\n")
        print("written to", path)


if __name__ == "__main__":
    main()
