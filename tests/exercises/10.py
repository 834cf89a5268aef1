"""Wrong answers to the exercises of notebook 10."""

USERS = "def users_needed(p, difference):\n    return "

WRONG = {
    "users_needed": [
        (USERS + "1.96**2 * p * (1 - p) / difference**2", "variances of two means add up"),
        (USERS + "1.96**2 * 4 * p * (1 - p) / difference**2", "both groups together"),
        (USERS + "2 * p * (1 - p) / difference**2", "one standard error"),
        (USERS + "1.96 * 2 * p * (1 - p) / difference**2", "inside the square"),
        (USERS + "1.96**2 * 2 * p / difference**2", "not p"),
        (USERS + "1.96**2 * 2 * p * (1 - p) / difference", "difference is squared"),
        (USERS + "1.96 * (2 * p * (1 - p)) ** 0.5 / difference", "solve for n"),
        (USERS.replace("return ", "n = 1"), "did you forget to return it"),
    ]
}
