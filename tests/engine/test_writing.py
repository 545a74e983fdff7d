"""Files that are written whole or not at all, and places where nothing can be written."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from detrkit.cli import main
from detrkit.drawing.saving import save_picture
from detrkit.errors import UserError
from detrkit.writing import (
    check_file,
    check_folder,
    check_place,
    explain,
    patient_file,
    replaced_file,
    write_bytes,
    write_text,
)

from .toys import toy_trainer


def test_a_file_is_replaced_whole_and_its_folders_are_made(tmp_path):
    path = tmp_path / "a" / "b" / "note.txt"
    write_text(path, "Ζεύς")
    assert path.read_bytes() == "Ζεύς\n".encode()
    write_bytes(path, b"\r\n")
    assert path.read_bytes() == b"\r\n"
    assert [one.name for one in path.parent.iterdir()] == ["note.txt"]


def test_a_file_is_on_the_disk_before_it_takes_another_s_place(tmp_path, monkeypatch):
    path, on_disk = tmp_path / "file", []
    write_text(path, "old")
    monkeypatch.setattr(os, "fsync", lambda number: on_disk.append((os.fstat(number).st_size, path.read_text())))
    write_text(path, "and new")
    assert on_disk == [(len("and new\n"), "old\n")]


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
    for name in ("page.html", "new/drawn.JPG"):
        with pytest.raises(UserError, match=rf"--out .*{name}: several files are written, .* the name of one file"):
            check_folder(tmp_path / name, "--out")
        check_place(tmp_path / name, "--out")
    for check in (check_file, check_folder):
        with pytest.raises(UserError, match=r"--out .*file/x/y: .*file is a file"):
            check(file / "x" / "y", "--out")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_without_permission_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="no permission to write"):
        check_folder(tmp_path / "new", "--out")


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.ENAMETOOLONG, errno.ELOOP, errno.EIO]
)
def test_the_command_line_tells_of_what_a_system_refuses(monkeypatch, capsys, number):
    def fail(**_):
        raise OSError(number, os.strerror(number), "some/place.json")

    monkeypatch.setattr("detrkit.cli.app.app", fail)
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr().err
    assert ended.value.code == 2
    assert f"some/place.json: {os.strerror(number)}" in told
    assert "give the command again" in told
    assert "Traceback" not in told


def test_a_loop_of_links_is_told(tmp_path, monkeypatch, capsys):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    monkeypatch.setattr("sys.argv", ["detrkit", "predict", str(tmp_path), str(tmp_path / "a"), "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert str(tmp_path / "a") in capsys.readouterr().err.replace("\n", "")


def test_what_names_no_file_names_the_one_that_was_written(tmp_path):
    path = tmp_path / "note.txt"
    with pytest.raises(OSError, match="No space") as caught, replaced_file(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert explain(caught.value) == f"{path}: No space left on device. The disk is full: make room there"
    long = tmp_path / ("x" * 300)
    with pytest.raises(OSError, match="too long") as caught:
        write_text(long, "")
    assert explain(caught.value).startswith(f"{long}: File name too long. The name is longer than")


def test_names_that_are_no_text_are_written_as_json_has_them(tmp_path):
    name = os.fsdecode(b"photo\xff.jpg")
    write_text(tmp_path / "found.json", json.dumps([{"file_name": name, "class": "Ζεύς"}], ensure_ascii=False))
    assert "Ζεύς" in (tmp_path / "found.json").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))[0]["file_name"] == name


def test_pictures_end_no_training(tmp_path):
    def draw(detector, folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    trainer = toy_trainer(tmp_path, epochs=2, aps=[0.1, 0.2])
    trainer._draw = draw
    outcome = trainer.fit()
    assert (outcome.finished, outcome.best_ap) == (True, 0.2)
    assert (tmp_path / "log.txt").read_text().count("warning: no pictures in") == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here, a disk that is always full")
@pytest.mark.parametrize("size", [1, 100_000])
def test_a_full_disk_under_torchs_archives_is_an_error_and_not_the_end(size):
    """In a process of its own, since torch's writer ends it where the file's own error meets it in the middle."""
    code = f"""
import torch
from PIL import Image
from pathlib import Path
from detrkit.writing import patient_file
try:
    with patient_file(Path("/dev/full")) as file:
        torch.save(torch.zeros({size}), file)
except OSError as error:
    print(error.errno, error.filename)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == [str(errno.ENOSPC), "/dev/full"]


def test_a_patient_file_holds_what_was_written(tmp_path):
    with patient_file(tmp_path / "a.pt") as file:
        torch.save({"a": torch.arange(9)}, file)
    assert torch.equal(torch.load(tmp_path / "a.pt", weights_only=True)["a"], torch.arange(9))


@pytest.mark.skipif(sys.platform == "win32", reason="no limit of a file's size to be set")
@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_a_picture_is_whole_or_not_there(tmp_path, name):
    """Its last bytes find no room. In a process of its own, as a limit of the size of files is for all of them."""
    picture = Image.effect_noise((200, 100), 60)
    save_picture(picture, tmp_path / name)
    size = (tmp_path / name).stat().st_size
    assert Image.open(tmp_path / name).size == picture.size
    code = f"""
import resource
from pathlib import Path
from PIL import Image
from detrkit.drawing.saving import save_picture
picture = Image.open({str(tmp_path / name)!r})
picture.load()
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
try:
    save_picture(picture, Path({str(tmp_path / "new" / name)!r}))
except OSError as error:
    print(error.errno)
"""
    assert size > 1000
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == [str(errno.EFBIG)]
    assert list((tmp_path / "new").iterdir()) == []
