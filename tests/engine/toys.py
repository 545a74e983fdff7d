"""A detector, a criterion and a data set that are small enough to train in milliseconds."""

import json
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import nn

from detrkit.data import Batch, Category
from detrkit.data.loader import plan_batches
from detrkit.engine.distributed import Processes
from detrkit.engine.options import TrainOptions
from detrkit.engine.progress import Reporter
from detrkit.engine.trainer import Trainer
from detrkit.engine.workload import plan
from detrkit.losses.base import BaseCriterion
from detrkit.runs.run_folder import RunFolder
from detrkit.runs.run_loggers import Loggers


@dataclass(frozen=True)
class ToyOutput:
    logits: torch.Tensor
    boxes: torch.Tensor


class ToyDetector(nn.Module):
    """One query: a class and a box from the mean of the unpadded pixels."""

    def __init__(self, classes=3, dropout=0.0, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.backbone = nn.Conv2d(3, 8, 1)
        self.norm = nn.LayerNorm(8)
        self.drop = nn.Dropout(dropout)
        self.box = nn.Linear(8, 4)
        self.label = nn.Linear(8, classes)

    def forward(self, images, mask=None, targets=None):
        values = self.backbone(images).relu()
        inside = torch.ones_like(values[:, :1]) if mask is None else (~mask)[:, None].float()
        pooled = (values * inside).sum((2, 3)) / inside.sum((2, 3))
        hidden = self.drop(self.norm(pooled))
        return ToyOutput(self.label(hidden), self.box(hidden).sigmoid())


class ToyCriterion(BaseCriterion):
    """Every object of an image pulls its box; without objects the box part has no gradient at all.

    hook(call) is called before each forward pass, counted from 1.
    """

    def __init__(self, hook=None):
        super().__init__()
        self.hook, self.calls, self.factor = hook, 0, 1.0
        self._bad_costs = 0

    @property
    def bad_costs(self):
        return self._bad_costs

    def forward(self, output, targets, objects, images):
        self.calls += 1
        self._bad_costs += sum(len(target["labels"]) == 2 for target in targets)
        if self.hook is not None:
            self.hook(self.calls, self)
        total = torch.zeros(())
        box = torch.zeros(())
        for one, target in zip(output.boxes, targets, strict=True):
            if len(target["labels"]):
                box = box + (one - target["boxes"]).abs().sum() / objects
        total = box + output.logits.square().sum() / objects
        return {
            "total": total * self.factor,
            "box": box.detach(),
            "class_error": self.of_objects(output.logits.detach().mean(1), targets),
        }

    @staticmethod
    def of_objects(values, targets):
        """The mean of numbers of images [B] over their objects."""
        counts = torch.tensor([len(target["labels"]) for target in targets])
        return (values * counts).sum() / max(1, int(counts.sum()))


class ToySource:
    """`images` images of differing sizes, padded; `empty` says which have no objects."""

    categories = tuple(Category(i + 1, name) for i, name in enumerate(("a", "b", "c")))

    def __init__(self, images=22, empty=lambda index: index % 5 == 0):
        self.images, self.empty = images, empty
        self.train = range(images)

    def loader(self, *, split, batch_size, epoch, seed, workers, rank=0, world=1, skip=0):
        batches = plan_batches(self.images, batch_size, train=True, epoch=epoch, seed=seed, rank=rank, world=world)
        return [self.batch(indices) for indices in batches[skip:]]

    def batch(self, indices):
        sizes = [(3 + index % 3, 4 + index % 2) for index in indices]
        height, width = (max(column) for column in zip(*sizes, strict=True))
        images, mask = torch.zeros(len(indices), 3, height, width), torch.ones(len(indices), height, width).bool()
        targets = []
        for place, (index, (h, w)) in enumerate(zip(indices, sizes, strict=True)):
            draw = torch.Generator().manual_seed(index)
            images[place, :, :h, :w] = torch.randn(3, h, w, generator=draw)
            mask[place, :h, :w] = False
            count = 0 if self.empty(index) else 1 + index % 3
            targets.append(
                {"labels": torch.zeros(count, dtype=torch.int64), "boxes": torch.rand(count, 4, generator=draw)}
            )
        return Batch(images, mask if mask.any() else None, targets, list(indices), torch.tensor(sizes))


def toy_trainer(
    folder,
    *,
    hook=None,
    source=None,
    detector=None,
    criterion=None,
    here=None,
    aps=None,
    draw=None,
    device="cpu",
    precision="fp32",
    **options,
):
    """A trainer of toys, or of what is given, in `folder`; `aps` are what its evaluations find, in turn."""
    settings = {"epochs": 3, "batch_size": 4, "warmup_steps": 3, "drop_epochs": (2,), "log_every": 2, "clip_norm": 1.0}
    settings["loggers"] = ()
    options = TrainOptions(**{**settings, "learning_rate": 0.01, "backbone_learning_rate": 0.001, **options})
    source, here = source or ToySource(), here or Processes()
    share = options.batch_size // here.world
    loader = source.loader(split="train", batch_size=share, epoch=0, seed=0, workers=0, world=here.world)
    run = RunFolder(folder, Loggers(options.loggers))
    run.path.mkdir(parents=True, exist_ok=True)
    found = iter(aps or ())

    def evaluate(subject, progress):
        torch.rand(3)  # an evaluation that draws random numbers must not change the training
        return SimpleNamespace(stats={"AP": next(found, 0.1), "AP50": None, "AP75": None})

    return Trainer(
        detector=detector or ToyDetector(dropout=0.3),
        criterion=criterion or ToyCriterion(hook),
        source=source,
        options=options,
        workload=plan(options, images=source.images, steps_per_epoch=len(loader), world=here.world),
        workers=0,
        device=torch.device(device),
        precision=precision,
        here=here,
        run=run,
        reporter=Reporter(run=run if here.is_first else None, console=None),
        evaluate=evaluate,
        draw=draw,
    )


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the trainer may catch it."""


def kill_at(call):
    def hook(calls, criterion):
        if calls == call:
            raise Killed

    return hook


def same(first, second):
    """Whether two states are of the same tensors, to the bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def comparable_metrics(folder):
    """The lines of a run, without what the machine says."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = ("images_per_second", "memory_gb", "minutes")
    return [{k: v for k, v in line.items() if k not in timed} for line in lines]
