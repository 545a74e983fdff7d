"""What each run found on each image, from the files that `detrkit evaluate` leaves, on images drawn again and again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from detrkit.errors import UserError
from detrkit.runs.checkpoint import WEIGHTS, find_folder, metadata_number, read_metadata
from detrkit.runs.history import Evaluation, Run
from detrkit.wording import first_of

if TYPE_CHECKING:
    from pycocotools.coco import COCO

    from detrkit.data import Dataset

RESAMPLES = 1000
SEED = 0
PLACES = ("", "compared")  # below a run's folder: what `detrkit evaluate` left there, what `compare --evaluate` did
SUMMARY, DETECTIONS = "evaluation.json", "detections.json"
SAME_AP = 0.5  # percent: AP of the same weights on another device, or in another precision, is no further away


@dataclass(frozen=True)
class ImageScores:
    """COCO's numbers and the costs of error kinds of one run, in percent; those that it has.

    images: how many it was evaluated on.
    plain: on the images as they are.
    resampled: each [RESAMPLES], on images drawn with replacement, the same draws for all runs of a data set.
    """

    images: int
    plain: Mapping[str, float]
    resampled: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Lacking:
    """A run whose detections cannot be used, and why. which: the checkpoint that would make them, if one is left."""

    run: Run
    reason: str
    which: str | None


def find_detections(run: Run, evaluation: Evaluation) -> Path:
    """The folder with the detections that belong to an evaluation of a run: of its weights, on its data.

    Raises UserError that says what is there instead.
    """
    told = "no detections are kept"
    for place in PLACES:
        folder = run.path / place
        if not ((folder / SUMMARY).is_file() and (folder / DETECTIONS).is_file()):
            continue
        other = _other(_read(folder / SUMMARY, dict), run, evaluation)
        if other is None:
            return folder
        told = f"the detections that are kept are {other}"
    raise UserError(told)


def checkpoint_of(run: Run, evaluation: Evaluation) -> str | None:
    """Which checkpoint of a run, "last" or "best", is of the step of an evaluation; None if neither is any more."""
    for which in ("last", "best"):
        folder = find_folder(run.path / which)
        try:
            if folder and metadata_number(read_metadata(folder / WEIGHTS), "step") == evaluation.step:
                return which
        except UserError:  # damaged, and so of no use here
            continue
    return None


def score_runs(
    runs: Sequence[tuple[Run, Evaluation]], *, progress: Callable[[], None] = lambda: None
) -> tuple[dict[Path, ImageScores], list[Lacking]]:
    """The scores of each run, by its folder, and the runs that have none.

    All are to be of the data of the first that has: others are told as lacking. progress: called after each run.
    """
    sets: dict[str, Dataset] = {}
    first: COCO | None = None
    found, lacking = {}, []
    for run, evaluation in runs:
        try:
            folder = find_detections(run, evaluation)
            said = json.dumps(_data_of(run), sort_keys=True)
            if said not in sets:
                sets[said] = run.recipe.section("data")().val
            truth = sets[said].ground_truth()
            if first is not None and _content(first) != _content(truth):
                raise UserError("its validation images, or what is on them, are not those of the others")
            found[run.path] = _score(folder, sets[said], truth, evaluation)
            first = first or truth
        except UserError as error:
            lacking.append(Lacking(run, str(error), checkpoint_of(run, evaluation)))
        progress()
    return found, lacking


def told_of(lacking: Sequence[Lacking]) -> list[str]:
    """A line for each reason, with the runs that have it and what would help."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for one in lacking:
        helps = (
            f"`detrkit evaluate RUN --which {one.which}` makes them, and so does --evaluate"
            if one.which
            else "no checkpoint of that epoch is left to make them with"
        )
        kinds.setdefault((one.reason, helps), []).append(str(one.run.path))
    return [f"Not by image, {reason}; {helps}: {first_of(runs)}" for (reason, helps), runs in kinds.items()]


def _score(folder: Path, dataset: Dataset, truth: COCO, evaluation: Evaluation) -> ImageScores:
    from detrkit.evaluation.resampling import rank_detections, resamples

    path = folder / DETECTIONS
    ids = {dataset.records.given_id(image_id): image_id for image_id in dataset.image_ids.tolist()}
    detections = [one for one in _read(path, list) if isinstance(one, dict)]
    try:
        detections = [{**one, "image_id": ids.get(one["image_id"], one["image_id"])} for one in detections]
        ranked = rank_detections(truth, detections)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"{path} holds something that is no detection ({error!r})") from None
    plain = {name: 100 * value for name, value in ranked.plain().items() if not np.isnan(value)}
    told = evaluation.stats["AP"]
    if "AP" in plain and told is not None and abs(plain["AP"] - 100 * told) > SAME_AP:
        raise UserError(f"{path} has AP {plain['AP']:.1f}, but the run was evaluated with {100 * told:.1f}")
    values = ranked.stats(resamples(ranked.images, RESAMPLES, SEED))
    # A resample without any object of a size has no AP of it; what is left says how the others spread.
    resampled = {name: 100 * value for name, value in values.items() if name in plain}
    return ImageScores(ranked.images, plain, resampled)


def _other(summary: Mapping[str, Any], run: Run, evaluation: Evaluation) -> str | None:
    """What else an evaluation is of; None if it is the one that is meant."""
    if summary.get("split") != "val":
        return "not of the validation split"
    if summary.get("overrides"):
        return f"of other values ({' '.join(map(str, summary['overrides']))})"
    if _without_augment(summary.get("data")) != json.loads(json.dumps(_data_of(run))):
        return "of other data than the run's"
    if summary.get("step") != evaluation.step:
        return f"of step {summary.get('step')}, not of step {evaluation.step} (epoch {evaluation.epoch})"
    return None


def _data_of(run: Run) -> dict[str, Any]:
    return _without_augment(run.recipe.full_values()["data"])


def _without_augment(data: Any) -> Any:
    return {**data, "augment": None} if isinstance(data, dict) else data


def _content(truth: COCO) -> tuple[list, list, list]:
    return truth.dataset["images"], truth.dataset["annotations"], truth.dataset["categories"]


def _read(path: Path, kind: type) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, kind):
        raise UserError(f"{path} is not what `detrkit evaluate` writes")
    return content
