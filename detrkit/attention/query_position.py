"""What a decoder layer knows of its queries' places: learned embeddings and sine codes of references.

Each part gives embeddings (for self-attention, and for the content of the first cross-attention) and codes (for
the position terms of cross-attention) under names of its own. A decoder holds any number of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from detrkit.errors import UserError, lacking, require_given
from detrkit.layers import MLP, Part, require_module_names, xavier_matrices
from detrkit.position import Temperature, sine_code
from detrkit.recipe import Given, as_factory, define_slot, register
from detrkit.structures import Memory, Queries, QueryPosition, Relation

Order = Literal["xy", "yx"]


class QueryPositionPart(Part):
    """One source of embeddings and codes."""

    embeddings: tuple[str, ...]
    """names of the embeddings [B, N, D] that it gives"""
    codes: tuple[str, ...] = ()
    """names of the codes [B, N, F] of the query's place that it gives, each scaled by content where that is asked; one
    that is not declared here is given all the same, but is no reason for `decoder.content_scale`"""
    relations: tuple[str, ...] = ()
    """names of what it says of pairs of queries, each for a term of self-attention that must be there"""
    reads_boxes = False
    """whether it asks for the boxes of the layers before (`Queries.boxes`)"""
    reads_embeddings = False
    """whether it takes a query's place from the embedding that the query brings along, and so tells those apart"""

    def forward(self, queries: Queries, scale: Tensor | None, memory: Memory) -> QueryPosition:
        """`queries` enter the layer; codes are multiplied by `scale` [B, N, D] where it is given."""
        raise lacking(self, QueryPositionPart.forward)


define_slot("query_position", offers=("width", "heads"), base=QueryPositionPart)


class QueryPositions(nn.ModuleDict):
    """Several such sources as one, by name.

    Args:
        sources: in any form (see `detrkit.recipe.as_factory`).
        width: D.
        heads: H.

    Raises:
        UserError: one stands twice, two give something of one name, or a name is one that a `ModuleDict` has for
            something else.
    """

    def __init__(self, sources: Sequence[Given], *, width: int, heads: int):
        placed = [as_factory("query_position", given) for given in sources]
        if repeated := [f.name for f in placed if [g.name for g in placed].count(f.name) > 1]:
            raise UserError(f'"{repeated[0]}" stands twice in decoder.positions')
        require_module_names([factory.name for factory in placed], "a query position")
        super().__init__({factory.name: factory(width=width, heads=heads) for factory in placed})
        _require_one_giver("embedding", {name: source.embeddings for name, source in self.named.items()})
        _require_one_giver("code", {name: source.codes for name, source in self.named.items()})
        _require_one_giver("relation", {name: source.relations for name, source in self.named.items()})

    @property
    def named(self) -> dict[str, QueryPositionPart]:
        """The sources by name."""
        return {name: cast(QueryPositionPart, source) for name, source in self.items()}

    @property
    def relation_names(self) -> tuple[str, ...]:
        """Names of all that they say of pairs of queries."""
        return tuple(name for source in self.named.values() for name in source.relations)

    @property
    def reads_boxes(self) -> bool:
        """Whether one of them asks for the boxes of the layers before."""
        return any(source.reads_boxes for source in self.named.values())

    @property
    def embedding_names(self) -> tuple[str, ...]:
        """Names of all embeddings that they give."""
        return tuple(name for source in self.named.values() for name in source.embeddings)

    def forward(self, queries: Queries, scale: Tensor | None, memory: Memory) -> QueryPosition:
        """What all of them say of the queries' places; the arguments are a source's."""
        embeddings: dict[str, Tensor] = {}
        codes: dict[str, Tensor] = {}
        relations: dict[str, Relation | None] = {}
        for name, source in self.named.items():
            position = source(queries, scale, memory)
            _check(name, source, position)
            embeddings |= position.embeddings
            codes |= position.codes
            relations |= position.relations
        return QueryPosition(embeddings, codes, relations)


def _check(name: str, source: QueryPositionPart, position: QueryPosition) -> None:
    """Raise UserError unless a source gives what it has declared, by which the layers were built."""
    if torch.compiler.is_compiling():
        return
    require_given(position, QueryPosition, f'the query position "{name}"')
    for kind in ("embeddings", "codes"):
        given, declared = sorted(getattr(position, kind)), sorted(getattr(source, kind))
        if not {*declared} <= {*given} or (kind == "embeddings" and given != declared):
            raise UserError(f'the query position "{name}" gives the {kind} {given}, and its class declares {declared}')


def _require_one_giver(kind: str, given: dict[str, tuple[str, ...]]) -> None:
    """Raise UserError if two sources give something of one name; `given` names each one's."""
    givers: dict[str, str] = {}
    for part, names in given.items():
        for name in names:
            if name in givers:
                raise UserError(
                    f'decoder.positions: "{givers[name]}" and "{part}" both give the {kind} "{name}"; keep one'
                )
            givers[name] = part


def ordered(points: Tensor, order: Order) -> Tensor:
    """(x, y) pairs [..., 2] in the order that a code wants."""
    return points if order == "xy" else points.flip(-1)


@register("query_position", "learned")
class LearnedPosition(QueryPositionPart):
    """The embedding [B, N, D] that each query brings along, the same in every layer (DETR, section 3.2).

    Needs queries that bring one: "learned", "learned_points" or "two_stage".
    """

    embeddings = ("learned",)
    reads_embeddings = True

    def __init__(self):
        super().__init__()  # named here, because a recipe's options are a constructor's parameters

    def forward(self, queries: Queries, scale: Tensor | None, memory: Memory) -> QueryPosition:
        if queries.embedding is None:
            raise UserError('decoder.positions has "learned", but these queries bring no embedding of their own')
        codes = {} if queries.read_from is None else {"read_from": queries.read_from}
        return QueryPosition({"learned": queries.embedding}, codes)


@register("query_position", "entering")
class EnteringContent(QueryPositionPart):
    """The code "entering": content [B, N, D] as it enters the layer, before self-attention.

    The term "head_gaussian" reads places there (SMCA, section 3.2).
    """

    embeddings = ()

    def forward(self, queries: Queries, scale: Tensor | None, memory: Memory) -> QueryPosition:
        return QueryPosition({}, {"entering": queries.content})


@register("query_position", "point")
class PointPosition(QueryPositionPart):
    """The reference point: code [B, N, D], embedding an MLP of it (Conditional DETR, section 3.2).

    Args:
        width: D, half for each coordinate.
        temperature: base of the code's frequencies.
        order: which coordinate comes first; SAP-DETR codes x first, the DAB family y first.
        embedding: "mlp"; "code", the code itself, which then sends no gradient to the point (SAM-DETR); or "none", for
            the code only (Conditional DETR, whose embeddings are learned).
    """

    codes = ("point",)

    def __init__(
        self,
        *,
        width: int,
        temperature: Temperature = 20.0,
        order: Order = "xy",
        embedding: Literal["mlp", "code", "none"] = "mlp",
    ):
        super().__init__()
        self.half_width, self.temperature, self.order, self.embedding = width // 2, temperature, order, embedding
        self.embed = MLP(width, width, width, 2) if embedding == "mlp" else nn.Identity()
        self.embeddings = () if embedding == "none" else ("point",)

    def forward(self, queries: Queries, scale: Tensor | None, memory: Memory) -> QueryPosition:
        code = sine_code(ordered(queries.reference.point, self.order), self.half_width, self.temperature)
        if self.embedding == "code":
            code = code.detach()
        embeddings = {name: self.embed(code) for name in self.embeddings}
        return QueryPosition(embeddings, {"point": code if scale is None else code * scale})


@register("query_position", "box")
class BoxPosition(QueryPositionPart):
    """The reference box: embedding of point and size, code of the point (DAB-DETR, sections 4.2 and 4.4).

    Needs references with sides: geometry "box" or "salient_point".

    Args:
        width: D.
        temperature: base of the code's frequencies.
        modulated: scale the code's y half by h_hat / h and its x half by w_hat / w, where the content predicts
            (w_hat, h_hat); a very thin box gives very large queries, as published. Set it to false where nothing reads
            the code (`decoder.content_scale`).
        frame: what coordinates are a share of: the unpadded "image" (DAB-DETR), or the "padded_map" of the first level
            (DINO's official code), which differs where a batch pads images.
        scaled: what `decoder.content_scale` multiplies: the "code", or the "embedding" (Relation DETR).
    """

    embeddings = ("box",)
    codes = ("point",)

    def __init__(
        self,
        *,
        width: int,
        temperature: Temperature = 10000.0,
        modulated: bool = True,
        frame: Literal["image", "padded_map"] = "image",
        scaled: Literal["code", "embedding"] = "code",
    ):
        super().__init__()
        self.half_width, self.temperature, self.frame, self.scaled = width // 2, temperature, frame, scaled
        self.embed = MLP(2 * width, width, width, 2)
        self.size = MLP(width, width, 2, 2) if modulated else None
        xavier_matrices(self)

    def forward(self, queries: Queries, scale: Tensor | None, memory: Memory) -> QueryPosition:
        point, size = queries.reference.point, queries.reference.size("query position 'box'")
        if self.frame == "padded_map":
            ratio = memory.valid_ratios[:, :1]
            point, size = point * ratio, size * ratio
        numbers = torch.cat((point.flip(-1), size), dim=-1)  # (y, x, w, h), the published order
        code = sine_code(numbers, self.half_width, self.temperature)
        embedding, code = self.embed(code), code[..., : 2 * self.half_width]
        if scale is not None and self.scaled == "embedding":
            embedding = embedding * scale
        elif scale is not None:
            code = code * scale
        if self.size is not None:
            ratio = self.size(queries.content).sigmoid() / size  # (w, h)
            code = code * ratio.flip(-1).repeat_interleave(self.half_width, dim=-1)
        return QueryPosition({"box": embedding}, {"point": code})
