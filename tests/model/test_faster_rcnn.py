"""Faster R-CNN against torchvision's own model, which it is put together from."""

import pytest
import torch
from torchvision.models.detection import FasterRCNN, fasterrcnn_resnet50_fpn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

import detrkit
from detrkit.boxes import corners_to_center, overlaps
from detrkit.compare.workload import measure_workload
from detrkit.engine.transfer import init_from
from detrkit.errors import UserError
from detrkit.faster_rcnn import RegionHeads

SMALL = ["backbone.pretrained=false", "backbone.name=resnet18", "detector.giou_weight=0"]
HEIGHT, WIDTH = 96, 128
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def recipe(*overrides, classes=3):
    return detrkit.load_recipe("faster_rcnn_r50_108ep", [*SMALL, f"detector.classes={classes}", *overrides])


def official(classes=3, seed=0):
    """torchvision's model with weights and statistics that leave something to see in every layer."""
    torch.manual_seed(seed)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3
    )
    model = FasterRCNN(backbone, num_classes=classes + 1, min_size=HEIGHT, max_size=WIDTH, _skip_resize=True)
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            module.weight.uniform_(0.3, 0.8)
            module.bias.normal_(0, 0.1)
    with torch.no_grad():
        model.rpn.head.cls_logits.weight.mul_(20)
        model.rpn.head.bbox_pred.weight.mul_(5)
        model.roi_heads.box_predictor.cls_score.weight.mul_(5)
    return model


def scene(images=2, seed=1):
    """Raw images, the batch that detrkit makes of them, and the truth in both forms."""
    torch.manual_seed(seed)
    raw = [torch.rand(3, HEIGHT, WIDTH) for _ in range(images)]
    batch = torch.stack([(image - MEAN[:, None, None]) / STD[:, None, None] for image in raw])
    size = torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT]).float()
    theirs, ours = [], []
    for _ in range(images):
        corner = torch.randint(0, 16, (4, 2)) / 32  # exact in either form: a rounding would break ties of the matching
        boxes = torch.cat((corner, corner + torch.randint(2, 8, (4, 2)) / 16), dim=-1)
        labels = torch.randint(0, 3, (4,))
        theirs.append({"boxes": boxes * size, "labels": labels + 1})
        ours.append({"boxes": corners_to_center(boxes), "labels": labels})
    return raw, batch, theirs, ours


def pair(*overrides, change=None):
    """torchvision's model and ours with its weights; `change` makes another checkpoint of the official one."""
    model, chosen = official(), recipe(*overrides)
    state = change(model.state_dict()) if change else model.state_dict()
    detector = detrkit.build_detector(chosen)
    detector.load_state_dict(detrkit.zoo.convert(state, chosen))
    return model, detector, chosen


def test_losses_are_torchvision_s():
    model, detector, chosen = pair()
    raw, batch, theirs, ours = scene()
    torch.manual_seed(3)
    expected = model.train()(raw, theirs)
    torch.manual_seed(3)
    losses = detrkit.build_criterion(chosen)(detector.train()(batch, None, ours), ours)
    names = {
        "proposal": "loss_objectness",
        "proposal_box": "loss_rpn_box_reg",
        "class": "loss_classifier",
        "box": "loss_box_reg",
    }
    assert set(losses) == {"total", *names}
    for name, official_name in names.items():
        torch.testing.assert_close(losses[name], expected[official_name].detach(), rtol=1e-4, atol=1e-6)
    losses["total"].backward()
    sum(expected.values()).backward()
    for ours_, theirs_ in ((detector.pyramid, model.backbone.fpn), (detector.regions, model.roi_heads)):
        for mine, other in zip(ours_.parameters(), theirs_.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_detections_are_torchvision_s():
    model, detector, _ = pair()
    raw, batch, _, _ = scene()
    expected = model.eval()(raw)
    found = detector.eval().detect(batch, None, torch.tensor([[HEIGHT, WIDTH]] * 2))
    for mine, other in zip(found, expected, strict=True):
        assert len(mine["scores"]) > 10
        torch.testing.assert_close(mine["scores"], other["scores"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(mine["boxes"], other["boxes"], rtol=1e-4, atol=1e-3)
        assert torch.equal(mine["labels"], other["labels"] - 1)


@torch.no_grad()
def test_boxes_are_of_the_original_image_and_within_it():
    _, detector, _ = pair()
    _, batch, _, _ = scene(images=1)
    mask = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.bool)
    mask[:, 64:] = True  # the image is 64 x 128, shown at half its size
    batch = batch * ~mask[:, None]
    (plain,) = detector.eval()(batch, mask)
    (found,) = detector.detect(batch, mask, torch.tensor([[128, 256]]))
    torch.testing.assert_close(found["boxes"], 2 * plain["boxes"])
    assert found["boxes"].amax(0)[3] <= 128
    assert found["boxes"][:, [1, 3]].max() > 100  # some reach down there: clipped to the image and not to the padding


@torch.no_grad()
def test_boxes_are_exact_under_autocast():
    """bfloat16 knows every fourth pixel from 512 to 1024."""
    _, detector, _ = pair("detector.keep=1000", "detector.min_score=0")
    torch.manual_seed(1)
    batch = torch.randn(1, 3, 64, 1000)
    (expected,) = detector.eval()(batch, None)
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = detector(batch, None)
    assert found["boxes"].dtype == found["scores"].dtype == torch.float32
    assert (found["boxes"][:, 0] > 512).sum() > 100
    distance = (found["boxes"][:, None] - expected["boxes"]).abs().amax(-1).amin(-1)
    assert distance.quantile(0.9) < 0.5  # others were left out in one of the two: scores are a little different


def test_truths_are_exact_under_autocast(monkeypatch):
    """What proposals and regions are held against, in pixels of a large image."""
    _, detector, _ = pair()
    boxes = torch.tensor([[601.25, 3.5, 733.5, 60.75], [901.5, 10.25, 955.75, 41.5]])
    size = torch.tensor([1000.0, 64.0]).repeat(2)
    target = {"boxes": corners_to_center(boxes / size), "labels": torch.tensor([0, 2])}
    seen = []
    for part in (detector.proposals, detector.regions):

        def encode(truths, others, real=part.box_coder.encode):
            seen.append(torch.cat(truths))
            return real(truths, others)

        monkeypatch.setattr(part.box_coder, "encode", encode)
    with torch.autocast("cpu", torch.bfloat16):
        detector.train()(torch.randn(1, 3, 64, 1000), None, [target])
    assert len(seen) == 2
    for truths in seen:
        assert (truths[:, None] - boxes).abs().amax(-1).amin(0).max() < 1e-3


def test_the_published_file_s_names_and_norms():
    """The published file: names of before torchvision 0.13, norms without epsilon, 91 rows with ten unused."""

    def as_published(state):
        renamed = {}
        for name, tensor in state.items():
            name = name.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
            if "fpn." in name:
                name = name.replace(".0.weight", ".weight").replace(".0.bias", ".bias")
            renamed[name] = tensor
        return renamed

    model, detector, _ = pair(change=as_published)
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.eps = 0.0
    raw, batch, _, _ = scene()
    with torch.no_grad():
        expected, mine = model.eval()(raw), detector.eval()(batch)
    torch.testing.assert_close(mine[0]["scores"], expected[0]["scores"], rtol=1e-4, atol=1e-5)


def test_coco_s_checkpoint_becomes_eighty_classes():
    from detrkit.zoo.classes import coco_categories, count_classes

    state = official(classes=90).state_dict()
    table, boxes = (f"roi_heads.box_predictor.{name}.bias" for name in ("cls_score", "bbox_pred"))
    state[table], state[boxes] = torch.arange(91.0), torch.arange(364.0)
    assert count_classes(state, recipe()) == 80
    converted = detrkit.zoo.convert(state, recipe(classes=80))
    categories = coco_categories(recipe(), 80)
    ids = converted["regions.box_predictor.cls_score.bias"]
    assert ids.tolist() == [0, *(category.id for category in categories)]
    assert converted["regions.box_predictor.bbox_pred.bias"][4:8].tolist() == [4, 5, 6, 7]
    assert converted["regions.box_predictor.bbox_pred.bias"][-4:].tolist() == [360, 361, 362, 363]
    assert categories[-1].name == "toothbrush"
    assert coco_categories(detrkit.load_recipe("detr_r50_500ep"), 80) == ()  # somebody's own classes, as many by chance


def test_parameters_are_torchvision_s():
    with torch.device("meta"):
        theirs = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
        ours = detrkit.build_detector(
            detrkit.load_recipe("faster_rcnn_r50_108ep", ["backbone.pretrained=false", "detector.classes=90"])
        )
    norms = sum(p.numel() for name, p in theirs.named_parameters() if ".bn" in name or "downsample.1" in name)
    count = sum(p.numel() for p in theirs.parameters())
    assert sum(p.numel() for p in ours.parameters()) == count - norms  # it trains norms where it has no weights to load


@pytest.mark.slow
def test_work_is_torchvision_s():
    class Whole(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, images):
            return self.model(list(images))

    theirs = Whole(fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=81).eval())
    chosen = detrkit.load_recipe("faster_rcnn_r50_108ep", ["backbone.pretrained=false", "detector.classes=80"])
    expected = measure_workload(theirs).total.multiply_adds
    assert measure_workload(detrkit.build_detector(chosen)).total.multiply_adds == pytest.approx(expected, rel=0.001)


@pytest.mark.parametrize("empty", [[1], [0, 1]])
def test_images_without_objects_train(empty):
    detector, criterion = detrkit.build_detector(recipe("detector.giou_weight=1")), detrkit.build_criterion(recipe())
    _, batch, _, targets = scene()
    for index in empty:
        targets[index] = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    losses = criterion(detector.train()(batch, None, targets), targets)
    losses["total"].backward()
    assert losses["total"].isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters() if p.requires_grad)
    if len(empty) == 2:
        assert losses["box"] == losses["giou"] == losses["proposal_box"] == 0


def test_a_piece_of_a_batch_has_its_share_of_the_losses():
    criterion = detrkit.build_criterion(recipe())
    losses = criterion({"class": torch.tensor(2.0), "box": torch.tensor(1.0)}, [{}] * 2, None, 8)
    assert losses["total"] == 0.75
    assert losses["class"] == 0.5


def test_the_giou_loss_by_hand():
    """Regions that stay where they are: the loss is that of the regions themselves."""
    regions = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 30], [5, 5, 8, 8]])
    truth = torch.tensor([[2.0, 0, 12, 10], [20, 20, 40, 40]])

    class Fixed(RegionHeads):
        def select_training_samples(self, proposals, targets):
            return [regions], [torch.tensor([0, 1, 0])], [torch.tensor([1, 2, 0])], [torch.zeros(3, 4)]

    heads = Fixed(
        box_roi_pool=lambda *_: None,
        box_head=torch.nn.Identity(),
        box_predictor=lambda _: (torch.zeros(3, 3), torch.zeros(3, 12)),
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=3,
        positive_fraction=0.5,
        bbox_reg_weights=None,
        score_thresh=0,
        nms_thresh=0.5,
        detections_per_img=5,
        giou_weight=2.0,
    )
    _, losses = heads({}, [regions], [(50, 50)], [{"boxes": truth, "labels": torch.tensor([1, 2])}])
    first = 1 - (80 / 120 - 0)  # the hull is 12 x 10, which the two boxes fill
    second = 1 - 0.5
    assert losses["loss_giou"].item() == pytest.approx(2.0 * (first + second) / 3, rel=1e-5)
    iou, _ = overlaps(regions[:1], truth[:1])
    assert iou.item() == pytest.approx(80 / 120)


def test_it_starts_from_a_run_with_other_classes(tmp_path):
    from detrkit.data import Category
    from detrkit.runs.checkpoint import format_categories, save_weights

    old = detrkit.build_detector(recipe(classes=2))
    names = format_categories(tuple(Category(i, f"class {i}") for i in range(2)))
    save_weights(old.state_dict(), tmp_path / "old.safetensors", {"categories": names})
    new = detrkit.build_detector(recipe(classes=5))
    report = init_from(new, tmp_path / "old.safetensors", classes=5)
    assert sorted(line.split(" ")[0] for line in report.fresh) == sorted(
        f"regions.box_predictor.{name}"
        for name in ("bbox_pred.bias", "bbox_pred.weight", "cls_score.bias", "cls_score.weight")
    )


def test_refusals():
    with pytest.raises(UserError, match="anchor_sizes has 5 sizes, and there are 3 levels"):
        detrkit.build_detector(recipe("backbone.levels=[3,4]"))
    with pytest.raises(UserError, match='decoder: is no section of detector "faster_rcnn"'):
        recipe("decoder.layers=2")
    with pytest.raises(UserError, match='queries: is no section of detector "faster_rcnn"'):
        detrkit.load_recipe("quickstart", ["detector.type=faster_rcnn"])
    with pytest.raises(UserError, match="needs the targets"):
        detrkit.build_detector(recipe()).train()(torch.zeros(1, 3, HEIGHT, WIDTH))


@pytest.mark.parametrize(
    ("truth", "said"),
    [
        ({"labels": torch.tensor([3])}, r"targets\[0\] has the label 3; labels are 0 to 2"),
        ({"labels": torch.tensor([-1])}, r"targets\[0\] has the label -1"),
        ({"boxes": torch.tensor([[20.0, 20.0, 10.0, 10.0]])}, r"targets\[0\] has a box with 20 in it"),
        ({"boxes": torch.full((1, 4), torch.nan)}, r"targets\[0\] has a box with nan in it"),
    ],
)
def test_truths_that_are_none_are_named(truth, said):
    """Its losses come of torchvision's modules, which learn what they are given: -1 as background, nan as nothing."""
    detector = detrkit.build_detector(recipe(classes=3)).train()
    good = {"labels": torch.tensor([2]), "boxes": torch.full((1, 4), 0.5)}
    empty = {"labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0)}
    images = torch.zeros(2, 3, HEIGHT, WIDTH)
    assert detector(images, None, [good, empty])["class"].isfinite()
    with pytest.raises(UserError, match=said):
        detector(images, None, [{**good, **truth}, empty])
    with pytest.raises(UserError, match="1 targets for a batch of 2 images"):
        detector(images, None, [good])
