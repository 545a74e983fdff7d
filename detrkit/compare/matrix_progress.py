"""How a matrix of trainings is shown while it goes on: a live table in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from detrkit.compare.matrix import Job
from detrkit.engine.progress import duration
from detrkit.runs.history import RecordError, read_metrics
from detrkit.runs.run_folder import RunFolder

SECONDS_BETWEEN_LINES = 60.0


@dataclass
class _Standing:
    """Where one training stands, by its metrics."""

    job: Job
    seen: tuple[int, int] | None = None
    """the metrics' time and size when they were last read"""
    train: dict[str, Any] | None = None
    evaluate: dict[str, Any] | None = None
    start: tuple[float, float] | None = None
    """when the first line was read of this start, and the share done then"""

    def update(self) -> bool:
        """Read the metrics again if they changed; whether there is another evaluation now.

        Always from their beginning: a training that goes on takes them back to its checkpoint and writes on from there.
        """
        path = self.job.folder / RunFolder.METRICS
        if not path.is_file():
            return False
        stat = path.stat()
        if (now := (stat.st_mtime_ns, stat.st_size)) == self.seen:
            return False
        self.seen, before = now, self.evaluate
        try:
            last = {line["kind"]: line for line in read_metrics(self.job.folder)}
        except RecordError:
            return False  # what is damaged is told when the training has ended
        self.train, self.evaluate = last.get("train"), last.get("evaluate")
        if self.start is None and self.job.state == "running" and (self.train or self.evaluate):
            self.start = time.monotonic(), self.share
        return self.evaluate is not None and self.evaluate != before

    @property
    def share(self) -> float:
        """How much of the training is done. Steps tell it once an epoch has been evaluated, epochs until then."""
        done = (self.train or {}).get("step", 0)
        if self.evaluate:
            steps_per_epoch = self.evaluate["step"] / self.evaluate["epoch"]
            return min(1.0, max(done, self.evaluate["step"]) / steps_per_epoch / self.job.epochs)
        return (self.train["epoch"] - 1) / self.job.epochs if self.train else 0.0

    def left(self) -> str:
        """The time that is left at the pace so far; "" while nothing is known."""
        if self.start is None or self.share <= self.start[1]:
            return ""
        since, share = self.start
        return duration((time.monotonic() - since) * (1 - self.share) / (self.share - share))

    def ap(self) -> str:
        """The last AP in percent."""
        value = (self.evaluate or {}).get("AP")
        return "" if value is None else f"{100 * value:.1f}"

    def epoch(self) -> str:
        epoch = max((self.train or {}).get("epoch", 0), (self.evaluate or {}).get("epoch", 0))
        return f"{epoch}/{self.job.epochs}"

    def loss(self) -> str:
        return f"{self.train['loss']:.3g}" if self.train and self.train.get("loss") is not None else ""


class MatrixProgress:
    """Shows jobs on a console; to be called with all of them again and again."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._standings: dict[int, _Standing] = {}
        self._states: dict[int, str] = {}
        self._told: dict[int, float] = {}
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> MatrixProgress:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            standing = self._standings.setdefault(id(job), _Standing(job))
            evaluated = job.state != "waiting" and standing.update()
            self._say_changes(jobs, standing, evaluated)
        if self._live:
            self._live.update(self._table(jobs), refresh=True)

    def _say_changes(self, jobs: Sequence[Job], standing: _Standing, evaluated: bool) -> None:
        job, key = standing.job, id(standing.job)
        before, self._states[key] = self._states.get(key), job.state
        if before is None and job.state == "done":
            return  # finished long ago
        if job.state != before and job.state != "waiting":
            done = sum(other.state == "done" for other in jobs)
            words = {
                "running": f"training, output in {job.output}",
                "elsewhere": "is being trained by another process; waiting for it",
                "done": f"done, AP {standing.ap() or '-'}  ({done} of {len(jobs)})",
                "failed": f"failed ({job.note}); see {job.output}",
                "stopped": f"stopped ({job.note})",
            }
            self._print(job, words[job.state], style={"failed": "red", "stopped": "yellow"}.get(job.state))
            self._told[key] = time.monotonic()
        elif job.state == "running" and not self._live:
            now = time.monotonic()
            if evaluated or now - self._told.get(key, now) >= SECONDS_BETWEEN_LINES:
                self._told[key] = now
                parts = [f"epoch {standing.epoch()}"]
                parts += [f"loss {standing.loss()}"] if standing.loss() else []
                parts += [f"AP {standing.ap()}"] if standing.ap() else []
                parts += [f"{standing.left()} left"] if standing.left() else []
                self._print(job, "  ".join(parts))

    def _print(self, job: Job, text: str, style: str | None = None) -> None:
        self._console.print(
            f"{time.strftime('%H:%M:%S')}  {job.folder.name}  {text}",
            style=style,
            highlight=False,
            markup=False,
            soft_wrap=True,
        )

    def _table(self, jobs: Sequence[Job]) -> Table:
        counts = {state: sum(job.state == state for job in jobs) for state in ("done", "waiting", "failed")}
        title = f"{counts['done']} of {len(jobs)} done, {counts['waiting']} waiting"
        title += f", {counts['failed']} failed" if counts["failed"] else ""
        table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
        table.add_column("run", no_wrap=True, overflow="ellipsis", max_width=36)
        for name in ("epoch", "loss", "AP"):
            table.add_column(name, justify="right")
        table.add_column("")
        table.add_column("left", justify="right")
        for job in jobs:
            if job.state not in ("running", "elsewhere"):
                continue
            standing = self._standings[id(job)]
            bar = ProgressBar(total=1.0, completed=standing.share, width=20)
            note = "stopping" if job.note == "stopping" else standing.left()
            table.add_row(job.folder.name, standing.epoch(), standing.loss(), standing.ap(), bar, note)
        return table
