"""Every week a new model: MovieLens replayed week by week, a split in global time (notebook 15).

    python benchmarks/every_day.py                  # leaves every_day.json; some forty minutes on one core

A model knows what happened before the start of its week and is asked for what happens in it: of each user the first
``PER_USER`` ratings, with the history they have by then, ranked among all movies that anybody had rated before the week
(another target is a miss). A user's figure is a mean over their rows, a period's a mean over users. What may be chosen
is chosen on the first ``CHOOSING`` weeks, and the later ones are reported. An interrupted run goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import machine as shared
import numpy as np
import pandas as pd
import torch

from dssm_helpers.course.workspace import code_digest
from dssm_helpers.data import EncodedData, encode
from dssm_helpers.evaluation import ItemKNN, Popularity, Scorer, TwoTowerScorer, chance_level, rank_targets
from dssm_helpers.evaluation import paired_bootstrap
from dssm_helpers.features import BatchBuilder
from dssm_helpers.files import digest
from dssm_helpers.model import DSSM, grown
from dssm_helpers.movielens import SCHEMA, MovieLens, load_movielens
from dssm_helpers.recipes import RECIPES, build_model
from dssm_helpers.training import Trainer

WEEK, START, CHOOSING, PER_USER, SEEDS, RECENT = 7 * 86_400, 8, 6, 20, 3, 8
WARM = {  # rows to go on with, epochs, learning rate
    "all rows, 1 epoch, 2e-3": ("all", 1, 2e-3),
    "all rows, 1 epoch, 1e-3": ("all", 1, 1e-3),
    "new rows, 2 epochs, 1e-3": ("new", 2, 1e-3),
    "new rows and as many old, 2 epochs, 1e-3": ("both", 2, 1e-3),
}


def known_before(tables: MovieLens, moment: int, yesterday: EncodedData | None) -> EncodedData:
    """The ratings before ``moment``, and the users and movies in them, behind those of yesterday."""
    ratings = tables.ratings[tables.ratings.timestamp < moment]
    users = tables.users[tables.users.user_id.isin(ratings.user_id)]
    movies = tables.movies[tables.movies.movie_id.isin(ratings.movie_id)]
    schema, before = (yesterday.schema, yesterday.vocabularies) if yesterday else (SCHEMA, None)
    return encode(ratings, users, movies, schema, name=tables.name, vocabularies=before)


class Replay:
    """``days[w]``: what is known when week ``w`` begins. ``rows[w]``: positions in ``days[w + 1]`` to predict."""

    def __init__(self, tables: MovieLens):
        first = int(tables.ratings.timestamp.min())
        self.weeks = range(START, 1 + int(tables.ratings.timestamp.max() - first) // WEEK)
        self.days: dict[int, EncodedData] = {}
        for week in (*self.weeks, self.weeks.stop):
            self.days[week] = known_before(tables, first + week * WEEK, self.days.get(week - 1))
        self.starts = {week: first + week * WEEK for week in self.days}
        self.rows = {week: self.first_rows(week) for week in self.weeks}

    def first_rows(self, week: int) -> np.ndarray:
        data = self.days[week + 1]
        inside = np.flatnonzero(data.timestamp >= self.starts[week])
        user = data.user[inside]
        return inside[np.arange(len(inside)) - np.searchsorted(user, user) < PER_USER]

    def since(self, week: int, weeks: int) -> np.ndarray:
        """Positions in ``days[week]`` of the ``weeks`` before it."""
        return np.flatnonzero(self.days[week].timestamp >= self.starts[week] - weeks * WEEK)

    def ranks(self, scorer: Scorer, week: int) -> list[float]:
        """Ranks of the week's rows; a movie that nobody had rated before the week comes behind all others."""
        candidates = self.days[week].n_items

        def known_only(positions: np.ndarray) -> torch.Tensor:
            return scorer(positions).index_fill(1, torch.arange(candidates, self.days[week + 1].n_items), -torch.inf)

        return rank_targets(known_only, self.days[week + 1], self.rows[week]).tolist()

    def model_ranks(self, model: DSSM, week: int) -> list[float]:
        data = self.days[week + 1]
        return self.ranks(TwoTowerScorer(grown(model, data.vocabularies), BatchBuilder(data)), week)


def train(model: DSSM, data: EncodedData, rows: np.ndarray, seed: int, **settings: Any) -> float:
    """Processor seconds of training as the default is, for all epochs: nothing is held out to choose one."""
    trainer = Trainer(model, BatchBuilder(data), replace(RECIPES["dssm"].training, seed=seed, **settings))
    start = shared.clocks()
    trainer.fit(rows, progress=False)
    return float((shared.clocks() - start)[1])


def cold(replay: Replay, week: int, rows: np.ndarray, seed: int, until: int) -> dict[str, Any]:
    """A new model of ``rows``, and its ranks in its own week and in those up to ``until``."""
    model = build_model(replay.days[week], "dssm", seed)
    seconds = train(model, replay.days[week], rows, seed)
    ranks = {str(later): replay.model_ranks(model, later) for later in range(week, until)}
    return {"rows": len(rows), "seconds": seconds, "ranks": ranks}


def warm(replay: Replay, seed: int, kind: str, epochs: int, rate: float, weeks: Iterable[int]) -> dict[str, Any]:
    """One model that goes on from week to week."""
    model, seconds, ranks, sizes = None, {}, {}, {}
    for week in weeks:
        data = replay.days[week]
        if model is None:
            model, rows, settings = build_model(data, "dssm", seed), np.arange(len(data)), {}
        else:
            model, new = grown(model, data.vocabularies), replay.since(week, 1)
            old = np.setdiff1d(np.arange(len(data)), new)
            some = np.random.default_rng(seed).choice(old, min(len(new), len(old)), replace=False)
            rows = {"all": np.arange(len(data)), "new": new, "both": np.sort(np.concatenate([new, some]))}[kind]
            settings = {"epochs": epochs, "learning_rate": rate}
        seconds[str(week)] = train(model, data, rows, seed + 1000 * week, **settings)
        ranks[str(week)], sizes[str(week)] = replay.model_ranks(model, week), len(rows)
    return {"rows": sizes, "seconds": seconds, "ranks": ranks}


def as_many(replay: Replay, week: int, seed: int) -> np.ndarray:
    """All rows of users drawn from the whole past, until there are as many as in the first ``START`` weeks."""
    data = replay.days[week]
    users = np.random.default_rng(seed).permutation(np.arange(2, data.n_users))
    enough = np.searchsorted(np.cumsum(np.diff(data.offsets)[users]), len(replay.days[START])) + 1
    return np.flatnonzero(np.isin(data.user, users[:enough]))


def kept(replay: Replay, name: str, measure: Callable[[], dict[str, Any]], **settings: Any) -> dict[str, Any]:
    last = replay.days[replay.weeks.stop]
    parts = [name, settings, WEEK, START, PER_USER, last.fingerprint(), code_digest()]
    return shared.once(shared.POINTS / f"every_day-{name}-{digest(parts)[:12]}.json", measure)


def cold_runs(replay: Replay, seed: int) -> dict[int, dict[str, Any]]:
    """A new model every week, with its ranks in all later weeks: the first of them is the one that is never replaced."""
    settings, stop = {"seed": seed}, replay.weeks.stop
    every = {week: np.arange(len(replay.days[week])) for week in replay.weeks}
    return {
        week: kept(replay, "cold", lambda w=week: cold(replay, w, every[w], seed, stop), week=week, **settings)
        for week in replay.weeks
    }


def warm_runs(replay: Replay, seed: int, names: Iterable[str] = WARM) -> dict[str, dict[str, Any]]:
    found = {}
    for name in names:
        kind, epochs, rate = WARM[name]
        settings = {"kind": kind, "epochs": epochs, "rate": rate, "seed": seed}
        found[name] = kept(replay, "warm", lambda s=settings: warm(replay, weeks=replay.weeks, **s), **settings)
    return found


def short_runs(replay: Replay, seed: int, weeks: Iterable[int]) -> dict[str, dict[int, dict[str, Any]]]:
    """Cold models of fewer rows: the last ``RECENT`` weeks, or as many as the first model had, from the whole past."""
    found = {"recent": {}, "small": {}}
    for week in weeks:
        for name, rows in (("recent", replay.since(week, RECENT)), ("small", as_many(replay, week, seed))):
            measure = lambda r=rows, w=week: cold(replay, w, r, seed, w + 1)  # noqa: E731
            found[name][week] = kept(replay, name, measure, week=week, seed=seed)
    return found


if __name__ == "__main__":
    shared.command_line(__doc__).parse_args()
    torch.set_num_threads(1)
    replay = Replay(load_movielens("ml-100k"))
    warm_runs(replay, 0)
    cold_runs(replay, 0)
    short_runs(replay, 0, replay.weeks[::3])
    for seed in (1, 2):
        warm_runs(replay, seed)
        cold_runs(replay, seed)
    for seed in (1, 2):
        short_runs(replay, seed, replay.weeks[::3])
    short_runs(replay, 0, replay.weeks)
