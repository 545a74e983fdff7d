"""`detrkit show` on small untrained detectors."""

import re
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import detrkit
from detrkit.cli.app import app
from detrkit.errors import UserError
from detrkit.runs.checkpoint import format_categories, write_checkpoint
from detrkit.show.attention_maps import draw_attention, draw_gaussians, draw_heads
from detrkit.show.look import look_at
from detrkit.show.query_paths import draw_cells, draw_paths
from detrkit.show.score_maps import draw_scores
from tests.show.test_recording import SMALL

SHAPES = ["data.type=shapes", "data.image_size=[64, 96]", "data.train_images=2", "data.val_images=4"]


def call(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None:
        raise result.exception
    return result.output


def untrained(folder, name, *overrides):
    recipe = detrkit.load_recipe(name, [*SMALL, "detector.classes=8", *SHAPES, *overrides])
    torch.manual_seed(0)
    detector = detrkit.build_detector(recipe)
    write_checkpoint(folder / "last", weights=detector.state_dict(), average=None, state={}, metadata={})
    (folder / "recipe.toml").write_text(recipe.to_toml())
    (folder / "categories.json").write_text(format_categories(recipe.section("data")().categories))
    return folder


@pytest.fixture(scope="module")
def sap(tmp_path_factory):
    return untrained(tmp_path_factory.mktemp("runs") / "sap", "sap_detr_r50_50ep", "queries.grid=[3, 4]")


def test_salient_run(sap):
    told = call("show", sap, "val:3", "--query", 5, "--layer", 1)
    folder = sap / "shown" / "val_3"
    names = ["cells", "paths", "query_5_layer_1_attention", "query_5_layer_1_heads"]
    names += ["query_5_layer_1_side_directed_gaussian", "scores"]
    assert sorted(path.stem for path in folder.glob("*.png")) == names
    assert all(min(Image.open(path).size) > 300 for path in folder.glob("*.png"))
    page = (folder / "index.html").read_text()
    assert page.count("data:image/png;base64,") == len(names)
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "No detection reaches 0.3" in told
    assert "No grid" not in told
    assert not list(folder.glob(".*"))


def test_run_without_grid_and_gaussians(tmp_path):
    run = untrained(tmp_path / "dab", "dab_detr_r50_50ep", "queries.count=7")
    Image.new("RGB", (90, 70), "orange").save(tmp_path / "a photo.png")
    told = call("show", run, tmp_path / "a photo.png", "--out", tmp_path / "out", "--threshold", 0)
    page = (tmp_path / "out" / "index.html").read_text()
    for gap in ("No grid", "No Gaussian term"):
        assert gap in told
        assert gap in page
    assert not list((tmp_path / "out").glob("*gaussian*"))
    assert list((tmp_path / "out").glob("query_*_layer_2_attention.png"))


def test_a_run_without_a_title(tmp_path):
    run = untrained(tmp_path / "dab", "quickstart_dab", "queries.count=7")
    text = (run / "recipe.toml").read_text()
    (run / "recipe.toml").write_text("\n".join(line for line in text.splitlines() if not line.startswith("title")))
    assert "pictures and index.html written" in call("show", run, "val:1", "--threshold", 0)


def test_a_page_may_be_asked_for_alone(sap, tmp_path):
    assert "pictures on one page, written to" in call("show", sap, "val:3", "--out", tmp_path / "new" / "x.html")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x.html"]
    assert (tmp_path / "new" / "x.html").read_text().count("data:image/png;base64,") == 6


def test_a_picture_that_cannot_be_drawn_is_named_and_the_others_are_there(sap, tmp_path, monkeypatch):
    def fail(*arguments):
        raise ValueError("no such font")

    monkeypatch.setattr("detrkit.show.inside.draw_scores", fail)
    out = tmp_path / "out"
    told = CliRunner().invoke(app, ["show", str(sap), "val:3", "--out", str(out)])
    assert told.exit_code == 1
    text = "Query scores by layer could not be drawn: ValueError: no such font"
    assert told.output.count(text) == (out / "index.html").read_text().count(text) == 1
    assert {path.stem for path in out.glob("*.png")} > {"cells", "paths"}
    assert not (out / "scores.png").exists()


@pytest.mark.parametrize("levels", ["", "4scale_"])
def test_places_of_deformable_attention(tmp_path, levels):
    run = untrained(tmp_path / "run", f"deformable_detr_{levels}r50_50ep", "queries.count=5")
    told = call("show", run, "val:1", "--query", 2, "--layer", 1)
    assert "No attention" not in told
    names = {path.stem for path in (run / "shown" / "val_1").glob("*.png")}
    assert names == {"cells", "paths", "scores", "query_2_layer_1_samples"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["val:9"], "val split has 4 images, with ids from 1 to 4"),
        (["val:1", "--query", 12], "numbered 0 to 11"),
        (["val:1", "--layer", 3], "numbered 1 to 2"),
        (["nowhere.png"], "no such image file"),
        (["3"], "3: no such image file; .* as val:3"),
    ],
)
def test_mistakes_are_named(sap, arguments, message):
    with pytest.raises(UserError, match=message):
        call("show", sap, *arguments, "--out", sap / "never")
    assert not (sap / "never").exists()


@pytest.mark.parametrize("size", [(46, 100), (20, 100)])
def test_of_a_high_image_no_title_is_cut_off_or_lies_over_another(size):
    recipe = detrkit.load_recipe("sap_detr_r50_50ep", [*SMALL, "queries.grid=[3, 4]"])
    torch.manual_seed(3)  # a Gaussian's centre lies outside the image, which makes the longest title
    look = look_at(detrkit.build_detector(recipe).eval(), Image.new("RGB", size, "teal"), ["a", "b", "c"])
    kept, gaussian = look.detections[:8], "side_directed_gaussian"
    for figure in (
        draw_paths(look, kept),
        draw_cells(look, kept),
        draw_scores(look),
        draw_attention(look, 5, 1),
        draw_heads(look, 5, 1),
        draw_gaussians(look, 5, 1, gaussian),
    ):
        figure.draw_without_rendering()
        titles = [axes.title for axes in figure.axes if axes.get_title()]
        whole = [*titles, *([figure._suptitle] if figure._suptitle else [])]
        boxes = [title.get_window_extent() for title in whole]
        assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 for box in boxes)
        assert not any(one.overlaps(other) for one, other in combinations(boxes[: len(titles)], 2))
    strip = replace(look, image=Image.new("RGB", (4, 3000)))
    assert max(draw_cells(strip, kept).get_size_inches()) < 40


def test_look_tells_what_the_detector_predicts():
    recipe = detrkit.load_recipe("sap_detr_r50_50ep", [*SMALL, "queries.grid=[3, 4]"])
    torch.manual_seed(0)
    detector = detrkit.build_detector(recipe).eval()
    image = Image.new("RGB", (96, 64), "teal")
    look = look_at(detector, image, ["a", "b", "c"])
    assert look.path.shape == (3, 12, 2)
    cells = look.cells()
    assert torch.allclose(cells[:, 2:] - cells[:, :2], torch.tensor([1 / 4, 1 / 3]))
    assert [d.query for d in look.detections] == look.scores[-1].argsort(descending=True).tolist()
    assert look.above(2.0) == look.detections[:1]
