"""Training blocks in two processes, where one or both have only images without objects, against one process."""

import socket
from dataclasses import replace
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import detrkit
from detrkit.data import Batch
from detrkit.engine.distributed import Processes
from detrkit.losses.base import BaseCriterion
from detrkit.structures import Extra, Targets
from tests.engine.toys import ToySource, toy_trainer
from tests.small import SMALL as ANY

SMALL = [*ANY, "detector.classes=5"]
CONTRASTIVE = "blocks.denoising={type='contrastive', count=8, noise={label=0.5}}"
NO_DROPOUT = ["encoder.dropout=0", "decoder.dropout=0"]
SECOND_SET = ["blocks.hybrid={type='hybrid', sets=2, copies=2}", "blocks.mixed={type='mixed', threshold=0.1}"]
SYSTEMS = {
    "DN-DETR": ["base/dn_detr", "queries.count=6"],
    "DINO": ["base/dino", "queries.count=3", CONTRASTIVE],
    "DDQ-DETR": ["base/ddq_detr", "queries.count=6", "blocks.dense.count=9", CONTRASTIVE],
    "Relation DETR": ["base/relation_detr", "queries.count=3", "blocks.hybrid={count=6, copies=2}", CONTRASTIVE],
    "MS-DETR": ["base/ms_deformable_detr", "queries.count=6", 'blocks.mixed.most="none"', *NO_DROPOUT],
    "SAP-DETR, hybrid and mixed": ["base/sap_detr", "queries.grid=[2, 3]", *SECOND_SET],
    "groups under softmax": ["base/detr", "queries.count=6", "blocks.groups={type='groups', count=3}", *NO_DROPOUT],
    "SAP-DETR with both": ["base/sap_dn", "queries.grid=[2, 3]", "blocks.groups={type='groups', count=2}"],
}
WITHOUT_DENOISING = ("MS-DETR", "SAP-DETR, hybrid and mixed", "groups under softmax")
# How many objects each image of the first and of the second process has.
COUNTS = {"second": ((3, 1), (0, 0)), "first": ((0, 0), (1, 2)), "both": ((0, 0), (0, 0))}


def watch(trainer):
    """Notes which parameters this process's losses reach, and the gradients that the optimiser gets."""
    parameters = [p for group in trainer.optimiser.param_groups for p in group["params"]]
    seen = {"reached": [False] * len(parameters)}

    def note(place):
        seen["reached"][place] = True

    for place, parameter in enumerate(parameters):
        parameter.register_post_accumulate_grad_hook(lambda _, place=place: note(place))

    def keep(*_):
        seen["gradients"] = [None if p.grad is None else p.grad.clone() for p in parameters]

    trainer.optimiser.register_step_pre_hook(keep)
    return seen


class WatchedCriterion(BaseCriterion):
    """Notes the losses. slots_of: the images whose background slots count, as if no others had any; None: all."""

    def __init__(self, criterion, slots_of=None):
        super().__init__()
        self.criterion, self.slots_of, self.losses = criterion, slots_of, {}

    def forward(self, output, targets, objects, images):
        extras = dict(output.extras)
        if self.slots_of is not None and extras["denoising"].targets is None:
            extra = extras["denoising"]
            rows = {n: getattr(extra.output, n) for n in ("logits", "boxes", "objectness")}
            rows = {n: None if x is None else x[:, self.slots_of] for n, x in rows.items()}
            matches = replace(extra.matches, image=extra.matches.image - self.slots_of.start)
            truth = Targets.pad(targets[self.slots_of], torch.float64)
            extras["denoising"] = Extra(replace(extra.output, **rows), matches, targets=truth)
        losses = self.criterion(replace(output, extras=extras), targets, objects, images)
        self.losses = {name: value.detach() for name, value in losses.items()}
        return losses


class OneBatch(ToySource):
    """A batch of images 64 pixels wide and high, the last one padded on the right, with so many objects each."""

    def __init__(self, counts):
        super().__init__(images=sum(map(len, counts)))
        self.counts = counts

    def loader(self, *, rank=0, world=1, **_):
        each = [self.of_process(number) for number in range(2)]
        if world == 2:
            return [each[rank]]
        return [
            Batch(
                images=torch.cat([b.images for b in each]),
                mask=torch.cat([b.mask for b in each]),
                targets=[target for b in each for target in b.targets],
                image_ids=[0, 1, 2, 3],
                sizes=torch.cat([b.sizes for b in each]),
            )
        ]

    def of_process(self, number):
        draw = torch.Generator().manual_seed(number)
        counts = self.counts[number]
        images = torch.randn(len(counts), 3, 64, 64, generator=draw, dtype=torch.float64)
        mask = torch.zeros(len(counts), 64, 64, dtype=torch.bool)
        images[-1, :, :, 40:], mask[-1, :, 40:] = 0, True
        targets = [
            {
                "labels": torch.randint(0, 5, (n,), generator=draw),
                "boxes": torch.rand(n, 4, generator=draw) * 0.4 + 0.3,
            }
            for n in counts
        ]
        return Batch(images, mask, targets, [2 * number, 2 * number + 1], torch.full((len(counts), 2), 64))


def step(folder, system, counts, here, slots_of=None):
    """Train one step: which parameters this process reached, the gradients of all, its losses, the new weights."""
    torch.manual_seed(0)
    recipe = detrkit.load_recipe(SYSTEMS[system][0], [*SMALL, *SYSTEMS[system][1:]])
    detector = detrkit.build_detector(recipe).double()
    for module in detector.modules():  # heads start at zero, which would hide what is unused
        if isinstance(module, torch.nn.Linear) and (module.weight == 0).all():
            torch.nn.init.normal_(module.weight, std=0.05)
    criterion = WatchedCriterion(detrkit.build_criterion(recipe), slots_of)
    trainer = toy_trainer(
        folder,
        source=OneBatch(counts),
        detector=detector,
        criterion=criterion,
        here=here,
        epochs=1,
        batch_size=4,
        warmup_steps=0,
        drop_epochs=(),
        log_every=1,
        clip_norm=0,
    )
    seen = watch(trainer)
    trainer.fit()
    return {
        "names": [name for group in trainer.optimiser.param_groups for name in group["names"]],
        "losses": criterion.losses,
        "weights": detector.state_dict(),
        **seen,
    }


def _work(rank, port, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),  # a process that waits for something that the other does not send fails
    )
    try:
        for system in SYSTEMS:
            for empty, counts in COUNTS.items():
                here = Processes(rank=rank, world=2, local_rank=rank)
                found = step(folder / f"{system} {empty} {rank}", system, counts, here)
                torch.save(found, folder / f"{system} {empty} {rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """What the two processes found, by system and which of them was without objects."""
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_work, args=(port, folder), nprocs=2)
    return {
        (system, empty): [torch.load(folder / f"{system} {empty} {rank}.pt") for rank in range(2)]
        for system in SYSTEMS
        for empty in COUNTS
    }


@pytest.mark.slow
@pytest.mark.parametrize("empty", COUNTS)
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_process_without_objects_builds_the_same_graph(pairs, system, empty):
    for number, (found, counts) in enumerate(zip(pairs[system, empty], COUNTS[empty], strict=True)):
        silent = [n for n, reached in zip(found["names"], found["reached"], strict=True) if not reached]
        assert not silent, f"no gradient in process {number}: {silent}"
        assert found["losses"].keys() == pairs[system, empty][0]["losses"].keys()
        denoising = {n: x for n, x in found["losses"].items() if n.startswith("denoising/")}
        assert bool(denoising) == (system not in WITHOUT_DENOISING)
        assert all(bool(value == 0) != bool(sum(counts)) for value in denoising.values()), denoising
        assert all(value.isfinite() for value in found["losses"].values())


@pytest.mark.slow
@pytest.mark.parametrize("empty", COUNTS)
@pytest.mark.parametrize("system", SYSTEMS)
def test_two_processes_give_the_gradients_of_one(pairs, tmp_path, system, empty):
    """Noise included: images without objects draw none, so the joined batch draws what the other process drew.

    One thing differs by design. Contrastive slots without an object say "background" as published, and a process
    without objects has no slots, so the joined batch is held against it without those of that process's images.
    """
    drawing = 1 if empty == "first" else 0  # the process whose random numbers count
    slots_of = slice(2 * drawing, 2 * drawing + 2) if "denoising/class" in pairs[system, empty][0]["losses"] else None
    one = step(tmp_path / "one", system, COUNTS[empty], Processes(rank=drawing), slots_of)
    for found in pairs[system, empty]:
        assert found["names"] == one["names"]
        for name, expected, gradient in zip(one["names"], one["gradients"], found["gradients"], strict=True):
            torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")
    first, second = (found["weights"] for found in pairs[system, empty])
    assert all(torch.equal(first[name], second[name]) for name in first)
