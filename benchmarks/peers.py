"""The course against its peers, on the same machine in the same run.

torch-rechub 0.9.0 and RecBole 1.2.1 get virtual environments of their own under ``artifacts/peers/``, made on first
use. Every measurement is a process of its own, which leaves a log there; where both sides are timed, they take turns.
Each part writes its own section of ``results.json``, so a part can be run again alone, and ``RESULTS.md`` is written
anew (as report.py does).

    python benchmarks/peers.py                      # all but SASRec's training, about ten minutes on two idle cores
    python benchmarks/peers.py --only sasrec        # RecBole's SASRec, three seeds until its patience ends: hours
    python benchmarks/peers.py --only prep train    # some parts
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import machine as shared
import report

from dssm_helpers.movielens import load_movielens, synthetic

RECHUB = "torch-rechub 0.9.0"
# torch first and alone: on Linux the pinned version is the CPU build only where the index says so.
ENVIRONMENTS = {
    "rechub": ("torch-rechub==0.9.0", "annoy==1.17.3"),
    # RecBole 1.2.1 predates NumPy 2 and pandas 3 (which would turn its in-place fills into nothing), and its `ray`
    # imports pkg_resources, which setuptools 81 dropped.
    "recbole": ("recbole==1.2.1", "numpy==1.26.4", "pandas==2.2.3", "scipy==1.13.1", "setuptools<81"),
}
PEER_BEST_HIT_100 = 0.387  # torch-rechub's best on this protocol, found beforehand by tuning it on test; 300 s


def environment(name: str) -> Path:
    """The interpreter of a peer's environment, which is made if it is not there."""
    folder = shared.PEERS / name
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    ready, wanted = folder / ".ready", "\n".join(ENVIRONMENTS[name])
    if not ready.exists() or ready.read_text(encoding="utf-8") != wanted:
        with shared.step(f"environment of {name} (once, about 1 GB)"):
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
            pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "torch==2.13.0"]
            subprocess.run(pip, check=True)
            subprocess.run([*pip, *ENVIRONMENTS[name]], check=True)
            ready.write_text(wanted, encoding="utf-8")
    return python


def ours(part: str, **options: Any) -> dict[str, Any]:
    return shared.ask(sys.executable, "our_side.py", part, **options)


def rechub(part: str, **options: Any) -> dict[str, Any]:
    return shared.ask(environment("rechub"), "peer_rechub.py", part, **options)


def take_turns(rounds: int, our_turn: Callable[[], dict], their_turn: Callable[[], dict]) -> dict[str, Any]:
    """Ours, theirs, ours, theirs …: of each the medians over the rounds."""
    runs: dict[str, list[dict]] = {"ours": [], "theirs": []}
    for i in range(rounds):
        with shared.step(f"  round {i + 1} of {rounds}"):
            runs["ours"].append(our_turn())
            runs["theirs"].append(their_turn())
    medians = {side: {key: shared.median(r[key] for r in found) for key in found[0]} for side, found in runs.items()}
    return {**medians, "rounds": rounds, "threads": 1, "peer": RECHUB}


def tables(name: str = "ml-100k", n_ratings: int = 0) -> Path:
    """The input of both sides, as a file; made once."""
    path = shared.PEERS / "inputs" / f"{name}.npz"
    if not path.exists():
        shared.save_tables(synthetic(n_ratings) if n_ratings else load_movielens(name), path)
    return path


# -- The parts ---------------------------------------------------------------------------------------------------------


def prep(arguments: argparse.Namespace) -> dict[str, Any]:
    """Preparation of ml-100k and of a million generated ratings: seconds and peak memory.

    The peer once with the three sampled negatives per positive of its example, once without any, as in-batch training
    needs it. We draw negatives while training. With a million ratings the peer takes up to 12 GiB.
    """
    small = {"tables": tables()}
    result = take_turns(arguments.rounds, partial(ours, "prep", **small), partial(rechub, "prep", **small, neg_ratio=3))
    result["theirs_without_negatives"] = rechub("prep", **small)
    million = {"tables": tables("synthetic-1m", 1_000_000)}
    large = {"threads": 1, "peer": RECHUB, "rounds": 1, "ours": ours("prep", **million)}
    for name, negatives in (("theirs", 3), ("theirs_without_negatives", 0)):
        with shared.step(f"  the peer on a million ratings, {negatives} negatives"):
            large[name] = rechub("prep", **million, neg_ratio=negatives)
    return {"ml-100k": result, "synthetic-1m": large}


def train(arguments: argparse.Namespace) -> dict[str, Any]:
    """Training examples per second; and what share of the processor's peak our step reaches."""
    sides = [partial(side, "train", tables=tables()) for side in (ours, rechub)]
    return take_turns(arguments.rounds, *sides) | {"profile": ours("profile", tables=tables())}


def evaluate(arguments: argparse.Namespace) -> dict[str, Any]:
    """All vectors and the evaluation of every test user."""
    return take_turns(arguments.rounds, *(partial(side, "evaluate", tables=tables()) for side in (ours, rechub)))


def serve(arguments: argparse.Namespace) -> dict[str, Any]:
    """One user's answer, raw ids to titles, on one core; ours in a process that cannot import torch."""
    from dssm_helpers.course.workspace import Workspace
    from dssm_helpers.serving import export_bundle

    workspace = Workspace("ml-100k", progress=False)
    data, test = workspace.data, workspace.split.test[:500]
    users, items = (data.vocabularies[name].values for name in ("user_id", "item_id"))
    asked = [
        {"user_id": int(users[data.user[p] - 2]), "history": items[data.history(p)[-50:] - 2].tolist()} for p in test
    ]
    with tempfile.TemporaryDirectory() as folder:
        bundle = export_bundle(Path(folder) / "bundle", workspace.trained("dssm")[0], data, workspace.split.train)
        requests = Path(folder) / "requests.json"
        requests.write_text(json.dumps(asked), encoding="utf-8")
        return take_turns(
            arguments.rounds,
            partial(ours, "serve", bundle=bundle, requests=requests),
            partial(rechub, "serve", tables=tables(), requests=requests),
        )


def quality(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds to the peer's best Hit@100, and to the quality of RecBole's SASRec."""
    options = {"tables": tables(), "seconds": arguments.peer_seconds}
    theirs = []
    for negatives in (3, 0):
        with shared.step(f"  torch-rechub, {negatives} negatives, {arguments.peer_seconds:g} s"):
            theirs.append(rechub("quality", **options, neg_ratio=negatives))
    with shared.step("  ours to its best Hit@100"):
        target = {"hit@100": max(PEER_BEST_HIT_100, *(mode["best"]["hit@100"] for mode in theirs))}
        result = {"ours": ours("quality", tables=tables(), target=target)}
    sasrec = shared.read_json(arguments.out).get("sasrec")
    if report.finished(sasrec):
        target = {name: report.mean(sasrec, "test", name) for name in ("hit@10", "hit@100", "ndcg@10")}
        options = {"target": target, "seeds": 3, "epochs": (3, 4, 6, 8, 10), "threads": os.cpu_count()}
        with shared.step("  ours to the quality of RecBole's SASRec, three seeds each"):
            result["to_sasrec"] = ours("quality", tables=tables(), **options)
    else:
        print("  no SASRec that was trained to its end: peers.py --only sasrec", flush=True)
    known = {"peer_best_hit@100_known": PEER_BEST_HIT_100, "peer_seconds_known": 300}
    return {"threads": 1, "peer": RECHUB, **known, "theirs": theirs, **result}


def sasrec(arguments: argparse.Namespace) -> dict[str, Any]:
    """RecBole's SASRec on all cores, ranked by our evaluation; leaves its test ranks in sasrec_ranks.json.

    Each seed is stored when it is done and replaces what was stored of that seed.
    """
    for seed in arguments.sasrec_seeds:
        with shared.step(f"  seed {seed}"):
            options = {"seed": seed, "hours": arguments.sasrec_hours, "threads": os.cpu_count()}
            run = shared.ask(environment("recbole"), "peer_recbole.py", "train", tables=tables(), **options)
        keep_sasrec(arguments.out, seed, run | {"machine": shared.machine()})
    return shared.read_json(arguments.out)["sasrec"]


def keep_sasrec(path: Path, seed: int, run: dict[str, Any]) -> None:
    """Put a run into the results, but its test ranks into sasrec_ranks.json."""
    note = "rank of each user's test movie by seed, users in order of id (= split_by_time(data).test); ties count half"
    ranks = shared.read_json(shared.SASREC_RANKS).get("test", {}) | {str(seed): run.pop("test_ranks")}
    about = {"model": "SASRec, recbole 1.2.1", "dataset": "ml-100k", "note": note}
    shared.write_json(shared.SASREC_RANKS, {**about, "test": ranks})
    runs = shared.read_json(path).get("sasrec", {}).get("runs", {}) | {str(seed): run}
    shared.merge_section(path, "sasrec", {"runs": runs})


PARTS = {part.__name__: part for part in (prep, train, evaluate, serve, quality, sasrec)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=[name for name in PARTS if name != "sasrec"])
    parser.add_argument("--out", type=Path, default=shared.RESULTS, help="default: benchmarks/results.json")
    parser.add_argument("--rounds", type=int, default=3, help="how often both sides take turns (default 3)")
    parser.add_argument("--peer-seconds", type=float, default=120, help="training limit of torch-rechub, each of two")
    parser.add_argument("--sasrec-seeds", type=int, nargs="+", default=[2020, 2021, 2022])
    parser.add_argument(
        "--sasrec-hours", type=float, default=6, help="safety limit of a seed, which is then unfinished"
    )
    arguments = parser.parse_args()
    for part in arguments.only:
        with shared.step(part):
            shared.merge_section(arguments.out, part, PARTS[part](arguments))
    print(report.write(arguments.out))


if __name__ == "__main__":
    main()
