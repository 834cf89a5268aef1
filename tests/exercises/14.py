"""Wrong answers to the exercises of notebook 14."""

HEAD = "def list_loss(scores, target):\n    log_p, found = scores.log_softmax(dim=1), target >= 0\n"
EACH = "    each = -log_p[torch.arange(len(target)), target]\n"
WRONG = {
    "list_loss": [
        (HEAD + EACH + "    return each.mean()", "counts -1 from the end"),
        (HEAD + EACH + "    return (each * found).mean()", "still count in the mean"),
        (HEAD + EACH + "    return each[found].sum()", "the loss is their mean"),
        (
            HEAD + "    hit = torch.nn.functional.one_hot(target.clamp(min=0), scores.shape[1]).float()\n"
            "    return torch.nn.functional.binary_cross_entropy_with_logits(scores[found], hit[found])",
            "compete",
        ),
    ]
}
