"""Wrong answers to the exercises of notebook 00."""

WRONG = {
    "overlap": [
        ("def overlap(first, second):\n    return len(set(first) & set(second))", "divide it by len(first)"),
        (
            "def overlap(first, second):\n    return sum(a == b for a, b in zip(first, second)) / len(first)",
            "place by place",
        ),
        (
            "def overlap(first, second):\n    return len(set(first) & set(second)) / len(set(first) | set(second))",
            "in either list",
        ),
        ("def overlap(first, second):\n    return len(set(first) & set(second)) / len(second)", "length of the second"),
    ]
}
