"""Every shipped recipe, made small: builds, predicts, trains a step, and every trained parameter gets a gradient."""

import re

import pytest
import timm
import torch
from safetensors.torch import save_file

import detrkit
from detrkit.detector import Detector
from detrkit.errors import UserError
from detrkit.recipe import list_recipes
from detrkit.structures import Output, QueryLimit

ANY = ["backbone.name=resnet18", "backbone.pretrained=false", "detector.classes=7", "detector.width=64"]
SMALL = [
    *ANY,
    "detector.heads=4",
    "encoder.layers=2",
    "encoder.feedforward=96",
    "decoder.layers=3",
    "decoder.feedforward=96",
]
SMALL_OF = {"detr": SMALL, "faster_rcnn": [*ANY, "detector.region_width=96"]}
OWN = ("title", "description", "reproduces", "train", "evaluate", "data")


def small_recipe(name: str, *overrides: str) -> detrkit.Recipe:
    kind = detrkit.load_recipe(name).get("detector.type")
    return detrkit.load_recipe(name, [*SMALL_OF[kind], *overrides])


def distinct() -> list[str]:
    """The shipped recipes, one for each detector that they describe once they are made small."""
    found = {}
    for entry in list_recipes():
        values = small_recipe(entry.name).values
        found.setdefault(repr({key: values[key] for key in sorted(values) if key not in OWN}), entry.name)
    return list(found.values())


RECIPES = distinct()


def small(name: str, *overrides: str):
    torch.manual_seed(0)
    recipe = small_recipe(name, *overrides)
    return detrkit.build_detector(recipe), detrkit.build_criterion(recipe)


def batch(counts=(3, 1), size=96):
    torch.manual_seed(1)
    images = torch.randn(len(counts), 3, size, size)
    mask = torch.zeros(len(counts), size, size, dtype=torch.bool)
    mask[-1, 70:], mask[-1, :, 80:] = True, True
    images = images.masked_fill(mask[:, None], 0.0)
    targets = [{"labels": torch.randint(0, 7, (n,)), "boxes": torch.rand(n, 4) * 0.3 + 0.3} for n in counts]
    return images, mask, targets


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains_a_step(name):
    detector, criterion = small(name)
    images, mask, targets = batch()
    for module in detector.modules():
        if isinstance(module, torch.nn.Linear) and (module.weight == 0).all():
            torch.nn.init.normal_(module.weight, std=0.02)  # heads start at zero, which would hide what is unused
    output = detector.train()(images, mask, targets)
    if isinstance(detector, Detector):
        assert isinstance(output, Output)
        layers, _, queries, _ = output.logits.shape
        assert output.boxes.shape == (layers, 2, queries, 4)
    losses = criterion(output, targets)
    assert all(value.isfinite() for value in losses.values())
    losses["total"].backward()
    silent = [n for n, p in detector.named_parameters() if p.requires_grad and p.grad is None]
    assert not silent, f"trained, but no gradient arrives: {silent}"


@pytest.mark.parametrize(
    ("name", "overrides", "limit"),
    [
        ("sap_detr_r50_50ep", ["queries.grid=[3,5]"], QueryLimit(15, "queries.grid")),
        ("dab_detr_r50_50ep", ["queries.count=7"], QueryLimit(7, "queries.count")),
        ("detr_r50_500ep", ["queries.count=9"], QueryLimit(9, "queries.count")),
        ("deformable_detr_r50_50ep", ["queries.count=8"], QueryLimit(8, "queries.count")),
        ("dino_4scale_r50_12ep", ["queries.count=6"], QueryLimit(6, "queries.count")),
        ("anchor_detr_r50_50ep", ["queries.points=4", "queries.patterns=2"], QueryLimit(8, "queries.points")),
    ],
)
def test_a_detector_says_how_many_objects_it_can_find(name, overrides, limit):
    detector, _ = small(name, *overrides)
    assert detector.limit == limit
    assert detector.eval()(torch.rand(1, 3, 128, 128)).logits.shape[2] == limit.count


@pytest.mark.parametrize("name", ["sap_dino_r50_12ep", "dino_4scale_r50_12ep", "sam_detr_smca_r50_50ep"])
def test_no_part_hides_a_method_of_its_module(name):
    """`self.half`, half a width, once made `detector.half()` a TypeError."""
    detector, _ = small(name)
    for path, module in detector.named_modules():
        hidden = [key for key in vars(module) if callable(getattr(torch.nn.Module, key, None))]
        assert not hidden, (path, hidden)
    assert all(p.dtype == torch.float16 for p in detector.half().parameters())


@pytest.mark.parametrize("name", ["sap_detr_r50_50ep", "faster_rcnn_r50_108ep"])
def test_weights_in_half_precision_are_refused(name):
    detector, _ = small(name)
    for images in (torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64).half()):
        with pytest.raises(UserError, match=r"weights are in float16.*torch\.autocast"):
            detector.half().eval()(images)
    detector.float()(torch.rand(1, 3, 64, 64))


@pytest.mark.parametrize("name", ["sap_detr_r50_50ep", "faster_rcnn_r50_108ep"])
@pytest.mark.parametrize("images", [torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.zeros(3, 64, 64)])
def test_images_that_are_no_batch_of_floats_are_refused(name, images):
    detector, _ = small(name)
    shape = re.escape(str(list(images.shape)))
    with pytest.raises(UserError, match=rf"images are (uint8|float32) {shape}.* floats \[B, 3, H, W\]"):
        detector.eval()(images)


@pytest.mark.parametrize("name", ["sap_detr_r50_50ep", "faster_rcnn_r50_108ep"])
def test_masks_and_sizes_of_other_images_are_refused(name):
    detector, _ = small(name)
    images = torch.rand(2, 3, 64, 64)
    with pytest.raises(UserError, match=r"mask of images is \[2, 32, 64\], and the images are \[2, 3, 64, 64\]"):
        detector.eval()(images, torch.zeros(2, 32, 64, dtype=torch.bool))
    with pytest.raises(UserError, match="1 sizes for a batch of 2 images"):
        detector.detect(images, None, [[64, 64]])


@pytest.mark.parametrize("name", ["sap_detr_r50_50ep", "dab_detr_r50_50ep"])
def test_detections(name):
    detector, _ = small(name)
    images, mask, _ = batch()
    sizes = torch.tensor([[480, 640], [50, 70]])
    detections = detector.eval().detect(images, mask, sizes)
    output = detector(images, mask)
    for image, found in enumerate(detections):
        scores, labels, queries = found["scores"], found["labels"], found["queries"]
        assert len(scores) == 300
        assert (scores.diff() <= 0).all()
        assert torch.allclose(output.logits[-1, image].sigmoid()[queries, labels], scores)
        height, width = sizes[image]
        cx, cy, w, h = (output.boxes[-1, image][queries] * torch.tensor([width, height] * 2)).unbind(-1)
        expected = torch.stack((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), -1)
        assert torch.allclose(found["boxes"], expected, atol=1e-3)
        assert ("points" in found) == name.startswith("sap")


def test_a_batch_without_padding_needs_no_mask():
    detector, _ = small("sap_detr_r50_50ep")
    images = batch()[0]
    mask = torch.zeros(len(images), *images.shape[-2:], dtype=torch.bool)
    with torch.no_grad():
        with_mask, without = detector.eval()(images, mask), detector(images)
    assert torch.allclose(with_mask.logits, without.logits, atol=1e-5)
    assert torch.allclose(with_mask.boxes, without.boxes, atol=1e-6)


def test_objectness_multiplies_scores_where_asked():
    plain, _ = small("sap_detr_r50_50ep")
    images = batch()[0]
    output = plain.eval()(images)
    asked, _ = small("sap_detr_r50_50ep", "detect.objectness=true")
    best = asked.select(output, torch.tensor([[1, 1], [1, 1]]))[0]["scores"][0]
    assert torch.isclose(best, (output.logits[-1, 0].sigmoid() * output.objectness[-1, 0].sigmoid()).max())


def terms(*names):
    return f"decoder.cross_attention.terms={list(names)}"


GAUSSIAN = 'decoder.positions=["learned", "entering", { type = "point", order = "yx", embedding = "none" }]'


def test_pairs_nobody_published():
    """Anchor boxes with salient geometry, salient queries with DAB's attention, PECA on DAB, SDG on Conditional, ..."""
    images, mask, targets = batch()
    for name, overrides in (
        ("sap_detr_r50_50ep", ["queries.type=anchor_boxes"]),
        ("sap_detr_r50_50ep", ['decoder.positions=["box"]', 'decoder.cross_attention.terms=["content", "point"]']),
        (
            "dab_detr_r50_50ep",
            ['decoder.positions=["box", "side"]', 'decoder.cross_attention.terms=["content", "point", "side"]'],
        ),
        ("dab_detr_r50_50ep", ["queries.type=salient_grid"]),
        ("conditional_detr_r50_50ep", ["geometry.type=box", terms("content", "point", "side_directed_gaussian")]),
        ("conditional_detr_r50_50ep", [GAUSSIAN, terms("content", "point", "head_gaussian")]),
        ("dab_detr_r50_50ep", ['decoder.positions=["box", "entering"]', terms("content", "point", "head_gaussian")]),
        ("sam_detr_smca_r50_50ep", ["queries.type=salient_grid", "geometry.type=salient_point"]),
        ("detr_r50_500ep", ["geometry.type=point", "queries.point_depth=2"]),
        ("anchor_detr_r50_50ep", ["geometry.type=box", "encoder.type=transformer"]),
        ("dab_detr_r50_50ep", ["position.type=axes", "decoder.cross_attention.type=row_column"]),
    ):
        detector, criterion = small(name, *overrides)
        losses = criterion(detector.train()(images, mask, targets), targets)
        losses["total"].backward()
        assert losses["total"].isfinite()


@pytest.mark.parametrize("movement", ["bounded", "free", "fixed"])
def test_fixed_points_drop_the_point_head(movement):
    detector, _ = small("sap_detr_r50_50ep", f"geometry.movement={movement}")
    assert ("point" in detector.decoder.head.offset_heads) == (movement != "fixed")


@pytest.mark.parametrize("dilated", [False, True])
def test_dilation_halves_the_stride(dilated):
    detector, _ = small("sap_detr_r50_50ep", f"backbone.dilated={str(dilated).lower()}")
    with torch.no_grad():
        memory = detector.eval()(torch.randn(1, 3, 96, 96)).memory
    assert memory.shape[1] == (36 if dilated else 9)


def test_frozen_stages_and_norms():
    detector, _ = small("sap_detr_r50_50ep")
    frozen = {n.split(".")[1] for n, p in detector.backbone.named_parameters() if not p.requires_grad}
    assert frozen == {"conv1", "layer1"}
    assert not any("bn" in n or "downsample.1" in n for n, _ in detector.backbone.named_parameters())
    trained, _ = small("sap_detr_r50_50ep", "backbone.norm=batch", "backbone.frozen_stride=0")
    assert all(p.requires_grad for p in trained.backbone.parameters())
    assert any("bn1" in n for n, _ in trained.backbone.named_parameters())


def test_weights_that_cannot_be_had_name_the_way_out(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # no network, and no waiting for it
    with pytest.raises(detrkit.errors.CheckpointError, match=r"set backbone\.weights=FILE"):
        small("sap_detr_r50_50ep", "backbone.pretrained=true", "backbone.name=resnet18.a1_in1k")
    with pytest.raises(detrkit.errors.CheckpointError, match=r"nowhere\.safetensors"):
        small("sap_detr_r50_50ep", "backbone.weights=nowhere.safetensors")


def test_backbone_mistakes_are_named():
    with pytest.raises(detrkit.errors.UserError, match=r"timm\.list_models"):
        small("sap_detr_r50_50ep", "backbone.name=resnet5000")
    with pytest.raises(detrkit.errors.UserError, match="has 5 levels"):
        small("sap_detr_r50_50ep", "backbone.levels=[7]")
    with pytest.raises(detrkit.errors.UserError, match=r"not a multiple of detector\.heads"):
        small("sap_detr_r50_50ep", "detector.heads=7")


def test_local_backbone_weights(tmp_path):
    detector, _ = small("sap_detr_r50_50ep")
    reference = timm.create_model("resnet18")
    save_file(reference.state_dict(), tmp_path / "w.safetensors")
    loaded, _ = small("sap_detr_r50_50ep", f"backbone.weights={tmp_path / 'w.safetensors'}")
    assert torch.equal(loaded.backbone.body.conv1.weight, reference.conv1.weight)
    assert not torch.equal(detector.backbone.body.conv1.weight, reference.conv1.weight)


@pytest.mark.slow
def test_bfloat16_stays_close():
    detector, _ = small("sap_detr_r50_50ep")
    images, mask, _ = batch()
    with torch.no_grad():
        exact = detector.eval()(images, mask)
        with torch.autocast("cpu", torch.bfloat16):
            coarse = detector(images, mask)
    assert coarse.boxes.dtype == torch.float32
    assert (coarse.boxes - exact.boxes).abs().max() < 0.02
