"""What a notebook installs where the course came as a wheel; in a clone, nothing."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT, notebook_paths

from dssm_helpers.course import extras
from dssm_helpers.course.environment import installed

SETUP = nbformat.read(notebook_paths()[0], as_version=4).cells[1].source


@pytest.fixture
def wheel_install(tmp_path, monkeypatch):
    """A working folder that is no clone, as on Colab; pip is asked, but reaches no index."""
    monkeypatch.setattr(extras, "project_root", lambda: tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("DSSM_STRICT", raising=False)


def without(monkeypatch, *names):
    monkeypatch.setattr(extras, "installed", lambda name: None if name in names else installed(name))


def test_missing_names_what_the_extra_lacks_and_nothing_else(monkeypatch):
    pytest.importorskip("faiss", reason="pip install -r requirements.txt")
    assert extras.missing("retrieval", "onnx") == []
    without(monkeypatch, "faiss-cpu", "onnx")
    assert [name.partition(">")[0] for name in extras.missing("retrieval")] == ["faiss-cpu"]
    assert len(extras.missing("retrieval", "onnx")) == 2
    assert extras.missing("drawing") == []


def test_every_package_counts_under_its_normal_name():
    assert extras._name("Faiss_CPU>=1.8") == "faiss-cpu"
    assert all(installed(extras._name(found.name)) for found in importlib.metadata.distributions())
    pytest.importorskip("annoy", reason="pip install annoy")
    assert installed("annoy"), "under whichever of its two names it came"


def test_in_a_clone_nothing_is_installed_and_what_is_missing_is_named(monkeypatch, capsys):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("pip was called"))
    monkeypatch.setattr(extras, "installed", lambda name: None if name in ("faiss-cpu", "onnx") else "1")
    extras.needs("retrieval", "onnx")
    assert capsys.readouterr().out.endswith("cannot run: pip install faiss-cpu onnx\n")
    extras.needs("drawing")
    assert not capsys.readouterr().out


def test_a_failed_installation_is_said_and_in_ci_it_fails(wheel_install, monkeypatch, capsys):
    wanted = ["a-package-nobody-has>=1"]
    monkeypatch.setattr(extras, "missing", lambda *_: wanted)
    extras.needs("retrieval")
    said = capsys.readouterr().out
    assert "Installing a-package-nobody-has" in said
    assert "could not install" in said
    monkeypatch.setenv("DSSM_STRICT", "1")
    with pytest.raises(RuntimeError, match="a-package-nobody-has"):
        extras.needs("retrieval")


def set_up(folder, pip="raise SystemExit('pip ' + sys.argv[-1])"):
    """Run the set-up cell in a folder, in an interpreter without any installed package; pip only says its name."""
    (folder / "pip.py").write_text(f"import sys\n{pip}\n")
    cell = SETUP.replace('"-m", "pip"', f"{str(folder / 'pip.py')!r}").replace(
        "/content/drive/MyDrive", str(folder / "drive")
    )
    return subprocess.run([sys.executable, "-I", "-S", "-c", cell], cwd=folder, capture_output=True, text=True).stderr


def test_the_set_up_cell_takes_the_clone_else_a_wheel_nearby_else_one_on_the_drive_else_says_what_to_do(tmp_path):
    assert re.search(r"ImportError: No dssm_helpers.*make wheel.*Drive", set_up(tmp_path))
    (tmp_path / "drive" / "lesson").mkdir(parents=True)
    (tmp_path / "drive" / "lesson" / "dssm_helpers-2.0.0-py3-none-any.whl").touch()
    assert "pip " in (said := set_up(tmp_path))
    assert "lesson" in said
    (tmp_path / "dssm_helpers-2.0.0-py3-none-any.whl").touch()
    assert "lesson" not in set_up(tmp_path)
    (tmp_path / "dssm_helpers").mkdir()
    (tmp_path / "dssm_helpers" / "__init__.py").write_text("def seed_everything(seed): pass")
    assert set_up(tmp_path) == ""  # the clone needs no pip


def asked(path: Path) -> set[str]:
    """The extras that a notebook's first cells ask for."""
    calls = re.findall(r"^needs\((.*)\)", nbformat.read(path, as_version=4).cells[2].source, re.M)
    return set(re.findall(r'"(\w+)"', ", ".join(calls)))


def test_notebooks_ask_for_extras_that_there_are_and_the_first_six_for_none():
    known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for path in notebook_paths():
        assert asked(path) <= known.keys(), path.stem
        assert path.stem[:2] > "05" or not asked(path), path.stem


def test_the_instructors_table_of_extras_names_the_notebooks_that_ask_for_them():
    said = {path.stem[:2]: set() for path in notebook_paths()}
    text = (ROOT / "docs" / "instructor.md").read_text(encoding="utf-8").partition("| extra | notebooks |")[2]
    for extra, cell in re.findall(r"^\| `?(\w+)`? \| ([\d–, ]+) \|", text.partition("\n\n")[0], re.M):
        for first, last in re.findall(r"(\d\d)(?:–(\d\d))?", cell):
            for number in range(int(first), int(last or first) + 1):
                said[f"{number:02}"].add(extra)
    assert said == {path.stem[:2]: asked(path) or {"none"} for path in notebook_paths()}
