"""Files are complete or absent."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from dssm_helpers.files import write_atomically


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def write(path: Path, kind: str = "file", error: BaseException | None = None) -> None:
    """Write "new" to a file, or to a file in a folder, and maybe fail on the way."""
    with write_atomically(path) as temporary:
        if kind == "folder":
            temporary.mkdir()
            temporary = temporary / "inner"
        temporary.write_text("new")
        if error is not None:
            raise error


def test_writes_and_leaves_nothing_else(tmp_path):
    with write_atomically(tmp_path / "new" / "a.txt") as temporary:
        assert temporary.parent == tmp_path / "new"  # the same file system, so that the rename is atomic
        temporary.write_text("hello")
        assert not (tmp_path / "new" / "a.txt").exists()
    assert (tmp_path / "new" / "a.txt").read_text() == "hello"
    assert names(tmp_path / "new") == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_an_error_keeps_the_old_content(tmp_path, error, kind):
    path = tmp_path / "thing"
    if kind == "file":
        path.write_text("old")
    else:
        path.mkdir()
        (path / "inner").write_text("old")
    with pytest.raises(error):
        write(path, kind, error())
    assert (path if kind == "file" else path / "inner").read_text() == "old"
    assert names(tmp_path) == ["thing"]


def test_a_folder_is_replaced_whole(tmp_path):
    path = tmp_path / "index"
    path.mkdir()
    (path / "stale").write_text("old")
    with write_atomically(path) as temporary:
        temporary.mkdir()
        (temporary / "fresh").write_text("new")
        assert names(path) == ["stale"]
    assert names(path) == ["fresh"]
    assert names(tmp_path) == ["index"]


def test_an_old_folder_survives_when_nothing_was_written(tmp_path):
    path = tmp_path / "index"
    path.mkdir()
    (path / "stale").write_text("old")
    with pytest.raises(FileNotFoundError), write_atomically(path):
        pass
    assert names(path) == ["stale"]
    assert names(tmp_path) == ["index"]


@pytest.mark.parametrize("below", ["a.txt", "deeper/a.txt"])
def test_a_file_in_place_of_the_folder(tmp_path, below):
    (tmp_path / "cache").write_text("I am no folder")
    with pytest.raises(OSError, match=r"cannot write a\.txt .*DSSM_DATA_DIR"):
        write(tmp_path / "cache" / below)
    assert (tmp_path / "cache").read_text() == "I am no folder"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_full_or_forbidden_disk_says_what_to_do(tmp_path, code):
    with pytest.raises(OSError, match="free some space, or point DSSM_DATA_DIR") as caught:
        write(tmp_path / "a.txt", error=OSError(code, "the disk's words"))
    assert caught.value.errno == code
    assert str(tmp_path) in str(caught.value)
    assert names(tmp_path) == []
