"""Wrong answers to the exercises of notebook 15."""

ANSWER = "def answer(live, history):\n    {}\n    return {}\n"
LEVEL = "def alarm_level(quiet, rate):\n    quiet = {}\n    above = int(rate * len(quiet) + 1e-9)\n    return {}\n"

WRONG = {
    "answer": [
        (ANSWER.format("vector = live[0][0](history)", "live[0][1](vector)"), "you looked twice"),
        (ANSWER.format("(tower, index), _ = live[0], live[0]", "index(tower(history))"), "and were lucky"),
        (ANSWER.format("tower, index = live[0]", "tower(history)"), "what the index answers"),
        (ANSWER.format("tower, index = live[0]", "index(tower(history[:1]))"), "as it is"),
    ],
    "alarm_level": [
        (LEVEL.format("np.sort(quiet)", "quiet[above]"), "Count from the largest"),
        (LEVEL.format("np.sort(quiet)", "quiet[-above]"), "one too high"),
        (LEVEL.format("np.sort(quiet)", "np.quantile(quiet, 1 - rate)"), "between two days"),
        (LEVEL.format("np.sort(quiet)", "quiet.mean() + 3 * quiet.std()"), "count days"),
        (LEVEL.format("quiet", "(quiet.sort(), quiet[len(quiet) - 1 - above])[1]"), "in place"),
        # 0.29 · 100 is 28.999…
        (LEVEL.format("np.sort(quiet)", "quiet[len(quiet) - 1 - above]").replace(" + 1e-9", ""), "a rate of 0.29"),
    ],
}
