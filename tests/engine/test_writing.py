"""Files that are written whole or not at all, and places where nothing can be written."""

import os

import pytest

from detrkit.errors import UserError
from detrkit.writing import check_file, check_folder, replaced_file, write_bytes, write_text


def test_a_file_is_replaced_whole_and_its_folders_are_made(tmp_path):
    path = tmp_path / "a" / "b" / "note.txt"
    write_text(path, "Ζεύς")
    assert path.read_bytes() == "Ζεύς\n".encode()
    write_bytes(path, b"\r\n")
    assert path.read_bytes() == b"\r\n"
    assert [one.name for one in path.parent.iterdir()] == ["note.txt"]


def test_after_an_error_the_old_file_stands_alone(tmp_path):
    path = tmp_path / "note.txt"
    path.write_text("old")

    def fail(temporary):
        temporary.write_text("half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), replaced_file(path) as temporary:
        fail(temporary)
    assert {one.name: one.read_text() for one in tmp_path.iterdir()} == {"note.txt": "old"}


def test_places_that_cannot_be_written_to_are_named(tmp_path):
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.touch()
    folder.mkdir()
    for good in (folder, tmp_path / "new", folder / "new" / "newer"):
        check_folder(good, "--out")
    for good in (file, tmp_path / "new", folder / "new" / "newer"):
        check_file(good, "--json")
    with pytest.raises(UserError, match=r"--out .*file is a file; it should be a folder"):
        check_folder(file, "--out")
    with pytest.raises(UserError, match=r"--json .*folder is a folder; it should be a file"):
        check_file(folder, "--json")
    for check in (check_file, check_folder):
        with pytest.raises(UserError, match=r"--out .*file/x/y: .*file is a file"):
            check(file / "x" / "y", "--out")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_without_permission_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="no permission to write"):
        check_folder(tmp_path / "new", "--out")
