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
from dssm_helpers.evaluation import Scorer, TwoTowerScorer, paired_bootstrap, rank_targets
from dssm_helpers.features import BatchBuilder
from dssm_helpers.files import digest
from dssm_helpers.model import DSSM, grown
from dssm_helpers.movielens import SCHEMA, MovieLens, load_movielens
from dssm_helpers.recipes import RECIPES, build_model
from dssm_helpers.training import Trainer

WEEK, START, CHOOSING, PER_USER, SEEDS = 7 * 86_400, 8, 6, 20, 3
EVERY, SHORT, RECENT = 2, 4, 8  # a cold model every second week; one of fewer rows every fourth; of the last eight
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


def cold(replay: Replay, week: int, rows: np.ndarray, seed: int, ask: Iterable[int]) -> dict[str, Any]:
    """A new model of ``rows`` of what is known at ``week``, and its ranks in the weeks ``ask``."""
    model = build_model(replay.days[week], "dssm", seed)
    seconds = train(model, replay.days[week], rows, seed)
    return {"rows": len(rows), "seconds": seconds, "ranks": {str(w): replay.model_ranks(model, w) for w in ask}}


def warm(replay: Replay, kind: str, epochs: int, rate: float, seed: int, weeks: range) -> dict[str, Any]:
    """One model that is trained cold in the first of ``weeks`` and goes on from there, with its ranks in each."""
    data = replay.days[weeks[0]]
    model = build_model(data, "dssm", seed)
    seconds, ranks = [train(model, data, np.arange(len(data)), seed)], {weeks[0]: replay.model_ranks(model, weeks[0])}
    for week in weeks[1:]:
        data = replay.days[week]
        model, new = grown(model, data.vocabularies), replay.since(week, 1)
        old = np.setdiff1d(np.arange(len(data)), new)
        as_many = np.random.default_rng(week).choice(old, min(len(new), len(old)), replace=False)
        rows = {"all": np.arange(len(data)), "new": new, "both": np.sort(np.concatenate([new, as_many]))}[kind]
        seconds.append(train(model, data, rows, seed + 1000 * week, epochs=epochs, learning_rate=rate))
        ranks[week] = replay.model_ranks(model, week)
    return {"seconds": dict(zip(map(str, weeks), seconds, strict=True)), "ranks": {str(w): r for w, r in ranks.items()}}


def as_many_rows(replay: Replay, week: int, seed: int) -> np.ndarray:
    """All rows of users drawn from the whole past, until there are as many as in the first ``START`` weeks."""
    data = replay.days[week]
    users = np.random.default_rng(seed).permutation(np.arange(2, data.n_users))
    enough = np.searchsorted(np.cumsum(np.diff(data.offsets)[users]), len(replay.days[START])) + 1
    return np.flatnonzero(np.isin(data.user, users[:enough]))


def kept(replay: Replay, measure: Callable[..., dict[str, Any]], name: str, **settings: Any) -> dict[str, Any]:
    """``measure(replay, **settings)``, once for these settings, these data and this library."""
    shown = {
        key: len(value) if isinstance(value, np.ndarray) else list(value) if isinstance(value, range) else value
        for key, value in settings.items()
    }
    parts = [name, shown, WEEK, START, PER_USER, replay.days[replay.weeks.stop].fingerprint(), code_digest()]
    path = shared.POINTS / f"every_day-{name}-{digest(parts)[:12]}.json"
    return shared.once(path, lambda: measure(replay, **settings))


def cold_runs(replay: Replay, seed: int) -> dict[int, dict[str, Any]]:
    """A new model every ``EVERY`` weeks, asked in all later ones too: the first is the one that is never replaced."""
    weeks, found = replay.weeks[::EVERY], {}
    for week in weeks:
        rows, ask = np.arange(len(replay.days[week])), range(week, replay.weeks.stop, EVERY)
        found[week] = kept(replay, cold, "cold", week=week, rows=rows, seed=seed, ask=ask)
    return found


def warm_run(replay: Replay, name: str, seed: int, weeks: range) -> dict[str, Any]:
    kind, epochs, rate = WARM[name]
    return kept(replay, warm, "warm", kind=kind, epochs=epochs, rate=rate, seed=seed, weeks=weeks)


def short_runs(replay: Replay, seed: int, name: str) -> dict[int, dict[str, Any]]:
    """Cold models of fewer rows: the ``recent`` weeks, or as many as the first model had, of the whole past."""
    found = {}
    for week in replay.weeks[EVERY::SHORT]:
        rows = replay.since(week, RECENT) if name == "recent" else as_many_rows(replay, week, seed)
        found[week] = kept(replay, cold, name, week=week, rows=rows, seed=seed, ask=range(week, week + 1))
    return found


def hits(replay: Replay, week: int, runs: Iterable[dict[str, Any]]) -> pd.Series:
    """Each user's share of hits among ten in a week, a mean over the runs."""
    found = np.mean([np.array(run["ranks"][str(week)]) <= 10 for run in runs], axis=0)
    return pd.Series(found).groupby(replay.days[week + 1].user[replay.rows[week]]).mean()


def mean_of(shares: Iterable[pd.Series]) -> pd.Series:
    """Each user's mean over weeks."""
    return pd.concat(list(shares)).groupby(level=0).mean()


def interval(ours: pd.Series, theirs: pd.Series | float = 0.0) -> list[float]:
    return list(paired_bootstrap(ours.to_numpy(), np.broadcast_to(theirs, len(ours)), 2000))


def summary(replay: Replay) -> dict[str, Any]:
    """The content of ``every_day.json``; ``at`` are the weeks in which a figure was taken."""
    choosing = replay.weeks[: CHOOSING + 1]
    tried = {name: warm_run(replay, name, 0, choosing) for name in WARM}
    chosen = max(tried, key=lambda name: mean_of(hits(replay, w, [tried[name]]) for w in choosing[1:]).mean())
    colds = [cold_runs(replay, seed) for seed in range(SEEDS)]
    warms = [warm_run(replay, chosen, seed, replay.weeks) for seed in range(SEEDS)]
    short = {name: [short_runs(replay, seed, name) for seed in range(SEEDS)] for name in ("recent", "small")}
    weeks, reported = replay.weeks[::EVERY], [w for w in replay.weeks[::EVERY] if w not in choosing]

    def of(way: str, week: int, seeds: Iterable[int] = range(SEEDS)) -> pd.Series:
        runs = {"cold": lambda s: colds[s][week], "warm": lambda s: warms[s], "never": lambda s: colds[s][START]}
        return hits(replay, week, [runs[way](s) if way in runs else short[way][s][week] for s in seeds])

    def row(way: str, at: Iterable[int]) -> dict[str, Any]:
        ours, cold = mean_of(of(way, w) for w in at), mean_of(of("cold", w) for w in at)
        seeds = [mean_of(of(way, w, [s]) for w in at).mean() for s in range(SEEDS)]
        return {"hit@10": ours.mean(), "minus_cold": interval(ours, cold), "seeds": seeds, "at": list(at),
                "error": ours.std() / len(ours) ** 0.5, "cold": cold.mean(), "users": len(ours)}  # fmt: skip

    few = [week for week in short["small"][0] if week in reported]
    old_small = interval(mean_of(of("never", w) for w in few), mean_of(of("small", w) for w in few))
    seconds = {name: float(np.mean([run["seconds"][str(w)] for run in warms for w in reported])) for name in ["warm"]}
    seconds["cold"] = float(np.mean([runs[w]["seconds"] for runs in colds for w in reported]))
    seconds["recent"] = float(np.mean([runs[w]["seconds"] for runs in short["recent"] for w in few]))
    ages = range(EVERY, len(replay.weeks) - len(replay.weeks) // 4, EVERY)
    ageing = {}
    for age in ages:
        at = [week for week in weeks if week - age in weeks]
        old = mean_of(hits(replay, w, [runs[w - age] for runs in colds]) for w in at)
        ageing[str(age)] = interval(old, mean_of(of("cold", w) for w in at))
    return {
        "dataset": "ml-100k",
        "machine": shared.machines([run for runs in colds for run in runs.values()]),
        **{"start": START, "seeds": SEEDS, "per_user": PER_USER, "recent": RECENT, "chosen": chosen},
        "tried": {name: mean_of(hits(replay, w, [r]) for w in choosing[1:]).mean() for name, r in tried.items()},
        "weeks": {str(w): {way: interval(of(way, w)) for way in ("cold", "warm", "never")} for w in weeks},
        "ways": {"cold": row("cold", reported), "warm": row("warm", reported), "never": row("never", reported),
                 "recent": row("recent", few), "small": row("small", few)},
        "never_minus_small": old_small,
        "seconds": seconds,
        "ageing": ageing,
    }  # fmt: skip


if __name__ == "__main__":
    shared.command_line(__doc__).parse_args()
    torch.set_num_threads(1)
    shared.write_json(shared.HERE / "every_day.json", summary(Replay(load_movielens("ml-100k"))))
