"""How the reference points of queries move from layer to layer: over the image, and within each one's grid cell."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from detrkit.drawing.charts import font_properties, literal
from detrkit.show.look import Detection, Look
from detrkit.show.panels import LAYER_COLOURS, draw_box, figure_for, show_image

BEST, FARTHEST = 8, 4  # panels of enlarged cells


def draw_paths(look: Look, kept: Sequence[Detection]) -> Figure:
    """The image with the grid, all queries' paths, coloured by layer, and the kept queries' boxes and numbers."""
    figure, axes = figure_for(look.image, side=8.5, words=7.5)
    panel = axes[0, 0]
    show_image(panel, look.image, faded=True)
    cells, path = look.cells(), look.path.numpy()
    if cells is not None:
        for edges, line in ((cells[:, [0, 2]], panel.axvline), (cells[:, [1, 3]], panel.axhline)):
            for at in np.unique(edges.numpy().round(3)):
                line(at, color="black", lw=1.8, alpha=0.35)
                line(at, color="white", lw=0.8)
    for query in range(path.shape[1]):
        _draw_path(panel, path[:, query], width=1.0, dot=5)
    for found in reversed(kept):
        draw_box(panel, found.box, found.label)
        _draw_path(panel, path[:, found.query], width=2.6, dot=22)
    for found, place in zip(kept, _places(kept, path), strict=True):
        panel.annotate(
            f"{found.query}",
            place,
            ha="center",
            va="center",
            fontsize=9,
            zorder=8,
            bbox={"boxstyle": "round,pad=0.15", "fc": "white", "ec": "black", "lw": 0.6, "alpha": 0.9},
        )
    panel.set_title(
        f"Reference points over {len(path) - 1} decoder layers, {len(kept)} of {path.shape[1]} queries numbered",
        fontsize=12,
    )
    panel.legend(
        handles=_legend(len(path)), loc="upper center", bbox_to_anchor=(0.5, -0.01), ncols=4, frameon=False, fontsize=9
    )
    return figure


def draw_cells(look: Look, kept: Sequence[Detection]) -> Figure:
    """Cells, enlarged, with the numbered stations of their points: of the best kept queries, and of the farthest."""
    kept, cells, path = _best_and_farthest(look, kept), look.cells(), look.path.numpy()
    columns = min(4, len(kept))
    rows = math.ceil(len(kept) / columns)
    shape = min(max(look.image.height / look.image.width, 0.3), 3.0)  # of a longer strip panels are narrower
    figure = Figure(figsize=(max(3.0 * columns, 5.0), (0.4 + 2.9 * shape) * rows + 0.7), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, found in zip(grid.flat, kept, strict=False):
        stations = path[:, found.query]
        show_image(axes, look.image, faded=True)
        low, high = stations.min(0), stations.max(0)
        if cells is not None:
            x0, y0, x1, y1 = cells[found.query].tolist()
            axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec="white", lw=2.5))
            axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec="black", lw=1, ls="--"))
            low, high = np.minimum(low, (x0, y0)), np.maximum(high, (x1, y1))
        middle, reach = (low + high) / 2, max((high - low).max() * 0.62, 0.01)
        axes.set(xlim=(middle[0] - reach, middle[0] + reach), ylim=(middle[1] + reach, middle[1] - reach))
        axes.set_facecolor("0.85")  # beyond the image
        draw_box(axes, found.box, found.label)
        _draw_path(axes, stations, width=3, dot=70)
        _number(axes, stations, reach)
        title = f"query {found.query}: {literal(found.name)} {found.score:.2f}"
        if cells is not None:
            share = np.abs(stations - stations[0]).max(0) / (x1 - x0, y1 - y0)
            title += f"\nmoved by {100 * share.max():.0f} % of its cell"
        axes.set_title(title, fontproperties=font_properties(title), fontsize=10)
    for axes in grid.flat[len(kept) :]:
        axes.remove()
    figure.legend(handles=_legend(len(path)), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def _best_and_farthest(look: Look, kept: Sequence[Detection]) -> list[Detection]:
    """The best kept queries, then others whose points travel farthest."""
    best = list(kept[:BEST])
    travel = (look.path - look.path[0]).norm(dim=-1).amax(0)
    others = [found for found in look.detections if found not in best and travel[found.query] > 0]
    return best + sorted(others, key=lambda found: -float(travel[found.query]))[:FARTHEST]


def moves(look: Look) -> bool:
    """Whether any point moves at all."""
    return bool((look.path - look.path[0]).abs().max() > 1e-5)


def _colour(station: int, stations: int):
    """The first station (the start) is white; then one colour for each layer."""
    return "white" if station == 0 else matplotlib.colormaps[LAYER_COLOURS](0.15 + 0.8 * (station - 1) / (stations - 1))


def _draw_path(axes: Axes, stations: np.ndarray, *, width: float, dot: float) -> None:
    """A path [Y + 1, 2]: lines with a dark rim, a dot at each station."""
    axes.plot(*stations.T, color="black", lw=1.6 * width, solid_capstyle="round", zorder=4)
    for at in range(1, len(stations)):
        colour = _colour(at, len(stations))
        axes.plot(*stations[at - 1 : at + 1].T, color=colour, lw=width, solid_capstyle="round", zorder=5)
    for at, (x, y) in enumerate(stations):
        last = at + 1 == len(stations)
        axes.scatter(
            x,
            y,
            s=dot * (2.6 if last else 1),
            marker="*" if last else "o",
            color=[_colour(at, len(stations))],
            edgecolors="black",
            linewidths=min(0.7, 0.35 * width),
            zorder=7 if last else 6,
        )


def _number(axes: Axes, stations: np.ndarray, reach: float) -> None:
    """Number the stations beside their dots; those that lie on top of one another share a label."""
    groups: list[list[int]] = []
    for at, place in enumerate(stations):
        near = next((g for g in groups if np.abs(stations[g[0]] - place).max() < 0.13 * reach), None)
        if near is None:
            groups.append([at])
        else:
            near.append(at)
    for group in groups:
        text = ", ".join(map(str, group)) if len(group) < 3 else f"{group[0]}–{group[-1]}"
        if len(group) > 2 and group != list(range(group[0], group[-1] + 1)):
            text = ", ".join(map(str, group))
        axes.annotate(
            text,
            stations[group[0]],
            xytext=(8, -9),
            textcoords="offset points",
            fontsize=8,
            zorder=8,
            bbox={"boxstyle": "round,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.8},
        )


def _legend(stations: int) -> list[Line2D]:
    def handle(label: str, marker: str, at: int) -> Line2D:
        face = {"markerfacecolor": _colour(at, stations), "markeredgecolor": "black", "markersize": 7}
        line = _colour(at, stations) if at else "none"
        return Line2D([], [], color=line, lw=3, marker=marker, label=label, **face)

    between = [handle(f"{at}  after layer {at}", "o", at) for at in range(1, stations - 1)]
    return [
        handle("0  start", "o", 0),
        *between,
        handle(f"{stations - 1}  answer of the last layer", "*", stations - 1),
    ]


def _places(kept: Sequence[Detection], path: np.ndarray) -> list[tuple[float, float]]:
    """Where each query's number stands: near the end of its path, the free place nearest to it."""
    taken: list[tuple[float, float]] = []
    for found in kept:
        x, y = path[-1, found.query]
        ring = [(x + r * math.cos(a), y + r * math.sin(a)) for r in (0.04, 0.07, 0.1) for a in np.arange(0.8, 7, 0.785)]
        inside = [p for p in ring if 0.02 < p[0] < 0.98 and 0.02 < p[1] < 0.98] or [(min(max(x, 0.02), 0.98), y)]
        busy = [*taken, *(tuple(path[-1, other.query]) for other in kept)]
        crowd = [sum(abs(px - bx) < 0.045 and abs(py - by) < 0.035 for bx, by in busy) for px, py in inside]
        taken.append(inside[int(np.argmin(crowd))])
    return taken
