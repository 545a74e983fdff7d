"""How sure each query is, layer by layer: its best class score at its place in the image."""

from __future__ import annotations

import math

from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from detrkit.show.look import Look
from detrkit.show.panels import figure_for, show_image


def draw_scores(look: Look) -> Figure:
    """A panel for each decoder layer; with a grid each query fills its cell, else it is a disc at its point."""
    layers = len(look.layers)
    columns = min(3, layers)
    rows = math.ceil(layers / columns)
    figure, grid = figure_for(look.image, rows=rows, columns=columns, side=3.8, words=2.6)
    cells = look.cells()
    for layer, axes in enumerate(grid.flat[:layers]):
        scores = look.scores[layer].numpy()
        show_image(axes, look.image, faded=True)
        if cells is not None:
            squares = [Rectangle((x0, y0), x1 - x0, y1 - y0) for x0, y0, x1, y1 in cells.tolist()]
            filled = PatchCollection(squares, cmap="viridis", edgecolors="white", linewidths=0.4)
            filled.set_alpha((0.1 + 0.65 * scores).tolist())
            filled.set_array(scores)
            filled.set_clim(0, 1)
            axes.add_collection(filled)
        order = scores.argsort()  # the surest on top
        points = look.references[layer].numpy()[order]
        size = 16 if cells is not None else 12 + 90 * scores[order]
        drawn = axes.scatter(
            *points.T, s=size, c=scores[order], cmap="viridis", vmin=0, vmax=1, edgecolors="black", linewidths=0.6
        )
        axes.set_title(f"layer {layer + 1}: best {scores.max():.2f}, above 0.3: {(scores > 0.3).sum()}", fontsize=10)
    for axes in grid.flat[layers:]:
        axes.remove()
    bar = figure.colorbar(drawn, ax=grid, fraction=0.03, pad=0.02)
    bar.set_label("best class score of the query", fontsize=9)
    figure.suptitle("Query scores by decoder layer", fontsize=12)
    return figure
