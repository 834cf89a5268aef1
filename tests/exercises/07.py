"""Wrong answers to the exercises of notebook 07."""

KEPT = "def kept_on_the_map(near_vectors, near_map):\n    pairs = list(zip(near_vectors, near_map))\n    return "
SPREAD = """def spread_by_hand(vectors):
    sizes = np.linalg.svd(vectors - {middle}, compute_uv=False)
    return float({share})
"""
RIGHT = "(sizes[:2] ** 2).sum() / (sizes**2).sum()"

WRONG = {
    "kept_on_the_map": [
        (KEPT + "float((near_vectors == near_map).mean())", "place by place"),
        (KEPT + "sum(len(set(a) & set(b)) for a, b in pairs)", "divide by how many there are"),
        (KEPT + "sum(len(set(a) & set(b)) for a, b in pairs) / len(pairs)", "divided by the number of movies"),
        (KEPT + "sum(bool(set(a) & set(b)) for a, b in pairs) / len(pairs)", "share of movies"),
        (KEPT + "float(np.isin(near_vectors, near_map).mean())", "the whole map"),
        (KEPT + "sum(len(set(a) & set(b)) / len(set(a) | set(b)) for a, b in pairs) / len(pairs)", "in either list"),
    ],
    "spread_by_hand": [
        (SPREAD.format(middle="0", share="sizes[:2].sum() / sizes.sum()"), "has not spread more"),
        (SPREAD.format(middle="vectors.mean(axis=0)", share="sizes[:2].sum() / sizes.sum()"), "standard deviations"),
        (SPREAD.format(middle="vectors.mean(axis=0)", share="sizes[0] ** 2 / (sizes**2).sum()"), "a map has two"),
        (SPREAD.format(middle="vectors.mean(axis=0)", share="100 * " + RIGHT), "between 0 and 1"),
    ],
}
