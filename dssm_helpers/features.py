"""Features, pooling, batches and negative samplers (notebook 02)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from .data import EncodedData
from .vocabulary import FIRST

POOLINGS = ("mean", "sum", "max", "recency")
DEFAULT_POOLING = ("mean", "recency:1", "recency:10")
LARGE_TABLE = 50_000  # rows from which updating all of a table takes longer than the rest of a training step
SAMPLERS = ("uniform", "count^0.75", "log_count", "log_uniform")

Batch = dict[str, Tensor]

# --------------------------------------------------------------------------------------------------------------------
# Declarations
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SparseFeature:
    """One categorical value per row: ``batch[name]`` is ``[B]``, embedded to ``[B, embed_dim]``.

    Args:
        rows_only: a training step updates the rows of its batch and leaves the others alone. For large tables: else
            every step goes through the whole table, however few of its rows the batch looked up.
    """

    name: str
    vocab_size: int
    embed_dim: int = 16
    rows_only: bool = False

    @property
    def width(self) -> int:
        """Columns this feature adds to the tower's input."""
        return self.embed_dim


@dataclass(frozen=True)
class SequenceFeature:
    """A list of values per row: ``batch[name]`` is ``[B, L]`` with 0 as padding, pooled to ``[B, width]``.

    Args:
        pooling: one of ``mean``, ``sum``, ``max``, ``recency`` (a learned weight per place), or several of them:
            ``("mean", "recency")`` pools twice and concatenates. ``recency:H`` starts with a half-life of H places.
        shared_with: name of the item feature whose embedding table this sequence looks up in.
        max_length: longer sequences use their first ``max_length`` values only. Histories are ordered newest first.
    """

    name: str
    vocab_size: int
    embed_dim: int = 16
    pooling: str | tuple[str, ...] = "mean"
    shared_with: str | None = None
    max_length: int = 50

    def __post_init__(self) -> None:
        if not self.poolings:
            raise ValueError(f"feature {self.name!r}: needs at least one pooling of {', '.join(POOLINGS)}")
        for pooling in self.poolings:
            parse_pooling(pooling)
        if self.max_length < 1:
            raise ValueError(f"feature {self.name!r}: max_length must be at least 1, got {self.max_length}")

    @property
    def poolings(self) -> tuple[str, ...]:
        return (self.pooling,) if isinstance(self.pooling, str) else tuple(self.pooling)

    @property
    def width(self) -> int:
        """Columns this feature adds to the tower's input."""
        return self.embed_dim * len(self.poolings)


Feature = SparseFeature | SequenceFeature


def parse_pooling(pooling: str) -> tuple[str, float]:
    """``"recency:10"`` → ``("recency", 10.0)``; the half-life is 3 where none is given and unused by other kinds."""
    kind, _, half_life = pooling.partition(":")
    try:
        places = float(half_life or 3)
    except ValueError:
        places = -1.0
    if kind not in POOLINGS or not 0 < places < math.inf or (half_life and kind != "recency"):
        raise ValueError(
            f"unknown pooling {pooling!r}; choose from {', '.join(POOLINGS)}, or recency:H with a half-life H > 0"
        )
    return kind, places


class Pooling(nn.Module):
    """Reduce ``[B, L, D]`` embeddings to ``[B, P·D]``, ignoring padded places (notebook 02, "Pooling a history").

    An empty sequence gives zeros. ``recency`` learns one weight per place and normalises over the places present:
    place 0 is the newest, so a sequence of any length up to ``max_length`` lines up. It starts as an exponential
    decay, and several heads with different half-lives keep short and long memory apart.

    Args:
        pooling: one kind, or ``P`` of them whose results lie side by side (see :class:`SequenceFeature`).
        max_length: the longest sequence.

    Attributes:
        recency: the ``R`` recency heads among ``pooling``.
        logits: ``[R, max_length]``, what they learn.
    """

    SCALE = 10.0  # Adam moves a parameter by about the learning rate per step; scaled, a weight can change 10× as fast

    def __init__(self, pooling: str | tuple[str, ...], max_length: int = 50):
        super().__init__()
        self.poolings = (pooling,) if isinstance(pooling, str) else tuple(pooling)
        self.kinds = tuple(parse_pooling(name)[0] for name in self.poolings)
        self.recency = tuple(name for name, kind in zip(self.poolings, self.kinds, strict=True) if kind == "recency")
        if self.recency:
            half_life = torch.tensor([[parse_pooling(name)[1]] for name in self.recency])  # [R, 1]
            decay = math.log(2.0) / half_life / self.SCALE
            self.logits = nn.Parameter(-decay * torch.arange(max_length, dtype=torch.float32))

    def extra_repr(self) -> str:
        return ", ".join(self.poolings)

    def weights(self) -> Tensor:
        """Relative weight of each place in each recency head, ``[R, max_length]``, the newest first; rows sum to 1."""
        return torch.softmax(self.SCALE * self.logits.detach(), dim=1)

    def forward(self, embedded: Tensor, mask: Tensor) -> Tensor:
        """``embedded [B, L, D]``, ``mask [B, L]`` true where a value is present → ``[B, P·D]``."""
        # All kinds but max are weighted sums, and one product makes them all: apart, each would read [B, L, D] anew and
        # leave a gradient of that size.
        weight = self._places(embedded) * mask.unsqueeze(1)  # [B, P, L]
        if self.training and embedded[0].numel() <= 1024:  # starting B tiny products takes longer than doing them
            total = (weight.unsqueeze(3) * embedded.unsqueeze(1)).sum(dim=2)  # [B, P, D]
        else:
            total = weight @ embedded
        pooled = total / weight.sum(dim=2, keepdim=True).clamp(min=1e-9)
        if not {"sum", "max"}.isdisjoint(self.kinds):
            other = {"sum": total, "max": self._highest(embedded, mask).unsqueeze(1).expand_as(total)}
            pooled = torch.stack([other.get(kind, pooled)[:, i] for i, kind in enumerate(self.kinds)], dim=1)
        return pooled.flatten(1)

    def _places(self, embedded: Tensor) -> Tensor:
        """Weight of each place in each kind, before the mask and relative to the others: ``[P, L]``."""
        if not self.recency:
            return embedded.new_ones(len(self.kinds), embedded.shape[1])
        relative = self.logits - self.logits.amax(dim=1, keepdim=True)  # exp must not overflow
        learned = iter(torch.exp(self.SCALE * relative[:, : embedded.shape[1]]))
        alike = embedded.new_ones(embedded.shape[1])
        return torch.stack([next(learned) if kind == "recency" else alike for kind in self.kinds])

    @staticmethod
    def _highest(embedded: Tensor, mask: Tensor) -> Tensor:
        """Per column the largest value present, ``[B, D]``; 0 where the sequence is empty."""
        lowest = torch.finfo(embedded.dtype).min
        present = embedded.masked_fill(~mask.unsqueeze(-1), lowest)
        empty = present.new_full((present.shape[0], 1, present.shape[2]), lowest)  # for sequences of length 0
        highest = torch.cat([present, empty], dim=1).amax(dim=1)
        return torch.where(mask.any(dim=1, keepdim=True), highest, torch.zeros_like(highest))


# --------------------------------------------------------------------------------------------------------------------
# Batches
# --------------------------------------------------------------------------------------------------------------------


class BatchBuilder:
    """Form batches by indexing the flat interactions; no Python runs per example (notebook 02, "Forming batches").

    Args:
        data: encoded interactions.
        max_history: how many of the latest movies a history holds.
        device: where the tables live and batches are formed.
    """

    def __init__(self, data: EncodedData, max_history: int = 50, device: str | torch.device = "cpu"):
        if max_history < 1:
            raise ValueError(f"max_history must be at least 1, got {max_history}")
        self.data = data
        self.max_history = max_history
        self.device = torch.device(device)
        self.user = torch.from_numpy(data.user).to(self.device)
        self.item = torch.from_numpy(data.item).to(self.device)
        self.offsets = torch.from_numpy(data.offsets).to(self.device)
        self.user_columns = {n: torch.from_numpy(c).to(self.device) for n, c in data.user_columns.items()}
        self.item_columns = {n: torch.from_numpy(c).to(self.device) for n, c in data.item_columns.items()}
        self._steps_back = torch.arange(1, max_history + 1, device=self.device)

    def users(self, positions: Tensor | np.ndarray) -> Batch:
        """User side of the examples at ``positions [B]``: user columns ``[B]`` and ``history [B, L]``, newest first."""
        positions = torch.as_tensor(positions, device=self.device)
        user = self.user[positions].long()  # [B]
        batch = {name: column[user] for name, column in self.user_columns.items()}
        place = positions.unsqueeze(1) - self._steps_back  # [B, L]
        inside = place >= self.offsets[user].unsqueeze(1)
        batch["history"] = self.item[place.clamp(min=0)].long() * inside
        return batch

    def items(self, items: Tensor | np.ndarray) -> Batch:
        """Item side for movie indices of any shape ``[...]``: columns ``[...]``, and ``genres [..., G]``."""
        items = torch.as_tensor(items, device=self.device).long()
        return {name: column[items] for name, column in self.item_columns.items()}

    def all_items(self) -> Batch:
        """Item side of the whole table, row = movie index (rows 0 and 1 are padding and unknown)."""
        return dict(self.item_columns)

    def __call__(self, positions: Tensor | np.ndarray) -> Batch:
        """User history, user columns and the target movie's columns for the examples at ``positions``."""
        positions = torch.as_tensor(positions, device=self.device)
        return {**self.users(positions), **self.items(self.item[positions])}

    def epoch(
        self, positions: Tensor | np.ndarray, batch_size: int, generator: torch.Generator | None = None
    ) -> Iterator[Tensor]:
        """Shuffle ``positions`` and yield them ``batch_size`` at a time; the incomplete last batch is dropped.

        In-batch negatives make a batch's size part of the task, so all batches have the same; a set smaller than
        one batch is yielded whole.
        """
        positions = torch.as_tensor(positions)
        order = positions[torch.randperm(len(positions), generator=generator)].to(self.device)
        full = len(order) // batch_size * batch_size
        yield from (order[:full].split(batch_size) if full else [order])


# --------------------------------------------------------------------------------------------------------------------
# Negatives
# --------------------------------------------------------------------------------------------------------------------


class NegativeSampler:
    """Draw movies to play the negatives (notebook 02, "Where negatives come from").

    Args:
        kind: ``uniform``: all movies alike. ``count^0.75``: by popularity, flattened (word2vec). ``log_count``:
            proportional to log(count + 1). ``log_uniform``: movies ranked by popularity, the one at rank r
            (from 0) with probability log((r + 2) / (r + 1)) / log(n + 1).
        counts: ``[I]`` training counts per movie index; rows 0 and 1 are never drawn.
    """

    def __init__(self, kind: str, counts: np.ndarray):
        if kind not in SAMPLERS:
            raise ValueError(f"unknown sampler {kind!r}; choose from {', '.join(SAMPLERS)}")
        counts = np.asarray(counts, dtype=np.float64)
        if counts.ndim != 1 or len(counts) <= FIRST or (counts < 0).any():
            raise ValueError("counts must be one non-negative number per movie index, padding and unknown included")
        real = counts[FIRST:]
        if kind == "uniform":
            weight = np.ones_like(real)
        elif kind == "count^0.75":
            weight = real**0.75
        elif kind == "log_count":
            weight = np.log1p(real)
        else:
            rank = np.empty(len(real))
            rank[np.argsort(-real, kind="stable")] = np.arange(len(real))
            weight = np.log((rank + 2) / (rank + 1))
        if weight.sum() == 0:
            raise ValueError(f"sampler {kind!r} has nothing to draw: every count is 0")
        self.kind = kind
        self.probabilities = np.concatenate([np.zeros(FIRST), weight / weight.sum()])
        self._ladder = torch.from_numpy(np.cumsum(self.probabilities))
        self._last = int(np.flatnonzero(self.probabilities)[-1])

    def sample(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """Movie indices of ``shape``, int64, drawn with replacement."""
        draw = torch.rand(shape, generator=generator, dtype=torch.float64)
        return torch.searchsorted(self._ladder, draw, right=True).clamp(max=self._last)


def default_features(
    data: EncodedData,
    *,
    dim: int = 64,
    side_dim: int = 16,
    pooling: str | tuple[str, ...] = DEFAULT_POOLING,
    max_history: int = 50,
) -> tuple[list[Feature], list[Feature]]:
    """The course's user and item features (notebook 02, "Declaring features").

    User: id, gender, age group, occupation, postal area, history. Item: id, year, genres. The history looks up the
    movies' own embeddings. A table of more than ``LARGE_TABLE`` users is updated ``rows_only``.
    """
    size = {name: len(vocabulary) for name, vocabulary in data.vocabularies.items()}
    user: list[Feature] = [SparseFeature("user_id", size["user_id"], dim, rows_only=size["user_id"] > LARGE_TABLE)]
    user += [SparseFeature(name, size[name], side_dim) for name in ("gender", "age", "occupation", "zip")]
    user.append(SequenceFeature("history", size["movie_id"], dim, pooling, "movie_id", max_history))
    item: list[Feature] = [
        SparseFeature("movie_id", size["movie_id"], dim),
        SparseFeature("year", size["year"], side_dim),
        SequenceFeature("genres", size["genres"], side_dim, "mean"),
    ]
    return user, item
