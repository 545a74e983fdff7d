import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from detrkit.drawing import labels
from detrkit.drawing.charts import font_properties, literal, new_figure, to_png
from detrkit.drawing.labels import class_colour, fitted, font_of
from detrkit.drawing.predictions import draw_predictions, image_of

GREY = (128, 128, 128)
NAMES = ("cat", "a name that is very much longer than any picture is wide, as some data sets have it", "Ζεύς")


def picture(width=640, height=512, colour=GREY):
    return Image.new("RGB", (width, height), colour)


def prediction(*boxes, scores=None, labels=None, points=None):
    result = {
        "boxes": torch.tensor(boxes, dtype=torch.float).view(-1, 4),
        "scores": torch.tensor(scores or [0.9] * len(boxes)),
        "labels": torch.tensor(labels or [0] * len(boxes), dtype=torch.long),
    }
    if points is not None:
        result["points"] = torch.tensor(points, dtype=torch.float).view(-1, 2)
    return result


def changed(image, region, ground=GREY):
    """How many pixels of the region (x1, y1, x2, y2) differ from the ground."""
    return int((np.asarray(image.crop(region)) != ground).any(-1).sum())


@pytest.mark.parametrize("ground", [(255, 255, 255), (0, 0, 0), GREY, class_colour(0)])
def test_box_is_drawn_where_it_is_and_seen_on_any_ground(ground):
    drawn = draw_predictions(picture(colour=ground), prediction([200, 150, 400, 350]), NAMES)
    assert drawn.size == (640, 512)
    for edge in ((195, 160, 206, 340), (394, 160, 405, 340), (210, 145, 390, 156), (210, 344, 390, 355)):
        long_side = max(edge[2] - edge[0], edge[3] - edge[1])
        assert changed(drawn, edge, ground) >= 2 * long_side  # at least a line of two pixels
    assert changed(drawn, (210, 160, 390, 340), ground) == 0  # what is in the box stays visible
    assert changed(drawn, (0, 360, 640, 512), ground) == 0
    assert changed(drawn, (200, 110, 400, 146), ground) > 0  # the name, above the box


def test_original_is_not_drawn_upon():
    image = picture()
    draw_predictions(image, prediction([200, 150, 400, 350]), NAMES, truth=prediction([1, 2, 30, 40]))
    assert changed(image, (0, 0, 640, 512)) == 0


def test_low_scores_are_not_drawn():
    both = prediction([20, 20, 90, 90], [300, 300, 400, 400], scores=[0.29, 0.31])
    drawn = draw_predictions(picture(), both, NAMES, threshold=0.3)
    assert changed(drawn, (0, 0, 200, 200)) == 0
    assert changed(drawn, (250, 250, 450, 450)) > 0


def test_points_only_when_asked_and_present():
    with_point = prediction([200, 150, 400, 350], points=[[260, 220]])
    around = (255, 215, 266, 226)
    assert changed(draw_predictions(picture(), with_point, NAMES), around) == 0
    drawn = draw_predictions(picture(), with_point, NAMES, points=True)
    assert drawn.getpixel((260, 220)) == class_colour(0)
    assert changed(drawn, (300, 215, 390, 226)) > 0  # the line to the right side
    without = prediction([200, 150, 400, 350])
    assert changed(draw_predictions(picture(), without, NAMES, points=True), around) == 0


def test_small_image_is_enlarged():
    drawn = draw_predictions(picture(128, 96), prediction([64, 48, 120, 90]), NAMES)
    assert drawn.size == (512, 384)
    assert changed(drawn, (0, 0, 200, 150)) == 0
    assert changed(drawn, (250, 200, 262, 350)) > 200


def test_truth_is_a_panel_of_its_own():
    truth = {"boxes": torch.tensor([[10.0, 300, 100, 400]]), "labels": torch.tensor([0])}
    drawn = draw_predictions(picture(), prediction([500, 100, 600, 200]), NAMES, truth=truth, caption="one")
    assert drawn.width > 2 * 640
    strip = drawn.height - 512
    assert changed(drawn, (0, strip + 295, 110, strip + 405)) > 500
    assert changed(drawn, (480, strip + 80, 620, strip + 220)) == 0  # the detection is not in the left panel
    right = drawn.width - 640
    assert changed(drawn, (right + 490, strip + 80, right + 610, strip + 210)) > 500
    assert changed(drawn, (right, strip + 290, right + 110, strip + 410)) == 0


def test_of_a_wide_image_the_panels_stand_below_each_other():
    """Beside each other a panorama's would be a strip on a page."""
    truth = {"boxes": torch.tensor([[10.0, 20, 100, 60]]), "labels": torch.tensor([0])}
    wide = picture(1200, 100)
    drawn = draw_predictions(wide, prediction([1100, 20, 1190, 60]), NAMES, truth=truth)
    assert drawn.width == 1200
    assert drawn.height > 200
    strip = (drawn.height - 12 - 200) // 2  # the caption above each panel
    assert changed(drawn, (0, strip, 200, strip + 100)) > 200
    assert changed(drawn, (1000, strip, 1200, strip + 100)) == 0
    assert changed(drawn, (1000, drawn.height - 100, 1200, drawn.height)) > 200


@pytest.mark.parametrize("size", [(640, 512), (3, 200), (300, 2), (1, 1)])
def test_odd_boxes_and_sizes(size):
    width, height = size
    odd = prediction(
        [-50, -50, -10, -10],  # outside
        [width - 1, height - 1, width + 500, height + 500],
        [5, 5, 5, 5],  # no area
        [90, 90, 10, 10],  # the wrong way round
        [float("nan"), 0, 1, 1],
        [-1e9, -1e9, 1e9, 1e9],
        labels=[0, 1, 2, 3, 1, -1],
        points=[[-40, -40], [1e6, 1e6], [5, 5], [0, 0], [0, 0], [3, 1]],
    )
    drawn = draw_predictions(picture(*size), odd, NAMES, points=True)
    scale = max(1, 512 / max(size))
    assert drawn.size == tuple(max(1, round(side * scale)) for side in size)  # no box widens the picture
    # Boxes outside become lines at the edge; only the one without a number is not drawn.
    alone = {name: values[[4]] for name, values in odd.items()}
    assert changed(draw_predictions(picture(*size), alone, NAMES, points=True), (0, 0, *drawn.size)) == 0
    for index in (0, 1, 2, 3, 5):
        alone = {name: values[[index]] for name, values in odd.items()}
        assert changed(draw_predictions(picture(*size), alone, NAMES), (0, 0, *drawn.size)) > 0
    both = draw_predictions(picture(*size), odd, NAMES, truth=odd, caption=NAMES[1])
    below = width > 2 * height
    assert both.width >= (1 if below else 2) * drawn.width
    assert both.height > (2 if below else 1) * drawn.height


def test_no_detections_and_other_modes():
    drawn = draw_predictions(picture(), prediction(), NAMES, points=True)
    assert changed(drawn, (0, 0, 640, 512)) == 0
    assert draw_predictions(Image.new("L", (600, 600), 128), prediction(), NAMES).mode == "RGB"


def test_long_name_keeps_its_score():
    font = font_of(14)
    text = fitted(f"{NAMES[1]} 0.87", font, 120)
    assert font.getlength(text) <= 120
    assert text.endswith("0.87")
    assert "…" in text
    assert fitted("cat 0.87", font, 120) == "cat 0.87"


def test_colours_of_the_first_classes_differ():
    colours = np.array([class_colour(label) for label in range(20)], dtype=float)
    apart = np.abs(colours[:, None] - colours[None]).sum(-1) + np.eye(20) * 999
    assert apart.min() > 30
    assert len({class_colour(label) for label in range(80)}) == 80


def test_image_of_undoes_the_normalisation():
    pixels = torch.randint(0, 256, (3, 5, 7), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    normalised = (pixels / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    image = image_of(normalised, mean, std)
    assert image.size == (7, 5)
    assert np.array_equal(np.asarray(image), pixels.permute(1, 2, 0).numpy())


def test_letters_that_the_usual_font_has_not_are_drawn_in_one_of_the_system(monkeypatch):
    """With Pillow's font, which has no Cyrillic, in the usual one's place, and DejaVu as the system's."""
    dejavu = font_of(20).path
    monkeypatch.setattr(labels, "_usual_font", ImageFont.load_default)
    monkeypatch.setattr(labels, "OTHER_FONTS", ("not there.ttf", dejavu))
    assert font_of(20, "звезда 0.9").path == dejavu
    for text in ("cat 0.9", "圆形 of no font here"):
        assert font_of(20, text).path != dejavu
    assert font_properties("звезда").get_file() == dejavu
    assert font_properties("cat") is None


def test_letters_of_no_font_are_drawn_without_a_word(recwarn):
    figure = new_figure(3, 2, "light")
    figure.suptitle(literal("圆形"))
    assert to_png(figure).startswith(b"\x89PNG")
    assert not [str(one.message) for one in recwarn]


def test_drawing_imports_no_matplotlib():
    program = (
        "import sys, torch\n"
        "from PIL import Image\n"
        "from detrkit.predictor import draw_predictions\n"
        "one = {'scores': torch.ones(1), 'labels': torch.zeros(1, dtype=int), 'boxes': torch.ones(1, 4)}\n"
        "draw_predictions(Image.new('RGB', (40, 40)), one, ['größer'])\n"
        "assert 'matplotlib' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
