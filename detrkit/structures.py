"""What crosses the border between two parts of a detector.

Shape legend, used in every docstring of the package:

    B images    N queries    L memory tokens    D channels    H heads    K classes    T objects
    Y decoder layers         h, w the height and width of a feature map
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from detrkit.boxes import corners_to_center
from detrkit.errors import UserError
from detrkit.layers import constant, take

Target = dict[str, Tensor]
"""One image's truth: `labels` [T] int64 in 0..K-1, `boxes` [T, 4] as (cx, cy, w, h) in [0, 1]."""

Sizes = Tensor | Sequence[Sequence[float]]
"""[B, 2] the (height, width) of images in pixels."""


def require_bool(mask: Tensor | None, what: str) -> None:
    """Raise UserError if a mask is not bool: other codes give ones for what is no padding."""
    if mask is not None and mask.dtype != torch.bool:
        raise UserError(
            f"{what} is of {mask.dtype}; a mask is bool, True where padded (transformers' pixel_mask is 1 where it is "
            "not: pass pixel_mask == 0)"
        )


Extent = Literal["padded", "image"]
"""What a place in [0, 1] is a share of, when it becomes a cell: the batch's padded map, or the image's part of it."""


@dataclass(frozen=True)
class FeatureMap:
    """One level of the backbone's output."""

    values: Tensor
    """[B, C, h, w]"""
    mask: Tensor | None
    """[B, h, w] bool, True where padded; None when no image of the batch is padded"""
    pixel_mask: Tensor | None = None
    """[B, H, W] the same for the images' pixels, for levels that an encoder adds"""
    extent: Tensor | None = None
    """[B, 2] (width, height) of each image without padding, in cells and fractions of them"""


@dataclass(frozen=True)
class AxisCodes:
    """Codes of places along one axis at a time, for attention that looks along rows and columns apart."""

    x: Tensor
    """[B, w, D] of the map's columns"""
    y: Tensor
    """[B, h, D] of its rows"""
    of: Callable[[Tensor], Tensor]
    """the code [..., D] of any coordinate [...] in [0, 1], by the module that made the others"""

    def cells(self) -> Tensor:
        """[B, h * w, D] the codes of a cell's row and column, added."""
        return (self.y[:, :, None] + self.x[:, None]).flatten(1, 2)


@dataclass(frozen=True)
class Memory:
    """The encoder's output: one token a cell, row by row, one level after another from fine to coarse."""

    tokens: Tensor
    """[B, L, D]"""
    position: Tensor
    """[B, L, D] the code of each cell's place, unscaled"""
    shapes: tuple[tuple[int, int], ...]
    """(h, w) of each level; the sum of all h * w is L"""
    mask: Tensor | None = None
    """[B, L] bool, True where padded; None when nothing is padded"""
    extent: Tensor | None = None
    """[B, 2] (width, height) of each image without padding, in cells and fractions of them"""
    axes: AxisCodes | None = None
    """codes along rows and columns apart, where the position part makes them"""
    kept: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)
    """what was computed of the fields and is asked for again"""

    def __post_init__(self) -> None:
        require_bool(self.mask, "a memory's mask")

    @classmethod
    def from_map(cls, values: Tensor, position: Tensor, mask: Tensor | None = None) -> Memory:
        """One level's map [B, D, h, w] as memory.

        Args:
            position: [B or 1, D, h, w] the codes of the cells' places.
            mask: [B, h, w] bool, True where padded.

        Raises:
            UserError: the mask is not bool: elsewhere 1 may stand for what is no padding.
        """
        require_bool(mask, "a memory's mask")
        height, width = values.shape[-2:]
        codes = position.expand(values.shape[0], -1, -1, -1).flatten(2).transpose(1, 2)
        padded = None if mask is None else mask.flatten(1)
        return cls(values.flatten(2).transpose(1, 2), codes, ((height, width),), padded)

    @property
    def shape(self) -> tuple[int, int]:
        """(h, w) of a memory of one level.

        Raises:
            UserError: there are several, and whoever asks works on one map.
        """
        if len(self.shapes) > 1:
            raise UserError(
                f"a part of this detector works on one feature map, but the encoder gives {len(self.shapes)} levels; "
                "leave it one (backbone.levels = [-1], encoder.extra_levels = 0), or take parts that read any number, "
                'such as decoder.cross_attention = "deformable"'
            )
        return self.shapes[0]

    def coarsest(self) -> Memory:
        """The last level alone."""
        if len(self.shapes) == 1:
            return self
        height, width = self.shapes[-1]
        cells = height * width
        mask = None if self.mask is None else self.mask[:, -cells:]
        return Memory(self.tokens[:, -cells:], self.position[:, -cells:], self.shapes[-1:], mask)

    def as_map(self) -> Tensor:
        """The tokens of the one level as a map [B, D, h, w]."""
        return self.tokens.transpose(1, 2).unflatten(2, self.shape)

    def split(self, values: Tensor) -> tuple[Tensor, ...]:
        """Values [B, L, ...] of all cells, level by level."""
        return values.split([h * w for h, w in self.shapes], dim=1)

    def centers(self) -> Tensor:
        """[B or 1, L, 2] the middle (x, y) of each cell in the unpadded image; beyond 1 in padding."""
        levels = []
        for ratio, (height, width) in zip(self.valid_ratios.unbind(1), self.shapes, strict=True):
            y = (torch.arange(height, device=ratio.device, dtype=ratio.dtype) + 0.5) / height
            x = (torch.arange(width, device=ratio.device, dtype=ratio.dtype) + 0.5) / width
            y, x = torch.meshgrid(y, x, indexing="ij")
            levels.append(torch.stack((x, y), dim=-1).flatten(0, 1) / ratio[:, None])
        return torch.cat(levels, dim=1)

    def image_cells(self) -> Tensor:
        """[B or 1, 2] (width, height) of each image in cells: `extent` where known, else counted in whole cells."""
        return self.whole_cells() if self.extent is None else self.extent

    def whole_cells(self) -> Tensor:
        """[B or 1, 2] how many (columns, rows) of the one level belong to each image."""
        return self.valid_ratios[:, 0] * constant(self.shape[::-1], self.valid_ratios)

    def require_axes(self, asker: str) -> AxisCodes:
        """The codes along rows and columns, or an error that names who needs them."""
        if self.axes is None:
            raise UserError(f'{asker} needs codes of rows and columns apart: set position.type = "axes"')
        return self.axes

    @property
    def valid_ratios(self) -> Tensor:
        """[B or 1, levels, 2] the share of each level's (width, height) that is image and not padding.

        It turns places in the image into places in the padded map. Counted in cells, so it differs a little from level
        to level (Deformable DETR, official code). At least float32: places do not survive bfloat16.
        """
        # Not functools.cached_property: in Python 3.11 it takes a lock, and torch.compile breaks its graph there.
        if "valid_ratios" not in self.kept:
            self.kept["valid_ratios"] = self._valid_ratios()
        return self.kept["valid_ratios"]

    def _valid_ratios(self) -> Tensor:
        dtype = torch.promote_types(self.position.dtype, torch.float32)
        if self.mask is None:
            return self.position.new_ones(1, len(self.shapes), 2, dtype=dtype)
        ratios = []
        for mask, shape in zip(self.split(self.mask), self.shapes, strict=True):
            valid = (~mask.unflatten(1, shape)).to(dtype)
            ratios.append(torch.stack((valid[:, 0].sum(1) / shape[1], valid[:, :, 0].sum(1) / shape[0]), dim=-1))
        return torch.stack(ratios, dim=1)


@dataclass(frozen=True)
class Reference:
    """Where each query looks: a point, and where known the four sides of a box around it.

    A box reference is a point in the middle with equal opposite sides; a salient point lies anywhere in
    its box; a pure point has no sides. Geometries subclass it to carry what only they need.
    """

    point: Tensor
    """[B, N, 2] (x, y) in [0, 1] of the unpadded image"""
    sides: Tensor | None = None
    """[B, N, 4] distances (left, top, right, bottom) from the point, in [0, 1]"""

    def cells(self) -> Tensor | None:
        """[B, N, 4] (x0, y0, x1, y1) of the cells that the points move in; None where they move anywhere."""
        return None

    def detach(self) -> Self:
        """The same reference, cut off from the graph."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: t.detach() for name, t in tensors.items() if t is not None})

    def take(self, order: Tensor) -> Self:
        """The references at places [B, N]."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {n: take(t.expand(*order.shape, -1), order) for n, t in tensors.items() if t is not None}
        return replace(self, **moved)

    def join(self, other: Self) -> Self:
        """Both references' queries, one after the other; `other` is of the same geometry."""
        pairs = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in fields(self)}
        return replace(self, **{n: torch.cat(pair, dim=1) for n, pair in pairs.items() if pair[0] is not None})

    def require_sides(self, asker: str) -> Tensor:
        """The sides, or an error that names who needs them."""
        if self.sides is None:
            raise UserError(
                f"{asker} needs references with sides, but this geometry's have points only; "
                'set geometry.type = "box" or "salient_point"'
            )
        return self.sides

    def corners(self, asker: str) -> Tensor:
        """[B, N, 4] the box as (x0, y0, x1, y1), not clipped to the image."""
        sides = self.require_sides(asker)
        return torch.cat((self.point - sides[..., :2], self.point + sides[..., 2:]), dim=-1)

    def boxes(self) -> Tensor:
        """[B, N, 4] the box as (cx, cy, w, h) in [0, 1]. Raises UserError if the geometry has points only."""
        return corners_to_center(self.corners("a box"))

    def size(self, asker: str) -> Tensor:
        """[B, N, 2] the box's (width, height)."""
        sides = self.require_sides(asker)
        return sides[..., :2] + sides[..., 2:]


@dataclass(frozen=True)
class QueryLayout:
    """Who sees whom in the decoder's self-attention, where training blocks have added queries.

    Denoising slots stand first; then come the groups of matching queries, of which the first is the answer. A matching
    query sees its own group, or with `joined` those beyond the answer are one. A slot sees its own denoising group and
    the answer.
    """

    queries: int
    """N of one group of matching queries"""
    groups: int = 1
    """groups of matching queries"""
    slots: Tensor | None = None
    """[S] int64, the denoising group of each slot, from 0 on; -1 for slots that only fill up"""
    joined: bool = False
    """whether the groups beyond the answer see one another; several of their queries then answer for one object"""
    kept: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)
    """what was computed of the fields and is asked for again"""

    @property
    def matching(self) -> tuple[int, ...]:
        """The queries of each set of matching queries that sees itself alone."""
        if self.joined:
            return (self.queries, (self.groups - 1) * self.queries)
        return (self.queries,) * self.groups

    @property
    def answer(self) -> slice:
        """The places of the first group of matching queries, which alone exists outside training."""
        first = 0 if self.slots is None else len(self.slots)
        return slice(first, first + self.queries)

    @property
    def visible(self) -> Tensor:
        """[S + N, S + N] bool, True where a slot or a query of the answer may look at another; on the slots' device."""
        if "visible" not in self.kept:
            self.kept["visible"] = self._sight(1, None if self.slots is None else self.slots.device)
        return self.kept["visible"]

    def attention_mask(self, device: torch.device | str | None = None) -> Tensor:
        """[N, N] bool, True where a row may not look at a column: `attn_mask` of `torch.nn.MultiheadAttention`.

        N counts slots and all groups. `torch.nn.functional.scaled_dot_product_attention` wants its negation.
        """
        return ~self._sight(self.groups, device)

    def _sight(self, groups: int, device: torch.device | str | None) -> Tensor:
        group = torch.arange(groups * self.queries, device=device) // self.queries
        owner = -2 - (group.clamp(max=1) if self.joined else group)  # -2 is the answer
        if self.slots is not None:
            owner = torch.cat((self.slots.to(owner.device), owner))
        return (owner[:, None] == owner) | ((owner > -2)[:, None] & (owner == -2))


@dataclass(frozen=True)
class Queries:
    """What the decoder starts from."""

    content: Tensor
    """[B, N, D]"""
    reference: Reference
    embedding: Tensor | None = None
    """[B, N, D] a learned embedding of each query's place, the same in every layer (query position "learned")"""
    extras: Mapping[str, Extra] = field(default_factory=dict)
    """what is trained where the queries came from, for the output's extras"""
    layout: QueryLayout | None = None
    """None: all queries see one another"""
    labels: Tensor | None = None
    """[K + 1, D - 1] the label table that content was made of, where it was"""
    read_from: Tensor | None = None
    """[B, N, D] what the reference points were read off, where it was normed for that"""
    boxes: tuple[Tensor, Tensor] | None = None
    """[B, N, 4] the boxes that the two decoder layers before predicted, without graph; the second layer has those of
    the first references and the first layer's (where references are points that layer's twice), the first has none"""


@dataclass(frozen=True)
class QueryLimit:
    """How many objects of an image can be learned and found, since each needs a query."""

    count: int
    """queries of one group, at most"""
    key: str
    """the key of a recipe that changes it"""


Relation = Callable[[slice], Tensor]
"""Numbers among the queries at these places: to [B, H, N, N], rows look at columns."""


@dataclass(frozen=True)
class QueryPosition:
    """What a decoder layer knows of its queries' places."""

    embeddings: dict[str, Tensor] = field(default_factory=dict)
    """name -> [B, N, D], learned embeddings, for self-attention and the first layer's content"""
    codes: dict[str, Tensor] = field(default_factory=dict)
    """name -> [B, N, F], scaled sine codes, for the position terms of cross-attention"""
    relations: dict[str, Relation | None] = field(default_factory=dict)
    """name -> numbers among queries, for the terms of self-attention; None in a layer that has none"""


@dataclass(frozen=True)
class Output:
    """A detector's predictions, stacked over the decoder layers (the last layer is the answer)."""

    logits: Tensor
    """[Y, B, N, K]"""
    boxes: Tensor
    """[Y, B, N, 4] as (cx, cy, w, h) in [0, 1] of the unpadded image, not clipped"""
    memory: Tensor | None = None
    """[B, L, D]"""
    points: Tensor | None = None
    """[Y, B, N, 2], for geometries that predict a point"""
    objectness: Tensor | None = None
    """[Y, B, N, 1] logits, for heads that have it"""
    extras: Mapping[str, Extra] = field(default_factory=dict)
    """by name, what is trained beside the answer: an encoder's proposals, denoising queries"""
    groups: int = 1
    """groups of N / groups queries, each of which answers for every object on its own"""
    background: bool = False
    """whether the last logit is "no object", which is no label of a truth"""
    repeats: int = 1
    """groups that share the weight of a loss, those of other outputs counted too: losses are divided by it"""
    content: tuple[Tensor, ...] | None = None
    """[B, N, D] of each layer, what the head read; in training only"""
    many: Output | None = None
    """one-to-many predictions of the same queries, where the decoder makes some; in training only"""

    def rows(self, places: slice) -> Output:
        """The same for some of the queries, as one group and without extras."""
        cut = {name: getattr(self, name) for name in ("logits", "boxes", "points", "objectness")}
        cut = {name: value[:, :, places] for name, value in cut.items() if value is not None}
        content = None if self.content is None else tuple(read[:, places] for read in self.content)
        many = None if self.many is None else self.many.rows(places)
        return replace(self, **cut, content=content, many=many, extras={}, groups=1)

    def layer(self, index: int) -> Output:
        """The same of one decoder layer, without extras."""
        kept = {name: getattr(self, name) for name in ("logits", "boxes", "points", "objectness")}
        kept = {name: value[index : index + 1] for name, value in kept.items() if value is not None}
        content = None if self.content is None else self.content[index : index + 1]
        return replace(self, **kept, content=content, many=None, extras={})

    def float(self) -> Output:
        """The same in float32: costs and losses are never computed in half precision."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        wide: dict[str, Any] = {name: value.float() for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **wide, extras={name: extra.float() for name, extra in self.extras.items()})


@dataclass(frozen=True)
class Extra:
    """Predictions beside the answer that enter the loss by the same terms and weights."""

    output: Output
    """their own stack of Y layers (one, for an encoder's proposals) and N queries"""
    matches: Matches | None = None
    """which of them stand for which object, where that is known; None: they are matched as the answer is"""
    classless: bool = False
    """they only tell objects from background: every object counts as class 0"""
    targets: Targets | None = None
    """the truth that `matches` speaks of, where that is not the batch's"""
    copies: int = 1
    """how many times each object stands in the truth; losses are divided by that many more objects"""
    weight: float = 1.0
    """factor of all losses"""
    assign: Callable[[Output, Targets], Callable[[], Sequence[Matches]]] | None = None
    """gives each layer's pairs, where neither they are known nor the answer's matcher finds them: it begins on the
    device, and what it returns is called when the matcher has waited for that"""

    def truth(self, batch: Targets) -> Targets:
        """What these predictions are held against."""
        targets = (batch if self.targets is None else self.targets).repeat(self.copies)
        return replace(targets, labels=torch.zeros_like(targets.labels)) if self.classless else targets

    def float(self) -> Extra:
        """The same in float32."""
        return replace(self, output=self.output.float())


@dataclass(frozen=True)
class Targets:
    """A batch's truth, padded to the image with the most objects so that costs are one tensor."""

    labels: Tensor
    """[B, T] int64, 0 in empty places"""
    boxes: Tensor
    """[B, T, 4] as (cx, cy, w, h); (0.5, 0.5, 1, 1) in empty places"""
    counts: tuple[int, ...]
    """objects of each image"""
    images: int
    """how many images the losses are a mean over: these, or more where a batch comes in several pieces"""

    @classmethod
    def pad(cls, targets: Sequence[Target], dtype: torch.dtype = torch.float32, images: int | None = None) -> Targets:
        """Batch the images' truths, boxes in `dtype`. Counts are read from shapes, so nothing waits for the device."""
        counts = tuple(len(t["labels"]) for t in targets)
        labels = pad_sequence([t["labels"] for t in targets], batch_first=True)
        boxes = pad_sequence([t["boxes"].reshape(-1, 4).to(dtype) for t in targets], batch_first=True)
        padded = cls(labels, boxes, counts, len(counts) if images is None else images)
        if min(counts) < max(counts):
            empty = constant([0.5, 0.5, 1.0, 1.0], boxes)
            return replace(padded, boxes=torch.where(padded.filled[..., None], boxes, empty))
        return padded

    @property
    def filled(self) -> Tensor:
        """[B, T] bool, False in empty places."""
        return torch.arange(self.labels.shape[1], device=self.labels.device) < self._counts()[:, None]

    def _counts(self) -> Tensor:
        return torch.tensor(self.counts).to(self.labels.device, non_blocking=True)

    def repeat(self, times: int) -> Targets:
        """The same with each object so many times, all objects of an image and then all again."""
        if times == 1 or not self.boxes.shape[1]:
            return self
        # In places beyond an image's repeated objects, which nobody reads, they go on.
        places = torch.arange(times * self.boxes.shape[1], device=self.labels.device)
        index = places % self._counts().clamp(min=1)[:, None]
        boxes = self.boxes.gather(1, index[..., None].expand(-1, -1, 4))
        return replace(
            self, labels=self.labels.gather(1, index), boxes=boxes, counts=tuple(times * n for n in self.counts)
        )


@dataclass(frozen=True)
class Matches:
    """Which query answers which object, for every decoder layer.

    Each layer has the same number M of pairs: the sum over images (and groups) of min(N, T).
    """

    image: Tensor
    """[M] int64, the image of each pair (the same in every layer)"""
    query: Tensor
    """[Y, M] int64, ascending within an image"""
    target: Tensor
    """[Y, M] int64, the object's place within its image"""
    weight: Tensor | None = None
    """[Y, M] how much each pair counts, where the matcher weighs them; None: 1"""

    def to(self, device: torch.device) -> Matches:
        """The same on another device, without waiting for it."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return Matches(**{name: t.to(device, non_blocking=True) for name, t in tensors.items() if t is not None})

    def weighed(self, values: Tensor) -> Tensor:
        """Values [Y, M] of the pairs, times what these count."""
        return values if self.weight is None else values * self.weight

    def take(self, predictions: Tensor) -> Tensor:
        """The matched rows of `predictions` [Y, B, N, ...]: [Y, M, ...]."""
        layer = torch.arange(len(predictions), device=predictions.device)[:, None]
        return predictions[layer, self.image, self.query]

    def take_targets(self, values: Tensor) -> Tensor:
        """The matched rows of padded truths [B, T, ...]: [Y, M, ...]."""
        return values[self.image, self.target]
