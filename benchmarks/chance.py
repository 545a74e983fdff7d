"""Does a run detect anything? Its AP50 beside what chance gives: its own detections held against other images' objects.

    python benchmarks/chance.py runs/a runs/b

A detector that has learned only how boxes, classes and scores are spread over a data set gets the same AP50 on the
wrong images as on the right ones. Detections of each image are moved on to the next image, the one after it, and so on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from detrkit.evaluation.coco_stats import coco_stats
from detrkit.evaluation.evaluate import evaluate
from detrkit.trained import open_trained

MOVES = 10


def moved(detections: list[dict], image_ids: list[int], by: int) -> list[dict]:
    """The same detections, each image's given to the image `by` places further on."""
    further = dict(zip(image_ids, image_ids[by:] + image_ids[:by], strict=True))
    return [{**detection, "image_id": further[detection["image_id"]]} for detection in detections]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    print(f"{'run':<50}{'AP50 %':>10}   by chance, {MOVES} times: mean, most")
    for run in parser.parse_args().runs:
        trained = open_trained(str(run), (), which="last")
        size = trained.recipe.section("evaluate").batch_size
        found = evaluate(trained.detector, trained.source, batch_size=size, device="cpu", workers=0)
        truth = trained.source.val.ground_truth()
        ids = sorted(truth.getImgIds())
        chance = [100 * coco_stats(truth, moved(found.detections, ids, by)).stats["AP50"] for by in range(1, MOVES + 1)]
        own = 100 * found.stats["AP50"]
        print(f"{run.name:<50}{own:>10.3f}   {sum(chance) / MOVES:.3f}, {max(chance):.3f}", flush=True)


if __name__ == "__main__":
    main()
