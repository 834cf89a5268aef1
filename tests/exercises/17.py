"""Wrong answers to the exercises of notebook 17."""

SECONDS = "def seconds_of(times):\n    while times.max() > 10**11:\n        times = {step}\n    return times\n"
ONCE = "def seconds_of(times):\n    return times.where(times <= 10**11, times // 1000){end}\n"
SPLIT = """def split_sessions(data, moment):
    began, end = data.timestamp[data.offsets[data.user]], data.offsets[data.user + 1]
    place, length = np.arange(len(data)), end - data.offsets[data.user]
    train = np.flatnonzero({train})
    return train, np.flatnonzero({test})
"""
LAST, EARLIER = "(place == end - 1)", "data.timestamp < moment"
LATER = "(length >= 2) & (began >= moment)"

WRONG = {
    "seconds_of": [
        (SECONDS.format(step="times // 1000"), "divided because another row was not"),
        (ONCE.format(end=""), "a microsecond takes two divisions"),
        (SECONDS.format(step="times.where(times <= 10**11, times / 1000)"), "divide with //"),
        (
            "def seconds_of(times):\n    return np.where(times <= 10**11, times, times // 1000)\n",
            "a Series with the index of the one given",
        ),
    ],
    "split_sessions": [
        (SPLIT.format(train="place < end - 1", test=LAST), "training holds rows from the moment on"),
        (SPLIT.format(train=EARLIER.replace("moment", "(moment or 60)"), test=f"{LAST} & {LATER}"), "its first rows"),
        (SPLIT.format(train=EARLIER, test=f"{LAST} & (length >= 2)"), "began before the moment"),
        (SPLIT.format(train=EARLIER, test=f"{LAST} & (began >= moment)"), "is the first row of its session"),
        (SPLIT.format(train=EARLIER, test=f"(place == end - length + 1) & {LATER}"), "is not the last row"),
        (SPLIT.format(train="began < moment - 20", test=f"{LAST} & {LATER}"), "every position with a time"),
    ],
}
