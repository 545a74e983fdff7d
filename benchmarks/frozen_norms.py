"""What frozen norms cost a backbone: the same model with norms of every feature map and with them in its convolutions.

    python benchmarks/frozen_norms.py                            # ResNet-50, 2 x 480 x 480, float32 and bfloat16
    python benchmarks/frozen_norms.py efficientnet_b0 --rounds 20
    python benchmarks/frozen_norms.py --device cuda

Both forms take turns in one process, a forward and backward pass each with all weights trained, and a round's two times
are divided; so a machine that others share changes the times, and the ratios little. Memory is what tensors of a pass
held at its peak beyond weights and gradients.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from statistics import median

import timm
import torch
from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn

from detrkit.backbones.folding import fold_frozen_norms
from detrkit.compare.timing import Ratio, milliseconds, peak_memory, take_turns


def training_pass(body: nn.Module, images: Tensor, precision: str) -> None:
    with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        maps = body(images)
    sum(m.float().square().mean() for m in maps).backward()


def compare(passes: dict[str, Callable], device: torch.device, rounds: int) -> None:
    """Prints the times of both, the ratio with its quartiles, and the memory."""
    runs = {name: partial(milliseconds, run, device) for name, run in passes.items()}
    times = take_turns(runs, rounds=rounds)
    ratio = Ratio.of(*times.values())
    for name, run in passes.items():
        print(f"  {name:24} {median(times[name]):8.1f} ms  {peak_memory(run, device) / 2**20:7.0f} MiB")
    print(f"  ratio {ratio.middle:.3f} (quartiles {ratio.low:.3f} to {ratio.high:.3f}, {rounds} rounds)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", default="resnet50")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--size", type=int, default=480)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    torch.manual_seed(0)

    def body() -> nn.Module:
        made = freeze_batch_norm_2d(timm.create_model(arguments.name, features_only=True, out_indices=[-1]))
        return made.to(device, memory_format=torch.channels_last)

    plain, folded = body(), body()
    norms = fold_frozen_norms(folded, 1)
    folded.load_state_dict(plain.state_dict())
    images = torch.randn(arguments.batch, 3, arguments.size, arguments.size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    print(
        f"{arguments.name}, {norms} norms, {arguments.batch} x {arguments.size} x {arguments.size} on {device}", end=""
    )
    print(f", torch {torch.__version__}, {torch.get_num_threads()} threads")
    for precision in ("float32", "bf16"):
        print(f"{precision}, forward and backward")
        forms = {"norms of every map": plain, "norms in convolutions": folded}
        compare(
            {name: partial(training_pass, form, images, precision) for name, form in forms.items()},
            device,
            arguments.rounds,
        )


if __name__ == "__main__":
    main()
