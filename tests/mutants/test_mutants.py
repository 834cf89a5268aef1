"""What is planted and what is left alone, that a planted fault is seen, and that the page is that of the record."""

from __future__ import annotations

import json
from pathlib import Path

import mutants
from operators import Mutant, mutants_of

SOURCE = '''
def pick(rows: list[int | None] = [], *, dim=0) -> "a - b":
    """Not 1 + 1."""
    with lock:
        total = max(len(rows), 3) + abs(-2)
    if total > 5 and not rows:
        raise ValueError(f"{total + 1} > 5")
    for row in rows:
        total -= row
    return rows.sum(axis=0) if rows else swap(rows, total)
'''


def test_each_operator_plants_its_slip_and_nothing_is_planted_in_texts_and_annotations():
    found = {(m.line, m.operator, m.now) for m in mutants_of("pick.py", SOURCE)}
    assert found >= {
        (2, "constant", "(1)"),
        (4, "lock or context dropped", "__import__('contextlib').nullcontext()"),
        (5, "other function", "(min(len(rows), 3))"),
        (5, "arithmetic", "(max(len(rows), 3) - abs(-2))"),
        (5, "call dropped", "(-2)"),
        (5, "sign or not dropped", "(2)"),
        (6, "comparison", "(total >= 5)"),
        (6, "and, or", "(total > 5 or not rows)"),
        (6, "condition negated", "(not (total > 5 and (not rows)))"),
        (6, "guard dropped", "pass"),
        (9, "statement dropped", "pass"),
        (9, "loop ends early", "total -= row; break"),
        (10, "axis", "(rows.sum(axis=1))"),
        (10, "arguments swapped", "(swap(total, rows))"),
    }
    assert not [line for line, *_ in found if line in (3, 7)], "a docstring, an error"
    assert {operator for line, operator, _ in found if line == 2} == {"constant"}, "annotations"


def test_a_fault_is_planted_where_it_says():
    for mutant in mutants_of("pick.py", SOURCE):
        planted = mutant.planted(SOURCE)
        assert planted != SOURCE
        assert planted.count("\n") <= SOURCE.count("\n")


def test_a_planted_fault_is_seen_and_the_file_is_as_before(tmp_path: Path):
    module, test = tmp_path / "dssm_helpers" / "half.py", tmp_path / "test_half.py"
    module.parent.mkdir()
    module.write_text("def half(x):\n    return x / 2 + 0\n")
    test.write_text(
        "import runpy\n\ndef test_half():\n    assert runpy.run_path('dssm_helpers/half.py')['half'](4) == 2\n"
    )
    before = module.read_text()
    for now, caught_by in (("x * 2", "test_half.py::test_half"), ("(x / 2)", "")):
        mutant = Mutant("half.py", 2, "arithmetic", "return x / 2 + 0", "x / 2", now, before.index("x / 2"))
        assert mutants.judge(tmp_path, mutant, [["test_half.py"]]) == caught_by
        assert module.read_text() == before


def test_the_page_is_that_of_the_record_and_every_survivor_has_its_why():
    record = json.loads(mutants.RECORD.read_text(encoding="utf-8"))
    assert mutants.PAGE.read_text(encoding="utf-8") == mutants.page(record), "python tests/mutants/mutants.py --page"
    assert all(entry["caught_by"] or entry["why"] for entry in record)
    assert mutants.score(record) >= 0.92
