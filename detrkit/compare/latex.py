"""Tables as LaTeX, with the rules of the package booktabs."""

from __future__ import annotations

import re
from collections.abc import Sequence

from detrkit.compare.table import NOTHING, Sheet

# What LaTeX reads otherwise in text.
_ESCAPES = {
    "\\": r"\textbackslash{}",
    **{one: "\\" + one for one in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
}
_AS_WIDE = "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%"  # as it is, or as the text
_SIGN = re.compile(r"(?<![\w.}-])([+-])(?=\d)")


def to_latex(sheets: Sequence[Sheet]) -> str:
    """Each table as a `table` with its title as caption and its notes below: to be `\\input` into a document."""
    head = "% Wants \\usepackage{booktabs}, \\usepackage{graphicx} and \\usepackage[T1]{fontenc}; \\input this file.\n"
    return head + "\n".join(_table(sheet) for sheet in sheets)


def _table(sheet: Sheet) -> str:
    lines = [
        "\\begin{table}",
        "\\centering",
        f"\\caption{{{escaped(sheet.title)}}}\\smallskip",
        _AS_WIDE,
        f"\\begin{{tabular}}{{l{'r' * (len(sheet.columns) - 1)}}}",
        "\\toprule",
        _row(sheet.columns),
        "\\midrule",
        *(_row(row) for row in sheet.rows),
        "\\bottomrule",
        "\\end{tabular}}",
        *(f"\n\\smallskip{{\\footnotesize {escaped(note)}\\par}}" for note in sheet.notes),
        "\\end{table}\n",
    ]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return " & ".join("--" if cell == NOTHING else _number(cell) for cell in cells) + r" \\"


def _number(cell: str) -> str:
    """A cell with its signs as signs, not hyphens, its mark raised, and no bracket that `\\\\` before it would take."""
    text = _SIGN.sub(r"$\1$", escaped(cell).replace(" *", "$^{*}$"))
    return f"{{{text}}}" if text.startswith("[") else text


def escaped(text: str) -> str:
    """A text as LaTeX shows it. Two hyphens of an option stay two, and do not become a dash."""
    return re.sub("-(?=-)", "-{}", "".join(_ESCAPES.get(letter, letter) for letter in text))
