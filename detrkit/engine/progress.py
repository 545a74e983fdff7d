"""What a person sees while a run goes on: a live bar in a terminal, plain lines elsewhere and in log.txt."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.text import Text

from detrkit.engine.workload import Workload
from detrkit.runs.run_folder import RunFolder

SECONDS_BETWEEN_LINES = 5.0
ROOM = 100  # columns of a terminal in which epochs, steps and pace of a long training stand in one line


@dataclass(frozen=True)
class Status:
    """A moment of the run."""

    step: int
    """steps done"""
    epoch: int
    """from 1"""
    losses: Mapping[str, float]
    rate: float
    images_per_second: float
    memory: float
    """GB: of the GPU, or of this process"""
    seconds_left: float | None

    def learning(self) -> str:
        """The loss with its parts of the last layer."""
        total = self.losses.get("total", float("nan"))
        parts = " ".join(f"{name} {value:.3g}" for name, value in last_layer(self.losses).items())
        return f"loss {total:.4g} ({parts})"

    def pace(self) -> str:
        """Rate, speed, memory and time left."""
        left = "" if self.seconds_left is None else f"  {duration(self.seconds_left)} left"
        return f"rate {self.rate:.2g}  {self.images_per_second:.3g} images/s  {self.memory:.1f} GB{left}"

    def __str__(self) -> str:
        return f"{self.learning()}  {self.pace()}"


class _Bars(Progress):
    """Bars with lines of text below them, which may be as wide as the terminal."""

    text = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.text:
            # An ellipsis that is written as \u2026 would make the line longer than the terminal, which folds it.
            known = self.console.encoding.startswith("utf")
            yield Text(self.text, no_wrap=True, overflow="ellipsis" if known else "crop")


class Reporter:
    """Prints to a console and to the run's log.txt; silent in every process but the first.

    Args:
        console: where to print; None for nowhere (log.txt is written all the same)
        run: None in processes that have nothing to say
    """

    def __init__(self, *, run: RunFolder | None, console: Console | None) -> None:
        self._run = run
        self._console = console if run is not None else None
        self._live: _Bars | None = None
        self._roomy = True
        self._task: TaskID | None = None
        self._workload: Workload | None = None
        self._last_line = 0.0

    def say(self, text: str, style: str | None = None) -> None:
        """Print a line for good."""
        if self._console is not None:
            self._console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)
        if self._run is not None:
            self._run.print(text)

    def warn(self, text: str) -> None:
        """Print a warning."""
        self.say(f"warning: {text}", style="yellow")

    def start(self, workload: Workload, step: int) -> None:
        """Begin to show progress, at `step` steps done."""
        self._workload = workload
        if self._console is not None and self._console.is_terminal:
            bar = (TextColumn("{task.description}"), BarColumn(bar_width=16), MofNCompleteColumn())
            self._roomy = self._console.width >= ROOM
            pace = (TextColumn("{task.fields[pace]}"),) if self._roomy else ()  # else it would cut the steps short
            self._live = _Bars(*bar, *pace, console=self._console)
            self._task = self._live.add_task("train", total=workload.total_steps, completed=step, pace="")
            self._live.start()

    def show(self, status: Status) -> None:
        """Show a step, where there is something live to show it on."""
        if self._live is not None:
            assert self._workload is not None
            assert self._task is not None  # all three come with `start`
            self._live.text = status.learning() if self._roomy else f"{status.pace()}\n{status.learning()}"
            description = f"epoch {status.epoch}/{self._workload.epochs}"
            self._live.update(self._task, completed=status.step, description=description, pace=status.pace())

    def line(self, status: Status) -> None:
        """Write a line of the log; on a console without a bar not more often than every few seconds."""
        assert self._workload is not None  # nothing is logged before `start`
        steps = self._workload.total_steps
        text = f"epoch {status.epoch}/{self._workload.epochs}  step {status.step}/{steps}  {status}"
        last = status.step == steps
        if self._run is not None:
            self._run.print(text)
        if self._console is not None and self._live is None:
            now = time.monotonic()
            if last or now - self._last_line >= SECONDS_BETWEEN_LINES:
                self._last_line = now
                self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def evaluation(self) -> Callable[[int, int], None] | None:
        """A callback for the progress of an evaluation, to be called with (done, of); None if nothing is live."""
        live = self._live
        if live is None:
            return None
        task = live.add_task("evaluate", total=None, pace="")

        def update(done: int, of: int) -> None:
            live.update(task, completed=done, total=of)
            if done >= of:
                live.remove_task(task)

        return update

    def stop(self) -> None:
        """Take the bar away."""
        if self._live is not None:
            self._live.stop()
            self._live = None


class Clock:
    """Measures speed and guesses the time that is left. Evaluations and checkpoints are timed apart from steps."""

    def __init__(self) -> None:
        self._steps = 0
        self._step_seconds = 0.0
        self._recent: list[tuple[float, int]] = []
        self._pauses: list[float] = []
        self._mark = time.monotonic()
        self.begun = self._mark

    def step(self, images: int) -> None:
        """A step is done."""
        now = time.monotonic()
        self._recent = [*self._recent[-19:], (now - self._mark, images)]
        self._steps += 1
        self._step_seconds += now - self._mark
        self._mark = now

    def evaluated(self) -> None:
        """What passed since the last step was an evaluation."""
        now = time.monotonic()
        self._pauses.append(now - self._mark)
        self._mark = now

    def images_per_second(self) -> float:
        """Over the last 20 steps of this process."""
        seconds = sum(s for s, _ in self._recent)
        return sum(n for _, n in self._recent) / seconds if seconds > 0 else 0.0

    def minutes(self) -> float:
        """Since the clock was made."""
        return (time.monotonic() - self.begun) / 60

    def left(self, steps: int, evaluations: int) -> float | None:
        """Seconds that so many steps and evaluations will take; None while nothing is known."""
        if self._steps < 3:
            return None
        pause = sum(self._pauses) / len(self._pauses) if self._pauses else 0.0
        return steps * self._step_seconds / self._steps + evaluations * pause


def memory_gb(device: torch.device) -> float:
    """Peak memory in GB: what PyTorch held on the GPU, or what this process held (0 on Windows)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    if sys.platform == "win32":
        return 0.0
    import resource  # which Windows does not have

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else 1024 * peak / 1e9  # Linux counts kibibytes


def last_layer(losses: Mapping[str, float]) -> dict[str, float]:
    """The loss terms of the last layer, without the total."""
    return {name: value for name, value in losses.items() if "." not in name and name != "total"}


def duration(seconds: float) -> str:
    """12:31, or 1:02:03."""
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"
