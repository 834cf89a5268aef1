"""Checks of the exercises of notebook 12."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from . import close, exercise


@exercise("Exercise 2: the loss of one process")
def check_rank_loss(rank_loss: Callable[[Tensor, Tensor, int, int], Tensor]) -> None:
    users, items = torch.randn(2, 12, 3, generator=torch.Generator().manual_seed(0))
    for rank, world in ((1, 2), (2, 3), (0, 1)):
        share = len(users) // world
        own, first = torch.arange(rank * share, (rank + 1) * share), torch.arange(share)
        logits = users[own] @ items.T
        close(
            rank_loss(users, items, rank, world),
            F.cross_entropy(logits, own),
            f"the loss of process {rank} of {world}",
            "Score the users of this process with all items, and take the cross-entropy with their own.",
            (F.cross_entropy(logits, first), "The right answers are not in the first columns: this process's own items "
             "begin at its place in the joint batch."),
            (F.cross_entropy(users[own] @ items[own].T, first), "You used this process's items alone: so the negatives "
             "shrink with the number of processes."),
            (F.cross_entropy(logits, own, reduction="sum"), "That is the sum of its rows; the loss is their mean."),
            (F.cross_entropy(users @ items.T, torch.arange(12)), "These are all rows of the joint batch; a process has "
             "its own share of the users."),
        )  # fmt: skip
