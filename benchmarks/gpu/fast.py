"""Images a second in training, milliseconds of a detection, and how near both are to the rate of matrix products."""

from __future__ import annotations

import copy
from statistics import median

import torch
from gpu.machine import matrix_rate
from gpu.setting import SYSTEMS, Setting
from gpu.step import Step

import detrkit
from detrkit.compare.timing import peak_memory
from detrkit.compare.workload import measure_workload
from detrkit.evaluation.evaluate import autocast

FORMS = {
    "eager": {},
    "compiled": {"compiled": True},
    "images channels-last": {"channels_last": True},
    "optimiser not fused": {"fused": False},
}


def sap_step(setting: Setting, add) -> None:
    """All forms, and attention written out."""
    rate = matrix_rate(setting)
    for name, form in FORMS.items():
        training(setting, add, "SAP-DETR", name, rate, **form)
    add("training step", name="SAP-DETR, norms of every map", skipped="see benchmarks/frozen_norms.py --device cuda")
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        training(setting, add, "SAP-DETR", "attention written out", rate)


def other_steps(setting: Setting, add) -> None:
    rate = matrix_rate(setting)
    for system in list(SYSTEMS)[1:]:
        for name in ("eager", "compiled"):
            training(setting, add, system, name, rate, **FORMS[name])


def training(setting: Setting, add, system: str, form: str, rate: float, **options: bool) -> None:
    """One line; a form that fails is a line with its error, as the others are worth having."""
    name = f"{system}, {form}"
    try:
        recipe = setting.recipe(SYSTEMS[system])
        step = Step(setting, recipe, **options)
        setting.times(step, rounds=1)
        step.waited = 0.0
        times = setting.times(step, warmup=0, rounds=setting.rounds)
        memory = peak_memory(step, setting.device)
        work = measure_workload(step.detector, height=setting.size[0], width=setting.size[1]).total.multiply_adds
        seconds = median(times) / 1000
        add(
            "training step",
            name=name,
            images_per_second=round(setting.batch / seconds, 2),
            milliseconds=round(1000 * seconds, 2),
            share_matching=round(step.waited / sum(times), 4),
            peak_gib=round(memory / 2**30, 3),
            # a backward pass is about two forward passes' work; the frozen part of the backbone needs none
            share_of_matrix_rate=round(3 * setting.batch * work / seconds / rate, 3),
        )
    except Exception as error:
        add("training step", name=name, failed=f"{type(error).__name__}: {error}"[:600])


def sap_detection(setting: Setting, add) -> None:
    detection(setting, add, "SAP-DETR", matrix_rate(setting))


def other_detection(setting: Setting, add) -> None:
    rate = matrix_rate(setting)
    for system in list(SYSTEMS)[1:]:
        detection(setting, add, system, rate)


def detection(setting: Setting, add, system: str, rate: float) -> None:
    """Milliseconds of one image's forward pass: eager, compiled, as a CUDA graph."""
    form = detrkit.build_detector(setting.recipe(SYSTEMS[system])).to(setting.device).for_inference()
    work = measure_workload(copy.deepcopy(form), height=setting.size[0], width=setting.size[1]).total.multiply_adds
    images = setting.images(1)

    def forward(model):
        with torch.no_grad(), autocast(setting.device, setting.precision):
            return model(images)

    def run(kind: str):
        if kind == "compiled":
            model = torch.compile(form)
            return lambda: forward(model)
        return captured(lambda: forward(form)) if kind == "CUDA graph" else lambda: forward(form)

    for kind in ("eager", "compiled", "CUDA graph"):
        name = f"{system}, {kind}"
        if kind == "CUDA graph" and not setting.on_gpu:
            add("detection", name=name, skipped="no CUDA")
            continue
        try:
            found = median(setting.times(run(kind), rounds=3 * setting.rounds))
            share = 1000 * work / found / rate
            add("detection", name=name, milliseconds=round(found, 3), share_of_matrix_rate=round(share, 3))
        except Exception as error:
            add("detection", name=name, failed=f"{type(error).__name__}: {error}"[:600])


def captured(run):
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


def peer(setting: Setting, add) -> None:
    """DAB-DETR of `transformers`, if it is installed."""
    try:
        import transformers
    except ImportError:
        add("peer", name="DAB-DETR of transformers", skipped="transformers is not installed")
        return
    small = {"encoder_layers": 1, "decoder_layers": 2, "hidden_size": 32} if setting.tiny else {}
    config = transformers.DabDetrConfig(num_labels=91, auxiliary_loss=True, **small)
    config.use_pretrained_backbone = False
    model = transformers.DabDetrForObjectDetection(config).to(setting.device)
    optimiser = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-4, fused=True)
    images = setting.images(setting.batch)
    labels = [{"class_labels": t["labels"], "boxes": t["boxes"]} for t in setting.targets(setting.batch)]

    def step() -> None:
        with autocast(setting.device, setting.precision):
            loss = model.train()(pixel_values=images, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    seconds = median(setting.times(step)) / 1000
    add("peer", name="DAB-DETR of transformers, training", images_per_second=round(setting.batch / seconds, 2))
    one = setting.images(1)

    def detect() -> None:
        with torch.no_grad(), autocast(setting.device, setting.precision):
            model.eval()(pixel_values=one)

    add("peer", name="DAB-DETR of transformers, detection", milliseconds=round(median(setting.times(detect)), 3))
