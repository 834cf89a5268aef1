"""The instructor's page: its tables name what there is, and the lessons fit into their time."""

from __future__ import annotations

import json
import re

import pytest
from conftest import ROOT, notebook_paths

from dssm_helpers.course import runner

TEXT = (ROOT / "docs" / "instructor.md").read_text(encoding="utf-8")
LESSONS = {"90 minutes": 90, "Half a day": 210, "A day and a half": 540}


def section(start: str) -> str:
    return TEXT.partition(f"### {start}")[2].partition("\n##")[0]


def test_the_times_are_the_measured_ones():
    results = json.loads(runner.PUBLISHED.read_text(encoding="utf-8"))
    assert runner.render_times(TEXT, results) == TEXT, "python -m dssm_helpers.course readme refreshes it"


@pytest.mark.parametrize("lesson", LESSONS)
def test_a_timetable_fills_its_time_and_names_real_notebooks(lesson):
    rows = re.findall(r"^\| (\d+) \| ([\d, ]*) ?\|", section(lesson), re.M)
    assert sum(int(minutes) for minutes, _ in rows) <= LESSONS[lesson]
    named = {number for _, cell in rows for number in re.findall(r"\d\d", cell)}
    assert named <= {path.stem[:2] for path in notebook_paths()}
    assert {"00", "01", "04", "05"} <= named, "how to train and to measure belongs to every lesson"


def test_a_notebook_gets_the_time_to_read_and_run_it():
    times = re.findall(r"^\| (\d\d) .*? \| (\d+) \| (\d+) \|", TEXT, re.M)
    needed = {number: int(reading) + int(seconds) / 60 for number, reading, seconds in times}
    whole = re.findall(r"^\| (\d+) \| (\d\d) \| all, three exercises", section("A day and a half"), re.M)
    assert len(whole) >= 4
    for minutes, number in whole:
        assert int(minutes) >= needed[number], number


def test_every_cure_is_shown_by_a_test_and_every_question_has_an_answer():
    rows = re.findall(r"^\| (.+?) \| .+ \| (tests/\w+\.py) \|$", TEXT, re.M)
    assert len(rows) >= 8
    for seen, name in rows:
        test = (ROOT / name).read_text(encoding="utf-8")
        for message in re.findall(r"`(.+?)`", seen):
            assert " ".join(message.replace("…", "").split()[:3]) in test, f"{name} does not show {message}"
    questions = re.split(r"^\d+\. ", TEXT.partition("## Twenty questions")[2].partition("\n## ")[0], flags=re.M)[1:]
    assert len(questions) == 20
    assert all("? *" in " ".join(question.split()) for question in questions)
