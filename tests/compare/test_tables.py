"""Tables as LaTeX and in HTML, and their order."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from detrkit.cli.sheets import print_sheet
from detrkit.compare.files import _to_csv, to_markdown
from detrkit.compare.latex import escaped, to_latex
from detrkit.compare.page import make_page
from detrkit.compare.table import Sheet, order_of
from detrkit.errors import UserError

SHEET = Sheet(
    "Differences to a_b in 100 %",
    ("recipe", "AP", "95 %"),
    (("a_b", "43.1 ±0.4", "-"), ("x#1", "-1.2 *", "[-2.1, +0.3]"), ("z", "+2.0 [-0.1, +4.1]", ">1000")),
    ("of 3 seeds & 40 images", r"C:\runs ~ {^}"),
)


def test_latex_has_the_form_that_was_compiled():
    r"""With pdfTeX 1.40.24 and booktabs such a file compiles without a warning and looks as it should."""
    lines = to_latex([SHEET]).splitlines()
    assert lines[0].startswith("% ")
    assert lines[1:] == [
        r"\begin{table}",
        r"\centering",
        r"\caption{Differences to a\_b in 100 \%}\smallskip",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        r"\begin{tabular}{lrr}",
        r"\toprule",
        r"recipe & AP & 95 \% \\",
        r"\midrule",
        r"a\_b & 43.1 $\pm$0.4 & -- \\",
        r"x\#1 & $-$1.2$^{*}$ & {[$-$2.1, $+$0.3]} \\",
        r"z & $+$2.0 [$-$0.1, $+$4.1] & \textgreater{}1000 \\",
        r"\bottomrule",
        r"\end{tabular}}",
        "",
        r"\smallskip{\footnotesize of 3 seeds \& 40 images\par}",
        "",
        r"\smallskip{\footnotesize C:\textbackslash{}runs \textasciitilde{} \{\textasciicircum{}\}\par}",
        r"\end{table}",
    ]


def test_latex_of_any_text_is_balanced_and_has_nothing_special_left():
    text = escaped(r"""a\b&c%d$e#f_g{h}i~j^k<l>m|n"o±p""")
    left = re.sub(r"\\text[a-z]+\{\}|\\[&%$#_{}]|\$\\pm\$", "", text)
    assert left == "abcdefghijklmnop"


def test_a_spreadsheet_takes_no_title_for_a_formula():
    """And numbers, and lists of numbers, stay what they are."""
    row = {"title": "=1+1", "recipe": "-a", "x": "@b", "low": -0.5, "by_seed": "-0.1 +2e-05", "text": "a=b"}
    assert _to_csv([row]).splitlines()[1] == "'=1+1,'-a,'@b,-0.5,-0.1 +2e-05,a=b"


def test_latex_options_keep_their_hyphens():
    assert escaped("--run, a---b") == "-{}-run, a-{}-{}-b"


def test_latex_signs_are_signs_only_before_numbers():
    row = to_latex([Sheet("t", ("recipe", "x"), (("sap-detr-1", "10-20"), ("-3", "1e-5")))]).splitlines()
    assert r"sap-detr-1 & 10-20 \\" in row
    assert r"$-$3 & 1e-5 \\" in row


def test_order_by_numbers_is_falling_with_what_has_none_last():
    assert order_of([SHEET], "AP") == ["a_b", "z", "x#1"]
    assert order_of([SHEET], "ap") == ["a_b", "z", "x#1"]
    assert order_of([SHEET], "95 %") == ["z", "x#1", "a_b"]
    assert order_of([SHEET], "recipe") == ["a_b", "x#1", "z"]
    with pytest.raises(UserError, match=r"--sort AQ is no column.*; there are recipe, AP, 95 %"):
        order_of([SHEET], "AQ")


def test_more_than_a_thousand_stands_above_all_numbers():
    rows = tuple(zip("abcd", ("3", ">1000", "-", "16"), strict=True))
    assert order_of([Sheet("t", ("recipe", "seeds needed"), rows)], "seeds needed") == list("bdac")


def test_the_first_table_with_a_column_decides():
    other = Sheet("other", ("recipe", "AP", "ms"), (("z", "9", "1.0"), ("a_b", "1", "2.0")))
    assert order_of([SHEET, other], "AP") == ["a_b", "z", "x#1"]
    assert order_of([SHEET, other], "ms") == ["a_b", "z"]


def test_names_that_begin_with_a_number_are_texts():
    names = ("b", "10_dab", "a", "2_full")
    sheet = Sheet(
        "t", ("recipe", "AP", "run"), tuple((n, "1.0", f"2026/{n}") for n in names), places={"2026/a": "2026/a"}
    )
    assert order_of([sheet], "recipe") == ["10_dab", "2_full", "a", "b"]
    page = make_page([sheet], {}, Path())
    assert '<tr><td class="text">b</td><td>1.0</td><td class="text">2026/b</td></tr>' in page


def test_runs_are_linked_from_where_the_page_lies(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("runs/a b", "runs/c&d"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "runs" / "a b" / "report.html").touch()
    names = ("runs/a b", "runs/c&d", "runs/gone")
    sheet = Sheet("Runs", ("run",), tuple((name,) for name in names), places={name: name for name in names})
    page = make_page([sheet], {}, tmp_path / "out" / "deep")
    assert '<a href="../../runs/a%20b/report.html">runs/a b</a>' in page
    assert '<a href="../../runs/c%26d">runs/c&amp;d</a>' in page
    assert '<td class="text">runs/gone</td>' in page


NAMES = ("a_recipe_with_a_long_name_that_somebody_gave_it", "b")


def test_markdown_shows_names_that_look_like_html():
    text = to_markdown([Sheet("Differences to <b>", ("recipe", "x"), (("<b>&|", "-0.1"),), ("to <b>",))])
    assert text == "## Differences to \\<b>\n\n| recipe | x |\n| --- | ---: |\n| \\<b>&\\| | -0.1 |\n\nto \\<b>\n"


INTERVALS = Sheet(
    "Differences to b in costs of errors",
    ("recipe", "classification", "seeds and images", *(f"kind {number}" for number in range(4))),
    tuple((name, *("+10.25 [-0.51, +20.68] *" for _ in range(6))) for name in NAMES),
    ("a note",),
)


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_no_number_is_cut_in_a_terminal(width):
    """Half an interval says something else than the whole."""
    file = io.StringIO()
    print_sheet(Console(file=file, width=width, force_terminal=True, color_system=None), INTERVALS)
    shown = file.getvalue()
    assert "…" not in shown
    assert shown.count("+10.25 [-0.51, +20.68] *") == 12
    assert shown.count(NAMES[0]) == 1
    assert " ".join(shown.split()).startswith("Differences to b in costs of errors")
    if width < 200:
        assert max(len(line.rstrip()) for line in shown.splitlines() if NAMES[0] not in line) <= width
        assert len(re.findall(r"(?m)^  2 ", shown)) == (1 + len(re.findall(r"(?m)^recipe ", shown)))
