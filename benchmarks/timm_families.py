"""Tries the smallest model of each timm family as a backbone: `python benchmarks/timm_families.py`.

For each: it builds, two padded images of odd size go through, forward and backward, and every parameter that makes the
features beyond the frozen stride gets a gradient, and none below; or it is refused by name. Prints a line a family and
the counts; exits 1 if any ends in another error.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter

import timm
import torch

from detrkit.backbones.needs import frozen_names
from detrkit.backbones.timm_backbone import TimmBackbone
from detrkit.errors import UserError

HEIGHT, WIDTH, STRIDE = 100, 141, 4
CHEAP = [
    "resnet18", "efficientnet_b0", "mobilenetv3_small_050", "hrnet_w18_small", "coat_lite_tiny",
    "maxvit_rmlp_pico_rw_256", "convnext_atto", "vgg11", "mobilevit_xxs", "pvt_v2_b0",
]  # fmt: skip


def smallest_of(family: str) -> str | None:
    """The model of a family with the fewest parameters; None if all are of another family's making."""
    sizes = {}
    for name in timm.list_models(module=family):
        try:
            with torch.device("meta"):
                sizes[name] = sum(p.numel() for p in timm.create_model(name, pretrained=False).parameters())
        except Exception:
            continue
    return min(sizes, key=lambda name: sizes[name]) if sizes else None


def try_backbone(name: str) -> str:
    """ "trains" with what is frozen, or "refused" with the reason. Raises AssertionError if a gradient is wrong."""
    torch.manual_seed(0)
    try:
        backbone = TimmBackbone(name=name, pretrained=False, norm="batch", frozen_stride=STRIDE)
    except UserError as error:
        return f"refused: {error}"
    images, mask = torch.randn(2, 3, HEIGHT, WIDTH), torch.zeros(2, HEIGHT, WIDTH, dtype=torch.bool)
    mask[1, :, 120:], mask[1, 90:] = True, True
    [found] = backbone.train()(images.masked_fill(mask[:, None], 0), mask)
    found.values.square().mean().backward()
    frozen = frozen_names(name, STRIDE)
    parameters = dict(backbone.body.named_parameters())
    for key, parameter in parameters.items():
        assert parameter.requires_grad != (key in frozen), key
        assert (parameter.grad is not None) <= parameter.requires_grad, f"{key} is frozen and has a gradient"
    blind = [key for key, p in parameters.items() if p.requires_grad and p.grad is None]
    assert len(blind) < len(parameters) / 2, f"no gradient in {blind[:3]}"
    trains = sum(p.numel() for p in parameters.values() if p.requires_grad)
    share = 100 * trains / sum(p.numel() for p in parameters.values())
    note = f", {len(blind)} tensors beyond the last feature" if blind else ""
    return f"trains {share:.0f} % of its weights, images padded to multiples of {backbone.multiple}{note}"


def main() -> int:
    warnings.simplefilter("ignore")
    counts: Counter[str] = Counter()
    for family in timm.list_modules():
        name = smallest_of(family)
        if name is None:
            continue
        try:
            outcome = try_backbone(name)
        except Exception as error:
            outcome = f"FAILS: {type(error).__name__}: {error}"
        counts[outcome.split(" ")[0].strip(":")] += 1
        print(f"{family:24} {name:36} {outcome[:170]}", flush=True)
    print(dict(counts))
    return int(counts["FAILS"] > 0)


if __name__ == "__main__":
    sys.exit(main())
