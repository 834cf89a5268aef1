"""One trainer for all objectives (notebook 04, "The loop")."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model, save_file, save_model
from torch import Generator, Tensor, nn
from tqdm import tqdm

from .fast import RowwiseAdamW
from .features import Batch, BatchBuilder, NegativeSampler
from .files import write_atomically
from .model import DSSM
from .objectives import SAMPLED, TrainingConfig, batch_loss, log_shares, with_unknown_ids


def resolve_device(device: str = "auto") -> torch.device:
    """``auto``: CUDA, else Apple's MPS, else CPU."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return torch.device(device)


def adamw(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """The optimizer of a training run."""
    # Fused: one pass over each parameter instead of a dozen. The oldest torch we allow has it for these devices.
    fused = next(model.parameters()).device.type in ("cpu", "cuda") or None
    return RowwiseAdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=fused)


def learning_rate(config: TrainingConfig, progress: float) -> float:
    """The rate at ``progress`` in [0, 1). One cycle: 30 % of the run linear warm-up, then a cosine to zero."""
    warm = 0.3
    if progress < warm:
        return config.learning_rate * (0.04 + 0.96 * progress / warm)
    return config.learning_rate * (0.5 * (1 + math.cos(math.pi * (progress - warm) / (1 - warm))))


def both_towers(model: DSSM, batch: Batch, config: TrainingConfig) -> tuple[Tensor, Tensor]:
    """User and target item vectors of a training batch, ``[B, D]`` each, some of its ids dropped."""
    if config.id_dropout:
        batch = with_unknown_ids(batch, config.id_dropout)
    return model.user_tower(batch), model.item_tower(batch)


class Diverged(RuntimeError):
    """The loss became NaN or infinite."""


Row = dict[str, float]


class Trainer:
    """Fit a :class:`DSSM` and keep its best weights (notebook 04, "The loop").

    For long runs, call ``model.user_tower.compile()`` and ``model.item_tower.compile()`` before: the first step then
    takes many seconds, and each later one is quicker (notebook 12). ``history`` has a row per epoch:
    epoch, loss, learning_rate, seconds (of training alone), validation metrics.
    """

    rank = 0  # of this process, where several train together (see ``distributed.py``)

    def __init__(self, model: DSSM, batches: BatchBuilder, config: TrainingConfig | None = None):
        self.model, self.batches, self.config = model, batches, config or TrainingConfig()
        self.optimizer = adamw(model, self.config)
        self._rows: list[Row] = []
        self._best: dict[str, Tensor] | None = None

    @property
    def history(self) -> pd.DataFrame:
        return pd.DataFrame(self._rows)

    @property
    def train_seconds(self) -> float:
        return float(sum(row["seconds"] for row in self._rows))

    def fit(
        self,
        train: np.ndarray,
        validate: Callable[[DSSM], Row] | None = None,
        *,
        progress: bool = True,
        checkpoint: str | Path | None = None,
        on_epoch: Callable[[Trainer], None] | None = None,
    ) -> pd.DataFrame:
        """Train, validate after every epoch, end with the weights of the best epoch by ``config.select_by``.

        ``train`` are positions in the flat interactions. ``validate`` gives metrics of a model, for example ``lambda m:
        evaluate(m, batches, split.validation)``; without it the last weights stay. ``checkpoint`` is written after each
        epoch and, where it exists, continued from.

        Raises ``ValueError`` for too few rows, a trainer that has trained, a metric that validation does not give, a
        damaged checkpoint or one begun otherwise; :class:`Diverged`.
        """
        config, by = self.config, self.config.select_by
        if len(train) == 0:
            raise ValueError("there are no training rows")
        if self._rows:
            raise ValueError("this Trainer has trained already; make a new one, or continue from a checkpoint")
        if validate is None and config.patience is not None:
            raise ValueError("patience counts epochs without a better validation; pass validate=, or patience=None")
        counts = self.batches.data.item_counts(train)
        self._log_q = log_shares(counts).to(self.batches.device)  # [I]
        self._sampler = NegativeSampler(config.sampler, counts)
        steps = max(1, len(train) // config.batch_size)
        shapes = {name: list(value.shape) for name, value in self.model.state_dict().items()}
        begun = {**asdict(config), "validation": validate is not None, "model": shapes}
        if checkpoint is not None and Path(checkpoint).exists():
            self._load_checkpoint(checkpoint, begun)
        with tqdm(total=config.epochs * steps, initial=len(self._rows) * steps, disable=not progress, ncols=88) as bar:
            while len(self._rows) < config.epochs and self._epochs_since_best() < (config.patience or math.inf):
                row = self._train_epoch(train, steps, bar) | (validate(self.model) if validate else {})
                if validate is not None and by not in row:
                    raise ValueError(f"select_by is {by!r}, but validate gives {', '.join(row)}")
                self._rows.append(row)
                if validate is not None and self._epochs_since_best() == 0:
                    self._best = {name: value.clone() for name, value in self.model.state_dict().items()}
                bar.set_postfix({name: f"{row[name]:.3f}" for name in ("loss", by) if name in row})
                if checkpoint is not None:
                    self._save_checkpoint(checkpoint, begun)
                if on_epoch is not None:
                    on_epoch(self)
        if self._best is not None:
            self.model.load_state_dict(self._best)
        self.model.eval()
        return self.history

    def _train_epoch(self, train: np.ndarray, steps: int, bar: tqdm) -> Row:
        epoch = len(self._rows)
        # One seed per epoch: a resumed run draws what the uninterrupted one would have drawn.
        seed = self.config.seed * 1_000_003 + epoch
        torch.manual_seed(seed + 1000 * self.rank)  # dropout
        generator = Generator().manual_seed(seed)  # order and negatives
        started, losses, group = time.perf_counter(), [], self.optimizer.param_groups[0]
        self.model.train()
        for step, positions in enumerate(self.batches.epoch(train, self.config.batch_size, generator)):
            group["lr"] = learning_rate(self.config, (epoch * steps + step) / (self.config.epochs * steps))
            self.optimizer.zero_grad()
            loss = self._loss(positions, generator)
            loss.backward()
            self.optimizer.step()
            losses.append(loss.detach())
            bar.update()
        loss, seconds = float(torch.stack(losses).mean()), time.perf_counter() - started
        self.model.eval()
        if not math.isfinite(loss):
            advice = f"lower the learning rate (now {self.config.learning_rate:g}) or raise the temperature"
            raise Diverged(f"the loss is {loss} in epoch {epoch + 1}; {advice}")
        return {"epoch": epoch + 1, "loss": loss, "learning_rate": group["lr"], "seconds": seconds}

    def _loss(self, positions: Tensor, generator: Generator) -> Tensor:
        """The loss of one batch; drawn negatives come from ``generator``."""
        config, model = self.config, self.model
        batch = self.batches(positions)
        target = batch["item_id"]  # [B]
        users, items = both_towers(model, batch, config)
        if config.objective == "in_batch":
            return batch_loss(config, model.logits(users, items), target, batch["history"], self._log_q)
        drawn = self._sampler.sample((len(positions), config.n_negatives), generator).to(self.batches.device)  # [B, n]
        # Many draws repeat an item: encode each distinct one once, then look the vectors up.
        distinct, place = torch.unique(drawn, return_inverse=True)
        # (F.embedding, because the gradient of plain indexing is summed in an order that changes with the threads.)
        negatives = F.embedding(place, model.item_tower(self.batches.items(distinct)))  # [B, n, D]
        scores = model.logits(users, torch.cat([items.unsqueeze(1), negatives], dim=1))  # [B, 1 + n]
        return SAMPLED[config.objective](scores[:, 0], scores[:, 1:], drawn == target.unsqueeze(1))

    def _epochs_since_best(self) -> int:
        scores = [row.get(self.config.select_by, 0.0) for row in self._rows]
        return len(scores) - 1 - int(np.argmax(scores)) if scores else 0

    def _save_checkpoint(self, path: str | Path, begun: dict[str, Any]) -> None:
        """Everything :meth:`fit` needs to go on: weights, best weights, the optimizer's averages, history."""
        tensors = {f"model.{n}": v.clone() for n, v in self.model.state_dict().items()}
        tensors |= {f"best.{n}": v.clone() for n, v in (self._best or {}).items()}
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{n}": v for n, v in state.items()}
        with write_atomically(path) as temporary:
            save_file(tensors, temporary, metadata={"trainer": json.dumps({"rows": self._rows, "begun": begun})})

    def _load_checkpoint(self, path: str | Path, begun: dict[str, Any]) -> None:
        """Continue from :meth:`_save_checkpoint`; ``ValueError`` where that cannot give the uninterrupted run."""
        try:
            with safe_open(path, framework="pt") as file:
                note = json.loads((file.metadata() or {})["trainer"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, KeyError) as error:
            damage = f"{path} is damaged or no checkpoint of a Trainer ({error})"
            raise ValueError(f"{damage}; delete it to start from the first epoch") from error
        differing = ", ".join(name for name, value in begun.items() if note["begun"].get(name) != value)
        if differing:
            raise ValueError(f"{path} was made with another {differing}; delete it, or go on as it was begun")

        def part(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

        self.model.load_state_dict(part("model."))
        groups = self.optimizer.state_dict()["param_groups"]
        states = {i: part(f"optimizer.{i}.") for i in groups[0]["params"]}
        self.optimizer.load_state_dict({"state": states, "param_groups": groups})
        self._best, self._rows = part("best.") or None, note["rows"]


def save_weights(model: DSSM, path: str | Path) -> None:
    """Write the model's weights as safetensors (no pickle: loading can run no code)."""
    with write_atomically(path) as temporary:
        save_model(model, str(temporary))


def load_weights(model: DSSM, path: str | Path) -> DSSM:
    """Load what :func:`save_weights` wrote; ``ValueError`` for a damaged file, or one of a model of another shape."""
    try:
        load_model(model, str(path))
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged, or of a model with other features or widths: {error}") from error
    return model.eval()
