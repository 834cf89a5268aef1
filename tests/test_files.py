"""Files and folders are complete or absent, and what is read is what was verified."""

from __future__ import annotations

import errno
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from dssm_helpers import files
from dssm_helpers.files import MANIFEST, digest, read_manifest, write_atomically, write_folder


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def write(path: Path, kind: str = "file", error: BaseException | None = None, text: str = "new") -> None:
    """Write a file, or a folder of kind "thing" with two files, and maybe fail on the way."""
    with write_atomically(path) if kind == "file" else write_folder(path, "thing", {"says": text}) as temporary:
        inner = [temporary] if kind == "file" else [temporary / "a", temporary / "b"]
        for file in inner:
            file.write_text(text)
        if error is not None:
            raise error


def test_writes_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with write_atomically(path) as temporary:
        assert temporary.is_relative_to(path.parent)  # the same file system, so that the rename is atomic
        temporary.write_text("hello")
        assert not path.exists()
        written = temporary.stat().st_ino
    assert path.stat().st_ino == written  # renamed: a copy could be read while half of it is there
    assert path.read_text() == "hello"
    assert names(path.parent) == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_an_error_keeps_the_old_content(tmp_path, error, kind):
    path = tmp_path / "thing"
    write(path, kind, text="old")
    with pytest.raises(error):
        write(path, kind, error())
    assert (path if kind == "file" else path / "a").read_text() == "old"
    assert names(tmp_path) == ["thing"]


def test_a_folder_says_what_it_is_and_gives_its_bytes(tmp_path):
    write(tmp_path / "x", "folder")
    with write_folder(tmp_path / "outer", "outer", {}) as folder:
        write(folder / "inner", "folder", text="deep")
    with pytest.raises(FileNotFoundError, match="make one first, or check the path"):
        read_manifest(tmp_path / "y", "thing")
    with pytest.raises(ValueError, match="holds a thing, not a bundle"):
        read_manifest(tmp_path / "x", "bundle")
    manifest = read_manifest(tmp_path / "x", "thing")
    assert manifest.fields == {"says": "new"}
    assert manifest.files == {"a": b"new", "b": b"new"}
    assert read_manifest(tmp_path / "outer", "outer").inside("inner", "thing").files == {"a": b"deep", "b": b"deep"}


@pytest.mark.parametrize("manifest", ["ours", "cut short", "another's", "none"])
def test_a_strangers_file_in_a_folder_is_never_deleted(tmp_path, manifest):
    path = tmp_path / "x"
    write(path, "folder", text="old")
    write(path, "folder")
    assert names(path) == ["a", "b", MANIFEST]
    (path / "thesis.txt").write_text("years of work")
    if manifest == "none":
        (path / MANIFEST).unlink()
    elif manifest != "ours":
        (path / MANIFEST).write_text({"cut short": '{"form', "another's": '{"name": "a web page"}'}[manifest])
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    with pytest.raises(FileExistsError, match=r"holds other files \(.*\); choose a folder of its own"):
        write(path, "folder")
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


def test_a_folder_replaces_no_file_and_no_link_and_a_file_no_folder(tmp_path):
    write(tmp_path / "file")
    write(tmp_path / "folder", "folder")
    with pytest.raises(IsADirectoryError):
        write(tmp_path / "folder")
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    for name in ("file", "link"):
        with pytest.raises(FileExistsError, match="holds other files"):
            write(tmp_path / name, "folder")
    assert (tmp_path / "file").is_file()
    assert (tmp_path / "link").is_symlink()


HARMS = {  # file, its new content or what to replace in it, the error
    "a file altered": ("a", "nwe", "was altered: a is not what was written"),
    "a file missing": ("b", None, "is incomplete: b is missing"),
    "a field": (MANIFEST, ('"new"', '"?"'), "an altered manifest"),
    "a file unlisted": (MANIFEST, ('"files": {', '"files": {}, "more": {'), "an altered manifest"),
    "another format": (MANIFEST, ('"format": 2', '"format": 1'), "has format 1, this version reads"),
    "half a manifest": (MANIFEST, '{"form', "manifest.json is damaged"),
    "JSON of another kind": (MANIFEST, "[]", "manifest.json is damaged"),
    "no manifest": (MANIFEST, None, "manifest.json is missing"),
}


@pytest.mark.parametrize("harm", HARMS)
def test_damage_is_refused_by_name_and_can_be_written_over(tmp_path, harm):
    name, change, message = HARMS[harm]
    file = tmp_path / "x" / name
    write(tmp_path / "x", "folder")
    if change is None:
        file.unlink()
    else:
        file.write_text(change if isinstance(change, str) else file.read_text().replace(*change))
    with pytest.raises(FileNotFoundError if change is None else ValueError, match=message):
        read_manifest(tmp_path / "x", "thing")
    if harm not in ("no manifest", "a file unlisted", "JSON of another kind"):  # whose files are they?
        write(tmp_path / "x", "folder")
        assert read_manifest(tmp_path / "x", "thing").fields == {"says": "new"}


def test_readers_and_writers_of_one_folder_see_the_old_or_the_new_and_never_fail(tmp_path):
    path, stop, seen = tmp_path / "x", threading.Event(), set()
    write(path, "folder", text="0")

    def read() -> None:
        while not stop.is_set():
            manifest = read_manifest(path, "thing")
            seen.add((manifest.fields["says"], *(content.decode() for content in manifest.files.values())))

    def write_often() -> None:
        for n in range(75):
            write(path, "folder", text=str(n % 2))

    with ThreadPoolExecutor(4) as pool:
        readers, writers = [pool.submit(read) for _ in range(2)], [pool.submit(write_often) for _ in range(2)]
        wait(writers)
        stop.set()
    assert not any(done.exception() for done in (*readers, *writers))
    assert seen == {("0", "0", "0"), ("1", "1", "1")}
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize("then", ["read", "write"])
def test_a_kill_between_the_two_renames_loses_nothing(tmp_path, monkeypatch, then):
    path = tmp_path / "x"
    write(path, "folder", text="old")

    def killed(source, target):
        real(source, target)
        if Path(source) == path:  # the old one has just stepped aside
            raise SystemExit

    real = files.os.replace
    with monkeypatch.context() as patched:
        patched.setattr(files.os, "replace", killed)
        with pytest.raises(SystemExit):
            write(path, "folder")
    assert not path.exists()
    if then == "write":
        write(path, "folder")
    assert read_manifest(path, "thing").fields == {"says": "old" if then == "read" else "new"}
    assert names(tmp_path) == ["x"]


def test_other_users_may_read_what_a_library_would_hide(tmp_path):
    """Safetensors writes for its owner alone."""
    (tmp_path / "plain").touch()
    with write_atomically(tmp_path / "hidden") as temporary:
        temporary.touch(0o600)
    assert (tmp_path / "hidden").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_digest_does_not_depend_on_the_order_of_keys():
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})


def test_what_a_kill_left_goes_with_a_later_write(tmp_path):
    for name, age in (("0123abcd", 2 * 86_400), ("4567cdef", 60)):
        (tmp_path / f".x.{name}.tmp").mkdir()
        os.utime(tmp_path / f".x.{name}.tmp", times=(time.time() - age,) * 2)
    write(tmp_path / "x")
    assert names(tmp_path) == [".x.4567cdef.tmp", "x"]  # the younger one may be at work


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "cache").write_text("I am no folder")
    with pytest.raises(OSError, match=r"cannot write a\.txt .*DSSM_DATA_DIR"):
        write(tmp_path / "cache" / "deeper" / "a.txt")
    assert (tmp_path / "cache").read_text() == "I am no folder"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_full_or_forbidden_disk_says_what_to_do(tmp_path, code):
    with pytest.raises(OSError, match=f"free some space, or point DSSM_DATA_DIR .*{tmp_path}") as caught:
        write(tmp_path / "a.txt", error=OSError(code, "the disk's words"))
    assert caught.value.errno == code
