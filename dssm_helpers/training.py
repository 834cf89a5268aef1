"""Four objectives, one trainer (notebook 04)."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import sysconfig
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn
from tqdm import tqdm

from .evaluation import TwoTowerScorer, metrics, rank_targets
from .features import SAMPLERS, Batch, BatchBuilder, NegativeSampler
from .files import write_atomically
from .model import DSSM

OBJECTIVES = ("in_batch", "list_wise", "pair_wise", "point_wise")
SCHEDULES = ("one_cycle", "constant")


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides a training run besides the model and the data.

    Args:
        objective: ``in_batch``: softmax over the batch's movies with logQ correction (default). ``list_wise``:
            softmax over 1 positive and ``n_negatives`` (the DSSM paper's). ``pair_wise``: BPR. ``point_wise``: BCE.
        sampler, n_negatives: for the three sampled objectives.
        logq: subtract log P(movie is in the batch) from in-batch logits (J. Yi et al., RecSys 2019).
        mask_accidental_hits: a batch row with the same movie as the target is not a negative.
        mask_seen: neither is a movie of the row's own history.
        label_smoothing: share of the softmax target spread over all candidates that are not masked.
        patience: stop after this many epochs without a better validation Hit@10; ``None`` runs all ``epochs``.
        schedule: ``one_cycle`` warms up and decays to zero over ``epochs``; ``constant``.
    """

    objective: str = "in_batch"
    epochs: int = 8
    batch_size: int = 512
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    schedule: str = "one_cycle"
    sampler: str = "uniform"
    n_negatives: int = 32
    logq: bool = True
    mask_accidental_hits: bool = True
    mask_seen: bool = True
    label_smoothing: float = 0.0
    patience: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for field, choices in (("objective", OBJECTIVES), ("sampler", SAMPLERS), ("schedule", SCHEDULES)):
            if getattr(self, field) not in choices:
                raise ValueError(f"unknown {field} {getattr(self, field)!r}; choose from {', '.join(choices)}")
        for field in ("epochs", "batch_size", "n_negatives"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience must be at least 1 epoch, or None to run all epochs; got {self.patience}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {self.label_smoothing}")
        if self.objective == "in_batch" and self.batch_size < 2:
            raise ValueError(
                "in-batch negatives are the other rows of the batch, and a batch of one has none: "
                "use batch_size ≥ 2 or another objective"
            )


# --------------------------------------------------------------------------------------------------------------------
# Objectives
# --------------------------------------------------------------------------------------------------------------------


def log_shares(counts: np.ndarray) -> Tensor:
    """log P(a training row's target is movie i), ``[I]``, from training counts; a movie never seen counts as one."""
    return torch.from_numpy(np.log(np.maximum(counts, 1) / counts.sum())).float()


def in_batch_loss(
    logits: Tensor,
    items: Tensor,
    log_q: Tensor | None = None,
    *,
    mask_accidental_hits: bool = True,
    history: Tensor | None = None,
    label_smoothing: float = 0.0,
    first: int = 0,
) -> Tensor:
    """Softmax over the batch: row ``r``'s positive is column ``r`` (notebook 04, "In-batch softmax").

    Args:
        logits: ``[B, B]`` cosine / temperature of user ``r`` with the movie of row ``c``; ``[b, B]`` where these are
            ``b`` rows of a larger batch.
        items: ``[B]`` movie indices.
        log_q: ``[B]`` log-probability that a training row's target is that movie; subtracted from its column.
        history: ``[B, L]`` movies of each row's history, no negatives for that row (``mask_seen``).
        label_smoothing: share of the target spread over the row's candidates, masked ones left out.
        first: column of row 0's positive, for rows that start later in the batch (see ``distributed.py``).

    Raises:
        ValueError: fewer than two rows.
    """
    if len(items) < 2:
        raise ValueError("a batch of one has no in-batch negatives; use at least two rows")
    own = torch.arange(first, first + len(logits), device=items.device)  # the column of each row's positive
    # One row per movie, so that picking the batch's movies copies whole rows of memory.
    highest = int(items.max()) if history is None else int(max(items.max(), history.max()))
    excluded = logits.new_zeros(highest + 1, len(logits), dtype=torch.bool)  # [I, b]
    if history is not None:
        excluded.scatter_(0, history.T, True)
    if mask_accidental_hits:
        excluded.scatter_(0, items[own].unsqueeze(0), True)
    blocked = excluded.index_select(0, items).T  # [b, B]
    blocked.diagonal(offset=first).fill_(False)
    correction = torch.zeros_like(logits[0]) if log_q is None else -log_q  # [B]
    log_p = (logits + correction.expand_as(logits).masked_fill(blocked, -torch.inf)).log_softmax(dim=1)  # [b, B]
    loss = F.nll_loss(log_p, own)
    if label_smoothing:
        spread = -log_p.masked_fill(blocked, 0.0).sum(dim=1) / (~blocked).sum(dim=1)
        loss = (1 - label_smoothing) * loss + label_smoothing * spread.mean()
    return loss


def sampled_loss(objective: str, positive: Tensor, negative: Tensor, hit: Tensor) -> Tensor:
    """Loss of 1 positive against n negatives (notebook 04).

    Args:
        objective: ``point_wise``, ``pair_wise`` or ``list_wise``.
        positive: ``[B]`` scores. negative: ``[B, n]`` scores.
        hit: ``[B, n]`` true where a drawn negative is the positive itself; such draws do not count.
    """
    if objective == "list_wise":
        logits = torch.cat([positive.unsqueeze(1), negative.masked_fill(hit, -torch.inf)], dim=1)
        return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))
    weight = (~hit).float()
    if objective == "pair_wise":
        loss = F.softplus(negative - positive.unsqueeze(1))  # -log sigmoid(positive - negative)
        return (loss * weight).sum() / weight.sum().clamp(min=1)
    if objective == "point_wise":
        loss = F.softplus(-positive).sum() + (F.softplus(negative) * weight).sum()
        return loss / (len(positive) + weight.sum())
    raise ValueError(f"unknown sampled objective {objective!r}; choose from {', '.join(OBJECTIVES[1:])}")


def loss_at_chance(config: TrainingConfig, counts: np.ndarray) -> float:
    """The loss of a model that scores everything alike: where an untrained model should start (notebook 04).

    ln 2 for point- and pair-wise, ln(1 + n) list-wise, ln B in-batch. Point-wise this assumes scores of 0: an untrained
    model scores everything alike but not exactly 0, and a common score of s gives other values (notebook 04 computes
    them). With logQ the correction itself tells rare from
    popular movies, and the in-batch value becomes ln B + KL(q ‖ uniform), q being the movies' training shares.
    """
    if config.objective in ("point_wise", "pair_wise"):
        return math.log(2)
    if config.objective == "list_wise":
        return math.log(1 + config.n_negatives)
    q = counts[counts > 0] / counts.sum()
    divergence = math.log(len(q)) + float((q * np.log(q)).sum()) if config.logq else 0.0
    return math.log(config.batch_size) + divergence


def resolve_device(device: str = "auto") -> torch.device:
    """``auto``: CUDA, else Apple's MPS, else CPU."""
    if device != "auto":
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


# --------------------------------------------------------------------------------------------------------------------
# The trainer
# --------------------------------------------------------------------------------------------------------------------


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


def adamw(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW over all parameters with the learning rate and weight decay of ``config``."""
    # Fused: one pass over each parameter instead of a dozen, which is a tenth of a step on a CPU. The oldest torch we
    # allow has it for these devices; None leaves the choice to torch.
    fused = next(model.parameters()).device.type in ("cpu", "cuda") or None
    return RowwiseAdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=fused)


def _check_can_compile(model: DSSM, device: torch.device) -> None:
    """Say what stands in the way before training starts, not deep inside its first step."""
    if any(module.sparse for module in model.modules() if isinstance(module, nn.Embedding)):
        raise ValueError(
            "torch.compile cannot trace the sparse gradient of a table declared rows_only; "
            "declare the feature without it, or leave compile=False"
        )
    missing = missing_compiler() if device.type == "cpu" else None
    if missing:
        raise ValueError(
            f"compile=True needs a C++ compiler and Python's headers, and there is {missing}. Install them (Debian and "
            "Ubuntu: g++ and python3-dev, macOS: xcode-select --install, Windows: Visual Studio's C++ build tools), "
            "name your compiler in the environment variable CXX, or leave compile=False"
        )


def missing_compiler() -> str | None:
    """What ``torch.compile``, which writes C++ for a CPU, does not find here; ``None`` if all is there."""
    compiler = os.environ.get("CXX") or {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    if shutil.which(compiler) is None:
        return f"no {compiler!r} on the PATH"
    headers = Path(sysconfig.get_path("include"))
    return None if (headers / "Python.h").exists() else f"no Python.h in {headers}"


class Diverged(RuntimeError):
    """The loss became NaN or infinite."""


class Trainer:
    """Fit a :class:`DSSM` and keep its best weights (notebook 04, "The loop").

    Args:
        model: trained in place.
        batches: forms the batches; model and batches are on one device.
        config: see :class:`TrainingConfig`.
        compile: train through ``torch.compile`` of both towers. The first step then takes many seconds; each later one
            saves the more, the smaller the operations are (``benchmarks/RESULTS.md``): for long runs.

    Raises:
        ValueError: model and batches are on different devices, or ``compile`` where that cannot work.

    Attributes:
        history: one row per epoch: epoch, loss, validation metrics, seconds (training only), learning_rate.
    """

    def __init__(
        self, model: DSSM, batches: BatchBuilder, config: TrainingConfig | None = None, *, compile: bool = False
    ):
        self.model, self.batches, self.config = model, batches, config or TrainingConfig()
        if next(model.parameters()).device.type != batches.device.type:
            raise ValueError(
                f"the model is on {next(model.parameters()).device}, the batches on {batches.device}; "
                "use model.to(device) and BatchBuilder(..., device=device) with one device"
            )
        # Only training goes through the compiled towers: evaluation has other batch sizes, and each would be compiled.
        self._user_tower: Callable[[Batch], Tensor] = model.user_tower
        self._item_tower: Callable[[Batch], Tensor] = model.item_tower
        if compile:
            _check_can_compile(model, batches.device)
            self._user_tower, self._item_tower = torch.compile(model.user_tower), torch.compile(model.item_tower)
        self.optimizer = adamw(model, self.config)
        self._epoch = 0
        self._rows: list[dict[str, float]] = []
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
        validation: np.ndarray | None = None,
        *,
        progress: bool = True,
        checkpoint: str | Path | None = None,
        on_epoch: Callable[[Trainer], None] | None = None,
    ) -> pd.DataFrame:
        """Train, validate after every epoch, end with the weights of the best validation Hit@10.

        Args:
            train, validation: positions in the flat interactions. Without validation the last weights are kept.
            progress: draw a bar.
            checkpoint: file to write after each epoch and, if it exists, to continue from.
            on_epoch: called after each epoch.

        Raises:
            ValueError: no training rows, or fewer than two with in-batch negatives.
            Diverged: the loss is not finite any more.
        """
        config = self.config
        if len(train) < (2 if config.objective == "in_batch" else 1):
            raise ValueError(f"{len(train)} training rows are too few for the objective {config.objective!r}")
        counts = self.batches.data.item_counts(train)
        log_q = log_shares(counts).to(self.batches.device)
        sampler = None if config.objective == "in_batch" else NegativeSampler(config.sampler, counts)
        if checkpoint is not None and Path(checkpoint).exists():
            self.load_checkpoint(checkpoint)
        steps = max(1, len(train) // config.batch_size)
        bar = tqdm(total=config.epochs * steps, initial=self._epoch * steps, disable=not progress, ncols=88)
        with bar:
            while self._epoch < config.epochs and not self._out_of_patience():
                # One seed per epoch: a resumed run draws what the uninterrupted one would have drawn.
                torch.manual_seed(config.seed * 1_000_003 + self._epoch)
                generator = torch.Generator().manual_seed(config.seed * 1_000_003 + self._epoch)
                started, total = time.perf_counter(), torch.zeros((), device=self.batches.device)
                self.model.train()
                count = 0
                for positions in self.batches.epoch(train, config.batch_size, generator):
                    self._set_learning_rate((self._epoch * steps + count) / (config.epochs * steps))
                    loss = self._loss(positions, log_q, sampler, generator)
                    self.optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                    self.optimizer.step()
                    total += loss.detach()
                    count += 1
                    bar.update()
                mean_loss = float(total) / count
                seconds = time.perf_counter() - started
                self.model.eval()
                if not math.isfinite(mean_loss):
                    raise Diverged(
                        f"the loss is {mean_loss} in epoch {self._epoch + 1}; lower the learning rate "
                        f"(now {config.learning_rate:g}) or raise the temperature (now {self.model.temperature:g})"
                    )
                self._finish_epoch(mean_loss, seconds, validation)
                bar.set_postfix(loss=f"{mean_loss:.3f}", **self._shown())
                if checkpoint is not None:
                    self.save_checkpoint(checkpoint)
                if on_epoch is not None:
                    on_epoch(self)
        if self._best is not None:
            self.model.load_state_dict(self._best)
        self.model.eval()
        return self.history

    def _loss(
        self, positions: Tensor, log_q: Tensor, sampler: NegativeSampler | None, generator: torch.Generator
    ) -> Tensor:
        config, model = self.config, self.model
        batch: Batch = self.batches(positions)
        users = self._user_tower(batch)  # [B, D]
        items = self._item_tower(batch)  # [B, D]
        if sampler is None:
            return in_batch_loss(
                (users / model.temperature) @ items.T,
                batch["movie_id"],
                log_q[batch["movie_id"]] if config.logq else None,
                mask_accidental_hits=config.mask_accidental_hits,
                history=batch["history"] if config.mask_seen else None,
                label_smoothing=config.label_smoothing,
            )
        drawn = sampler.sample((len(positions), config.n_negatives), generator).to(self.batches.device)  # [B, n]
        # Many draws repeat a movie: encode each distinct one once, then look the vectors up.
        distinct, place = torch.unique(drawn, return_inverse=True)
        # (F.embedding, because the gradient of plain indexing is summed in an order that changes with the threads.)
        negatives = F.embedding(place, self._item_tower(self.batches.items(distinct)))  # [B, n, D]
        positive = (users * items).sum(dim=-1) / model.temperature  # [B]
        negative = (negatives @ users.unsqueeze(-1)).squeeze(-1) / model.temperature  # [B, n]
        return sampled_loss(config.objective, positive, negative, drawn == batch["movie_id"].unsqueeze(1))

    def _set_learning_rate(self, progress: float) -> None:
        """``progress`` in [0, 1) of the whole run. One cycle: 30 % linear warm-up, then a cosine to zero."""
        factor = 1.0
        if self.config.schedule == "one_cycle":
            warm = 0.3
            factor = (
                0.04 + 0.96 * progress / warm
                if progress < warm
                else 0.5 * (1 + math.cos(math.pi * (progress - warm) / (1 - warm)))
            )
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * factor

    def _finish_epoch(self, loss: float, seconds: float, validation: np.ndarray | None) -> None:
        self._epoch += 1
        row = {"epoch": self._epoch, "loss": loss}
        if validation is not None:
            scorer = TwoTowerScorer(self.model, self.batches)
            row |= metrics(rank_targets(scorer, self.batches.data, validation))
            if not self._rows or row["hit@10"] > max(r["hit@10"] for r in self._rows):
                self._best = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        self._rows.append(row | {"learning_rate": self.optimizer.param_groups[0]["lr"], "seconds": seconds})

    def _shown(self) -> dict[str, str]:
        return {"hit@10": f"{self._rows[-1]['hit@10']:.3f}"} if "hit@10" in self._rows[-1] else {}

    def _out_of_patience(self) -> bool:
        if self.config.patience is None or not self._rows or "hit@10" not in self._rows[0]:
            return False
        scores = [row["hit@10"] for row in self._rows]
        return len(scores) - 1 - int(np.argmax(scores)) >= self.config.patience

    def save_checkpoint(self, path: str | Path) -> None:
        """Everything :meth:`fit` needs to go on: weights, best weights, optimizer state, history."""
        tensors = {f"model.{n}": v.clone() for n, v in self.model.state_dict().items()}
        tensors |= {f"best.{n}": v.clone() for n, v in (self._best or {}).items()}
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{n}": torch.as_tensor(v).clone() for n, v in state.items()}
        note = {"epoch": self._epoch, "rows": self._rows, "config": asdict(self.config)}
        with write_atomically(path) as temporary:
            save_file(tensors, temporary, metadata={"trainer": json.dumps(note)})

    def load_checkpoint(self, path: str | Path) -> None:
        """Continue from :meth:`save_checkpoint`.

        Raises:
            ValueError: the file is damaged or no checkpoint, or belongs to another configuration or model.
        """
        try:
            with safe_open(path, framework="pt") as file:
                note = json.loads((file.metadata() or {})["trainer"])
            tensors = load_file(path)
        except (SafetensorError, KeyError, ValueError) as error:
            raise ValueError(
                f"{path} is damaged or no checkpoint of a Trainer ({error}); delete it to start from the first epoch"
            ) from error
        if note["config"] != asdict(self.config):
            differing = [k for k, v in asdict(self.config).items() if note["config"].get(k) != v]
            raise ValueError(
                f"{path} was made with another {', '.join(differing)}; delete it or use the same configuration"
            )

        def part(prefix: str) -> dict[str, Tensor]:
            return {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}

        try:
            self.model.load_state_dict(part("model."))
        except RuntimeError as error:
            raise ValueError(f"{path} belongs to another model (other features or widths?): {error}") from error
        self._best = part("best.") or None
        state = self.optimizer.state_dict()
        state["state"] = {}
        for key, value in part("optimizer.").items():
            index, name = key.split(".", 1)
            state["state"].setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict(state)
        self._epoch, self._rows = note["epoch"], note["rows"]


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
    if not Path(path).exists():
        raise FileNotFoundError(f"no weights at {path}; train first, or check the path")
    try:
        load_model(model, str(path))
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and save the weights again") from error
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit this model (other features or widths?): {error}") from error
    return model.eval()
