"""Deformable attention, query selection and several levels with the parts of other systems."""

import pytest
import torch

import detrkit
from detrkit.engine.optimiser import build_optimiser
from detrkit.errors import UserError
from tests.model.test_detector import batch, small

LEVELS = ["backbone.levels=[-3,-2,-1]", "encoder.extra_levels=1"]
DEFORMABLE_ENCODER = ["encoder.type=deformable", "encoder.layers=1"]
DEFORMABLE_DECODER = ["decoder.cross_attention.type=deformable", "decoder.layers=2"]

PAIRS = {
    "deformable attention on boxes": ("dab_detr_r50_50ep", DEFORMABLE_DECODER),
    "deformable attention on salient points": ("sap_detr_r50_50ep", DEFORMABLE_DECODER),
    "salient points over four levels": (
        "sap_detr_r50_50ep",
        [*DEFORMABLE_ENCODER, *DEFORMABLE_DECODER, *LEVELS, "queries.content=zero"],
    ),
    "conditional decoder over a deformable encoder": ("dab_detr_r50_50ep", DEFORMABLE_ENCODER),
    "PECA and SDG over a deformable encoder": ("sap_detr_r50_50ep", DEFORMABLE_ENCODER),
    "conditional attention over four levels": ("dab_detr_r50_50ep", [*DEFORMABLE_ENCODER, *LEVELS]),
    "query selection with conditional attention": ("dab_detr_r50_50ep", ["queries.type=mixed_selection"]),
    "query selection on salient points": ("sap_detr_r50_50ep", ["queries.type=mixed_selection"]),
    "distinct queries on salient points": ("sap_detr_r50_50ep", ["queries.type=distinct_selection"]),
    "query selection with points": (
        "deformable_detr_r50_50ep",
        ["queries.type=mixed_selection", "decoder.positions=['point']", "geometry.refined=true"],
    ),
    "two stages with conditional attention": (
        "dab_detr_r50_50ep",
        ["queries.type=two_stage", "decoder.positions=['learned', 'box']"],
    ),
    "DINO without query selection": ("dino_ss_r50_12ep", ["queries.type=anchor_boxes", "queries.content=learned"]),
    "DINO on salient points": ("dino_ss_r50_12ep", ["geometry.type=salient_point"]),
    "Deformable DETR's queries as boxes": ("deformable_detr_r50_50ep", ["geometry.type=box"]),
    "denoising of refined points": (
        "deformable_detr_4scale_refined_r50_50ep",
        ["blocks.denoising.groups=2", "decoder.positions=['point']"],
    ),
    "denoising of two stages": ("deformable_detr_4scale_two_stage_r50_50ep", ["blocks.denoising.type=contrastive"]),
    "groups with deformable attention": ("dab_detr_r50_50ep", [*DEFORMABLE_DECODER, "blocks.groups.count=2"]),
    "DINO without denoising": ("dino_ss_r50_12ep", ["blocks.denoising=none"]),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_a_pair_nobody_published_trains_a_step(pair):
    name, overrides = PAIRS[pair]
    detector, criterion = small(name, *overrides)
    images, mask, targets = batch()
    output = detector.train()(images, mask, targets)
    losses = criterion(output, targets)
    losses["total"].backward()
    assert all(value.isfinite() for value in losses.values())
    reached = [name for name, p in detector.named_parameters() if p.grad is not None and p.grad.any()]
    assert any(name.startswith("encoder.") for name in reached)
    assert ("encoder/class" in losses) == hasattr(detector.queries, "proposals")
    assert ("denoising/class" in losses) == ("denoising" in detector.blocks)


def test_a_known_box_is_embedded_as_a_chosen_one_is():
    """Two stages make a query's embedding of its box, so a true box without noise gets what that query got."""
    detector, _ = small(
        "deformable_detr_4scale_two_stage_r50_50ep",
        "blocks.denoising={type='denoising', groups=1, noise={label=0, box=0}}",
    )
    images, mask, targets = batch()
    memory = detector.encoder(detector.backbone(images, mask))
    chosen = detector.queries(memory)
    boxes = torch.cat((chosen.reference.point, chosen.reference.size("test")), dim=-1)
    truths = [{**target, "boxes": boxes[i, : len(target["labels"])]} for i, target in enumerate(targets)]
    extended = detector.blocks.extend(chosen, detector.blocks.prepare(truths), detector.queries.embed_boxes)
    slots = extended.embedding.shape[1] - chosen.embedding.shape[1]
    assert slots == 3
    for i, target in enumerate(targets):
        objects = len(target["labels"])
        assert torch.allclose(extended.embedding[i, :objects], chosen.embedding[i, :objects], atol=1e-3)
        assert torch.equal(extended.embedding[i, slots:], chosen.embedding[i])
    assert (chosen.embedding[0, 0] - chosen.embedding[0, 2]).abs().max() > 0.1  # another box, another embedding


def test_parts_of_one_map_refuse_several_levels():
    detector, _ = small("sap_detr_r50_50ep", *DEFORMABLE_ENCODER, *LEVELS)  # the Gaussian does
    with pytest.raises(UserError, match="works on one feature map, but the encoder gives 4 levels"):
        detector(*batch()[:2])


@pytest.mark.parametrize("name", ["anchor_detr_r50_50ep"])
def test_groups_are_refused_where_queries_cannot_be_made_in_groups(name):
    with pytest.raises(UserError, match=r"wants 3 groups of queries, and queries .* makes one"):
        small(name, "blocks.groups.count=3")


def test_learned_positions_need_queries_that_bring_them():
    detector, _ = small("dab_detr_r50_50ep", 'decoder.positions=["learned", "box"]')
    with pytest.raises(UserError, match="bring no embedding"):
        detector(*batch()[:2])


class Answer(torch.nn.Module):
    """The tensors that an exported detector gives."""

    def __init__(self, detector):
        super().__init__()
        self.detector = detector

    def forward(self, images, mask):
        output = self.detector(images, mask)
        return output.logits, output.boxes


@pytest.mark.slow
def test_a_deformable_detector_exports():
    overrides = ["backbone.name=test_resnet", "encoder.layers=1", "decoder.layers=1", "queries.count=20"]
    detector, _ = small("dino_4scale_r50_12ep", *overrides)
    images, mask, _ = batch()
    program = torch.export.export(Answer(detector.eval()), (images, mask))
    with torch.no_grad():
        for found, expected in zip(program.module()(images, mask), Answer(detector)(images, mask), strict=True):
            assert torch.allclose(found, expected, atol=1e-5)


def test_bfloat16_keeps_places_exact_enough():
    detector, _ = small("deformable_detr_4scale_refined_r50_50ep")
    images, mask, _ = batch()
    with torch.no_grad():
        exact = detector.eval()(images, mask)
        with torch.autocast("cpu", torch.bfloat16):
            coarse = detector(images, mask)
    assert coarse.boxes.dtype == torch.float32
    assert (coarse.boxes - exact.boxes).abs().max() < 0.02


def test_layers_that_say_where_to_look_have_a_rate_of_their_own():
    detector, _ = small("deformable_detr_r50_50ep")
    recipe = detrkit.load_recipe("deformable_detr_r50_50ep", ["train.backbone_learning_rate=1e-6"])
    groups = build_optimiser(detector, recipe.section("train")).param_groups
    rates = {name: group["lr"] for group in groups for name in group["names"]}
    slow = {name for name, rate in rates.items() if rate == pytest.approx(2e-5)}
    assert slow == {name for name in rates if "sampling_offsets" in name or name.startswith("queries.point.")}
    dab, _ = small("dab_detr_r50_50ep")
    with pytest.raises(UserError, match=r"place_rate_factor = 0\.1 has nothing to act on"):
        build_optimiser(dab, recipe.section("train"))
