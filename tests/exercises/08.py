"""Wrong answers to the exercises of notebook 08."""

ROWS = """def quantise_rows(table):
    scales = {scales}
    divisor = np.where(scales > 0, scales, 1)
    codes = {codes}
    return codes, scales.astype(np.float32)
"""
SCALES, CODES = "np.abs(table).max(axis=1) / 127", "np.round(table / divisor[:, None])"

SAME = """def is_same(tower, run):
    ids = random_ids(tower, {size}, np.random.default_rng(0))
    return bool(np.abs(run(ids) - in_torch(tower, ids)).max() < {tolerance})
"""

WRONG = {
    "quantise_rows": [
        (ROWS.format(scales=SCALES, codes=CODES), "expected int8"),
        (ROWS.format(scales=SCALES, codes="(table / divisor[:, None]).astype(np.int8)"), "row 4 is off by"),
        (ROWS.format(scales=SCALES.replace("127", "255"), codes=CODES + ".astype(np.int8)"), "divided by 127"),
        (ROWS.format(scales=SCALES, codes="np.round(table / scales[:, None]).astype(np.int8)"), "in the padding row"),
    ],
    "is_same": [
        (
            SAME.format(size="2, 3", tolerance=0.1).replace(
                "\n    return", "\n    ids = {n: np.ones_like(c) for n, c in ids.items()}\n    return"
            ),
            "exchanged",
        ),
        (SAME.format(size="2, 3", tolerance=1e-5), "three movies at most"),
        (SAME.format(size="7, 9", tolerance=1e-2), "off by 0.001"),
        (SAME.format(size="7, 9", tolerance=1e-5), "stopped with its error"),
        (
            SAME.format(size="2, 9", tolerance=1e-5)
            .replace("return bool", "try:\n        return bool")
            .replace("< 1e-05", "== 0")
            + "    except RuntimeError:\n        return False",
            "an honest export",
        ),
    ],
}
