"""Features, pooling and batches (notebook 02), and negative samplers (notebook 04)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from .data import REQUEST, EncodedData
from .schema import Column
from .vocabulary import FIRST, UNKNOWN

DEFAULT_POOLING = ("mean", "recency:1", "recency:10")
LARGE_TABLE = 50_000  # rows from which updating all of a table takes longer than the rest of a training step
SAMPLERS = ("uniform", "count^0.75", "log_count", "log_uniform")

Batch = dict[str, Tensor]
Index = Tensor | np.ndarray


@dataclass(frozen=True)
class SparseFeature:
    """One categorical value per row: ``batch[name]`` is ``[B]``, embedded to ``[B, embed_dim]``."""

    name: str
    vocab_size: int
    embed_dim: int = 16
    rows_only: bool = False  # a training step updates the rows of its batch, and not the whole table

    @property
    def width(self) -> int:
        """Columns this feature adds to the tower's input."""
        return self.embed_dim


@dataclass(frozen=True)
class SequenceFeature:
    """A list of values per row: ``batch[name]`` is ``[B, L]`` with 0 as padding, pooled to ``[B, width]``.

    ``pooling`` is a kind of :data:`POOLINGS`, or several whose results lie side by side: ``("mean", "recency:1")``.
    ``shared_with`` names the item feature whose embedding table it looks up in. Of longer sequences the first
    ``max_length`` values are used; histories are ordered newest first.
    """

    name: str
    vocab_size: int
    embed_dim: int = 16
    pooling: str | tuple[str, ...] = "mean"
    shared_with: str | None = None
    max_length: int = 50

    @property
    def poolings(self) -> tuple[str, ...]:
        return (self.pooling,) if isinstance(self.pooling, str) else tuple(self.pooling)

    @property
    def width(self) -> int:
        return self.embed_dim * len(self.poolings)


Feature = SparseFeature | SequenceFeature


def column_of(feature: Feature) -> str:
    """The column whose values are the rows of the feature's table: another's, where it shares that one's table."""
    return getattr(feature, "shared_with", None) or feature.name


def default_features(
    data: EncodedData,
    *,
    dim: int = 64,
    side_dim: int = 16,
    pooling: str | tuple[str, ...] = DEFAULT_POOLING,
    max_history: int = 50,
    without: tuple[str, ...] = (),
) -> tuple[list[Feature], list[Feature]]:
    """The course's user and item features (notebook 02, "Declaring features").

    Each side has its id (``dim`` wide) and every column of the data's schema (``side_dim`` wide, lists pooled by their
    mean); the user has the history as well, which looks up the items' own embeddings. ``without``: names to leave out.
    """
    size = {name: len(vocabulary) for name, vocabulary in data.vocabularies.items()}

    def beside(column: Column) -> Feature:
        kind = SequenceFeature if column.kind == "list" else SparseFeature
        return kind(column.name, size[column.name], side_dim)

    user: list[Feature] = [
        SparseFeature("user_id", size["user_id"], dim, rows_only=size["user_id"] > LARGE_TABLE),
        *map(beside, data.schema.of("user")),
        SequenceFeature("history", size["item_id"], dim, pooling, "item_id", max_history),
    ]
    item: list[Feature] = [SparseFeature("item_id", size["item_id"], dim), *map(beside, data.schema.of("item"))]
    return [f for f in user if f.name not in without], [f for f in item if f.name not in without]


class MeanPooling(nn.Module):
    """Every value present counts alike."""

    def __init__(self, dim: int, max_length: int):
        super().__init__()

    def forward(self, embedded: Tensor, mask: Tensor) -> Tensor:
        return mask / mask.sum(dim=1, keepdim=True).clamp(min=1)


class SumPooling(MeanPooling):
    """As the mean, without dividing by how many there are."""

    def forward(self, embedded: Tensor, mask: Tensor) -> Tensor:
        return mask.to(embedded.dtype)


class MaxPooling(MeanPooling):
    """In each dimension the largest value counts, and no other."""

    def forward(self, embedded: Tensor, mask: Tensor) -> Tensor:
        present = embedded.masked_fill(~mask.unsqueeze(2), -torch.inf)  # [B, L, D]
        largest = (present == present.amax(dim=1, keepdim=True)) & mask.unsqueeze(2)
        return largest / largest.sum(dim=1, keepdim=True).clamp(min=1)


class RecencyPooling(nn.Module):
    """One learned weight per slot, the newest first; at the start each half as large as the one H slots before."""

    SCALE = 10.0  # Adam moves a parameter by about the learning rate per step; scaled, a weight can change 10× as fast

    def __init__(self, dim: int, max_length: int, half_life: float = 3.0):
        super().__init__()
        decay = math.log(2.0) / half_life / self.SCALE
        self.logits = nn.Parameter(-decay * torch.arange(max_length, dtype=torch.float32))

    def forward(self, embedded: Tensor, mask: Tensor) -> Tensor:
        relative = self.logits - self.logits.max()  # exp must not overflow
        slots = torch.arange(mask.shape[1], device=mask.device)  # as a slice, torch 2.10 cannot export it
        weight = torch.exp(self.SCALE * relative[slots]) * mask
        return weight / weight.sum(dim=1, keepdim=True).clamp(min=1e-9)


POOLINGS = {"mean": MeanPooling, "sum": SumPooling, "max": MaxPooling, "recency": RecencyPooling}
"""Kinds by name. Each gets (dim, max_length) and says from ``embedded [B, L, D]`` and ``mask [B, L]`` how much every
slot counts: ``[B, L]``, or ``[B, L, D]`` where that differs between dimensions."""


def pooling_head(name: str, dim: int, max_length: int) -> nn.Module:
    """One of :data:`POOLINGS`; ``recency:H`` starts with a half-life of H slots."""
    half_life = re.fullmatch(r"recency:(\d+\.?\d*)", name)
    if half_life and float(half_life[1]) > 0:
        return RecencyPooling(dim, max_length, float(half_life[1]))
    if name not in POOLINGS:
        raise ValueError(f"unknown pooling {name!r}; choose from {', '.join(POOLINGS)}, recency:H with H > 0")
    return POOLINGS[name](dim, max_length)


class Pooling(nn.Module):
    """Reduce ``[B, L, D]`` embeddings to ``[B, P·D]``, ignoring padding (notebook 02, "Pooling a history").

    ``P`` poolings lie side by side (see :class:`SequenceFeature`). An empty sequence gives zeros.
    """

    def __init__(self, pooling: str | tuple[str, ...], dim: int = 16, max_length: int = 50):
        super().__init__()
        self.poolings = (pooling,) if isinstance(pooling, str) else tuple(pooling)
        self.heads = nn.ModuleList(pooling_head(name, dim, max_length) for name in self.poolings)

    def recency_weights(self) -> dict[str, Tensor]:
        """Of each recency pooling the weight of every slot of a full sequence, ``[max_length]``, the newest first."""
        return {
            name: torch.softmax(head.SCALE * head.logits.detach(), dim=0)
            for name, head in zip(self.poolings, self.heads, strict=True)
            if isinstance(head, RecencyPooling)
        }

    def forward(self, embedded: Tensor, mask: Tensor) -> Tensor:
        """``embedded [B, L, D]``, ``mask [B, L]`` true where a value is present → ``[B, P·D]``."""
        weights = [head(embedded, mask) for head in self.heads]
        if all(weight.dim() == 2 for weight in weights):
            # One product for all kinds: apart, each would read [B, L, D] anew and leave a gradient of that size, which
            # makes a training step of the default half as long again.
            return (torch.stack(weights, dim=1) @ embedded).flatten(1)
        return torch.cat([(torch.atleast_3d(weight) * embedded).sum(dim=1) for weight in weights], dim=1)


class BatchBuilder:
    """Form batches by indexing the flat interactions, on ``device`` (notebook 02, "Forming batches")."""

    def __init__(self, data: EncodedData, max_history: int = 50, device: str | torch.device = "cpu"):
        self.data, self.max_history, self.device = data, max_history, torch.device(device)
        self.user = torch.from_numpy(data.user).to(self.device)
        self.item = torch.from_numpy(data.item).to(self.device)
        self.offsets = torch.from_numpy(data.offsets).to(self.device)
        self.timestamp = torch.from_numpy(data.timestamp).to(self.device)
        self.user_columns = {n: torch.from_numpy(c).to(self.device) for n, c in data.user_columns.items()}
        self.item_columns = {n: torch.from_numpy(c).to(self.device) for n, c in data.item_columns.items()}

    def users(self, positions: Index) -> Batch:
        """User side of the examples at ``positions [B]``: user columns ``[B]`` and ``history [B, L]``, newest first."""
        positions = torch.as_tensor(positions, device=self.device)
        user = self.user[positions].long()  # [B]
        earlier = positions.unsqueeze(1) - torch.arange(1, self.max_history + 1, device=self.device)  # [B, L]
        inside = earlier >= self.offsets[user].unsqueeze(1)
        columns = {name: column[user] for name, column in self.user_columns.items()}
        if REQUEST[0].name in columns:
            columns |= self._request_time(positions, positions == self.offsets[user])
        return {**columns, "history": self.item[earlier.clamp(min=0)].long() * inside}

    def _request_time(self, positions: Tensor, first: Tensor) -> Batch:
        """The columns of :data:`~dssm_helpers.data.REQUEST` ``[B]``; of a user's ``first`` the days are unknown."""
        time = self.timestamp[positions]
        days = (time - self.timestamp[(positions - 1).clamp(min=0)]) // 86_400
        bins = torch.tensor(REQUEST[2].bins, device=self.device)
        values = (time // 3600 % 24, (time // 86_400 + 3) % 7, torch.bucketize(days, bins, right=True) - 1)
        hour, weekday, group = (FIRST + value for value in values)  # 1 January 1970 was a Thursday
        group = group.masked_fill(first, UNKNOWN)
        return dict(zip((column.name for column in REQUEST), (hour, weekday, group), strict=True))

    def items(self, items: Index) -> Batch:
        """Item side for item indices of any shape ``[...]``: columns ``[...]``, and lists ``[..., G]``."""
        items = torch.as_tensor(items, device=self.device).long()
        return {name: column[items] for name, column in self.item_columns.items()}

    def all_items(self) -> Batch:
        """Item side of the whole table, row = item index (rows 0 and 1 are padding and unknown)."""
        return dict(self.item_columns)

    def __call__(self, positions: Index) -> Batch:
        """User history, user columns and the target item's columns for the examples at ``positions``."""
        return {**self.users(positions), **self.items(self.item[positions])}

    def epoch(self, positions: Index, batch_size: int, generator: torch.Generator | None = None) -> Iterator[Tensor]:
        """Shuffle ``positions`` and yield them ``batch_size`` at a time; a set smaller than one batch comes whole.

        The incomplete last batch is dropped: in-batch negatives make a batch's size part of the task.
        """
        order = torch.as_tensor(positions)[torch.randperm(len(positions), generator=generator)].to(self.device)
        full = len(order) // batch_size * batch_size
        yield from (order[:full].split(batch_size) if full else [order])


class NegativeSampler:
    """Draw negatives by training ``counts [I]``, never rows 0 and 1 (notebook 04, "Drawn negatives")."""

    def __init__(self, kind: str, counts: np.ndarray):
        if kind not in SAMPLERS:
            raise ValueError(f"unknown sampler {kind!r}; choose from {', '.join(SAMPLERS)}")
        real = counts[FIRST:].astype(np.float64)
        rank = np.argsort(np.argsort(-real, kind="stable"))  # 0 is the most popular
        weight = {
            "uniform": np.ones_like(real),
            "count^0.75": real**0.75,  # by popularity, flattened (word2vec)
            "log_count": np.log1p(real),
            "log_uniform": np.log((rank + 2) / (rank + 1)),  # by the rank in popularity alone
        }[kind]
        self.probabilities = np.concatenate([np.zeros(FIRST), weight / weight.sum()])

    def sample(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """Item indices of ``shape``, int64, drawn with replacement."""
        weights = torch.from_numpy(self.probabilities)
        return torch.multinomial(weights, math.prod(shape), replacement=True, generator=generator).reshape(shape)
