"""The results of the suite, a JSON line each, written as soon as they are there."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any


class Record:
    """The folder of the results; lines are `check`, `what` and values, and `what` = "end" says how a check ended."""

    def __init__(self, folder: Path):
        self.folder, self.path, self.log_path = folder, folder / "results.jsonl", folder / "log.txt"
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, check: str, what: str, **values: Any) -> None:
        """Write a line, and print it if it is a result."""
        line = json.dumps({"check": check, "what": what, "time": round(time.time()), **values}, default=str)
        cut_off = self.path.is_file() and self.path.read_bytes()[-1:] not in (b"", b"\n")
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n" * cut_off + line + "\n")
        if what != "end":
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

    def latest(self, check: str) -> list[dict[str, Any]]:
        """What a check found, of each thing the last word; how it ended is left out."""
        found = [line for line in self.lines(check) if line["what"] != "end"]
        return list({(line["what"], line.get("name")): line for line in found}.values())

    def failed(self, check: str) -> list[str]:
        """The names of the things of a check that failed when they were last tried."""
        return [str(line.get("name") or line["what"]) for line in self.latest(check) if "failed" in line]

    def begin_log(self, check: str) -> int:
        """A heading in the file that the checks' output goes to; the place after it."""
        with self.log_path.open("a", encoding="utf-8") as file:
            file.write(f"\n===== {check}, {time.strftime('%H:%M:%S')}\n")
        return self.log_path.stat().st_size

    def tail(self, place: int, characters: int = 2000) -> str:
        """The end of the output from a place on, a traceback if a check failed."""
        return self.log_path.read_bytes()[place:].decode("utf-8", errors="replace")[-characters:]
