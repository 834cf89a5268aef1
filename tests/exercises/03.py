"""Wrong answers to the exercises of notebook 03."""

USER = """def user_vectors(batch, tables, layers):
    history = tables["item_id"][batch["history"]]
    present = (batch["history"] != 0).unsqueeze(-1)
    age = tables["age"][batch["age"]]
    mean = (history * present).sum(dim=1) / present.sum(dim=1).clamp(min=1)
    {change}
    x = layers(torch.cat([age, mean], dim=-1))
    return {answer}
"""
ITEM = """def item_vectors(batch, tables, layers):
    present = (batch["genres"] != 0).unsqueeze(-1)
    genres = (tables["genres"][batch["genres"]] * present).sum(dim=1) / present.sum(dim=1).clamp(min=1)
    {change}
    x = layers(torch.cat([tables["item_id"][batch["item_id"]], genres], dim=-1))
    return {answer}
"""
PADDED = 'genres = tables["genres"][batch["genres"]].mean(dim=1)'

WRONG = {
    "user_vectors": [
        (USER.format(change='mean = tables["history"][batch["history"]].mean(dim=1)', answer="unit(x)"), "whose rows"),
        (USER.format(change="mean = history.mean(dim=1)", answer="unit(x)"), "Padding counted as a movie"),
        (USER.format(change="mean = (history * present).mean(dim=1)", answer="unit(x)"), "divided by all slots"),
        (
            USER.format(change="mean = (history * present).sum(dim=1) / present.sum(dim=1)", answer="unit(x)"),
            "became 0 / 0",
        ),
        (USER.format(change="mean = (history * present).sum(dim=1)", answer="unit(x)"), "sum of the history"),
        (USER.format(change="age, mean = mean, age", answer="unit(x)"), "The history came first"),
        (USER.format(change="", answer="x"), "many lengths"),
        (USER.format(change="", answer="x / x.norm(dim=0)"), "along the batch"),
    ],
    "item_vectors": [
        (ITEM.format(change=PADDED, answer="torch.relu(x) / torch.relu(x).norm(dim=0).clamp(min=1e-12)"), "three more"),
        (ITEM.format(change="", answer="torch.relu(x) / torch.relu(x).norm(dim=0).clamp(min=1e-12)"), "right angle"),
        (ITEM.format(change="", answer="x / x.norm(dim=0)"), "in the same batch"),
        (ITEM.format(change="", answer="x"), "no longer of length one"),
        (ITEM.format(change="genres = genres / 0 * 0", answer="unit(x)"), "one NaN spoils"),
        (ITEM.format(change="genres = 2 * genres", answer="unit(x)"), "something else has changed"),
    ],
}
