"""Exercises: every folded solution passes its check, and plausible wrong answers are rejected, each with its own hint.

``tests/exercises/NN.py`` holds the wrong answers of notebook NN: ``WRONG = {function: [(source, part of the hint)]}``.
"""

from __future__ import annotations

import ast
import re
import runpy
from pathlib import Path

import nbformat
import pytest
from conftest import notebook_paths

from dssm_helpers.course.exercises import CHECK, FOLDED, for_nbgrader, solve

ANSWERS = Path(__file__).parent / "exercises"
PATHS = [pytest.param(path, id=path.stem) for path in notebook_paths()]


def code(cell: nbformat.NotebookNode) -> ast.Module:
    return ast.parse(re.sub(r"^(\s*)[%!].*$", r"\1pass", cell.source, flags=re.M))


def namespace(path: Path) -> dict[str, object]:
    """A notebook's imports and its top-level functions and classes; nothing is computed."""
    found: dict[str, object] = {}
    kinds = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
    for cell in nbformat.read(path, as_version=4).cells:
        nodes = [n for n in code(cell).body if isinstance(n, kinds)] if cell.cell_type == "code" else []
        exec(compile(ast.Module(nodes, []), str(path), "exec"), found)
    return found


def exercises(path: Path) -> dict[str, tuple[str, str]]:
    """Function → (its solution, the call of its check), of the exercises of a notebook that ask for code."""
    cells, found = nbformat.read(path, as_version=4).cells, {}
    for number, cell in enumerate(cells):
        for solution in FOLDED.findall(cell.source) if cell.cell_type == "markdown" else ():
            name = next(node.name for node in ast.parse(solution).body if isinstance(node, ast.FunctionDef))
            calls = [CHECK.search(c.source) for c in cells[:number] if c.cell_type == "code" and f"({name}" in c.source]
            found[name] = solution, next(call[0] for call in reversed(calls) if call)
    return found


def wrong_answers(path: Path) -> dict[str, list[tuple[str, str]]]:
    return runpy.run_path(str(ANSWERS / f"{path.stem[:2]}.py"))["WRONG"]


@pytest.fixture(autouse=True)
def lenient(monkeypatch, tmp_path):
    monkeypatch.delenv("DSSM_STRICT", raising=False)
    monkeypatch.setenv("DSSM_ARTIFACTS_DIR", str(tmp_path))  # what is solved here is nobody's progress


def verdict(names: dict[str, object], source: str, check: str) -> bool:
    exec(source, names)
    return bool(eval(check, names))


@pytest.mark.parametrize("path", PATHS)
def test_solutions_pass_and_wrong_answers_get_their_own_hint(path, capsys):
    names, wrong = namespace(path), wrong_answers(path)
    assert wrong.keys() == exercises(path).keys()
    for function, (solution, check) in exercises(path).items():
        stub = names[function]
        assert verdict(names, solution, check), f"{function}: {capsys.readouterr().out}"
        capsys.readouterr()
        for source, piece in wrong[function]:
            assert not verdict(names, source, check), f"{function}: passed with\n{source}"
            said = capsys.readouterr().out
            assert piece in said, said
            assert "your code raised" not in said, said
        assert len(wrong[function]) >= 3
        assert len({piece for _, piece in wrong[function]}) == len(wrong[function]), "each its own hint"
        names[function] = stub


@pytest.mark.parametrize("path", PATHS)
def test_exercises_are_marked_rise_and_stand_open(path):
    cells = nbformat.read(path, as_version=4).cells
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    kinds = re.findall(r"^### Exercise (\d) · (explain|predict|write|debug|experiment) · \S", prose, re.M)
    assert [int(number) for number, _ in kinds] == [1, 2, 3][: len(kinds)]
    assert len(kinds) == 3
    assert {kind for _, kind in kinds} - {"write"}, "at least one that is no writing"
    assert sum(kind in ("write", "debug") for _, kind in kinds) == len(exercises(path))
    assert "BEGIN SOLUTION" not in "\n".join(cell.source for cell in cells)
    assert prose.count("<details>") == prose.count("</details>") >= 3


@pytest.mark.parametrize("path", PATHS)
def test_the_solved_and_the_graded_course_are_made_from_the_open_one(path):
    notebook = nbformat.read(path, as_version=4)
    solved, graded = solve(notebook), for_nbgrader(notebook)
    for function, (solution, _) in exercises(path).items():
        (body,) = (n for n in ast.parse(solution).body if isinstance(n, ast.FunctionDef) and n.name == function)
        stands = [
            n for c in solved.cells if c.cell_type == "code" for n in code(c).body if getattr(n, "name", "") == function
        ]
        assert [ast.dump(node) for node in stands] == [ast.dump(body)]
    asked = [cell for cell in graded.cells if cell.metadata.get("nbgrader", {}).get("grade")]
    assert len(asked) == len(exercises(path))
    assert all(cell.source.startswith("assert check_") for cell in asked)
    assert "<summary>Solution" not in "\n".join(cell.source for cell in graded.cells)
    assert sum("### BEGIN SOLUTION" in cell.source for cell in graded.cells) == len(exercises(path))


def test_a_solution_without_its_function_is_refused():
    lost = "<details><summary>Solution</summary>\n\n```python\ndef nowhere():\n    return 1\n```\n\n</details>"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(lost)])
    with pytest.raises(ValueError, match="nowhere"):
        solve(notebook)
