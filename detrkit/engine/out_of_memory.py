"""What is said where a GPU has no memory for a step."""

from __future__ import annotations

import json
from collections.abc import Sequence

from detrkit.data import Batch
from detrkit.engine.workload import Workload
from detrkit.errors import UserError
from detrkit.runs.run_folder import RunFolder
from detrkit.wording import counted


def no_memory_for(
    batch: Batch, said: str, *, step: int, workload: Workload, run: RunFolder, keeping: Sequence[str]
) -> UserError:
    """An error that says how much a step would take at once, and what needs less.

    Args:
        said: what PyTorch said.
        step: steps done before it.
        keeping: parts of the detector whose layers keep what they compute, and need not.
    """
    at_once = min(workload.micro_batch, len(batch.targets))
    height, width = batch.images.shape[-2:]
    if at_once > 1:
        less = f"train.micro_batch={at_once // 2}"
        again = f"{run.way_on} {less}" if run.exists else run.way_on
        remedy = f"{less} takes the batch in smaller pieces, for the same gradient. Go on:\n{again}"
    else:
        remedy = "It takes one image at a time already; smaller images or a smaller detector need less."
    if keeping:
        again = f"'train.recompute={json.dumps(list(keeping))}'"
        remedy += f"\nLayers that compute again what they would keep need less, too, and more time: {again}"
    return UserError(
        f"step {step + 1} of {workload.total_steps} does not fit into the GPU's memory: "
        f"{counted(at_once, 'image')} of up to {height} x {width} pixels at once.\n{remedy}\n{said}"
    )
