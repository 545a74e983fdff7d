"""Which kernels a step's time goes to, and how long the device has nothing to do."""

from __future__ import annotations

from gpu.setting import Setting
from gpu.step import Step
from torch.profiler import ProfilerActivity, profile

TOP = 20


def steps(setting: Setting, add) -> None:
    """The eager and the compiled step of SAP-DETR."""
    for name, compiled in (("eager", False), ("compiled", True)):
        try:
            step = Step(setting, setting.recipe("sap_detr_r50_50ep"), compiled=compiled)
            setting.times(step, rounds=1)
            add("profile", name=f"SAP-DETR, {name}", **profiled(setting, step))
        except Exception as error:
            add("profile", name=f"SAP-DETR, {name}", failed=f"{type(error).__name__}: {error}"[:600])


def profiled(setting: Setting, step: Step) -> dict:
    """Milliseconds of the top kernels (operations on a CPU), of all, and of the gaps between them."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if setting.on_gpu else [])]
    with profile(activities=activities) as found:
        step()
        if setting.on_gpu:
            import torch

            torch.cuda.synchronize()
    time = (lambda e: e.self_device_time_total) if setting.on_gpu else (lambda e: e.self_cpu_time_total)
    rows = sorted(found.key_averages(), key=time, reverse=True)[:TOP]
    result: dict = {"top": [[row.key[:80], row.count, round(time(row) / 1000, 3)] for row in rows]}
    if not setting.on_gpu:
        return {**result, "gaps": "skipped: no CUDA"}
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in found.events()
        if str(event.device_type).endswith("CUDA")
    )
    busy, end = 0.0, spans[0][0]
    for start, stop in spans:
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    whole = end - spans[0][0]
    return {**result, "kernels": len(spans), "busy_ms": busy / 1000, "gaps_ms": (whole - busy) / 1000}
