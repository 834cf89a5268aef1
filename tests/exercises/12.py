"""Wrong answers to the exercises of notebook 12."""

HEAD = """
def rank_loss(users, items, rank, world):
    share = len(users) // world
    own = torch.arange(rank * share, (rank + 1) * share)
"""
WRONG = {
    "rank_loss": [
        (HEAD + "    return F.cross_entropy(users[own] @ items.T, torch.arange(share))", "begin at its place"),
        (HEAD + "    return F.cross_entropy(users[own] @ items[own].T, torch.arange(share))", "negatives shrink"),
        (HEAD + "    return F.cross_entropy(users[own] @ items.T, own, reduction='sum')", "the loss is their mean"),
        (HEAD + "    return F.cross_entropy(users @ items.T, torch.arange(len(users)))", "its own share of the users"),
    ]
}
