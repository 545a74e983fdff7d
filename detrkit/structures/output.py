"""What a detector predicts: the answer, and what is trained beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from detrkit.structures.matches import Matches
from detrkit.structures.memory import Memory
from detrkit.structures.targets import Targets

PREDICTED = ("logits", "boxes", "points", "objectness", "standing")
"""the fields of an output that are [Y, B, N, ...]"""
SILENT = -1e4
"""a logit that says of a class that it is not there, beyond any doubt and without a loss"""


@dataclass(frozen=True)
class Output:
    """A detector's predictions, stacked over the decoder layers (the last layer is the answer)."""

    logits: Tensor
    """[Y, B, N, K]"""
    boxes: Tensor
    """[Y, B, N, 4] as (cx, cy, w, h) in [0, 1] of the unpadded image, not clipped"""
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
    standing: Tensor | None = None
    """[Y, B, N] bool, False for queries that answer for nothing, whose logits say so; None: all stand"""
    many: Output | None = None
    """one-to-many predictions of the same queries, where the decoder makes some; in training only"""
    named: Mapping[str, Tensor] = field(default_factory=dict)
    """[Y, B, N, F] each, what else a geometry says (`Decoded.named`), for losses, costs and detections"""
    encoded: Memory | None = None
    """what the decoder read, for blocks that learn from the encoder's tokens"""

    @property
    def memory(self) -> Tensor | None:
        """[B, L, D] the tokens that the decoder read."""
        return None if self.encoded is None else self.encoded.tokens

    @property
    def told(self) -> dict[str, Tensor]:
        """Of `named` what detections and exported files have: not the names that begin with "_"."""
        return {name: value for name, value in self.named.items() if not name.startswith("_")}

    def rows(self, places: slice) -> Output:
        """The same for some of the queries, as one group and without extras."""
        cut = self.with_predicted(lambda value: value[:, :, places])
        content = None if self.content is None else tuple(read[:, places] for read in self.content)
        many = None if self.many is None else self.many.rows(places)
        return replace(cut, content=content, many=many, extras={}, groups=1)

    def layer(self, index: int) -> Output:
        """The same of one decoder layer, counted from 0 on or from -1 back, without extras.

        Raises IndexError if there is no such layer.
        """
        place = range(len(self.logits))[index]
        kept = self.with_predicted(lambda value: value[place : place + 1])
        content = None if self.content is None else self.content[place : place + 1]
        return replace(kept, content=content, many=None, extras={})

    def with_predicted(self, change: Callable[[Tensor], Tensor]) -> Output:
        """The same with each tensor that is [Y, B, N, ...] changed."""
        given = {name: getattr(self, name) for name in PREDICTED}
        changed: dict[str, Any] = {name: change(value) for name, value in given.items() if value is not None}
        return replace(self, **changed, named={name: change(value) for name, value in self.named.items()})

    def float(self) -> Output:
        """The same in float32, since costs and losses are never computed in half precision; not `encoded`, `content`
        and `many`, of which none is.
        """
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        wide: dict[str, Any] = {
            name: value.float()
            for name, value in values.items()
            if isinstance(value, Tensor) and value.is_floating_point()
        }
        named = {name: value.float() if value.is_floating_point() else value for name, value in self.named.items()}
        return replace(self, **wide, named=named, extras={name: extra.float() for name, extra in self.extras.items()})


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
    assign: Callable[[Output, Targets], Callable[[], Matches | Sequence[Matches]]] | None = None
    """gives the pairs, of all layers or of each, where neither they are known nor the answer's matcher finds them: it
    begins on the device, and what it returns is called when the matcher has waited for that"""
    matched_as: Output | None = None
    """what the answer's matcher reads in the place of these predictions"""
    by_weight: bool = False
    """losses are divided by what the pairs count (`Matches.weight`) in sum, not by the number of objects"""

    def truth(self, batch: Targets) -> Targets:
        """What these predictions are held against."""
        targets = (batch if self.targets is None else self.targets).repeat(self.copies)
        return replace(targets, labels=torch.zeros_like(targets.labels)) if self.classless else targets

    def float(self) -> Extra:
        """The same in float32."""
        matched_as = None if self.matched_as is None else self.matched_as.float()
        return replace(self, output=self.output.float(), matched_as=matched_as)
