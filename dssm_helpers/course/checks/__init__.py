"""Checks for the exercises: what is wrong, and a hint how to go on, instead of a traceback.

A check prints ``✓`` or ``✗`` with a hint and returns whether it passed. With ``DSSM_STRICT=1`` (CI, where the
solutions run) a failed check raises, so a wrong solution cannot look green.

Each notebook has a module here, ``notebook_NN.py``: functions with :func:`exercise` above them.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator

import numpy as np
import torch

from ...settings import strict


class Hint(Exception):
    """What is wrong with an answer and how to go on."""


class Verdict(int):
    """1 if the answer passed, else 0. Shows nothing at the end of a cell, where all has been said."""

    def _ipython_display_(self) -> None:
        pass


def exercise(title: str, tolerance: float = 1e-5) -> Callable[[Callable], Callable[..., Verdict]]:
    """Turn a function that raises :class:`Hint` on a wrong answer, or a generator of cases, into a check that reports.

    A case is ``arguments, expected`` of the learner's function, compared by :func:`close`. The generator's docstring is
    the hint. A text in a case stands before it; a pair is a well-known wrong answer and the hint to give instead.
    """

    def decorate(check: Callable) -> Callable[..., Verdict]:
        @functools.wraps(check)
        def report(*answer: object) -> Verdict:
            problem, unanswered = None, False
            try:
                if inspect.isgeneratorfunction(check):
                    _compare(*answer, check(), check.__doc__ or "", tolerance)
                else:
                    check(*answer)
            except Hint as hint:
                problem = str(hint)
            except NotImplementedError as stub:
                problem, unanswered = f"still open. {stub}".strip(), True
            except Exception as error:
                # Whatever a learner's code raises is an answer to comment on, not a failure of the check.
                problem = f"your code raised {type(error).__name__}: {error}"
            print(f"✓ {title}" if problem is None else f"{'○' if unanswered else '✗'} {title}: {problem}")
            if problem is not None and not unanswered and strict():
                raise AssertionError(f"{title}: {problem}")
            if problem is None and not strict():  # there the solutions run, which nobody has written just now
                from ..progress import record  # which lists the modules of this package

                record(report)
            return Verdict(problem is None)

        report.exercise = title
        return report

    return decorate


def _compare(function: Callable, cases: Iterator[tuple], hint: str, tolerance: float) -> None:
    for arguments, expected, *said in cases:
        answer = function(*copy.deepcopy(arguments))  # which may write into what it is given
        shown = ", ".join(_one_line(argument) for argument in arguments)
        reasons = [text for text in said if isinstance(text, str)]
        mistakes = [pair for pair in said if isinstance(pair, tuple)]
        why = " ".join([*reasons, *hint.split()])
        close(answer, expected, f"the answer for {shown}", why, *mistakes, tolerance=tolerance)


def close(answer: object, expected: object, what: str, hint: str, *mistakes: tuple, tolerance: float = 1e-5) -> None:
    """Raise a :class:`Hint` unless ``answer`` equals ``expected`` in shape and, within ``tolerance``, in value.

    Args:
        what: names the answer in the message.
        mistakes: well-known wrong answers, each with the hint to give instead of ``hint``.
    """
    if answer is None:
        raise Hint(f"{what} is None; did you forget to return it?")
    got, wanted = _array(answer), _array(expected)
    if got.dtype.kind not in "biuf":
        raise Hint(f"{what} is {answer!r}, expected {wanted}. {hint}")

    def same(other: np.ndarray) -> bool:
        return got.shape == other.shape and np.allclose(got, other, tolerance, tolerance, equal_nan=True)

    if same(wanted):
        return
    hint = next((why for wrong, why in mistakes if same(_array(wrong))), hint)
    if got.shape != wanted.shape:
        raise Hint(f"{what} has shape {got.shape}, expected {wanted.shape}. {hint}")
    raise Hint(f"{what} is {_one_line(got)}, expected {_one_line(wanted)}. {hint}")


def _array(value: object) -> np.ndarray:
    return np.asarray(value.detach() if isinstance(value, torch.Tensor) else value)


def _one_line(value: object) -> str:
    if isinstance(value, (np.ndarray, torch.Tensor)):
        value = _array(value)
        value = np.round(value, 4) if value.dtype.kind == "f" else value
    return " ".join(str(value).split())
