"""Differences to the baseline with their intervals, and kinds of errors, as tables of texts."""

from __future__ import annotations

import math
from collections.abc import Sequence

from detrkit.compare.comparison import EQUAL, LAST, STATS, Comparison, Measured
from detrkit.compare.detections import RESAMPLES
from detrkit.compare.intervals import MOST_SEEDS, POWER, Difference, Interval
from detrkit.compare.paired import Paired
from detrkit.compare.table import NOTHING, Sheet, number, signed, spread
from detrkit.evaluation.errors import KINDS
from detrkit.wording import first_of

MARK = " *"


def difference_sheets(comparison: Comparison, names: Sequence[str], notes: Sequence[str]) -> list[Sheet]:
    """Differences in AP, in its parts and in the costs of errors, and these costs. notes: go below the first."""
    named = list(zip(names, comparison.rows, strict=True))
    against = [(name, m, m.paired) for name, m in named if m.paired is not None]
    sheets = []
    if against:
        base = next(name for name, m in named if m.row.name == comparison.baseline)
        sheets += [_of_ap(comparison, named, base, notes), _by_name(against, base, "AP and its parts", STATS[1:])]
        if any(kind in paired.differences for _, _, paired in against for kind in KINDS):
            sheets.append(_by_name(against, base, "costs of errors", KINDS))
    if any(m.errors for _, m in named):
        sheets.append(_errors(named))
    return sheets


def _of_ap(comparison: Comparison, named: Sequence[tuple[str, Measured]], base: str, notes: Sequence[str]) -> Sheet:
    kind = LAST if comparison.equal_epoch is None else EQUAL
    rows, paired, fewer = [], [], []
    its = next(m.row.seeds for _, m in named if m.row.name == comparison.baseline)
    for name, m in named:
        if "AP" not in m.at[kind]:
            continue
        average = spread(m.at[kind]["AP"])
        if m.paired is None or "AP" not in m.paired.differences:
            rows.append((name, str(len(m.row.seeds)), average, *[NOTHING] * 5))
            continue
        paired.append(m.paired)
        if m.paired.seeds and {*m.row.seeds, *its} != {*m.paired.seeds}:
            fewer.append(name)
        found = m.paired.differences["AP"]
        value = signed(found.value, 2) + (MARK if found.is_sure else "")
        intervals = [_interval(one, 2) for one in (found.over_both, found.over_seeds, found.over_images)]
        rows.append((name, _seeds(m.paired), average, value, *intervals, _needed(found.seeds_needed)))
    columns = ("recipe", "seeds", "AP", "difference", "seeds and images", "seeds alone", "images alone", "seeds needed")
    return Sheet(f"Differences to {base} in AP", columns, tuple(rows), (*_notes(paired, fewer), *notes))


def _notes(paired: Sequence[Paired], fewer: Sequence[str]) -> list[str]:
    """fewer: the rows whose differences are of a part of the seeds."""
    found = [one.differences["AP"] for one in paired]
    told = [
        "95 % intervals: where the difference lies with other seeds on other images; with other seeds on these images; "
        f"with these weights on other images ({RESAMPLES} resamples). *: the first of them that is known excludes zero."
    ]
    if any(one.seeds for one in paired):
        told.append("pairs: runs of one seed are compared with each other.")
    if fewer:
        told.append(
            "Seeds that only one of the two rows has are left out of the difference, not of the means: "
            f"{first_of(fewer)}."
        )
    if any(one.over == "images" for one in found):
        told.append(
            "Where there is one seed, images alone are told of: another seed may turn the difference around. There a "
            "mark is no sign of a better recipe: two seeds of one recipe may differ by as much."
        )
    if any(one.seeds_needed is not None for one in found):
        told.append(
            f"seeds needed: in each row, for {100 * POWER:.0f} of 100 comparisons to mark a difference of this size, "
            "with the spreads seen here; of two or three seeds they are rough."
        )
    if len([one for one in found if one.over and one.over != "images"]) > 1:  # seeds mark more where none are known
        told.append("Of twenty rows without any difference, one is marked by chance.")
    return told


def _by_name(against: Sequence[tuple[str, Measured, Paired]], base: str, what: str, wanted: Sequence[str]) -> Sheet:
    rows = []
    for name, _, paired in against:
        rows.append((name, *(_difference(paired.differences.get(one)) for one in wanted)))
    notes = ["95 % intervals, each over what that of AP is over. *: it excludes zero."]
    alone = [one for one in wanted if any(_lacks_images(paired, one) for _, _, paired in against)]
    if alone:  # AP is over seeds and images, and these are over less
        notes.append(
            f"Too few images tell of {', '.join(alone)}: where a row has seeds, its interval is over seeds alone."
        )
    return Sheet(f"Differences to {base} in {what}", ("recipe", *wanted), tuple(rows), tuple(notes))


def _lacks_images(paired: Paired, name: str) -> bool:
    """Whether a number's interval is over seeds alone, though that of AP is over images, too."""
    ap, found = paired.differences.get("AP"), paired.differences.get(name)
    return bool(ap and found and ap.over == "seeds and images" and found.over == "seeds")


def _errors(named: Sequence[tuple[str, Measured]]) -> Sheet:
    rows = tuple((name, *(spread(m.errors.get(kind)) for kind in KINDS)) for name, m in named if m.errors)
    note = "AP50 that is gained where all errors of one kind, and nothing else, are put right (TIDE); less is better."
    return Sheet("Costs of errors", ("recipe", *KINDS), rows, (note,))


def _seeds(paired: Paired) -> str:
    if paired.seeds:
        return f"{len(paired.seeds)} pairs"
    own, its = paired.counts
    return str(own) if own == its == 1 else f"{own} against {its}"


def _difference(found: Difference | None) -> str:
    """ "+1.2 [+0.3, +2.1] *" """
    if found is None:
        return NOTHING
    interval = "" if found.interval is None else f" {_interval(found.interval, 1)}"
    return signed(found.value) + interval + (MARK if found.is_sure else "")


def _interval(found: Interval | None, digits: int) -> str:
    return NOTHING if found is None else f"[{signed(found.low, digits)}, {signed(found.high, digits)}]"


def _needed(count: float | None) -> str:
    if count is None:
        return NOTHING
    return f">{MOST_SEEDS}" if math.isinf(count) else number(count, 0)
