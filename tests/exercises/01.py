"""Wrong answers to the exercises of notebook 01."""

HISTORY = "def history_of(data, position, length):\n    start = data.offsets[data.user[position]]\n    return "
SPLIT = """def split_at(data, moment):
    train = np.flatnonzero(data.timestamp {before} moment)
    after = np.flatnonzero(data.timestamp >= moment)
    first = np.unique(data.user[after], return_index=True)[1]
    test = after[first]
    return {answer}
"""

WRONG = {
    "history_of": [
        (HISTORY + "data.item[start:position][:length]", "the user's oldest movies"),
        (HISTORY + "data.item[start:position][-length:]", "wrong order"),
        (HISTORY + "data.item[start:position][::-1]", "cut it to `length`"),
        (HISTORY + "data.item[start:position + 1][::-1][:length]", "that is the target"),
        (HISTORY + "data.item[max(0, position - length):position][::-1]", "movies of the user before"),
    ],
    "split_at": [
        (SPLIT.format(before="<", answer="np.setdiff1d(np.arange(len(data)), test), test"), "as it was given"),
        (
            SPLIT.format(
                before="<",
                answer="np.setdiff1d(np.arange(len(data)), test), test[np.isin(data.user[test], data.user[train])]",
            ),
            "the future trains",
        ),
        (SPLIT.format(before="<", answer="train, test"), "no history to start from"),
        (SPLIT.format(before="<=", answer="train, test"), "exactly at the moment"),
        (SPLIT.format(before="<", answer="train, after"), "tested twice"),
        (SPLIT.format(before="<", answer="train"), "return two arrays"),
        (SPLIT.format(before="<", answer="train, test, after"), "two arrays of positions"),
        (
            SPLIT.format(before="<", answer="train, test[np.isin(data.user[test], data.user[train])] + 1"),
            "a user's first position at or after",
        ),
    ],
}
