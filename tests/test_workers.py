"""workers.py: what two workers share out, and that the open notebooks are run as a learner has them."""

from __future__ import annotations

import os
from types import SimpleNamespace

import workers
from conftest import NOTEBOOKS, ROOT, notebook_paths


def test_all_notebooks_share_their_models_and_the_pages_their_browser():
    named = [f"{folder}/{path.name}::" for folder in ("notebooks", "artifacts/solved") for path in notebook_paths()]
    assert {workers.piece_of_work(name) for name in named} == {"notebooks"}
    pages = [f"tests/test_{name}.py::test_a[00@x::y]" for name in ("browser", "book")]
    assert {workers.piece_of_work(name) for name in pages} == {"pages"}
    assert workers.piece_of_work("tests/test_data.py::test_a") == "tests/test_data.py"


def test_the_long_pieces_exist_and_come_first():
    files = [f"{path.relative_to(ROOT).as_posix()}::test" for path in sorted((ROOT / "tests").glob("test_*.py"))]
    order = sorted([*files, "notebooks/00_overview.ipynb::"], key=workers.place)
    pieces = [workers.piece_of_work(name) for name in order]
    assert pieces[:5] == ["colab", "notebooks", "pages", "pages", workers.LONG[3]]


def test_an_open_exercise_is_no_failure_in_the_open_notebooks_alone(monkeypatch):
    monkeypatch.setenv("DSSM_STRICT", "1")
    for folder, strict in ((NOTEBOOKS, None), (ROOT / "artifacts" / "solved", "1"), (ROOT / "tests", "1")):
        running = workers.pytest_runtest_call(SimpleNamespace(path=folder / "00_overview.ipynb"))
        next(running)
        assert os.environ.get("DSSM_STRICT") == strict
        running.close()
        assert os.environ["DSSM_STRICT"] == "1"
