"""Where a query of deformable attention reads, level by level."""

from __future__ import annotations

from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from detrkit.show.attention_maps import mark_reference
from detrkit.show.look import Look
from detrkit.show.panels import figure_for, show_image

AREA = 900.0
"""points squared that a dot of weight 1 covers"""


def draw_samples(look: Look, query: int, layer: int) -> Figure:
    """A panel for each level: a dot for each place, in its head's colour, its area the weight."""
    record = look.layers[layer - 1]
    locations, weights = record.samples(query)
    heads, levels = weights.shape[:2]
    figure, grid = figure_for(look.image, columns=levels, side=3.6 if levels > 1 else 5.0, words=3.4)
    for level, axes in enumerate(grid.flat):
        show_image(axes, look.image, faded=True)
        for head in range(heads):
            places, shares = locations[head, level].numpy(), weights[head, level].numpy()
            colour = f"C{head % 10}"
            dots = axes.scatter(
                *places.T, s=AREA * shares, color=colour, edgecolors="black", linewidths=0.6, alpha=0.85, zorder=6
            )
            dots.set_label(f"head {head + 1}")
        mark_reference(axes, record, query)
        height, width = record.memory.shapes[level]
        outside = ((locations[:, level] < 0) | (locations[:, level] > 1)).any(-1)
        lost = 100 * (weights[:, level] * outside).sum() / heads
        title = f"map of {height} x {width}: {100 * weights[:, level].sum() / heads:.0f} % of the weight"
        axes.set_title(title + (f", {lost:.0f} % outside" if lost >= 0.5 else ""), fontsize=9)
    handles, labels = axes.get_legend_handles_labels()
    legend = figure.legend(handles, labels, loc="outside lower center", ncols=min(heads, 8), fontsize=8)
    for handle in legend.legend_handles:
        assert isinstance(handle, PathCollection)  # as `scatter` makes them
        handle.set_sizes([40])
    figure.suptitle(f"Places that query {query} reads in layer {layer}", fontsize=12)
    return figure
