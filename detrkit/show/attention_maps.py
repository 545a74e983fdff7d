"""Where a query's attention goes: each term by itself, their sum, and the Gaussians of every head."""

from __future__ import annotations

import math
from functools import reduce

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from detrkit.show.look import Look
from detrkit.show.panels import draw_box, draw_heat, figure_for, headline, readable, show_image
from detrkit.show.recording import LayerRecord

SUM = "sum of all terms"


def attention_maps(record: LayerRecord, query: int) -> dict[str, Tensor]:
    """Attention [H, h, w] of one query: softmax of each term's logits alone, and of their sum, which is the last.

    For each head, the sum's attention is the product of the terms' attentions, made to add up to 1. One term by itself
    is the whole.
    """
    logits = record.term_logits([query])
    maps = {name: record.weights(values) for name, values in logits.items()}
    if len(maps) > 1:
        maps[SUM] = record.weights(reduce(torch.add, logits.values()))
    return {readable(name): m[0, :, 0].unflatten(-1, record.memory.shape).float() for name, m in maps.items()}


def gaussian_maps(record: LayerRecord, query: int) -> dict[str, Tensor]:
    """For each Gaussian term its factor [H, h, w] on the attention weights, 1 at the cell it favours most."""
    logits = record.term_logits([query])
    chosen = {name: logits[name][0, :, 0] for name in record.gaussian_centers([query])}
    if record.memory.mask is not None:
        chosen = {name: m.masked_fill(record.memory.mask[0], -torch.inf) for name, m in chosen.items()}
    factors = {name: (m - m.amax(-1, keepdim=True)).exp() for name, m in chosen.items()}
    return {name: m.unflatten(-1, record.memory.shape).float() for name, m in factors.items()}


def draw_attention(look: Look, query: int, layer: int) -> Figure:
    """Each term's attention and their sum's, mean over heads."""
    record = look.layers[layer - 1]
    maps = attention_maps(record, query)
    columns = len(maps) if len(maps) < 4 else math.ceil(len(maps) / 2)
    rows = math.ceil(len(maps) / columns)
    figure, grid = figure_for(look.image, rows=rows, columns=columns, side=3.6, words=2.2)
    panels = list(grid.flat)
    if len(panels) > len(maps):  # the image itself fills the place that is over
        plain = panels.pop(0)
        show_image(plain, look.image)
        mark_reference(plain, record, query)
        plain.set_title("image", fontsize=11)
    for axes, (name, values) in zip(panels, maps.items(), strict=True):
        percent = 100 * values.mean(0).numpy()
        drawn = draw_heat(axes, look.image, percent)
        mark_reference(axes, record, query)
        axes.set_title(name, fontsize=11)
        bar = figure.colorbar(drawn, ax=axes, fraction=0.046, pad=0.02)
        bar.ax.tick_params(labelsize=8)
        bar.set_label("% of the attention in a cell", fontsize=8)
    figure.suptitle(f"Attention of query {query} in layer {layer}, mean over {len(values)} heads", fontsize=12)
    return figure


def draw_heads(look: Look, query: int, layer: int) -> Figure:
    """A row for each head, a column for each term and their sum."""
    record = look.layers[layer - 1]
    maps = attention_maps(record, query)
    heads = len(next(iter(maps.values())))
    figure, grid = figure_for(look.image, rows=heads, columns=len(maps), side=2.0, words=1.6)
    for column, (name, values) in enumerate(maps.items()):
        for head in range(heads):
            axes: Axes = grid[head, column]
            percent = 100 * values[head].numpy()
            draw_heat(axes, look.image, percent)
            mark_reference(axes, record, query)
            title = f"at most {percent.max():.{0 if percent.max() >= 9.95 else 1}f} %"
            axes.set_title(f"{name}\n{title}" if head == 0 else title, fontsize=9)
            if column == 0:
                axes.set_ylabel(f"head {head + 1}", fontsize=10)
    figure.suptitle(f"Attention of query {query} in layer {layer}, head by head", fontsize=12)
    return figure


def draw_gaussians(look: Look, query: int, layer: int, name: str) -> Figure:
    """A panel for each head: the Gaussian, its centre, and the way there from the reference point."""
    record = look.layers[layer - 1]
    maps, centers = gaussian_maps(record, query)[name], record.gaussian_centers([query])[name][0, :, 0]
    heads = len(maps)
    columns = min(4, heads)
    rows = math.ceil(heads / columns)
    figure, grid = figure_for(look.image, rows=rows, columns=columns, side=3.0, words=2.8)
    point = record.reference.point[0, query].tolist()
    for head, axes in enumerate(grid.flat[:heads]):
        drawn = draw_heat(axes, look.image, maps[head].numpy(), top=1.0)
        mark_reference(axes, record, query)
        center = centers[head].tolist()
        seen = all(math.isfinite(value) and -0.5 < value < 1.5 for value in center)
        if seen:
            for width, colour in ((3.5, "black"), (1.6, "cyan")):
                axes.plot([point[0], center[0]], [point[1], center[1]], color=colour, lw=width, zorder=5)
            axes.scatter(*center, marker="X", s=80, c="cyan", edgecolors="black", linewidths=0.9, zorder=6)
        outside = not seen or not all(0 <= value <= 1 for value in center)
        axes.set_title(f"head {head + 1}" + (" (centre outside the image)" if outside else ""), fontsize=10)
    for axes in grid.flat[heads:]:
        axes.remove()
    bar = figure.colorbar(drawn, ax=grid, fraction=0.03, pad=0.02)
    bar.set_label("factor on the attention", fontsize=9)
    figure.suptitle(f"{headline(name)} of query {query} in layer {layer}", fontsize=12)
    return figure


def mark_reference(axes: Axes, record: LayerRecord, query: int) -> None:
    """The reference that the layer looked around: its point, and its box where it has sides."""
    reference = record.reference
    if reference.sides is not None:
        draw_box(axes, np.clip(reference.corners("a picture")[0, query].tolist(), 0, 1), dashed=True)
    x, y = reference.point[0, query].tolist()
    axes.scatter(x, y, s=34, c="white", edgecolors="black", linewidths=1, zorder=7)
