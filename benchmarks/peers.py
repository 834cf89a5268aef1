"""The course against its peers, on the same machine in the same run.

torch-rechub 0.9.0 and RecBole 1.2.1 get virtual environments of their own under ``artifacts/peers/``, made on first
use. Every measurement is a process of its own, which leaves a log there; where both sides are timed, they take turns.
Each part is a section of ``results.json``, from which report.py makes the tables. What is done is kept in
``artifacts/benchmarks/``: an interrupted run goes on from there. Remove a part's file to measure it anew.

    python benchmarks/peers.py                      # all but SASRec's training, about ten minutes on two idle cores
    python benchmarks/peers.py --only sasrec        # RecBole's SASRec, three seeds until its patience ends: hours
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import machine as shared
import numpy as np
import pandas as pd
import report
from task import tables
from variants import compare

from dssm_helpers.course.venvs import virtual_environment
from dssm_helpers.course.workspace import Workspace
from dssm_helpers.evaluation import EASE, ItemKNN, rank_targets
from dssm_helpers.serving import export_bundle

RECHUB = "torch-rechub 0.9.0"
ROUNDS = 3  # how often both sides take turns
# torch first and alone: on Linux the pinned version is the CPU build only where the index says so. requests is ours:
# the library imports it.
ENVIRONMENTS = {
    "rechub": ("torch-rechub==0.9.0", "annoy==1.17.3", "requests"),
    # RecBole 1.2.1 predates NumPy 2 and pandas 3 (which would turn its in-place fills into nothing), and its `ray`
    # imports pkg_resources, which setuptools 81 dropped.
    "recbole": ("recbole==1.2.1", "numpy==1.26.4", "pandas==2.2.3", "scipy==1.13.1", "setuptools<81", "requests"),
}
PEER_BEST_HIT_100 = 0.387  # torch-rechub's best on this protocol, found beforehand by tuning it on test; 300 s
PEER_SECONDS = 120  # training limit of torch-rechub, in each of its two modes
SASREC_RANKS = "sasrec_ranks.json"  # beside the results


def environment(name: str) -> Path:
    """The interpreter of a peer's environment, which is made if it is not there: about 1 GB."""
    return virtual_environment(shared.PEERS / name, ["torch==2.13.0"], ENVIRONMENTS[name])


ours = partial(shared.ask, sys.executable, "our_side.py")


def rechub(part: str, **options: Any) -> dict[str, Any]:
    return shared.ask(environment("rechub"), "peer_rechub.py", part, **options)


def take_turns(our_turn: Callable[[], dict], their_turn: Callable[[], dict], rounds: int = ROUNDS) -> dict[str, Any]:
    """Ours, theirs, ours, theirs …: of each the medians over the rounds."""
    runs = pd.DataFrame([{"ours": our_turn(), "theirs": their_turn()} for _ in range(rounds)])
    medians = {side: pd.DataFrame(runs[side].tolist()).median().to_dict() for side in runs}
    return {**medians, "rounds": rounds, "threads": 1, "peer": RECHUB}


def prep() -> dict[str, Any]:
    """Preparation of ml-100k and of a million generated ratings: seconds and peak memory.

    The peer once with the three sampled negatives per positive of its example, once without any, as in-batch training
    needs it. We draw negatives while training. With a million ratings the peer takes up to 12 GiB.
    """
    result = {}
    for name, rounds, path in (("ml-100k", ROUNDS, tables()), ("synthetic-1m", 1, tables(1_000_000))):
        sides = partial(ours, "prep", tables=path), partial(rechub, "prep", tables=path, neg_ratio=3)
        result[name] = take_turns(*sides, rounds)
        result[name]["theirs_without_negatives"] = rechub("prep", tables=path, neg_ratio=0)
    return result


def in_turns(part: str) -> dict[str, Any]:
    """Training examples per second; or all vectors and the evaluation of every test user."""
    return take_turns(*(partial(side, part, tables=tables()) for side in (ours, rechub)))


def serve() -> dict[str, Any]:
    """One user's answer, raw ids to titles, on one core; ours in a process that cannot import torch."""
    workspace = Workspace("ml-100k", progress=False)
    data, test = workspace.data, workspace.split.test[:500]
    users, items = (data.vocabularies[name].decode for name in ("user_id", "item_id"))
    asked = [{"user_id": users(data.user[[p]])[0], "history": list(items(data.history(p)[-50:]))} for p in test]
    with tempfile.TemporaryDirectory() as folder:
        bundle = export_bundle(Path(folder) / "bundle", workspace.trained("dssm")[0], data, workspace.split.train)
        requests = Path(folder) / "requests.json"
        requests.write_text(json.dumps(asked, default=int), encoding="utf-8")
        our_turn = partial(shared.ask, sys.executable, "our_serving.py", "serve", bundle=bundle, requests=requests)
        return take_turns(our_turn, partial(rechub, "serve", tables=tables(), requests=requests))


def quality() -> dict[str, Any]:
    """Seconds to the peer's best Hit@100."""
    options = {"tables": tables(), "seconds": PEER_SECONDS}
    theirs = [rechub("quality", **options, neg_ratio=negatives) for negatives in (3, 0)]
    target = {"hit@100": max(PEER_BEST_HIT_100, *(mode["best"]["hit@100"] for mode in theirs))}
    found = ours("quality", tables=tables(), target=target, seeds=1, epochs=(0.25, 0.5, 1, 2, 4, 8))
    return {"threads": 1, "peer": RECHUB, "theirs": theirs, "ours": found}


def to_sasrec() -> dict[str, Any]:
    """Processor seconds to the mean quality of RecBole's SASRec, on as many cores, three seeds."""
    runs = report.sasrec_runs(shared.read_json(shared.RESULTS))
    if not runs:  # none was trained to its end
        return {"runs": []}
    target = {name: float(np.mean([run["test"][name] for run in runs])) for name in report.HITS}
    options = {"target": target, "seeds": 3, "epochs": (3, 4, 6, 8, 10), "threads": os.cpu_count()}
    return ours("quality", tables=tables(), **options)


def against() -> dict[str, Any]:
    """The course's model, three seeds, minus others on test, with the paired 95 % interval."""
    workspace = Workspace("ml-100k", progress=False)
    data, split = workspace.data, workspace.split
    model = np.array([rank_targets(workspace.scorer("dssm", seed), data, split.test) for seed in range(3)])
    scorers = {"EASE": EASE(data, split.train), "item-kNN": ItemKNN(data, split.train)}
    others = {name: [rank_targets(scorer, data, split.test)] for name, scorer in scorers.items()}
    if report.sasrec_runs(shared.read_json(shared.RESULTS)):
        sasrec = shared.read_json(shared.HERE / SASREC_RANKS)
        others[sasrec["model"]] = list(sasrec["test"].values())
    return {"others": [{"name": n, "seeds": len(r), **compare(model, np.array(r))} for n, r in others.items()]}


PARTS = {part: partial(in_turns, part) for part in ("train", "evaluate")}
PARTS |= {part.__name__: part for part in (prep, serve, quality, to_sasrec, against)}


def sasrec(seeds: Sequence[int]) -> None:
    """RecBole's SASRec on all cores, ranked by our evaluation; every seed is stored when it is done."""
    for seed in seeds:
        options = {"seed": seed, "threads": os.cpu_count()}
        train_one = partial(shared.ask, environment("recbole"), "peer_recbole.py", "train", tables=tables(), **options)
        keep_sasrec(shared.RESULTS, seed, shared.once(shared.point("sasrec", **options), train_one))


def keep_sasrec(path: Path, seed: int, run: dict[str, Any]) -> None:
    """Put a run into the results in place of that seed's last, and its test ranks into a file beside them."""
    note = "rank of each user's test movie by seed, users in order of id (= split_by_time(data).test); ties count half"
    ranks = shared.read_json(path.with_name(SASREC_RANKS)).get("test", {}) | {str(seed): run.pop("test_ranks")}
    about = {"model": "SASRec, recbole 1.2.1", "dataset": "ml-100k", "note": note}
    shared.write_json(path.with_name(SASREC_RANKS), {**about, "test": ranks})
    runs = shared.read_json(path).get("sasrec", {}).get("runs", {}) | {str(seed): run}
    shared.merge_section(path, "sasrec", {"runs": runs})


if __name__ == "__main__":
    parser = shared.command_line(__doc__)
    parser.add_argument("--only", nargs="+", choices=["sasrec", *PARTS], default=list(PARTS))
    parser.add_argument("--sasrec-seeds", type=int, nargs="+", default=[2020, 2021, 2022])
    arguments = parser.parse_args()
    if "sasrec" in arguments.only:
        sasrec(arguments.sasrec_seeds)
    for part in (part for part in PARTS if part in arguments.only):
        path = shared.point(part, sasrec=report.sasrec_runs(shared.read_json(shared.RESULTS)))  # two compare with it
        shared.merge_section(shared.RESULTS, part, shared.once(path, PARTS[part]))
    report.write()
