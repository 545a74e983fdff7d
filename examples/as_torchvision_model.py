"""A detector of detrkit's that is called as torchvision's detection models are.

A list of images in; in training a dict of losses out, otherwise a list of detections.
"""

import torch

import detrkit
from detrkit.torchvision_form import AsTorchvision

torch.manual_seed(0)
recipe = detrkit.load_recipe("quickstart", ["detector.classes=3", "blocks.denoising.type=denoising"])

# glue
model = AsTorchvision(detrkit.build_detector(recipe), detrkit.build_criterion(recipe))
# end of glue

# As in torchvision's own reference: images of their own sizes, boxes as corners in pixels, labels from 1 on.
images = [torch.rand(3, 96, 128), torch.rand(3, 80, 90), torch.rand(3, 64, 64)]
targets = [
    {"boxes": torch.tensor([[10.0, 20.0, 60.0, 70.0], [50.0, 5.0, 120.0, 90.0]]), "labels": torch.tensor([1, 3])},
    {"boxes": torch.tensor([[0.0, 0.0, 45.0, 80.0]]), "labels": torch.tensor([2])},
    {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
]
optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
totals = []
for _ in range(8):
    losses = model(images, targets)
    total = sum(losses.values())
    optimiser.zero_grad()
    total.backward()
    optimiser.step()
    totals.append(total.item())
assert totals[-1] < totals[0]
model.eval()
found = model(images)
for one, image in zip(found, images, strict=True):
    height, width = image.shape[-2:]
    assert {"boxes", "labels", "scores"} <= set(one)
    assert (one["labels"] >= 1).all()
    assert (one["labels"] <= 3).all()
    assert (one["boxes"] >= 0).all()
    assert (one["boxes"] <= torch.tensor([width, height, width, height])).all()
print(f"{', '.join(losses)}; sum {totals[0]:.2f} to {totals[-1]:.2f} in 8 steps; {len(found)} images detected on")
