"""Wrong answers to the exercise of notebook 05."""

RIGHT = """
def interval_of_both(ours, theirs, n_resamples=2000):
    generator, differences = np.random.default_rng(0), []
    for _ in range(n_resamples):
        users = generator.integers(0, ours.shape[1], ours.shape[1])
        first = generator.integers(0, len(ours), len(ours))
        second = generator.integers(0, len(theirs), len(theirs))
        differences.append(ours[first][:, users].mean() - theirs[second][:, users].mean())
    return np.quantile(differences, [0.025, 0.975])
"""


ANEW = "generator.integers(0, theirs.shape[1], theirs.shape[1])"


def _instead(old: str, new: str) -> str:
    assert old in RIGHT
    return RIGHT.replace(old, new)


WRONG = {
    "interval_of_both": [
        (
            _instead("ours[first][:, users].mean() - theirs[second]", "ours[:, users].mean() - theirs"),
            "draw seeds anew",
        ),
        (_instead("users = generator.integers(0, ours.shape[1], ours.shape[1])", "users = slice(None)"), "users anew"),
        (_instead("theirs[second][:, users]", f"theirs[second][:, {ANEW}]"), "draw the same users for both models"),
        (_instead("theirs[second]", "theirs[first]"), "draw the seeds of each by itself"),
        (_instead("[0.025, 0.975]", "[0.05, 0.95]"), "2.5 % and 97.5 % quantiles"),
        (
            _instead("ours[first][:, users].mean() - theirs[second][:, users].mean()", "theirs.mean() - ours.mean()"),
            "subtract theirs from ours",
        ),
        (_instead("np.quantile(differences, [0.025, 0.975])", "np.mean(differences)"), "two numbers, low and high"),
    ]
}
