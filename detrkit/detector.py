"""The detector of the one loop, and how a recipe becomes a detector."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from detrkit.backbones.base import Backbone
from detrkit.blocks.base import Extension, TrainingBlocks, exact, rounded
from detrkit.decoder import QueryDecoder
from detrkit.detections import DetectOptions, class_scores, select
from detrkit.encoders.base import Encoder
from detrkit.errors import UserError, require_given
from detrkit.layers import Count
from detrkit.losses.base import BaseCriterion
from detrkit.losses.criterion import Criterion
from detrkit.losses.truths import check_number
from detrkit.onednn import use_onednn
from detrkit.queries.base import QueryGenerator
from detrkit.recipe import Factory, Recipe, register
from detrkit.structures import FeatureMap, Memory, Output, Queries, QueryLimit, Sizes, Target
from detrkit.system import BaseDetector, CheckpointNames, System, check_sizes


class Detector(BaseDetector):
    """Images to predictions: backbone, encoder, queries, decoder.

    Args:
        backbone: images to feature maps.
        encoder: feature maps to memory.
        queries: memory to queries.
        decoder: queries and memory to predictions.
        blocks: what adds queries in training.
        detect: how predictions become detections.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        encoder: Encoder,
        queries: QueryGenerator,
        decoder: QueryDecoder,
        blocks: TrainingBlocks | None = None,
        detect: DetectOptions | None = None,
    ):
        super().__init__()
        if queries.limit is not None:
            require_given(queries.limit, QueryLimit, "`limit` of the query generator")
        self.backbone, self.encoder, self.queries, self.decoder = backbone, encoder, queries, decoder
        self.blocks = TrainingBlocks({}) if blocks is None else blocks
        self.detect_options = detect or DetectOptions()

    @property
    def limit(self) -> QueryLimit | None:
        return self.queries.limit

    def forward(self, images: Tensor, mask: Tensor | None = None, targets: list[Target] | None = None) -> Output:
        """Predictions for a batch.

        Args:
            images: [B, 3, H, W], normalised, padded at the right and bottom with zeros.
            mask: [B, H, W] bool, True where padded; None when nothing is padded.
            targets: the truth, a `Target` for each image, which training blocks draw extra queries from; not used by
                the rest, nor outside training.

        Raises:
            UserError: the weights are in half precision (`detector.half()`), the mask is no mask of these images, or
                the truths that blocks read are none of them.
        """
        return self._forward(images, mask, targets, self._predict, exact)

    def compiled(self, **options: Any) -> Callable[..., Output]:
        """`forward` for training by `torch.compile`, whose `options` these are, as one graph.

        What chance and the numbers of objects decide is worked out before the graph (`TrainingBlocks.prepare`), and
        denoising slots are filled up to few sizes (`blocks.base.rounded`).
        """
        graph = torch.compile(self._predict, fullgraph=True, **options)

        def predict(*values: Any) -> Output:
            # A size that changes is free in the next graph, so there are few; torch's own limit of 8 is still met.
            with torch._dynamo.config.patch(recompile_limit=64):
                return graph(*values)

        return partial(self._forward, predict=predict, room=rounded)

    def _forward(
        self,
        images: Tensor,
        mask: Tensor | None,
        targets: list[Target] | None,
        predict: Callable[..., Output],
        room: Callable[[int], int],
    ) -> Output:
        self.check_input(images, mask)
        if not (self.training and targets is not None and self.blocks):
            return predict(images, mask)
        check_number(targets, len(images))
        extension = self.blocks.prepare(targets, next(self.parameters()).dtype, room)
        return extension.cut(predict(images, mask, extension))

    def _predict(self, images: Tensor, mask: Tensor | None, extension: Extension | None = None) -> Output:
        features = self.backbone(images, mask)
        require_given(features, list, "the backbone")
        for level in features:
            require_given(level, FeatureMap, "a level of the backbone")
        memory = self.encoder(features)
        require_given(memory, Memory, "the encoder")
        if extension is None:
            queries = self.queries(memory)
            require_given(queries, Queries, "the query generator")
            return self.decoder(queries, memory)
        make = self.queries.with_second if self.blocks.second else self.queries
        queries = make(memory, self.blocks.groups)
        require_given(queries, Queries, "the query generator")
        embed_boxes = self.queries.embed_boxes if self.queries.embeds_boxes else None
        return self.decoder(self.blocks.extend(queries, extension, embed_boxes), memory)

    def _prepare_for_detection(self) -> None:
        super()._prepare_for_detection()
        self.encoder.prepare_for_detection()
        self.decoder.answer_only = True  # the last layer's predictions are all that is read

    @torch.no_grad()
    def detect(self, images: Tensor, mask: Tensor | None, sizes: Sizes) -> list[dict[str, Tensor]]:
        """Detections of a batch, in torchvision's form, best first.

        Args:
            images, mask: as in `forward`.
            sizes: [B, 2] (height, width) of the original images, in pixels.

        Returns:
            for each image `scores` [k], `labels` [k] in 0 .. K - 1 (or K, see `DetectOptions.scores`), `boxes` [k, 4]
            as (x0, y0, x1, y1) in pixels of the original image, not clipped, `queries` [k] (which query each came
            from), `points` [k, 2] in pixels where the geometry has them, and what else it says (`Output.named`).

        Raises:
            UserError: as `forward`, or there is not a size for each image.
        """
        check_sizes(sizes, images)
        return self.select(self(images, mask).float(), sizes)

    def scores(self, output: Output, layer: int) -> Tensor:
        """[B, N, K] in [0, 1]: how sure a decoder layer is of each class (K + 1, see `DetectOptions.scores`)."""
        return class_scores(output, layer, self.detect_options)

    def select(self, output: Output, sizes: Sizes) -> list[dict[str, Tensor]]:
        """The detections that an output means; see `detect`."""
        return select(output, sizes, self.detect_options)


@register("detector", "detr")
@dataclass(frozen=True, kw_only=True)
class Detr(System):
    """A detector of the one loop; its options are what all its parts share."""

    sections: ClassVar[tuple[str, ...]] = (
        "backbone",
        "position",
        "encoder",
        "queries",
        "geometry",
        "blocks",
        "decoder",
        "head",
        "matcher",
        "losses",
        "detect",
    )

    classes: Count | None = None
    """K; taken from the data set when it is not given"""
    width: Annotated[int, Field(ge=8, le=65536, multiple_of=4)] = 256
    """D"""
    heads: Count = 8
    """H"""
    checkpoint_names: CheckpointNames = None
    """whose official parameter names `detrkit convert` reads: "sap_detr", "dab_detr", ..."""

    def build_detector(self, recipe: Recipe, classes: int) -> Detector:
        """The parts that a recipe names, put together.

        Raises:
            UserError: parts do not go together.
        """
        detect: DetectOptions = recipe.section("detect")
        _require_of_head(recipe, "detect.objectness = true", ["objectness"] if detect.objectness else [])
        _require_of_head(recipe, 'detect.scores = "softmax"', ["background"] if detect.scores == "softmax" else [])
        if self.width % self.heads:
            raise UserError(f"detector.width = {self.width} is not a multiple of detector.heads = {self.heads}")
        shared = {"width": self.width, "heads": self.heads}
        queries: Factory = recipe.section("queries")
        geometry = recipe.section("geometry")()
        blocks = TrainingBlocks(
            {
                name: factory(width=self.width, classes=classes, geometry=geometry, head=recipe.section("head"))
                for name, factory in recipe.section("blocks").items()
            }
        )
        answer = {"classes": classes, "geometry": geometry, "head": recipe.section("head")}
        generator = queries(width=self.width, groups=blocks.groups, second=blocks.second, **answer)
        if blocks.groups > 1 and not generator.makes_groups:
            raise UserError(
                f"blocks.{blocks.grouping} wants {blocks.groups} groups of queries, "
                f'and queries "{queries.name}" makes one'
            )
        if blocks.second and not generator.makes_second:
            raise UserError(
                f"blocks.{blocks.seconding} wants a second set of queries with proposals of their own, which queries "
                f'"{queries.name}" does not make; take "mixed_selection" or "distinct_selection"'
            )
        backbone = recipe.section("backbone")()
        encoder = recipe.section("encoder")(
            **shared, channels=backbone.channels, position=recipe.section("position")(width=self.width)
        )
        decoder = recipe.section("decoder")(**shared, levels=encoder.levels, **answer)
        generator.check(decoder)
        for block in blocks.named.values():
            block.check(generator, decoder)
            block.join(decoder)
        if decoder.has_second_head and not (blocks.second or any(b.joins_groups for b in blocks.named.values())):
            raise UserError(
                "decoder.second_head = true has heads for a second set of queries, which no block makes; add "
                'blocks.dense = "dense"'
            )
        if decoder.gives_many and not any(block.trains_many for block in blocks.named.values()):
            raise UserError(
                "decoder.many_first = true makes one-to-many predictions, which no block trains; add "
                'blocks.mixed = { type = "mixed", source = "decoder" }'
            )
        return Detector(
            backbone=backbone,
            encoder=encoder,
            queries=generator,
            decoder=decoder,
            blocks=blocks,
            detect=detect,
        )

    def build_criterion(self, recipe: Recipe) -> Criterion:
        """The matcher and losses that a recipe names.

        Raises:
            UserError: a loss or cost needs what the recipe's head does not predict.
        """
        losses = {name: factory() for name, factory in recipe.section("losses").items()}
        matcher = recipe.section("matcher")()
        criterion = Criterion(matcher=matcher, losses=losses)
        asking = {f"losses.{name}": loss for name, loss in losses.items()}
        asking |= {f"matcher.costs.{name}": cost for name, cost in matcher.costs.items()}
        for name, part in asking.items():
            _require_of_head(recipe, name, part.needs)
        return criterion


def _require_of_head(recipe: Recipe, asker: str, needs: Iterable[str]) -> None:
    head: Factory = recipe.section("head")
    for option in needs:
        if head.options.get(option) is False:  # a head of one's own may have it without an option
            raise UserError(f"{asker} needs head.{option} = true")


def build_detector(recipe: Recipe, *, pretrained: bool = True) -> BaseDetector:
    """The detector that a recipe describes, with fresh weights (the backbone's as the recipe says).

    Args:
        recipe: what to build.
        pretrained: False where weights are loaded into it anyway: then the backbone's are neither fetched nor read.

    Raises:
        UserError: `detector.classes` is not set and the data set cannot tell, or parts do not go together.
        CheckpointError: the backbone's weights cannot be had.
    """
    if not pretrained:
        nothing = {"backbone.pretrained": False, "backbone.weights": None}
        recipe = recipe.with_values({key: value for key, value in nothing.items() if recipe.get(key, None)})
    system: System = recipe.section("detector")()
    detector = system.build_detector(recipe, system.classes or classes_of_data(recipe))
    use_onednn(detector)
    return detector


def build_criterion(recipe: Recipe) -> BaseCriterion:
    """The criterion that a recipe describes.

    Raises:
        UserError: a loss or cost needs what the recipe's detector does not predict.
    """
    system: System = recipe.section("detector")()
    return system.build_criterion(recipe)


def classes_of_data(recipe: Recipe) -> int:
    """How many classes a recipe's data set has.

    Raises:
        UserError: the data set cannot be read.
    """
    try:
        return len(recipe.section("data")().categories)
    except UserError as error:
        raise UserError(
            f"detector.classes is not set, and the data set cannot tell: {error}\n"
            "To build a detector without data, give the number: detector.classes=80"
        ) from error
