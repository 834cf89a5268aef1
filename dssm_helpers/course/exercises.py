"""One source, three courses: the learner's notebooks, the solved ones, and the ones nbgrader marks.

The learner's notebook is the source. An exercise that asks for code is a cell with a function to write or to mend, a
cell with its check, and a Markdown cell that holds the solution, folded::

    <details><summary>Solution</summary>

    ```python
    def …
    ```

    </details>
"""

from __future__ import annotations

import ast
import copy
import re

import nbformat

FOLDED = re.compile(r"<details>\s*<summary>Solution</summary>\s*\n\s*```python\n(.*?)```.*?</details>", re.S)
CHECK = re.compile(r"\bcheck_\w+\([^()]*\)")


def solve(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A copy in which every folded solution has taken the place of its function; no outputs.

    Raises:
        ValueError: a solution that is no function, or whose function stands in no cell before it; a stub that no
            solution fills.
    """
    solved = copy.deepcopy(notebook)
    for number, cell in enumerate(solved.cells):
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        for solution in _solutions(cell):
            stub = _stub_of(solution, solved.cells[:number])
            stub.source = _put(stub.source, solution)
    open_stubs = [c.source for c in solved.cells if c.cell_type == "code" and "raise NotImplementedError" in c.source]
    if open_stubs:
        raise ValueError(f"no solution fills this exercise:\n{open_stubs[0]}")
    return solved


def for_nbgrader(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A copy with nbgrader's marks: solutions between its markers, checks that are locked and fail, nothing folded."""
    graded = solve(notebook)
    cells: list[nbformat.NotebookNode] = []
    graded_stubs = [
        _stub_of(text, graded.cells[:n]) for n, cell in enumerate(graded.cells) for text in _solutions(cell)
    ]
    for cell in graded.cells:
        if _solutions(cell):
            continue
        cells.append(cell)
        if any(cell is stub for stub in graded_stubs):
            cell.source = _marked(cell.source)
            cell.metadata.nbgrader = _nbgrader(f"write_{len(cells)}", solution=True)
        elif (
            cell.cell_type == "code"
            and (check := CHECK.search(cell.source))
            and any(c is cells[-2] for c in graded_stubs)
        ):
            test = nbformat.v4.new_code_cell(f"assert {check[0]}")
            test.metadata.nbgrader = _nbgrader(f"check_{len(cells)}", grade=True)
            cells.insert(-1, test)
    graded.cells = cells
    return graded


def _nbgrader(name: str, *, solution: bool = False, grade: bool = False) -> dict:
    points = {"points": 1} if grade else {}
    return {
        "schema_version": 3,
        "grade_id": name,
        "solution": solution,
        "grade": grade,
        "locked": grade,
        "task": False,
        **points,
    }


def _solutions(cell: nbformat.NotebookNode) -> list[str]:
    return FOLDED.findall(cell.source) if cell.cell_type == "markdown" else []


def _functions(source: str) -> dict[str, ast.FunctionDef]:
    try:
        return {node.name: node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    except SyntaxError:  # a cell with a command of the shell
        return {}


def _stub_of(solution: str, before: list[nbformat.NotebookNode]) -> nbformat.NotebookNode:
    """The last cell that defines a function of the solution."""
    names = _functions(solution).keys()
    for cell in reversed(before):
        if cell.cell_type == "code" and names & _functions(cell.source).keys():
            return cell
    raise ValueError(f"no cell before this solution defines its function:\n{solution}")


def _put(source: str, solution: str) -> str:
    """``source`` with the functions of ``solution`` in the place of those of the same name."""
    lines, new = source.split("\n"), solution.split("\n")
    wanted = _functions(solution)
    for name, old in sorted(_functions(source).items(), key=lambda item: -item[1].lineno):  # from below: lines stay
        if name in wanted:
            lines[old.lineno - 1 : old.end_lineno] = new[wanted[name].lineno - 1 : wanted[name].end_lineno]
    return "\n".join(lines)


def _marked(source: str) -> str:
    """nbgrader's markers around the body of the cell's functions, after their docstrings."""
    lines = source.split("\n")
    for function in sorted(_functions(source).values(), key=lambda f: -f.lineno):
        body = function.body[1:] if ast.get_docstring(function) is not None else function.body
        indent = " " * body[0].col_offset
        lines.insert(function.end_lineno, f"{indent}### END SOLUTION")
        lines.insert(body[0].lineno - 1, f"{indent}### BEGIN SOLUTION")
    return "\n".join(lines)
