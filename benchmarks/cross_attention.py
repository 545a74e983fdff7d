"""SAP-DETR's cross-attention, PECA and SDG, beside the same logits written out.

    python benchmarks/cross_attention.py                       # 306 queries, cells of a 640 x 640 image at stride 32
    python benchmarks/cross_attention.py --cells 25 42 --batch 16 --precision bf16 --device cuda

A decoder layer's module with the recipe's terms and the same weights three times, its projections included:

- one fused call, as detrkit has it: no tensor holds a number for each head, query and cell;
- written out: the summands' products, then the softmax, then the values, each a tensor [B, H, N, L];
- as published: the position keys concatenated twice, the Gaussian over a grid [B, H, N, L, 2], then as above.

They take turns in one process, a round's times are divided, and results are compared before anything is timed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from torch import Tensor

from detrkit.attention.gaussian import gaussian_center
from detrkit.attention.multihead import key_mask, merge_heads
from detrkit.attention.term_sum import TermAttention
from detrkit.c_memory import keep_freed_memory
from detrkit.compare.timing import Ratio, milliseconds, peak_memory, take_turns
from detrkit.onednn import use_onednn
from detrkit.structures import Memory, QueryPosition, Reference

WIDTH, HEADS = 256, 8
TERMS = ("content", "point", "side", "side_directed_gaussian")


class WrittenOut(TermAttention):
    """One product a key, their sum, a softmax and a product with the values."""

    def attend(
        self, value: Tensor, content: Tensor, position: QueryPosition, reference: Reference, memory: Memory
    ) -> Tensor:
        logits = self.logits(content, position, reference, memory)
        if memory.mask is not None:
            logits = logits.masked_fill(~key_mask(memory.mask), -torch.inf)
        return merge_heads(logits.softmax(-1).to(value.dtype) @ value)

    def logits(self, content: Tensor, position: QueryPosition, reference: Reference, memory: Memory) -> Tensor:
        """[B, H, N, L]"""
        keys = self.key_features(memory)
        total = torch.zeros((), device=content.device)
        for _, key, query in self.summands(content, position, reference, memory):
            total = total + query @ keys[key].to(query.dtype).transpose(-1, -2)
        return total


class AsPublished(WrittenOut):
    """The projected terms in one product with a copy of the keys for each, the Gaussian's map added."""

    def logits(self, content: Tensor, position: QueryPosition, reference: Reference, memory: Memory) -> Tensor:
        keys = self.key_features(memory)
        *projected, gaussian = self.summands(content, position, reference, memory)
        query = torch.cat([summand.query for summand in projected], dim=-1)
        key = torch.cat([keys[summand.key] for summand in projected], dim=-1)
        channels = gaussian.query.float().unflatten(-1, (-1, 4))[..., :2, :].sum(-2)  # high and low part in bfloat16
        center, precision = gaussian_center(channels, memory.shape), -channels[..., 0::2]  # [B, H, N, 2]
        height, width = memory.shape
        y, x = torch.meshgrid(
            torch.arange(height, device=key.device) + 0.5, torch.arange(width, device=key.device) + 0.5, indexing="ij"
        )
        cells = torch.stack((x, y), dim=-1).flatten(0, 1)
        distances = cells - center[..., None, :]  # [B, H, N, L, 2]
        return query @ key.transpose(-1, -2) - (precision[..., None, :] * distances.square()).sum(-1)


def scene(arguments: argparse.Namespace, device: torch.device) -> tuple[Tensor, QueryPosition, Reference, Memory]:
    batch, queries, (height, width) = arguments.batch, arguments.queries, arguments.cells

    def numbers(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, device=device, requires_grad=True)

    embeddings = {"point": numbers(queries, WIDTH), "side": numbers(queries, WIDTH)}
    codes = {"point": numbers(queries, WIDTH), "side": numbers(queries, 2 * WIDTH)}
    reference = Reference(
        torch.rand(batch, queries, 2, device=device), 0.3 * torch.rand(batch, queries, 4, device=device)
    )
    memory = Memory(numbers(height * width, WIDTH), numbers(height * width, WIDTH), ((height, width),))
    return numbers(queries, WIDTH), QueryPosition(embeddings, codes), reference, memory


def forms(device: torch.device) -> dict[str, TermAttention]:
    """The three modules, with one set of weights."""
    torch.manual_seed(0)
    options = {"width": WIDTH, "heads": HEADS, "positions": ("point", "side"), "dropout": 0.0, "first": False}
    fused = TermAttention(**options, terms=TERMS).to(device)
    made = {"one fused call": fused}
    for name, kind in {"written out": WrittenOut, "as published": AsPublished}.items():
        made[name] = kind(**options, terms=TERMS).to(device)
        made[name].load_state_dict(fused.state_dict())
    for module in made.values():
        use_onednn(module)  # as in every detector
    return made


def detect(module: TermAttention, inputs: tuple, precision: str) -> Tensor:
    device = inputs[0].device.type
    with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16"):
        return module(*inputs)


def train(module: TermAttention, inputs: tuple, precision: str) -> None:
    detect(module, inputs, precision).float().square().mean().backward()


def without_gradients(run: Callable[[], Tensor]) -> Tensor:
    with torch.inference_mode():
        return run()


def report(title: str, runs: dict[str, Callable], device: torch.device, rounds: int) -> None:
    """Prints times, memory beyond weights, and each ratio to the fused form with its quartiles."""
    times = take_turns({name: partial(milliseconds, run, device) for name, run in runs.items()}, rounds=rounds)
    print(title)
    first = next(iter(times))
    for name, run in runs.items():
        line = f"  {name:16} {median(times[name]):8.2f} ms  {peak_memory(run, device) / 2**20:7.1f} MiB"
        if name != first:
            ratio = Ratio.of(times[name], times[first])
            line += f"  {ratio.middle:.2f} times the fused call's (quartiles {ratio.low:.2f} to {ratio.high:.2f})"
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--queries", type=int, default=306)
    parser.add_argument("--cells", type=int, nargs=2, default=(20, 20), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    keep_freed_memory()  # as the commands do
    device = torch.device(arguments.device)
    modules, inputs = forms(device), scene(arguments, device)
    results = {name: detect(module, inputs, arguments.precision).float() for name, module in modules.items()}
    first = results["one fused call"]
    apart = max((first - other).abs().max().item() for other in results.values())
    height, width = arguments.cells
    print(
        f"{arguments.batch} x {arguments.queries} queries, {height} x {width} cells, {arguments.precision} on {device}"
    )
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; results at most {apart:.1e} apart,", end="")
    print(f" where they have {first.std().item():.1e}")
    detections = {name: partial(detect, module, inputs, arguments.precision) for name, module in modules.items()}
    passes = {name: partial(train, module, inputs, arguments.precision) for name, module in modules.items()}
    alone = {name: partial(without_gradients, run) for name, run in detections.items()}
    report("detection", alone, device, arguments.rounds)
    report("forward and backward", passes, device, arguments.rounds)


if __name__ == "__main__":
    main()
