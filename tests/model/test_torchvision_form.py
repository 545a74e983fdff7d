"""Detectors in torchvision's form, and torchvision's in ours."""

import pytest
import torch
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead

import detrkit
from detrkit.boxes import corners_to_center
from detrkit.data.batch import normalise
from detrkit.errors import UserError
from detrkit.losses.base import OwnLosses
from detrkit.torchvision_form import AsTorchvision, TorchvisionDetector

PIXELS = [torch.randint(256, shape, dtype=torch.uint8) for shape in [(3, 64, 96), (3, 80, 64)]]
IMAGES = [pixels / 255 for pixels in PIXELS]
TRUTHS = [
    {"boxes": torch.tensor([[12.0, 16.0, 60.0, 48.0]]), "labels": torch.tensor([3])},
    {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
]
OURS = [
    {"boxes": torch.tensor([[36 / 96, 0.5, 0.5, 0.5]]), "labels": torch.tensor([2])},
    {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
]


def padded():
    images, mask = torch.zeros(2, 3, 80, 96), torch.ones(2, 80, 96, dtype=torch.bool)
    for index, pixels in enumerate(PIXELS):
        height, width = pixels.shape[1:]
        images[index, :, :height, :width] = normalise(pixels)
        mask[index, :height, :width] = False
    return images, mask


def model(**options):
    torch.manual_seed(0)
    recipe = detrkit.load_recipe("quickstart", ["detector.classes=3"])
    return AsTorchvision(detrkit.build_detector(recipe), detrkit.build_criterion(recipe), **options)


def test_losses_are_those_of_the_padded_batch():
    ours = model()
    images, mask = padded()
    losses = ours(IMAGES, TRUTHS)
    expected = ours.criterion(ours.detector(images, mask, OURS), OURS)
    assert torch.allclose(sum(losses.values()), expected["total"], rtol=1e-5)
    assert set(losses) == {"class", "box", "giou", "objectness", "inner"}
    assert losses["class"].requires_grad


@pytest.mark.parametrize("given", [torch.float32, torch.float64])
def test_images_come_in_the_type_of_the_detector(given):
    single, double = model(), model().double()
    images = [image.to(given) for image in IMAGES]
    expected, losses = single(IMAGES, TRUTHS), double(images, TRUTHS)
    assert losses["class"].dtype == torch.float64
    assert sum(losses.values()).item() == pytest.approx(sum(expected.values()).item(), rel=1e-4)
    assert len(double.eval()(images)) == 2


def test_detections_are_those_of_the_padded_batch_within_the_images():
    ours = model().eval()
    images, mask = padded()
    expected = ours.detector.detect(images, mask, [[64, 96], [80, 64]])
    for one, other, size in zip(ours(IMAGES), expected, [(96, 64), (64, 80)], strict=True):
        assert torch.allclose(one["scores"], other["scores"], atol=1e-6)
        assert torch.equal(one["labels"], other["labels"] + 1)
        limit = torch.tensor(size * 2)
        assert torch.allclose(one["boxes"], other["boxes"].clamp(min=0).minimum(limit), atol=1e-3)


def test_what_is_no_truth_is_refused():
    ours = model()
    with pytest.raises(UserError, match="in training mode the losses need the targets"):
        ours(IMAGES)
    with pytest.raises(UserError, match="1 targets for 2 images"):
        ours(IMAGES, TRUTHS[:1])
    with pytest.raises(UserError, match="there is no image"):
        ours([], [])
    with pytest.raises(UserError, match=r"of torch\.uint8; images are floats .*divide bytes by 255"):
        ours(PIXELS, TRUTHS)
    flat = {"boxes": torch.tensor([[5.0, 5.0, 5.0, 9.0]]), "labels": torch.tensor([1])}
    with pytest.raises(UserError, match="has no area"):
        ours(IMAGES, [flat, TRUTHS[1]])
    with pytest.raises(UserError, match=r"targets\[0\] has the label 0; the first class has label 1"):  # 0: background
        ours(IMAGES, [{**TRUTHS[0], "labels": torch.tensor([0])}, TRUTHS[1]])
    for wrong, message in (
        (
            {"boxes": [[12.0, 16.0, 60.0, 48.0]]},
            r"boxes that are a list; .* \(x0, y0, x1, y1\) in pixels",
        ),
        ({"boxes": torch.rand(2, 4)}, r"1 labels and 2 boxes; .* in pixels"),
        ({"labels": torch.tensor([3.0])}, r"labels of torch\.float32; .* in pixels"),
        ({"boxes": torch.tensor([[12.0, 16.0, 600.0, 48.0]])}, "far outside its image of 96 x 64 pixels"),
        ({"boxes": torch.tensor([[12.0, 16.0, torch.inf, 48.0]])}, "far outside its image"),
    ):
        with pytest.raises(UserError, match=message):
            ours(IMAGES, [{**TRUTHS[0], **wrong}, TRUTHS[1]])
    with pytest.raises(UserError, match=r"an image is \[64, 96, 3\]; images are floats \[3, h, w\]"):
        ours([IMAGES[0].permute(1, 2, 0)], TRUTHS[:1])
    with pytest.raises(UserError, match=r"an image is \[64, 96\]"):
        ours(IMAGES[0], TRUTHS)
    with pytest.raises(UserError, match="an image is a ndarray"):
        ours([IMAGES[0].numpy()], TRUTHS[:1])
    zero_based = model(first_label=0)
    zero_based(IMAGES, [{**TRUTHS[0], "labels": torch.tensor([0])}, TRUTHS[1]])


def test_a_batch_in_one_tensor_and_grey_images_are_taken():
    ours, grey = model().eval(), IMAGES[0][:1]
    with torch.no_grad():
        (one,), (other,) = ours(IMAGES[0][None]), ours(IMAGES[:1])
        assert torch.equal(one["boxes"], other["boxes"])
        assert torch.equal(ours([grey])[0]["boxes"], ours([grey.expand(3, -1, -1)])[0]["boxes"])


class Told(nn.Module):
    """Keeps what it is given, and gives a loss or a detection of each image's middle."""

    def forward(self, images, targets=None):
        self.given = images, targets
        if self.training:
            return {"one": torch.tensor(2.0, requires_grad=True), "two": torch.tensor(3.0, requires_grad=True)}
        return [
            {
                "boxes": torch.tensor([[0.0, 0.0, image.shape[2] / 2, image.shape[1] / 4]]),
                "labels": torch.tensor([3]),
                "scores": torch.tensor([0.5]),
            }
            for image in images
        ]


def test_a_model_of_torchvision_s_gets_and_gives_its_own_form():
    theirs = TorchvisionDetector(Told())
    images, mask = padded()
    output = theirs(images, mask, OURS)
    given, targets = theirs.model.given
    for one, image, target, truth in zip(given, IMAGES, targets, TRUTHS, strict=True):
        assert torch.allclose(one, image, atol=1e-6)
        assert torch.allclose(target["boxes"], truth["boxes"])
        assert torch.equal(target["labels"], truth["labels"])
    losses = OwnLosses()(output, OURS, images=4)  # half of a batch
    assert losses["total"].item() == 2.5
    assert not losses["one"].requires_grad
    with pytest.raises(UserError, match=r"targets\[0\] has a box with 36 in it"):
        theirs(images, mask, [{**OURS[0], "boxes": torch.tensor([[36.0, 30.0, 20.0, 20.0]])}, OURS[1]])
    (first, second) = theirs.eval().detect(images, mask, [[640, 480], [80, 64]])
    assert first["boxes"].tolist() == [[0, 0, 240, 160]]
    assert second["boxes"].tolist() == [[0, 0, 32, 20]]
    assert first["labels"].tolist() == [2]


@pytest.mark.parametrize("part", ["rpn", "roi_heads"])
def test_truths_and_boxes_of_torchvision_s_own_model_are_exact_under_autocast(part, monkeypatch):
    """In pixels of a large image, of which bfloat16 knows every fourth; its backbone is in bfloat16 all the same."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 16, 16, stride=16), nn.ReLU())
    body.out_channels = 16
    anchors = AnchorGenerator(sizes=((32, 64),), aspect_ratios=((1.0,),))
    heads = {"box_head": TwoMLPHead(16 * 7**2, 16), "box_predictor": FastRCNNPredictor(16, 4), "box_score_thresh": 0.0}
    theirs = TorchvisionDetector(FasterRCNN(body, min_size=64, max_size=1000, rpn_anchor_generator=anchors, **heads))
    seen, types = [], []
    coder = getattr(theirs.model, part).box_coder

    def encode(truths, others, real=coder.encode):
        seen.append(torch.cat(truths))
        return real(truths, others)

    monkeypatch.setattr(coder, "encode", encode)
    body[0].register_forward_hook(lambda _, __, maps: types.append(maps.dtype))
    boxes, size = torch.tensor([[601.25, 3.5, 733.5, 60.75]]), torch.tensor([1000.0, 64.0]).repeat(2)
    target = {"boxes": corners_to_center(boxes / size), "labels": torch.tensor([0])}
    images = torch.randn(1, 3, 64, 1000)
    with torch.autocast("cpu", torch.bfloat16):
        theirs(images, None, [target])
        with torch.no_grad():
            (found,) = theirs.eval().detect(images, None, [[64, 1000]])
        assert (images[0, 0] @ images[0, 0].T).dtype == torch.bfloat16  # autocast goes on behind it
    assert types == [torch.bfloat16] * 2
    assert (seen[0][:, None] - boxes).abs().amax(-1).amin(0).max() < 1e-3
    right = found["boxes"][:, 2]
    assert (right[(right > 512) & (right < 1000)] % 2 != 0).any()
