"""Checks of the exercises of notebook 07."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from . import Hint, exercise


@exercise("Exercise 2: how much does a map keep?")
def check_kept_on_the_map() -> Iterator[tuple]:
    """Look in the same row of both arrays, and divide by the number of true neighbours, n times k."""
    vectors = np.array([[1, 2], [0, 3], [3, 0], [2, 1]])
    yield (
        (vectors, vectors[:, ::-1]),
        1.0,
        (0.0, "You compared place by place: the same lists in another order are the same neighbours."),
        (8, "That is how many are kept; divide by how many there are, n · k."),
        (2.0, "You divided by the number of movies; each has k neighbours."),
    )
    yield (
        (vectors, np.array([[1, 3], [2, 3], [1, 2], [3, 0]])),
        2 / 8,
        (2 / 4, "That is the share of movies with a neighbour in common; count the neighbours."),
        (1.0, "You looked in the whole map: a movie's neighbour must be in that movie's own row."),
        ((1 / 3 + 1 / 3) / 4, "You divided by everything in either list; asked is the share of the true ones."),
    )


@exercise("Exercise 3: a shadow that is too good")
def check_spread_kept(spread_kept: Callable[[np.ndarray], float]) -> None:
    cloud = np.random.default_rng(0).normal(size=(500, 6)) * [4, 3, 1, 1, 1, 1]
    answer, moved = spread_kept(cloud.copy()), spread_kept(cloud + np.array([0, 0, 0, 0, 0, 20]))
    if answer is None:
        raise Hint("the function returns nothing")
    if not np.isclose(answer, moved, atol=1e-6):
        raise Hint(f"{answer:.2f} of a cloud, and {moved:.2f} of the same cloud somewhere else: it has not spread more")
    variances = np.sort(np.linalg.eigvalsh(np.cov(cloud.T)))[::-1]
    if np.isclose(answer, variances[0] / variances.sum(), atol=1e-4):
        raise Hint("that is the first direction alone; a map has two")
    if np.isclose(answer, (variances[:2] ** 0.5).sum() / (variances**0.5).sum(), atol=1e-4):
        raise Hint(
            "that is a share of standard deviations: with a spread of 4, 3, 1, 1, 1, 1 the variances are 16, 9, 1 …"
        )
    if not np.isclose(answer, variances[:2].sum() / variances.sum(), atol=1e-4):
        raise Hint(f"the answer is {answer:.3f}, expected {variances[:2].sum() / variances.sum():.3f}, between 0 and 1")
