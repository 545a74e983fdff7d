"""The results for people: a summary on the terminal, and a Markdown page."""

from __future__ import annotations

import datetime

from gpu.checks import CHECKS
from gpu.record import Record

OWN = ("check", "what", "time", "name")


def summary(record: Record) -> str:
    """A line for each result."""
    lines = []
    for check in CHECKS:
        lines.append(f"\n{check.title}: {record.state(check.name) or 'not run'}")
        for line in record.latest(check.name):
            if line["what"] != "end":
                lines.append(f"  {line.get('name') or line['what']}: {_values(line)[:160]}")
    return "\n".join(lines)


def page(record: Record) -> str:
    """A Markdown page: a table for each check, and what failed with the end of its output."""
    machine = next(iter(record.lines("machine.machine")), {})
    kind = "A rehearsal with tiny sizes; its figures mean nothing. " if machine.get("tiny") else ""
    parts = [f"# {machine.get('device', 'No machine')}, {datetime.date.today()}", f"{kind}{_values(machine)}"]
    for check in CHECKS:
        parts.append(f"## {check.title}")
        rows = [line for line in record.latest(check.name) if line["what"] != "end"]
        if rows:
            body = [f"| {line.get('name') or line['what']} | {_values(line)} |" for line in rows]
            parts.append("\n".join(["| what | found |", "| --- | --- |", *body]))
        end = next((line for line in reversed(record.lines(check.name)) if line["what"] == "end"), None)
        if end is None:
            parts.append("Not run.")
        elif end["state"] != "done":
            why = "\n".join(f"    {line}" for line in end.get("why", "").splitlines())
            parts.append(f"{end['state'].capitalize()} after {end['seconds']} s:\n\n{why}")
    return "\n\n".join(parts) + "\n"


def _values(line: dict) -> str:
    return ", ".join(f"{key} {str(value).replace('|', '/')}" for key, value in line.items() if key not in OWN)
