"""How often do the intervals of `detrkit compare` hold a difference that is known? Simulated seeds and images.

    python benchmarks/interval_coverage.py

The first table draws differences as means over 60 images, with deviations of the seed, of the images (shared by all
seeds) and of each seed on each image: once 1, 0, 0, once 0.3, 2, 2, once 0.1, 5, 0. Beside ours stands the bootstrap
over seeds and images with its percentiles. The second draws images with detections of two detectors; the true
difference in AP50 is that of 100 000 images.
"""

from __future__ import annotations

import numpy as np

from detrkit.compare.intervals import Arm, Interval, estimate
from detrkit.evaluation.ranking import Ranking
from detrkit.evaluation.resampling import resamples

TRIES, RESAMPLES, IMAGES = 1000, 200, 60


def percentiles(arm: Arm, rng: np.random.Generator) -> Interval:
    """The bootstrap over seeds and images: seeds drawn with replacement in each resample of the images."""
    assert arm.resampled is not None
    drawn = rng.integers(len(arm.values), size=arm.resampled.shape)
    low, high = np.quantile(np.take_along_axis(arm.resampled, drawn, axis=1).mean(axis=1), [0.025, 0.975])
    return Interval(float(low), float(high))


def of_means(rng: np.random.Generator) -> None:
    print("share of 95 % intervals that hold the truth: ours over seeds and images, seeds, images; two-level bootstrap")
    for seeds in (2, 3, 5):
        for of_seed, of_image, alone in ((1, 0, 0), (0.3, 2, 2), (0.1, 5, 0)):
            held = np.zeros(4)
            for _ in range(TRIES):
                each = 1 + of_seed * rng.standard_normal((seeds, 1)) + of_image * rng.standard_normal(IMAGES)
                each = each + alone * rng.standard_normal((seeds, IMAGES))
                weights = rng.multinomial(IMAGES, np.full(IMAGES, 1 / IMAGES), size=RESAMPLES)
                arm = Arm(each.mean(axis=1), weights @ each.T / IMAGES)
                found = estimate([arm], images=IMAGES)
                ours = (found.over_both, found.over_seeds, found.over_images)
                held += [one is not None and one.low <= 1 <= one.high for one in (*ours, percentiles(arm, rng))]
            told = "  ".join(f"{share:.3f}" for share in held / TRIES)
            print(f"{seeds} seeds, deviations {of_seed}, {of_image}, {alone}:  {told}")


def images_of(rng: np.random.Generator, count: int) -> tuple[np.ndarray, list[tuple[np.ndarray, ...]]]:
    """Truths of each image, and of a better and a worse detector the detections: images, scores, right."""
    truths = rng.integers(1, 7, size=count)
    hard = rng.uniform(0, 0.5, size=count)  # what both find hard
    of_truths = np.repeat(np.arange(count), truths)
    found = []
    for skill in (0.9, 0.85):
        hit = of_truths[rng.random(len(of_truths)) < skill - hard[of_truths]]
        wrong = np.repeat(np.arange(count), rng.poisson(4 * hard + 1 - skill))
        scores = np.concatenate([rng.beta(4, 2, len(hit)), rng.beta(2, 4, len(wrong))])
        found.append((np.concatenate([hit, wrong]), scores, np.arange(len(hit) + len(wrong)) < len(hit)))
    return truths, found


def precisions(truths: np.ndarray, found: list[tuple[np.ndarray, ...]], weights: np.ndarray) -> np.ndarray:
    """[R] the better detector's AP less the worse one's."""
    better, worse = (Ranking.of(s, right, at, truths).average_precision(weights) for at, s, right in found)
    return better - worse


def of_precision(rng: np.random.Generator) -> None:
    whole = precisions(*images_of(rng, 100_000), np.ones((1, 100_000), dtype=np.int64))[0]
    print(f"\nAP50 of two detectors, {100 * whole:.2f} apart: share of intervals over images that hold it")
    for count in (20, 40, 100, 300):
        held = 0
        for number in range(TRIES):
            case = images_of(rng, count)
            value = precisions(*case, np.ones((1, count), dtype=np.int64))
            drawn = precisions(*case, resamples(count, RESAMPLES, number))
            interval = estimate([Arm(value, drawn[:, None])], images=count).over_images
            held += interval is not None and interval.low <= whole <= interval.high
        print(f"{count} images:  {held / TRIES:.3f}")


if __name__ == "__main__":
    generator = np.random.default_rng(0)
    of_means(generator)
    of_precision(generator)
