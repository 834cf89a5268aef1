"""Checks of the exercises of notebook 04."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from . import exercise


@exercise("Exercise 2: a corrected list-wise loss")
def check_corrected_list_wise() -> Iterator[tuple]:
    """Subtract each score's own log q, put the positive in column 0, take the softmax over all columns."""
    scores = torch.randn(3, 5, generator=torch.Generator().manual_seed(5))  # column 0: the positive
    log_q = -5 * torch.rand(3, 5, generator=torch.Generator().manual_seed(6))
    corrected, zeros = scores - log_q, torch.zeros(3, 1)

    def losses(logits: torch.Tensor) -> torch.Tensor:
        return -logits.log_softmax(dim=1)[:, 0]

    def loss(logits: torch.Tensor) -> torch.Tensor:
        return losses(logits).mean()

    negatives_only = loss(scores - torch.cat([zeros, log_q[:, 1:]], dim=1))
    positive_only = loss(scores - torch.cat([log_q[:, :1], log_q[:, 1:] * 0], dim=1))
    without_positive = (corrected[:, 1:].logsumexp(dim=1) - corrected[:, 0]).mean()
    down_the_columns = -corrected.log_softmax(dim=0)[:, 0].mean()
    yield (
        (scores[:, 0], scores[:, 1:], log_q[:, 0], log_q[:, 1:]),
        loss(corrected),
        (loss(scores), "That is the loss without any correction."),
        (loss(scores + log_q), "The sign is the wrong way: that lifts the popular ones once more. Subtract log q."),
        (negatives_only, "The positive stands among the candidates too: correct it like the others."),
        (positive_only, "Only the positive is corrected here; the negatives are what the sampler bent."),
        (without_positive, "The positive is missing among the candidates: the sum below runs over it as well."),
        (down_the_columns, "The softmax runs down the columns, over rows that do not compete: take dim=1."),
        (losses(corrected), "Right for each row; the loss is their mean."),
        (losses(corrected).sum(), "That is the sum over the rows; a mean does not grow with the batch."),
        (-loss(corrected), "The sign of the loss: minus the logarithm of a probability is positive."),
    )
