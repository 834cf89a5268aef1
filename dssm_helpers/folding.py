"""Several models in one: their vectors side by side, folded into as few numbers as one of them has (notebook 13)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .features import Batch, BatchBuilder
from .model import DSSM, Tower, evaluation_mode
from .vocabulary import FIRST


class FoldedTower(nn.Module):
    """Towers side by side, times ``fold [M·D, K]``, and one number more: unit vectors ``[B, K + 1]``.

    A product of folded vectors is no cosine. The last number of an item fills its length up to ``longest``, a user's is
    0: so every item has the same length, and the order by cosine is the order by product (Y. Bachrach et al., RecSys
    2014).
    """

    def __init__(self, towers: Sequence[Tower], fold: Tensor, longest: float | None = None):
        super().__init__()
        self.towers, self.longest = nn.ModuleList(towers), longest
        self.register_buffer("fold", fold)

    def forward(self, batch: Batch) -> Tensor:
        vector = torch.cat([tower(batch) for tower in self.towers], dim=1) @ self.fold
        square = (vector * vector).sum(dim=1, keepdim=True)
        fill = square * 0 if self.longest is None else (self.longest**2 - square).clamp(min=0).sqrt()
        return F.normalize(torch.cat([vector, fill], dim=1), dim=1)


class FoldedDSSM(nn.Module):
    """What :func:`fold` makes: evaluated, exported and served like a :class:`DSSM`."""

    logits = DSSM.logits

    def __init__(self, user_tower: FoldedTower, item_tower: FoldedTower, temperature: float):
        super().__init__()
        self.user_tower, self.item_tower, self.temperature = user_tower, item_tower, temperature
        self.dim = user_tower.fold.shape[1] + 1

    def forward(self, batch: Batch) -> Tensor:
        return self.logits(self.user_tower(batch), self.item_tower(batch).unsqueeze(1)).squeeze(1)


@torch.no_grad()
def fold(models: Sequence[DSSM], batches: BatchBuilder, positions: np.ndarray) -> FoldedDSSM:
    """One model with vectors as wide as those of each of ``models``, whose order of the items is nearly their mean's.

    Of all maps to so few numbers it takes the one whose products are nearest (least squares) to the sum of the models'
    for the users at ``positions`` and all items: a truncated singular value decomposition of users · itemsᵀ.
    """
    with evaluation_mode(nn.ModuleList(models)):
        item = torch.cat([model.item_tower(batches.all_items()) for model in models], dim=1)[FIRST:]  # [I, M·D]
        batch = batches.users(positions)
        user = torch.cat([model.user_tower(batch) for model in models], dim=1)  # [N, M·D]
    triangles = [torch.linalg.qr(vectors).R for vectors in (user, item)]
    left, size, right = torch.linalg.svd(triangles[0] @ triangles[1].T)
    keep = models[0].dim - 1
    half = size[:keep].sqrt()
    users, items = (torch.linalg.solve(r, m[:, :keep] * half) for r, m in zip(triangles, (left, right.T), strict=True))
    longest = float((item @ items).norm(dim=1).max())
    towers = ([model.user_tower for model in models], [model.item_tower for model in models])
    return FoldedDSSM(
        FoldedTower(towers[0], users), FoldedTower(towers[1], items, longest), models[0].temperature
    ).eval()
