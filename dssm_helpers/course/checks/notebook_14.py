"""Checks of the exercises of notebook 14."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from . import close, exercise


@exercise("Exercise 2: the loss of a list")
def check_list_loss(list_loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    for target in (torch.tensor([2, -1, 0, 4]), torch.tensor([1, 3, 0, 2]), torch.tensor([-1, -1, 3, -1])):
        scores = torch.randn(4, 5, generator=generator)
        found, hit = target >= 0, F.one_hot(target.clamp(min=0), 5).float()
        each = -scores.log_softmax(dim=1)[range(4), target]  # of a -1 the last candidate's
        close(
            list_loss(scores, target),
            F.cross_entropy(scores[found], target[found]),
            "the loss",
            "Minus the logarithm of the target's share of its list's softmax; the mean over the lists that have one.",
            (each.mean(), "A target of -1 picked the last candidate: indexing counts -1 from the end. Those lists "
             "teach nothing, so leave them out."),
            ((each * found).mean(), "Lists without a target add nothing and still count in the mean: divide by the "
             "number of lists that have one."),
            (F.binary_cross_entropy_with_logits(scores[found], hit[found]), "That asks of each candidate by itself "
             "whether it was watched. A softmax lets the candidates of one list compete."),
            ((each * found).sum(), "That is the sum over the lists; the loss is their mean."),
        )  # fmt: skip
