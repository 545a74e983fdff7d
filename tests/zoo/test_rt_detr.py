"""RT-DETR of the package `transformers`, with random weights, against the detector that it becomes."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

import detrkit
from detrkit.boxes import inverse_sigmoid
from detrkit.data import Category
from detrkit.errors import CheckpointError
from detrkit.pixels import MEAN, STD
from detrkit.structures import QueryLayout
from detrkit.zoo.classes import categories_of
from detrkit.zoo.names import COCO_NAMES
from detrkit.zoo.recognising import family_of_config
from detrkit.zoo.transformers_names import pack_projections
from tests.zoo.test_transformers import (
    BASIC,
    CLASSES,
    NAMES,
    QUERIES,
    WIDTH,
    answers,
    assert_same,
    batch,
    call,
    ours,
)

transformers = pytest.importorskip("transformers", minversion="5")
modeling_rt_detr = pytest.importorskip("transformers.models.rt_detr.modeling_rt_detr")

SIZES = {
    "d_model": WIDTH,
    "encoder_hidden_dim": WIDTH,
    "decoder_in_channels": [WIDTH] * 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 40,
    "decoder_layers": 3,
    "num_queries": QUERIES,
    "id2label": NAMES,
}
R18 = {"backbone": BASIC, "encoder_in_channels": [128, 256, 512], "hidden_expansion": 0.5}
FORMS = {
    "R18": R18,
    "R18, trained norms, no attention": R18 | {"freeze_backbone_batch_norms": False, "encoder_layers": 0},
    "R18, no denoising": R18 | {"num_denoising": 0, "decoder_n_points": 2},
    "R50": {"backbone": {}, "encoder_layers": 2, "positional_encoding_temperature": 100},
}


def build(form: str):
    """A small model, all of whose weights and statistics are random."""
    options = {**SIZES, **FORMS[form]}
    backbone = transformers.RTDetrResNetConfig(**options.pop("backbone"), out_indices=[2, 3, 4])
    torch.manual_seed(0)
    model = transformers.RTDetrForObjectDetection(transformers.RTDetrConfig(backbone_config=backbone, **options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "backbone" not in name:
                fan = {1: 100, 2: parameter.shape[-1]}.get(parameter.dim(), parameter[0].numel())
                parameter += 0.8 * torch.randn(parameter.shape) / fan**0.5
        for module in model.modules():
            if hasattr(module, "running_var"):
                module.weight.uniform_(0.8, 1.2), module.bias.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5), module.running_mean.normal_(0, 0.1)
    return model.eval()


def as_pixels(images):
    """What the model is given where a detector is given images with ImageNet's mean and deviation taken out."""
    return images * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]


@pytest.mark.parametrize("form", [pytest.param(f, marks=pytest.mark.slow) if f == "R50" else f for f in FORMS])
def test_a_model_computes_the_same_on_any_shape(form):
    model, (images, _) = build(form), batch()
    fitted = detrkit.zoo.fit(model.state_dict(), config=model.config.to_dict())
    expected = answers(model, as_pixels(images), torch.zeros(images.shape[0], *images.shape[2:], dtype=torch.bool))
    assert expected[1].std() > 0.01
    assert expected[0].std() > 0.1
    assert_same(ours(model.state_dict(), fitted.recipe, images, None), expected)


def test_a_saved_folder_becomes_detections_on_squares_of_raw_pixels(tmp_path):
    """Files have version 4's names, and the processor makes a square of every image and takes no mean away."""
    model = build("R18")
    model.save_pretrained(tmp_path / "saved")
    processor = transformers.RTDetrImageProcessor(size={"height": 96, "width": 96})
    processor.save_pretrained(tmp_path / "saved")
    told = call("convert", tmp_path / "saved", "-o", tmp_path / "w.safetensors").output
    for said in ("resnet18vd", "data.augment.eval_size = 96", "backbone.mean = (0.0, 0.0, 0.0)"):
        assert said in told
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8))
    predictor = detrkit.load(tmp_path / "w.toml", weights=tmp_path / "w.safetensors")
    found = predictor.predict(picture, threshold=0)
    square = picture.resize((96, 96), Image.Resampling.BILINEAR)
    with torch.no_grad():
        output = model(**processor(images=square, return_tensors="pt"))
    result = processor.post_process_object_detection(output, threshold=0, target_sizes=[(96, 128)])[0]
    expected = [(s, NAMES[i.item()], b) for s, i, b in zip(*result.values(), strict=True)]
    left = list(zip(found.scores, found.names, found.boxes, strict=True))
    assert len(left) >= len(expected) == QUERIES
    for score, name, box in expected:
        same = [n == name and (s - score).abs() < 1e-4 and (b - box).abs().max() < 1e-5 * 128 for s, n, b in left]
        del left[same.index(True)]


def test_coco_s_classes_have_its_names_and_ids_whatever_they_are_called():
    """The published RT-DETRs call six of them as Pascal VOC does, so that COCO itself was refused to them."""
    recipe, known = detrkit.load_recipe("rt_detr_r50_72ep"), dict(enumerate(COCO_NAMES.values()))
    for changed in ({}, {3: "motorbike", 4: "aeroplane", 57: "sofa", 58: "pottedplant", 60: "diningtable"}):
        found = categories_of({"id2label": known | changed}, recipe, 80)
        assert {category.id: category.name for category in found} == COCO_NAMES
    own = categories_of({"id2label": known | {0: "someone"}}, recipe, 80)
    assert (own[0], own[79]) == (Category(0, "someone"), Category(79, "toothbrush"))
    slots = categories_of({"id2label": {id: COCO_NAMES.get(id, "N/A") for id in range(91)}}, recipe, 91)
    assert slots[12].is_placeholder
    assert slots[90] == Category(90, "toothbrush")


@pytest.mark.parametrize(
    ("said", "mean"),
    [
        ({"do_normalize": True}, MEAN),
        ({"do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}, (0.5, 0.5, 0.5)),
        ({"image_processor_type": "RTDetrImageProcessor"}, (0.0, 0.0, 0.0)),
        ({"do_normalize": False}, (0.0, 0.0, 0.0)),
    ],
)
def test_a_preprocessor_goes_before_raw_pixels(said, mean):
    fitted = detrkit.zoo.fit({}, config={"model_type": "rt_detr"}, preprocessor=said)
    assert fitted.recipe.get("backbone.mean") == mean


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"encoder_hidden_dim": 384}, "encoder_hidden_dim = 384.*accepted: 256"),
        ({"activation_function": "relu"}, "activation_function = 'relu'.*accepted: 'silu'"),
        ({"encode_proj_layers": [1, 2]}, r"encode_proj_layers = \[1, 2\].*accepted: \[2\], the coarsest level"),
        ({"eval_size": 640}, "eval_size = 640"),
        ({"learn_initial_query": True}, "learn_initial_query = True"),
        ({"backbone_config": {"model_type": "hgnet_v2"}}, "backbone_config.model_type = 'hgnet_v2'"),
        ({"backbone_config": {"model_type": "rt_detr_resnet", "depths": [1, 1, 1, 1]}}, "depths"),
    ],
)
def test_what_no_part_computes_is_refused_by_its_key(config, told):
    with pytest.raises(CheckpointError, match=f"config.json: .*{told}"):
        detrkit.zoo.fit({}, config={"model_type": "rt_detr", **config})


def test_at_full_size_nothing_but_pixels_and_weights_name_is_changed():
    assert family_of_config({"model_type": "rt_detr"}).nearest({}) == "rt_detr_r50_72ep"
    assert {one.key for one in detrkit.zoo.fit({}, config={"model_type": "rt_detr"}).settings} == {
        "backbone.mean",
        "backbone.std",
    }


def official_names(state):
    """Names of the official code for a R18's tensors in transformers' names, written from docs/methods/rt_detr.md."""
    changes = [
        (r"^model\.backbone\.model\.embedder\.embedder\.(\d)\.", lambda m: f"backbone.conv1.conv1_{int(m[1]) + 1}."),
        (r"^model\.backbone\.model\.encoder\.stages\.(\d)\.layers\.", r"backbone.res_layers.\1.blocks."),
        (r"(?<=\d)\.layer\.(\d)\.", lambda m: f".branch2{'abc'[int(m[1])]}."),
        (r"\.shortcut\.1\.", ".short.conv."),
        (r"\.shortcut\.", ".short."),
        (r"\.convolution\.", ".conv."),
        (r"\.normalization\.", ".norm."),
        (r"^model\.encoder\.aifi\.", "encoder.encoder."),
        (r"^model\.encoder_input_proj\.", "encoder.input_proj."),
        (r"^model\.decoder_input_proj\.(\d)\.0", r"decoder.input_proj.\1.conv"),
        (r"^model\.decoder_input_proj\.(\d)\.1", r"decoder.input_proj.\1.norm"),
        (r"^model\.encoder\.", "encoder."),
        (r"^model\.decoder\.layers\.", "decoder.decoder.layers."),
        (r"^model\.decoder\.class_embed", "decoder.dec_score_head"),
        (r"^model\.decoder\.bbox_embed", "decoder.dec_bbox_head"),
        (r"^model\.decoder\.", "decoder."),
        (r"^model\.", "decoder."),
        (r"encoder_attn_layer_norm", "norm2"),
        (r"self_attn_layer_norm", "norm1"),
        (r"(decoder\.\d\.|decoder\.decoder\.layers\.\d\.)final_layer_norm", r"\1norm3"),
        (r"final_layer_norm", "norm2"),
        (r"encoder_attn", "cross_attn"),
        (r"\.mlp\.fc", ".linear"),
        (r"\.o_proj", ".out_proj"),
    ]
    found = {}
    for name, tensor in pack_projections(state).items():
        for pattern, theirs in changes:
            name = re.sub(pattern, theirs, name)
        found[name] = tensor
    return found


def test_an_official_checkpoint_becomes_the_same_weights():
    model = build("R18")
    recipe = detrkit.zoo.fit(model.state_dict(), config=model.config.to_dict()).recipe
    expected = detrkit.zoo.convert(model.state_dict(), recipe)
    official = official_names(model.state_dict())
    assert {"backbone.res_layers.0.blocks.0.short.conv.weight", "decoder.dec_score_head.2.bias"} <= set(official)
    found = detrkit.zoo.convert(official, recipe)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("counts", [(3, 3), (4, 1)], ids=["full slots", "empty slots"])
def test_a_training_step_has_the_same_losses(counts, monkeypatch):
    """All terms of all layers, of the encoder's proposals and of denoising, on one draw of noise."""
    model, (images, _) = build("R18"), batch()
    fitted = detrkit.zoo.fit(model.state_dict(), config=model.config.to_dict())
    recipe = fitted.recipe.with_values({"blocks.denoising.count": 10})
    detector = detrkit.build_detector(recipe, pretrained=False)
    detector.load_state_dict(detrkit.zoo.convert(model.state_dict(), recipe))
    targets = [{"labels": torch.randint(CLASSES, (n,)), "boxes": torch.rand(n, 4) * 0.3 + 0.3} for n in counts]
    drawn = []
    block = detector.blocks.named["denoising"]
    monkeypatch.setattr(block, "slots", lambda *given: drawn.append(type(block).slots(block, *given)) or drawn[-1])
    losses = detrkit.build_criterion(recipe)(detector.train()(images, None, targets), targets)

    def same_noise(targets, num_classes, num_queries, class_embed, **_):
        [slots] = drawn
        count, most, groups = sum(slots.sizes), max(counts), len(slots.sizes)
        positive = [torch.cat([torch.arange(n) + 2 * most * group for group in range(groups)]) for n in counts]
        owner = torch.repeat_interleave(torch.tensor(slots.sizes))
        hidden = QueryLayout(num_queries, slots=owner).attention_mask()
        mask = torch.zeros(hidden.shape).masked_fill(hidden, -torch.inf)
        known = {"dn_positive_idx": positive, "dn_num_group": groups, "dn_num_split": [count, num_queries]}
        content = class_embed(slots.labels).masked_fill(~slots.filled[..., None], 0).detach()
        return content, inverse_sigmoid(slots.boxes, 1e-5), mask, known

    monkeypatch.setattr(modeling_rt_detr, "get_contrastive_denoising_training_group", same_noise)
    labels = [{"class_labels": t["labels"], "boxes": t["boxes"]} for t in targets]
    expected = model.train()(as_pixels(images), labels=labels)
    assert losses["total"].item() == pytest.approx(expected.loss.item(), rel=1e-4)
    last = SIZES["decoder_layers"] - 1
    places = {"": "{}", f"aux_{last}": "encoder/{}", f"dn_{last}": "denoising/{}"}
    places |= {f"aux_{i}": f"{{}}.{i}" for i in range(last)} | {f"dn_{i}": f"denoising/{{}}.{i}" for i in range(last)}
    terms = {"vfl": ("class", 1), "bbox": ("box", 5), "giou": ("giou", 2)}
    assert len(expected.loss_dict) == 3 * len(places) == len(losses) - 2
    for name, value in expected.loss_dict.items():
        kind, _, place = name.removeprefix("loss_").partition("_")
        ours, weight = terms[kind]
        assert losses[places[place].format(ours)].item() * weight == pytest.approx(value.item(), rel=1e-4), name
