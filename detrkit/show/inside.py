"""All pictures of a detector's look at one image, with captions; what cannot be shown is said."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from matplotlib.figure import Figure

from detrkit.drawing.charts import to_png
from detrkit.drawing.faults import Faults
from detrkit.show.attention_maps import draw_attention, draw_gaussians, draw_heads
from detrkit.show.look import Detection, Look
from detrkit.show.page import Picture
from detrkit.show.panels import headline
from detrkit.show.query_paths import BEST, FARTHEST, draw_cells, draw_paths, moves
from detrkit.show.sample_maps import draw_samples
from detrkit.show.score_maps import draw_scores

DOTS = 110  # an inch
REFERENCE = "White dot: the point that the layer looks around; dashed: its box, where it has one."


def missing(look: Look) -> list[str]:
    """What this detector's parts do not have, and its pictures therefore not show."""
    gaps = []
    if look.cells() is None:
        gaps.append("No grid: its queries do not belong to grid cells, so paths are shown without.")
    if not moves(look):
        gaps.append("No movement: its reference points stay where they start.")
    record = look.layers[-1]
    if record.has_samples:
        return gaps
    if not record.has_terms:
        kind = type(record.attention).__name__
        return [*gaps, f"No attention maps: its cross-attention ({kind}) does not say what its logits are made of."]
    if not record.gaussian_centers([0]):
        gaps.append("No Gaussian term in its attention, so there are no pictures of Gaussians.")
    return gaps


def draw_inside(
    look: Look, *, kept: Sequence[Detection], queries: Sequence[int], layers: Sequence[int], faults: Faults
) -> Iterator[Picture]:
    """Every picture that this detector allows; layers count from 1. faults: gets those that cannot be drawn."""
    yield from _paths(look, kept, faults)
    yield from _picture(
        faults,
        "scores.png",
        "Query scores by layer",
        "Every query at the point that the layer looked around, coloured by its best class score in that layer"
        + (", which also fills its grid cell" if look.cells() is not None else "; a larger disc is surer")
        + ". Later layers should leave one sure query for each object.",
        lambda: draw_scores(look),
    )
    for query in queries:
        for layer in layers:
            if look.layers[layer - 1].has_terms:
                yield from _attention(look, query, layer, faults)
            if look.layers[layer - 1].has_samples:
                yield from _samples(look, query, layer, faults)


def _paths(look: Look, kept: Sequence[Detection], faults: Faults) -> Iterator[Picture]:
    yield from _picture(
        faults,
        "paths.png",
        "Reference points",
        "Each query's point from layer to layer, from a white dot, its start, to a star, the last layer's own answer. "
        "Larger, with box and number: the queries of the detections"
        + (". White lines: the grid of the queries' cells." if look.cells() is not None else "."),
        lambda: draw_paths(look, kept),
    )
    grid = look.cells() is not None
    yield from _picture(
        faults,
        "cells.png",
        "Movement inside the grid cell" if grid else "Movement, enlarged",
        f"The paths of the best detections (at most {BEST}), then of {FARTHEST} other queries that travel farthest, "
        "enlarged"
        + (" to the grid cell (dashed) that each point belongs to" if grid else "")
        + ". Numbers: 0 is the start, k the point after layer k. Coloured line: the edge of the detected box.",
        lambda: draw_cells(look, kept),
    )


def _attention(look: Look, query: int, layer: int, faults: Faults) -> Iterator[Picture]:
    where = f"query {query}, layer {layer}"
    stem = f"query_{query}_layer_{layer}"
    for name in look.layers[layer - 1].gaussian_centers([query]):
        yield from _picture(
            faults,
            f"{stem}_{name}.png",
            f"{headline(name)} per head: {where}",
            "By which factor the Gaussian lowers the attention to a cell, relative to the cell it favours most. Cyan "
            f"cross: its centre, with a line from the reference point. {REFERENCE}",
            partial(draw_gaussians, look, query, layer, name),
        )
    first = " Places: position embeddings that only the first layer adds to its content." if layer == 1 else ""
    yield from _picture(
        faults,
        f"{stem}_attention.png",
        f"Attention by term: {where}",
        "Softmax of each term's logits alone, mean over heads, and, last, of their sum: the attention that the layer "
        f"uses. Every panel has its own scale. {REFERENCE}{first}",
        lambda: draw_attention(look, query, layer),
    )
    yield from _picture(
        faults,
        f"{stem}_heads.png",
        f"Attention by head and term: {where}",
        "The same for each head (rows). In a row the last panel is the product of the others, scaled to add up to 1. "
        "Every panel has its own scale; above it stands the share of its strongest cell.",
        lambda: draw_heads(look, query, layer),
    )


def _samples(look: Look, query: int, layer: int, faults: Faults) -> Iterator[Picture]:
    yield from _picture(
        faults,
        f"query_{query}_layer_{layer}_samples.png",
        f"Places that are read: query {query}, layer {layer}",
        "A dot for each place that deformable attention reads, in its head's colour; its area is its weight. What "
        f"falls outside the image reads nothing. {REFERENCE}",
        lambda: draw_samples(look, query, layer),
    )


def _picture(faults: Faults, file: str, title: str, caption: str, draw: Callable[[], Figure]) -> Iterator[Picture]:
    png = faults.draw(title, lambda: to_png(draw(), DOTS))
    if png is not None:
        yield Picture(file, title, caption, png)
