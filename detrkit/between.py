"""What goes from one decoder layer to the next, and what may come between the two."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor, nn

from detrkit.layers import take
from detrkit.structures import Queries, QueryLayout, Reference


@dataclass(frozen=True)
class LayerInput:
    """What enters a decoder layer."""

    queries: Queries
    """their content, references and layout as they enter"""
    attached: Reference
    """the same references, with the graph of the layer before"""
    latest: Tensor | None = None
    """[B, N, 4] the boxes that the layer before predicted, without graph; the first layer has those of its references,
    or None where these have no sides"""
    listed: Tensor | None = None
    """[B, N] bool, False for queries that answer for nothing from here on; None: nobody asked, all do"""

    @classmethod
    def first(cls, queries: Queries) -> Self:
        """What enters the first layer."""
        reference = queries.reference
        return cls(queries, reference, None if reference.sides is None else reference.boxes().detach())

    def with_boxes(self, boxes: Tensor) -> Self:
        """The same after a layer that predicted these boxes [B, N, 4], without graph."""
        before = boxes if self.latest is None else self.latest
        return replace(self, queries=replace(self.queries, boxes=(before, boxes)), latest=boxes)

    def take(self, order: Tensor) -> Self:
        """The queries at places [B, N] of all that they were, layout and `listed` apart, which tell of places."""
        queries = self.queries
        return replace(
            self,
            queries=replace(
                queries,
                content=take(queries.content, order),
                reference=queries.reference.take(order),
                embedding=_taken(queries.embedding, order),
                read_from=_taken(queries.read_from, order),
                boxes=None if queries.boxes is None else (take(queries.boxes[0], order), take(queries.boxes[1], order)),
            ),
            attached=self.attached.take(order),
            latest=_taken(self.latest, order),
        )


class BetweenLayers(nn.Module):
    """What a decoder does with its queries between two layers; this one does nothing."""

    def entering(self, layer: int, queries: Queries) -> Tensor:
        """The content [B, N, D] with which queries enter a layer, counted from 0."""
        return queries.content

    def added(self, layer: int, logits: Tensor, layout: QueryLayout | None) -> Tensor:
        """The logits [B, N, K] of a layer's head, with what is added to them."""
        return logits

    def forward(self, left: LayerInput, read: Tensor, certainty: Callable[[Tensor], Tensor]) -> LayerInput:
        """What enters the next layer.

        Args:
            left: what would, if nothing came between.
            read: [B, N, D] what the heads of the layer before have read.
            certainty: to [B, N], how sure those heads are that there is an object, of content [B, N, D].
        """
        return left


def _taken(given: Tensor | None, order: Tensor) -> Tensor | None:
    return None if given is None else take(given, order)
