"""The last steps' batches, kept until their numbers are known to be finite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from detrkit.engine.options import TrainOptions
from detrkit.engine.replay import Settings, write_step
from detrkit.engine.workload import Workload
from detrkit.runs.run_folder import RunFolder
from detrkit.wording import typed
from detrkit.writing import explain


class RecentSteps:
    """What the last two steps were computed of: a step's numbers may come back from the device after the next began.

    Args:
        rank: of this process, each of which writes a file of its own
        metadata: strings that go into the files; with a "recipe" among them a step can be computed again by command
    """

    def __init__(
        self,
        *,
        detector: nn.Module,
        options: TrainOptions,
        workload: Workload,
        precision: str,
        rank: int,
        run: RunFolder,
        metadata: Mapping[str, str],
    ) -> None:
        self.detector, self.options, self.workload = detector, options, workload
        self.precision, self.rank, self.run, self.metadata = precision, rank, run, metadata
        self._steps: dict[int, tuple[Any, float]] = {}

    def add(self, step: int, batch: Any, objects: float) -> None:
        """Remember a step's batch, and the number of objects by which its loss was divided."""
        self._steps = {**dict(list(self._steps.items())[-1:]), step: (batch, objects)}

    def images(self, step: int) -> str:
        """The ids of the step's images, the first 32."""
        batch, _ = self._steps[step]
        return ", ".join(map(str, batch.image_ids[:32]))

    def keep(self, step: int, *, weights_step: int) -> str:
        """Write all that the step depends on, and say how it is computed again.

        weights_step: how many updates the detector's weights have seen by now
        """
        batch, objects = self._steps[step]
        path = self.run.path / "not_finite" / f"step_{step + 1}_process_{self.rank}.safetensors"
        settings = Settings(
            step=step,
            weights_step=weights_step,
            seed=self.options.seed,
            rank=self.rank,
            objects=objects,
            micro_batch=self.workload.micro_batch,
            precision=self.precision,
        )
        try:
            write_step(path, self.detector, batch, settings, self.metadata)
        except OSError as error:
            return f"The step itself could not be kept: {explain(error)}"
        if "recipe" not in self.metadata:
            return f"The step is kept in {path}, for detrkit.engine.replay.compute"
        return f"Where it stops to be finite: detrkit replay {typed(path)}"
