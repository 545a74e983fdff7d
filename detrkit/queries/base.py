"""What a query generator is."""

from __future__ import annotations

from torch import Tensor

from detrkit.decoder import QueryDecoder
from detrkit.errors import lacking
from detrkit.layers import Part
from detrkit.recipe import define_slot
from detrkit.structures import Memory, Queries, QueryLimit

SECOND = "second"
"""the name among a generator's extras of the proposals that its second set of queries starts from"""


class QueryGenerator(Part):
    """Memory to the decoder's queries.

    One whose points stand on a grid tells its geometry so (`Geometry.on_grid`).
    """

    makes_groups = False
    """whether it makes as many groups of queries as it is asked for; its constructor then takes `groups`, their most"""
    makes_second = False
    """whether it makes a second set of queries by proposals of their own where it is asked (`with_second`); its
    constructor then takes `second`, how many at most, and the proposals are the extra `SECOND`"""
    labels: Tensor | None
    """[K + 1, D - 1] the label table that its content is made of, where it is; denoising may share it"""
    embeds_boxes = False
    """whether it has an embedding for any box (`embed_boxes`)"""

    limit: QueryLimit | None = None
    """how many queries it makes at most, and the recipe's key for it; None: it does not say"""

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("labels", None)

    def forward(self, memory: Memory, groups: int = 1) -> Queries:
        """The queries [B, groups * N] of the first `groups` groups, group by group."""
        raise lacking(self, QueryGenerator.forward)

    def with_second(self, memory: Memory, groups: int = 1) -> Queries:
        """The same with the second set after them [B, groups * N + M]; asked only where `makes_second` says so."""
        raise lacking(self, QueryGenerator.with_second)

    def embed_boxes(self, boxes: Tensor) -> Tensor:
        """The embeddings [..., D] of boxes [..., 4] (cx, cy, w, h); asked only where `embeds_boxes` says so."""
        raise lacking(self, QueryGenerator.embed_boxes)

    def check(self, decoder: QueryDecoder) -> None:
        """Raise UserError if the queries do not go with the decoder."""


define_slot("queries", offers=("width", "classes", "geometry", "groups", "second", "head"), base=QueryGenerator)
