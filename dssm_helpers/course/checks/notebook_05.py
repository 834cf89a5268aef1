"""The check of notebook 05."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from . import Hint, exercise


@exercise("Exercise 2: an interval for both kinds of luck")
def check_interval_of_both(interval_of_both: Callable[..., np.ndarray]) -> None:
    nobody = np.zeros((3, 300))
    users = nobody + np.random.default_rng(0).normal(size=300)  # they differ; the three seeds agree
    seeds = nobody + np.array([[0.0], [0.3], [0.6]])  # they differ; the users agree

    def interval(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
        answer = interval_of_both(ours.copy(), theirs.copy(), 4000)
        if np.shape(answer) != (2,):
            raise Hint(f"expected two numbers, low and high, got {answer!r}; return the two quantiles of the rounds")
        return float(answer[0]), float(answer[1])

    low, high = interval(users + 1, nobody)
    width, expected = high - low, 2 * 1.96 * users.std() / np.sqrt(300)
    if high < 0:
        raise Hint("ours is ahead by 1, and the interval is below zero: subtract theirs from ours")
    if width < 0.05:
        raise Hint(f"users differ, seeds agree, and the width is {width:.3f}: your rounds do not draw users anew")
    if np.ptp(interval(seeds, nobody)) < 0.1:
        raise Hint("seeds of 0, 0.3 and 0.6, and a width near zero: your rounds do not draw seeds anew")
    if np.ptp(interval(users + 1, users)) > 0.05:
        raise Hint("theirs is ours minus 1 for every user, so nothing is in doubt: draw the same users for both models")
    if np.ptp(interval(seeds, seeds)) < 0.3:
        raise Hint("seed 1 of one model has nothing to do with seed 1 of the other: draw the seeds of each by itself")
    if not 0.92 < width / expected < 1.08:
        of = f"{width / expected:.2f} times as wide as it should be where only users differ"
        raise Hint(f"the interval is {of}: draw n users with replacement, and take the 2.5 % and 97.5 % quantiles")
    interval(seeds, nobody[:1])  # a baseline has one seed
