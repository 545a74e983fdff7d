"""What averaging gradients costs a step of several processes: while they are computed, and after the backward pass.

    python benchmarks/averaging.py                                       # two gloo processes, the quickstart's sizes
    python benchmarks/averaging.py sap_detr_r50_50ep --size 320 --batch 1
    python benchmarks/averaging.py quickstart --processes 4 --rounds 40

The trainer's way (`DistributedDataParallel` with unused parameters looked for) stands beside the same without looking,
and beside a loop over buckets after the backward pass. In each process all take turns, a step each; a round's times are
divided by the loop's, and the first process's are printed. A step is forward, losses, backward and averaging.
"""

from __future__ import annotations

import argparse
import socket
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import detrkit
from detrkit.compare.timing import Ratio, milliseconds, take_turns
from detrkit.data import Batch
from detrkit.engine.distributed import Processes
from detrkit.engine.learner import Learner

LOOP, TRAINER, UNSEEN = "after the backward pass", "the trainer's", "the same, not looking for unused"
CPU = torch.device("cpu")


def average(parameters: list[nn.Parameter], world: int, elements: int = 2**24) -> None:
    """Replace all gradients by their means over the processes, in buckets of up to 64 MB."""
    buckets: list[list[Tensor]] = [[]]
    for parameter in parameters:
        if buckets[-1] and sum(g.numel() for g in buckets[-1]) + parameter.numel() > elements:
            buckets.append([])
        buckets[-1].append(parameter.grad if parameter.grad is not None else torch.zeros_like(parameter))
    for bucket in buckets:
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        dist.all_reduce(flat)
        parts = (flat / world).split([gradient.numel() for gradient in bucket])
        torch._foreach_copy_(bucket, [part.view_as(g) for part, g in zip(parts, bucket, strict=True)])


def step(learner: nn.Module, batch: Batch, after: Callable[[], None] | None) -> None:
    objects = torch.tensor(float(sum(len(target["labels"]) for target in batch.targets)))
    learner.zero_grad(set_to_none=True)
    learner(batch, objects, len(batch))["total"].backward()
    if after is not None:
        after()


def work(rank: int, port: int, arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    world = arguments.processes
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    recipe = detrkit.load_recipe(arguments.recipe, ["backbone.pretrained=false", "detector.classes=8"])

    def learner() -> Learner:
        torch.manual_seed(0)
        made = Learner(detrkit.build_detector(recipe), detrkit.build_criterion(recipe), CPU, "fp32")
        return made.train()

    torch.manual_seed(rank)
    batch = Batch(
        images=torch.randn(arguments.batch, 3, arguments.size, arguments.size),
        mask=None,
        targets=[
            {"labels": torch.randint(0, 8, (7,)), "boxes": torch.rand(7, 4) * 0.4 + 0.3} for _ in range(arguments.batch)
        ],
        image_ids=list(range(arguments.batch)),
        sizes=torch.full((arguments.batch, 2), arguments.size),
    )
    alone = learner()
    parameters = [p for p in alone.parameters() if p.requires_grad]
    here = Processes(rank=rank, world=world, local_rank=rank)
    ways = {
        LOOP: (alone, partial(average, parameters, world)),
        TRAINER: (here.join(learner()), None),
        UNSEEN: (DistributedDataParallel(learner(), gradient_as_bucket_view=True), None),
    }
    runs = {name: partial(milliseconds, partial(step, way, batch, after), CPU) for name, (way, after) in ways.items()}
    times = take_turns(runs, rounds=arguments.rounds, warmup=3)
    if rank == 0:
        size = sum(p.numel() for p in parameters)
        print(
            f"{arguments.recipe}, {size / 1e6:.1f} million parameters, {world} gloo processes of {arguments.threads} "
            f"threads, {arguments.batch} x {arguments.size} x {arguments.size} each, torch {torch.__version__}"
        )
        for name in runs:
            ratio = Ratio.of(times[name], times[LOOP])
            print(
                f"  {name:34} {median(times[name]):8.1f} ms  {ratio.middle:.3f} of the first "
                f"(quartiles {ratio.low:.3f} to {ratio.high:.3f}, {arguments.rounds} rounds)"
            )
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="quickstart")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--batch", type=int, default=8, help="images of each process")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(work, args=(port, arguments), nprocs=arguments.processes)


if __name__ == "__main__":
    main()
