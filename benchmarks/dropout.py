"""Dropout on a CPU, PyTorch's own beside 16 bits a value, forward and backward.

    python benchmarks/dropout.py --threads 2

At the sizes of an encoder layer of an image of 640 x 640: the hidden units of its feed-forward network, and its output.
"""

from __future__ import annotations

import argparse
from functools import partial
from statistics import median
from time import perf_counter

import torch
from torch import nn

from detrkit.c_memory import keep_freed_memory
from detrkit.compare.timing import Ratio, take_turns
from detrkit.dropout import Dropout

SIZES = {"hidden": (1, 400, 2048), "output": (1, 400, 256)}


def timed(module: nn.Module, shape: tuple[int, ...], dtype: torch.dtype) -> float:
    """Milliseconds forward and backward."""
    x, grad = torch.ones(shape, dtype=dtype, requires_grad=True), torch.ones(shape, dtype=dtype)
    start = perf_counter()
    module(x).backward(grad)
    return 1e3 * (perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    keep_freed_memory()  # as the commands do
    torch.set_num_threads(arguments.threads)
    print(
        f"torch {torch.__version__}, {arguments.threads} threads; ms of PyTorch's, of ours, times as fast (quartiles)"
    )
    for name, shape in SIZES.items():
        for dtype in (torch.float32, torch.bfloat16):
            ways = {"theirs": partial(timed, nn.Dropout(0.1), shape, dtype)}
            ways["ours"] = partial(timed, Dropout(0.1), shape, dtype)
            times = take_turns(ways, rounds=arguments.rounds, warmup=3)
            ratio = Ratio.of(times["theirs"], times["ours"])
            both = " ".join(f"{median(times[way]):7.2f}" for way in ways)
            told = f"{name} {list(shape)}, {str(dtype).removeprefix('torch.')}"
            print(f"{told:32} {both} {ratio.middle:6.2f} ({ratio.low:.2f} to {ratio.high:.2f})")


if __name__ == "__main__":
    main()
