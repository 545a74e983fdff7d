"""Exported files beside PyTorch, at batches and sizes other than the traced ones."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import detrkit
from detrkit.data import Category
from detrkit.errors import CheckpointError, UserError
from detrkit.export.card import Card
from detrkit.export.check import compare
from detrkit.export.form import ExportedForm, Form
from detrkit.export.loading import _openvino_core, open_exported, open_written
from detrkit.export.writing import SUFFIXES, write
from detrkit.layers import shrink_mask
from detrkit.recipe import load_recipe
from detrkit.recipe.registry import load_registered_parts, parts
from tests.export.systems import form_and_card, images, trained

CPU = torch.device("cpu")
RAW = Form(pixels="normalised", detections=False)
LANDSCAPE, PORTRAIT = [(170, 300), (77, 200), (170, 130)], [(330, 140)]  # traced: two of 416 x 544


def export(name, form, tmp_path, kind="onnx"):
    one = trained(name)
    path = tmp_path / f"file{SUFFIXES[kind]}"
    module, card = form_and_card(one, form)
    write(module, card, path, kind)
    return one.detector, path, open_written(path, card)


def hold_to(detector, exported, shapes):
    """Raw predictions where the file gives them, and detections as a set."""
    batch, mask, sizes = images(shapes)
    with torch.no_grad():
        output = detector(batch, mask)
        ours = detector.detect(batch, mask, sizes)
    given = exported.outputs(batch, mask, sizes)
    if not exported.card.form.detections:
        assert torch.allclose(given["logits"], output.logits[-1], atol=1e-4)
        assert torch.allclose(given["boxes"], output.boxes[-1], atol=1e-5)
    for mine, theirs, size in zip(ours, exported.detect(batch, mask, sizes), sizes.tolist(), strict=True):
        assert mine.keys() == theirs.keys()
        assert len(theirs["scores"]) == 20
        assert compare(mine, theirs, tuple(size), 1e-4).within(1e-4)
    spread = ours[0]["scores"].max() - ours[0]["scores"].min()
    assert spread > 1e-3  # detections that could be told from others


@pytest.mark.slow  # tracing takes seconds
@pytest.mark.parametrize(
    "name",
    [
        "sap_detr_r50_50ep",
        "dab_detr_r50_50ep",
        "detr_r50_500ep",
        "anchor_detr_r50_50ep",
        "sam_detr_smca_r50_50ep",
        "dino_4scale_r50_12ep",  # with all that Deformable DETR has
    ],
)
def test_onnx_at_another_batch_and_size(name, tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    detector, _, exported = export(name, RAW, tmp_path)
    hold_to(detector, exported, LANDSCAPE)
    hold_to(detector, exported, PORTRAIT)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sap_detr_r50_50ep", "dino_ss_r50_12ep"])
def test_a_program_of_torch_at_another_batch_and_size(name, tmp_path):
    detector, path, exported = export(name, Form(), tmp_path, "torch-export")
    hold_to(detector, exported, LANDSCAPE)
    hold_to(detector, exported, PORTRAIT)
    with pytest.raises(UserError, match=r"takes no images of 5 x 200 pixels .* at least two cells a side"):
        exported.detect(*images([(5, 200)]))
    with pytest.raises(UserError, match=r"can run code that the file carries.*--format onnx"):
        open_exported(path, CPU)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sap_detr_r50_50ep", "sam_detr_r50_50ep"])
def test_openvino_at_another_batch_and_size(name, tmp_path):
    pytest.importorskip("openvino")
    pytest.importorskip("onnxscript")
    detector, path, exported = export(name, Form(), tmp_path, "openvino")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["file.bin", "file.xml"]
    hold_to(detector, exported, LANDSCAPE)
    hold_to(detector, exported, PORTRAIT)
    hold_to(detector, exported, [(33, 33)])
    with pytest.raises(UserError, match=r"takes no images of 5 x 3 pixels in OpenVINO; an \.onnx file does .*larger"):
        exported.detect(*images([(5, 3)]))  # OpenVINO itself gives what it found before
    with pytest.raises(UserError, match="an OpenVINO file runs on the CPU"):
        open_exported(path, torch.device("cuda"))
    path.write_text("<net>")
    with pytest.raises(CheckpointError, match="cannot be opened by OpenVINO"):
        open_exported(path, CPU)


class Shrunk(torch.nn.Module):
    def forward(self, mask):
        return shrink_mask(mask, ((mask.shape[1] + 31) // 32, (mask.shape[2] + 31) // 32)).float()


@pytest.mark.slow
def test_a_mask_shrinks_to_the_same_cells_in_every_runtime(tmp_path):
    """Padding that begins exactly where a cell looks: the third of 10 rows of a map of 300 pixels looks at row 60."""
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    free, path, module = {0: "batch", 1: "height", 2: "width"}, str(tmp_path / "mask.onnx"), Shrunk().eval()
    example = (torch.zeros(2, 416, 544, dtype=torch.bool),)
    torch.onnx.export(module, example, dynamo=True, opset_version=20, verbose=False, dynamic_shapes=[free]).save(path)
    session = runtime.InferenceSession(path)
    compiled = _openvino_core().compile_model(path, "CPU")
    name = session.get_inputs()[0].name
    for height, begin in ((300, 60), (300, 180), (210, 90), (330, 150), (330, 210), (700, 350), (999, 333)):
        mask = torch.zeros(1, height, 100, dtype=torch.bool)
        mask[:, begin:] = True
        expected = module(mask)
        assert torch.equal(torch.from_numpy(session.run(None, {name: mask.numpy()})[0]), expected)
        assert torch.equal(torch.from_numpy(compiled([mask.numpy()])[0]), expected)


@pytest.mark.slow
def test_without_a_mask_images_are_run_alone(tmp_path):
    detector, _, exported = export("sap_detr_r50_50ep", Form(mask=False), tmp_path, "torch-export")
    batch, mask, sizes = images(LANDSCAPE)
    found = exported.detect(batch, mask, sizes)
    for index, (height, width) in enumerate(LANDSCAPE):
        alone = batch[index : index + 1, :, :height, :width]
        (ours,) = detector.detect(alone, None, sizes[index : index + 1])
        assert compare(ours, found[index], tuple(sizes[index].tolist()), 1e-4).within(1e-4)


def test_bytes_are_normalised_as_training_does():
    """The module that is traced, in eager mode."""
    one = trained("sap_detr_r50_50ep")
    batch, mask, sizes = images(LANDSCAPE)
    normalised, _ = form_and_card(one, Form(pixels="normalised"))
    raw, _ = form_and_card(one, Form(pixels="uint8"))
    pixels = ((batch * normalised.std + normalised.mean) * 255).round().byte()
    with torch.no_grad():
        for mine, theirs in zip(normalised(batch, mask, sizes), raw(pixels, mask, sizes), strict=True):
            assert torch.allclose(mine.float(), theirs.float(), atol=1e-3)
        assert torch.equal(raw(pixels, mask, sizes)[0], raw(pixels.masked_fill(mask[:, None], 200), mask, sizes)[0])


@pytest.mark.slow  # dynamo reads every layer
@pytest.mark.parametrize("name", ["deformable_detr_4scale_r50_50ep", "sam_detr_smca_r50_50ep"])
def test_a_detector_is_one_graph(name):
    """torch.compile takes it whole; a cached property broke Deformable DETR into 15 graphs."""
    detector = trained(name).detector
    batch, mask, _ = images(LANDSCAPE)
    torch._dynamo.reset()
    with torch.no_grad():
        whole = torch.compile(detector, backend="eager", fullgraph=True)(batch, mask)
        assert torch.equal(whole.logits, detector(batch, mask).logits)


def test_what_cannot_be_exported_is_told_why():
    small = ["backbone.name=test_resnet", "backbone.pretrained=false", "detector.classes=3"]
    faster = detrkit.build_detector(detrkit.load_recipe("faster_rcnn_r50_108ep", small))
    with pytest.raises(UserError, match=r"cannot be exported: torchvision's modules of Faster R-CNN"):
        ExportedForm(faster, Form())


def result(scores, boxes, labels):
    return {"scores": torch.tensor(scores), "boxes": torch.tensor(boxes), "labels": torch.tensor(labels)}


def test_detections_are_compared_as_sets():
    a, b, c = [0.0, 0.0, 50.0, 20.0], [10.0, 0.0, 20.0, 20.0], [30.0, 5.0, 40.0, 10.0]
    size = (20, 100)
    ours = result([0.9, 0.8, 0.3], [a, b, c], [1, 1, 0])
    assert compare(ours, ours, size, 1e-3).within(0.0)
    swapped = result([0.8002, 0.9, 0.3], [b, a, c], [1, 1, 0])
    found = compare(ours, swapped, size, 1e-3)
    assert found.unpaired == 0
    assert found.scores == pytest.approx(2e-4, rel=1e-2)
    assert found.boxes == 0
    moved = result([0.9, 0.8, 0.3], [a, [10.0, 0.0, 20.0, 24.0], c], [1, 1, 0])  # 4 pixels of 20 in height
    found = compare(ours, moved, size, 1e-3)
    assert (found.unpaired, found.boxes) == (1, pytest.approx(0.2))
    assert not found.within(1e-3)
    assert compare(ours, moved, size, 0.3).within(0.3)
    other_label = result([0.9, 0.8, 0.3], [a, b, c], [1, 2, 0])
    assert compare(ours, other_label, size, 1e-3).unpaired == 2
    at_the_edge = result([0.9, 0.8, 0.3004], [a, b, a], [1, 1, 2])  # rounding decides what is kept last
    assert compare(ours, at_the_edge, size, 1e-3).within(1e-3)
    below = result([0.9, 0.8], [a, b], [1, 1])
    assert compare(replace_last(ours, 0.5), below, size, 1e-3).within(1e-3)  # the edge is at 0.8 there
    nan = result([0.9, 0.8, 0.3], [[float("nan")] * 4, b, c], [1, 1, 0])
    assert not compare(ours, nan, size, 1e-3).within(1e-3)


def replace_last(one, score):
    scores = one["scores"].clone()
    scores[-1] = score
    return {**one, "scores": scores}


def test_a_card_survives_and_refuses(tmp_path):
    one = trained("sap_detr_r50_50ep")
    card = Card.of(one, Form(mask=False), ("scores",))
    assert Card.from_json(card.to_json(), tmp_path) == replace(card, resize=dict(card.resize))
    odd = replace(card, categories=tuple(Category(at, name) for at, name in enumerate(("圆", "<&", "\x01", "\udcff"))))
    assert Card.from_json(odd.to_json().encode().decode(), tmp_path).categories == odd.categories
    assert card.resize["eval_size"] == 800
    deim = load_recipe("rt_detr_deim_r50_60ep", ["detector.classes=5"])
    card = Card.of(replace(one, recipe=deim), Form(mask=False), ("scores",))
    assert (card.resize["type"], card.resize["eval_size"]) == ("square", 640)  # of the last stage
    for text, message in (
        (None, "was not written by `detrkit export`"),
        ("{}", "cannot be read"),
        (card.to_json().replace('"version": 1', '"version": 2'), "another version of detrkit"),
    ):
        with pytest.raises(CheckpointError, match=message):
            Card.from_json(text, tmp_path)
    with pytest.raises(UserError, match=r'augment "mine", which is not known here; .* for the command line, install'):
        replace(card, resize={"type": "mine"}).augment()


AUGMENTS = {
    "none": {"max_size": 500},
    "flip": {"flip": 0.1},
    "detr": {"scales": [64, 96], "eval_size": 77},
    "square": {"eval_size": 99},
    "dense": {"images": "none"},
    "by_epoch": {"stages": {"a": "flip", "b": {"type": "dense", "images": "square"}}, "changes": [3]},
}


@pytest.mark.parametrize("name", AUGMENTS)
def test_any_augmentation_s_resizing_comes_back_from_a_card(name):
    """As the recipe says it, and whatever chooses another is reduced to that."""
    said = {"type": name, **AUGMENTS[name]}
    recipe = load_recipe("quickstart").with_values({"data.augment": said}, source="test")
    card = Card.of(replace(trained("sap_detr_r50_50ep"), recipe=recipe), Form(mask=False), ("scores",))
    back = Card.from_json(card.to_json(), Path("file")).augment()
    image = Image.new("RGB", (700, 900))
    assert back.evaluate(image).size == recipe.section("data").parts["augment"]().evaluate(image).size


def test_no_shipped_augmentation_is_left_out():
    load_registered_parts()
    shipped = {name for name, build in parts("augment").items() if build.__module__.startswith("detrkit.")}
    assert shipped == set(AUGMENTS)
