"""Checks of the exercises of notebook 06, and the filtered IVF that stands in for an unanswered one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from . import Hint, close, exercise

Arrays = list[np.ndarray]


def given_search(
    query: np.ndarray, vectors: np.ndarray, centres: np.ndarray, cells: Arrays, allowed: np.ndarray, k: int, nprobe: int
) -> np.ndarray:
    """The ``k`` best ``allowed [n]`` rows, best first, of the ``nprobe`` nearest cells, or of more until ``k`` are."""
    rows = [cells[cell][allowed[cells[cell]]] for cell in np.argsort(np.linalg.norm(centres - query, axis=1))]
    enough = 1 + int(np.searchsorted(np.cumsum([len(some) for some in rows]), k))
    inside = np.concatenate(rows[: max(nprobe, enough)])
    return inside[np.argsort(-(vectors[inside] @ query))[:k]]


@exercise("Exercise 2: an IVF with a filter")
def check_search_allowed(answer: Callable[..., np.ndarray]) -> None:
    rng = np.random.default_rng(0)
    vectors, queries = rng.normal(size=(2, 240, 4))
    of = np.linalg.norm(vectors[:, None] - vectors[:12], axis=2).argmin(axis=1)
    cells = [np.flatnonzero(of == cell) for cell in range(12)]
    for share, k, nprobe in ((1.0, 5, 1), (0.5, 5, 2), (0.1, 8, 1), (0.02, 10, 3)):
        allowed = rng.random(240) < share
        for query in queries[:8]:
            arguments = (query, vectors, vectors[:12], cells, allowed, k)
            got, right = answer(*arguments, nprobe), given_search(*arguments, nprobe)
            if got is None:
                raise Hint("the answer is None; did you forget to return the rows?")
            got = np.asarray(got, dtype=np.int64)
            if not allowed[got].all():
                raise Hint("rows that are not allowed came back; of a cell's rows keep rows[allowed[rows]]")
            nearest = np.argsort(np.linalg.norm(vectors[:12] - query, axis=1))[:nprobe]
            hold = int(allowed[np.concatenate([cells[cell] for cell in nearest])].sum())
            if len(got) < min(k, hold):
                raise Hint(f"{len(got)} rows for k={k}, though the nprobe cells hold {hold} allowed: filter, then cut")
            if len(got) < len(right):
                raise Hint(f"{len(got)} rows for k={k}, and {allowed.sum()} are allowed: go on to further cells")
            if not np.array_equal(got, right) and np.array_equal(got, given_search(*arguments, len(cells))):
                raise Hint("all cells were opened: that is exact search. After nprobe cells, stop once k are found")
            order = np.array_equal(np.sort(got), np.sort(right))
            close(got, right, "the answer", "Best first." if order else "Open the cells nearest to the query first.")


@exercise("Exercise 3: ten plausible movies")
def check_nearest_rows(answer: Callable[[np.ndarray, np.ndarray, int], np.ndarray]) -> None:
    rng = np.random.default_rng(0)
    queries, items = rng.normal(size=(2, 5)), rng.normal(size=(40, 5)) * rng.uniform(0.1, 3, size=(40, 1))
    length = np.linalg.norm(items, axis=1, keepdims=True)

    def ranked(divisor: np.ndarray | float, sign: int = -1) -> np.ndarray:
        return np.argsort(sign * (queries @ (items / divisor).T), axis=1)[:, :4]

    close(
        answer(queries.copy(), items.copy(), 4),
        ranked(length),
        "the answer",
        "Divide each item by its own length, multiply with the queries, and rank, the largest first.",
        (ranked(1.0), "Long items go first: their length is still in the product. A cosine has none."),
        (ranked(np.linalg.norm(items, axis=0)), "That divides columns: the length of an item is along axis 1."),
        (ranked(length**2), "Divided by the length twice: now short items go first."),
        (ranked(length, 1), "The smallest cosines came back: argsort sorts upwards."),
    )
