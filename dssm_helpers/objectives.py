"""What a training run is told, and what it minimises: four objectives (notebook 04)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .data import REQUEST
from .features import SAMPLERS, Batch
from .vocabulary import FIRST, UNKNOWN


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides a training run besides the model and the data."""

    objective: str = "in_batch"  # or list_wise (the DSSM paper's), pair_wise (BPR), point_wise
    epochs: int = 8
    batch_size: int = 512
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    sampler: str = "uniform"  # of the negatives that list_wise, pair_wise and point_wise draw
    n_negatives: int = 32  # drawn for each row
    logq: float = 1.0  # how much of log P(item is in the batch) in_batch subtracts: 1 all of it, 0 nothing
    mask_accidental_hits: bool = True  # in_batch: a row with the target's item is no negative
    mask_seen: bool = True  # in_batch: nor is an item of the row's own history
    label_smoothing: float = 0.0  # in_batch: share of the target spread over all candidates that are not masked
    id_dropout: float = 0.1  # share of user and target item ids that become "unknown", so that row 1 learns
    select_by: str = "hit@10"  # validation metric whose best epoch is kept
    patience: int | None = None  # stop after so many epochs without a better one
    seed: int = 0

    def __post_init__(self) -> None:
        for field, choices in (("objective", OBJECTIVES), ("sampler", SAMPLERS)):
            if getattr(self, field) not in choices:
                raise ValueError(f"unknown {field} {getattr(self, field)!r}; choose from {', '.join(choices)}")
        for field in ("epochs", "batch_size", "n_negatives", "patience"):
            if getattr(self, field) is not None and getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}")
        for field in ("label_smoothing", "id_dropout"):
            if not 0 <= getattr(self, field) < 1:
                raise ValueError(f"{field} must be in [0, 1), got {getattr(self, field)}")
        in_batch_only = ("logq", "mask_accidental_hits", "mask_seen", "label_smoothing")
        for field in ("sampler", "n_negatives") if self.objective == "in_batch" else in_batch_only:
            if getattr(self, field) != getattr(TrainingConfig, field):  # a setting nobody reads is worse than an error
                raise ValueError(f"the objective {self.objective!r} does not read {field}; leave it at its default")


def log_shares(counts: np.ndarray) -> Tensor:
    """log P(a training row's target is item i), ``[I]``, from training counts; an item never seen counts as one."""
    return torch.from_numpy(np.log(np.maximum(counts, 1) / counts.sum())).float()


def in_history(history: Tensor, items: Tensor) -> Tensor:
    """Which of the batch's ``items [B]`` are in each row's ``history [b, L]``: ``[b, B]``.

    As ``(history.unsqueeze(2) == items).any(dim=1)``, whose ``[b, L, B]`` would make a step half as long again.
    """
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
    """Softmax over the batch: row ``r``'s positive is column ``r`` (notebook 04, "A batch is a list of candidates").

    ``logits [B, B]`` scores user ``r`` with the item of row ``c``; ``[b, B]`` are rows of a larger batch, the first has
    its positive in column ``first`` (see ``distributed.py``). ``history [b, L]`` are items that each row's user has
    had, ``log_q [B]`` log-probabilities that a training row's target is that item (J. Yi et al., RecSys 2019).
    """
    if len(items) < 2:
        raise ValueError("a batch of one has no in-batch negatives; use at least two rows")
    own = torch.arange(first, first + len(logits), device=logits.device)  # the column of each row's positive
    masked = torch.zeros_like(logits, dtype=torch.bool)
    if mask_accidental_hits:  # another row with the same item
        masked |= items[own].unsqueeze(1) == items
    if history is not None:  # an item that this user has had
        masked |= in_history(history, items)
    masked.scatter_(1, own.unsqueeze(1), False)  # the positive itself stays
    if log_q is not None:  # a popular item is a negative in more batches than its share of the catalogue
        logits = logits - log_q
    log_p = logits.masked_fill(masked, -torch.inf).log_softmax(dim=1)  # [b, B]
    loss = F.nll_loss(log_p, own)  # cross-entropy
    if label_smoothing:
        spread = -log_p.masked_fill(masked, 0.0).sum(dim=1) / (~masked).sum(dim=1)
        loss = (1 - label_smoothing) * loss + label_smoothing * spread.mean()
    return loss


def batch_loss(
    config: TrainingConfig, logits: Tensor, items: Tensor, history: Tensor, log_q: Tensor, first: int = 0
) -> Tensor:
    """:func:`in_batch_loss` as ``config`` wants it; ``log_q [I]`` is the table of :func:`log_shares`."""
    correction = config.logq * log_q[items] if config.logq else None
    seen = history if config.mask_seen else None
    options = {"mask_accidental_hits": config.mask_accidental_hits, "label_smoothing": config.label_smoothing}
    return in_batch_loss(logits, items, correction, history=seen, first=first, **options)


def point_wise_loss(positive: Tensor, negative: Tensor, hit: Tensor) -> Tensor:
    """Binary cross-entropy: the positive is a 1, every drawn negative a 0 (notebook 04).

    ``positive [B]`` and ``negative [B, n]`` are scores; ``hit [B, n]`` is true where a drawn negative is the positive
    itself: such a draw does not count, here and below.
    """
    loss = F.softplus(-positive).sum() + (F.softplus(negative) * ~hit).sum()
    return loss / (len(positive) + (~hit).sum())


def pair_wise_loss(positive: Tensor, negative: Tensor, hit: Tensor) -> Tensor:
    """BPR (S. Rendle et al., UAI 2009): the positive should beat each negative; arguments as in point-wise."""
    loss = F.softplus(negative - positive.unsqueeze(1))  # -log sigmoid(positive - negative)
    return (loss * ~hit).sum() / (~hit).sum().clamp(min=1)


def list_wise_loss(positive: Tensor, negative: Tensor, hit: Tensor) -> Tensor:
    """Softmax over the positive and its negatives, the DSSM paper's; arguments as in point-wise."""
    logits = torch.cat([positive.unsqueeze(1), negative.masked_fill(hit, -torch.inf)], dim=1)  # [B, 1 + n]
    return -logits.log_softmax(dim=1)[:, 0].mean()


SAMPLED = {"list_wise": list_wise_loss, "pair_wise": pair_wise_loss, "point_wise": point_wise_loss}
OBJECTIVES = ("in_batch", *SAMPLED)


def loss_at_chance(config: TrainingConfig, counts: np.ndarray) -> float:
    """The loss of a model that scores everything alike: where training starts (notebook 04, "The first loss").

    ln 2 for point- and pair-wise (point-wise, of scores that are all 0), ln(1 + n) list-wise, ln B in-batch. There logQ
    itself tells items apart: s · log q subtracted adds s · Σ q ln q + ln Σ q^(1 - s) for the items' training shares q.
    """
    if config.objective != "in_batch":
        return math.log(1 + config.n_negatives if config.objective == "list_wise" else 2)
    q = counts[counts > 0] / counts.sum()
    corrected = config.logq * float((q * np.log(q)).sum()) + math.log(float((q ** (1 - config.logq)).sum()))
    return math.log(config.batch_size) + corrected


def with_unknown_ids(batch: Batch, share: float) -> Batch:
    """``batch`` with a random ``share`` of its user ids, target item ids and request times replaced by "unknown"."""
    changed = dict(batch)
    for name in ("user_id", "item_id", *(column.name for column in REQUEST if column.name in batch)):
        dropped = torch.rand_like(batch[name], dtype=torch.float32) < share
        changed[name] = batch[name].masked_fill(dropped & (batch[name] >= FIRST), UNKNOWN)
    return changed
