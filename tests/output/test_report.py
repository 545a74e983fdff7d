"""`detrkit report`: one page about a trained detector, opened in a real browser."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from detrkit.cli.report import _page
from detrkit.drawing.faults import Faults
from detrkit.drawing.page import STYLE, html_chart, html_notes, html_page, html_section, html_table
from detrkit.drawing.saving import picture_bytes
from detrkit.errors import UserError
from detrkit.evaluation.at_threshold import Tally
from detrkit.report.charts import draw_training, epochs_at
from detrkit.report.findings import typed
from detrkit.report.page import HEAT, _matrix, _thresholds
from detrkit.report.pictures import worst_and_best
from detrkit.wording import score, short

from ..browser import opened
from .test_cli_output import call, run  # noqa: F401  (the fixture)


@pytest.fixture(scope="module")
def page(run):  # noqa: F811
    """The report of a small detector, on a data set whose images it gets wrong."""
    lines = [
        {"kind": "train", "step": 2, "epoch": 1, "loss": 9.0, "losses": {"class": 0.5, "class.0": 0.6, "box": 0.2}},
        {"kind": "evaluate", "step": 4, "epoch": 2, "minutes": 3.0, "AP": 0.1, "AP50": 0.2, "AP75": None},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    told = call("report", run, "--images", 2, "--threshold", 0.05)
    (run / "metrics.jsonl").unlink()
    path = run / "report.html"
    assert f"wrote {path}" in told.stdout
    assert "on cpu, val split, fp32" in told.stdout
    return path


def test_holds_everything_and_asks_for_nothing(page):
    text = page.read_text(encoding="utf-8")
    for title in ("Average precision and recall", "Training", "Classes", "Kinds of errors", "Confusion", "Recipe"):
        assert f"<h2>{title}</h2>" in text or f"<summary>{title}</summary>" in text, title
    assert not re.findall(r'(?:src|href|srcset)="(?!data:)', text)
    assert "Trained for 3 minutes" in text
    assert "on the val split, in fp32." in text  # in bf16 the numbers are others
    assert "data:image/jpeg" in text


def test_a_click_on_a_title_sorts_in_a_browser(page, tmp_path):
    """Classes by AP, then by name; a dash, no number, comes last either way."""
    script = """
    const table = [...document.querySelectorAll("table.sortable")].find(one => one.tHead.textContent.includes("AR100"));
    const cells = column => [...table.tBodies[0].rows].map(row => row.cells[column].textContent);
    const head = column => table.tHead.rows[0].cells[column].firstChild;
    const told = {};
    head(13).click(); told.falling = cells(13); told.sort = table.tHead.rows[0].cells[13].ariaSort;
    head(13).click(); told.rising = cells(13);
    head(0).click(); told.names = cells(0);
    told.loaded = [...document.images].every(image => image.naturalWidth > 0);
    document.body.innerHTML = "<pre>" + JSON.stringify(told) + "</pre>";
    """
    document = opened(page, script, tmp_path)
    assert "data-error" not in document
    told = json.loads(re.search(r"<pre>(.*)</pre>", document, re.DOTALL).group(1))
    missed = [int(cell) for cell in told["falling"]]
    assert missed == sorted(missed, reverse=True)
    assert len(set(missed)) > 1
    assert told["sort"] == "descending"
    assert [int(cell) for cell in told["rising"]] == sorted(missed)
    assert told["names"] == sorted(told["names"])
    assert told["loaded"]


def test_cells_without_a_number_come_last(tmp_path):
    """However a column is sorted; and what stands behind a number does not matter."""
    rows = [["a", "9.5 ±2"], ["b", "-"], ["c", "10.1"], ["d", "-2"], ["e", "[+9.6, +12]"]]
    path = tmp_path / "page.html"
    path.write_text(html_page("T", html_table(["name", "value"], rows)), encoding="utf-8")
    script = """
    const table = document.querySelector("table"), told = [];
    for (let click = 0; click < 2; click++) {
      table.tHead.rows[0].cells[1].firstChild.click();
      told.push([...table.tBodies[0].rows].map(row => row.cells[0].textContent).join(""));
    }
    document.body.innerHTML = "<pre>" + told.join(" ") + "</pre>";
    """
    assert "<pre>ceadb daecb</pre>" in opened(path, script, tmp_path)


def test_names_that_begin_with_a_number_are_sorted_as_text():
    """A class "2-wheeler" makes no column of numbers, in which all the others would have no order."""
    row = [["2-wheeler", "3"], ["car", "-"]]
    page = html_table(["class", "AP"], row, texts=["class"])
    assert page.count('class="text"') == 3
    assert '<td class="text">car</td><td>-</td>' in page


def test_names_are_text(tmp_path):
    """Not markup, wherever they stand."""
    page = html_page("<b>", html_table(["<i>"], [["<script>alert(1)</script>"]]))
    assert "<b>" not in page
    assert "<i>" not in page
    assert "<script>alert" not in page


def test_the_points_of_detections_are_kept(run, tmp_path):  # noqa: F811
    """In pixels, one for each: what the page draws."""
    call("evaluate", run, "--out", tmp_path)
    detections = json.loads((tmp_path / "detections.json").read_text())
    assert detections
    assert all(len(one["point"]) == 2 for one in detections)
    points = torch.tensor([one["point"] for one in detections])
    assert points.min() >= 0
    assert points.max() <= 64


def test_what_cannot_be_drawn_is_named_and_the_rest_of_the_page_is_there(run, tmp_path, monkeypatch):  # noqa: F811
    def fail(*arguments, **more):
        raise ValueError("no such\nfont")

    (run / "metrics.jsonl").write_text("[1]\n")
    for name in ("detrkit.report.page.draw_thresholds", "detrkit.report.findings.draw_image"):
        monkeypatch.setattr(name, fail)
    told = call("report", run, "--images", 1, "--threshold", 0, "--out", tmp_path / "a")
    (run / "metrics.jsonl").unlink()
    assert told.exit_code == 1
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    for text in ("the training could not be drawn: ", "Thresholds could not be drawn: ValueError: no such font"):
        assert told.output.count(text) == page.count(text) == 1
    for title in ("Average precision and recall", "Classes", "Kinds of errors", "Thresholds", "Confusion"):
        assert f"<h2>{title}</h2>" in page
    assert "It could not be drawn." in page


@pytest.mark.parametrize("at", ["rep", "rep.v2", "rep.html", "rep.HTM"])
def test_a_page_has_an_ending_that_browsers_go_by(tmp_path, at):
    assert _page(tmp_path / at).name == {"rep": "rep.html", "rep.v2": "rep.v2.html"}.get(at, at)
    (tmp_path / at).mkdir()
    assert _page(tmp_path / at) == tmp_path / at / "report.html"


def test_other_data_and_recipes_are_reported_elsewhere(run):  # noqa: F811
    with pytest.raises(UserError, match="--out"):
        call("report", run, "data.seed=5")
    told = call("report", run, "--split", "test")
    assert (told.exit_code, "'test' is not one of 'val'" in told.output) == (2, True)


def test_worst_and_best():
    tallies = {
        1: Tally(2, 0, 0),
        2: Tally(5, 0, 0),  # more found: better than the first
        3: Tally(0, 3, 1),  # more mistakes: worse than the next
        4: Tally(0, 0, 2),
        5: Tally(1, 1, 0),
        6: Tally(0, 0, 0),  # says nothing
    }
    assert worst_and_best(tallies, 2) == ([3, 4], [2, 1])
    assert worst_and_best(tallies, 9) == ([3, 4, 5], [2, 1])  # an image without mistakes is no bad one
    assert worst_and_best({}, 3) == ([], [])


def test_a_run_that_has_only_begun_has_curves_of_what_there_is():
    assert draw_training([], "light") is None
    begun = [{"kind": "train", "step": 1, "epoch": 1, "loss": None, "losses": {"class": None}}]
    assert draw_training(begun, "dark").startswith(b"\x89PNG")


def test_a_threshold_that_can_be_typed_is_that_one():
    assert [typed(n / 100) for n in range(101)] == [n / 100 for n in range(101)]
    assert (typed(0.2999), typed(0.999999), typed(None)) == (0.29, 0.99, 0.3)
    assert (typed(0.00987), typed(0.0349)) == (0.0098, 0.034)  # 0 would count all that there is


def test_a_threshold_is_told_as_it_was_asked():
    assert [score(one) for one in (0.5, 0.005, 0.0098, 0.333, 1.0)] == ["0.50", "0.005", "0.0098", "0.333", "1.00"]


def test_columns_of_dashes_are_of_numbers_that_lack(tmp_path):
    """They stand to the right, as in the other forms of the table; more than can be counted is a number, too."""
    rows = [["a", "-", ">1000", "never"], ["b", "-", "206", "-"]]
    page = html_table(["class", "AP", "seeds", "epochs"], rows, texts=["class"])
    assert "<td>-</td><td>&gt;1000</td>" in page
    assert '<td class="text">never</td>' in page
    path = tmp_path / "page.html"
    path.write_text(html_page("T", page), encoding="utf-8")
    script = """
    const table = document.querySelector("table");
    table.tHead.rows[0].cells[2].firstChild.click();
    const names = [...table.tBodies[0].rows].map(row => row.cells[0].textContent);
    document.body.innerHTML = "<pre>" + names.join("") + "</pre>";
    """
    assert "<pre>ab</pre>" in opened(path, script, tmp_path)


def test_nothing_is_wider_than_the_screen(tmp_path):
    """Long names break, and give the numbers beside them room; charts keep a size at which they can be read."""
    name, png = "x" * 300, picture_bytes(Image.new("RGB", (1320, 500)), "PNG")
    table = html_table(["class", "AP"], [[name, "1.0"]], texts=["class"])
    body = html_notes([name]) + html_section(name, table) + html_chart({"light": png, "dark": png}, "a chart")
    path = tmp_path / "page.html"
    path.write_text(html_page(name, body), encoding="utf-8")
    script = """
    document.body.style.maxWidth = "390px";
    const wide = [...document.querySelectorAll("h1, h2, p")].filter(one => one.scrollWidth > 390).length;
    const cell = document.querySelector("td").clientWidth, chart = document.querySelector("picture img").clientWidth;
    const told = [document.documentElement.scrollWidth <= innerWidth, wide, cell < innerWidth / 2 + 30, chart >= 600];
    document.body.innerHTML = "<pre>" + told + "</pre>";
    """
    assert "<pre>true,0,true,true</pre>" in opened(path, script, tmp_path)


def test_a_table_has_all_its_columns_on_paper(tmp_path):
    """Which does not scroll: what a screen scrolls over has to be smaller, on A4 too."""
    columns = [
        "class",
        "AP",
        "AP50",
        "AP75",
        "AP small",
        "AP medium",
        "AP large",
        "AR100",
        "precision",
        "recall",
        "objects",
    ]
    table = html_table(columns, [["a class of few words", *(["+20.7 [+16.0, +25.5]"] * 10)]], texts=["class"])
    page = html_page("T", html_section("Classes", table))
    path = tmp_path / "page.html"
    script = """
    document.body.style.width = "680px";
    const wide = document.querySelector(".wide"), rows = document.querySelector("table").offsetWidth;
    document.body.innerHTML = "<pre>" + [getComputedStyle(wide).overflowX, rows <= wide.clientWidth] + "</pre>";
    """
    path.write_text(page, encoding="utf-8")
    assert "<pre>auto,false</pre>" in opened(path, script, tmp_path)
    path.write_text(page.replace("@media print", "@media all"), encoding="utf-8")
    assert "<pre>visible,true</pre>" in opened(path, script, tmp_path)


def test_words_are_not_squeezed_by_the_columns_beside_them(tmp_path):
    """A wide table scrolls before names of two words break, which makes each of a thousand rows two lines high."""
    table = html_table(["class", *"abcdefghijklmno"], [["two words", *["1234567"] * 15]], texts=["class"])
    path = tmp_path / "page.html"
    path.write_text(html_page("T", table), encoding="utf-8")
    script = """
    const row = document.querySelector("tbody tr").offsetHeight, head = document.querySelector("thead tr").offsetHeight;
    document.body.innerHTML = "<pre>" + (row < 1.5 * head) + "</pre>";
    """
    assert "<pre>true</pre>" in opened(path, script, tmp_path)


def test_long_names_leave_the_matrix_its_numbers(tmp_path):
    names = ["a name of sixty letters, as they are found in some data sets", "x" * 60, "c"]
    path = tmp_path / "page.html"
    path.write_text(html_page("T", _matrix(np.eye(3, dtype=int), names, names)), encoding="utf-8")
    script = 'document.body.innerHTML = "<pre>" + document.querySelector("table").offsetWidth + "</pre>";'
    assert int(re.search(r"<pre>(\d+)</pre>", opened(path, script, tmp_path)).group(1)) < 700


def test_numbers_of_the_matrix_can_be_read_on_light_and_on_dark_ground():
    """With 4.5 to 1 in contrast, as WCAG asks, where a cell has all of its row."""
    roots = [dict(re.findall(r"--(\w+): ([^;]+);", root)) for root in re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)]
    assert len(roots) == 2
    for look in (roots[0], roots[0] | roots[1]):
        heat = [int(value) for value in look["heat"].split(",")]
        card = pixel(look["card"])
        cell = [HEAT * hot + (1 - HEAT) * cold for hot, cold in zip(heat, card, strict=True)]
        light, dark = sorted(map(luminance, (cell, pixel(look["ink"]))), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5


def pixel(colour):
    """Red, green and blue of #1f2328 or #fff."""
    digits = colour.removeprefix("#")
    return list(bytes.fromhex(digits if len(digits) == 6 else "".join(2 * one for one in digits)))


def luminance(colour):
    """Of sRGB bytes, as WCAG 2 defines it, from 0 to 1."""
    linear = [v / 12.92 if (v := byte / 255) <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for byte in colour]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_epochs_of_a_run_whose_batch_changed_stand_where_they_ended():
    where = epochs_at([{"step": 10, "epoch": 1}, {"step": 20, "epoch": 2}, {"step": 25, "epoch": 3}])
    assert [where(step) for step in (0, 5, 10, 20, 25, 30)] == [0, 0.5, 1, 2, 3, 4]


@pytest.mark.parametrize("best", [None, 0.5])
def test_a_threshold_is_the_best_only_where_something_is_right(best):
    """Where nothing is, as where there are no objects, it is a guess, and its numbers are not known."""
    numbers = np.full(2, np.nan if best is None else 0.5)
    swept = SimpleNamespace(thresholds=np.array([0.9, 0.5]), precision=numbers, recall=numbers, f1=numbers, best=best)
    right = 0 if best is None else 1
    tally = Tally(right, right, right)
    found = SimpleNamespace(swept=swept, threshold=0.3, chosen=False, by_class={1: tally})
    faults = Faults()
    section = _thresholds(found, faults)
    assert faults == []
    assert ("where F1 is highest: precision 50.0 %, recall 50.0 %" in section) == (best is not None)
    exact = _thresholds(SimpleNamespace(**{**vars(found), "threshold": 0.005}), faults)
    assert "At 0.005," in exact
    assert "predict --threshold 0.005." in exact
    assert ("nothing being right at any threshold: precision unknown, recall unknown" in section) == (best is None)


def test_a_chart_without_ap_says_why(monkeypatch):
    """Of a run that was interrupted in its first epoch, say."""
    told = []
    monkeypatch.setattr("matplotlib.axes.Axes.text", lambda *given, **_: told.append(given[-1]))
    draw_training([{"kind": "train", "step": 2, "epoch": 1, "loss": 9.0}], "light")
    draw_training([{"kind": "evaluate", "step": 4, "epoch": 2, "AP": None, "AP50": None, "AP75": None}], "light")
    draw_training([{"kind": "evaluate", "step": 4, "epoch": 2, "AP": 0.1, "AP50": 0.2, "AP75": None}], "light")
    assert told == ["not evaluated yet", "no objects to measure on"]


def test_minutes_of_a_short_run_are_not_none():
    assert [short(minutes) for minutes in (0.14, 3.0, 9.99, 12.3, 125.0)] == ["0.14", "3", "10", "12", "125"]
