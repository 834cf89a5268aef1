"""Wrong answers to the exercises of notebook 06."""

CELLS = """def search_allowed(query, vectors, centres, cells, allowed, k, nprobe):
    nearest = {nearest}
    rows = np.array([], dtype=np.int64)
    for opened, cell in enumerate(nearest):
        if {enough}:
            break
        rows = np.append(rows, cells[cell]{only})
    rows = rows[np.argsort({sign}(vectors[rows] @ query))]
    return {answer}
"""
RIGHT = {
    "nearest": "np.argsort(np.linalg.norm(centres - query, axis=1))",
    "enough": "opened >= nprobe and len(rows) >= k",
    "only": "[allowed[cells[cell]]]",
    "sign": "-",
    "answer": "rows[:k]",
}
NEAREST = """def nearest_rows(queries, item_vectors, k):
    length = np.linalg.norm(item_vectors, axis={axis}, keepdims=True)
    scores = {sign}(queries @ (item_vectors / {divisor}).T)
    return np.argsort(scores, axis=1)[:, :k]
"""


def search(**change: str) -> str:
    return CELLS.format(**(RIGHT | change))


WRONG = {
    "search_allowed": [
        (search(only=""), "rows that are not allowed"),
        (search(only="", answer="(lambda best: best[allowed[best]])(rows[:k])"), "filter, then cut"),
        (search(enough="opened >= nprobe"), "go on to further cells"),
        (search(enough="False"), "that is exact search"),
        (search(nearest="range(len(cells))"), "nearest to the query first"),
        (search(sign="", answer="rows[-k:]"), "Best first"),
        (search(answer="None"), "forget to return"),
    ],
    "nearest_rows": [
        (NEAREST.format(axis=1, sign="-", divisor="1.0"), "still in the product"),
        (NEAREST.format(axis=0, sign="-", divisor="length"), "along axis 1"),
        (NEAREST.format(axis=1, sign="-", divisor="length**2"), "short items go first"),
        (NEAREST.format(axis=1, sign="", divisor="length"), "argsort sorts upwards"),
        (
            "def nearest_rows(queries, item_vectors, k):\n"
            "    unit = item_vectors / np.linalg.norm(item_vectors, axis=1, keepdims=True)\n"
            "    return np.argsort(-queries @ unit.T, axis=1)[:, : k + 1]",
            "has shape (2, 5)",
        ),
    ],
}
