"""Our criterion on Conditional DETR of the package transformers: the losses that it computes itself, from one matching.

The second image of the batch has no objects.
"""

import torch
from transformers import ConditionalDetrConfig, ConditionalDetrForObjectDetection
from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher

from detrkit import Criterion, Output, part
from detrkit.matching.hungarian import HungarianMatcher
from detrkit.structures import Targets

config = ConditionalDetrConfig(
    backbone="resnet18",
    use_timm_backbone=True,
    use_pretrained_backbone=False,
    d_model=32,
    encoder_layers=1,
    decoder_layers=3,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    encoder_ffn_dim=64,
    decoder_ffn_dim=64,
    num_queries=20,
    num_labels=5,
    auxiliary_loss=True,
)
torch.manual_seed(0)
model = ConditionalDetrForObjectDetection(config).eval()
images = torch.randn(3, 3, 64, 96)
labels = [{"class_labels": torch.randint(5, (n,)), "boxes": 0.2 + 0.3 * torch.rand(n, 4)} for n in (4, 0, 7)]
found = model(images, labels=labels)

# glue
criterion = Criterion(
    matcher=HungarianMatcher(costs={"class": "focal", "box": "l1", "giou": part("cost", "giou", eps=0.0)}),
    losses={"class": "focal", "box": "l1", "giou": part("loss", "giou", eps=0.0)},
)
layers = [*found.auxiliary_outputs, found]
output = Output(torch.stack([one["logits"] for one in layers]), torch.stack([one["pred_boxes"] for one in layers]))
truths = [{"labels": truth["class_labels"], "boxes": truth["boxes"]} for truth in labels]
losses = criterion(output, truths)
# end of glue

matches = criterion.matcher(output, Targets.pad(truths))
for layer, one in enumerate(layers):
    pairs = DeformableDetrHungarianMatcher(config.class_cost, config.bbox_cost, config.giou_cost)(one, labels)
    assert matches.query[layer].tolist() == torch.cat([query for query, _ in pairs]).tolist()
    assert matches.target[layer].tolist() == torch.cat([target for _, target in pairs]).tolist()
names = {"class": "loss_ce", "box": "loss_bbox", "giou": "loss_giou"}
theirs = {ours: found.loss_dict[name] for ours, name in names.items()}
for layer in range(config.decoder_layers - 1):
    theirs |= {f"{ours}.{layer}": found.loss_dict[f"{name}_{layer}"] for ours, name in names.items()}
theirs["total"] = found.loss
far = max(abs(losses[name] / value - 1) for name, value in theirs.items())
assert far < 1e-4, far
print(f"total {losses['total']:.4f}, theirs {found.loss:.4f}; same pairs; {len(theirs)} losses agree within {far:.0e}")
