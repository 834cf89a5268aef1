"""MovieLens lived through once more, in its own order (notebook 15, ``benchmarks/every_day.py``)."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from ..data import EncodedData, encode
from ..evaluation import TwoTowerScorer, rank_targets
from ..features import BatchBuilder
from ..model import DSSM, grown
from ..movielens import SCHEMA, MovieLens
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
