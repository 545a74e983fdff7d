"""What a geometry of one's own says beside boxes and points reaches losses and detections by its name."""

import pytest
import torch
from PIL import Image

import detrkit
from detrkit.data.batch import Example, collate
from detrkit.data.records import Category
from detrkit.errors import UserError
from detrkit.evaluation.evaluate import coco_detections
from detrkit.export.form import ExportedForm, Form
from detrkit.geometry.base import Decoded
from detrkit.geometry.box import BoxGeometry
from detrkit.losses.base import Loss
from detrkit.predictor import Predictor
from detrkit.recipe import registry


class Unsure(BoxGeometry):
    """Boxes, and how far each of their numbers is off."""

    def __init__(self):
        super().__init__()
        self.offset_widths = {**self.offset_widths, "spread": 4}

    def decode(self, offsets, reference):
        return Decoded(super().decode(offsets, reference).boxes, None, {"spread": offsets["spread"].exp()})


class Laplace(Loss):
    weight = 1.0

    def applies_to(self, output):
        return "spread" in output.named

    def __call__(self, output, targets, matches, objects):
        spread = matches.take(output.named["spread"])
        wrong = (matches.take(output.boxes) - matches.take_targets(targets.boxes)).abs()
        return (wrong / spread + spread.log()).sum((-2, -1)) / objects


@pytest.fixture
def recipe(monkeypatch):
    """Loads a recipe with the two, which are known in this test alone."""
    registry.load_registered_parts()
    for slot in ("geometry", "loss"):
        monkeypatch.setitem(registry._current.parts, slot, dict(registry.parts(slot)))
    detrkit.register("geometry", "unsure")(Unsure)
    detrkit.register("loss", "laplace")(Laplace)

    def load(*overrides):
        own = ['geometry={type="unsure"}', 'losses.laplace="laplace"']
        return detrkit.load_recipe("quickstart_dab", [*own, *overrides])

    return load


TARGETS = [
    {"labels": torch.tensor([1, 0]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.4], [0.3, 0.6, 0.1, 0.1]])},
    {"labels": torch.tensor([2]), "boxes": torch.tensor([[0.4, 0.5, 0.6, 0.4]])},
]


@pytest.mark.parametrize(
    "block", ['blocks.denoising={type="denoising", groups=2}', 'blocks.groups={type="groups", count=3}']
)
def test_a_loss_learns_it_in_the_answer_and_beside_it(recipe, block):
    recipe = recipe(block)
    detector, criterion = detrkit.build_detector(recipe).train(), detrkit.build_criterion(recipe)
    with torch.no_grad():
        detector.decoder.head.offset_heads["spread"].first.last.bias.copy_(torch.tensor([0.0, 1.0, 2.0, 3.0]))
    output = detector(torch.rand(2, 3, 64, 96), None, TARGETS)
    [extra] = output.extras.values()
    for one in (output, extra.output):
        assert one.named["spread"].shape == one.boxes.shape
        assert torch.allclose(one.named["spread"], torch.tensor([0.0, 1.0, 2.0, 3.0]).exp().expand_as(one.boxes))
    losses = criterion(output, TARGETS)
    assert sum(name.endswith("laplace") for name in losses) == 2
    losses["total"].backward()
    assert detector.decoder.head.offset_heads["spread"].first.last.bias.grad.abs().min() > 0


def test_it_is_cut_and_widened_as_boxes_are(recipe):
    detector = detrkit.build_detector(recipe()).eval()
    output = detector(torch.rand(2, 3, 64, 96))
    spread = output.named["spread"]
    assert torch.equal(output.rows(slice(3, 8)).named["spread"], spread[:, :, 3:8])
    assert torch.equal(output.layer(1).named["spread"], spread[1:2])
    assert detector(torch.rand(1, 3, 64, 96)).float().named["spread"].dtype == torch.float32


def test_detections_have_it(recipe):
    detector = detrkit.build_detector(recipe()).eval()
    torch.nn.init.normal_(detector.decoder.head.offset_heads["spread"].first.last.weight)
    images, sizes = torch.rand(2, 3, 64, 96), [[64, 96], [64, 96]]
    spread = detector(images).named["spread"][-1]
    found = detector.detect(images, None, sizes)
    for one, expected in zip(found, spread, strict=True):
        assert torch.allclose(one["spread"], expected[one["queries"]], atol=1e-5)
    raw = ExportedForm(detector, Form(pixels="normalised", mask=False, detections=False)).named(images)
    assert torch.allclose(raw["spread"], spread, atol=1e-5)


def test_what_losses_alone_read_is_in_no_detection(recipe, monkeypatch):
    """Else hundreds of logits of each detection stood in predictions.json and came out of exported files."""

    def decode(self, offsets, reference):
        return Decoded(BoxGeometry.decode(self, offsets, reference).boxes, None, {"_spread": offsets["spread"]})

    monkeypatch.setattr(Unsure, "decode", decode)
    detector, images = detrkit.build_detector(recipe()).eval(), torch.rand(1, 3, 64, 96)
    assert "_spread" in detector(images).named
    [found] = detector.detect(images, None, [[64, 96]])
    assert found.keys() == {"scores", "labels", "boxes", "queries"}
    for detections in (True, False):
        form = ExportedForm(detector, Form(pixels="normalised", mask=False, detections=detections))
        assert "_spread" not in form.output_names()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"scores": lambda spread: spread}, 'of the name "scores", which a detection has already'),
        (
            {"spread": lambda spread: spread[..., 0]},
            r'as "spread" is \[2, \d+\], should be \[B, N, F\] = \[2, \d+, F\]',
        ),
    ],
)
def test_names_that_are_taken_and_other_shapes_are_refused_in_training(recipe, monkeypatch, said, message):
    """Both were met by the first evaluation, which lost the one and broke off for the other."""
    [(name, change)] = said.items()

    def decode(self, offsets, reference):
        return Decoded(BoxGeometry.decode(self, offsets, reference).boxes, None, {name: change(offsets["spread"])})

    monkeypatch.setattr(Unsure, "decode", decode)
    with pytest.raises(UserError, match=message):
        detrkit.build_detector(recipe()).train()(torch.rand(2, 3, 64, 96), None, TARGETS)


def test_found_and_files_have_it(recipe):
    detector = detrkit.build_detector(recipe()).eval()
    torch.nn.init.normal_(detector.decoder.head.offset_heads["spread"].first.last.weight)
    classes = [Category(label + 3, f"class {label}") for label in range(8)]
    parts = {"title": "", "recipe": None, "transform": lambda image: image, "precision": "fp32"}
    predictor = Predictor(detector=detector, categories=classes, device=torch.device("cpu"), **parts)
    picture = Image.new("RGB", (96, 64), "red")
    found = predictor.predict(picture, threshold=0.0)
    assert list(found.named) == ["spread"]
    assert found.named["spread"].shape == (len(found), 4)
    [result] = detector.detect(collate([Example.without_truth(picture, 1, (64, 96))]).images, None, [[64, 96]])
    assert torch.allclose(found.named["spread"], result["spread"])
    result["spread"][1, 2] = torch.inf
    rows = coco_detections(1, result, [category.id for category in classes])
    assert "spread" not in rows[1]
    assert rows[2]["spread"] == pytest.approx(result["spread"][2].tolist(), abs=1e-6)
    assert rows[2].keys() == {"image_id", "category_id", "bbox", "score", "spread"}
