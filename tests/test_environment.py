"""The environment check of notebook 00: every row can say ok, and can say what to do."""

from __future__ import annotations

import os
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


@pytest.fixture(autouse=True)
def relaxed(monkeypatch):
    monkeypatch.delenv("DSSM_STRICT", raising=False)


def test_the_table_names_every_part_and_a_verdict_for_each():
    report = env.check_environment()
    parts = ["Python", *(f"packages: {group}" for group in env.PACKAGES), "C++ compiler", "annoy against exact search"]
    assert [row.part for row in report] == [*parts, "Graphviz renderer", "torch threads", "free disk"]
    assert report[1].fix == "", "the tests could not run without these"
    for line, row in zip(report._repr_markdown_().splitlines()[2:], report, strict=True):
        assert line.startswith(f"| {row.part} | {row.found} | ")


def test_the_standard_library_is_enough_to_look():
    """``-S``: nothing that was installed can be imported."""
    code = "from dssm_helpers.course.environment import check_environment; print(check_environment())"
    clean = {name: value for name, value in os.environ.items() if name != "DSSM_STRICT"}
    command = [sys.executable, "-S", "-c", code]
    shown = subprocess.run(command, cwd=ROOT, env=clean, capture_output=True, text=True, check=True).stdout
    assert "torch missing" in shown
    assert 'pip install "torch>=' in shown


def test_a_missing_part_raises_only_where_it_is_said_to(monkeypatch):
    wanted = {"imaginary": {"no-such-package": "1.0"}}
    assert env.check_environment(wanted)[1].fix == 'pip install "no-such-package>=1.0"'
    monkeypatch.setenv("DSSM_STRICT", "1")
    with pytest.raises(
        env.EnvironmentIncomplete, match=r'no-such-package missing. Fix: pip install "no-such-package>=1'
    ):
        env.check_environment(wanted)


def test_the_packages_are_those_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {"core": project["dependencies"], **project["optional-dependencies"]}
    for group, wanted in env.PACKAGES.items():
        stated = dict(re.fullmatch(r"([\w-]+)>=([\d.]+)", line).groups() for line in declared[group])
        stated.pop("graphviz-pure", None)  # only where there is no dot; a row of its own
        assert wanted == stated, group


@pytest.mark.parametrize(("version", "ok"), [((3, 10), False), ((3, 11), True), ((3, 14), True), ((3, 15), False)])
@pytest.mark.parametrize(("system", "word"), [("Linux", "apt"), ("Darwin", "brew"), ("Windows", "winget")])
def test_python_versions_and_the_fix_for_each_system(monkeypatch, version, ok, system, word):
    monkeypatch.setattr(env.platform, "system", lambda: system)
    monkeypatch.setattr(sys, "version_info", (*version, 0))
    fix = env.check_python().fix
    assert fix == "" if ok else word in fix


def test_a_package_that_is_too_old_is_named_with_what_is_needed(monkeypatch):
    monkeypatch.setattr(env, "installed", {"a": "1.9.1", "b": "1.10+cpu", "d": "2.6.0rc1"}.get)
    row = env.check_packages("g", {"a": "1.10", "b": "1.9", "c": "2", "d": "2.6"})
    assert row.found == "a 1.9.1, b 1.10+cpu, c missing, d 2.6.0rc1"
    assert row.fix == 'pip install "a>=1.10" "c>=2"'


def test_the_prebuilt_annoy_counts_as_annoy(monkeypatch):
    def version(name):
        if name == "annoy-mm":
            return "1.17.3"
        raise env.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(env.importlib.metadata, "version", version)
    assert env.installed("annoy") == "1.17.3"
    assert env.installed("faiss-cpu") is None


@pytest.mark.parametrize(
    ("compilers", "annoy", "ok"), [(("g++",), None, True), ((), "1.17.3", True), ((), None, False)]
)
def test_a_compiler_is_needed_only_for_an_annoy_that_is_not_there(monkeypatch, compilers, annoy, ok):
    monkeypatch.setattr(shutil, "which", lambda name, path=None: name if name in compilers else None)
    monkeypatch.setattr(env, "installed", lambda name: annoy)
    assert (env.check_compiler().fix == "") is ok


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("raise ValueError('this Annoy returns wrong neighbours')", "wrong neighbours"),
        ("raise SystemExit('undefined symbol')", "undefined symbol"),
        ("import os; os.abort()", "crashed with code"),
    ],
)
def test_a_bad_build_of_annoy_is_found_even_if_it_crashes(monkeypatch, script, found):
    monkeypatch.setattr(env, "installed", lambda name: "1.17.3")
    row = env.check_annoy(script)
    assert found in row.found
    assert row.fix == ANNOY_CURE


def test_an_annoy_without_numpy_is_no_bad_build(monkeypatch):
    monkeypatch.setattr(env, "installed", lambda name: "1.17.3")
    monkeypatch.setattr(env, "PRINT_CURE", "import no_such_numpy\n")
    row = env.check_annoy()
    assert "no_such_numpy" in row.found
    assert row.fix == "install the packages above"


def test_a_good_annoy_agrees_with_exact_search():
    pytest.importorskip("annoy")
    assert env.check_annoy() == env.Row("annoy against exact search", "they agree")


@pytest.mark.parametrize(("there", "found"), [("dot", "dot"), ("graphviz-pure", "graphviz-pure"), ("", "neither")])
def test_graphviz_by_dot_or_by_the_wheel(monkeypatch, there, found):
    monkeypatch.setattr(shutil, "which", lambda name, path=None: name if name == there else None)
    row = env.check_graphviz()
    assert row.found.startswith(found)
    assert row.fix == ("" if there else "pip install graphviz-pure")


@pytest.mark.parametrize(("policy", "ok"), [("PASSIVE", True), ("passive", True), ("ACTIVE", False), (None, False)])
def test_spinning_threads_are_reported(monkeypatch, policy, ok):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if policy:
        monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    assert env.check_threads().fix == ("" if ok else "export OMP_WAIT_POLICY=PASSIVE")


def test_a_full_disk_is_reported_and_the_remedy_clears_the_row(monkeypatch, tmp_path):
    def usage(path):
        return SimpleNamespace(free=5e11 if tmp_path in (path, *path.parents) else 1.2e9)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    monkeypatch.setenv("DSSM_DATA_DIR", str(tmp_path / "new" / "data"))
    row = env.check_disk()  # one of the two folders is enough to fill
    assert row.found == "1.2 GB"
    assert "DSSM_ARTIFACTS_DIR=" in row.fix
    monkeypatch.setenv("DSSM_ARTIFACTS_DIR", str(tmp_path / "new" / "artifacts"))
    assert env.check_disk() == env.Row("free disk", "more than 10 GB")
