"""What a training run is told, and what it minimises: four objectives (notebook 04)."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .features import SAMPLERS, Batch
from .vocabulary import FIRST, UNKNOWN

SCHEDULES = ("one_cycle", "constant")


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides a training run besides the model and the data.

    Args:
        objective: ``in_batch``: softmax over the batch's items with logQ correction (default). ``list_wise``:
            softmax over 1 positive and ``n_negatives`` (the DSSM paper's). ``pair_wise``: BPR. ``point_wise``: BCE.
        schedule: ``one_cycle`` warms up and decays to zero over ``epochs``; ``constant``.
        sampler, n_negatives: for the three sampled objectives.
        logq: in-batch, how much of log P(item is in the batch) is subtracted from its logits: 1 all of it
            (J. Yi et al., RecSys 2019), 0 nothing.
        mask_accidental_hits: in-batch, a row with the same item as the target is not a negative.
        mask_seen: in-batch, neither is an item of the row's own history.
        label_smoothing: in-batch, share of the softmax target spread over all candidates that are not masked.
        id_dropout: share of a batch's user and target item ids that become "unknown" (row 1), so that row 1 learns what
            to say about a user or item that training never saw.
        select_by: validation metric whose best epoch is kept.
        patience: stop after this many epochs without a better one; ``None`` runs all ``epochs``.

    Raises:
        ValueError: a value out of range, or one that the objective does not read.
    """

    objective: str = "in_batch"
    epochs: int = 8
    batch_size: int = 512
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    schedule: str = "one_cycle"
    sampler: str = "uniform"
    n_negatives: int = 32
    logq: float = 1.0
    mask_accidental_hits: bool = True
    mask_seen: bool = True
    label_smoothing: float = 0.0
    id_dropout: float = 0.1
    select_by: str = "hit@10"
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
        for field in ("label_smoothing", "id_dropout"):
            if not 0 <= getattr(self, field) < 1:
                raise ValueError(f"{field} must be in [0, 1), got {getattr(self, field)}")
        if self.objective == "in_batch" and self.batch_size < 2:
            raise ValueError(
                "in-batch negatives are the other rows of the batch, and a batch of one has none: "
                "use batch_size ≥ 2 or another objective"
            )
        default = {field.name: field.default for field in fields(self)}
        for field in SAMPLED_ONLY if self.objective == "in_batch" else IN_BATCH_ONLY:
            if getattr(self, field) != default[field]:  # a setting nobody reads is worse than an error
                raise ValueError(f"the objective {self.objective!r} does not read {field}; leave it at its default")


IN_BATCH_ONLY = ("logq", "mask_accidental_hits", "mask_seen", "label_smoothing")
SAMPLED_ONLY = ("sampler", "n_negatives")


# -- Objectives --------------------------------------------------------------------------------------------------------


def log_shares(counts: np.ndarray) -> Tensor:
    """log P(a training row's target is item i), ``[I]``, from training counts; an item never seen counts as one."""
    return torch.from_numpy(np.log(np.maximum(counts, 1) / counts.sum())).float()


def in_history(history: Tensor, items: Tensor) -> Tensor:
    """Which of the batch's ``items [B]`` are in each row's ``history [b, L]``: ``[b, B]``."""
    distinct, column = items.unique(return_inverse=True)  # [U], [B]
    place = torch.searchsorted(distinct, history).clamp(max=len(distinct) - 1)  # [b, L]
    place = torch.where(distinct[place] == history, place, len(distinct))  # what is not in the batch: a column apart
    found = torch.zeros(len(history), len(distinct) + 1, dtype=torch.bool, device=history.device)
    return found.scatter_(1, place, True)[:, column]


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
        logits: ``[B, B]`` score of user ``r`` with the item of row ``c``; ``[b, B]`` where these are ``b`` rows of a
            larger batch.
        items: ``[B]`` item indices.
        log_q: ``[B]`` log-probability that a training row's target is that item; subtracted from its column.
        history: ``[b, L]`` items of each row's history, no negatives for that row (``mask_seen``).
        label_smoothing: share of the target spread over the row's candidates, masked ones left out.
        first: column of row 0's positive, for rows that start later in the batch (see ``distributed.py``).

    Raises:
        ValueError: fewer than two rows.
    """
    if len(items) < 2:
        raise ValueError("a batch of one has no in-batch negatives; use at least two rows")
    own = torch.arange(first, first + len(logits), device=items.device)  # the column of each row's positive
    masked = torch.zeros_like(logits, dtype=torch.bool)
    if mask_accidental_hits:
        masked |= items[own].unsqueeze(1) == items
    if history is not None:
        masked |= in_history(history, items)
    masked[torch.arange(len(logits)), own] = False
    if log_q is not None:
        logits = logits - log_q
    log_p = logits.masked_fill(masked, -torch.inf).log_softmax(dim=1)  # [b, B]
    loss = F.nll_loss(log_p, own)
    if label_smoothing:
        spread = -log_p.masked_fill(masked, 0.0).sum(dim=1) / (~masked).sum(dim=1)
        loss = (1 - label_smoothing) * loss + label_smoothing * spread.mean()
    return loss


def batch_loss(
    config: TrainingConfig, logits: Tensor, items: Tensor, history: Tensor, log_q: Tensor, first: int = 0
) -> Tensor:
    """:func:`in_batch_loss` as ``config`` wants it; ``log_q [I]`` is the table of :func:`log_shares`."""
    return in_batch_loss(
        logits,
        items,
        config.logq * log_q[items] if config.logq else None,
        mask_accidental_hits=config.mask_accidental_hits,
        history=history if config.mask_seen else None,
        label_smoothing=config.label_smoothing,
        first=first,
    )


def point_wise_loss(positive: Tensor, negative: Tensor, hit: Tensor) -> Tensor:
    """Binary cross-entropy: the positive is a 1, every drawn negative a 0 (notebook 04).

    Args:
        positive: ``[B]`` scores. negative: ``[B, n]`` scores.
        hit: ``[B, n]`` true where a drawn negative is the positive itself; such draws do not count, here and below.
    """
    loss = F.softplus(-positive).sum() + (F.softplus(negative) * ~hit).sum()
    return loss / (len(positive) + (~hit).sum())


def pair_wise_loss(positive: Tensor, negative: Tensor, hit: Tensor) -> Tensor:
    """BPR: the positive should score above each negative; arguments as :func:`point_wise_loss`.

    S. Rendle et al., "BPR: Bayesian Personalized Ranking from Implicit Feedback", UAI 2009.
    """
    loss = F.softplus(negative - positive.unsqueeze(1))  # -log sigmoid(positive - negative)
    return (loss * ~hit).sum() / (~hit).sum().clamp(min=1)


def list_wise_loss(positive: Tensor, negative: Tensor, hit: Tensor) -> Tensor:
    """Softmax over the positive and its negatives, the DSSM paper's; arguments as :func:`point_wise_loss`."""
    logits = torch.cat([positive.unsqueeze(1), negative.masked_fill(hit, -torch.inf)], dim=1)  # [B, 1 + n]
    return -logits.log_softmax(dim=1)[:, 0].mean()


SAMPLED = {"list_wise": list_wise_loss, "pair_wise": pair_wise_loss, "point_wise": point_wise_loss}
OBJECTIVES = ("in_batch", *SAMPLED)


def loss_at_chance(config: TrainingConfig, counts: np.ndarray) -> float:
    """The loss of a model that scores everything alike: where an untrained model should start (notebook 04).

    ln 2 for point- and pair-wise (point-wise, of scores that are all 0), ln(1 + n) list-wise. In-batch it is ln B
    without logQ; with it the correction itself tells rare from popular items: subtracting s · log q, the value is
    ln B + s · Σ q ln q + ln Σ q^(1 - s), q being the items' training shares.
    """
    if config.objective in ("point_wise", "pair_wise"):
        return math.log(2)
    if config.objective == "list_wise":
        return math.log(1 + config.n_negatives)
    q = counts[counts > 0] / counts.sum()
    corrected = config.logq * float((q * np.log(q)).sum()) + math.log(float((q ** (1 - config.logq)).sum()))
    return math.log(config.batch_size) + corrected


def with_unknown_ids(batch: Batch, share: float) -> Batch:
    """``batch`` with a random ``share`` of its user ids, and of its target item ids, replaced by "unknown"."""
    dropped = {}
    for name in ("user_id", "item_id"):
        unknown = torch.rand(batch[name].shape, device=batch[name].device) < share
        dropped[name] = batch[name].masked_fill(unknown & (batch[name] >= FIRST), UNKNOWN)
    return {**batch, **dropped}
