"""What every exercise check has in common: a verdict, a hint, and a failure in strict mode."""

from __future__ import annotations

import numpy as np
import pytest

from dssm_helpers.course.checks import close, exercise


@exercise("double it")
def check_double(function):
    close(function(2), 4, "your result for 2", "Multiply by two.")


@pytest.fixture(autouse=True)
def lenient(monkeypatch):
    monkeypatch.delenv("DSSM_STRICT", raising=False)


def unfinished(x):
    raise NotImplementedError("Multiply")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda x: 3 * x, "Multiply by two"),
        (lambda x: None, "forget to return"),
        (lambda x: [x, x], r"has shape (2,), expected ()"),
        (lambda x: x / 0, "raised ZeroDivisionError"),
        (unfinished, "○ double it: still open. Multiply"),
        (lambda: 1, "raised TypeError"),
    ],
)
def test_a_wrong_answer_gets_a_hint_instead_of_a_traceback(answer, said, capsys):
    assert not check_double(answer)
    assert said in capsys.readouterr().out


def test_a_right_answer_passes_and_shows_nothing_more(capsys):
    verdict = check_double(lambda x: 2 * x)
    assert verdict
    assert capsys.readouterr().out == "✓ double it\n"
    assert verdict._ipython_display_() is None


def test_strict_mode_fails_on_a_wrong_answer(monkeypatch):
    monkeypatch.setenv("DSSM_STRICT", "1")
    with pytest.raises(AssertionError, match="double it"):
        check_double(lambda x: x)
    assert not check_double(unfinished)  # an open exercise stops nothing


@exercise("halve it")
def check_half():
    """Divide by two."""
    yield (4,), 2, (8, "You doubled it.")
    yield (np.array([1.0, 2.0]),), [0.5, 1.0], "Of an array each entry."


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda x: x / 2, "✓ halve it"),
        (lambda x: x / 2 * (1 + 1e-7), "✓ halve it"),
        (lambda x: np.divide(x, 2, out=x) if isinstance(x, np.ndarray) else x / 2, "✓ halve it"),
        (lambda x: 2 * x, "✗ halve it: the answer for 4 is 8, expected 2. You doubled it."),
        (lambda x: x, "✗ halve it: the answer for 4 is 4, expected 2. Divide by two."),
        (lambda x: 2, "the answer for [1. 2.] has shape (), expected (2,). Of an array each entry. Divide by two."),
        (lambda x: "2", "the answer for 4 is '2', expected 2. Divide by two."),
    ],
)
def test_cases_give_the_hint_that_fits(answer, said, capsys):
    assert check_half(answer) == said.startswith("✓")
    assert said in capsys.readouterr().out
