"""The second stage: its queries, the network, its training (notebook 14). What it reads is in ``pairs.py``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .data import EncodedData
from .evaluation import EASE, ItemKNN, Scorer, TwoTowerScorer, ranks_of, top_k
from .features import BatchBuilder
from .model import evaluation_mode
from .onnx_export import write_onnx
from .pairs import NEWEST, RETRIEVED, Lists, PairTables
from .vocabulary import FIRST


def go_back(data: EncodedData, train: np.ndarray, last: int = 20) -> tuple[EncodedData, np.ndarray]:
    """The data as they were some time ago, and the positions that came after: a ranker's queries (notebook 14).

    Of the training positions ``train`` each user's ``last`` (of few at most half) are the queries. The data returned
    end before them, with the same indices: what is trained on those has seen no query's target.
    """
    of_user = np.bincount(data.user[train], minlength=data.n_users)
    left = np.cumsum(of_user)[data.user[train]] - np.arange(len(train))  # 1 at a user's last one
    later = left <= np.minimum(last, of_user[data.user[train]] // 2)
    kept = train[~later]
    offsets = np.searchsorted(data.user[kept], np.arange(data.n_users + 1))
    flat = {name: getattr(data, name)[kept] for name in ("user", "item", "timestamp")}
    return replace(data, name=f"{data.name}-earlier", offsets=offsets, **flat), train[later]


def near_in_time(data: EncodedData, train: np.ndarray, steps: int = 5) -> np.ndarray:
    """How often two items came within ``steps`` of each other, nearer counts more, for their popularity: ``[I, I]``."""
    near = np.zeros((data.n_items, data.n_items))
    for step in range(1, steps + 1):
        pairs = train[step:], train[:-step]
        same = (data.user[pairs[0]] == data.user[pairs[1]]) & (pairs[0] - pairs[1] == step)
        np.add.at(near, (data.item[pairs[0][same]], data.item[pairs[1][same]]), 1 / step)
    counts = data.item_counts(train) + 5  # five more, so that what came once is no certainty
    return (near + near.T) / np.sqrt(np.outer(counts, counts))


def pair_tables(data: EncodedData, train: np.ndarray, scorer: TwoTowerScorer) -> PairTables:
    """The tables from the interactions at ``train`` and the retriever that was trained on them."""
    similar = [ItemKNN(data, train).similarity.numpy(), near_in_time(data, train), EASE(data, train).weights]
    vectors, columns = scorer.item_vectors.cpu().numpy().copy(), {}
    vectors[:FIRST] = 0  # what is unknown is like nothing
    for column in data.schema.of("item"):
        ones = data.multi_hot(column.name).astype(np.float32)
        ones[:FIRST] = 0
        columns[column.name] = ones / np.linalg.norm(ones, axis=1, keepdims=True).clip(min=1)
    popularity = np.log1p(data.item_counts(train)).astype(np.float32)
    return PairTables(np.stack(similar).astype(np.float16), vectors, popularity, columns)


def candidate_lists(
    scorer: Scorer, tables: PairTables, data: EncodedData, positions: np.ndarray, k: int = RETRIEVED
) -> Lists:
    """What retrieval hands the ranker at each position, with the features of each pair."""
    found = [top_k(scorer, data, part, k) for part in np.array_split(positions, -(-len(positions) // 1024))]
    return pair_lists(tables, data, positions, *(np.concatenate(parts) for parts in zip(*found, strict=True)))


def pair_lists(
    tables: PairTables, data: EncodedData, positions: np.ndarray, items: np.ndarray, scores: np.ndarray
) -> Lists:
    """Lists of the given candidates ``items [B, k]`` and their cosines ``scores [B, k]``."""
    histories = BatchBuilder(data, NEWEST[-1]).users(positions)["history"].numpy()  # [B, L]
    pairs = np.stack([tables.features(*row) for row in zip(histories, items, scores, strict=True)])
    hit = items == data.item[positions][:, None]
    return Lists(items, pairs, np.where(hit.any(axis=1), hit.argmax(axis=1), -1))


class Ranker(nn.Module):
    """Features of pairs ``[B, k, F]`` → scores ``[B, k]``: standardised, two hidden layers, every pair by itself."""

    def __init__(self, mean: Tensor, std: Tensor, width: int = 32):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std.clamp(min=1e-6))
        layers = [nn.Linear(len(mean), width), nn.PReLU(), nn.Dropout(0.1), nn.Linear(width, width), nn.PReLU()]
        self.mlp = nn.Sequential(*layers, nn.Linear(width, 1))

    def forward(self, pairs: Tensor) -> Tensor:
        return self.mlp(((pairs - self.mean) / self.std).clamp(-5, 5)).squeeze(-1)


def fit_ranker(lists: Lists, *, epochs: int = 4, learning_rate: float = 2e-3, seed: int = 0) -> Ranker:
    """Train with a softmax over each list; a query whose target retrieval did not find teaches nothing."""
    torch.manual_seed(seed)
    found = lists.target >= 0
    pairs, target = (torch.from_numpy(of[found]) for of in (lists.pairs, lists.target))
    ranker = Ranker(pairs.mean(dim=(0, 1)), pairs.std(dim=(0, 1)))
    optimizer = torch.optim.AdamW(ranker.parameters(), weight_decay=0.01)
    steps = epochs * -(-len(pairs) // 128)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(pairs)).split(128):
            loss = F.cross_entropy(ranker(pairs[rows]), target[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return ranker.eval()


def export_ranker(ranker: Ranker, path: str | Path) -> Path:
    """Write the network as ONNX, standardisation included: ``pairs [B, k, F]`` → ``score [B, k]``, any B and k."""
    example, axes = {"pairs": torch.zeros(2, 3, len(ranker.mean))}, {"pairs": {0: "batch", 1: "candidates"}}
    return write_onnx(ranker, path, example, axes, ["pairs"], "score", {"part": "ranker"})


def ranked(ranker: Ranker, lists: Lists) -> np.ndarray:
    """Scores ``[B, k]`` of all candidates."""
    with evaluation_mode(ranker):
        return ranker(torch.from_numpy(lists.pairs)).numpy()


def ranks_within(scores: np.ndarray, lists: Lists) -> np.ndarray:
    """Rank of each target when its list is ordered by ``scores [B, k]``; infinite where retrieval did not find it."""
    return np.where(lists.target < 0, np.inf, ranks_of(scores, lists.target))
