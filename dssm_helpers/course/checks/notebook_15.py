"""Checks of the exercises of notebook 15."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import Hint, close, exercise


class Mondays:
    """A reference that is exchanged each time somebody has looked at it: the busiest Monday there can be."""

    def __init__(self) -> None:
        self.looks = 0

    def __getitem__(self, place: int) -> tuple[Callable, Callable]:
        self.looks += 1
        week = self.looks
        return lambda history: (week, sum(history)), lambda vector: [week, *vector]


@exercise("Exercise 2: one request, two weeks")
def check_answer(answer: Callable[[Any, Sequence[int]], list]) -> None:
    for history in ([1, 2, 3], [50]):
        live = Mondays()
        found = answer(live, list(history))
        if not isinstance(found, list) or len(found) != 3:
            raise Hint(f"return what the index answers to the vector of the tower, and nothing else; got {found!r}")
        index, tower, given = found
        if tower != index:
            raise Hint(f"the tower was that of week {tower}, the index that of week {index}: you looked twice")
        if live.looks > 1:
            raise Hint("you looked more than once, and were lucky; look once and keep what you saw")
        close(given, sum(history), "the history that the tower got", "Hand it on as it is.")


@exercise("Exercise 3: an alarm's level")
def check_alarm_level(alarm_level: Callable[[np.ndarray, float], float]) -> None:
    rng = np.random.default_rng(0)
    for n, rate in ((100, 0.05), (40, 0.1), (100, 0.29), (30, 0.0)):
        quiet = rng.gamma(2.0, size=n)
        before, above = quiet.copy(), round(rate * n)
        level = alarm_level(quiet, rate)
        if not np.array_equal(quiet, before):
            raise Hint("your function sorted the caller's array in place; sort a copy")
        close(
            level,
            np.sort(quiet)[n - 1 - above],
            f"the level for {n} days and a rate of {rate:g}",
            f"Exactly {above} of the {n} days may lie above it.",
            (np.sort(quiet)[above], "That is the quiet end: nearly every day lies above it. Count from the largest."),
            (np.sort(quiet)[max(n - above, 0) % n], f"That is one too high: only {above - 1} days lie above it."),
            (np.quantile(quiet, 1 - rate), "That lies between two days; take one of the values, the smallest that "
             "will do."),
            (quiet.mean() + 3 * quiet.std(), "Mean and deviations say nothing about a lopsided statistic; count days."),
        )  # fmt: skip
