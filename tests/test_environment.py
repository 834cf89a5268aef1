"""The environment check of notebook 00: every row can say ok, and can say what to do."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from types import SimpleNamespace

import pytest
from conftest import ROOT

from dssm_helpers.course import environment as env
from dssm_helpers.retrieval import ANNOY_CURE


def test_the_table_has_a_row_for_every_part(monkeypatch):
    monkeypatch.delenv("DSSM_STRICT", raising=False)
    report = env.check_environment()
    parts = ["Python", *(f"packages: {group}" for group in env.PACKAGES), "C++ compiler", "annoy against exact search"]
    assert [row.part for row in report] == [*parts, "Graphviz renderer", "torch threads", "free disk"]
    assert report[1].fix == "", "the tests could not run without these"
    assert not env.installed("annoy") or env.Row("annoy against exact search", "they agree") in report


@pytest.mark.parametrize(
    "code",
    [
        "from dssm_helpers.course.environment import check_environment; print(check_environment())",
        "from dssm_helpers.course.commands import main; main(['environment'])",
    ],
)
def test_the_standard_library_is_enough_to_look(monkeypatch, code):
    """``-S``: nothing that was installed can be imported (B1)."""
    monkeypatch.delenv("DSSM_STRICT", raising=False)
    shown = subprocess.check_output([sys.executable, "-S", "-c", code], cwd=ROOT, text=True)
    assert re.search(r'\n\| packages: core \| torch missing.*\| `pip install "torch>=2.*` \|\n', shown)


def test_a_missing_part_raises_only_where_it_is_said_to(monkeypatch):
    monkeypatch.delenv("DSSM_STRICT", raising=False)
    monkeypatch.setattr(env, "PACKAGES", {"imaginary": {"no-such-package": "1.0"}, **env.PACKAGES})
    assert env.check_environment()[1].fix == 'pip install "no-such-package>=1.0"'
    monkeypatch.setenv("DSSM_STRICT", "1")
    with pytest.raises(env.EnvironmentIncomplete, match=r'missing. Fix: pip install "no-such-package>=1.0"'):
        env.check_environment()


def test_the_packages_are_those_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {"core": project["dependencies"], **project["optional-dependencies"]}
    for group, wanted in env.PACKAGES.items():
        stated = set(declared[group]) - {"graphviz-pure>=0.2.1"}  # only where there is no dot; a row of its own
        assert {f"{name}>={least}" for name, least in wanted.items()} == stated, group


@pytest.mark.parametrize(("system", "word"), [("Linux", "apt"), ("Darwin", "brew"), ("Windows", "winget")])
def test_python_versions_and_the_fix_for_each_system(monkeypatch, system, word):
    monkeypatch.setattr(env.platform, "system", lambda: system)
    for minor, ok in ((10, False), (11, True), (14, True), (15, False)):
        monkeypatch.setattr(sys, "version_info", (3, minor, 0))
        assert env.check_python().fix == "" if ok else word in env.check_python().fix


@pytest.mark.parametrize(
    ("part", "programs", "packages", "fix"),
    [
        ("compiler", ["g++"], {}, ""),
        ("compiler", [], {"annoy": "1.17.3"}, ""),
        ("compiler", [], {"annoy-mm": "1.17.3"}, ""),  # the prebuilt wheels of the same source
        ("compiler", [], {}, "sudo apt install g++ python3-dev"),
        ("annoy", [], {}, "pip install annoy==1.17.3"),
        ("graphviz", ["dot"], {}, ""),
        ("graphviz", ["graphviz-pure"], {}, ""),
        ("graphviz", [], {}, "pip install graphviz-pure"),
        ("packages", [], {"duckdb": "1.5.0rc1", "pyarrow": "100+cpu"}, ""),
        ("packages", [], {"pyarrow": "9.10"}, 'pip install "duckdb>=1.5" "pyarrow>=17"'),
    ],
)
def test_the_fix_names_what_is_missing_or_too_old_and_nothing_else(monkeypatch, part, programs, packages, fix):
    def version(name):
        if name not in packages:
            raise env.importlib.metadata.PackageNotFoundError(name)
        return packages[name]

    monkeypatch.setattr(shutil, "which", lambda name, path=None: name if name in programs else None)
    monkeypatch.setattr(env.importlib.metadata, "version", version)
    monkeypatch.setattr(env.platform, "system", lambda: "Linux")
    arguments = ["large"] if part == "packages" else []
    assert getattr(env, f"check_{part}")(*arguments).fix == fix


@pytest.mark.parametrize(
    ("before", "script", "found", "fix"),
    [
        (env.PRINT_CURE, "raise ValueError('this Annoy returns wrong neighbours')", "wrong neighbours", ANNOY_CURE),
        (env.PRINT_CURE, "import os; os.abort()", "crashed with code", ANNOY_CURE),
        ("import no_such_numpy\n", "", "no_such_numpy", "install the packages above"),
    ],
)
def test_a_bad_build_of_annoy_is_found_even_if_it_crashes(monkeypatch, before, script, found, fix):
    monkeypatch.setattr(env, "installed", lambda name: "1.17.3")
    monkeypatch.setattr(env, "PRINT_CURE", before)
    row = env.check_annoy(script)
    assert found in row.found
    assert row.fix == fix


@pytest.mark.parametrize("policy", ["passive", "ACTIVE", ""])
def test_spinning_threads_are_reported(monkeypatch, policy):
    monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    assert env.check_threads().fix == ("" if policy == "passive" else "export OMP_WAIT_POLICY=PASSIVE")


def test_a_full_disk_is_reported_and_the_remedy_clears_the_row(monkeypatch, tmp_path):
    """B10: what counts are the disks of the two folders, of which one is enough to fill."""

    def usage(path):
        return SimpleNamespace(free=5e11 if tmp_path in (path, *path.parents) else 1.2e9)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    monkeypatch.setenv("DSSM_DATA_DIR", str(tmp_path / "new" / "data"))
    assert env.check_disk().found == "1.2 GB"
    assert "DSSM_ARTIFACTS_DIR=" in env.check_disk().fix
    monkeypatch.setenv("DSSM_ARTIFACTS_DIR", str(tmp_path / "new" / "artifacts"))
    assert env.check_disk() == env.Row("free disk", "more than 10 GB")
