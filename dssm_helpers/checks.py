"""Checks for the exercises: what is wrong, and a hint how to go on, instead of a traceback.

A check prints ``✓`` or ``✗`` with a hint and returns whether it passed. With ``DSSM_STRICT=1`` (CI, where the
solutions run) a failed check raises, so a wrong solution cannot look green.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch

from .workspace import strict


class Hint(Exception):  # noqa: N818 - it is no error of the program
    """What is wrong with an answer and how to go on."""


def exercise(title: str) -> Callable[[Callable[..., None]], Callable[..., bool]]:
    """Turn a function that raises :class:`Hint` on a wrong answer into a check that reports."""

    def decorate(check: Callable[..., None]) -> Callable[..., bool]:
        @functools.wraps(check)
        def report(*answer: object) -> bool:
            problem = None
            try:
                check(*answer)
            except Hint as hint:
                problem = str(hint)
            except NotImplementedError:
                problem = "nothing here yet: replace the `raise NotImplementedError` line with your code"
            except Exception as error:
                # Whatever a learner's code raises is an answer to comment on, not a failure of the check.
                problem = f"your code raised {type(error).__name__}: {error}"
            print(f"✓ {title}" if problem is None else f"✗ {title}: {problem}")
            if problem is not None and strict():
                raise AssertionError(f"{title}: {problem}")
            return problem is None

        return report

    return decorate


def close(answer: object, expected: object, what: str, hint: str, tolerance: float = 1e-5) -> None:
    """Raise a :class:`Hint` unless ``answer`` equals ``expected`` in shape and, within ``tolerance``, in value."""
    if answer is None:
        raise Hint(f"{what} is None; did you forget to return it?")
    got = np.asarray(answer.detach() if isinstance(answer, torch.Tensor) else answer, dtype=np.float64)
    wanted = np.asarray(expected.detach() if isinstance(expected, torch.Tensor) else expected, dtype=np.float64)
    if got.shape != wanted.shape:
        raise Hint(f"{what} has shape {got.shape}, expected {wanted.shape}. {hint}")
    if not np.allclose(got, wanted, atol=tolerance, rtol=tolerance):
        raise Hint(f"{what} is {np.round(got, 4)}, expected {np.round(wanted, 4)}. {hint}")


# -- notebook 00 ------------------------------------------------------------------------------------------------------

# -- notebook 01 ------------------------------------------------------------------------------------------------------

# -- notebook 02 ------------------------------------------------------------------------------------------------------

# -- notebook 03 ------------------------------------------------------------------------------------------------------

# -- notebook 04 ------------------------------------------------------------------------------------------------------

# -- notebook 05 ------------------------------------------------------------------------------------------------------

# -- notebook 06 ------------------------------------------------------------------------------------------------------

# -- notebook 07 ------------------------------------------------------------------------------------------------------

# -- notebook 08 ------------------------------------------------------------------------------------------------------

# -- notebook 09 ------------------------------------------------------------------------------------------------------

# -- notebook 10 ------------------------------------------------------------------------------------------------------
