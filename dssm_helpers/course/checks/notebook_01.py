"""Checks of the exercises of notebook 01."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np

from ...data import EncodedData, encode
from ...movielens import SCHEMA, synthetic
from . import Hint, close, exercise


def one_moment(data: EncodedData, moment: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of training (before ``moment``) and test (a known user's first from then on), each sorted."""
    train = np.flatnonzero(data.timestamp < moment)
    after = np.flatnonzero(data.timestamp >= moment)
    test = after[np.unique(data.user[after], return_index=True)[1]]
    return train, test[np.isin(data.user[test], data.user[train])]


def small_data() -> EncodedData:
    tables = synthetic(n_ratings=600, n_users=20, n_movies=200, seed=3)
    return encode(tables.ratings, tables.users, tables.movies, SCHEMA)


@exercise("Exercise 2: the newest movies first")
def check_history_of() -> Iterator[tuple]:
    """It holds the user's movies before the position; reverse them, then keep the first `length`."""
    data = small_data()
    for user, length, nth in itertools.product((2, 5, 9), (1, 3, 1_000), (0, 1, -1)):
        start, end = data.offsets[user : user + 2].tolist()
        position = range(start, end)[nth]
        past, anybodys = data.item[start:position], data.item[max(0, position - length) : position]
        with_target = data.item[max(start, position + 1 - length) : position + 1][::-1]
        yield (
            (data, position, length),
            past[::-1][:length],
            (with_target, "The first of them stands at the position itself: that is the target, not the past."),
            (past[:length][::-1], "Those are the user's oldest movies; keep the newest."),
            (past[-length:], "The right movies in the wrong order: the newest comes first."),
            (past[::-1], "All of the history came back: cut it to `length` movies."),
            (anybodys[::-1], "Those are movies of the user before: a history starts at data.offsets[user]."),
        )


@exercise("Exercise 3: one moment for everybody")
def check_split_at(split_at: Callable[[EncodedData, int], tuple]) -> None:
    data = small_data()
    for moment in (int(data.timestamp[data.offsets[2] + 1]), int(np.quantile(data.timestamp, 0.6)), 0):
        answer = split_at(data, moment)
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise Hint("return two arrays of positions: training and test")
        train, test = (np.asarray(part) for part in answer)
        right_train, right_test = one_moment(data, moment)
        late = int((data.timestamp[train] > moment).sum())
        strangers = int((~np.isin(data.user[test], data.user[right_train])).sum())
        if late and strangers:
            raise Hint("as it was given. When was the training entered, and what had the test users rated by then?")
        if late:
            raise Hint(f"{late} of {len(train)} training ratings are from after the moment: the future trains")
        if (data.timestamp[train] == moment).any():
            raise Hint("a rating exactly at the moment is in the training; it belongs to the time after")
        close(train, right_train, "training", "It is every position with a timestamp before the moment, sorted.")
        if len(np.unique(data.user[test])) < len(test):
            raise Hint("a user is tested twice; only the first rating from the moment on is the test")
        if strangers:
            raise Hint(f"{strangers} test users had rated nothing before the moment: there is no history to start from")
        close(test, right_test, "the test", "It is a user's first position at or after the moment, sorted.")
