"""Runs against the baseline by seed and by image: whose detections are used, and which differences come of them."""

import json

import numpy as np
import pytest
from scipy import stats

from detrkit.compare import detections
from detrkit.compare.comparison import chosen_runs, compare, equal_epoch
from detrkit.compare.detections import ImageScores, checkpoint_of, find_detections, score_runs, told_of
from detrkit.compare.paired import RunScores, pair
from detrkit.compare.sheets import make_sheets
from detrkit.compare.targets import gather_rows
from detrkit.errors import UserError
from detrkit.evaluation.coco_stats import coco_stats
from detrkit.evaluation.errors import KINDS, judge
from detrkit.evaluation.resampling import resamples
from detrkit.runs.history import read_run

from ..output.test_resampling import copied

FEW = 200


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch):
    monkeypatch.setattr("detrkit.compare.detections.RESAMPLES", FEW)


def rows_of(folder):
    return gather_rows([str(folder)], (), runs=folder / "none")


def scored(rows):
    return score_runs([one for row in rows for one in chosen_runs(row, equal_epoch(rows))])


def compared(folder, baseline):
    rows = rows_of(folder)
    images, _ = scored(rows)
    return {m.row.name: m for m in compare(rows, baseline=baseline, images=images).rows}


def of_seeds(values, first=0):
    return [RunScores(seed, {"AP": value}) for seed, value in enumerate(values, start=first)]


def test_common_seeds_are_paired_and_the_others_left_out():
    found = pair(of_seeds([30, 31, 33, 90]), of_seeds([28, 30, 29]))
    ap = found.differences["AP"]
    assert (found.seeds, found.counts, ap.by_seed) == ((0, 1, 2), (3, 3), (2, 1, 4))
    expected = stats.ttest_rel([30, 31, 33], [28, 30, 29]).confidence_interval()
    assert (ap.over_seeds.low, ap.over_seeds.high) == pytest.approx(tuple(expected))


def test_rows_without_common_seeds_are_compared_as_independent():
    found = pair(of_seeds([30, 31, 33], first=5), of_seeds([28, 30]))
    ap = found.differences["AP"]
    assert (found.seeds, found.counts, ap.by_seed) == ((), (3, 2), ())
    expected = stats.ttest_ind([30, 31, 33], [28, 30], equal_var=False).confidence_interval()
    assert (ap.over_seeds.low, ap.over_seeds.high) == pytest.approx(tuple(expected))


def test_runs_of_one_seed_count_once():
    twice = [*of_seeds([30, 31, 33]), RunScores(2, {"AP": 35})]
    found = pair(twice, of_seeds([28, 30, 29])).differences["AP"]
    assert found.by_seed == (2, 1, 5)
    assert pair([], of_seeds([28])) is None


def test_a_number_that_one_run_has_not_is_not_compared():
    row = [RunScores(0, {"AP": 30, "APS": 10}), RunScores(1, {"AP": 31})]
    assert list(pair(row, of_seeds([28, 30])).differences) == ["AP"]


def test_detections_give_differences_by_image(tmp_path, make_found):
    for seed in range(3):
        make_found(tmp_path / f"good-seed{seed}", "quickstart", noise=0.08, seed=seed)
        make_found(tmp_path / f"bad-seed{seed}", "quickstart_dab", noise=0.2, seed=seed)
    rows = compared(tmp_path, "bad")
    assert rows["bad"].paired is None
    paired = rows["good"].paired
    ap = paired.differences["AP"]
    assert list(paired.differences) == ["AP", "AP50", "AP75", "APS", "APM", *KINDS]
    assert ap.value == pytest.approx(rows["good"].difference["equal"], abs=1e-9)  # pycocotools' numbers of the records
    assert (ap.over, ap.is_sure) == ("seeds and images", True)
    assert ap.over_both.low < min(ap.over_images.low, ap.over_seeds.low)
    assert paired.differences["localisation"].value < 0
    found = json.loads((tmp_path / "good-seed1" / "detections.json").read_text())
    truth = read_run(tmp_path / "good-seed1").recipe.section("data")().val.ground_truth()
    assert rows["good"].errors["missed"].values[1] == pytest.approx(100 * judge(truth, found).costs()["missed"])


def test_one_seed_has_the_interval_over_images_alone(tmp_path, make_found):
    runs = [make_found(tmp_path / "good-seed0", "quickstart", noise=0.08)]
    runs += [make_found(tmp_path / "bad-seed0", "quickstart_dab", noise=0.2)]
    images, _ = scored(rows_of(tmp_path))
    ap = compared(tmp_path, "bad")["good"].paired.differences["AP"]
    assert (ap.over, ap.over_seeds, ap.over_both) == ("images", None, None)
    good, bad = (images[run].resampled["AP"] for run in runs)
    half = stats.t.ppf(0.975, 39) * np.std(good - bad, ddof=1)
    assert (ap.over_images.high - ap.over_images.low) / 2 == pytest.approx(half)
    truth = read_run(runs[0]).recipe.section("data")().val.ground_truth()
    times = resamples(40, FEW, detections.SEED)[7]  # the same draw for both
    for run, values in zip(runs, (good, bad), strict=True):
        drawn = copied(truth, json.loads((run / "detections.json").read_text()), times)
        assert values[7] == pytest.approx(100 * coco_stats(*drawn).stats["AP"], abs=1e-7)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"step": 20}, "the detections that are kept are of step 20, not of step 40 (epoch 4)"),
        ({"split": "train"}, "not of the validation split"),
        ({"overrides": ["detect.count=5"]}, "of other values (detect.count=5)"),
        ({"data": {"type": "shapes"}}, "of other data than the run's"),
    ],
)
def test_detections_of_something_else_are_not_used(tmp_path, make_found, change, reason):
    run = make_found(tmp_path / "x", "quickstart", noise=0.1)
    path = run / "evaluation.json"
    assert find_detections(read_run(run), read_run(run).evaluations[-1]) == run
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    images, [lacking] = scored(rows_of(tmp_path))
    assert images == {}
    assert reason in lacking.reason
    assert lacking.which is None


def test_detections_of_other_weights_are_known_by_their_ap(tmp_path, make_found):
    run = make_found(tmp_path / "x", "quickstart", noise=0.1)
    other = make_found(tmp_path / "y", "quickstart", noise=0.2, overrides=["decoder.layers=2"])
    (run / "detections.json").write_bytes((other / "detections.json").read_bytes())
    images, [lacking] = scored(rows_of(tmp_path))
    assert list(images) == [other]
    assert "detections.json has AP" in lacking.reason


@pytest.mark.parametrize("content", ["{}", "[", '[{"image_id": 1}]', '[{"image_id": 77, "category_id": 1}]'])
def test_damaged_detections_are_told(tmp_path, make_found, content):
    run = make_found(tmp_path / "x", "quickstart", noise=0.1)
    (run / "detections.json").write_text(content)
    images, [lacking] = scored(rows_of(tmp_path))
    assert images == {}
    [told] = told_of([lacking])
    assert told.startswith("Not by image, ")


def test_runs_on_other_images_are_not_compared_by_image(tmp_path, make_found):
    make_found(tmp_path / "x", "quickstart", noise=0.1)
    make_found(tmp_path / "y", "quickstart_dab", noise=0.2, overrides=["data.seed=1"])
    make_found(tmp_path / "z", "quickstart_dab", noise=0.2, overrides=["data.train_images=99"])  # evaluated on the same
    images, [lacking] = scored(rows_of(tmp_path))
    assert sorted(path.name for path in images) == ["x", "z"]
    assert "its validation images, or what is on them, are not those of the others" in lacking.reason


def test_what_would_make_detections_is_said_once_for_all_runs(tmp_path, make_run, monkeypatch):
    runs = [read_run(make_run(tmp_path / f"x{n}", "quickstart", {4: 10})) for n in range(5)]
    _, lacking = score_runs([(run, run.evaluations[-1]) for run in runs])
    [told] = told_of(lacking)
    assert told.endswith("x2 and 2 more")
    assert "no checkpoint of that epoch is left" in told
    monkeypatch.setattr("detrkit.compare.detections.checkpoint_of", lambda *_: "last")
    _, lacking = score_runs([(run, run.evaluations[-1]) for run in runs[:1]])
    assert "`detrkit evaluate RUN --which last` makes them, and so does --evaluate" in told_of(lacking)[0]


def test_a_checkpoint_is_known_by_its_step(tmp_path, make_run):
    import torch

    from detrkit.runs.checkpoint import save_weights

    run = make_run(tmp_path / "x", "quickstart", {1: 10, 4: 20})
    early, late = read_run(run).evaluations
    for which, step in (("last", 40), ("best", 10)):
        (run / which).mkdir()
        save_weights({"a": torch.zeros(1)}, run / which / "weights.safetensors", {"step": str(step)})
    assert checkpoint_of(read_run(run), late) == "last"
    assert checkpoint_of(read_run(run), early) == "best"
    (run / "last" / "weights.safetensors").write_bytes(b"nonsense")
    assert checkpoint_of(read_run(run), late) is None
    with pytest.raises(UserError, match="no detections are kept"):
        find_detections(read_run(run), late)


def notes_of(rows, images=()):
    comparison = compare(rows, baseline="bad", images=dict(images))
    return {sheet.title: " ".join(sheet.notes) for sheet in make_sheets(comparison, {}, {})}


def runs_of(folder, make_run, good, bad):
    for name, recipe, seeds in (("good", "quickstart", good), ("bad", "quickstart_dab", bad)):
        for seed in seeds:
            make_run(folder / f"{name}-seed{seed}", recipe, {4: 20 + 3 * seed + 5 * (name == "good")}, seed=seed)
    return rows_of(folder)


def test_a_difference_of_fewer_seeds_than_the_means_is_told(tmp_path, make_run):
    """Two tables of one page showed two differences, and nothing said why."""
    notes = notes_of(runs_of(tmp_path / "some", make_run, (1, 2), (0, 1, 2)))
    assert "left out of the difference, not of the means: good." in notes["Differences to bad in AP"]
    notes = notes_of(runs_of(tmp_path / "all", make_run, (0, 1, 2), (0, 1, 2)))
    assert "left out" not in notes["Differences to bad in AP"]


def test_a_part_whose_interval_leaves_images_out_is_told(tmp_path, make_run):
    """The table said of it that it is over what that of AP is over."""
    rows = runs_of(tmp_path, make_run, (0, 1), (0, 1))
    draw = np.random.default_rng(0)
    images = {}
    for run in [run for row in rows for run in row.trained]:
        few = np.where(draw.random(FEW) < 0.8, draw.normal(size=FEW), np.nan)
        resampled = {"AP": draw.normal(size=FEW), "APS": few, "APM": draw.normal(size=FEW)}
        images[run.path] = ImageScores(40, dict.fromkeys(resampled, draw.random()), resampled)
    told = notes_of(rows, images)["Differences to bad in AP and its parts"]
    assert "Too few images tell of APS:" in told
    assert "Too few" not in notes_of(rows)["Differences to bad in AP and its parts"]  # AP's is over seeds alone, too


def test_a_mark_over_images_alone_is_not_said_to_come_by_chance_once_in_twenty(tmp_path, make_found):
    for seed, name in enumerate(("good", "bad")):
        make_found(tmp_path / f"{name}-seed0", f"quickstart{'_dab' * seed}", noise=0.1 + 0.1 * seed)
    make_found(tmp_path / "third-seed0", "quickstart", noise=0.1, overrides=["train.epochs=9"])
    rows = rows_of(tmp_path)
    told = notes_of(rows, scored(rows)[0])["Differences to bad in AP"]
    assert "no sign of a better recipe" in told
    assert "Of twenty" not in told


def test_another_schedule_is_told(tmp_path, make_run):
    """The page of the docs said that it was, and only data were: at one epoch, one may have ended and one begun."""
    rows = runs_of(tmp_path, make_run, (0,), (0,))
    assert "Trained otherwise" not in notes_of(rows)["Average precision"]
    make_run(tmp_path / "longer", "quickstart_dab", {4: 30}, overrides=["train.epochs=9", "train.batch_size=2"])
    told = notes_of(rows_of(tmp_path))["Average precision"]
    assert "Trained otherwise than bad in longer: " in told
    assert "train.epochs is 9, not " in told
