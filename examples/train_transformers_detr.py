"""DETR of the package transformers trained by our trainer on the shapes data, and evaluated by our evaluation."""

import json
import tempfile
from pathlib import Path

import torch
from torch import nn
from transformers import DetrConfig, DetrForObjectDetection

from detrkit import Criterion, Output, part
from detrkit.data.shapes import ShapesSource
from detrkit.detections import DetectOptions, select
from detrkit.engine.fit import fit
from detrkit.engine.options import EvaluateOptions, TrainOptions
from detrkit.evaluation.evaluate import evaluate

torch.manual_seed(0)
source = ShapesSource(image_size=(64, 96), train_images=24, val_images=6, classes=("circle", "square", "bar"))
config = DetrConfig(
    backbone="resnet18",
    use_timm_backbone=True,
    use_pretrained_backbone=False,
    d_model=32,
    encoder_layers=1,
    decoder_layers=2,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    encoder_ffn_dim=64,
    decoder_ffn_dim=64,
    num_queries=20,
    num_labels=len(source.categories),
)
model = DetrForObjectDetection(config)
matcher = part("matcher", "hungarian", costs={"class": "softmax", "box": "l1", "giou": "giou"})
criterion = Criterion(matcher=matcher, losses={"class": "softmax", "box": "l1", "giou": "giou"})
folder = tempfile.TemporaryDirectory()
options = TrainOptions(
    epochs=4,
    batch_size=4,
    learning_rate=1e-3,
    backbone=("model.model.backbone",),
    warmup_steps=0,
    drop_epochs=(),
    device="cpu",
    workers=0,
    evaluate_every=0,
    log_every=6,
    loggers=(),
)


# glue
class Detr(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images, mask=None, targets=None):
        found = self.model(images, pixel_mask=None if mask is None else ~mask)
        return Output(found.logits[None], found.pred_boxes[None], background=True)

    def detect(self, images, mask, sizes):
        return select(self(images, mask), sizes, DetectOptions(scores="softmax"))


outcome = fit(Detr(model), criterion, source, folder.name, options, evaluation=EvaluateOptions(pictures=0))
result = evaluate(Detr(model), source, batch_size=4, device="cpu", workers=0)
# end of glue

assert outcome.finished
assert result.stats == outcome.stats
lines = [json.loads(line) for line in Path(folder.name, "metrics.jsonl").read_text().splitlines()]
totals = [line["loss"] for line in lines if line["kind"] == "train"]
assert totals[-1] < totals[0]
told = f"loss {totals[0]:.2f} to {totals[-1]:.2f} in {outcome.step} steps"
print(f"{told}; AP {100 * result.stats['AP']:.2f} of {len(result.detections)} detections")
folder.cleanup()
