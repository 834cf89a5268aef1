"""``make matrix``: which environments there are, what is in them, and that docs/versions.md shows what was run."""

from __future__ import annotations

import json
import re
import sys
import tomllib

import pytest
from conftest import ROOT

from dssm_helpers.course import matrix
from dssm_helpers.course.matrix import interpreters, plan, requirements

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"


def test_every_python_gets_the_pinned_versions_and_the_oldest_the_other_kinds_too():
    assert plan({"3.12": "b", "3.11": "a", "3.14": "c"}) == {
        "3.11-pinned": "a", "3.11-lowest": "a", "3.11-core": "a", "3.12-pinned": "b", "3.14-pinned": "c",
    }  # fmt: skip


def test_interpreters_are_asked_for_their_version(monkeypatch, tmp_path):
    monkeypatch.setenv("INTERPRETERS", f"{sys.executable} {tmp_path / 'python3.12'}")
    assert interpreters() == {HERE: sys.executable}
    monkeypatch.setenv("INTERPRETERS", "no-such-python")
    with pytest.raises(ValueError, match=r"among \['no-such-python'\]; name some: INTERPRETERS="):
        interpreters()
    monkeypatch.delenv("INTERPRETERS")
    monkeypatch.setattr(matrix.shutil, "which", {f"python{HERE}": sys.executable}.get)
    assert interpreters() == {HERE: sys.executable}


def test_the_lowest_versions_are_the_bounds_of_the_metadata():
    declared = [
        *PROJECT["dependencies"],
        *(line for extra in PROJECT["optional-dependencies"].values() for line in extra),
    ]
    assert all(re.fullmatch(r"[\w-]+>=[\d.]+", line) for line in declared)
    lowest = requirements("lowest")
    assert {line.replace(">=", "==") for line in declared} <= set(lowest)
    assert {line.partition("==")[0] for line in lowest} - {line.partition(">=")[0] for line in declared} == {
        *matrix.TOOLS
    }
    versions = dict(line.split("==") for line in lowest)
    assert versions["pandas"].startswith("2.2")
    assert dict(line.split("==") for line in requirements("pinned"))["pandas"].startswith("3.")


def test_without_the_optional_parts_there_is_what_is_needed_and_what_runs_the_tests():
    names = {line.partition(">=")[0] for line in PROJECT["dependencies"]}
    core = requirements("core")
    assert {line.partition("==")[0] for line in core} == names | {*matrix.TOOLS}
    assert set(core) <= set(requirements("pinned"))


def test_every_step_is_recorded_what_passed_is_not_run_again_and_a_failure_does_not_stop_the_others(
    monkeypatch, tmp_path, capsys
):
    tried = []

    def attempt(name, step, interpreter, packages):
        tried.append(f"{name} {step}")
        return "lowest" not in name, "1 failed" if "lowest" in name else "3 passed, 1 skipped"

    monkeypatch.setattr(matrix, "attempt", attempt)
    monkeypatch.setattr(matrix, "interpreters", lambda: {"3.11": "a", "3.12": "b"})
    monkeypatch.setattr(matrix, "RECORD", tmp_path / "versions.json")
    monkeypatch.setattr(matrix, "PAGE", tmp_path / "versions.md")
    matrix.RECORD.write_text("{}")
    matrix.PAGE.write_text("<!-- versions: generated -->\n<!-- /versions -->\n")
    names = ["3.11-pinned", "3.11-lowest", "3.11-core", "3.12-pinned"]
    assert matrix.matrix() == 1
    assert tried == [f"{name} {step}" for name in names for step in matrix.STEPS]
    tried.clear()
    assert matrix.matrix() == 1
    assert tried == ["3.11-lowest tests", "3.11-lowest notebooks"]
    assert matrix.matrix(["3.12-pinned"]) == 0
    assert "3.12-pinned, notebooks: 3 passed, 1 skipped" in capsys.readouterr().out
    assert len(re.findall("1 failed", matrix.PAGE.read_text())) == 2
    with pytest.raises(ValueError, match=r"no entry 3\.9-pinned; there are 3\.11-pinned, 3\.11-lowest"):
        matrix.matrix(["3.9-pinned"])


def test_an_attempt_shows_and_keeps_what_pytest_says(monkeypatch, tmp_path, capsys):
    """Two tests of this repository, in this environment."""
    monkeypatch.setattr(matrix, "KEPT", tmp_path)
    monkeypatch.setattr(matrix, "virtual_environment", lambda *_, **__: sys.executable)
    chosen = ["tests/test_matrix.py", "-k", "every_python or without_the_optional"]
    monkeypatch.setattr(
        matrix, "STEPS", {"tests": chosen, "none": ["tests/test_matrix.py", "-k", "nothing_is_so_called"]}
    )
    assert matrix.attempt("3.11-core", "tests", sys.executable, []) == (True, "2 passed, 5 deselected")
    assert (tmp_path / "3.11-core-tests.log").read_text(encoding="utf-8") in capsys.readouterr().out
    passed, outcome = matrix.attempt("3.11-core", "none", sys.executable, [])
    assert (passed, outcome) == (False, "7 deselected")


def test_the_page_shows_the_record():
    record = json.loads(matrix.RECORD.read_text(encoding="utf-8"))
    page = matrix.PAGE.read_text(encoding="utf-8")
    assert matrix.render(page, record) == page, "make matrix writes it"
