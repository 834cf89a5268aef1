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
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Generator, Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from tqdm import tqdm

from .fast import RowwiseAdamW
from .features import Batch, BatchBuilder, NegativeSampler
from .files import write_atomically
from .model import DSSM
from .objectives import SAMPLED, TrainingConfig, batch_loss, log_shares, with_unknown_ids


def resolve_device(device: str = "auto") -> torch.device:
    """``auto``: CUDA, else Apple's MPS, else CPU."""
    if device != "auto":
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def adamw(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW over all parameters with the learning rate and weight decay of ``config``."""
    # Fused: one pass over each parameter instead of a dozen. The oldest torch we allow has it for these devices.
    fused = next(model.parameters()).device.type in ("cpu", "cuda") or None
    return RowwiseAdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=fused)


def learning_rate_schedule(optimizer: torch.optim.Optimizer, config: TrainingConfig, steps: int) -> LRScheduler:
    """The schedule of a run of ``steps`` optimizer steps. One cycle: 30 % linear warm-up, then a cosine to zero."""

    def share_of_the_rate(step: int) -> float:
        progress, warm = step / steps, 0.3
        if config.schedule == "constant":
            return 1.0
        if progress < warm:
            return 0.04 + 0.96 * progress / warm
        return 0.5 * (1 + math.cos(math.pi * (progress - warm) / (1 - warm)))

    return LambdaLR(optimizer, share_of_the_rate)


def both_towers(model: DSSM, batch: Batch, config: TrainingConfig) -> tuple[Tensor, Tensor]:
    """User and target item vectors of a training batch, ``[B, D]`` each, some of its ids dropped."""
    if config.id_dropout:
        batch = with_unknown_ids(batch, config.id_dropout)
    return model.user_tower(batch), model.item_tower(batch)


class Diverged(RuntimeError):
    """The loss became NaN or infinite."""


Row = dict[str, float]
Validate = Callable[[DSSM], Row]


class Trainer:
    """Fit a :class:`DSSM` and keep its best weights (notebook 04, "The loop").

    The model is trained in place. For long runs, call ``model.user_tower.compile()`` and ``model.item_tower.compile()``
    before: the first step then takes many seconds, and each later one saves the more, the smaller the operations are
    (``benchmarks/RESULTS.md``). ``history`` has a row per epoch: epoch, loss, learning_rate, seconds (of training
    alone), validation metrics.

    Raises:
        ValueError: model and batches are on different devices.
    """

    rank = 0  # of this process, where several train together (see ``distributed.py``)

    def __init__(self, model: DSSM, batches: BatchBuilder, config: TrainingConfig | None = None):
        self.model, self.batches, self.config = model, batches, config or TrainingConfig()
        device = next(model.parameters()).device
        if device.type != batches.device.type:
            where = f"the model is on {device}, the batches on {batches.device}"
            raise ValueError(f"{where}; use model.to(device) and BatchBuilder(..., device=device) with one device")
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
        validate: Validate | None = None,
        *,
        progress: bool = True,
        checkpoint: str | Path | None = None,
        on_epoch: Callable[[Trainer], None] | None = None,
    ) -> pd.DataFrame:
        """Train, validate after every epoch, end with the weights of the best epoch by ``config.select_by``.

        ``train`` are positions in the flat interactions. ``validate`` gives metrics of a model, for example ``lambda m:
        evaluate(m, batches, split.validation)``; without it the last weights stay. ``checkpoint`` is written after each
        epoch and, where it exists, continued from.

        Raises:
            ValueError: no training rows, or one with in-batch negatives; a trainer that has trained; a patience without
                validation; a metric that validation does not give; a damaged checkpoint, or one begun otherwise.
            Diverged: the loss is not finite any more.
        """
        config, by = self.config, self.config.select_by
        if len(train) == 0:
            raise ValueError("there are no training rows")
        if self._rows:
            raise ValueError("this Trainer has trained already; make a new one, or continue from a checkpoint")
        if validate is None and config.patience is not None:
            raise ValueError("patience counts epochs without a better validation; pass validate=, or patience=None")
        counts = self.batches.data.item_counts(train)
        log_q = log_shares(counts).to(self.batches.device)
        sampler = None if config.objective == "in_batch" else NegativeSampler(config.sampler, counts)
        steps = max(1, len(train) // config.batch_size)
        self._schedule = learning_rate_schedule(self.optimizer, config, config.epochs * steps)
        shapes = {name: list(value.shape) for name, value in self.model.state_dict().items()}
        begun = {**asdict(config), "validation": validate is not None, "model": shapes}
        if checkpoint is not None and Path(checkpoint).exists():
            self._load_checkpoint(checkpoint, begun)
        with tqdm(total=config.epochs * steps, initial=len(self._rows) * steps, disable=not progress, ncols=88) as bar:
            while len(self._rows) < config.epochs and not self._out_of_patience():
                row = self._train_epoch(train, log_q, sampler, bar)
                if validate is not None:
                    found = validate(self.model)
                    if by not in found:
                        raise ValueError(f"select_by is {by!r}, but validate gives {', '.join(found)}")
                    row |= found
                    if row[by] > max((earlier[by] for earlier in self._rows), default=-math.inf):
                        self._best = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
                self._rows.append(row)
                bar.set_postfix({name: f"{row[name]:.3f}" for name in ("loss", by) if name in row})
                if checkpoint is not None:
                    self._save_checkpoint(checkpoint, begun)
                if on_epoch is not None:
                    on_epoch(self)
        if self._best is not None:
            self.model.load_state_dict(self._best)
        self.model.eval()
        return self.history

    def _train_epoch(self, train: np.ndarray, log_q: Tensor, sampler: NegativeSampler | None, bar: tqdm) -> Row:
        epoch = len(self._rows)
        # One seed per epoch: a resumed run draws what the uninterrupted one would have drawn.
        seed = self.config.seed * 1_000_003 + epoch
        torch.manual_seed(seed + 1000 * self.rank)  # dropout
        generator = Generator().manual_seed(seed)  # order and negatives
        started, losses = time.perf_counter(), []
        self.model.train()
        for positions in self.batches.epoch(train, self.config.batch_size, generator):
            loss = self._loss(positions, log_q, sampler, generator)
            rate = self.optimizer.param_groups[0]["lr"]
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            self._schedule.step()
            losses.append(loss.detach())
            bar.update()
        loss, seconds = float(torch.stack(losses).mean()), time.perf_counter() - started
        self.model.eval()
        if not math.isfinite(loss):
            rate, temperature = self.config.learning_rate, float(self.model.temperature)
            advice = f"lower the learning rate (now {rate:g}) or raise the temperature (now {temperature:g})"
            raise Diverged(f"the loss is {loss} in epoch {epoch + 1}; {advice}")
        return {"epoch": epoch + 1, "loss": loss, "learning_rate": rate, "seconds": seconds}

    def _loss(self, positions: Tensor, log_q: Tensor, sampler: NegativeSampler | None, generator: Generator) -> Tensor:
        """The loss of one batch; ``log_q [I]`` and ``sampler`` come from the training counts."""
        config, model = self.config, self.model
        batch = self.batches(positions)
        target = batch["item_id"]  # [B]
        users, items = both_towers(model, batch, config)
        if sampler is None:
            return batch_loss(config, model.logits(users, items), target, batch["history"], log_q)
        drawn = sampler.sample((len(positions), config.n_negatives), generator).to(self.batches.device)  # [B, n]
        # Many draws repeat an item: encode each distinct one once, then look the vectors up.
        distinct, place = torch.unique(drawn, return_inverse=True)
        # (F.embedding, because the gradient of plain indexing is summed in an order that changes with the threads.)
        negatives = F.embedding(place, model.item_tower(self.batches.items(distinct)))  # [B, n, D]
        scores = model.logits(users, torch.cat([items.unsqueeze(1), negatives], dim=1))  # [B, 1 + n]
        return SAMPLED[config.objective](scores[:, 0], scores[:, 1:], drawn == target.unsqueeze(1))

    def _out_of_patience(self) -> bool:
        scores = [row[self.config.select_by] for row in self._rows if self.config.patience is not None]
        return bool(scores) and len(scores) - 1 - int(np.argmax(scores)) >= self.config.patience

    def _save_checkpoint(self, path: str | Path, begun: dict[str, Any]) -> None:
        """Everything :meth:`fit` needs to go on: weights, best weights, optimizer, schedule, history."""
        tensors = {f"model.{n}": v.clone() for n, v in self.model.state_dict().items()}
        tensors |= {f"best.{n}": v.clone() for n, v in (self._best or {}).items()}
        optimizer = self.optimizer.state_dict()
        for i, state in optimizer["state"].items():
            tensors |= {f"optimizer.{i}.{n}": torch.as_tensor(v).clone() for n, v in state.items()}
        note = {
            "rows": self._rows,
            "begun": begun,
            "schedule": self._schedule.state_dict(),
            "groups": optimizer["param_groups"],
        }
        with write_atomically(path) as temporary:
            save_file(tensors, temporary, metadata={"trainer": json.dumps(note)})

    def _load_checkpoint(self, path: str | Path, begun: dict[str, Any]) -> None:
        """Continue from :meth:`_save_checkpoint`; ``ValueError`` where that cannot give the uninterrupted run."""
        try:
            with safe_open(path, framework="pt") as file:
                note = json.loads((file.metadata() or {})["trainer"])
            tensors = load_file(path)
        except (SafetensorError, KeyError, ValueError) as error:
            damage = f"{path} is damaged or no checkpoint of a Trainer ({error})"
            raise ValueError(f"{damage}; delete it to start from the first epoch") from error
        differing = [name for name, value in begun.items() if note["begun"].get(name) != value]
        if differing:
            raise ValueError(
                f"{path} was made with another {', '.join(differing)}; delete it, or go on as it was begun"
            )

        def part(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

        self.model.load_state_dict(part("model."))
        states = {i: part(f"optimizer.{i}.") for i in note["groups"][0]["params"]}
        self.optimizer.load_state_dict({"state": states, "param_groups": note["groups"]})
        self._schedule.load_state_dict(note["schedule"])
        self._best, self._rows = part("best.") or None, note["rows"]


def save_weights(model: DSSM, path: str | Path) -> None:
    """Write the model's weights as safetensors (no pickle: loading can run no code)."""
    with write_atomically(path) as temporary:
        save_model(model, str(temporary))


def load_weights(model: DSSM, path: str | Path) -> DSSM:
    """Load what :func:`save_weights` wrote into ``model``; its features and widths must be the same.

    Raises:
        ValueError: the file is damaged, or belongs to a model of another shape.
        FileNotFoundError: there is none.
    """
    try:
        load_model(model, str(path))
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and save the weights again") from error
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit this model (other features or widths?): {error}") from error
    return model.eval()
