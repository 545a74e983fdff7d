"""The numbers of the steps: summed up, shown, and written down every few steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from detrkit.engine.options import TrainOptions
from detrkit.engine.progress import Clock, Reporter, Status, memory_gb
from detrkit.engine.schedule import rate_factor
from detrkit.engine.workload import Workload
from detrkit.losses.base import BESIDE
from detrkit.runs.run_folder import RunFolder

LEFT_OUT = "left_out"  # updates that were not made, among the steps of a line


class Meter:
    """Keeps the means since the last line of metrics. They go into the checkpoint, so that a resumed run writes
    the lines that the uninterrupted one would have written.

    Args:
        run: where the lines go; None in processes that write nothing
    """

    def __init__(
        self,
        *,
        options: TrainOptions,
        workload: Workload,
        device: torch.device,
        run: RunFolder | None,
        reporter: Reporter,
    ) -> None:
        self.clock = Clock()
        self._options, self._workload, self._device = options, workload, device
        self._run, self._reporter = run, reporter
        self._sums: dict[str, float] = {}
        self._count = 0
        self._bad_costs = 0  # of the whole run

    def add(self, done: int, values: Mapping[str, float], *, bad_costs: int) -> None:
        """Take the numbers of the step that makes `done` steps done.

        Args:
            values: losses by name, `norm` and, in float16, `loss_scale`; a norm that is not finite is that of an update
                which was left out, since that scale was too high
            bad_costs: how many of its matching costs were not finite, in all processes
        """
        self._bad_costs += bad_costs
        kept = values if math.isfinite(values["norm"]) else {**values, "norm": 0.0, LEFT_OUT: 1.0}
        for name, value in kept.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1
        if self._run is not None:
            self._reporter.show(self._status(done, values))
        if done % self._options.log_every == 0 or done == self._workload.total_steps:
            means = {name: value / self._count for name, value in self._sums.items()}
            left_out = round(self._sums.get(LEFT_OUT, 0.0))
            made = self._count - left_out
            further: dict[str, Any] = {"norm": self._sums["norm"] / made if made else None}
            if "loss_scale" in values:
                further |= {"loss_scale": values["loss_scale"], LEFT_OUT: left_out}
            self._sums, self._count = {}, 0
            if self._run is not None:
                self._write(self._run, self._status(done, means), further)

    def state(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"sums": dict(self._sums), "count": self._count, "bad_costs": self._bad_costs}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._sums, self._count, self._bad_costs = dict(state["sums"]), state["count"], state["bad_costs"]

    def _write(self, run: RunFolder, status: Status, further: Mapping[str, Any]) -> None:
        run.log(
            "train",
            status.step,
            {
                "epoch": status.epoch,
                "loss": status.losses["total"],
                "losses": {name: value for name, value in status.losses.items() if name != "total"},
                **further,
                "rate": status.rate,
                "images_per_second": round(status.images_per_second, 3),
                "memory_gb": round(status.memory, 3),
                "bad_costs": self._bad_costs,
            },
        )
        self._reporter.line(status)

    def _status(self, done: int, values: Mapping[str, float]) -> Status:
        per_epoch, epochs = self._workload.steps_per_epoch, self._options.epochs
        factor = rate_factor(done - 1, steps_per_epoch=per_epoch, options=self._options)
        every = self._options.evaluate_every or epochs
        evaluations = -(-epochs // every) - (done // per_epoch) // every
        return Status(
            step=done,
            epoch=(done - 1) // per_epoch + 1,
            losses={name: value for name, value in values.items() if name not in BESIDE},
            rate=self._options.learning_rate * factor,
            images_per_second=self.clock.images_per_second(),
            memory=memory_gb(self._device),
            seconds_left=self.clock.left(self._workload.total_steps - done, evaluations),
        )
