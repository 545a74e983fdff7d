"""The options of a recipe's `train` and `evaluate` tables."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from detrkit.recipe import Given, Options, Slot

Positive = Annotated[int, Field(ge=1, le=1_000_000)]
Count = Annotated[int, Field(ge=0, le=1_000_000_000)]
Rate = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True, kw_only=True)
class TrainOptions(Options):
    """How a detector is trained. The defaults are SAP-DETR's for ResNet-50."""

    epochs: Positive = 50
    """passes over the training images"""
    batch_size: Positive = 16
    """images of one optimiser step over all processes: the batch that the learning rate belongs to"""
    micro_batch: Positive | None = None
    """images that one process handles at once; the gradients of several are added up to the batch. Unset:
    the process's whole share. Less memory for the same gradient, but for what a piece sees by itself: batch norms that
    learn, dropout's and denoising's draws, and how far images are padded"""

    learning_rate: Annotated[float, Field(gt=0, le=1000)] = 1e-4
    """of all other parameters than the backbone's, after the warm-up and until the first drop"""
    backbone_learning_rate: Annotated[float, Field(ge=0, le=1000)] = 1e-5
    """the rate of the backbone's parameters; 0 freezes them, as `freeze` does"""
    backbone: tuple[str, ...] = ("backbone",)
    """what counts as backbone, by the beginnings of parameters' names: of a detector of your own ["model.body"], say"""
    freeze: tuple[str, ...] = ()
    """parts that are not trained, by the beginnings of their parameters' names: "backbone", "encoder",
    "decoder.layers.0", ...; batch norms in them keep their statistics"""
    place_rate_factor: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """what `learning_rate` is multiplied by for the layers that say where to look: sampling offsets, learned points"""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW as the published recipes have it, or SGD with `momentum`"""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """of `sgd`; adamw has its usual two, 0.9 and 0.999"""
    weight_decay: Annotated[float, Field(ge=0, le=1000)] = 1e-4
    """AdamW's own decay, which does not pass through its moments; with SGD it is added to the gradient"""
    decay_norms: bool = True
    """also decay normalisation layers and biases, as the published recipes do"""
    parameters: Annotated[dict[str, Given], Slot("parameter_rule")] = field(default_factory=dict)
    """what else has another rate or decay, by a name for each: `backbone_norms = { type = "norms", part = "backbone",
    rate_factor = 10 }`"""
    clip_norm: Annotated[float, Field(ge=0)] = 0.1
    """largest norm of the gradient over all parameters; 0 leaves it as it is"""

    schedule: Literal["step", "cosine", "flat_cosine"] = "step"
    """after the warm-up: drops at given epochs; half a cosine wave down to 0 at the end; or the full rate for
    `flat_epochs`, then half a cosine wave down to `lowest` of it, which the last `low_epochs` have (DEIM)"""
    flat_epochs: Count = 0
    """epochs at the full rate, the warm-up's included; `flat_cosine` only"""
    low_epochs: Count = 0
    """last epochs at the lowest rate; `flat_cosine` only"""
    lowest: Annotated[float, Field(ge=0, le=1)] = 0.5
    """the lowest rate's share of the full one; `flat_cosine` only"""
    drop_epochs: tuple[Positive, ...] = (40,)
    """epochs (counted from 0) at whose start the rate is multiplied by `drop_factor`; `step` only"""
    drop_factor: Annotated[float, Field(gt=0, le=1)] = 0.1
    """what a drop leaves of the rate"""
    warmup_steps: Count = 1000
    """optimiser steps in which the rate rises; 0 for none"""
    warmup_factor: Annotated[float, Field(ge=0, le=1)] = 0.001
    """the share of the rate at the very first step"""
    warmup_power: Annotated[float, Field(gt=0, le=10)] = 1.0
    """the power of the step that the rate rises with: 1 for a straight line, 2 in DEIM"""

    ema_decay: Rate = 0.0
    """keep a moving average of the weights with this decay, and evaluate it; 0 keeps none"""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """of the detector's forward pass; matching, boxes and losses are float32. auto: bf16 where the GPU has it,
    or the CPU has it and was measured to gain by it. fp16 is for GPUs before Ampere (V100, T4): gradients are computed
    of a loss times a scale that follows them"""

    recompute: tuple[str, ...] = ()
    """parts whose layers are computed again in the backward pass, so that what they computed need not be kept: of the
    detector's "backbone", "encoder" and "decoder", say. The same losses and gradients, in more time and less memory"""
    compile: bool = False
    """let `torch.compile` make a graph of the detector's forward pass, and one of the backward pass: the same losses to
    rounding (dropout draws others), after minutes of compiling for each size of images. Matching and losses stay
    outside. On the CPU it needs a C++ compiler, and gains nothing"""

    init_from: str | None = None
    """start from these weights: a run's folder, one of its checkpoints, or a .safetensors file"""
    seed: Annotated[int, Field(ge=0)] = 42
    """of the start, the order of images and all chance in training"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""
    workers: Annotated[int, Field(ge=0, le=1024)] | None = None
    """processes that load images, for each training process; unset: by the number of cores"""

    evaluate_every: Count = 1
    """epochs between evaluations (there is one at the end in any case); 0: at the end only"""
    patience: Count = 0
    """stop after so many evaluations in a row without a better AP; 0: train to the end. The schedule of rates does not
    know of it, so give it some evaluations more than AP takes to rise again"""
    log_every: Positive = 20
    """steps between two lines of metrics"""
    loggers: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = ("tensorboard",)
    """where the numbers go beside metrics.jsonl; the last three are extras: `pip install 'detrkit[wandb]'`"""
    checkpoint_steps: Count = 0
    """also write a checkpoint every so many steps; 0: at the end of each epoch only"""
    checkpoint_minutes: Annotated[float, Field(ge=0)] = 0.0
    """also write a checkpoint every so many minutes; 0: at the end of each epoch only"""
    max_minutes: Annotated[float, Field(gt=0)] | None = None
    """stop each start of the run after this time, as if interrupted: `--resume` goes on for as long again, unless it is
    given another time, or `train.max_minutes=none`"""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(Options):
    """How a detector is evaluated, during and after training."""

    batch_size: Positive = 4
    """images at once in each process"""
    pictures: Annotated[int, Field(ge=0, le=10_000)] = 4
    """validation images that are drawn at each evaluation of a training run"""
    picture_score: Annotated[float, Field(ge=0, le=1)] = 0.3
    """the lowest score that is drawn"""
