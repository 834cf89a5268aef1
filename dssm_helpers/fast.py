"""Code that is faster and harder to read, apart from the rest, each with what it saves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class RowwiseAdamW(torch.optim.AdamW):
    """AdamW that also takes sparse gradients: of such a table only the rows with a gradient change.

    A row that a batch did not look up keeps its value and its running averages (``SparseAdam``, with weight decay).
    """

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None and table.grad.is_sparse:
                    self._update_rows(table, group)
                    table.grad = None  # so that AdamW passes over it
        super().step()

    def _update_rows(self, table: Tensor, group: dict[str, Any]) -> None:
        state = self.state[table]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(table), torch.zeros_like(table)
        state["step"] += 1
        gradient = table.grad.coalesce()
        rows, values = gradient.indices()[0], gradient.values()  # [n], [n, D]
        rate, steps, (slow, slower) = group["lr"], float(state["step"]), group["betas"]
        mean = state["exp_avg"][rows].lerp(values, 1 - slow)
        square = state["exp_avg_sq"][rows].lerp(values**2, 1 - slower)
        state["exp_avg"][rows], state["exp_avg_sq"][rows] = mean, square
        mean, square = mean / (1 - slow**steps), square / (1 - slower**steps)
        table[rows] = table[rows] * (1 - rate * group["weight_decay"]) - rate * mean / (square.sqrt() + group["eps"])
