"""Code that is faster and harder to read, apart from the rest, each with what it saves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class RowwiseAdamW(torch.optim.AdamW):
    """AdamW that also takes sparse gradients: of such a table only the rows with a gradient change.

    A row that a batch did not look up keeps its value and its running averages (``SparseAdam``, with weight decay).
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None and table.grad.is_sparse:
                    self._update_rows(table, group)
                    table.grad = None  # so that AdamW passes over it
        return super().step(closure)

    def _update_rows(self, table: Tensor, group: dict[str, Any]) -> None:
        state = self.state[table]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(table), torch.zeros_like(table)
        state["step"] += 1
        gradient = table.grad.coalesce()
        rows, values = gradient.indices()[0], gradient.values()  # [n], [n, D]
        updated = []
        for name, beta, target in zip(("exp_avg", "exp_avg_sq"), group["betas"], (values, values**2), strict=True):
            average = torch.lerp(state[name][rows], target, 1 - beta)
            state[name][rows] = average
            updated.append(average / (1 - beta ** float(state["step"])))
        mean, square = updated
        decayed = table[rows] * (1 - group["lr"] * group["weight_decay"])
        table[rows] = decayed - group["lr"] * mean / (square.sqrt() + group["eps"])
