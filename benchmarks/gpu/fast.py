"""Images a second in training, milliseconds of a detection, and how near both are to the rate of matrix products."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from functools import lru_cache, partial
from statistics import median
from typing import Any

import torch
from gpu.machine import matrix_rate
from gpu.setting import OTHERS, SYSTEMS, Setting
from gpu.step import Step
from torch.nn.attention import SDPBackend, sdpa_kernel

import detrkit
from detrkit.compare.timing import milliseconds, peak_memory
from detrkit.evaluation.evaluate import autocast

COCO_TRAIN, EPOCHS = 118_287, 12


@contextmanager
def tried_kernels():
    """cuDNN tries its kernels on each new shape, and keeps the fastest."""
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = False


def sap_step(setting: Setting) -> None:
    """The form that `detrkit train` has, and each of its choices made otherwise."""
    rate = matrix_rate(setting)
    one = partial(training, setting, "SAP-DETR", rate)
    one("eager")
    setting.attempt("new sizes", "SAP-DETR, eager", lambda: new_sizes(setting))
    one("attention written out", around=partial(sdpa_kernel, SDPBackend.MATH))
    one("norms of every map", folded=False)
    one("cuDNN tries kernels", around=tried_kernels)
    one("channels first", channels_last=False)
    one("optimiser not fused", fused=False)


def sap_compiled(setting: Setting) -> None:
    rate = matrix_rate(setting)
    training(setting, "SAP-DETR", rate, "compiled", compiled=True)
    detection(setting, "SAP-DETR", rate, compiled=True)


def other_steps(setting: Setting) -> None:
    rate = matrix_rate(setting)
    for system in OTHERS:
        training(setting, system, rate, "eager")


def others_compiled(setting: Setting) -> None:
    rate = matrix_rate(setting)
    for system in OTHERS:
        training(setting, system, rate, "compiled", compiled=True)
        detection(setting, system, rate, compiled=True)


def training(
    setting: Setting, system: str, rate: float, form: str, *, around: Callable = nullcontext, **options: bool
) -> None:
    """A line of one form of a system's training step."""

    def measure() -> dict[str, Any]:
        with around():
            return measured(setting, system, rate, **options)

    setting.attempt("training step", f"{system}, {form}", measure)


def measured(setting: Setting, system: str, rate: float, **options: bool) -> dict[str, Any]:
    step = Step(setting, setting.recipe(SYSTEMS[system]), **options)
    setting.times(step, rounds=1)
    step.waited = step.idle = 0.0
    times = setting.times(step, warmup=0, rounds=setting.rounds)
    seconds = median(times) / 1000
    found = {
        "images_per_second": round(setting.batch / seconds, 2),
        "milliseconds": round(1000 * seconds, 2),
        # of the step: the device stands still for matching; the host waits for costs, as the device makes them
        "device_waits": round(step.idle / sum(times), 4),
        "host_waits": round(step.waited / sum(times), 4),
        # a backward pass is about two forward passes' work; the frozen part of the backbone needs none
        "share_of_matrix_rate": round(3 * setting.batch * setting.work(SYSTEMS[system]) / seconds / rate, 3),
        # images stood ready on the card: loading, evaluation and checkpoints are not in it
        "hours_of_12_coco_epochs": round(COCO_TRAIN * EPOCHS / setting.batch * seconds / 3600, 2),
    }
    # on a CPU operations are watched for their memory, and torch 2.14 compiles none that is watched
    if setting.device.type == "cuda" or not options.get("compiled"):
        found["peak_gib"] = round(peak_memory(step, setting.device) / 2**30, 3)
    return found


def new_sizes(setting: Setting) -> dict[str, Any]:
    """A step on images of sizes that were not met before, as most of COCO's batches are, and on the same again."""
    step = Step(setting, setting.recipe(SYSTEMS["SAP-DETR"]))
    setting.times(step, rounds=1)
    images, width = step.images, setting.size[1]
    rounds = []
    for _ in range(2):
        times = []
        for number in range(1, 7):
            step.images = images[..., : width - number * (width // 40)].contiguous()
            times.append(milliseconds(step, setting.device))
        rounds.append(round(median(times), 2))
    return dict(zip(("milliseconds_at_first", "milliseconds_again"), rounds, strict=True))


def sap_detection(setting: Setting) -> None:
    detection(setting, "SAP-DETR", matrix_rate(setting))


def other_detection(setting: Setting) -> None:
    rate = matrix_rate(setting)
    for system in OTHERS:
        detection(setting, system, rate)


def detection(setting: Setting, system: str, rate: float, *, compiled: bool = False) -> None:
    """Lines of milliseconds of one image's forward pass: eager or compiled, and that as a CUDA graph."""
    images = setting.images(1)

    @lru_cache
    def built() -> Callable:
        form = detrkit.build_detector(setting.recipe(SYSTEMS[system])).to(setting.device).for_inference()
        model = form.compiled() if compiled else form

        def forward():
            with torch.no_grad(), autocast(setting.device, setting.precision):
                return model(images, None, None)

        return forward

    def measure(as_graph: bool) -> dict[str, Any]:
        run = captured(built()) if as_graph else built()
        found = median(setting.times(run, rounds=3 * setting.rounds))
        share = 1000 * setting.work(SYSTEMS[system]) / found / rate
        return {"milliseconds": round(found, 3), "share_of_matrix_rate": round(share, 3)}

    name = f"{system}, {'compiled' if compiled else 'eager'}"
    setting.attempt("detection", name, lambda: measure(as_graph=False))
    if setting.on_gpu:
        setting.attempt("detection", f"{name}, CUDA graph", lambda: measure(as_graph=True))


def captured(run: Callable) -> Callable:
    """A run as a CUDA graph; its replay is held to what it gave before."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            expected = run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = run()
    graph.replay()
    difference = (output.boxes.float() - expected.boxes.float()).abs().max().item()
    if not difference <= 1e-2:
        raise AssertionError(f"boxes of the graph differ by {difference:.2e}")
    return graph.replay


def peer(setting: Setting) -> None:
    """DAB-DETR of `transformers`, if it is installed; the part of the backbone that detrkit freezes is frozen."""
    try:
        import transformers
    except ImportError:
        setting.add("peer", name="DAB-DETR of transformers", skipped="transformers is not installed")
        return
    small = dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2)
    small |= dict.fromkeys(("encoder_layers", "encoder_ffn_dim", "decoder_ffn_dim", "hidden_size"), 32)
    small |= {"encoder_layers": 1, "decoder_layers": 2}
    config = transformers.DabDetrConfig(num_labels=91, auxiliary_loss=True, **(small if setting.tiny else {}))
    model = transformers.DabDetrForObjectDetection(config).to(setting.device)
    for name, parameter in model.named_parameters():
        if "backbone" in name and not any(f"layer{n}" in name for n in (2, 3, 4)):
            parameter.requires_grad_(False)
    setting.attempt("peer", "DAB-DETR of transformers, detection", lambda: peer_detection(setting, model))
    setting.attempt("peer", "DAB-DETR of transformers, training", lambda: peer_training(setting, model))


def peer_detection(setting: Setting, model: torch.nn.Module) -> dict[str, Any]:
    images = setting.images(1)
    model.eval()

    def detect() -> None:
        with torch.no_grad(), autocast(setting.device, setting.precision):
            model(pixel_values=images)

    return {"milliseconds": round(median(setting.times(detect)), 3)}


def peer_training(setting: Setting, model: torch.nn.Module) -> dict[str, Any]:
    optimiser = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-4, fused=True)
    images = setting.images(setting.batch)
    labels = [{"class_labels": t["labels"], "boxes": t["boxes"]} for t in setting.targets(setting.batch)]
    model.train()

    def step() -> None:
        with autocast(setting.device, setting.precision):
            loss = model(pixel_values=images, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    seconds = median(setting.times(step)) / 1000
    return {
        "images_per_second": round(setting.batch / seconds, 2),
        "peak_gib": round(peak_memory(step, setting.device) / 2**30, 3),
    }
