"""Wrong answers to the exercises of notebook 02."""

MAXIMUM = "def max_pooling(embedded, mask):\n    present = mask.unsqueeze(-1)\n    return "
ATTENTION = """def attention_pooling(embedded, mask, query):
    scores = embedded @ query
    weight = {weight}
    return (weight.unsqueeze(-1) * embedded).sum(dim=1)
"""
HISTORIES = """def histories(data, positions, length):
    item, user = torch.from_numpy(data.item).long(), torch.from_numpy(data.user).long()
    start = torch.from_numpy(data.offsets)[user[positions]].unsqueeze(1)
    earlier = positions.unsqueeze(1) - torch.arange({steps})
    return {answer}
"""

WRONG = {
    "max_pooling": [
        (MAXIMUM + "(embedded * present).amax(dim=1)", "as it was given"),
        (MAXIMUM + "embedded.amax(dim=1)", "The nines are padding"),
        (MAXIMUM + "embedded.masked_fill(~present, -1e9).amax(dim=1)", "gives -inf or a huge number"),
    ],
    "attention_pooling": [
        (ATTENTION.format(weight="scores.softmax(dim=1)"), "The padding takes part"),
        (ATTENTION.format(weight="scores.softmax(dim=1) * mask"), "not only after"),
        (ATTENTION.format(weight="(scores * mask).softmax(dim=1)"), "What gives nothing"),
        (ATTENTION.format(weight="scores.masked_fill(~mask, -torch.inf).softmax(dim=1)"), "a softmax of nothing"),
        (ATTENTION.format(weight="scores.softmax(dim=0) * mask"), "Weights: a softmax"),
        (
            ATTENTION.format(
                weight="(scores.exp() * mask / (scores.exp() * mask).sum(dim=1, keepdim=True)).nan_to_num()"
            ),
            "gradient is NaN",
        ),
    ],
    "histories": [
        (HISTORIES.format(steps="length", answer="item[earlier.clamp(min=0)] * (earlier >= 0)"), "as it was given"),
        (HISTORIES.format(steps="length", answer="item[earlier] * (earlier >= start)"), "Slot 0 holds the target"),
        (HISTORIES.format(steps="1, length + 1", answer="item[earlier] * (earlier >= 0)"), "with the user before"),
        (HISTORIES.format(steps="1, length + 1", answer="item[earlier] * (earlier > start)"), "very first movie"),
        (HISTORIES.format(steps="length, 0, -1", answer="item[earlier] * (earlier >= start)"), "the oldest movie"),
    ],
}
