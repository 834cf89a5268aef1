"""Checks of the exercises of notebook 00."""

from __future__ import annotations

from collections.abc import Iterator

from . import exercise


@exercise("Exercise 2: is it personal?")
def check_overlap() -> Iterator[tuple]:
    """Count the entries of the first list that the second has too, and divide by the length of the first."""
    not_divided = 2, "That is how many they share: divide it by len(first)."
    either = 1 / 3, "You divided by everything that is in either list; asked is the share of the first."
    pairs = 0.0, "You compared place by place: an entry may stand anywhere in the other list."
    yield ([1, 2, 3, 4], [4, 3, 9, 8]), 0.5, not_divided, either, pairs
    yield ([1, 2], [2, 1]), 1.0
    yield (["a"], ["b"]), 0.0
    yield ([1, 2, 3, 4], [1]), 0.25, (1.0, "You divided by the length of the second list.")
