"""The repository's promises: versions agree, imports go one way, notebooks are clean, README is current."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import numpy as np
import pytest
from conftest import NOTEBOOKS, ROOT, notebook_paths

from dssm_helpers import MODULES
from dssm_helpers.course import runner
from dssm_helpers.course.environment import installed

PACKAGE = ROOT / "dssm_helpers"
PATHS = [pytest.param(path, id=path.stem) for path in notebook_paths()]


def pinned() -> dict[str, str]:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_environment_yml_takes_its_versions_from_requirements_txt():
    # Only the shape matters here, so no YAML library: the pip part must include the pins and the package itself.
    text = (ROOT / "environment.yml").read_text(encoding="utf-8")
    conda, pip = text.split("- pip:\n")
    assert [line.strip() for line in pip.strip().splitlines()] == ["- -r requirements.txt", "- -e ."]
    named = re.findall(r"^  - ([\w-]+)", conda, re.M)
    assert {"graphviz", "cxx-compiler", "python", "pip"} <= set(named)
    assert not set(named) & set(pinned()) - {"graphviz"}, "a package pinned by pip must not come from conda as well"
    python = re.search(r"python=(\d+)\.(\d+)", conda)
    assert (3, 11) <= (int(python[1]), int(python[2])) <= (3, 14)


def test_installed_versions_are_the_pinned_ones():
    found = {name: str(installed(name)).split("+")[0] for name in pinned()}
    assert found == pinned()


def test_package_metadata_admits_the_pins():
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = [*project["dependencies"], *(r for part in project["optional-dependencies"].values() for r in part)]
    for requirement in map(Requirement, requirements):
        assert requirement.specifier.contains(pinned()[requirement.name]), requirement.name


def imported(path: Path) -> set[str]:
    """Names of this package's modules that a file imports, anywhere in it; ``course`` for anything of the school."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("dssm_helpers")):
            inside = (node.module or "").removeprefix("dssm_helpers").strip(".").split(".")[0]
            found |= {inside} if inside else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("dssm_helpers.")}
    return found & {"course", *MODULES}


def test_imports_go_one_way():
    assert {path.stem for path in PACKAGE.glob("*.py")} == {"__init__", *MODULES}
    late = {name: imported(PACKAGE / f"{name}.py") - set(MODULES[:number]) for number, name in enumerate(MODULES)}
    assert not {name: found for name, found in late.items() if found}, "each imports only what comes before it"
    assert MODULES.index("training") < MODULES.index("evaluation")


def test_one_place_divides_by_the_temperature():
    divided = []
    for path in (PACKAGE / f"{name}.py" for name in MODULES):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            division = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)
            if division and "temperature" in ast.unparse(node.right):
                divided.append((path.stem, ast.unparse(node)))
    assert divided == [("model", "users / self.temperature")]


def defined(path: Path) -> set[str]:
    """What a module defines, methods and fields as ``Class.name``; of a TOML file its keys."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".toml":
        return set(re.findall(r"^(\w+) =", text, re.M))
    found = set()
    for owner in [tree := ast.parse(text), *(node for node in tree.body if isinstance(node, ast.ClassDef))]:
        for node in owner.body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", node)]
            names = [getattr(target, "name", getattr(target, "id", "")) for target in targets]
            found |= {f"{owner.name}.{name}" if isinstance(owner, ast.ClassDef) else name for name in names}
    return found


def test_what_contributing_names_is_there():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \|$", text, re.M)[1:]  # without the titles
    assert len(rows) == 21
    for change, opened, run in rows:
        places = re.findall(r"`([\w/.]+\.\w+)` `([\w.]+)`", opened)
        assert places, change
        assert not [place for place in places if place[1] not in defined(ROOT / place[0])], change
        assert re.fullmatch(r"tests/\w+\.py( tests/\w+\.py)*", run), change
        assert all((ROOT / file).exists() for file in run.split()), change


def test_the_package_sets_the_thread_policy_before_torch_and_needs_no_torch_itself():
    code = (
        "import os, sys; os.environ.pop('OMP_WAIT_POLICY', None); import dssm_helpers, dssm_helpers.vocabulary; "
        "print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == ["PASSIVE", "False"]


def test_no_ratings_are_committed():
    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=True).stdout.split()
    assert tracked
    suspicious = [f for f in tracked if re.search(r"(^|/)(u\.data|ratings\.dat|.*\.(zip|whl|inter|safetensors))$", f)]
    assert not suspicious


# -- notebooks --------------------------------------------------------------------------------------------------------


def test_notebooks_are_numbered_without_a_gap():
    assert [p.stem[:2] for p in notebook_paths()] == [f"{i:02d}" for i in range(max(13, len(PATHS)))]


@pytest.mark.parametrize("path", PATHS)
def test_committed_notebooks_are_executed_and_clean(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "make notebooks re-executes it"
    assert path.stat().st_size < 500_000
    assert "widgets" not in notebook.metadata
    for cell in notebook.cells:
        assert "execution" not in cell.metadata
        for output in cell.get("outputs", []):
            assert output.output_type != "error"
            text = json.dumps(output)
            assert not re.search(r"(/root/|/home/\w|/tmp/|/Users/\w|[A-Z]:\\\\Users)", text), "a machine path"
            assert "widget-view" not in text
            if output.get("name") == "stderr":
                assert "warning" not in output.text.lower()


@pytest.mark.parametrize("path", PATHS)
def test_notebooks_share_their_setup_and_link_to_each_other(path):
    notebook = nbformat.read(path, as_version=4)
    first = nbformat.read(notebook_paths()[0], as_version=4)
    assert notebook.cells[1].source == first.cells[1].source, "the set-up cell is the same everywhere"
    title = notebook.cells[0].source
    assert title.startswith(f"# {path.stem[:2]} · ")
    assert runner._title_and_promise(path)
    linked = re.findall(r"\]\((\w+\.ipynb)\)", "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown"))
    assert not [name for name in linked if not (NOTEBOOKS / name).exists()]
    assert "\n\n**You need:**" in title, "an empty line before it, or it runs into the links"


def test_nothing_is_fetched_from_an_address_of_the_project_until_it_has_one():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "urls" not in project
    for path in notebook_paths():
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"git\+https?://|colab\.research\.google|raw\.githubusercontent|[%!]pip install", text), (
            path.name
        )


@pytest.mark.parametrize("path", PATHS)
def test_notebooks_are_fit_to_read(path):
    cells = nbformat.read(path, as_version=4).cells
    code = [c.source.splitlines() for c in cells if c.cell_type == "code"]
    prose = [c.source for c in cells if c.cell_type == "markdown" and "<details" not in c.source]
    lengths = [len([line for line in lines if line.strip()]) for lines in code]
    assert len(cells) <= 60
    assert sum(len(text.split()) for text in prose) <= 1_800
    assert max(len(line) for lines in code for line in lines) <= 96
    assert np.median(lengths) <= 8
    assert max(lengths) <= 25


@pytest.mark.parametrize("path", PATHS)
def test_every_picture_says_what_it_shows_and_drawing_code_is_folded(path):
    for cell in nbformat.read(path, as_version=4).cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                assert len(output.metadata["image/png"]["alt"]) > 20, cell.source
        if cell.source.startswith("# @title"):
            assert cell.metadata.jupyter.source_hidden
            assert "hide-input" in cell.metadata.tags


# -- README -----------------------------------------------------------------------------------------------------------


def test_readme_tables_are_generated_from_the_measured_results():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    results = json.loads(runner.PUBLISHED.read_text(encoding="utf-8"))
    assert runner.render_readme(text, results) == text, "python -m dssm_helpers.course readme refreshes it"
    assert {"dssm", "dssm_mean", "popularity", "item_knn", "ease"} <= set(results["models"])
    assert results["dataset"] == "ml-100k"


def test_readme_quotes_the_stored_benchmarks():
    program = "import report as r; print(r.table(r.fast(r.shared.read_json(r.shared.RESULTS))))"
    folder = ROOT / "benchmarks"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=folder, check=True)
    assert done.stdout.strip() in (ROOT / "README.md").read_text(encoding="utf-8"), "python benchmarks/report.py"


def test_readme_links_lead_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    assert targets
    assert not [t for t in targets if not (ROOT / t).exists()]
