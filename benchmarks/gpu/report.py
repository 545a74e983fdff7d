"""The results for people: a summary on the terminal, and a Markdown page."""

from __future__ import annotations

import datetime
from textwrap import shorten

from gpu.checks import CHECKS
from gpu.record import Record

OWN = ("check", "what", "time", "name")


def summary(record: Record) -> str:
    """A line for each result."""
    lines = []
    for check in CHECKS:
        lines.append(f"\n{check.title}: {record.state(check.name) or 'not run'}")
        lines += [
            f"  {_name(line)}: {shorten(_values(line), 240, placeholder=' ...')}" for line in record.latest(check.name)
        ]
    return "\n".join(lines)


def page(record: Record) -> str:
    """A Markdown page: a table for each check, and what failed with the end of its output."""
    machine = next((line for line in record.latest("machine.machine") if line["what"] == "machine"), {})
    kind = "A rehearsal with tiny sizes; its figures mean nothing. " if machine.get("tiny") else ""
    parts = [f"# {machine.get('device', 'No machine')}, {datetime.date.today()}", f"{kind}{_values(machine)}"]
    for check in CHECKS:
        parts.append(f"## {check.title}")
        if rows := record.latest(check.name):
            parts.append(_table(rows))
        end = next((line for line in reversed(record.lines(check.name)) if line["what"] == "end"), None)
        if end is None:
            parts.append("Not run.")
        elif end["state"] != "done":
            why = "\n".join(f"    {line}" for line in end.get("why", "").splitlines())
            parts.append(f"{end['state'].capitalize()} after {end['seconds']} s:\n\n{why}")
    return "\n\n".join(parts) + "\n"


def _table(rows: list[dict]) -> str:
    """Plain values in columns; lists and errors stand below."""
    columns = list(dict.fromkeys(key for row in rows for key, value in row.items() if _is_plain(key, value)))
    lines = [["what", *columns], ["---"] * (len(columns) + 1)]
    lines += [[_name(row), *(_shown(row.get(key, "")) for key in columns)] for row in rows]
    below = [
        f"{_name(row)}, {key}:\n\n" + "\n".join(f"    {one}" for one in (value if isinstance(value, list) else [value]))
        for row in rows
        for key, value in row.items()
        if key not in OWN and not _is_plain(key, value) and value not in ([], {}, "")
    ]
    return "\n\n".join(["\n".join("| " + " | ".join(line) + " |" for line in lines), *below])


def _is_plain(key: str, value: object) -> bool:
    return key not in (*OWN, "failed") and not isinstance(value, list | dict)


def _name(line: dict) -> str:
    return line.get("name") or line["what"]


def _shown(value: object) -> str:
    return str(value).replace("|", "/").replace("\n", " ")


def _values(line: dict) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {_shown(value)}" for key, value in line.items() if key not in OWN)
