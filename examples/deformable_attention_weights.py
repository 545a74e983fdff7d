"""Our deformable attention with the weights of Deformable DETR's in the package transformers: the same outputs.

Around points and around boxes, four levels, the second image padded at the right.
"""

import torch
from transformers import DeformableDetrConfig
from transformers.models.deformable_detr.modeling_deformable_detr import DeformableDetrMultiscaleDeformableAttention

from detrkit.attention.deformable import DeformableCrossAttention
from detrkit.geometry.box import BoxGeometry
from detrkit.structures import Memory, QueryPosition, Reference

WIDTH, HEADS, POINTS = 32, 4, 3
SHAPES = ((16, 24), (8, 12), (4, 6), (2, 3))
torch.manual_seed(0)
config = DeformableDetrConfig(d_model=WIDTH, num_feature_levels=len(SHAPES))
theirs = DeformableDetrMultiscaleDeformableAttention(config, HEADS, POINTS)
with torch.no_grad():
    for parameter in theirs.parameters():
        parameter.normal_(0, 0.3)
content, boxes = torch.randn(2, 20, WIDTH), 0.1 + 0.8 * torch.rand(2, 20, 4)
tokens = torch.randn(2, sum(h * w for h, w in SHAPES), WIDTH)
valid = [torch.ones(2, h, w, dtype=torch.bool) for h, w in SHAPES]
for level, (_, width) in zip(valid, SHAPES, strict=True):
    level[1, :, 2 * width // 3 :] = False
valid = torch.cat([level.flatten(1) for level in valid], dim=1)

# glue
ours = DeformableCrossAttention(width=WIDTH, heads=HEADS, levels=len(SHAPES), points=POINTS)
renamed = {
    name.replace("value_proj", "value").replace("output_proj", "out"): w for name, w in theirs.state_dict().items()
}
ours.attention.load_state_dict(renamed)
memory = Memory(tokens, torch.zeros_like(tokens), SHAPES, ~valid)
around_points = ours(content, QueryPosition(), Reference(boxes[..., :2]), memory)
around_boxes = ours(content, QueryPosition(), BoxGeometry().encode(boxes), memory)
# end of glue

ratios = torch.tensor([[1.0, 1.0], [2 / 3, 1.0]])[:, None, None]  # [B, 1, 1, 2] how much of the width is image
shapes = {"spatial_shapes": torch.tensor(SHAPES), "spatial_shapes_list": list(SHAPES)}
far = []
for found, places in ((around_points, boxes[..., :2]), (around_boxes, boxes)):
    places = places[:, :, None] * ratios.repeat(1, 1, len(SHAPES), places.shape[-1] // 2)  # in the padded map
    expected, _ = theirs(content, valid, tokens, reference_points=places, **shapes)
    far.append((found - expected).abs().max().item())
assert max(far) < 1e-5, far
size = expected.abs().max()
print(f"outputs up to {size:.1f}; largest difference around points {far[0]:.0e}, around boxes {far[1]:.0e}")
