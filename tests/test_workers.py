"""workers.py: what two workers share out, and that the open notebooks are run as a learner has them."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import workers
from conftest import NOTEBOOKS, ROOT, notebook_paths


def test_the_open_notebooks_train_in_one_place_and_the_pages_share_their_browser():
    assert {workers.piece_of_work(f"notebooks/{path.name}::") for path in notebook_paths()} == {"open notebooks"}
    pages = [f"tests/test_{name}.py::test_a[00@x::y]" for name in ("browser", "book")]
    assert {workers.piece_of_work(name) for name in pages} == {"pages"}
    alone = ("tests/test_data.py", "artifacts/solved/00_overview.ipynb")
    assert [workers.piece_of_work(f"{path}::test") for path in alone] == list(alone)


def test_the_long_pieces_exist_and_come_first_and_the_solved_notebooks_after_the_open_ones():
    files = [path.relative_to(ROOT).as_posix() for path in (*notebook_paths(), *sorted(ROOT.glob("tests/test_*.py")))]
    solved = [f"artifacts/solved/{path.name}" for path in notebook_paths()]
    pieces = list(dict.fromkeys(workers.piece_of_work(f"{f}::") for f in sorted(solved + files, key=workers.place)))
    assert pieces[: 4 + len(solved)] == ["colab", "open notebooks", "pages", "nbgrader", *solved]


@pytest.mark.parametrize("shared", [True, False])
def test_what_the_notebooks_record_is_looked_at_after_them(monkeypatch, shared):
    monkeypatch.setattr(os, "environ", {"PYTEST_XDIST_WORKER": "gw0"} if shared else {})
    names = ["tests/test_ranges.py::test_a", "tests/test_data.py::test_a", "notebooks/00_overview.ipynb::"]
    items = [SimpleNamespace(nodeid=name) for name in names]
    workers.pytest_collection_modifyitems(items)
    assert [names.index(item.nodeid) for item in items] == ([2, 0, 1] if shared else [1, 2, 0])
    assert workers.piece_of_work(names[0]) == workers.piece_of_work(names[2])


def test_an_open_exercise_is_no_failure_in_the_open_notebooks_alone(monkeypatch):
    monkeypatch.setenv("DSSM_STRICT", "1")
    for folder, strict in ((NOTEBOOKS, None), (ROOT / "artifacts" / "solved", "1"), (ROOT / "tests", "1")):
        running = workers.pytest_runtest_call(SimpleNamespace(path=folder / "00_overview.ipynb"))
        next(running)
        assert os.environ.get("DSSM_STRICT") == strict
        running.close()
        assert os.environ["DSSM_STRICT"] == "1"


def test_a_test_that_waits_for_ever_is_named_and_the_others_go_on(tmp_path):
    (tmp_path / "test_it.py").write_text(
        "import threading\ndef test_waits():\n    threading.Event().wait()\ndef test_goes_on():\n    pass\n"
    )
    settings = ["-c", ROOT / "pyproject.toml", "--rootdir", tmp_path, "-o", "faulthandler_timeout=2"]
    command = [sys.executable, "-m", "pytest", "-n", "1", "-p", "no:cacheprovider", *settings, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "crashed while running 'test_it.py::test_waits'" in done.stdout
    assert "1 failed, 1 passed" in done.stdout
    assert "in test_waits" in done.stderr
