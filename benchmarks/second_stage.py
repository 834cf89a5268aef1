"""The second stage on ml-100k, three seeds: ``python benchmarks/second_stage.py`` writes ``second_stage.json`` (14).

NDCG@10 of the network and of boosted trees by number of training queries, beside retrieval alone for the same users;
then other training lists, fewer candidates, and what a request takes. An interrupted run goes on where it stopped.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import machine as shared
import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier

from dssm_helpers.course.workspace import Workspace
from dssm_helpers.evaluation import TwoTowerScorer, candidate_scores, ndcg, paired_bootstrap
from dssm_helpers.pairs import Lists, PairTables
from dssm_helpers.ranking import candidate_lists, fit_ranker, go_back, pair_lists, pair_tables, ranked, ranks_within
from dssm_helpers.serving import Recommender, export_bundle

SEEDS, MOST, PARTS = 3, 200, ("validation", "test")
BESIDE = ("retrieval", "trees, 20000", "network, 5000")  # what the others are compared with
LOST = 10_000  # the rank of a target that retrieval did not find; JSON has no infinity
QUERIES, OF_TREES = (500, 1000, 2000, 5000, 10_000, 20_000), (1000, 5000, 20_000)
KS = (10, 20, 50, 100, 200)


def first(lists: Lists, k: int = 100) -> Lists:
    return Lists(lists.items[:, :k], lists.pairs[:, :k], np.where(lists.target < k, lists.target, -1))


def at_random(scorer: TwoTowerScorer, tables: PairTables, ws: Workspace, positions: np.ndarray) -> Lists:
    """The target among items at random that the user has not had, instead of among what retrieval finds."""
    scores = candidate_scores(scorer, ws.data, positions)  # [B, I]
    noise = torch.rand(scores.shape, generator=torch.Generator().manual_seed(0)).masked_fill(scores == -torch.inf, -1)
    noise[range(len(noise)), ws.data.item[positions]] = 2
    items = noise.topk(100, dim=1).indices
    return pair_lists(tables, ws.data, positions, items.numpy(), scores.gather(1, items).numpy())


def boosted(lists: Lists) -> Callable[[Lists], np.ndarray]:
    found = lists.target >= 0
    hit = np.arange(lists.items.shape[1]) == lists.target[found, None]
    trees = HistGradientBoostingClassifier(max_leaf_nodes=15, min_samples_leaf=100, early_stopping=False)
    trees.fit(lists.pairs[found].reshape(hit.size, -1), hit.ravel())
    return lambda new: trees.decision_function(new.pairs.reshape(new.items.size, -1)).reshape(new.items.shape)


def milliseconds(ws: Workspace) -> dict[str, float]:
    """Median of a request on one core, by number of candidates (0: retrieval alone), measured in turns."""
    scorer = ws.scorer("dssm")
    tables = pair_tables(ws.data, ws.split.train, scorer)
    ranker = fit_ranker(candidate_lists(scorer, tables, ws.data, ws.split.validation), epochs=1)  # any will do
    users, movies = ws.data.vocabularies["user_id"], ws.data.vocabularies["item_id"]
    asked = [(*users.decode([ws.data.user[p]]), movies.decode(ws.data.history(p))) for p in ws.split.test[:100]]
    seconds: dict[int, list[float]] = {k: [] for k in (0, *KS)}
    with TemporaryDirectory() as folder:
        rest = scorer.model, ws.data, ws.split.train
        both = Recommender.load(export_bundle(f"{folder}/both", *rest, second=(ranker, tables)))
        alone = Recommender.load(export_bundle(f"{folder}/alone", *rest))
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    for user, history in asked:
        for k in seconds:
            both.retrieved = k
            seconds[k] += shared.seconds_of(partial((both if k else alone).recommend, user, history))
    return {"ms": {str(k): 1e3 * median(of) for k, of in seconds.items()}}


def measure(ws: Workspace, seed: int) -> dict[str, Any]:
    """Ranks of every user's validation and test row in each way."""
    past, queries = go_back(ws.data, ws.split.train)
    then = Workspace(data=past, progress=False)
    old, scorer = (TwoTowerScorer(w.trained("dssm", seed)[0], ws.batches) for w in (then, ws))
    old_tables, tables = pair_tables(past, then.split.train, old), pair_tables(ws.data, ws.split.train, scorer)
    queries = np.random.default_rng(seed).permutation(queries)
    lists = candidate_lists(old, old_tables, ws.data, queries)
    now = {part: candidate_lists(scorer, tables, ws.data, getattr(ws.split, part), MOST) for part in PARTS}
    ways, found = {}, {"queries": len(queries)}
    for n in QUERIES:
        ranker = fit_ranker(Lists(*(of[:n] for of in lists)), seed=seed)
        ways[f"network, {n}"] = partial(ranked, ranker)
    for n in OF_TREES:
        ways[f"trees, {n}"] = boosted(Lists(*(of[:n] for of in lists)))
    wrong = {"today's retriever": candidate_lists(scorer, tables, ws.data, queries[:5000])}
    wrong["random negatives"] = at_random(old, old_tables, ws, queries[:5000])
    ways |= {name: partial(ranked, fit_ranker(of, seed=seed)) for name, of in wrong.items()}
    ways["retrieval"] = lambda lists: lists.pairs[:, :, 0]
    for part, those in now.items():
        found[part] = {name: _ranks(way(first(those)), first(those)) for name, way in ways.items()}
        found[part] |= {f"first {k}": _ranks(ranked(ranker, first(those, k)), first(those, k)) for k in KS}
    return found


def _ranks(scores: np.ndarray, lists: Lists) -> list[float]:
    return np.minimum(ranks_within(scores, lists), LOST).tolist()


def summary(runs: list[dict[str, Any]], part: str) -> dict[str, Any]:
    """Of each way NDCG@10, how many targets are in its lists, and paired differences with their 95 % intervals."""
    ranks = {name: np.array([run[part][name] for run in runs]) for name in runs[0][part]}  # [seeds, users]
    gains, rows = {name: ndcg(of) for name, of in ranks.items()}, {}
    for name, gain in gains.items():
        rows[name] = {"ndcg": gain.mean(), "seeds": gain.mean(axis=1).tolist()}
        rows[name]["found"] = float((ranks[name] < LOST).mean())
        rows[name] |= {f"over {other}": list(paired_bootstrap(gain, gains[other])) for other in BESIDE}
    return rows


if __name__ == "__main__":
    shared.command_line(__doc__).parse_args()
    torch.set_num_threads(1)
    ws = Workspace("ml-100k", progress=False)
    points = [shared.point("second_stage", seed=seed, data=ws.data.fingerprint()) for seed in range(SEEDS)]
    runs = [shared.once(path, partial(measure, ws, seed)) for seed, path in enumerate(points)]
    about = {"dataset": ws.dataset, "seeds": SEEDS, "machine": shared.machines(runs), "queries": runs[0]["queries"]}
    about["milliseconds"] = shared.once(shared.point("second_stage", requests=True), partial(milliseconds, ws))["ms"]
    shared.write_json(shared.HERE / "second_stage.json", {**about, **{part: summary(runs, part) for part in PARTS}})
