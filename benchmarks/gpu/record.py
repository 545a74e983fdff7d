"""The results of the suite, a JSON line each, written as soon as they are there."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import IO, Any


class Record:
    """The folder of the results; lines are `check`, `what` and values, and `what` = "end" says how a check ended."""

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / "results.jsonl"
        (folder / "logs").mkdir(parents=True, exist_ok=True)

    def add(self, check: str, what: str, **values: Any) -> None:
        """Write a line, and print it."""
        line = json.dumps({"check": check, "what": what, "time": round(time.time()), **values}, default=str)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def end(self, check: str, state: str, seconds: float, why: str = "") -> None:
        """Say how a check ended: "done", "failed" or "stopped"."""
        self.add(check, "end", state=state, seconds=round(seconds, 1), **({"why": why} if why else {}))

    def lines(self, check: str | None = None) -> list[dict[str, Any]]:
        """All lines, or a check's. A line that was cut off, as its process was ended, is left out."""
        if not self.path.is_file():
            return []
        found = []
        for text in self.path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(text))
            except ValueError:
                continue
        return [line for line in found if check is None or line["check"] == check]

    def state(self, check: str) -> str:
        """How it ended last; "" if it never did."""
        return next((line["state"] for line in reversed(self.lines(check)) if line["what"] == "end"), "")

    def is_done(self, check: str) -> bool:
        return self.state(check) == "done"

    def latest(self, check: str) -> list[dict[str, Any]]:
        """What a check found, of each thing the last word."""
        return list({(line["what"], line.get("name")): line for line in self.lines(check)}.values())

    def log(self, check: str) -> IO[str]:
        """The file that a check's output goes to."""
        return (self.folder / "logs" / f"{check}.txt").open("a", encoding="utf-8")

    def tail(self, check: str, characters: int = 3000) -> str:
        """The end of its output, a traceback if it failed."""
        return (self.folder / "logs" / f"{check}.txt").read_text(encoding="utf-8", errors="replace")[-characters:]
