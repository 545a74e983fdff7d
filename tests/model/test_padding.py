"""What a prediction owes to the padding of its batch: nothing, but for the parts named here, as published.

Backbones are left out (`Patches`), since none is free of it: convolutions see where an image ends.
"""

from __future__ import annotations

import pytest
import torch

from tests.model.kinds import Patches, batch, build, kinds, recipe

CANVAS = (128, 160)
NO_FORM = "RT-DETR's convolutions and norms read padding as they read the image"


def published(values) -> dict[str, object]:
    """The options by which such a recipe's predictions depend on padding, each with the value by which they do not."""
    found: dict[str, object] = {}
    queries, encoder, decoder = values["queries"], values["encoder"], values["decoder"]
    look = decoder["cross_attention"]
    if queries.get("extent") == "padded" and queries["content"] == "memory":
        found["queries.extent"] = "image"
    if queries.get("skip_unusable") is False:
        found["queries.skip_unusable"] = True
    if encoder.get("extent") == "padded" and encoder.get("projection_norm", True):
        found["encoder.extent"] = "image"
    if look.get("extent") == "padded":
        found["decoder.cross_attention.extent"] = "image"
    terms = look.get("terms") or []
    if any(term.get("extent") == "padded" for term in terms):
        found["decoder.cross_attention.terms"] = [
            {**term, "extent": "image"} if "extent" in term else term for term in terms
        ]
    if any(position.get("frame") == "padded_map" for position in decoder["positions"]):
        found["decoder.positions"] = [
            {**position, "frame": "image"} if "frame" in position else position for position in decoder["positions"]
        ]
    if encoder["type"] == "hybrid":
        found[NO_FORM] = None
    return found


def systems() -> list[str]:
    """Kinds of the one loop, one for each way to look: training blocks, losses and numbers are not asked here."""
    found = {}
    for kind in kinds():
        values = recipe(kind).full_values()
        if values["detector"]["type"] == "detr":
            parts = ("position", "encoder", "queries", "geometry", "decoder", "head")
            found.setdefault(repr([values[part] for part in parts]), kind)
    return list(found.values())


def changed(made) -> float:
    """How far boxes and logits of an image move when its batch pads it to CANVAS."""
    detector, _ = build(made)
    for parameter in detector.queries.parameters():
        if parameter.dim() == 2 and parameter.shape[-1] == 4:
            parameter.data += 0.5  # boxes of some size, which reach over the image's edges
    detector.backbone = Patches(detector.backbone)
    detector.eval()
    images, _ = batch((1,))
    height, width = images.shape[-2:]
    padded, mask = torch.zeros(1, 3, *CANVAS, dtype=torch.float64), torch.ones(1, *CANVAS, dtype=torch.bool)
    padded[:, :, :height, :width], mask[:, :height, :width] = images, False
    with torch.no_grad():
        alone, batched = detector(images), detector(padded, mask)
    pairs = ((alone.logits, batched.logits), (alone.boxes, batched.boxes))
    return max((one - other).abs().max().item() for one, other in pairs)


@pytest.mark.parametrize("kind", systems())
def test_padding_says_something_as_published_only(kind):
    made = recipe(kind)
    options = published(made.full_values())
    moved = changed(made)
    assert (moved > 1e-7) == bool(options), f"moved by {moved:.1g}; the sheet names {sorted(options) or 'nothing'}"
    if options and NO_FORM not in options:
        assert changed(made.with_values(options)) < 1e-9, f"with {options}"
