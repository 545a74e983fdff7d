"""torchvision's Faster R-CNN trained by our trainer on the shapes data, and evaluated by our evaluation."""

import json
import tempfile
from pathlib import Path

import torch
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead

from detrkit.data.shapes import ShapesSource
from detrkit.engine.fit import fit
from detrkit.engine.options import EvaluateOptions, TrainOptions
from detrkit.evaluation.evaluate import evaluate
from detrkit.losses.base import OwnLosses
from detrkit.torchvision_form import TorchvisionDetector

torch.manual_seed(0)
source = ShapesSource(image_size=(64, 96), train_images=24, val_images=6, classes=("circle", "square", "bar"))
backbone = nn.Sequential(nn.Conv2d(3, 16, 8, 4), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU())
backbone.out_channels = 32
model = FasterRCNN(
    backbone,
    min_size=64,
    max_size=96,
    rpn_anchor_generator=AnchorGenerator(sizes=((16, 32, 64),), aspect_ratios=((0.5, 1.0, 2.0),)),
    rpn_pre_nms_top_n_train=100,
    rpn_pre_nms_top_n_test=100,
    box_head=TwoMLPHead(32 * 7**2, 64),
    box_predictor=FastRCNNPredictor(64, 1 + len(source.categories)),  # class 0 is the background
    box_batch_size_per_image=64,
    box_score_thresh=0.0,
)
folder = tempfile.TemporaryDirectory()
options = TrainOptions(
    epochs=4,
    batch_size=4,
    learning_rate=1e-3,
    backbone=("model.backbone",),
    backbone_learning_rate=1e-3,
    warmup_steps=0,
    drop_epochs=(),
    device="cpu",
    workers=0,
    evaluate_every=0,
    log_every=6,
    loggers=(),
)

# glue
detector = TorchvisionDetector(model)
outcome = fit(detector, OwnLosses(), source, folder.name, options, evaluation=EvaluateOptions(pictures=0))
result = evaluate(detector, source, batch_size=4, device="cpu", workers=0)
# end of glue

assert outcome.finished
assert result.stats == outcome.stats
lines = [json.loads(line) for line in Path(folder.name, "metrics.jsonl").read_text().splitlines()]
totals = [line["loss"] for line in lines if line["kind"] == "train"]
assert totals[-1] < totals[0]
told = f"loss {totals[0]:.2f} to {totals[-1]:.2f} in {outcome.step} steps"
print(f"{told}; AP {100 * result.stats['AP']:.2f} of {len(result.detections)} detections")
folder.cleanup()
