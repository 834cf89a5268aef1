"""MovieLens lived through once more, in its own order (notebook 15, ``benchmarks/every_day.py``)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from ..data import EncodedData, encode
from ..evaluation import TwoTowerScorer, candidate_scores, rank_targets
from ..features import BatchBuilder
from ..model import DSSM, evaluation_mode, grown
from ..movielens import SCHEMA, MovieLens
from ..objectives import TrainingConfig
from ..training import Trainer
from ..vocabulary import FIRST, UNKNOWN


class Replay:
    """Weeks of a data set, of which the first ``start`` have passed. ``weeks``: those that can be predicted.

    A model knows what happened before its week. It is asked for what each user rated first in the week, ``most`` rows
    of everybody, with the history they have by then, among all movies that anybody had rated before the week.
    """

    def __init__(self, tables: MovieLens, start: int = 8, most: int = 20):
        self.first, last = (int(tables.ratings["timestamp"].agg(which)) for which in ("min", "max"))
        self.length = min(7 * 86_400, (last - self.first) // 30)  # where all is shorter, a "week" is a part of it
        self.tables, self.most, self.weeks = tables, most, range(start, 1 + (last - self.first) // self.length)
        self._days: dict[int, EncodedData] = {}

    def begin(self, week: int) -> int:
        return self.first + week * self.length

    def before(self, week: int) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
        """The ratings before a week, and the users and movies in them."""
        ratings, users, movies = self.tables.ratings, self.tables.users, self.tables.movies
        past = ratings[ratings["timestamp"] < self.begin(week)]
        return past, users[users["user_id"].isin(past["user_id"])], movies[movies["movie_id"].isin(past["movie_id"])]

    def day(self, week: int) -> EncodedData:
        """What is known when the week begins, its ids behind those of the week before."""
        if week not in self._days:
            last = self.day(week - 1) if week > self.weeks.start else None
            schema, known = (last.schema, last.vocabularies) if last else (SCHEMA, None)
            self._days[week] = encode(*self.before(week), schema, name=self.tables.name, vocabularies=known)
        return self._days[week]

    def rows(self, week: int, data: EncodedData | None = None) -> np.ndarray:
        """Positions to predict, in the day after the week or in other ``data`` that holds it."""
        data = data or self.day(week + 1)
        inside = np.flatnonzero((data.timestamp >= self.begin(week)) & (data.timestamp < self.begin(week + 1)))
        user = data.user[inside]
        return inside[np.arange(len(inside)) - np.searchsorted(user, user) < self.most]

    def since(self, week: int, weeks: int = 1) -> np.ndarray:
        """Positions in :meth:`day` of the ``weeks`` before it."""
        return np.flatnonzero(self.day(week).timestamp >= self.begin(week - weeks))

    def new_and_old(self, week: int) -> np.ndarray:
        """Positions in :meth:`day` of the week before it, and of as many drawn from all earlier ones."""
        new = self.since(week)
        old = np.setdiff1d(np.arange(len(self.day(week))), new)
        drawn = np.random.default_rng(week).choice(old, min(len(new), len(old)), replace=False)
        return np.sort(np.concatenate([new, drawn]))

    def ranks(self, model: DSSM, week: int, data: EncodedData | None = None) -> np.ndarray:
        """Rank of each row's movie; those that nobody had rated before the week come behind all others."""
        data = data or self.day(week + 1)
        then, now = self.day(week).vocabularies["item_id"], data.vocabularies["item_id"]
        new = F.pad(torch.from_numpy(then.encode(now.values) == UNKNOWN), (FIRST, 0))
        scorer = TwoTowerScorer(grown(model, data.vocabularies), BatchBuilder(data))
        return rank_targets(lambda p: scorer(p).masked_fill(new, -torch.inf), data, self.rows(week, data))

    def hits(self, ranks: np.ndarray, week: int, data: EncodedData | None = None) -> pd.Series:
        """Each user's share of hits among ten."""
        data = data or self.day(week + 1)
        return pd.Series(np.asarray(ranks) <= 10).groupby(data.user[self.rows(week, data)]).mean()

    def requests(self, week: int, n: int) -> list[tuple[Any, list]]:
        """User and history, as raw ids, at ``n`` of the rows to predict, drawn anew: what a server is asked."""
        data = self.day(week + 1)
        users, items = (data.vocabularies[name] for name in ("user_id", "item_id"))
        rows = np.random.default_rng(0).choice(self.rows(week), n)
        return [(users.decode(data.user[[row]])[0], items.decode(data.history(row))) for row in rows]


def train(model: DSSM, data: EncodedData, rows: np.ndarray | None = None, **settings: Any) -> Trainer:
    """Train on all rows, or on some; ``settings`` of the ``TrainingConfig``. Nothing is held out to choose an epoch."""
    trainer = Trainer(model, BatchBuilder(data), TrainingConfig(**settings))
    trainer.fit(np.arange(len(data)) if rows is None else rows, progress=False)
    return trainer


def alike(before: EncodedData, after: EncodedData, n: int = 20) -> np.ndarray:
    """For each item that ``before`` did not have, the ``n`` it had whose genres agree best (common ones among those of
    either), of equals the popular ones first: ``[new, n]``."""
    genres = after.multi_hot("genres")
    known, new = genres[FIRST : before.n_items], genres[before.n_items :, None]  # [I, G], [new, 1, G]
    agreement = (new & known).sum(axis=2) / (new | known).sum(axis=2).clip(1)  # [new, I]
    counts = before.item_counts(np.arange(len(before)))[FIRST:]
    return FIRST + np.lexsort((np.broadcast_to(-counts, agreement.shape), -agreement))[:, :n]


def under_load(
    serve: Callable[[Any], Any], requests: Sequence[Any], right: Sequence[set], change: Callable[[], None]
) -> tuple[int, int]:
    """Answers that four clients get while ``change`` is at work: how many, and how many are not among the ``right``.

    An error of a client is raised once all have stopped.
    """
    stop = threading.Event()

    def client(seed: int) -> list[bool]:
        order, wrong = np.random.default_rng(seed), []
        while not stop.is_set():
            number = int(order.integers(len(requests)))
            wrong.append(serve(requests[number]) not in right[number])
        return wrong

    with ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(client, seed) for seed in range(4)]
        try:
            change()
        finally:
            stop.set()
    wrong = np.concatenate([client.result() for client in clients])
    return len(wrong), int(wrong.sum())


def watched(
    scorer: TwoTowerScorer, rows: np.ndarray, n_known: int, change: Callable[[np.ndarray], np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """What can be seen of requests without an answer, ``[B]`` each: the share of unknown ids, and the best cosine.

    Args:
        n_known: rows of the items' table when the model was trained; what came later is unknown to it.
        change: what becomes of the histories ``[B, L]`` on their way to the server.
    """
    batch = scorer.batches.users(rows)
    if change:
        batch["history"] = torch.from_numpy(change(batch["history"].numpy()))
    history = batch["history"]
    with evaluation_mode(scorer.model):
        scores = scorer.model.user_tower(batch) @ scorer.item_vectors.T  # [B, I]
    best = candidate_scores(lambda _: scores, scorer.batches.data, rows)[:, :n_known].amax(dim=1)
    unknown = ((history == UNKNOWN) | (history >= n_known)).sum(dim=1) / (history > 0).sum(dim=1).clamp(min=1)
    return {"unknown ids": unknown.numpy(), "best score": best.numpy()}
