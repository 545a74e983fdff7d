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
}


def waits(setting: Setting, add) -> None:
    """A step of each after a first, with waits made errors everywhere but in the matching's one transfer."""
    failed = []
    for name, recipe in NAMES.items():
        step = Step(setting, setting.recipe(recipe))
        step()
        transfers = []
        with Watch(setting, transfers):
            try:
                step()
                told = "nothing but the matching waits"
            except RuntimeError as error:
                told = str(error)
                failed.append(f"{name}: {told}")
        if not setting.on_gpu:
            told = "not watched: waits are CUDA's"
        add("waits", name=name, result=told, transfers=len(transfers))
        if told.startswith("nothing") and len(transfers) != 1:
            failed.append(f"{name}: {len(transfers)} transfers instead of one")
    if failed:
        raise AssertionError("; ".join(failed))


class Watch:
    """Waits for a GPU are errors within it, `Tensor.cpu` excepted, which is counted."""

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
