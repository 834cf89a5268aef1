"""The mystery of notebook 11, and the check of its exercise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from ...features import Batch, BatchBuilder
from ...model import DSSM
from ...objectives import TrainingConfig
from ...recipes import RECIPES, build_model
from ...training import Trainer
from ..workspace import Workspace
from . import exercise


class _FromAColleague(BatchBuilder):
    """Its histories hold everything up to the target's second."""

    def users(self, positions: torch.Tensor | np.ndarray) -> Batch:
        batch, data = super().users(positions), self.data
        new = np.append(True, (np.diff(data.user) != 0) | (np.diff(data.timestamp) != 0))  # a user's next second
        ends = torch.from_numpy(np.append(np.flatnonzero(new)[1:], len(data))[np.cumsum(new) - 1])
        positions = torch.as_tensor(positions)
        place = ends[positions].unsqueeze(1) - torch.arange(1, self.max_history + 1)  # [B, L]
        start = torch.from_numpy(data.offsets)[torch.from_numpy(data.user)[positions].long()]
        history = torch.from_numpy(data.item)[place.clamp(min=0)].long() * (place >= start.unsqueeze(1))
        return {**batch, "history": history.to(self.device)}


def mystery_run(workspace: Workspace) -> tuple[DSSM, BatchBuilder, TrainingConfig]:
    """A model that somebody trained, the batches they trained it on, and how (notebook 11, "Too good to be true")."""
    batches = _FromAColleague(workspace.data, device=workspace.device)
    config = replace(RECIPES["dssm"].training, epochs=2)
    model = build_model(workspace.data, "dssm", seed=1).to(workspace.device)
    rows = np.random.default_rng(1).permutation(workspace.split.train)[:30_000]
    Trainer(model, batches, config).fit(rows, progress=False)
    return model, batches, config


@exercise("Exercise 2: a leak, by hand")
def check_histories() -> Iterator[tuple]:
    """Of the same user, and before the position in the order of the file: neither the target nor what follows."""
    user, time = np.array([2, 2, 2, 2, 2, 3, 3, 3]), np.array([5, 7, 7, 7, 9, 7, 7, 8])
    item, positions = np.array([11, 12, 13, 14, 15, 21, 22, 23]), np.array([2, 0, 4, 6])
    arguments = (user, item, time, positions, 3)
    yield (
        arguments,
        [[12, 11, 0], [0, 0, 0], [14, 13, 12], [21, 0, 0]],
        (
            [[14, 13, 12], [11, 0, 0], [15, 14, 13], [22, 21, 0]],
            "As it stood: which items of a printed history do not belong there?",
        ),
        ([[11, 0, 0], [0, 0, 0], [14, 13, 12], [0, 0, 0]], "Items of the same second that stand before it are lost."),
        ([[14, 12, 11], [0, 0, 0], [14, 13, 12], [21, 0, 0]], "What follows in the target's second is still in it."),
        ([[12, 11, 0], [0, 0, 0], [14, 13, 12], [21, 15, 14]], "Those are items of other users as well."),
        ([[11, 12, 0], [0, 0, 0], [11, 12, 13], [21, 0, 0]], "Those are the oldest first: slot 0 holds the newest."),
        ([[13, 12, 11], [11, 0, 0], [15, 14, 13], [22, 21, 0]], "Up to the position is one too many: before it."),
    )
