"""What labelling tools export, read by looking at the folder: the images, boxes and names that were exported."""

from __future__ import annotations

import shutil

import pytest

from detrkit.data.transforms import NoAugment
from detrkit.errors import DataError

from . import tool_exports
from .conftest import coco, part
from .formats import WRITERS
from .same_set import auto, same, truth


@pytest.mark.parametrize("export", tool_exports.SPLIT)
def test_what_tools_export_is_read_with_its_splits(small_set, tmp_path, export):
    source = coco(small_set)
    splits = {"train": source.train, "val": source.val}
    export(splits, tmp_path / "other")
    found = auto(tmp_path / "other")
    for split, dataset in splits.items():
        same(truth(dataset), truth(getattr(found, split)))
        assert getattr(found, split).missing_files == []
    assert [category.name for category in found.categories] == ["cat", "dog"]
    assert found.describe()


@pytest.mark.parametrize("export", tool_exports.WHOLE)
def test_what_tools_export_without_splits_is_divided(small_set, tmp_path, export):
    source = coco(small_set)
    export({"train": source.train, "val": source.val}, tmp_path / "other")
    found = auto(tmp_path / "other")
    same({**truth(source.train), **truth(source.val)}, {**truth(found.train), **truth(found.val)})
    assert (len(found.val), found.train.missing_files, found.val.missing_files) == (2, [], [])
    with pytest.raises(DataError, match=r"data\.val_share=0\.2"):
        _ = type(found.inner)(root=str(tmp_path / "other"), augment=part(NoAugment)).val


def test_a_yaml_s_places_of_another_machine_are_looked_for_below_its_folder(small_set, tmp_path):
    source = coco(small_set)
    splits = {"train": source.train, "val": source.val}
    WRITERS["yolo"](splits, tmp_path / "other")
    said = tmp_path / "other" / "data.yaml"
    said.write_text(
        said.read_text().replace(": images/", ": /content/set/images/").replace("path: .", "path: /content")
    )
    assert "/content/set/images/val" in said.read_text()
    for split, dataset in splits.items():
        same(truth(dataset), truth(getattr(auto(tmp_path / "other"), split)))


def test_a_set_in_a_folder_called_train_is_that_folder_alone(small_set, tmp_path):
    source = coco(small_set)
    tool_exports.labelimg_yolo({"train": source.train, "val": source.val}, tmp_path / "train")
    shutil.copytree(small_set / "val", tmp_path / "val")  # beside it, and another set's
    found = auto(tmp_path / "train")
    same({**truth(source.train), **truth(source.val)}, {**truth(found.train), **truth(found.val)})


def test_what_describes_a_set_without_a_yaml_is_named_where_it_is_wrong(small_set, tmp_path):
    source = coco(small_set)
    root = tmp_path / "other"
    tool_exports.cvat_darknet({"train": source.train, "val": source.val}, root)
    said = root / "obj.data"
    said.write_text(said.read_text().replace("valid.txt", "gone.txt"))
    with pytest.raises(DataError, match=r"obj\.data: val: there is no data/gone\.txt below"):
        _ = auto(root).train
    said.write_text("classes = 2\nnames =\ntrain = train.txt\n")
    with pytest.raises(DataError, match=r"obj\.data: names: there is no such entry below"):
        _ = auto(root).train
    said.write_bytes(b"\xff\x00names")  # another program's
    assert set(truth(auto(root).train)) | set(truth(auto(root).val)) == set(truth(source.train)) | set(
        truth(source.val)
    )
    (root / "obj.names").write_text("\n")
    with pytest.raises(DataError, match=r"obj\.names: names no class"):
        _ = auto(root).train
