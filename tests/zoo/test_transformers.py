"""Checkpoints of the package `transformers`: the real models, with random weights, against the detectors they become.

What version 5 saves has version 4's names, and what it holds in memory has its own, so both namings are the package's.
"""

import re
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

import detrkit
from detrkit.cli.app import app
from detrkit.errors import CheckpointError, UserError
from detrkit.recipe import registry
from detrkit.zoo.conversion import match
from tests.test_docs import snippets

transformers = pytest.importorskip("transformers", minversion="5")

CLASSES, QUERIES, WIDTH = 5, 20, 32
NAMES = {0: "ant", 1: "cat", 2: "dog", 3: "eel", 4: "bird"}
SIZES = {
    "encoder_layers": 2,
    "decoder_layers": 3,
    "num_queries": QUERIES,
    "id2label": NAMES,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 40,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
}
TIMM = {"use_timm_backbone": True, "backbone": "resnet18", "use_pretrained_backbone": False}
BASIC = {"layer_type": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512]}
TWO_STAGE = {"with_box_refine": True, "two_stage": True, "two_stage_num_proposals": QUERIES}

FORMS = {
    "detr": ("Detr", {}),
    "detr, carried norm": ("Detr", {"auxiliary_loss": True}),
    "detr, own ResNet": ("Detr", {"own": BASIC}),
    "detr, own bottleneck": ("Detr", {"own": {}}),
    "detr, dilated": ("Detr", {"backbone": "resnet50", "dilation": True}),
    "conditional": ("ConditionalDetr", {}),
    "conditional, carried norm": ("ConditionalDetr", {"auxiliary_loss": True}),
    "deformable, one level": ("DeformableDetr", {"num_feature_levels": 1}),
    "deformable, four levels": ("DeformableDetr", {"encoder_n_points": 3, "decoder_n_points": 2}),
    "deformable, own ResNet": ("DeformableDetr", {"own": {**BASIC, "out_features": ["stage2", "stage3", "stage4"]}}),
    "deformable, refined": ("DeformableDetr", {"with_box_refine": True}),
    "deformable, two stages": ("DeformableDetr", TWO_STAGE),
    "dab": ("DabDetr", {}),
    "dab, patterns": ("DabDetr", {"num_patterns": 2, "temperature_height": 10, "temperature_width": 10}),
}
SAVED = ["detr", "conditional", "deformable, one level", "deformable, four levels", "dab"]


def build(form: str):
    """A small model of one of the forms, all of whose weights are random, heads of refined ones apart."""
    system, options = FORMS[form]
    width = {"hidden_size" if system == "DabDetr" else "d_model": WIDTH}
    options = {**SIZES, **width, **TIMM, **options}
    own = options.pop("own", None)
    if own is not None:
        resnet = transformers.ResNetConfig(**{"out_features": ["stage4"], **own})
        options |= {"use_timm_backbone": False, "backbone": None, "backbone_config": resnet}
    torch.manual_seed(0)
    config = getattr(transformers, f"{system}Config")(**options)
    model = getattr(transformers, f"{system}ForObjectDetection")(config).eval()
    for heads in [getattr(model, "bbox_embed", None)] if options.get("with_box_refine") else []:
        for head in heads[1:]:
            for layer in head.layers:  # as in checkpoints of before version 5, which did not share them
                layer.weight, layer.bias = nn.Parameter(layer.weight.clone()), nn.Parameter(layer.bias.clone())
        model.model.decoder.bbox_embed = heads
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif name.endswith("running_mean"):
                tensor.normal_(0, 0.1)
            elif re.search("query_(position|refpoint)_embeddings", name):
                tensor.normal_(0, 1)  # queries that differ
            elif "backbone" not in name and tensor.is_floating_point():
                fan = tensor.shape[-1] if tensor.dim() == 2 else tensor[0].numel() if tensor.dim() > 2 else 100
                tensor.add_(0.8 * torch.randn(tensor.shape) / fan**0.5)
    return model


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Two images, the second padded at the right and bottom, and the mask that is True there."""
    torch.manual_seed(1)
    images, mask = torch.randn(2, 3, 96, 128), torch.zeros(2, 96, 128, dtype=torch.bool)
    mask[1, 70:], mask[1, :, 90:] = True, True
    return images.masked_fill(mask[:, None], 0), mask


def answers(model, images, mask):
    """What the package computes; its masks are 1 where there is an image."""
    with torch.no_grad():
        found = model(images, pixel_mask=(~mask).long())
    return found.logits, found.pred_boxes


def ours(state, recipe, images, mask):
    detector = detrkit.build_detector(recipe, pretrained=False).eval()
    detector.load_state_dict(detrkit.zoo.convert(state, recipe))
    with torch.no_grad():
        output = detector(images, mask)
    return output.logits[-1], output.boxes[-1]


def assert_same(found, expected):
    for one, other, tolerance in zip(found, expected, (1e-4, 1e-5), strict=True):
        assert (one - other).abs().max() < tolerance


def marked(form: str):
    """Forms on a ResNet-50 take longer: bottlenecks, and dilation, which timm has for those alone."""
    large = form in ("detr, own bottleneck", "detr, dilated")
    return pytest.param(form, marks=pytest.mark.slow) if large else form


@pytest.mark.parametrize("form", [marked(form) for form in FORMS])
def test_a_model_in_memory_computes_the_same(form):
    model, (images, mask) = build(form), batch()
    fitted = detrkit.zoo.fit(model.state_dict(), config=model.config.to_dict())
    expected = answers(model, images, mask)
    assert expected[1].std() > 0.01  # a thousand times what they may differ
    assert_same(ours(model.state_dict(), fitted.recipe, images, mask), expected)


def call(*words):
    result = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(result.exception, UserError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


@pytest.mark.parametrize("form", SAVED)
def test_a_saved_folder_becomes_detections(form, tmp_path):
    model = build(form)
    model.save_pretrained(tmp_path / "saved")
    system = FORMS[form][0]
    kind = {"DabDetr": "ConditionalDetr"}.get(system, system)
    size = {"shortest_edge": 96, "longest_edge": 128}
    processor = getattr(transformers, f"{kind}ImageProcessor")(size=size)
    processor.save_pretrained(tmp_path / "saved")

    weights, recipe = tmp_path / "new" / "w.safetensors", tmp_path / "new" / "w.toml"
    told = call("convert", tmp_path / "saved", "-o", weights).output
    assert f"{CLASSES} classes, ant, cat, dog, ..." in told
    assert "  queries.count = 20: config.json" in told
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8))
    found = detrkit.load(recipe, weights=weights).predict(picture, threshold=0)

    inputs = processor(images=picture, return_tensors="pt")
    with torch.no_grad():
        output = model(**inputs)
    result = processor.post_process_object_detection(output, threshold=0, target_sizes=[(96, 128)])[0]
    expected = [(s, NAMES[i.item()], b) for s, i, b in zip(*result.values(), strict=True)]
    assert len(found) == len(expected) > 5
    assert max(score for score, *_ in expected) - min(score for score, *_ in expected) > 0.005
    left = list(zip(found.scores, found.names, found.boxes, strict=True))
    for score, name, box in expected:  # scores may be so near one another that their order is another one
        same = [n == name and (s - score).abs() < 1e-4 and (b - box).abs().max() < 1e-5 * 128 for s, n, b in left]
        del left[same.index(True)]


@pytest.mark.parametrize(
    "said",
    [
        {"do_normalize": False},
        {"image_mean": [0, 0, 0], "image_std": [1, 1, 1]},
        {"image_mean": 0.5, "image_std": 0.25},
        {"do_rescale": False},
        {"do_rescale": False, "do_normalize": False},
        {"rescale_factor": 1 / 127.5},
        {"rescale_factor": 1 / 127.5, "do_normalize": False},
        {"do_resize": False, "size": {"shortest_edge": 64, "longest_edge": 64}},
    ],
    ids=str,
)
def test_images_go_in_as_the_preprocessor_says(said, tmp_path):
    model = build("detr")
    model.save_pretrained(tmp_path / "saved")
    processor = transformers.DetrImageProcessor(**{"size": {"shortest_edge": 96, "longest_edge": 128}} | said)
    processor.save_pretrained(tmp_path / "saved")
    call("convert", tmp_path / "saved", "-o", tmp_path / "w.safetensors")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8))
    found = detrkit.load(tmp_path / "w.toml", weights=tmp_path / "w.safetensors").predict(picture, threshold=0)
    inputs = processor(images=picture, return_tensors="pt")
    with torch.no_grad():  # where nothing is rescaled they are bytes
        output = model(pixel_values=inputs["pixel_values"].float(), pixel_mask=inputs["pixel_mask"])
    result = processor.post_process_object_detection(output, threshold=0, target_sizes=[(96, 128)])[0]
    assert torch.allclose(found.scores.sort()[0], result["scores"].sort()[0], atol=1e-5)


@pytest.mark.parametrize("form", ["detr", "conditional", "deformable, two stages", "deformable, refined", "dab"])
def test_every_file_of_a_model_gives_the_same_weights(form, tmp_path):
    """In memory, in one file, in pieces with an index, pickled: other names, and shared heads once or several times."""
    model = build(form)
    recipe = detrkit.zoo.fit(model.state_dict(), config=model.config.to_dict()).recipe
    expected = detrkit.zoo.convert(model.state_dict(), recipe)
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "pieces", max_shard_size="5MB")
    (tmp_path / "pickled").mkdir()
    torch.save(load_file(tmp_path / "one" / "model.safetensors"), tmp_path / "pickled" / "pytorch_model.bin")
    assert len(list((tmp_path / "pieces").glob("*.safetensors"))) > 1
    for folder in ("one", "pieces", "pickled"):
        found = detrkit.zoo.convert(detrkit.reading.read_checkpoint(tmp_path / folder), recipe)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    if form != "dab":  # the others' names differ between the versions
        assert set(load_file(tmp_path / "one" / "model.safetensors")) - set(model.state_dict())


def test_a_shared_head_that_is_saved_once_stands_for_all_layers():
    model = build("deformable, refined")
    recipe = detrkit.zoo.fit(model.state_dict(), config=model.config.to_dict()).recipe
    first = {name: tensor for name, tensor in model.state_dict().items() if not re.match(r"class_embed\.[1-9]", name)}
    state = detrkit.zoo.convert(first, recipe)
    for layer in range(3):
        assert torch.equal(state[f"decoder.head.classes.{layer}.layers.0.bias"], first["class_embed.0.bias"])
    boxes = [state[f"decoder.head.offset_heads.box.{layer}.layers.2.bias"] for layer in range(3)]
    assert not torch.equal(boxes[0], boxes[1])
    del first["class_embed.0.bias"]
    assert match(first, recipe).missing == [f"decoder.head.classes.{layer}.layers.0.bias" for layer in range(3)]


def test_a_tensor_that_is_not_finite_finds_no_place():
    model = build("deformable, refined")
    recipe = detrkit.zoo.fit(model.state_dict(), config=model.config.to_dict()).recipe
    model.class_embed[0].bias.data[0] = float("nan")
    (told,) = match(model.state_dict(), recipe).mismatched[:1]
    assert told.startswith("class_embed.0.bias -> ")
    assert told.endswith("holds numbers that are not finite")


@pytest.mark.parametrize(
    ("form", "key", "official", "told"),
    [
        ("detr, carried norm", "decoder.norm_carried", False, None),  # in memory nothing tells
        ("conditional, carried norm", "decoder.norm_carried", False, None),
        ("dab", "geometry.eps", 1e-3, r"geometry\.eps should be 1e-05: transformers clips"),
    ],
)
def test_what_differs_from_the_official_code_is_set_and_is_felt(form, key, official, told):
    model, (images, mask) = build(form), batch()
    if form == "dab":
        with torch.no_grad():
            model.model.query_refpoint_embeddings.weight[:, 2:] = -8.0  # boxes of less than a thousandth
    state, config = model.state_dict(), model.config.to_dict()
    fitted = detrkit.zoo.fit(state, config=config)
    assert f"{key} = " in fitted.summary()
    expected = answers(model, images, mask)
    assert_same(ours(state, fitted.recipe, images, mask), expected)
    with pytest.warns(UserWarning, match=told) if told else nullcontext():
        other = ours(state, fitted.recipe.with_values({key: official}), images, mask)
    assert (other[1] - expected[1]).abs().max() > 1e-3


def test_without_a_config_what_always_differs_is_set_and_the_rest_is_said():
    fitted = detrkit.zoo.fit(build("dab").state_dict(), detrkit.load_recipe("dab_detr_r50_50ep"))
    assert fitted.recipe.get("geometry.eps") == 1e-5
    fitted = detrkit.zoo.fit(build("detr").state_dict(), detrkit.load_recipe("detr_r50_500ep"))
    assert "decoder.norm_carried = false" in fitted.summary()
    assert "auxiliary_loss = true; config.json would say" in fitted.summary()
    assert fitted.recipe.get("detector.classes") == CLASSES


def test_a_config_of_another_system_is_refused():
    with pytest.raises(CheckpointError, match=r"names are those of 'detr', but config\.json is of 'dab-detr'"):
        detrkit.zoo.fit(build("detr").state_dict(), detrkit.load_recipe("base/detr"), config={"model_type": "dab-detr"})


@pytest.mark.parametrize("part", ["model", "segmentation"])
def test_models_without_the_heads_of_a_detector_are_refused(part):
    model = build("detr")
    state = model.model.state_dict()
    if part == "segmentation":
        state = {f"detr.{name}": tensor for name, tensor in model.state_dict().items()}
        state["mask_head.conv1.conv.weight"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match=r"Accepted is what \.\.\.ForObjectDetection saves"):
        detrkit.zoo.fit(state, config=model.config.to_dict())


def test_a_prefix_before_all_names_is_taken_off_with_a_word(tmp_path):
    """Lightning keeps a module's weights in "state_dict", under the name that the module has in its own."""
    model = build("detr")
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    state["criterion.empty_weight"] = torch.ones(6)  # of DETR's loss, where the module has that beside the model
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "last.ckpt")
    model.config.save_pretrained(tmp_path)
    told = call("convert", tmp_path / "last.ckpt", "-o", tmp_path / "w.safetensors")
    assert '"model." before every name was taken off' in told.output
    assert "of the training's losses, left out: criterion.empty_weight" in told.output
    fitted = detrkit.zoo.fit(model.state_dict(), config=model.config.to_dict())
    expected = detrkit.zoo.convert(model.state_dict(), fitted.recipe)
    found = load_file(tmp_path / "w.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_overrides_and_a_recipe_of_ones_own_win(tmp_path):
    model = build("dab")
    model.save_pretrained(tmp_path / "saved")
    told = call("convert", tmp_path / "saved", "geometry.eps=1e-3", "-o", tmp_path / "w.safetensors").output
    assert "geometry.eps" not in told
    assert detrkit.load_recipe(tmp_path / "w.toml").get("geometry.eps") == 1e-3
    (tmp_path / "mine.toml").write_text('extends = "base/dab_detr"\ntitle = "Mine"\n')
    call("convert", tmp_path / "saved", tmp_path / "mine.toml", "-o", tmp_path / "w.safetensors")
    written = detrkit.load_recipe(tmp_path / "w.toml")
    assert (written.title, written.get("geometry.eps"), written.get("detector.classes")) == ("Mine", 1e-5, CLASSES)


def test_a_recipe_of_weights_that_were_there_before_does_not_stay_beside_others(tmp_path):
    build("dab").save_pretrained(tmp_path / "saved")
    call("convert", tmp_path / "saved", "-o", tmp_path / "whole.safetensors")
    call("convert", tmp_path / "saved", "geometry.eps=1e-3", "-o", tmp_path / "w.safetensors")
    call("convert", tmp_path / "saved", tmp_path / "whole.toml", "-o", tmp_path / "w.safetensors")
    assert detrkit.load_recipe(tmp_path / "w.toml").get("geometry.eps") == 1e-5


def test_no_file_of_a_persons_own_is_written_over(tmp_path):
    build("dab").save_pretrained(tmp_path / "saved")
    (tmp_path / "w.toml").write_text("mine = true\n")
    with pytest.raises(UserError, match=r"w\.toml is where the recipe of these weights goes, and is a file already"):
        call("convert", tmp_path / "saved", "-o", tmp_path / "w.safetensors")
    assert not (tmp_path / "w.safetensors").exists()
    own = tmp_path / "saved" / "model.safetensors"
    before = own.read_bytes()
    for checkpoint in (tmp_path / "saved", own):
        with pytest.raises(UserError, match=r"model\.safetensors is the checkpoint itself, which would be lost"):
            call("convert", checkpoint, "-o", own)
    assert own.read_bytes() == before


def test_a_folder_that_tells_nothing_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="holds no weights that are known by name"):
        call("convert", tmp_path, "-o", tmp_path / "w.safetensors")
    torch.save({"a.weight": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"name the recipe of the same system: there is no config\.json"):
        call("convert", tmp_path, "-o", tmp_path / "w.safetensors")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read as JSON"):
        call("convert", tmp_path, "-o", tmp_path / "w.safetensors")


def test_the_docs_family_names_another_codes_checkpoints_of_a_known_system(monkeypatch):
    registry.load_registered_parts()
    monkeypatch.setitem(registry._current.parts, "checkpoint_names", dict(registry.parts("checkpoint_names")))
    [code] = snippets("Names of your own", "docs/weights.md")
    exec(compile(code, "docs/weights.md", "exec"), {})
    recipe = detrkit.load_recipe("base/detr", ["detector.classes=4"])
    found = match({"net.heads.bias": torch.zeros(5), "net.heads.weight": torch.zeros(5, 256)}, recipe)
    assert set(found.state) == {"decoder.head.classes.0.layers.0.bias", "decoder.head.classes.0.layers.0.weight"}
    assert match({"class_embed.bias": torch.zeros(5)}, recipe).names == {
        "class_embed.bias": "decoder.head.classes.0.layers.0.bias"
    }
