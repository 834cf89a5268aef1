"""Checks of the exercises of notebook 10."""

from __future__ import annotations

from collections.abc import Iterator

from . import exercise


@exercise("Exercise 1: how many users a difference needs", tolerance=1e-3)
def check_users_needed() -> Iterator[tuple]:
    """Set the difference equal to 1.96 · √(2 p (1 - p) / n) and solve for n."""
    for p, difference in ((0.25, 0.01), (0.5, 0.02), (0.1, 0.05)):
        one_mean = p * (1 - p) / difference**2
        yield (
            (p, difference),
            1.96**2 * 2 * one_mean,
            (1.96**2 * one_mean, "Both groups are measured, so the variances of two means add up."),
            (1.96**2 * 4 * one_mean, "That is both groups together; asked is the size of each."),
            (2 * one_mean, "That makes the difference one standard error; asked are 1.96 of them."),
            (1.96 * 2 * one_mean, "1.96 standard errors: the number stands inside the square."),
            (1.96**2 * 2 * p / difference**2, "The variance of a zero-or-one is p (1 - p), not p."),
            (1.96**2 * 2 * p * (1 - p) / difference, "The standard error falls with √n: the difference is squared."),
        )
