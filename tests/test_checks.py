"""What every exercise check has in common: a verdict, a hint, and a failure in strict mode."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dssm_helpers.course.checks import exercise
from dssm_helpers.course.checks.notebook_11 import _FromAColleague


@exercise("halve it")
def check_half():
    """Divide by two."""
    yield (4,), 2, (8, "You doubled it.")
    yield (np.array([1.0, 2.0]),), [0.5, 1.0], "Of an array each entry."


def unfinished(x):
    raise NotImplementedError("Divide")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda x: x / 2 * (1 + 1e-7), "✓ halve it\n"),
        (lambda x: np.multiply(x, 0, out=x) if np.ndim(x) else x / 2, "the answer for [1. 2.] is [0. 0.], expected"),
        (lambda x: 2 * x, "✗ halve it: the answer for 4 is 8, expected 2. You doubled it."),
        (lambda x: x, "✗ halve it: the answer for 4 is 4, expected 2. Divide by two."),
        (lambda x: 2, "the answer for [1. 2.] has shape (), expected (2,). Of an array each entry. Divide by two."),
        (lambda x: "2", "the answer for 4 is '2', expected 2. Divide by two."),
        (lambda x: None, "forget to return"),
        (lambda x: x / 0, "raised ZeroDivisionError"),
        (lambda: 1, "raised TypeError"),
        (unfinished, "○ halve it: still open. Divide"),
    ],
)
def test_an_answer_gets_a_verdict_and_the_hint_that_fits_instead_of_a_traceback(answer, said, capsys, monkeypatch):
    monkeypatch.delenv("DSSM_STRICT", raising=False)
    verdict = check_half(answer)
    assert verdict == said.startswith("✓")
    assert said in capsys.readouterr().out
    assert verdict._ipython_display_() is None  # all has been said


def test_strict_mode_fails_on_a_wrong_answer_but_not_on_an_open_one(monkeypatch):
    monkeypatch.setenv("DSSM_STRICT", "1")
    with pytest.raises(AssertionError, match="halve it"):
        check_half(lambda x: x)
    assert not check_half(unfinished)


def test_the_batches_of_notebook_11_hold_everything_up_to_the_targets_second(data):
    coarse = replace(data, timestamp=data.timestamp // 2_000)  # so that several share a second
    histories = _FromAColleague(coarse, max_history=10).users(np.arange(len(data)))["history"].tolist()
    for start, end in zip(data.offsets[:-1], data.offsets[1:], strict=True):
        for position in range(start, end):
            shown = data.item[start:end][coarse.timestamp[start:end] <= coarse.timestamp[position]][::-1][:10].tolist()
            assert histories[position] == shown + [0] * (10 - len(shown))
