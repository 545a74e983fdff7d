"""Whether anything in a training step waits for the device, but the matching."""

from __future__ import annotations

import torch
from gpu.setting import Setting
from gpu.step import Step

NAMES = {
    "SAP-DETR": "sap_detr_r50_50ep",
    "SAP + DINO": "sap_dino_r50_12ep",
    "SAP + Group": "sap_group_r50_12ep",
    "Deformable, 4 levels": "deformable_detr_4scale_refined_r50_50ep",
    "SAP + DINO, mixed": "sap_dino_4scale_mixed_r50_12ep",
}
SMALLER = ["encoder.layers=1", "decoder.layers=2"]  # layers are alike: what waits shows in two of them


def waits(setting: Setting) -> None:
    """A step of each after a first, with waits made errors everywhere but in the matching's one transfer."""
    for name, recipe in NAMES.items():
        setting.attempt("waits", name, lambda recipe=recipe: watched(setting, recipe))


def watched(setting: Setting, recipe: str) -> dict:
    """How often `Tensor.cpu` was called in a step; an error where anything else waits."""
    step = Step(setting, setting.recipe(recipe, *SMALLER))
    step.images, step.targets = step.images[:2, :, :480, :640].contiguous(), step.targets[:2]
    step()
    transfers: list[torch.Size] = []
    with Watch(setting, transfers):
        step()
    if len(transfers) != 1:
        raise AssertionError(f"{len(transfers)} transfers instead of one: {transfers}")
    told = "nothing but the matching waits" if setting.on_gpu else "not watched: waits are CUDA's"
    return {"result": told, "transfers": len(transfers)}


class Watch:
    """Waits for a GPU are errors within it, `Tensor.cpu` excepted, which is noted."""

    def __init__(self, setting: Setting, transfers: list):
        self.on_gpu, self.transfers, self.cpu = setting.on_gpu, transfers, torch.Tensor.cpu

    def __enter__(self) -> None:
        def cpu(tensor, *given, **options):
            self.transfers.append(tensor.shape)
            self._mode("default")
            try:
                return self.cpu(tensor, *given, **options)
            finally:
                self._mode("error")

        torch.Tensor.cpu = cpu
        self._mode("error")

    def __exit__(self, *_) -> None:
        torch.Tensor.cpu = self.cpu
        self._mode("default")

    def _mode(self, mode: str) -> None:
        if self.on_gpu:
            torch.cuda.set_sync_debug_mode(mode)
