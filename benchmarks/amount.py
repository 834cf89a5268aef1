"""How much data does it take: the default, item-kNN and EASE with fewer users, or with fewer ratings (notebook 10).

``users``: so many train; the others are strangers, their histories known and their ids not. ``ratings``: everybody
keeps a random share of what came before the validation row, to train on and as history. All points rank every user's
validation row among the same candidates. Each method may choose one number on these rows: the default its epoch (as
ever), item-kNN how many last items, EASE its l2. Each seed draws other users or ratings and starts another model.
An interrupted run goes on where it stopped.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import machine as shared
import numpy as np
import torch
from variants import compare, figures

from dssm_helpers.course.workspace import Workspace
from dssm_helpers.data import EncodedData
from dssm_helpers.evaluation import EASE, ItemKNN, Popularity, Scorer, TwoTowerScorer, metrics, rank_targets
from dssm_helpers.features import BatchBuilder
from dssm_helpers.recipes import RECIPES, build_model
from dssm_helpers.training import Trainer
from dssm_helpers.vocabulary import FIRST, UNKNOWN

USERS, SHARES, SEEDS = (25, 50, 100, 200, 400), (0.1, 0.2, 0.4, 0.7), 3
LAST, L2 = (3, 10, 50), (30.0, 100.0, 300.0, 1000.0, 3000.0)


def smaller(ws: Workspace, users: int, share: float, seed: int) -> tuple[EncodedData, np.ndarray, BatchBuilder]:
    """What is left of the data, the positions in it to train on (no user's last: validation), and its batches."""
    data, generator = ws.data, np.random.default_rng(seed)
    kept = generator.random(len(data)) < share
    kept[ws.split.validation], kept[ws.split.test] = True, False
    known = np.zeros(data.n_users, dtype=bool)
    known[FIRST + generator.permutation(data.n_users - FIRST)[:users]] = True
    user = data.user[kept]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(user, minlength=data.n_users))])
    left = replace(data, user=user, item=data.item[kept], timestamp=data.timestamp[kept], offsets=offsets)
    batches = BatchBuilder(left)
    batches.user_columns["user_id"] = batches.user_columns["user_id"].masked_fill(~torch.from_numpy(known), UNKNOWN)
    return left, np.setdiff1d(np.flatnonzero(known[user]), offsets[FIRST + 1 :] - 1), batches


def measure(ws: Workspace, users: int, share: float, seed: int) -> dict[str, Any]:
    """Ranks of every user's validation row, by method and its setting."""
    data, train, batches = smaller(ws, users, share, seed)

    def ranks(scorer: Scorer) -> np.ndarray:  # the row's position is another one in what is left: its user's last
        return rank_targets(lambda p: scorer(data.offsets[ws.data.user[p] + 1] - 1), ws.data, ws.split.validation)

    trainer = Trainer(build_model(data, "dssm", seed), batches, replace(RECIPES["dssm"].training, seed=seed))
    trainer.fit(train, lambda m: metrics(ranks(TwoTowerScorer(m, batches))), progress=False)
    scorers = {"dssm": {"": TwoTowerScorer(trainer.model, batches)}, "popularity": {"": Popularity(data, train)}}
    scorers["item-kNN"] = {str(last): ItemKNN(data, train, last) for last in LAST}
    scorers["EASE"] = {f"{l2:g}": EASE(data, train, l2) for l2 in L2}
    found = {name: {setting: ranks(s).tolist() for setting, s in of.items()} for name, of in scorers.items()}
    return {"rows": len(train), "ranks": found}


def point(ws: Workspace, users: int, share: float) -> dict[str, Any]:
    """Means over the seeds of every method at its best setting, and the default minus each, with 95 % intervals."""
    runs = []
    for seed in range(SEEDS):
        path = shared.point("amount", users=users, share=share, seed=seed, data=ws.data.fingerprint())
        runs.append(shared.once(path, partial(measure, ws, users, share, seed)))
    best, chosen = {}, {}
    for method, settings in runs[0]["ranks"].items():
        ranks = {s: np.array([run["ranks"][method][s] for run in runs]) for s in settings}  # [seeds, users]
        chosen[method] = max(ranks, key=lambda s, r=ranks: (r[s] <= 10).mean())
        best[method] = ranks[chosen[method]]
    return {
        "users": users,
        "share": share,
        "rows": int(np.mean([run["rows"] for run in runs])),
        "chosen": chosen,
        "methods": {method: figures(ranks) for method, ranks in best.items()},
        "dssm_minus": {name: compare(best["dssm"], ranks) for name, ranks in best.items() if name != "dssm"},
        "range_of_seeds": {f"hit@{k}": np.ptp((best["dssm"] <= k).mean(axis=1)) for k in (10, 100)},
        "machine": shared.machines(runs),
    }


if __name__ == "__main__":
    shared.command_line(__doc__).parse_args()
    torch.set_num_threads(1)
    ws = Workspace("ml-100k", progress=False)
    everybody = ws.data.n_users - FIRST
    users = [point(ws, n, 1.0) for n in (*USERS, everybody)]
    ratings = [point(ws, everybody, share) for share in (*SHARES, 1.0)]
    about = {"dataset": ws.dataset, "split": "validation", "seeds": SEEDS, "machine": shared.machines(users + ratings)}
    shared.write_json(shared.HERE / "amount.json", {**about, "users": users, "ratings": ratings})
