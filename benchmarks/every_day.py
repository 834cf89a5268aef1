"""A new model every week: MovieLens replayed in its own order, a split in global time (notebook 15).

    python benchmarks/every_day.py                  # leaves every_day.json; some twenty minutes on one quiet core

A model knows what happened before the start of its week and is asked for what happens in it: of each user the first
ratings, with the history they have by then, ranked among all movies that anybody had rated before the week (another
target is a miss). A user's figure is a mean over their rows, a period's a mean over its users. How to train warm is
chosen on the first weeks; the later ones are reported. An interrupted run goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import machine as shared
import numpy as np
import pandas as pd
import torch

from dssm_helpers.course.workspace import code_digest
from dssm_helpers.data import EncodedData, encode
from dssm_helpers.evaluation import TwoTowerScorer, paired_bootstrap, rank_targets
from dssm_helpers.features import BatchBuilder
from dssm_helpers.files import digest
from dssm_helpers.model import DSSM, grown
from dssm_helpers.movielens import SCHEMA, MovieLens, load_movielens
from dssm_helpers.recipes import RECIPES, build_model
from dssm_helpers.training import Trainer

WEEK, START, CHOOSING, PER_USER, RECENT = 7 * 86_400, 8, range(9, 15), 20, 8
WARM = {  # the rows to go on with, epochs, learning rate
    "all ratings, 1 epoch, 2e-3": ("all", 1, 2e-3),
    "new ratings, 2 epochs, 1e-3": ("new", 2, 1e-3),
    "new ratings and as many old, 2 epochs, 1e-3": ("both", 2, 1e-3),
}


class Replay:
    """``days[w]``: what is known when week ``w`` begins. ``rows[w]``: positions in ``days[w + 1]`` to predict."""

    def __init__(self, tables: MovieLens):
        first, last = (int(tables.ratings.timestamp.agg(which)) for which in ("min", "max"))
        self.weeks = range(START, 1 + (last - first) // WEEK)
        self.starts = {week: first + week * WEEK for week in (*self.weeks, self.weeks.stop)}
        self.days: dict[int, EncodedData] = {}
        for week, moment in self.starts.items():
            self.days[week] = known_before(tables, moment, self.days.get(week - 1))
        self.rows = {week: self.first_rows(week) for week in self.weeks}

    def first_rows(self, week: int) -> np.ndarray:
        data = self.days[week + 1]
        inside = np.flatnonzero(data.timestamp >= self.starts[week])
        user = data.user[inside]
        return inside[np.arange(len(inside)) - np.searchsorted(user, user) < PER_USER]

    def since(self, week: int, weeks: int) -> np.ndarray:
        """Positions in ``days[week]`` of the ``weeks`` before it."""
        return np.flatnonzero(self.days[week].timestamp >= self.starts[week] - weeks * WEEK)

    def ranks(self, model: DSSM, week: int) -> list[float]:
        """Ranks of the week's rows; a movie that nobody had rated before the week comes behind all others."""
        data, new = self.days[week + 1], torch.arange(self.days[week].n_items, self.days[week + 1].n_items)
        scorer = TwoTowerScorer(grown(model, data.vocabularies), BatchBuilder(data))
        return rank_targets(lambda p: scorer(p).index_fill(1, new, -torch.inf), data, self.rows[week]).tolist()

    def hits(self, week: int, runs: Iterable[dict[str, Any]]) -> pd.Series:
        """Each user's share of hits among ten in a week, a mean over the runs."""
        found = np.mean([np.array(run["ranks"][str(week)]) <= 10 for run in runs], axis=0)
        return pd.Series(found).groupby(self.days[week + 1].user[self.rows[week]]).mean()


def known_before(tables: MovieLens, moment: int, yesterday: EncodedData | None) -> EncodedData:
    """The ratings before a moment with their users and movies, which are numbered behind those of yesterday."""
    ratings = tables.ratings[tables.ratings.timestamp < moment]
    users = tables.users[tables.users.user_id.isin(ratings.user_id)]
    movies = tables.movies[tables.movies.movie_id.isin(ratings.movie_id)]
    schema, before = (yesterday.schema, yesterday.vocabularies) if yesterday else (SCHEMA, None)
    return encode(ratings, users, movies, schema, name=tables.name, vocabularies=before)


def train(model: DSSM, data: EncodedData, rows: np.ndarray, seed: int, **settings: Any) -> float:
    """Processor seconds of training as the default is, for all epochs: nothing is held out to choose one."""
    trainer = Trainer(model, BatchBuilder(data), replace(RECIPES["dssm"].training, seed=seed, **settings))
    start = shared.clocks()
    trainer.fit(rows, progress=False)
    return float((shared.clocks() - start)[1])


def cold(replay: Replay, way: str, week: int, seed: int, ask: Sequence[int]) -> dict[str, Any]:
    """A new model of everything known, of the last weeks, or of few users; its ranks in the weeks ``ask``."""
    data, model = replay.days[week], build_model(replay.days[week], "dssm", seed)
    rows = np.arange(len(data)) if way == "cold" else replay.since(week, RECENT)
    if way == "small":  # users drawn from the whole past, until they have as many ratings as the first model had
        users = np.random.default_rng(seed).permutation(np.arange(2, data.n_users))
        enough = np.searchsorted(np.cumsum(np.diff(data.offsets)[users]), len(replay.days[START])) + 1
        rows = np.flatnonzero(np.isin(data.user, users[:enough]))
    seconds = {str(week): train(model, data, rows, seed)}
    return {"rows": len(rows), "seconds": seconds, "ranks": {str(w): replay.ranks(model, w) for w in ask}}


def warm(replay: Replay, how: str, seed: int, ask: Sequence[int]) -> dict[str, Any]:
    """One model, trained cold in the first of the weeks and going on from there; its ranks in each."""
    kind, epochs, rate = WARM[how]
    model = build_model(replay.days[ask[0]], "dssm", seed)
    seconds, ranks = {}, {}
    for week in ask:
        data, new = replay.days[week], replay.since(week, 1)
        old = np.setdiff1d(np.arange(len(data)), new)
        drawn = np.random.default_rng(week).choice(old, min(len(new), len(old)), replace=False)
        rows = {"all": np.arange(len(data)), "new": new, "both": np.sort(np.concatenate([new, drawn]))}[kind]
        further = {"epochs": epochs, "learning_rate": rate}
        if week == ask[0]:
            rows, further = np.arange(len(data)), {}
        model = grown(model, data.vocabularies)
        seconds[str(week)] = train(model, data, rows, seed + (1000 * week if further else 0), **further)
        ranks[str(week)] = replay.ranks(model, week)
    return {"seconds": seconds, "ranks": ranks}


def kept(measure: Callable[..., dict[str, Any]], replay: Replay, **settings: Any) -> dict[str, Any]:
    """``measure(replay, **settings)``, once for these settings, these data and this library."""
    parts = [measure.__name__, settings, replay.days[replay.weeks.stop].fingerprint(), code_digest()]
    return shared.once(shared.POINTS / f"every_day-{digest(parts)[:12]}.json", lambda: measure(replay, **settings))


def mean_of(shares: Iterable[pd.Series]) -> pd.Series:
    return pd.concat(list(shares)).groupby(level=0).mean()


def interval(ours: pd.Series, theirs: pd.Series | float = 0.0) -> list[float]:
    return list(paired_bootstrap(ours.to_numpy(), np.broadcast_to(theirs, len(ours)), 2000))


def summary(replay: Replay, weeks: list[int], few: list[int], seeds: int) -> dict[str, Any]:
    """The content of ``every_day.json``: cold models of ``weeks``, those of fewer rows in ``few`` of them."""
    tried = {how: kept(warm, replay, how=how, seed=0, ask=[START, *CHOOSING]) for how in WARM}
    chance = {how: mean_of(replay.hits(w, [run]) for w in CHOOSING).mean() for how, run in tried.items()}
    chosen = max(chance, key=chance.get)
    runs = {"warm": [dict.fromkeys(weeks, kept(warm, replay, how=chosen, seed=s, ask=list(replay.weeks)))
                     for s in range(seeds)]}  # fmt: skip
    for way, at in (("cold", weeks), ("recent", few), ("small", few)):
        asked = {week: [w for w in weeks if w >= week] if way == "cold" else [week] for week in at}
        runs[way] = [{w: kept(cold, replay, way=way, week=w, seed=s, ask=asked[w]) for w in at} for s in range(seeds)]
    runs["never"] = [dict.fromkeys(weeks, of_seed[START]) for of_seed in runs["cold"]]
    reported = [week for week in weeks if week > CHOOSING[-1]]

    def hits(way: str, week: int) -> pd.Series:
        return replay.hits(week, [of_seed[week] for of_seed in runs[way]])

    def figures(way: str, at: list[int]) -> dict[str, Any]:
        ours, base = (mean_of(hits(name, w) for w in at) for name in (way, "cold"))
        seconds = float(np.mean([of_seed[w]["seconds"].get(str(w), 0.0) for of_seed in runs[way] for w in at]))
        by_seed = [float(mean_of(replay.hits(w, [of_seed[w]]) for w in at).mean()) for of_seed in runs[way]]
        found = {"hit@10": ours.mean(), "error": ours.std() / len(ours) ** 0.5, "minus_cold": interval(ours, base)}
        return {"weeks": at, "users": len(ours), **found, "cold": base.mean(), "by_seed": by_seed, "seconds": seconds}

    ageing = {}
    for age in sorted({new - old for new in weeks for old in weeks if new > old}):
        at = [week for week in weeks if week - age in weeks]
        ours = mean_of(replay.hits(w, [of_seed[w - age] for of_seed in runs["cold"]]) for w in at)
        ageing[str(age)] = [*interval(ours, mean_of(hits("cold", w) for w in at)), len(ours)]
    ways = {way: figures(way, few if way in ("recent", "small") else reported) for way in runs}
    older = interval(*(mean_of(hits(way, w) for w in few) for way in ("never", "small")))
    return {
        "machine": shared.machines([run for of_seed in runs["cold"] for run in of_seed.values()]),
        **{"dataset": "ml-100k", "seeds": seeds, "tried": chance, "chosen": chosen, "ways": ways, "ageing": ageing},
        "weeks": {str(w): {way: interval(hits(way, w)) for way in ("cold", "warm", "never")} for w in weeks},
        "never_minus_small": older,
    }


if __name__ == "__main__":
    parser = shared.command_line(__doc__)
    parser.add_argument("--every", type=int, default=2, help="weeks from one cold model to the next")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    replay = Replay(load_movielens("ml-100k"))
    weeks = list(replay.weeks[:: arguments.every])
    few = [week for week in weeks if week > CHOOSING[-1]][1::2]
    shared.write_json(shared.HERE / "every_day.json", summary(replay, weeks, few, arguments.seeds))
