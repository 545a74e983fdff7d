"""Intervals and numbers of seeds, against scipy's tests and simulated runs whose truth is known."""

import math

import numpy as np
import pytest
from scipy import stats

from detrkit.compare.intervals import Arm, Interval, estimate

ROW, BASE = np.array([30.1, 30.9, 31.4]), np.array([29.0, 30.2, 30.0])


def bounds(interval):
    return (interval.low, interval.high)


def test_pairs_of_seeds_have_the_paired_t_tests_interval():
    found = estimate([Arm(ROW - BASE)])
    assert found.value == pytest.approx(3.2 / 3)
    assert found.by_seed == pytest.approx((1.1, 0.7, 1.4))
    assert bounds(found.over_seeds) == pytest.approx(tuple(stats.ttest_rel(ROW, BASE).confidence_interval()))
    assert (found.over, found.over_images, found.over_both) == ("seeds", None, None)
    assert found.is_sure is bool(stats.ttest_rel(ROW, BASE).pvalue < 0.05)


def test_other_seeds_have_welchs_interval():
    other = np.array([29.0, 30.5, 30.0, 28.1])
    found = estimate([Arm(ROW), Arm(-other)])
    welch = stats.ttest_ind(ROW, other, equal_var=False)
    assert bounds(found.over_seeds) == pytest.approx(tuple(welch.confidence_interval()))
    assert found.by_seed == ()
    assert found.is_sure is bool(welch.pvalue < 0.05)


def share_found(rng, size, seeds, groups):
    """Of 40,000 simulated experiments with deviation 1, the share whose t test finds the effect at 5 %."""
    draws = [rng.standard_normal((40_000, seeds)) for _ in range(groups)]
    draws[0] += size
    if groups == 1:
        return float((stats.ttest_1samp(draws[0], 0, axis=1).pvalue < 0.05).mean())
    return float((stats.ttest_ind(*draws, axis=1).pvalue < 0.05).mean())


@pytest.mark.parametrize(("size", "groups", "needed"), [(0.5, 1, 34), (0.8, 1, 15), (1.0, 1, 10), (0.8, 2, 26)])
def test_seeds_needed_find_the_difference_four_times_in_five(size, groups, needed):
    values = np.array([-1.0, 0.0, 1.0])  # deviation 1
    arms = [Arm(values + size)] if groups == 1 else [Arm(values + size), Arm(-values)]
    assert estimate(arms).seeds_needed == needed
    rng = np.random.default_rng(0)
    assert share_found(rng, size, needed - 1, groups) < 0.8 < share_found(rng, size, needed, groups) + 0.006


def linear(rng, *, seeds, images, value, by_seed, by_image, alone):
    """Differences that are means over images: of a whole, of each seed, of each image, of both at once.

    Gives what `estimate` takes, with the images drawn anew.
    """
    each = value + by_seed * rng.standard_normal(seeds)[:, None] + by_image * rng.standard_normal(images)
    each = each + alone * rng.standard_normal((seeds, images))
    weights = rng.multinomial(images, np.full(images, 1 / images), size=200)
    return Arm(each.mean(axis=1), weights @ each.T / images)


@pytest.mark.parametrize(
    ("seeds", "by_seed", "by_image", "alone"),
    [(3, 1, 0, 0), (3, 0.1, 5, 0), (3, 0.3, 2, 2), (2, 0, 0, 5), (2, 0.5, 4, 1)],
)
def test_the_truth_lies_in_95_of_100_intervals(seeds, by_seed, by_image, alone):
    rng = np.random.default_rng(7)
    inside = 0
    for _ in range(200):
        arm = linear(rng, seeds=seeds, images=60, value=1.0, by_seed=by_seed, by_image=by_image, alone=alone)
        interval = estimate([arm], images=60).over_both
        inside += interval.low <= 1.0 <= interval.high
    # 0.95 of 200 is 190 with a deviation of 3.1; two variances together are held too wide rather than too narrow.
    assert inside >= 190 - 4 * 3.1
    if not (by_image or alone):
        assert inside <= 190 + 4 * 3.1


def test_over_images_alone_has_the_deviation_of_a_mean():
    rng = np.random.default_rng(3)
    arm = linear(rng, seeds=1, images=400, value=1.0, by_seed=0, by_image=2.0, alone=0)
    found = estimate([arm], images=400)
    assert (found.over, found.over_seeds, found.seeds_needed) == ("images", None, None)
    half = (found.over_images.high - found.over_images.low) / 2
    assert half == pytest.approx(1.96 * 2.0 / 20, rel=0.15)


def test_seeds_do_not_help_where_the_images_are_too_few():
    rng = np.random.default_rng(5)
    arm = linear(rng, seeds=3, images=50, value=0.5, by_seed=0.05, by_image=3.0, alone=0)
    found = estimate([arm], images=50)
    assert estimate([Arm(arm.values)]).seeds_needed < 100
    assert found.seeds_needed == math.inf
    assert not found.is_sure


def test_both_together_are_never_surer_than_one_alone():
    rng = np.random.default_rng(11)
    for _ in range(50):
        found = estimate([linear(rng, seeds=2, images=40, value=0, by_seed=0.2, by_image=1, alone=2)], images=40)
        width = found.over_both.high - found.over_both.low
        assert width >= found.over_images.high - found.over_images.low


def test_where_nothing_varies_nothing_is_claimed():
    assert estimate([Arm(np.array([1.5]))]).interval is None
    alike = estimate([Arm(np.array([1.5, 1.5]))])
    assert (alike.value, alike.interval, alike.seeds_needed, alike.is_sure) == (1.5, None, None, False)
    same = estimate([Arm(np.zeros(3), np.zeros((10, 3)))], images=20)
    assert (same.value, same.interval, same.is_sure) == (0, None, False)


def test_zero_at_the_edge_is_not_excluded():
    assert not Interval(0.0, 1.0).excludes_zero
    assert Interval(-2.0, -0.1).excludes_zero
