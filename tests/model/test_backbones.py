"""Any timm backbone by one override: convolutional, and transformers whose patches want whole steps."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import detrkit
from detrkit.backbones.needs import frozen_names
from detrkit.backbones.timm_backbone import TimmBackbone, pad_to_multiple
from detrkit.errors import CheckpointError, UserError
from detrkit.pixels import MEAN, STD


def load_benchmark(name):
    path = Path(__file__).parents[2] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


SMALL = [
    "backbone.pretrained=false",
    "encoder.layers=1",
    "decoder.layers=1",
    "detector.classes=4",
    "queries.grid=[3,4]",
]


@pytest.mark.parametrize(
    ("name", "stride"),
    [("resnet18", 32), ("convnext_atto", 32), ("swin_tiny_patch4_window7_224", 32), ("vit_tiny_patch16_224", 16)],
)
def test_a_backbone_by_its_name(name, stride):
    detector = detrkit.build_detector(detrkit.load_recipe("sap_detr_r50_50ep", [*SMALL, f"backbone.name={name}"]))
    height, width = 130, 165  # whole multiples of nothing
    mask = torch.zeros(2, height, width, dtype=torch.bool)
    mask[1, :, 140:] = True
    output = detector(torch.randn(2, 3, height, width), mask)
    assert detector.backbone.strides == (stride,)
    round_up = name != "convnext_atto"  # its patches leave out what does not fill one
    cells = [size // stride + (round_up and size % stride > 0) for size in (height, width)]
    assert output.memory.shape[1] == cells[0] * cells[1]
    output.logits.sum().backward()
    trained = [p for p in detector.backbone.parameters() if p.requires_grad]
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)


def test_padding_to_whole_steps_is_masked():
    images, mask = pad_to_multiple(torch.ones(1, 3, 5, 8), None, 4)
    assert images.shape == (1, 3, 8, 8)
    assert mask[0, :5].sum() == 0
    assert mask[0, 5:].all()
    assert (images[0, :, 5:] == 0).all()
    images, mask = pad_to_multiple(torch.ones(1, 3, 8, 8), None, 4)
    assert mask is None  # nothing was padded, so attention stays without a mask


def test_weights_that_are_loaded_anyway_are_neither_fetched_nor_read(tmp_path):
    """A run that began from a file of backbone weights is opened where that file is not."""
    gone = f"backbone.weights={tmp_path / 'gone.safetensors'}"
    recipe = detrkit.load_recipe("sap_detr_r50_50ep", [*SMALL, gone, "backbone.pretrained=true"])
    with pytest.raises(CheckpointError, match=r"gone\.safetensors"):
        detrkit.build_detector(recipe)
    detrkit.build_detector(recipe, pretrained=False)


families = load_benchmark("timm_families")


@pytest.mark.parametrize("name", families.CHEAP)
def test_a_model_of_each_kind_of_layout_trains_above_the_frozen_stride_alone_or_is_refused(name):
    """At an odd size with padding; the sweep over all of timm's families is `python benchmarks/timm_families.py`."""
    outcome = families.try_backbone(name)
    if name == "coat_lite_tiny":
        assert outcome.startswith("refused: backbone.name = 'coat_lite_tiny': this model does not take images of any")
    else:
        share = int(outcome.split("trains ")[1].split(" %")[0])
        assert 0 < share <= 100


@pytest.mark.parametrize(("name", "stride", "last"), [("deit_tiny_patch16_224", 16, 11), ("tresnet_m", 32, 3)])
def test_levels_are_counted_among_those_that_timm_gives_and_not_among_all_places_of_the_model(name, stride, last):
    """timm gives three of a ViT's twelve blocks as levels, and four of this network's five strides."""
    with torch.device("meta"):
        backbone = TimmBackbone(name=name, pretrained=False, norm="batch", levels=[-1])
    assert backbone.strides == (stride,)
    names = {key for key, _ in backbone.named_parameters()}
    blocks = "blocks" if name.startswith("deit") else "body"
    assert any(f"{blocks}.{last}." in key or f"{blocks}_layer{last + 1}." in key for key in names)


def test_efficientnet_trains_beyond_its_second_stage():
    """All its stages live in one module, and all of it was frozen once."""
    backbone = TimmBackbone(name="efficientnet_b0", pretrained=False, frozen_stride=4)
    trains = {key for key, parameter in backbone.body.named_parameters() if parameter.requires_grad}
    assert {key.split(".")[1] for key in trains if key.startswith("blocks.")} == {"2", "3", "4", "5", "6"}
    assert not any(key.startswith(("conv_stem", "bn1")) for key in trains)


def weighs(key):
    """A trainable weight of a ResNet's stem or first stage."""
    return key.startswith(("conv1.", "bn1.", "layer1.")) and key.endswith((".weight", ".bias"))


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, torch.autograd.detect_anomaly])
def test_what_is_frozen_is_found_where_gradients_are_not_taken_or_watched(around):
    with around():
        found = frozen_names("resnet18", 4)
    assert found == {key for key in timm.create_model("resnet18").state_dict() if weighs(key)}


def test_what_a_model_was_trained_with_comes_from_timm_or_from_the_recipe():
    pixels = torch.rand(2, 3, 64, 96)
    images = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    mask = torch.zeros(2, 64, 96, dtype=torch.bool)
    mask[1, :, 80:] = True
    images = images.masked_fill(mask[:, None], 0)
    backbone = TimmBackbone(name="tf_efficientnet_lite0", pretrained=False)  # timm says 0.5 and 0.5
    own = backbone._as_trained(images, mask)
    assert torch.allclose(own[0], (pixels[0] - 0.5) / 0.5, atol=1e-5)
    assert (own[1, :, :, 80:] == 0).all()
    told = TimmBackbone(name="test_efficientnet", pretrained=False, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 0.5))
    expected = (pixels[0] - torch.tensor([0.1, 0.2, 0.3])[:, None, None]) / torch.tensor([1, 2, 0.5])[:, None, None]
    assert torch.allclose(told._as_trained(images, mask)[0], expected, atol=1e-5)
    assert TimmBackbone(name="resnet18", pretrained=False)._as_trained(images, mask) is images


@pytest.fixture(scope="module")
def resnet_file(tmp_path_factory):
    """All weights of a small model, as its classifier would save them."""
    path = tmp_path_factory.mktemp("weights") / "whole.safetensors"
    save_file({k: v.clone() for k, v in timm.create_model("test_resnet").state_dict().items()}, path)
    return path


def test_a_file_of_weights_arrives_whole_and_quietly(resnet_file, caplog, capfd):
    backbone = TimmBackbone(name="test_resnet", weights=str(resnet_file), norm="batch", frozen_stride=0)
    given = load_file(resnet_file)
    for key, tensor in backbone.body.state_dict().items():
        if tensor.is_floating_point():
            assert torch.equal(tensor, given[key]), key
    assert "nexpected" not in caplog.text + "".join(capfd.readouterr())


@pytest.mark.parametrize("prefix", ["backbone.net.", "module.", "backbone.conv1."])
def test_what_stands_before_the_names_is_taken_off_and_said(resnet_file, tmp_path, prefix, recwarn):
    given = load_file(resnet_file)
    rest = {} if prefix == "module." else {"head.box.weight": torch.ones(4)}  # a detector's, of its other parts
    save_file({f"{prefix}{key}": tensor for key, tensor in given.items()} | rest, tmp_path / "w.safetensors")
    backbone = TimmBackbone(name="test_resnet", weights=str(tmp_path / "w.safetensors"))
    assert torch.equal(backbone.body.conv1[0].weight, given["conv1.0.weight"])
    said = [str(warning.message) for warning in recwarn]
    if rest:
        whole = len(given) + len(rest)
        assert said == [f'{tmp_path / "w.safetensors"}: "{prefix}" before {len(given)} of {whole} names was taken off']


class Payload:
    def __reduce__(self):
        return (print, ("code of the file ran",))


def test_a_file_of_weights_runs_no_code(tmp_path, capfd, monkeypatch):
    """timm 1.0.20 would load it by pickle."""
    monkeypatch.setattr("timm.models._helpers.load_state_dict", lambda *_, **__: pytest.fail("read by timm"))
    torch.save({"conv1.weight": torch.ones(1), "evil": Payload()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match=r"evil\.pth is refused: it asks for .*print, which could run code"):
        TimmBackbone(name="test_resnet", weights=str(tmp_path / "evil.pth"))
    assert "code of the file ran" not in capfd.readouterr().out


def test_a_folder_named_as_a_model_runs_no_code(tmp_path, capfd):
    """timm takes names of folders and of the hub, too, and reads what is there itself."""
    torch.save({"evil": Payload()}, tmp_path / "pytorch_model.bin")
    config = {"architecture": "test_resnet", "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError):
        TimmBackbone(name=f"local-dir:{tmp_path}")
    assert "code of the file ran" not in capfd.readouterr().out


@pytest.mark.parametrize(
    "name", ["no_such_model", "timm/resnet50", "1979-05-27 07:32:00+00:00", "local-dir:no_such_folder"]
)
def test_a_name_that_is_no_model_is_named(name):
    with pytest.raises(UserError, match=rf"backbone\.name = '{re.escape(name)}': .*list_models\(\)` lists the names"):
        TimmBackbone(name=name)


@pytest.mark.parametrize("fault", ["half", "other names", "other model", "empty", "not finite"])
def test_a_file_of_other_weights_is_refused_and_says_what_is_not_there(resnet_file, tmp_path, fault):
    state, name = load_file(resnet_file), "test_resnet"
    if fault == "half":
        state = dict(list(state.items())[: len(state) // 2])
    if fault == "other names":
        state = {f"{key}_": tensor for key, tensor in state.items()}
    if fault == "not finite":
        state["conv1.0.weight"][0] = torch.nan
    if fault == "other model":
        name = "test_vit"
    if fault == "empty":
        state = {}
    path = tmp_path / "odd.safetensors"
    save_file(state, path)
    said = "has no weights" if fault == "empty" else r"\d+ of the \d+ tensors"
    with pytest.raises(CheckpointError, match=rf"odd\.safetensors.*{said}"):
        TimmBackbone(name=name, weights=str(path))


def test_real_weights_give_the_features_and_classes_that_timm_s_own_model_does(real_data):
    """EfficientNet-Lite0 on five photographs; the classes are those of the weights' README."""
    path = real_data / "weights" / "tf_efficientnet_lite0.safetensors"
    whole = timm.create_model("tf_efficientnet_lite0").eval()
    whole.load_state_dict(load_file(path), strict=False)
    backbone = TimmBackbone(name="tf_efficientnet_lite0", weights=str(path)).eval()
    expected = {116740: 920, 121647: 963, 125870: 404, 177977: 651, 231460: 919}  # of ImageNet's thousand
    prepare = timm.data.create_transform(**timm.data.resolve_data_config({}, model=whole))
    photographs = {
        int(p.stem): p for split in ("train2017", "val2017") for p in real_data.glob(f"coco_sample/{split}/*")
    }
    for number, label in expected.items():
        image = prepare(Image.open(photographs[number]).convert("RGB"))[None]  # mean and deviation 0.5
        ours = (image * 0.5 + 0.5 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        with torch.no_grad():
            [found] = backbone(ours, None)
            stages = whole.blocks(whole.bn1(whole.conv_stem(image)))
            assert whole(image).argmax().item() == label
        assert torch.allclose(found.values, stages, atol=2e-3)


def test_synchronised_norms_are_batch_norms_alone_and_want_gpus_together(monkeypatch):
    torch.manual_seed(0)
    alone = TimmBackbone(name="test_resnet", pretrained=False, norm="batch", frozen_stride=0)
    synced = TimmBackbone(name="test_resnet", pretrained=False, norm="sync", frozen_stride=0)
    assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in synced.modules())
    synced.load_state_dict(alone.state_dict())
    images = torch.randn(2, 3, 64, 64)
    assert torch.allclose(alone.train()(images, None)[0].values, synced.train()(images, None)[0].values, atol=1e-6)
    monkeypatch.setattr("detrkit.backbones.timm_backbone.many_processes", lambda: True)
    with pytest.raises(UserError, match=r'backbone\.norm = "sync" joins the batches of processes on GPUs'):
        synced(images, None)
    synced.eval()(images, None)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "hrnet_w18_small", "ghostnet_050"])
def test_a_model_that_cannot_be_dilated_is_named_before_its_weights_are_fetched(name):
    with pytest.raises(UserError, match=rf"backbone\.dilated = true: timm cannot dilate {name} \(") as raised:
        TimmBackbone(name=name, dilated=True)
    assert "pretrained" not in str(raised.value)
