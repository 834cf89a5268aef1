"""Checks of the exercises of notebook 13."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from . import Hint, close, exercise


@exercise("Exercise 1: where a slot may look")
def check_may_look(may_look: Callable[[int], Tensor]) -> None:
    for length in (4, 7, 1):
        table = torch.as_tensor(may_look(length))
        if table.dtype != torch.bool:
            raise Hint(f"the table is of {table.dtype}; attention wants true and false, torch.bool")
        close(
            table,
            torch.ones(length, length).triu().bool(),
            f"the table of {length} slots",
            "Row: the slot that looks. Column: the slot it looks at. Slot 0 is the newest.",
            (torch.ones(length, length).tril().bool(), "Here histories are newest first: so a slot sees what came "
             "after it, and the newest sees nothing but itself. The past stands to its right."),
            (torch.ones(length, length).triu(1).bool(), "A slot does not see itself, and the oldest sees nothing: a "
             "softmax over nothing is NaN."),
            (torch.ones(length, length).tril(-1).bool(), "The table says where a slot may look, and this one where it "
             "may not: turn it over."),
            (torch.ones(length, length).bool(), "Everybody sees everything: that is no causal block."),
        )  # fmt: skip


@exercise("Exercise 2: the shares of a mixture")
def check_mixed_shares(mixed_shares: Callable[[np.ndarray, int, int], np.ndarray]) -> None:
    counts = np.array([0, 0, 60, 30, 10, 0])
    for rows, drawn in ((512, 256), (100, 300), (64, 0)):
        batch, uniform = counts / counts.sum(), np.array([0, 0, 1, 1, 1, 1]) / 4
        right = (rows * batch + drawn * uniform) / (rows + drawn)
        answer = np.asarray(mixed_shares(counts.copy(), rows, drawn))
        if (answer < 0).any():
            raise Hint("a share cannot be negative; is that its logarithm? The shares themselves were asked for")
        if answer.shape == counts.shape and answer[:2].any():
            problem = "rows 0 and 1 are padding and unknown: nobody draws them, so their share is 0"
            raise Hint(f"{problem}, and only the movies from row 2 on divide what is uniform")
        close(
            answer,
            right,
            f"the shares with {rows} rows and {drawn} drawn",
            "Of all columns, what part comes from the batch, and what part is drawn?",
            ((batch + uniform) / 2, "The two halves count alike here; a larger batch should count for more."),
            (rows * batch + drawn * uniform, "These are expected numbers of columns; divide by how many there are."),
            (batch, "This is the batch's share alone, so a movie without a rating would never be a column."),
        )  # fmt: skip
