"""What is measured of each row: AP over its seeds, differences to the baseline, agreement with the paper."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from detrkit.compare.detections import ImageScores
from detrkit.compare.epochs_to import Reached, reach
from detrkit.compare.paired import Paired, RunScores, pair
from detrkit.compare.spread import Spread
from detrkit.compare.targets import Row
from detrkit.errors import UserError
from detrkit.evaluation.errors import KINDS
from detrkit.paths import with_home
from detrkit.recipe.problems import nearest
from detrkit.runs.history import Evaluation, Run

STATS = ("AP", "AP50", "AP75", "APS", "APM", "APL")
LAST, BEST, EQUAL = "last", "best", "equal"


@dataclass(frozen=True)
class Measured:
    """The numbers of one row.

    at: by "last", "best" (each run's evaluation with the highest AP) and "equal" (all at one epoch): the COCO
        numbers in percent over the seeds. Empty tables where there is nothing.
    difference: the mean AP minus the baseline's, for the same three.
    paired: the differences to the baseline at equal epochs (else at the last), with intervals; None without a baseline
        and for the baseline itself.
    errors: the cost of each kind of errors there, over the runs whose detections are at hand.
    """

    row: Row
    at: Mapping[str, Mapping[str, Spread]]
    difference: Mapping[str, float | None]
    reached: Reached | None = None
    paired: Paired | None = None
    errors: Mapping[str, Spread] = field(default_factory=dict)

    @property
    def published_ap(self) -> float | None:
        return (self.row.published or {}).get("AP")


@dataclass(frozen=True)
class Comparison:
    """All rows. equal_epoch: the last epoch that every run has evaluated; None if there is none.

    rank: Spearman's correlation of measured mean AP (by the name in `ranked`) and published AP, over `rank_rows`
    rows; None with fewer than three, and where either side is all alike.
    """

    rows: tuple[Measured, ...]
    equal_epoch: int | None
    baseline: str | None
    epochs_to: float | None
    ranked: str
    rank: float | None
    rank_rows: int


def compare(
    rows: Sequence[Row],
    *,
    baseline: str | None = None,
    epochs_to: float | None = None,
    images: Mapping[Path, ImageScores] | None = None,
) -> Comparison:
    """Measure all rows.

    Args:
        baseline: a row's name, or what else `find_row` takes.
        epochs_to: an AP in percent.
        images: by a run's folder, what its detections tell, of the evaluations that `chosen_runs` names.

    Raises UserError if no row, or more than one, is called so.
    """
    base = find_row(rows, baseline) if baseline is not None else None
    equal = equal_epoch(rows)
    at = {id(row): _at(row, equal) for row in rows}
    scores = {id(row): _scores(row, equal, images or {}) for row in rows}
    measured = []
    for row in rows:
        difference = {
            kind: _difference(at[id(row)][kind], at[id(base)][kind] if base else None) for kind in (LAST, BEST, EQUAL)
        }
        measured.append(
            Measured(
                row=row,
                at=at[id(row)],
                difference=difference,
                reached=None if epochs_to is None else reach(row.trained, base.trained if base else [], epochs_to),
                paired=pair(scores[id(row)], scores[id(base)]) if base is not None and row is not base else None,
                errors=_errors(scores[id(row)]),
            )
        )
    ranked = EQUAL if equal is not None else LAST
    rank, count = _rank(measured, ranked)
    return Comparison(tuple(measured), equal, base.name if base else None, epochs_to, ranked, rank, count)


def ordered(comparison: Comparison, names: Sequence[str]) -> Comparison:
    """The same with its rows in the order of their names, without the folders that all share; the others follow."""
    place = {name: number for number, name in enumerate(names)}
    named = zip(short_names([m.row.name for m in comparison.rows]), comparison.rows, strict=True)
    rows = [m for _, m in sorted(named, key=lambda one: place.get(one[0], len(place)))]
    return replace(comparison, rows=tuple(rows))


def short_names(names: Sequence[str]) -> list[str]:
    """The names without the folders that all of them begin with."""
    parts = [name.split("/") for name in names]
    shared = 0
    while all(len(part) > shared + 1 and part[shared] == parts[0][shared] for part in parts):
        shared += 1
    return ["/".join(part[shared:]) for part in parts]


def find_row(rows: Sequence[Row], name: str) -> Row:
    """The row of that name or of that target or run; else the only one whose name ends in it.

    An end that begins a part of the name ("x" of "folder/x") goes before one that does not ("x" of "folder/the_x").
    Raises UserError if there is none, or several.
    """
    end = name.removesuffix(".toml")
    kinds = (
        lambda row: row.name == name,
        lambda row: _path(name) in [_path(text) for text in (row.target, *(run.path for run in row.runs)) if text],
        lambda row: f"/{row.name}".endswith(f"/{end}"),
        lambda row: row.name.endswith(end),
    )
    found = next((fits for kind in kinds if (fits := [row for row in rows if kind(row)])), [])
    if len(found) == 1:
        return found[0]
    names = [row.name for row in found or rows]
    problem = f"fits {len(found)} rows" if found else f"is no row{nearest(name, names)}; the rows are"
    raise UserError(f"--baseline {name} {problem}: {', '.join(names)}")


def _path(text: Path | str) -> Path:
    """A target or a run's folder, whatever way it was typed."""
    return with_home(str(text).removesuffix(".toml")).resolve()


def equal_epoch(rows: Sequence[Row]) -> int | None:
    """The last epoch that every run which was ever evaluated has evaluated."""
    runs = [run for row in rows for run in row.trained]
    common = set.intersection(*({e.epoch for e in run.evaluations} for run in runs)) if runs else set()
    return max(common, default=None)


def chosen_runs(row: Row, equal: int | None) -> list[tuple[Run, Evaluation]]:
    """A row's runs with the evaluations that differences are of: at the equal epoch, or the last if there is none."""
    if equal is None:
        return [(run, run.evaluations[-1]) for run in row.trained]
    return [(run, next(e for e in reversed(run.evaluations) if e.epoch == equal)) for run in row.trained]


def _scores(row: Row, equal: int | None, images: Mapping[Path, ImageScores]) -> list[RunScores]:
    return [
        RunScores(
            seed=run.seed,
            stats={name: 100 * value for name in STATS if (value := evaluation.stats[name]) is not None},
            images=images.get(run.path),
        )
        for run, evaluation in chosen_runs(row, equal)
    ]


def _errors(scores: Sequence[RunScores]) -> dict[str, Spread]:
    known = [(one.seed, one.images.plain) for one in scores if one.images is not None]
    return {
        kind: Spread.over_seeds([(seed, plain[kind]) for seed, plain in known])
        for kind in KINDS
        if known and all(kind in plain for _, plain in known)
    }


def _at(row: Row, equal: int | None) -> dict[str, dict[str, Spread]]:
    chosen: dict[str, list[tuple[int, Evaluation]]] = {LAST: [], BEST: [], EQUAL: []}
    for run in row.trained:
        chosen[LAST].append((run.seed, run.evaluations[-1]))
        chosen[BEST].append((run.seed, max(run.evaluations, key=lambda e: e.stats["AP"] or 0.0)))
        chosen[EQUAL] += [(run.seed, e) for e in run.evaluations if e.epoch == equal][-1:]
    return {kind: _spreads(evaluations) for kind, evaluations in chosen.items()}


def _spreads(evaluations: Sequence[tuple[int, Evaluation]]) -> dict[str, Spread]:
    found = {}
    for name in STATS:
        values = [(seed, 100 * value) for seed, e in evaluations if (value := e.stats[name]) is not None]
        if values:
            found[name] = Spread.over_seeds(values)
    return found


def _difference(own: Mapping[str, Spread], base: Mapping[str, Spread] | None) -> float | None:
    return own["AP"].mean - base["AP"].mean if base and "AP" in own and "AP" in base else None


def _rank(rows: Sequence[Measured], kind: str) -> tuple[float | None, int]:
    from scipy.stats import spearmanr

    pairs = [(m.at[kind]["AP"].mean, m.published_ap) for m in rows if "AP" in m.at[kind] and m.published_ap is not None]
    if len(pairs) < 3:
        return None, len(pairs)
    with warnings.catch_warnings():  # it warns where one side is all alike, and gives nan
        warnings.simplefilter("ignore")
        value = float(spearmanr(*zip(*pairs, strict=True)).statistic)
    return (None if math.isnan(value) else value), len(pairs)
