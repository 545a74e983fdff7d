"""Denoising: true boxes and classes with noise as extra queries, whose objects are known without matching."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from detrkit.blocks.base import Block, Slots, exact
from detrkit.boxes import center_to_corners, corners_to_center, inverse_sigmoid
from detrkit.decoder import QueryDecoder
from detrkit.errors import UserError
from detrkit.geometry.base import Geometry
from detrkit.layers import Count, sent
from detrkit.losses.truths import check_truths
from detrkit.queries.base import QueryGenerator
from detrkit.recipe import register
from detrkit.structures import Queries, Target, Targets

EPS = 1e-3
"""query boxes are stored as clipped logits (see `inverse_sigmoid`)"""


@dataclass(frozen=True, kw_only=True)
class Noise:
    """How much noise."""

    label: Annotated[float, Field(ge=0, le=1)] = 0.2
    """share of labels that are replaced by a class drawn from all K"""
    box: Annotated[float, Field(ge=0)] = 0.4
    """how far boxes are moved, see the blocks"""


@dataclass(frozen=True)
class Draws:
    """The random numbers of one step, on the CPU, for E entries: what chance has to say about them."""

    flip: Tensor
    """[E] in [0, 1); the label is replaced where it is less than `noise.label`"""
    labels: Tensor
    """[F] int64, the new classes of the F entries that are replaced, in order"""
    boxes: Tensor
    """[E, 4] in [0, 1)"""
    place: Tensor
    """[E, 2] in [0, 1), for geometries that choose a point"""
    signs: Tensor | None = None
    """[E, 4] 0 or 1, for contrastive denoising"""

    def to(self, device: torch.device) -> Draws:
        """The same on another device, without waiting for it."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {n: sent(t, device) for n, t in values.items() if t is not None}
        return Draws(**moved)


@register("block", "denoising")
class Denoising(Block):
    """Each object several times over, with its label and box noised (Li et al., "DN-DETR", CVPR 2022, section 4).

    A copy of object j of an image is slot g * W + j, where W is the largest number of objects of an image; slots that
    are left over hold zero content and the box (0.5, 0.5, 0.5, 0.5), and enter no loss. A box's centre moves by up to
    half of `noise.box` of its side, its sides change by up to `noise.box`; all four numbers are clamped to [0, 1].

    Each copy is to give its object back, by the recipe's losses and weights, divided by groups times the number of
    objects. (The number is the whole step's, over all processes and pieces; the official code counts each process's
    objects alone. W, and with it the empty slots that a group sees, is still each piece's own; a piece without objects
    has no slots.) Random numbers are drawn on the CPU in the official order, so a step waits for no device and is the
    same on every one.

    A slot's content is its label's vector. "own" is a table without an indicator, as in DINO: that content comes from
    a label and not from where matching queries have theirs is told by its values, for salient queries too, whose
    content comes from the memory. "queries" is DN-DETR: the table that matching queries have their content from, with
    a last channel that is 1 here and 0 there.

    Needs a geometry that keeps boxes ("box", "salient_point", or "point" with `refined`), and positions that are read
    off references, or queries "two_stage".

    Args:
        width: D.
        classes: K.
        geometry: turns noised boxes into references.
        groups: copies of each object.
        noise: of labels and boxes.
        labels: "own", or "queries", which needs queries.content = "label".

    Official tables have K + 1 rows; in one of its own the last is not used.
    """

    copies = 1
    """entries of one object in a group"""
    eps = EPS
    """clipping of the boxes' logits"""
    empty = 0.5
    """all four numbers of the boxes in empty slots"""
    background = False
    """whether slots without an object are to say so; else they enter no loss"""

    def __init__(
        self,
        *,
        width: int,
        classes: int,
        geometry: Geometry,
        groups: Count = 5,
        noise: Noise = Noise(label=0.2, box=0.4),
        labels: Literal["own", "queries"] = "own",
    ):
        super().__init__()
        if not geometry.holds_boxes:
            raise UserError(
                "denoising gives queries true boxes with noise, and references of this geometry keep nothing of a box; "
                'set geometry.type = "box" or "salient_point"'
            )
        self.geometry, self.classes = geometry, classes
        self.repeats, self.noise = groups, noise
        self.labels = nn.Parameter(torch.randn(classes + 1, width)) if labels == "own" else None

    def check(self, queries: QueryGenerator, decoder: QueryDecoder) -> None:
        if self.labels is None and queries.labels is None:
            raise UserError('a denoising block with labels = "queries" needs queries.content = "label"')
        readers = decoder.embedding_readers
        if readers and not queries.embeds_boxes:
            raise UserError(
                f'denoising gives queries known boxes, and decoder.positions has "{readers[0]}": places that each '
                "query learned and a known box has none of. Take places that are read off references, such as "
                '["point"], or ["box"] where references have sides'
            )

    def count(self, most: int) -> int:
        """How many groups of `most` objects an image."""
        return self.repeats

    def draw(self, entries: int) -> Draws:
        """Random numbers for so many entries, in the official order."""
        flip = torch.rand(entries)
        labels = torch.randint(self.classes, (int((flip < self.noise.label).sum()),))
        return Draws(flip, labels, torch.rand(entries, 4), torch.rand(entries, 2))

    def noised(self, boxes: Tensor, positive: Tensor, draws: Draws) -> Tensor:
        """Boxes [E, 4] with noise; `positive` [E] bool."""
        size = boxes[:, 2:]
        reach = torch.cat((size / 2, size), dim=-1) * self.noise.box
        return (boxes + reach * (2 * draws.boxes.to(boxes.dtype) - 1)).clamp(0, 1)

    def clipped(self, boxes: Tensor) -> Tensor:
        """Boxes in [0, 1] as they come back from clipped logits."""
        return inverse_sigmoid(boxes, self.eps).sigmoid()

    def slots(self, targets: Sequence[Target], dtype: torch.dtype, room: Callable[[int], int] = exact) -> Slots:
        check_truths(targets, images=len(targets), classes=self.classes)  # the criterion sees them after this
        device = targets[0]["boxes"].device
        counts = [len(target["labels"]) for target in targets]
        most = max(counts)
        groups = self.count(most) if most else 1
        copies = self.copies * groups
        # Entry c * T + i is copy c of object i, objects of all images one after the other. Worked out on the host.
        copy = torch.arange(copies).repeat_interleave(sum(counts))
        image = torch.repeat_interleave(torch.tensor(counts)).repeat(copies)
        target = torch.cat([torch.arange(n) for n in counts]).repeat(copies)
        slot = copy * most + target
        positive = copy % self.copies == 0
        draws = self.draw(len(copy))
        flipped = torch.nonzero(draws.flip < self.noise.label)[:, 0]
        pairs = sent(torch.stack((image, slot, target))[:, positive], device)
        image, slot, positive, flipped = (sent(x, device) for x in (image, slot, positive, flipped))
        draws = draws.to(device)

        labels = torch.cat([t["labels"] for t in targets]).long().repeat(copies)
        boxes = torch.cat([t["boxes"].reshape(-1, 4) for t in targets]).to(dtype).repeat(copies, 1)
        noised = self.clipped(self.noised(boxes, positive, draws))

        def scatter(values: Tensor, empty: float) -> Tensor:
            """Entries [E, ...] in their slots [B, S, ...]."""
            slots = values.new_full((len(targets), room(copies * most), *values.shape[1:]), empty)
            return slots.index_put((image, slot), values)

        queried = scatter(noised, float(self.clipped(torch.tensor(self.empty))))
        reference = self.geometry.encode_noised(
            queried, scatter(boxes, 0.5), scatter(positive, True), scatter(draws.place.to(dtype), 0.5)
        )
        return Slots(
            labels=scatter(labels.index_put((flipped,), draws.labels), 0),
            filled=scatter(torch.ones_like(positive), False),
            reference=reference,
            boxes=queried,
            sizes=(self.copies * most,) * groups if most else (),
            image=pairs[0],
            slot=pairs[1],
            target=pairs[2],
            truth=None if self.background else Targets.pad([{"labels": labels, "boxes": boxes}], dtype, images=0),
            repeats=groups,
        )

    def content(self, labels: Tensor, queries: Queries) -> Tensor:
        """The content [..., D] of labels [...]."""
        if self.labels is not None:
            return self.labels[labels]
        if queries.labels is None:
            raise UserError('labels = "queries" shares a table that these queries do not have')
        rows = queries.labels[labels]
        return torch.cat((rows, torch.ones_like(rows[..., :1])), dim=-1)


@register("block", "contrastive")
class ContrastiveDenoising(Denoising):
    """Denoising with a negative beside each positive (Zhang et al., "DINO", ICLR 2023, section 3.3).

    A group has W positive slots and then W negative ones. Each of a box's four corner numbers moves by a share of
    half the box's side, up to `noise.box` of it for a positive, and from one to two times `noise.box` for a negative;
    corners are clamped to [0, 1]. A positive is to give its object back, a negative is to say "background", and so are
    empty slots.

    Needs a geometry that keeps boxes ("box", "salient_point", or "point" with `refined`), and positions that are read
    off references, or queries "two_stage".

    Args:
        width, classes, geometry, labels: as for `denoising`.
        count: pairs an image; as many groups as fit into it, at least one. (The official code does not divide its
            setting below 50.)
        noise: the official setting `dn_label_noise_ratio` 0.5 stands for a quarter of the labels; for boxes the
            training scripts set 1 and the configuration file 0.4.
        eps: clipping of the noised boxes' logits; 1e-5 in RT-DETR.
        empty: all four numbers of the boxes in empty slots, 0 in RT-DETR; they are clipped too.
        unsigned: a box whose corners the noise has exchanged keeps its sizes (DEIM); else they are 0, and clipped.
    """

    copies = 2
    background = True

    def __init__(
        self,
        *,
        width: int,
        classes: int,
        geometry: Geometry,
        count: Count = 100,
        noise: Noise = Noise(label=0.25, box=1.0),
        labels: Literal["own", "queries"] = "own",
        eps: Annotated[float, Field(gt=0, lt=0.5)] = EPS,
        empty: Annotated[float, Field(ge=0, le=1)] = 0.5,
        unsigned: bool = False,
    ):
        super().__init__(width=width, classes=classes, geometry=geometry, noise=noise, labels=labels)
        self.pairs, self.eps, self.empty, self.unsigned = count, eps, empty, unsigned

    def count(self, most: int) -> int:
        return max(1, self.pairs // most)

    def draw(self, entries: int) -> Draws:
        flip = torch.rand(entries)
        labels = torch.randint(self.classes, (int((flip < self.noise.label).sum()),))
        signs = torch.randint(2, (entries, 4))
        return Draws(flip, labels, torch.rand(entries, 4), torch.rand(entries, 2), signs)

    def noised(self, boxes: Tensor, positive: Tensor, draws: Draws) -> Tensor:
        half = boxes[:, 2:].repeat(1, 2) / 2
        share = draws.boxes.to(boxes.dtype) + (~positive)[:, None].to(boxes.dtype)
        if draws.signs is None:
            raise ValueError("contrastive noise needs the signs that its own `draw` gives")
        sign = 2 * draws.signs.to(boxes.dtype) - 1
        noised = corners_to_center((center_to_corners(boxes) + sign * share * self.noise.box * half).clamp(0, 1))
        return noised.abs() if self.unsigned else noised
