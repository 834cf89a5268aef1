"""What every exercise check has in common: a verdict, a hint, and a failure in strict mode."""

from __future__ import annotations

import numpy as np
import pytest

from dssm_helpers.course.checks import Hint, close, exercise


@exercise("double it")
def check_double(function):
    close(function(2), 4, "your result for 2", "Multiply by two.")


@pytest.fixture(autouse=True)
def lenient(monkeypatch):
    monkeypatch.delenv("DSSM_STRICT", raising=False)


def unfinished(x):
    raise NotImplementedError


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda x: 3 * x, "Multiply by two"),
        (lambda x: None, "forget to return"),
        (lambda x: [x, x], r"has shape (2,), expected ()"),
        (lambda x: x / 0, "raised ZeroDivisionError"),
        (unfinished, "nothing here yet"),
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


def test_close_compares_values_within_a_tolerance():
    close(np.array([1.0, 2.0]), [1.0, 2.0 + 1e-7], "it", "")
    with pytest.raises(Hint, match="expected"):
        close([1.0, 2.0], [1.0, 2.1], "it", "")
