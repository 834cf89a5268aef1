"""What people who come to the repository find: well formed, and with the course's own pins and commands."""

from __future__ import annotations

import json
import tomllib

import pytest
from conftest import ROOT

from dssm_helpers.course import commands

yaml = pytest.importorskip("yaml", reason="pip install pyyaml")

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def load(name: str) -> dict:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_the_citation_names_this_version_and_its_sources():
    citation = load("CITATION.cff")
    assert citation["version"] == PROJECT["version"]
    assert {entry["doi"] for entry in citation["references"]} == {"10.1145/2505515.2505665", "10.1145/2827872"}
    for entry in citation["references"]:
        assert entry["doi"] in (ROOT / "README.md").read_text(encoding="utf-8") or "2505665" in entry["doi"]


def test_container_and_binder_use_the_same_pins():
    container = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text(encoding="utf-8"))
    assert container["postCreateCommand"] == "make .venv/.ready"
    binder = (ROOT / ".binder/requirements.txt").read_text(encoding="utf-8").splitlines()
    assert {"-r ../requirements.txt", "-e ."} <= set(binder)
    assert (ROOT / ".binder/runtime.txt").read_text(encoding="utf-8").strip() in container["image"].replace(":", "-")


def test_a_report_of_a_fault_brings_the_environment_check(capsys):
    body = {part.get("id"): part["attributes"] for part in load(".github/ISSUE_TEMPLATE/bug.yml")["body"]}
    assert "python -m dssm_helpers.course environment" in body["environment"]["description"]
    assert commands.main(["environment"]) == 0
    assert "| Python |" in capsys.readouterr().out


@pytest.mark.parametrize("name", [path.name for path in (ROOT / ".github/workflows").glob("*.yml")])
def test_workflows_are_well_formed(name):
    workflow = load(f".github/workflows/{name}")
    assert workflow[True], "what starts it"  # YAML reads the word `on` as true
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 90
        assert all(step.get("run") or step.get("uses") for step in job["steps"])


def test_ci_runs_the_promised_pythons_and_systems():
    jobs = load(".github/workflows/test.yml")["jobs"]
    assert jobs["linux"]["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13", "3.14"]
    assert {job["runs-on"].partition("-")[0] for job in jobs.values()} == {"ubuntu", "macos", "windows"}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for step in jobs["windows"]["steps"]:
        if "requirements-annoy-wheel" in step.get("run", ""):
            assert step["run"] in readme  # the README's own lines
