"""The tables of a comparison as titles and texts, whatever they are then written as."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from detrkit.compare.comparison import BEST, EQUAL, LAST, STATS, Comparison, Measured, short_names
from detrkit.compare.costs import ASSUMED_CLASSES, Costs
from detrkit.compare.difference_sheets import difference_sheets
from detrkit.compare.epochs_to import Faster, Reached
from detrkit.compare.table import NOTHING, Sheet, number, signed, spread
from detrkit.compare.targets import Row
from detrkit.compare.timing import Timing
from detrkit.runs.history import differences
from detrkit.wording import first_of, short


def make_sheets(
    comparison: Comparison,
    costs: Mapping[str, Costs],
    timings: Mapping[str, Timing],
    notes: Sequence[str] = (),
) -> list[Sheet]:
    """All tables that have something to say. costs, timings: by the row's name; notes: of the differences."""
    names = short_names([m.row.name for m in comparison.rows])
    sheets = []
    if any(m.row.trained for m in comparison.rows):
        sheets += [_accuracy(comparison, names), _parts(comparison, names)]
        sheets += difference_sheets(comparison, names, notes)
    if comparison.epochs_to is not None and any(m.reached for m in comparison.rows):
        sheets.append(_speed_of_learning(comparison, names))
    if costs:
        sheets.append(_costs(comparison, names, costs))
    if timings:
        sheets.append(_timings(comparison, names, timings))
    return sheets


def runs_sheet(comparison: Comparison) -> Sheet:
    """Every run that was evaluated; its path stands for its folder."""
    rows = []
    for name, m in zip(short_names([m.row.name for m in comparison.rows]), comparison.rows, strict=True):
        for run in m.row.trained:
            last, best = run.evaluations[-1], max(run.evaluations, key=lambda e: e.stats["AP"] or 0.0)
            scores = [None if (ap := e.stats["AP"]) is None else 100 * ap for e in (last, best)]
            minutes = NOTHING if last.minutes is None else short(last.minutes)
            rows.append((name, str(run.seed), str(last.epoch), *map(number, scores), minutes, str(run.path)))
    columns = ("recipe", "seed", "epochs", "last AP", "best AP", "minutes", "run")
    return Sheet("Runs", columns, tuple(rows), places={row[-1]: row[-1] for row in rows})


def _accuracy(comparison: Comparison, names: Sequence[str]) -> Sheet:
    equal, baseline = comparison.equal_epoch, comparison.baseline
    kind = EQUAL if equal is not None else LAST
    columns = ["recipe", "seeds", "epochs", "last", "best"]
    columns += [f"epoch {equal}"] if equal is not None else []
    columns += ["difference"] if baseline else []
    columns += ["published"]
    rows = []
    for name, m in zip(names, comparison.rows, strict=True):
        cells = [name, str(len(m.row.seeds)), _epochs(m), *(spread(m.at[k].get("AP")) for k in (LAST, BEST))]
        cells += [spread(m.at[EQUAL].get("AP"))] if equal is not None else []
        cells += [signed(m.difference[kind])] if baseline else []
        rows.append((*cells, number(m.published_ap)))
    notes = ["AP in percent on the validation split; mean ± standard deviation over seeds."]
    if baseline:
        where = f"at epoch {equal}" if equal is not None else "of the last evaluations"
        notes.append(f"difference: of the means {where}, to {_short(comparison, names)}.")
    if comparison.rank is not None:
        where = f"epoch {equal}" if equal is not None else "the last evaluation"
        notes.append(
            f"Spearman's rank correlation of measured AP ({where}) and published AP, {comparison.rank_rows} rows: "
            f"{comparison.rank:+.2f}"
        )
    notes += [*_published_for_others(comparison, names), *_other_data(comparison, names)]
    notes += _other_training(comparison, names)
    notes += _overridden(comparison)
    return Sheet("Average precision", tuple(columns), tuple(rows), tuple(notes))


def _published_for_others(comparison: Comparison, names: Sequence[str]) -> list[str]:
    """Which trained rows stand beside a figure that was published for other epochs, or other data, than theirs."""
    rows = zip(names, comparison.rows, strict=True)
    beside = [(name, m, m.row.published) for name, m in rows if m.row.trained and m.row.published and m.published_ap]
    notes: dict[str, list[str]] = {}
    for name, m, row in beside:
        published, own = row.get("epochs"), m.row.recipe.section("train").epochs
        data = m.row.recipe.section("data").name
        theirs, ours = [], []
        if published is not None and published != own:
            theirs.append(f"for {published} epochs")
            ours.append(f"for {own}")
        if data != "coco":
            theirs.append("on COCO val2017")
            ours.append(f'on the data "{data}"')
        if theirs:
            notes.setdefault(f"published: {' '.join(theirs)}, here {' '.join(ours)}", []).append(name)
    return [note + ("." if len(found) == len(beside) else f", in {', '.join(found)}.") for note, found in notes.items()]


def _other_data(comparison: Comparison, names: Sequence[str]) -> list[str]:
    """Which trained rows were trained or evaluated on other images than the baseline, or than the first of them."""
    notes: dict[str, list[str]] = {}
    first, _ = _first(comparison, names)
    for name, every in _from_first(comparison, names):
        told = [d for d in every if _key(d).startswith("data.") and ".augment" not in _key(d)]
        if told:
            kind = [difference for difference in told if difference.startswith("data.type ")]
            notes.setdefault(", ".join(kind or told[:3]), []).append(name)
    return [
        f"Other data than {first}'s in {', '.join(found)}: {told}. Their AP tells nothing of the recipes."
        for told, found in notes.items()
    ]


def _other_training(comparison: Comparison, names: Sequence[str]) -> list[str]:
    """Which trained rows had another schedule, batch or optimiser than the baseline, or than the first of them."""
    notes: dict[str, list[str]] = {}
    first, _ = _first(comparison, names)
    for name, every in _from_first(comparison, names):
        told = [difference for difference in every if _key(difference).startswith("train.")]
        if told:
            notes.setdefault(first_of(told), []).append(name)
    return [f"Trained otherwise than {first} in {', '.join(found)}: {told}." for told, found in notes.items()]


def _first(comparison: Comparison, names: Sequence[str]) -> tuple[str, Row]:
    """The baseline if it is trained, else the first row that is."""
    trained = [(name, m.row) for name, m in zip(names, comparison.rows, strict=True) if m.row.trained]
    return next((one for one in trained if one[1].name == comparison.baseline), trained[0])


def _from_first(comparison: Comparison, names: Sequence[str]) -> list[tuple[str, list[str]]]:
    """What each trained row's recipe says otherwise than that of `_first`."""
    _, base = _first(comparison, names)
    rows = [(name, m.row) for name, m in zip(names, comparison.rows, strict=True) if m.row.trained]
    return [(name, differences(base.recipe, row.recipe)) for name, row in rows]


def _key(difference: str) -> str:
    return difference.partition(" is ")[0]


def _overridden(comparison: Comparison) -> list[str]:
    """What the command line changed in rows that stand beside a published figure."""
    said = dict.fromkeys(m.row.overrides for m in comparison.rows if m.row.overrides and m.row.published)
    return [f"With {' '.join(overrides)}; published figures are those of the recipes without." for overrides in said]


def _parts(comparison: Comparison, names: Sequence[str]) -> Sheet:
    kind = EQUAL if comparison.equal_epoch is not None else LAST
    rows = [
        (name, *(spread(m.at[kind].get(stat)) for stat in STATS))
        for name, m in zip(names, comparison.rows, strict=True)
        if m.row.trained
    ]
    where = f"at epoch {comparison.equal_epoch}" if kind == EQUAL else "at the last evaluation"
    return Sheet(f"AP and its parts {where}", ("recipe", *STATS), tuple(rows))


def _speed_of_learning(comparison: Comparison, names: Sequence[str]) -> Sheet:
    columns = ["recipe", "epochs", *(["faster"] if comparison.baseline else []), "each seed"]
    rows = []
    for name, m in zip(names, comparison.rows, strict=True):
        if m.reached is None:
            continue
        cells = [name, _reached(m.reached)]
        if comparison.baseline:
            cells.append(NOTHING if m.reached.faster is None else _times(m.reached.faster))
        rows.append((*cells, ", ".join("never" if e is None else f"{e:.1f}" for e in m.reached.epochs)))
    notes = [
        "On straight lines between evaluations, from AP 0 at epoch 0; runs that start from given weights count from "
        "their first evaluation."
    ]
    if comparison.baseline:
        notes.append(
            f"faster: the epochs of {_short(comparison, names)} over the row's, geometric mean of seeds; in brackets "
            "its 95 % interval over them, by t on logarithms."
        )
    return Sheet(f"Epochs to AP {comparison.epochs_to:g}", tuple(columns), tuple(rows), tuple(notes))


def _times(faster: Faster) -> str:
    interval = "" if faster.low is None else f" ({faster.low:.2f} to {faster.high:.2f})"
    return f"{faster.value:.2f}x{interval}"


def _reached(reached: Reached) -> str:
    if reached.mean is not None:
        return f"{reached.mean:.1f}"
    never = reached.epochs.count(None)
    return "never" if never == len(reached.epochs) else f"never in {never} of {len(reached.epochs)}"


def _costs(comparison: Comparison, names: Sequence[str], costs: Mapping[str, Costs]) -> Sheet:
    counted = [costs[m.row.name] for m in comparison.rows if m.row.name in costs]
    means = any(c.coco_mean is not None for c in counted)
    folds = any(_shows(c.work.saved) or _shows(c.work.zeros) for c in counted)
    columns = ["recipe", "params M", "trained M", "GFLOPs", *(["plain form"] if folds else [])]
    columns += ["COCO mean"] if means else []
    columns += ["published in", "publ. AP", "publ. M", "publ. GFLOPs"]
    rows = []
    for name, m in zip(names, comparison.rows, strict=True):
        if m.row.name not in costs:
            continue
        cost, published = costs[m.row.name], m.row.published or {}
        total = cost.work.total
        cells = [name, number(total.parameters / 1e6, 2), number(total.trainable / 1e6, 2)]
        cells += [number(total.multiply_adds / 1e9, 2)]
        cells += [number(cost.work.plain_form / 1e9, 2)] if folds else []
        cells += [number(None if cost.coco_mean is None else cost.coco_mean / 1e9, 2)] if means else []
        cells += [_where(published), number(published.get("AP"))]
        cells += [number(published.get("params_m"), 0), number(published.get("gflops"), 0)]
        rows.append(tuple(cells))
    notes = [*_cost_notes(counted), *_published_notes(comparison, means), *_overridden(comparison)]
    if assumed := [name for name, m in zip(names, comparison.rows, strict=True) if _assumes(costs.get(m.row.name))]:
        notes.append(f"Counted with {ASSUMED_CLASSES} classes, as the data set is not here: {', '.join(assumed)}.")
    return Sheet("Parameters and work", tuple(columns), tuple(rows), tuple(notes))


def _where(published: Mapping[str, Any]) -> str:
    """ "Table 1, 36 ep", or a dash."""
    return f"Table {published['table']}, {published['epochs']} ep" if published else NOTHING


def _assumes(costs: Costs | None) -> bool:
    return costs is not None and costs.assumed_classes is not None


def _published_notes(comparison: Comparison, means: bool) -> list[str]:
    if not any((m.row.published or {}).get("gflops") for m in comparison.rows):
        return []
    compared = "COCO mean" if means else "--coco-mean, to be compared with them,"
    sizes = "published GFLOPs are a mean over COCO images of many sizes"
    return [f"{sizes}: {compared} counts the first 100 of val2017 at 800 (at most 1333)."]


def _cost_notes(counted: Sequence[Costs]) -> list[str]:
    work = counted[0].work
    notes = [f"GFLOPs: 1e9 multiply-adds, forward, one image of {work.height} x {work.width}."]
    saved = [c.work.saved / 1e9 for c in counted]
    zeros = [c.work.zeros / 1e9 for c in counted]
    told = []
    if any(_shows(c.work.saved) for c in counted):
        told.append(f"adds up terms that share keys first, which saves {_range(saved)} GFLOPs")
    if any(_shows(c.work.zeros) for c in counted):
        told.append(f"fills the fused kernel's channels with zeros, which costs {_range(zeros)} GFLOPs")
    if told:
        notes.append(
            "plain form: as official codes compute it, with a copy of the keys for each term. What runs here "
            f"{', and '.join(told)}."
        )
    shares = [sum(c.work.uncounted.values()) / max(1, c.work.total.multiply_adds) for c in counted]
    if max(shares) > 0:
        most = ", ".join(list(counted[0].work.uncounted)[:4])
        notes.append(
            "Counted: convolutions, matrix products, fused attention. Not counted: element by element operations "
            f"({most}, ...); their results are {_range([100 * s for s in shares], 1)} % as many numbers."
        )
    return notes


def _shows(multiply_adds: float) -> bool:
    """Whether there is anything of it left in a table of GFLOPs with two decimals."""
    return round(multiply_adds / 1e9, 2) != 0


def _range(values: Sequence[float], digits: int = 2) -> str:
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return low if low == high else f"{low} to {high}"


def _timings(comparison: Comparison, names: Sequence[str], timings: Mapping[str, Timing]) -> Sheet:
    devices = dict.fromkeys(t.device for t in timings.values())
    own = len(devices) > 1  # recipes may name devices of their own
    rows = []
    for name, m in zip(names, comparison.rows, strict=True):
        if m.row.name in timings:
            t = timings[m.row.name]
            cells = (
                f"{median(t.milliseconds):.1f}",
                f"{t.images_per_second:.2f}",
                f"{t.memory / 1e6:.0f}",
                t.precision,
            )
            rows.append((name, *cells, *([t.device] if own else [])))
    first = next(iter(timings.values()))
    where = "On each row's device" if own else f"On {first.device}"
    note = (
        f"{where}, batch {first.batch} of {first.height} x {first.width}, forward only: median of "
        f"{len(first.milliseconds)} rounds in which all rows take turns. Memory: the most that tensors held at once, "
        "weights included."
    )
    columns = ("recipe", "ms", "images/s", "peak MB", "precision", *(["device"] if own else []))
    return Sheet("Time", columns, tuple(rows), (note,))


def _short(comparison: Comparison, names: Sequence[str]) -> str:
    """The baseline's name as the tables have it."""
    return next(name for name, m in zip(names, comparison.rows, strict=True) if m.row.name == comparison.baseline)


def _epochs(m: Measured) -> str:
    done = sorted({run.evaluations[-1].epoch for run in m.row.trained})
    if not done:
        return NOTHING
    of = m.row.recipe.section("train").epochs
    span = str(done[0]) if len(done) == 1 else f"{done[0]} to {done[-1]}"
    return span if done == [of] else f"{span} of {of}"
