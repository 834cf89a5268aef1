"""A new model every week: MovieLens replayed in its own order, a split in global time (notebook 15).

    python benchmarks/every_day.py                  # leaves every_day.json; some ten minutes on one quiet core

A model knows what happened before the start of its week and is asked for what happens in it: of each user the first
ratings, with the history they have by then, ranked among all movies that anybody had rated before the week (another
target is a miss). A user's figure is a mean over their rows, a period's a mean over its users. How to train warm is
chosen on the first weeks; the later ones are reported. An interrupted run goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import machine as shared
import numpy as np
import pandas as pd
import torch

from dssm_helpers.course.replay import Replay, train
from dssm_helpers.course.workspace import code_digest
from dssm_helpers.evaluation import paired_bootstrap
from dssm_helpers.files import digest
from dssm_helpers.model import grown
from dssm_helpers.movielens import load_movielens
from dssm_helpers.recipes import build_model

START, CHOOSING, RECENT = 8, range(9, 15), 8
WARM = {  # the rows to go on with, epochs, learning rate
    "all ratings, 1 epoch, 2e-3": ("all", 1, 2e-3),
    "new ratings, 2 epochs, 1e-3": ("new", 2, 1e-3),
    "new ratings and as many old, 2 epochs, 1e-3": ("both", 2, 1e-3),
}


def seconds_of(*what: Any, **settings: Any) -> float:
    """Processor seconds of a training."""
    start = shared.clocks()
    train(*what, **settings)
    return float((shared.clocks() - start)[1])


def cold(replay: Replay, way: str, week: int, seed: int, ask: Sequence[int]) -> dict[str, Any]:
    """A new model of everything known, of the last weeks, or of few users; its ranks in the weeks ``ask``."""
    data, model = replay.day(week), build_model(replay.day(week), "dssm", seed)
    rows = np.arange(len(data)) if way == "cold" else replay.since(week, RECENT)
    if way == "small":  # users drawn from the whole past, until they have as many ratings as the first model had
        users = np.random.default_rng(seed).permutation(np.arange(2, data.n_users))
        enough = np.searchsorted(np.cumsum(np.diff(data.offsets)[users]), len(replay.day(START))) + 1
        rows = np.flatnonzero(np.isin(data.user, users[:enough]))
    seconds = {str(week): seconds_of(model, data, rows, seed=seed)}
    return {"rows": len(rows), "seconds": seconds, "ranks": {str(w): replay.ranks(model, w).tolist() for w in ask}}


def warm(replay: Replay, how: str, seed: int, ask: Sequence[int]) -> dict[str, Any]:
    """One model, trained cold in the first of the weeks and going on from there; its ranks in each."""
    kind, epochs, rate = WARM[how]
    model = build_model(replay.day(ask[0]), "dssm", seed)
    seconds, ranks = {}, {}
    for week in ask:
        data = replay.day(week)
        rows = {"all": np.arange(len(data)), "new": replay.since(week), "both": replay.new_and_old(week)}[kind]
        further = {"epochs": epochs, "learning_rate": rate}
        if week == ask[0]:
            rows, further = np.arange(len(data)), {}
        model = grown(model, data.vocabularies)
        further["seed"] = seed + (1000 * week if further else 0)
        seconds[str(week)] = seconds_of(model, data, rows, **further)
        ranks[str(week)] = replay.ranks(model, week).tolist()
    return {"seconds": seconds, "ranks": ranks}


def kept(measure: Callable[..., dict[str, Any]], replay: Replay, **settings: Any) -> dict[str, Any]:
    """``measure(replay, **settings)``, once for these settings, these data and this library."""
    parts = [measure.__name__, settings, replay.day(replay.weeks.stop).fingerprint(), code_digest()]
    return shared.once(shared.POINTS / f"every_day-{digest(parts)[:12]}.json", lambda: measure(replay, **settings))


def hits_of(replay: Replay, week: int, runs: Iterable[dict[str, Any]]) -> pd.Series:
    """Each user's share of hits in a week, a mean over the runs."""
    return mean_of(replay.hits(run["ranks"][str(week)], week) for run in runs)


def mean_of(shares: Iterable[pd.Series]) -> pd.Series:
    return pd.concat(list(shares)).groupby(level=0).mean()


def interval(ours: pd.Series, theirs: pd.Series | float = 0.0) -> list[float]:
    return list(paired_bootstrap(ours.to_numpy(), np.broadcast_to(theirs, len(ours)), 2000))


def summary(replay: Replay, weeks: list[int], few: list[int], seeds: int) -> dict[str, Any]:
    """The content of ``every_day.json``: cold models of ``weeks``, those of fewer rows in ``few`` of them."""
    tried = {how: kept(warm, replay, how=how, seed=0, ask=[START, *CHOOSING]) for how in WARM}
    chance = {how: mean_of(hits_of(replay, w, [run]) for w in CHOOSING).mean() for how, run in tried.items()}
    chosen = max(chance, key=chance.get)
    runs = {"warm": [dict.fromkeys(weeks, kept(warm, replay, how=chosen, seed=s, ask=list(replay.weeks)))
                     for s in range(seeds)]}  # fmt: skip
    for way, at in (("cold", weeks), ("recent", few), ("small", few)):
        asked = {week: [w for w in weeks if w >= week] if way == "cold" else [week] for week in at}
        runs[way] = [{w: kept(cold, replay, way=way, week=w, seed=s, ask=asked[w]) for w in at} for s in range(seeds)]
    runs["never"] = [dict.fromkeys(weeks, of_seed[START]) for of_seed in runs["cold"]]
    reported = [week for week in weeks if week > CHOOSING[-1]]

    def hits(way: str, week: int) -> pd.Series:
        return hits_of(replay, week, [of_seed[week] for of_seed in runs[way]])

    def figures(way: str, at: list[int]) -> dict[str, Any]:
        ours, base = (mean_of(hits(name, w) for w in at) for name in (way, "cold"))
        seconds = float(np.mean([of_seed[w]["seconds"].get(str(w), 0.0) for of_seed in runs[way] for w in at]))
        by_seed = [float(mean_of(hits_of(replay, w, [of_seed[w]]) for w in at).mean()) for of_seed in runs[way]]
        found = {"hit@10": ours.mean(), "error": ours.std() / len(ours) ** 0.5, "minus_cold": interval(ours, base)}
        return {"weeks": at, "users": len(ours), **found, "cold": base.mean(), "by_seed": by_seed, "seconds": seconds}

    ageing = {}
    for age in sorted({new - old for new in weeks for old in weeks if new > old}):
        at = [week for week in weeks if week - age in weeks]
        ours = mean_of(hits_of(replay, w, [of_seed[w - age] for of_seed in runs["cold"]]) for w in at)
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
    parser.add_argument("--every", type=int, default=4, help="weeks from one cold model to the next")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    replay = Replay(load_movielens("ml-100k"))
    weeks = list(replay.weeks[:: arguments.every])
    few = [week for week in weeks if week > CHOOSING[-1]][1::2]
    shared.write_json(shared.HERE / "every_day.json", summary(replay, weeks, few, arguments.seeds))
