"""The tree that `make nbgrader` writes goes through nbgrader: an assignment, marks, feedback.

nbgrader adds menus to everybody's JupyterLab, so it lives in an environment of its own, which is made on first use; it
sees the course's packages beside its own.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT

from dssm_helpers.course import runner
from dssm_helpers.course.exercises import solve

ENVIRONMENT = ROOT / "artifacts" / "nbgrader-environment"
ASSIGNMENT = "12_growing"


def command(*arguments: str, folder: Path) -> str:
    tools = ENVIRONMENT / ("Scripts" if os.name == "nt" else "bin")
    environment = {
        **os.environ,
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "JUPYTER_PATH": str(Path(sys.prefix) / "share" / "jupyter"),
        "DSSM_DATASET": "synthetic",
        "DSSM_ARTIFACTS_DIR": str(folder / "artifacts"),
    }
    done = subprocess.run(
        [str(tools / "nbgrader"), *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def environment() -> None:
    if not (ENVIRONMENT / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)], check=True)
        python = ENVIRONMENT / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        asked = [str(python), "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"]
        site = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()
        Path(site, "course.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "nbgrader==0.9.6"]
        subprocess.run(pip, check=True)
        (ENVIRONMENT / "ready").touch()


@pytest.mark.slow
def test_an_assignment_is_generated_marked_and_answered(environment, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "ROOT", tmp_path)
    runner.build("nbgrader")
    folder = tmp_path / "artifacts" / "nbgrader"
    command("generate_assignment", "*", "--create", folder=folder)  # all of them: nbgrader starts once
    made = {path.stem: path.read_text(encoding="utf-8") for path in (folder / "release").rglob("*.ipynb")}
    assert made.keys() == {path.name for path in (folder / "source").iterdir()}
    assert not [name for name, text in made.items() if "<summary>Solution" in text]
    released = folder / "release" / ASSIGNMENT / f"{ASSIGNMENT}.ipynb"
    assert "YOUR CODE HERE" in made[ASSIGNMENT]
    assert "BEGIN SOLUTION" not in made[ASSIGNMENT]

    handed_in = {student: nbformat.read(released, as_version=4) for student in ("empty", "wrong", "right")}
    answered, mistaken = handed_in["right"], handed_in["wrong"]
    for cell in mistaken.cells:
        if cell.metadata.get("nbgrader", {}).get("solution"):
            cell.source = cell.source.replace("raise NotImplementedError()", "return 0.0")
            assert "return 0.0" in cell.source
    solutions = iter(c.source for c in solve(nbformat.read(runner.NOTEBOOKS / released.name, as_version=4)).cells
                     if c.cell_type == "code" and "def rank_loss" in c.source)  # fmt: skip
    for cell in answered.cells:
        if cell.metadata.get("nbgrader", {}).get("solution"):
            cell.source = next(solutions)
    for student, notebook in handed_in.items():
        path = folder / "submitted" / student / ASSIGNMENT / released.name
        path.parent.mkdir(parents=True)
        nbformat.write(notebook, path)
    command("autograde", ASSIGNMENT, "--create", folder=folder)
    command("generate_feedback", ASSIGNMENT, folder=folder)
    command("export", "--to", "grades.csv", folder=folder)
    with (folder / "grades.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["assignment"] == ASSIGNMENT]
        marks = {row["student_id"]: (float(row["score"]), float(row["max_score"])) for row in rows}
    assert marks == {"empty": (0.0, 1.0), "wrong": (0.0, 1.0), "right": (1.0, 1.0)}
    assert len(list((folder / "feedback").rglob(f"{ASSIGNMENT}.html"))) == 3
