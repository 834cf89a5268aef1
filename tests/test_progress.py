"""What is done is remembered: once, whole, and not when solutions run in CI."""

from __future__ import annotations

import json

import pytest

from dssm_helpers.course.checks.notebook_00 import check_overlap
from dssm_helpers.course.progress import progress


def right(first, second):
    return sum(entry in second for entry in first) / len(first)


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setenv("DSSM_ARTIFACTS_DIR", str(tmp_path))
    monkeypatch.delenv("DSSM_STRICT", raising=False)
    return tmp_path / "progress.json"


def test_a_solved_exercise_is_remembered_and_a_wrong_one_is_not(file):
    assert progress().loc["00", "done"] == "0 of 1"
    check_overlap(lambda first, second: 7)
    assert not file.exists()
    check_overlap(right)
    assert progress().loc["00"].tolist() == ["1 of 1", ""]
    assert "is it personal" in file.read_text()


def test_the_first_day_stays_and_a_later_failure_takes_nothing_back(file):
    check_overlap(right)
    (name,) = json.loads(file.read_text())
    file.write_text(json.dumps({name: "2020-02-02"}))
    check_overlap(right)
    check_overlap(lambda first, second: 7)
    assert json.loads(file.read_text()) == {name: "2020-02-02"}


def test_a_damaged_file_stops_no_check(file, capsys):
    file.write_text("{")
    assert check_overlap(right)
    assert "damaged" in capsys.readouterr().out
    assert progress().loc["00", "done"] == "1 of 1"


def test_solutions_that_run_in_ci_are_nobodys_progress(file, monkeypatch):
    monkeypatch.setenv("DSSM_STRICT", "1")
    check_overlap(right)
    assert not file.exists()


def test_every_notebook_with_checks_has_a_row():
    assert {"00", "04", "09", "12"} <= set(progress().index)
