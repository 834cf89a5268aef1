"""The repository's promises: versions agree, imports go one way, notebooks are clean, README is current."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib

import nbformat
import numpy as np
import pytest
from conftest import NOTEBOOKS, ROOT, notebook_paths
from jupyter_client.kernelspec import KernelSpecManager
from packaging.requirements import Requirement

from dssm_helpers import MODULES
from dssm_helpers.course import runner
from dssm_helpers.course.environment import installed

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAIRS = [pytest.param(path, nbformat.read(path, as_version=4), id=path.stem) for path in notebook_paths()]
EACH = pytest.mark.parametrize(("path", "notebook"), PAIRS)


def pinned() -> dict[str, str]:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_environment_yml_takes_its_versions_from_requirements_txt():
    conda, pip = (ROOT / "environment.yml").read_text(encoding="utf-8").split("- pip:\n")
    assert [line.strip() for line in pip.strip().splitlines()] == ["- -r requirements.txt", "- -e ."]
    named = set(re.findall(r"^  - ([\w-]+)", conda, re.M))
    assert {"graphviz", "cxx-compiler", "python", "pip"} <= named
    assert not named & set(pinned()) - {"graphviz"}, "a package pinned by pip must not come from conda as well"
    assert 11 <= int(re.search(r"python=3\.(\d+)", conda)[1]) <= 14


@pytest.mark.pinned
def test_the_pins_are_what_is_installed():
    assert {name: str(installed(name)).split("+")[0] for name in pinned()} == pinned()


def test_the_pins_are_what_the_package_admits():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for lines in (project["dependencies"], *project["optional-dependencies"].values()):
        for requirement in map(Requirement, lines):
            assert requirement.specifier.contains(pinned()[requirement.name]), requirement.name


def nodes(module: str) -> list[ast.AST]:
    return list(ast.walk(ast.parse((ROOT / "dssm_helpers" / f"{module}.py").read_text(encoding="utf-8"))))


def imported(module: str) -> set[str]:
    """Modules of this package that one of them imports, anywhere in it; ``course`` for anything of the school."""
    statements = [ast.unparse(node) for node in nodes(module) if isinstance(node, (ast.Import, ast.ImportFrom))]
    ours = [text for text in statements if text.startswith("from .") or "dssm_helpers" in text]
    return set(re.findall(r"\w+", " ".join(ours))) & {"course", *MODULES}


def test_imports_go_one_way():
    assert {path.stem for path in ROOT.glob("dssm_helpers/*.py")} == {"__init__", *MODULES}
    late = {name: imported(name) - set(MODULES[:number]) for number, name in enumerate(MODULES)}
    assert not {name: found for name, found in late.items() if found}, "each imports only what comes before it"


def test_one_place_divides_by_the_temperature():
    operations = [node for name in MODULES for node in nodes(name) if isinstance(node, ast.BinOp)]
    divisions = [
        node for node in operations if isinstance(node.op, ast.Div) and "temperature" in ast.unparse(node.right)
    ]
    assert [ast.unparse(node) for node in divisions] == ["users / self.temperature"]


def test_what_contributing_names_is_there():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \|$", text, re.M)[1:]  # without the titles
    assert len(rows) >= 21
    for change, opened, run in rows:
        places = re.findall(r"`([\w/.]+\.\w+)` `([\w.]+)`", opened)
        assert places, change
        for file, name in places:
            for part in name.split("."):  # a definition: a class, a function, a field, a constant, a key of TOML
                defined = rf"^( {{4}})?((class|def) {part}\b|{part}(: .+)? = |{part}: )"
                assert re.search(defined, (ROOT / file).read_text(encoding="utf-8"), re.M), (change, file, name)
        assert all(re.match(r"tests/(\w+/)?test_", file) and (ROOT / file).exists() for file in run.split()), change


def test_the_package_sets_the_thread_policy_before_torch_and_needs_no_torch_itself(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY")
    code = "import os, sys, dssm_helpers.vocabulary; print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT).split() == ["PASSIVE", "False"]


def test_make_lab_opens_the_first_notebook_with_a_kernel_that_is_there():
    """test_browser.py starts JupyterLab by the same line."""
    path, notebook = PAIRS[0].values
    assert f"jupyter lab notebooks/{path.name}" in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert notebook.metadata.kernelspec.name in KernelSpecManager().find_kernel_specs()


def test_no_ratings_are_committed():
    tracked = subprocess.check_output(["git", "ls-files"], text=True, cwd=ROOT).split()
    assert tracked
    assert not [f for f in tracked if re.search(r"(^|/)(u\.data|ratings\.dat|.*\.(zip|whl|inter|safetensors))$", f)]


def test_notebooks_are_numbered_without_a_gap():
    assert [path.stem[:2] for path in notebook_paths()] == [f"{number:02d}" for number in range(18)]


@EACH
def test_committed_notebooks_are_executed_and_clean(path, notebook):
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "make notebooks re-executes it"
    assert path.stat().st_size < 500_000
    assert "widgets" not in notebook.metadata
    assert not [cell for cell in notebook.cells if "execution" in cell.metadata]
    for output in (output for cell in code for output in cell.outputs):
        assert output.output_type != "error"
        marks = r"/root/|/home/\w|/tmp/|/Users/\w|[A-Z]:\\\\Users|widget-view"
        assert not re.search(marks, json.dumps(output)), "a machine path, or a widget"
        assert output.get("name") != "stderr" or "warning" not in output.text.lower()


@EACH
def test_notebooks_share_their_setup_and_link_to_each_other(path, notebook):
    first = PAIRS[0].values[1]
    assert notebook.cells[1].source == first.cells[1].source, "the set-up cell is the same everywhere"
    title = notebook.cells[0].source
    assert title.startswith(f"# {path.stem[:2]} · ")
    assert "\n\n**You need:**" in title, "an empty line before it, or it runs into the links"
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert not [name for name in re.findall(r"\]\((\w+\.ipynb)\)", prose) if not (NOTEBOOKS / name).exists()]


@EACH
def test_notebooks_are_fit_to_read(path, notebook):
    code = [cell.source.splitlines() for cell in notebook.cells if cell.cell_type == "code"]
    prose = [c.source for c in notebook.cells if c.cell_type == "markdown" and "<details" not in c.source]
    lengths = [len([line for line in lines if line.strip()]) for lines in code]
    assert len(notebook.cells) <= 60
    assert sum(len(text.split()) for text in prose) <= 1_800
    assert max(len(line) for lines in code for line in lines) <= 96
    assert np.median(lengths) <= 8
    assert max(lengths) <= 25


@EACH
def test_every_picture_says_what_it_shows_and_drawing_code_is_folded(path, notebook):
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                assert len(output.metadata["image/png"]["alt"]) > 20, cell.source
        if cell.source.startswith("# @title"):
            assert cell.metadata.jupyter.source_hidden
            assert "hide-input" in cell.metadata.tags


def test_readme_tables_are_generated_from_the_measured_results():
    results = json.loads(runner.PUBLISHED.read_text(encoding="utf-8"))
    assert runner.render_readme(README, results) == README, "python -m dssm_helpers.course readme refreshes it"
    assert {"dssm", "dssm_mean", "popularity", "item_knn", "ease"} <= set(results["models"])
    assert results["dataset"] == "ml-100k"
    assert set(results["notebook_mib"]) == {path.stem for path in notebook_paths()}
    assert max(results["notebook_mib"].values()) * 2**20 < 2e9, "a free hosted machine has two gigabytes"


def test_readme_quotes_the_stored_benchmarks():
    program = "import report as r; print(r.table(r.fast(r.shared.read_json(r.shared.RESULTS))))"
    table = subprocess.check_output([sys.executable, "-c", program], text=True, cwd=ROOT / "benchmarks")
    assert table.strip() in README, "python benchmarks/report.py"


def test_readme_links_lead_somewhere():
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert targets
    assert not [target for target in targets if not (ROOT / target).exists()]
