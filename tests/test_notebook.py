"""What the cells of a notebook show."""

from __future__ import annotations

import base64
import io
from importlib.util import find_spec

import pytest
from matplotlib.figure import Figure
from PIL import Image

from dssm_helpers.course import notebook


@pytest.fixture
def shown(monkeypatch):
    """What was displayed."""
    found = []
    monkeypatch.setattr(notebook, "display", found.append)
    return found


@pytest.mark.parametrize(
    ("guess", "result", "text"),
    [
        (10, 6.264, "You guessed 10; it is **6.26** %."),
        (..., 6.264, "**6.26** % (no guess was made)."),
        ("up", "down", "You guessed up; it is **down** %."),
    ],
)
def test_a_guess_stands_beside_its_result_and_may_be_left_empty(shown, guess, result, text):
    notebook.beside(guess, result, "%")
    assert [output.data for output in shown] == [text]


def test_a_picture_is_sharp_and_says_what_it_shows(shown):
    figure = Figure(figsize=(4, 2))
    figure.add_subplot().plot([1, 2])
    notebook.show(figure, "a line that rises")
    png, described = shown[0]._repr_png_()
    assert described["alt"] == "a line that rises"
    pixels = Image.open(io.BytesIO(base64.b64decode(png))).width
    assert pixels // 2 == described["width"] <= 4 * notebook.SCREEN_DPI


def test_a_stored_result_is_read_or_the_command_that_makes_it_named(capsys):
    assert notebook.stored("results.json", "")["prep"]
    assert notebook.stored("nothing.json", "python benchmarks/it.py") is None
    assert "python benchmarks/it.py" in capsys.readouterr().out


FORMS = find_spec("ipywidgets") is not None
LAB = {"JPY_SESSION_NAME": "lab"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        (LAB, FORMS),
        ({**LAB, "DSSM_WIDGETS": "0"}, False),
        ({"DSSM_WIDGETS": "1"}, True),
    ],
)
def test_a_form_appears_only_where_somebody_can_click(monkeypatch, environment, expected):
    monkeypatch.setattr("os.environ", environment)
    assert notebook.live_front_end() is expected
