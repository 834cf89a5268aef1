"""Wrong answers to the exercises of notebook 13."""

TABLE = "def may_look(length):\n    return torch.ones(length, length{dtype}){answer}\n"
BOOL = ", dtype=torch.bool"
SHARES = """
def mixed_shares(counts, batch, uniform):
    own = counts / counts.sum()
    drawn = np.where(np.arange(len(counts)) >= FIRST, 1 / (len(counts) - FIRST), 0)
    return {answer}
"""

WRONG = {
    "may_look": [
        (TABLE.format(dtype=BOOL, answer=".tril()"), "newest first"),
        (TABLE.format(dtype=BOOL, answer=".triu(1)"), "a softmax over nothing"),
        (TABLE.format(dtype=BOOL, answer=".tril(-1)"), "turn it over"),
        (TABLE.format(dtype=BOOL, answer=""), "Everybody sees everything"),
        (TABLE.format(dtype="", answer=".triu()"), "true and false"),
    ],
    "mixed_shares": [
        (SHARES.format(answer="(own + drawn) / 2"), "count alike"),
        (SHARES.format(answer="batch * own + uniform * drawn"), "expected numbers of columns"),
        (SHARES.format(answer="own"), "the batch's share alone"),
        (
            SHARES.format(answer="(batch * own + uniform / len(counts)) / (batch + uniform)"),
            "padding and unknown",
        ),
        (SHARES.format(answer="np.log((batch * own + uniform * drawn + 1e-9) / (batch + uniform))"), "its logarithm"),
    ],
}
