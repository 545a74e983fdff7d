"""Where the files are that annotations name."""

import json
import os
import subprocess
import sys
from pathlib import Path
from unicodedata import normalize

import pytest
from PIL import Image

from detrkit.data.coco_source import image_folder_of, open_annotations
from detrkit.data.files import find_files
from detrkit.engine.data_checks import require_files
from detrkit.errors import DataError

from .conftest import CATEGORIES, box_entry, coco, image_entry


def test_the_image_folder_is_found_by_its_names(tmp_path):
    name = 'größe "1"\\ä.png'
    (tmp_path / "annotations").mkdir()
    (tmp_path / "pictures").mkdir()
    (tmp_path / "other").mkdir()
    images = [image_entry(1, name="lost.png"), image_entry(2, name=name), image_entry(3, name="3.png")]
    file = tmp_path / "annotations" / "a.json"
    for entry in images[1:]:
        Image.new("RGB", (60, 40)).save(tmp_path / "pictures" / entry["file_name"])
    (tmp_path / "other" / "lost.png").touch()
    for ascii_only in (True, False):  # escaped, as json.dump writes it, and as UTF-8
        for some in (images, images[1:2]):
            content = {"images": some, "annotations": [], "categories": CATEGORIES}
            file.write_text(json.dumps(content, ensure_ascii=ascii_only), encoding="utf-8")
            assert open_annotations(file).folder == tmp_path / "pictures"
    with pytest.raises(DataError, match="nowhere: no such folder of images"):
        open_annotations(file, tmp_path / "nowhere")
    file.write_text(file.read_text().replace("größe", "big"))
    with pytest.raises(DataError, match="where are its images"):
        open_annotations(file)
    file.write_text(json.dumps(content | {"images": images}).replace("lost.png", "im\\g.png"))
    with pytest.raises(DataError, match=r"a\.json.*escape"):
        open_annotations(file)


def test_the_image_folder_is_found_however_names_are_written(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (60, 40)).save(tmp_path / "images" / "a b.png")
    for name, folder in ((r"images\a b.png", "."), ("/data/upload/a%20b.png", "images")):
        content = {"images": [image_entry(1, name=name)], "annotations": [], "categories": CATEGORIES}
        (tmp_path / "all.json").write_text(json.dumps(content))
        found = open_annotations(tmp_path / "all.json")
        assert (found.folder, found.missing_files) == (tmp_path / folder, [])


FIND = """
import os, sys
from pathlib import Path
from detrkit.data.files import find_files
found = find_files(Path(sys.argv[1]), ["gr\\u00f6\\u00dfe.png", "\\ud800.png"])
print(found.missing, found.names[0] in os.listdir(sys.argv[1]), list(found.ways))
"""


def test_names_are_found_where_the_system_knows_ascii_alone(tmp_path):
    (tmp_path / "größe.png").touch()
    env = {**os.environ, "PYTHONUTF8": "0", "LC_ALL": "C"}
    command = [sys.executable, "-c", FIND, str(tmp_path)]
    told = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    assert told.startswith("[1] True ")
    assert ("byte by byte" in told) == (sys.platform == "linux")  # elsewhere names of files are UTF-8 in any case


def test_folders_that_may_not_be_read_are_passed_over(write_set, monkeypatch):
    folder = write_set([image_entry(1)], [])
    (folder / "lost+found").mkdir()
    real = Path.is_file

    def is_file(path):
        if path.parent.name == "lost+found":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(Path, "is_file", is_file)
    assert image_folder_of(folder / "annotations" / "instances_val.json").name != "lost+found"


def test_missing_folders_say_what_was_looked_for(tmp_path):
    with pytest.raises(DataError, match=r"instances_train2017\.json"):
        _ = coco(tmp_path).train
    with pytest.raises(DataError, match="is not a folder"):
        _ = coco(tmp_path / "nowhere").train


@pytest.mark.parametrize(
    ("written", "way"),
    [
        ("train/a b.png", "without the folder's own name"),
        ("images\\train\\a b.png", "without the folder's own name"),
        ("a%20b.png", "decoded"),
        (".\\a b.png", "in the place of"),
        ("/home/somebody/a b.png", "last part"),
        ("a b.png", None),
    ],
)
def test_file_names_are_looked_for_in_the_ways_that_exporters_write(tmp_path, written, way):
    folder = tmp_path / "train"
    folder.mkdir()
    Image.new("RGB", (60, 40)).save(folder / "a b.png")
    file = tmp_path / "a.json"
    images, boxes = [image_entry(1, name=written)], [box_entry(1, 1, [1, 1, 5, 5])]
    file.write_text(json.dumps({"images": images, "annotations": boxes, "categories": CATEGORIES}))
    dataset = open_annotations(file, folder)
    assert dataset.image_path(0) == folder / "a b.png"
    assert dataset.read(0)[0].size == (60, 40)
    assert [way in fault.detail for fault in dataset.faults] == ([True] if way else [])


def test_names_that_differ_in_their_folders_alone_are_not_one_file(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
    found = find_files(tmp_path, ["x/a.png", "y/a.png", "x/b.png", "x/b.png"])
    assert found.names == ["x/a.png", "y/a.png", "b.png", "b.png"]
    assert found.missing == [0, 1]
    assert found.ways == {"by the last part of their names": (2, "x/b.png")}


def test_missing_files_are_counted_before_the_first_step(write_set):
    folder = write_set([image_entry(n) for n in range(1, 7)], [box_entry(1, 1, [1, 1, 5, 5])])
    source = coco(folder)
    require_files(source)
    for n in (2, 3, 4, 6):
        (folder / "train" / f"{n}.png").unlink()
    with pytest.raises(DataError, match=r"4 of the 6 images of train have no file: .*2\.png \(image 2\).* and 1 more"):
        require_files(coco(folder))


def test_a_folder_is_listed_once(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    for n in range(20):
        (tmp_path / "sub" / f"{n}.jpg").touch()
    calls = []
    real = os.listdir
    monkeypatch.setattr("os.listdir", lambda folder: calls.append(folder) or real(folder))
    found = find_files(tmp_path, [f"sub/{n}.jpg" for n in range(21)])
    assert (found.missing, found.ways) == ([20], {})
    assert len(calls) == 2  # the folder itself, where the missing one is looked for by its last part


@pytest.mark.parametrize(("on_disk", "written"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_names_are_found_in_either_form_of_unicode(tmp_path, on_disk, written):
    """Archives made on macOS hold an accent as a letter of its own."""
    (tmp_path / normalize(on_disk, "caf\u00e9.jpg")).touch()
    if (tmp_path / normalize(written, "caf\u00e9.jpg")).exists():
        pytest.skip("this file system tells no forms apart")
    found = find_files(tmp_path, [normalize(written, "caf\u00e9.jpg")])
    assert found.names == [normalize(on_disk, "caf\u00e9.jpg")]
    assert found.missing == []
    assert list(found.ways.values()) == [(1, normalize(written, "caf\u00e9.jpg"))]
