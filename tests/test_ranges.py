"""What the notebooks record lies in its stated ranges (ranges.toml): the committed results, and those of this very run.

Where this run executes notebooks, their figures are looked at after them (workers.py); else what an earlier run left.
"""

from __future__ import annotations

import json
import tomllib

import pytest
import ranges
from conftest import NOTEBOOKS, notebook_paths

from dssm_helpers.course.runner import PUBLISHED
from dssm_helpers.course.workspace import Workspace
from dssm_helpers.settings import dataset_name, strict

RANGES = tomllib.loads(ranges.FILE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def committed() -> dict:
    return json.loads(PUBLISHED.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def recorded() -> dict:
    """What notebooks have recorded on ml-100k with this code."""
    return Workspace("ml-100k", progress=False).results()


@pytest.mark.parametrize("notebook", RANGES)
def test_the_committed_figures_lie_in_their_ranges(committed, notebook):
    assert ranges.outside(committed, RANGES[notebook]) == []
    assert RANGES[notebook].keys() == ranges.around(committed)[notebook].keys(), "python tests/ranges.py"


@pytest.mark.parametrize("notebook", RANGES)
def test_what_is_recorded_lies_in_its_ranges(recorded, notebook, request):
    missing = RANGES[notebook].keys() - ranges.flat(recorded).keys()
    executed = {item.path.stem[:2] for item in request.session.items if item.path.parent == NOTEBOOKS}
    if strict() and notebook in executed and dataset_name() == "ml-100k":
        assert not missing, f"notebook {notebook} ran and has not recorded these"
    elif missing == RANGES[notebook].keys():
        pytest.skip("this notebook has recorded nothing on ml-100k with this code: `make run`, or `make test`")
    assert ranges.outside(recorded, RANGES[notebook]) == []


def test_a_worse_recipe_and_an_edited_figure_are_noticed(committed):
    """Of what the scoreboard has beside the default nothing could pass for it."""
    board = committed["models"]
    passing = [name for name, row in board.items() if not ranges.outside({"models": {"dssm": row}}, RANGES["05"])]
    assert passing == ["dssm"]
    edited = {"models": {"ease": {"hit@10": board["ease"]["hit@10"] + 2 / 943}}}
    (found,) = ranges.outside(edited, RANGES["05"])
    assert found.startswith("models/ease/hit@10 is 0.145281, which is not in 0.1420")


def test_every_notebook_that_measures_is_held():
    without = {"10", "12", "16"}  # the head of the file says why
    assert {path.stem[:2] for path in notebook_paths()} - without == RANGES.keys()
