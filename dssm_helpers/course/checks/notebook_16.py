"""Checks of the exercises of notebook 16."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ...text import trigrams
from ..corpora import reciprocal_rank_fusion
from . import Hint, close, exercise


@exercise("Exercise 1: a trigram is missing")
def check_trigrams(letter_trigrams: Callable[[str], list[str]]) -> None:
    for word in ("web", "cosine", "a", "ab", "banana"):
        answer, right = letter_trigrams(word), trigrams(word)
        if not isinstance(answer, list):
            raise Hint(f"return a list of trigrams, not {type(answer).__name__}: a trigram may come twice")
        if answer == right[:-1]:
            raise Hint(f"{word!r} lost {right[-1]!r}, its end; count how many windows of three a text of n letters has")
        if any(len(trigram) != 3 for trigram in answer):
            raise Hint(f"{word!r}: {min(answer, key=len)!r} is no trigram; the last window starts three before the end")
        if answer == [word[i : i + 3] for i in range(len(word) - 2)]:
            raise Hint(f"{word!r}: the marks are gone, and with them where the word begins and ends")
        if sorted(set(answer)) == sorted(set(right)) and len(answer) < len(right):
            raise Hint(f"{word!r}: repeats are counted, so keep each trigram as often as it comes")
        if answer != right:
            raise Hint(f"{word!r} gives {answer}, expected {right}")


@exercise("Exercise 2: reciprocal rank fusion")
def check_fuse(fuse: Callable) -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(3, 6)), 100 * rng.normal(size=(3, 6))
    right = reciprocal_rank_fusion(first, second)

    def of(rank: Callable[[np.ndarray], np.ndarray], start: int = 1) -> np.ndarray:
        return sum(1 / (60 + start + rank(one)) for one in (first, second))

    mistakes = (
        (of(lambda s: s.argsort(axis=1).argsort(axis=1)), "the worst document has rank 1: sort by the negative scores"),
        (of(lambda s: (-s).argsort(axis=1).argsort(axis=1), 0), "the best document has rank 0; let it be 1"),
        (of(lambda s: (-s).argsort(axis=1)), "one argsort lists the documents by rank; which rank has each document?"),
        (of(lambda s: (-s).argsort(axis=0).argsort(axis=0)), "ranks run along the documents of a query, axis=1"),
        (first + second, "scores were added: those on the larger scale win. Add 1 / (k + rank)"),
        (right / 2, "that is the mean over the searches; the sum was asked for (the order is the same)"),
    )
    close(fuse([first, second]), right, "the fused score", "It is the sum of 1 / (k + rank).", *mistakes)
    close(fuse([first], 0).max(axis=1), [1, 1, 1], "the best score with k = 0", "Is k used?")
