"""The decoder: the one loop that every detector runs."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Annotated, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from detrkit.attention.base import SelfAttention
from detrkit.attention.query_position import QueryPositions
from detrkit.between import BetweenLayers, LayerInput
from detrkit.decoder_layer import DecoderLayer, ManyFirst
from detrkit.errors import UserError, lacking, require_given
from detrkit.geometry.base import Decoded, Geometry
from detrkit.heads import Head, HeadOutput, HeadPair
from detrkit.layers import MLP, Activation, Count, Depth, FeedForward, Part, Probability, xavier_matrices
from detrkit.ranking import QueryRanking
from detrkit.recipe import Given, Slot, as_factory, define_slot, register
from detrkit.structures import SILENT, Memory, Output, Queries, QueryLayout, Reference
from detrkit.suppression import Suppression

SelfAttentionPart = Annotated[Given, Slot("self_attention")]
CrossAttentionPart = Annotated[Given, Slot("cross_attention")]
Positions = Annotated[list[Given], Slot("query_position")]


class QueryDecoder(Part):
    """Queries and memory to predictions."""

    depth: int | None = None
    """how many layers predict and say in training what their heads read (`Output.content`); None: it does not say so"""
    gives_many = False
    """whether it makes one-to-many predictions in training (`Output.many`), which a block has to train"""
    has_second_head = False
    """whether a second set of queries has heads of its own, which a block's queries have to train"""
    answer_only = False
    """whether only the last layer's predictions are asked for; a decoder may give all the same"""

    @property
    def embedding_readers(self) -> list[str] | None:
        """What in it reads the embedding that each query brings along, by the names of a recipe; None: not said."""
        return None

    def forward(self, queries: Queries, memory: Memory) -> Output:
        """Predictions of Y layers for N queries; the queries' extras go along in the output."""
        raise lacking(self, QueryDecoder.forward)


define_slot("decoder", offers=("width", "heads", "levels", "classes", "geometry", "head"), base=QueryDecoder)


@register("decoder", "transformer")
class Decoder(QueryDecoder):
    """Layers that look around each query's reference, predict, and move the reference (DETR, section A.3).

    x = norm(x + self-attention(x)), then x = norm(x + cross-attention(x, memory)), then x = norm(x + feed-forward(x));
    head and geometry make the layer's boxes of it, and the next layer's reference.

    Args:
        width: D.
        heads: H.
        levels: of the memory.
        classes: K.
        geometry: decodes and moves references.
        head: factory of the prediction head.
        layers: Y.
        feedforward: hidden width.
        activation: of the feed-forward network.
        dropout: on attention weights, sub-layer outputs and hidden units.
        self_attention: part of every layer.
        cross_attention: part of every layer.
        positions: what layers know of the queries' places, shared by all layers.
        content_scale: multiply the position codes by an MLP of the content entering the layer, from the second layer
            on (Conditional DETR, section 3.2). Of cross-attentions "terms" alone reads them: set it to false with
            another, since the MLP would learn nothing (but for a position "box" with `scaled = "embedding"`).
        look_forward_twice: predictions start from the reference with its graph, so that a layer's box loss also
            trains the layer before (DINO, section 3.5; DAB- and SAP-DETR's sides do so too).
        moved_by: content that moves the reference: "raw" layer output (published DAB and SAP), or "normed", which
            makes the next reference the very box that was predicted.
        final_norm: norm what the heads read; Anchor, SAM- and Deformable DETR do not.
        norm_carried: what was normed for the heads also goes on to the next layer, and the last layer's output is
            normed twice: DETR and Conditional DETR of the package `transformers` where `auxiliary_loss = true`.
        start: "xavier" draws every matrix of the layers and of the content's scale Xavier-uniform (DETR and most after
            it); "copies" leaves them as their parts draw themselves, and starts all layers as the first (Anchor DETR,
            official code).
        ranked: put queries into the order of their scores between layers, and give each rank content and logits of its
            own (`ranking.QueryRanking`, Rank-DETR); the number is that of a training's queries, of all groups. A
            query's place is then its rank, and another one in each layer. "none": queries stay in their places.
        many_first: a layer looks at the memory first and lets queries see one another after that; what it knows in
            between, through a feed-forward network of its own, makes one-to-many predictions by the same heads in
            training (MS-DETR, section 3.3). Needs a block that trains them: "mixed" with `source = "decoder"`.
        second_head: a second set of queries has heads of its own in all layers (DDQ). Needs a block that wants such a
            set: "dense", or "hybrid" with a `count`.
        distinct: between layers, suppress queries of the answer whose box overlaps a better one's by more than this
            IoU, better by the head's logits of the raw output: in the next layer they do not see one another, and they
            are neither matched nor detections (`suppression.Suppression`, DDQ; published 0.8). "none": all stand.
    """

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        levels: int,
        classes: int,
        geometry: Geometry,
        head: Given,
        self_attention: SelfAttentionPart,
        cross_attention: CrossAttentionPart,
        positions: Positions,
        layers: Depth = 6,
        feedforward: Count = 2048,
        activation: Activation = "relu",
        dropout: Probability = 0.0,
        content_scale: bool = True,
        look_forward_twice: bool = True,
        moved_by: Literal["raw", "normed"] = "raw",
        final_norm: bool = True,
        norm_carried: bool = False,
        start: Literal["xavier", "copies"] = "xavier",
        ranked: Count | None = None,
        many_first: bool = False,
        second_head: bool = False,
        distinct: Annotated[float, Field(ge=0, le=1)] | None = None,
    ):
        super().__init__()
        if ranked is not None and distinct is not None:
            raise UserError("decoder.ranked moves queries that decoder.distinct tells apart by their places; keep one")
        if norm_carried and not final_norm:
            raise UserError("decoder.norm_carried = true carries the final norm on; it needs decoder.final_norm = true")
        self.geometry, self.depth, self.gives_many = geometry, layers, many_first
        self.look_forward_twice, self.moved_by, self.norm_carried = look_forward_twice, moved_by, norm_carried
        look, read = as_factory("self_attention", self_attention), as_factory("cross_attention", cross_attention)
        sources = QueryPositions(positions, width=width, heads=heads)
        if content_scale and not any(source.codes for source in sources.named.values()):
            raise UserError(
                f"decoder.content_scale = true scales codes of places, and decoder.positions = {list(sources)} "
                'declares none (`codes` of a part); set it to false, or name a position that does, such as "point"'
            )
        offered = {"width": width, "heads": heads, "positions": sources.embedding_names, "dropout": dropout}

        def network() -> FeedForward:
            return FeedForward(width=width, hidden=feedforward, activation=activation, dropout=dropout)

        self.layers = nn.ModuleList(
            DecoderLayer(
                self_attention=look(**offered),
                cross_attention=read(**offered, levels=levels, first=index == 0),
                feedforward=network(),
                width=width,
                dropout=dropout,
                many_first=ManyFirst(feedforward=network(), width=width, dropout=dropout) if many_first else None,
            )
            for index in range(layers)
        )
        for layer in self.layers:
            _require_both(sources, cast(DecoderLayer, layer).self_attention)
        self.content_scale = MLP(width, width, width, 2) if content_scale else None
        if start == "xavier":
            xavier_matrices(self)
        else:
            for layer in self.layers[1:]:
                layer.load_state_dict(self.layers[0].state_dict(), strict=False)  # a first layer may hold more
        self.positions = sources  # after the draw, as they start by themselves
        self.norm = nn.LayerNorm(width) if final_norm else nn.Identity()

        def make_head() -> Head:
            return as_factory("head", head)(
                width=width,
                classes=classes,
                layers=layers,
                offset_widths=geometry.offset_widths,
                size_offsets=geometry.size_offsets,
            )

        self.head = make_head()
        self.second_head = make_head() if second_head else None
        self.has_second_head = second_head
        self.logits = classes + self.head.background
        if distinct is not None and self.head.background:
            raise UserError(
                'decoder.distinct silences queries by their class logits, and head.background has "no object"'
            )
        self.between = BetweenLayers()
        if distinct is not None:
            self.between = Suppression(distinct)
        elif ranked is not None:
            self.between = QueryRanking(width=width, logits=self.logits, layers=layers, count=ranked)

    @property
    def embedding_readers(self) -> list[str]:
        """Those query positions that read the embedding that each query brings along."""
        return [name for name, part in self.positions.named.items() if part.reads_embeddings]

    def forward(self, queries: Queries, memory: Memory) -> Output:
        head = self._heads(queries.layout, queries.content.shape[1])
        answers, early = _Predictions(), _Predictions()
        read: list[Tensor] = []
        entering = LayerInput.first(queries)
        for index in range(len(self.layers)):
            is_last = index + 1 == len(self.layers)
            content, many = self._look(index, entering, memory)
            content, normed = self._normed(content, is_last)
            raw = self._predicted(head, index, normed, entering) if is_last or not self.answer_only else None
            if raw is not None:
                answers.add(raw, self.geometry.decode(raw.offsets, entering.attached), entering.listed)
                read.append(normed)
            if many is not None:
                found = self._predicted(head, index, self.norm(many), entering)
                early.add(found, self.geometry.decode(found.offsets, entering.attached))
            if not is_last:
                left = self._left(index, entering, content, normed, raw, head)
                entering = self.between(left, normed, partial(head.certainty, index))
        return replace(
            answers.stacked(memory, self.head.background),
            extras=queries.extras,
            content=tuple(read) if self.training else None,
            many=early.stacked(memory, self.head.background) if self.gives_many and self.training else None,
        )

    def _look(self, index: int, entering: LayerInput, memory: Memory) -> tuple[Tensor, Tensor | None]:
        """A layer: content [B, N, D], and in training what `many_first` makes of it."""
        queries = replace(entering.queries, content=self.between.entering(index, entering.queries))
        scale = self.content_scale(queries.content) if self.content_scale is not None and index else None
        position = self.positions(queries, scale, memory)
        return self.layers[index](queries.content, position, queries.reference, memory, queries.layout)

    def _normed(self, content: Tensor, is_last: bool) -> tuple[Tensor, Tensor]:
        """The content [B, N, D] that goes on, and what the heads read of it."""
        normed = self.norm(content)
        if not self.norm_carried:
            return content, normed
        return normed, self.norm(normed) if is_last else normed

    def _left(
        self,
        index: int,
        entering: LayerInput,
        content: Tensor,
        normed: Tensor,
        raw: HeadOutput | None,
        head: Head | HeadPair,
    ) -> LayerInput:
        """What leaves a layer: its content, and references that have moved."""

        def offsets(of: Tensor) -> dict[str, Tensor]:
            return raw.offsets if raw is not None and of is normed else head.offsets(index, of)

        left = entering
        if self.positions.reads_boxes:
            left = left.with_boxes(self.geometry.decode(offsets(normed), entering.attached).boxes.detach())
        reference, attached = entering.queries.reference, entering.attached
        if self.geometry.moves:
            moved = self.geometry.move(offsets(content if self.moved_by == "raw" else normed), reference)
            require_given(moved, Reference, "the geometry's move")
            reference = moved.detach()
            attached = moved if self.look_forward_twice else reference
        return replace(left, queries=replace(left.queries, content=content, reference=reference), attached=attached)

    def _heads(self, layout: QueryLayout | None, queries: int) -> Head | HeadPair:
        """What predicts for so many queries."""
        if self.second_head is None or layout is None or not layout.second:
            return self.head
        return HeadPair(self.head, self.second_head, queries - layout.second)

    def _predicted(self, head: Head | HeadPair, layer: int, content: Tensor, entering: LayerInput) -> HeadOutput:
        """The heads' raw predictions, with what comes between layers adds to the logits."""
        raw = head(layer, content)
        if not torch.compiler.is_compiling():
            require_given(raw, HeadOutput, "the head")
            if raw.logits.shape != (*content.shape[:2], self.logits):
                wanted = [*content.shape[:2], self.logits]
                raise UserError(
                    f"the head gives logits {list(raw.logits.shape)}, should be [B, N, K] = {wanted}; one more, for "
                    '"no object", is the last where the head says background = True'
                )
        return raw._replace(logits=self.between.added(layer, raw.logits, entering.queries.layout))


class _Predictions:
    """What the layers have predicted, one after another."""

    def __init__(self) -> None:
        self.raw: list[HeadOutput] = []
        self.decoded: list[Decoded] = []
        self.listed: list[Tensor | None] = []

    def add(self, raw: HeadOutput, decoded: Decoded, listed: Tensor | None = None) -> None:
        """A layer's; queries that are not `listed` [B, N] say nothing, None: all do."""
        if not torch.compiler.is_compiling():
            require_given(decoded, Decoded, "the geometry's decode")
            decoded.check(raw.logits.shape[:2])
        self.raw.append(raw)
        self.decoded.append(decoded)
        self.listed.append(listed)

    def stacked(self, memory: Memory, background: bool) -> Output:
        """All layers' as one output."""
        logits = torch.stack([raw.logits for raw in self.raw])
        standing = self._standing(logits)
        return Output(
            logits=logits if standing is None else logits.masked_fill(~standing[..., None], SILENT),
            standing=standing,
            boxes=torch.stack([decoded.boxes for decoded in self.decoded]),
            encoded=memory,
            points=_stack([decoded.points for decoded in self.decoded]),
            named={name: torch.stack([one.named[name] for one in self.decoded]) for name in self.decoded[0].named},
            objectness=_stack([raw.objectness for raw in self.raw]),
            background=background,
        )

    def _standing(self, logits: Tensor) -> Tensor | None:
        """[Y, B, N] bool, or None where nobody was ever asked."""
        if all(listed is None for listed in self.listed):
            return None
        everyone = torch.ones(logits.shape[1:3], dtype=torch.bool, device=logits.device)
        return torch.stack([everyone if listed is None else listed for listed in self.listed])


def _require_both(positions: QueryPositions, attention: SelfAttention) -> None:
    """Raise UserError if self-attention asks for what no position says of pairs of queries, or leaves it unread."""
    given, asked = set(positions.relation_names), set(attention.relations)
    if lacking := asked - given:
        raise UserError(
            f'decoder.self_attention has the term "{min(lacking)}", which needs the position "{min(lacking)}": '
            f"add it to decoder.positions, which gives {sorted(given) or 'nothing'} of pairs of queries"
        )
    if unread := given - asked:
        raise UserError(
            f'decoder.positions has "{min(unread)}", which nothing reads; add the term "{min(unread)}" to '
            "decoder.self_attention.terms"
        )


def _stack(tensors: list[Tensor | None]) -> Tensor | None:
    given = [tensor for tensor in tensors if tensor is not None]
    return torch.stack(given) if given else None
