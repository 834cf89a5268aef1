"""Wrong answers to the exercises of notebook 11."""

HISTORIES = """def histories(user, item, time, positions, length):
    rows = np.zeros((len(positions), length), dtype=int)
    for row, position in enumerate(positions):
        same, before = user == user[position], np.arange(len(user)) < position
        earlier = {earlier}
        newest = item[earlier]{order}
        rows[row, : len(newest)] = newest
    return rows
"""
NEWEST = "[::-1][:length]"

WRONG = {
    "histories": [
        (HISTORIES.format(earlier="same & (time <= time[position])", order=NEWEST), "As it stood"),
        (HISTORIES.format(earlier="same & (time < time[position])", order=NEWEST), "stand before it are lost"),
        (
            HISTORIES.format(earlier="same & (time <= time[position]) & (item != item[position])", order=NEWEST),
            "follows in the target's second",
        ),
        (HISTORIES.format(earlier="before", order=NEWEST), "items of other users"),
        (HISTORIES.format(earlier="same & before", order="[:length]"), "the oldest first"),
        (HISTORIES.format(earlier="same & (np.arange(len(user)) <= position)", order=NEWEST), "one too many"),
    ]
}
