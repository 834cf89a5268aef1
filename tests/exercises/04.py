"""Wrong answers to the exercises of notebook 04."""

CORRECTED = """def corrected_list_wise(positive, negative, log_q_positive, log_q_negative):
    positive, negative = {positive}, {negative}
    candidates = torch.cat([positive.unsqueeze(1), negative], dim=1)
    return {loss}
"""
PARTS = {
    "positive": "positive - log_q_positive",
    "negative": "negative - log_q_negative",
    "loss": "-candidates.log_softmax(dim=1)[:, 0].mean()",
}


def corrected(**changed: str) -> str:
    return CORRECTED.format(**PARTS | changed)


WRONG = {
    "corrected_list_wise": [
        (corrected(positive="positive", negative="negative"), "without any correction"),
        (corrected(positive="positive + log_q_positive", negative="negative + log_q_negative"), "Subtract log q"),
        (corrected(positive="positive"), "The positive stands among the candidates too"),
        (corrected(negative="negative"), "Only the positive is corrected"),
        (corrected(loss="(negative.logsumexp(dim=1) - positive).mean()"), "missing among the candidates"),
        (corrected(loss="-candidates.log_softmax(dim=0)[:, 0].mean()"), "take dim=1"),
        (corrected(loss="-candidates.log_softmax(dim=1)[:, 0]"), "the loss is their mean"),
        (corrected(loss="-candidates.log_softmax(dim=1)[:, 0].sum()"), "the sum over the rows"),
        (corrected(loss="candidates.log_softmax(dim=1)[:, 0].mean()"), "minus the logarithm"),
        (corrected(loss="-candidates.log_softmax(dim=1).mean()"), "put the positive in column 0"),
    ],
}
