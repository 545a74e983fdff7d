"""Attention on a CPU: PyTorch's, head by head through oneDNN, and with dropout written out, at the sizes of a detector.

    python benchmarks/attention_by_head.py                    # one thread
    python benchmarks/attention_by_head.py --threads 2 --rounds 20

They take turns in one process; a round's times are divided. Where `detrkit/attention/by_head.py` gains is what its
`gains` is to say; where not, attention with dropout is written out.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from statistics import median
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor

from detrkit.attention.by_head import attend_by_head, gains
from detrkit.attention.written_out import attend_written_out
from detrkit.c_memory import keep_freed_memory
from detrkit.compare.timing import Ratio, take_turns

SIZES = {  # queries, keys, channels of keys and of values, in eight heads of an image, dropout
    "cross-attention of SAP-DETR, 640 x 640": (306, 400, 76, 32, 0.0),
    "cross-attention of SAP-DETR, 800 x 1066": (306, 850, 76, 32, 0.0),
    "encoder, 640 x 640": (400, 400, 32, 32, 0.0),
    "encoder, 800 x 1066": (850, 850, 32, 32, 0.0),
    "among 306 queries": (306, 306, 32, 32, 0.0),
    "encoder with dropout, 640 x 640": (400, 400, 32, 32, 0.1),
    "encoder with dropout, 800 x 1066": (850, 850, 32, 32, 0.1),
    "cross-attention of Conditional DETR with dropout, 640 x 640": (300, 400, 64, 32, 0.1),
}


def fused(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    """PyTorch's, with channels of zeros up to a width that its fast kernel takes; with dropout it has none."""
    if dropout:
        return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=1.0)
    full = -(-query.shape[-1] // 8) * 8
    query, key, padded = (F.pad(x, (0, full - x.shape[-1])) for x in (query, key, value))
    return F.scaled_dot_product_attention(query, key, padded, scale=1.0)[..., : value.shape[-1]]


def by_head(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    return attend_by_head(query, key, value, None, 1.0, dropout)


def written_out(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    return attend_written_out(query, key, value, None, 1.0, dropout)


def timed(way: Callable[..., Tensor], rows: list[Tensor], dropout: float, grad: Tensor, *, learns: bool) -> float:
    """Milliseconds of one call, with its gradients where it learns."""
    start = perf_counter()
    with torch.set_grad_enabled(learns):
        out = way(*rows, dropout)
        if learns:
            torch.autograd.grad(out, rows, grad)
    return 1e3 * (perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    keep_freed_memory()  # as the commands do
    torch.set_num_threads(arguments.threads)
    print(
        f"torch {torch.__version__}, {arguments.threads} threads; ms fused; ms of the others, times as fast (quartiles)"
    )
    for name, (queries, keys, width, channels, dropout) in SIZES.items():
        for dtype in (torch.float32, torch.bfloat16):
            shapes = ((queries, width), (keys, width), (keys, channels))
            rows = [(torch.randn(1, 8, *shape, dtype=dtype) / 4).requires_grad_() for shape in shapes]
            grad = torch.randn(1, 8, queries, channels, dtype=dtype)
            taken = gains(rows[2], queries=queries, width=width, dropout=dropout)
            print(f"{name}, {str(dtype).removeprefix('torch.')}{'' if taken else ' (not taken here)'}")
            for told, learns in (("detection", False), ("forward and backward", True))[bool(dropout) :]:
                ways = (fused, by_head, written_out) if dropout else (fused, by_head)
                runs = {way.__name__: partial(timed, way, rows, dropout, grad, learns=learns) for way in ways}
                times = take_turns(runs, rounds=arguments.rounds, warmup=3)
                line = f"  {told:20} {median(times['fused']):7.2f}"
                for way in list(runs)[1:]:
                    ratio = Ratio.of(times["fused"], times[way])
                    line += (
                        f"  {way} {median(times[way]):7.2f} {ratio.middle:5.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
                    )
                print(line)


if __name__ == "__main__":
    main()
