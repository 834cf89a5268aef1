"""Checks of the exercises of notebook 17."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from ...data import EncodedData, encode
from ...schema import Schema
from . import Hint, close, exercise


def whole_sessions(data: EncodedData, moment: int) -> tuple[np.ndarray, np.ndarray]:
    """Training: all before ``moment``. Test: the last of each session of two rows or more that began from then on."""
    began, end = data.timestamp[data.offsets[data.user]], data.offsets[data.user + 1]
    several = end - data.offsets[data.user] >= 2
    test = (np.arange(len(data)) == end - 1) & several & (began >= moment)
    return np.flatnonzero(data.timestamp < moment), np.flatnonzero(test)


@exercise("Exercise 1: one unit for all")
def check_seconds(seconds: Callable[[pd.Series], pd.Series]) -> None:
    moments = np.array([881_250_949, 0, 1_700_000_000, 893_286_638, 1_600_000_001, 86_400])
    index = [7, 3, 5, 1, 0, 9]
    given = pd.Series(moments * np.array([1, 1, 10**3, 1, 10**6, 1]) + [0, 0, 500, 0, 0, 0], index=index)
    answer = seconds(given.copy())
    if not isinstance(answer, pd.Series) or list(answer.index) != index:
        raise Hint("return a Series with the index of the one given: its rows belong to other columns")
    if (answer[[7, 1]] < 10**8).any():
        raise Hint("rows that were in seconds are now in 1970: they were divided because another row was not")
    if (answer > 10**11).any():
        raise Hint(f"{(answer > 10**11).sum()} rows are still finer than seconds; a microsecond takes two divisions")
    if answer.dtype.kind != "i":
        raise Hint(f"the times are {answer.dtype}; encode wants whole numbers, so divide with //")
    close(answer, moments, "the answer", "Each row is divided by 1000 until it is at most 10**11.")
    nano = pd.Series([1_600_000_001_123_456_789, 1_600_000_002])
    close(seconds(nano), [1_600_000_001, 1_600_000_002], "the answer with nanoseconds", "Three divisions, exactly.")


@exercise("Exercise 2: whole sessions")
def check_split_sessions(split_sessions: Callable[[EncodedData, int], tuple]) -> None:
    sessions = {"a": [10, 20, 30], "b": [40, 60, 70], "c": [50, 55], "d": [65], "e": [80, 81, 82], "f": [5]}
    rows = [(name, f"item {t}", t) for name, times in sessions.items() for t in times]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    data = encode(frame, schema=Schema())
    for moment in (50, 60, 0):
        answer = split_sessions(data, moment)
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise Hint("return two arrays of positions: training and test")
        train, test = (np.asarray(part).astype(int) for part in answer)
        right_train, right_test = whole_sessions(data, moment)
        began, end = data.timestamp[data.offsets[data.user]], data.offsets[data.user + 1]
        if (data.timestamp[train] >= moment).any():
            raise Hint(
                "training holds rows from the moment on; a session that runs across it trains with its first rows"
            )
        if (began[test] < moment).any():
            raise Hint("a tested session began before the moment, and has rows in training")
        if (test == data.offsets[data.user[test]]).any():
            raise Hint("a target is the first row of its session: there is no history to start from")
        if (test != end[test] - 1).any():
            raise Hint("a target is not the last row of its session")
        close(train, right_train, "training", "It is every position with a time before the moment, sorted.")
        close(test, right_test, "the test", "The last row of each session that began at or after the moment, sorted.")
