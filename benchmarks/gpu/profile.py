"""Which kernels a step's time goes to, and how long the device has nothing to do."""

from __future__ import annotations

from typing import Any

import torch
from gpu.setting import SYSTEMS, Setting
from gpu.step import Step
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

TOP, GAPS = 20, 8


def eager(setting: Setting) -> None:
    setting.attempt("profile", "SAP-DETR, eager", lambda: profiled(setting, compiled=False))


def compiled(setting: Setting) -> None:
    setting.attempt("profile", "SAP-DETR, compiled", lambda: profiled(setting, compiled=True))


def profiled(setting: Setting, compiled: bool) -> dict[str, Any]:
    """Of one training step: the top kernels (operations on a CPU) with times and milliseconds, and the gaps."""
    step = Step(setting, setting.recipe(SYSTEMS["SAP-DETR"]), compiled=compiled)
    setting.times(step, rounds=1)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if setting.on_gpu else [])]
    with profile(activities=activities) as found:
        step()
        if setting.on_gpu:
            torch.cuda.synchronize()
    kind = DeviceType.CUDA if setting.on_gpu else DeviceType.CPU
    # Annotations ("Optimizer.step") stand among the device's events as if they were kernels.
    events = [e for e in found.events() if e.device_type == kind and not e.is_user_annotation]
    spans = sorted((e.time_range.start, e.time_range.end, e.name) for e in events)
    return {**top(found, kind), **gaps(spans)} if setting.on_gpu else top(found, kind)


def top(found: profile, kind: DeviceType) -> dict[str, Any]:
    rows = [row for row in found.key_averages() if row.device_type == kind and not row.is_user_annotation]

    def time(row) -> float:
        return (row.self_device_time_total if kind == DeviceType.CUDA else row.self_cpu_time_total) / 1000

    rows = sorted(rows, key=time, reverse=True)
    return {"top": [f"{time(row):9.3f} ms {row.count:5} x {row.key[:100]}" for row in rows[:TOP]]}


def gaps(spans: list[tuple[float, float, str]]) -> dict[str, Any]:
    """Of the spans (start, end, name) in microseconds of all kernels: time busy, and the largest gaps between them.

    The first kernel to the last one; launching the first and reading the last is not in it.
    """
    start, end, last = spans[0]
    first, idle, found = start, 0.0, []
    for begin, stop, name in spans[1:]:
        if begin > end:
            idle += begin - end
            found.append((begin - end, last, name))
        if stop > end:
            end, last = stop, name
    largest = sorted(found, reverse=True)[:GAPS]
    return {
        "kernels": len(spans),
        "milliseconds": round((end - first) / 1000, 3),
        "gaps_ms": round(idle / 1000, 3),
        "largest_gaps": [f"{gap / 1000:9.3f} ms after {a[:60]} before {b[:60]}" for gap, a, b in largest],
    }
