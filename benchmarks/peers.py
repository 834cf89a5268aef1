"""The course against its peers, on the same machine in the same run (issue "Fast").

torch-rechub 0.9.0 and RecBole 1.2.1 get virtual environments of their own under ``artifacts/peers/``, made on first
use. Every measurement is a process of its own; where both sides are timed, they take turns. Each part writes its own
section of ``results.json``, so a part can be run again alone, and ``RESULTS.md`` is written anew (as report.py does).

    python benchmarks/peers.py                      # all but SASRec's training, about ten minutes on two idle cores
    python benchmarks/peers.py --only sasrec        # RecBole's SASRec, trained once
    python benchmarks/peers.py --only prep train    # some parts
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent))
import machine as shared
import report

PEERS = shared.ROOT / "artifacts" / "peers"
SASREC_RANKS = shared.HERE / "sasrec_ranks.json"
GIB = 2**30
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
    folder = PEERS / name
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    ready = folder / ".ready"
    wanted = "\n".join(ENVIRONMENTS[name])
    if not ready.exists() or ready.read_text(encoding="utf-8") != wanted:
        with shared.step(f"environment of {name} (once, about 1 GB)"):
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
            pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*pip, "torch==2.13.0"], check=True)
            subprocess.run([*pip, "torch==2.13.0", *ENVIRONMENTS[name]], check=True)
            ready.write_text(wanted, encoding="utf-8")
    return python


class Runner:
    """Start one measurement in the right environment and read the JSON it prints last."""

    def __init__(self, threads: int):
        self.threads = threads
        self.environ = {
            **os.environ,
            "OMP_WAIT_POLICY": "PASSIVE",
            **{f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "OPENBLAS", "MKL")},
        }

    def ours(self, part: str, *options: object) -> dict:
        return self._run(Path(sys.executable), "our_side.py", part, options)

    def rechub(self, part: str, *options: object) -> dict:
        return self._run(environment("rechub"), "peer_rechub.py", part, options)

    def _run(self, python: Path, script: str, part: str, options: tuple[object, ...]) -> dict:
        command = [str(python), "-W", "ignore", str(shared.HERE / script), part, *map(str, options)]
        with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, text=True, env=self.environ)
            if done.returncode:
                log.seek(0)
                raise RuntimeError(f"{script} {part} failed:\n{log.read()[-3000:]}")
        return json.loads(done.stdout.splitlines()[-1])

    def take_turns(self, part: str, rounds: int, ours: tuple[object, ...], theirs: tuple[object, ...]) -> dict:
        """Ours, theirs, ours, theirs …: the medians of each, and the median of the rounds' own ratios."""
        runs: dict[str, list[dict]] = {"ours": [], "theirs": []}
        for i in range(rounds):
            with shared.step(f"  round {i + 1} of {rounds}"):
                runs["ours"].append(self.ours(part, *ours))
                runs["theirs"].append(self.rechub(part, *theirs))
        return {side: _medians(results) for side, results in runs.items()} | {
            "rounds": rounds,
            "threads": self.threads,
            "peer": RECHUB,
        }


def _medians(results: list[dict]) -> dict:
    """Per key the median over the runs; what is not a number is taken from the first."""
    return {
        key: median(r[key] for r in results) if isinstance(value, float) else value for key, value in results[0].items()
    }


def saved_tables(name: str, n_ratings: int = 0) -> Path:
    """The input of both sides, as a file; made once."""
    from our_side import save_tables

    from dssm_helpers.data import load_movielens, synthetic

    path = PEERS / "inputs" / f"{name}.npz"
    if not path.exists():
        save_tables(synthetic(n_ratings) if n_ratings else load_movielens(name), path)
    return path


# --------------------------------------------------------------------------------------------------------------------
# The parts
# --------------------------------------------------------------------------------------------------------------------


def prep(run: Runner, arguments: argparse.Namespace) -> dict:
    """Preparation of ml-100k and of a million generated ratings: seconds and peak memory.

    The peer once with the three sampled negatives per positive of its example, once without any, as in-batch training
    needs it. We draw negatives while training.
    """
    tables = ("--tables", saved_tables("ml-100k"))
    result = run.take_turns("prep", arguments.rounds, tables, (*tables, "--neg-ratio", 3))
    with shared.step("  the peer without negatives"):
        result["theirs_without_negatives"] = run.rechub("prep", *tables)

    million = ("--tables", saved_tables("synthetic-1m", 1_000_000))
    large: dict = {"threads": run.threads, "peer": RECHUB, "rounds": 1, "ours": run.ours("prep", *million)}
    for name, negatives in (("theirs", 3), ("theirs_without_negatives", 0)):
        large[name] = _peer_prepares_a_million(run, million, negatives)
    return {"ml-100k": result, "synthetic-1m": large}


def _peer_prepares_a_million(run: Runner, tables: tuple[object, ...], negatives: int) -> dict:
    """Measured if 14 GiB are free, else extrapolated from fewer ratings, and the result says which."""
    free = shared.available_memory()
    if free is None or free > 14 * GIB:
        with shared.step(f"  the peer on a million ratings, {negatives} negatives (a minute, up to 12 GiB)"):
            return run.rechub("prep", *tables, "--neg-ratio", negatives) | {"how": "measured"}
    with shared.step(f"  {free / GIB:.0f} GiB free are too few for the peer on a million: 300,000, times 10/3"):
        smaller = run.rechub("prep", "--tables", saved_tables("synthetic-300k", 300_000), "--neg-ratio", negatives)
        scaled = {key: smaller[key] * 10 / 3 for key in ("seconds", "mib_above_imports")}
        return smaller | scaled | {"how": "extrapolated from 300,000 ratings, in proportion"}


def train(run: Runner, arguments: argparse.Namespace) -> dict:
    """Training examples per second; and what share of the processor's peak our step reaches."""
    tables = ("--tables", saved_tables("ml-100k"))
    result = run.take_turns("train", arguments.rounds, tables, tables)
    result["what"] = (
        "in-batch softmax, batch 256, history 50, mean pooling, embeddings 16, towers 256-128-64 (its example's); "
        "ours with logQ and masks, the peer in its mode in_batch_neg=True, loading in its own process; compiled: "
        "Trainer(compile=True), torch.compile of both towers"
    )
    print("  profile of our training step", flush=True)
    return result | {"profile": run.ours("profile", *tables)}


def quality(run: Runner, arguments: argparse.Namespace) -> dict:
    """Seconds to the peer's best Hit@100, and to the quality of RecBole's SASRec."""
    tables = ("--tables", saved_tables("ml-100k"))
    with shared.step(f"  torch-rechub, its example's point-wise training, at most {arguments.peer_seconds} s"):
        point_wise = run.rechub(
            "quality", *tables, "--neg-ratio", 3, "--seconds", arguments.peer_seconds, "--epochs", 30
        )
    with shared.step(f"  torch-rechub, its in-batch mode, at most {arguments.peer_seconds} s"):
        in_batch = run.rechub("quality", *tables, "--seconds", arguments.peer_seconds, "--epochs", 30)
    with shared.step("  ours to that Hit@100"):
        target = json.dumps(
            {"hit@100": max(PEER_BEST_HIT_100, *(r["best"]["hit@100"] for r in (point_wise, in_batch)))}
        )
        ours = run.ours("quality", *tables, "--model", arguments.model, "--target", target)
    result = {
        "threads": run.threads,
        "peer": RECHUB,
        "peer_best_hit@100_known": PEER_BEST_HIT_100,
        "peer_seconds_known": 300,
        "theirs": [point_wise, in_batch],
        "ours": ours,
    }
    sasrec = shared.read_results(arguments.out).get("sasrec")
    if sasrec and not report.still_improving(sasrec):
        wanted = {name: sasrec["test"][name] for name in ("hit@10", "hit@100", "ndcg@10")}
        with shared.step("  ours to the quality of RecBole's SASRec, three seeds each"):
            options = ("--seeds", 3, "--epochs", 3, 4, 6, 8, 10, "--target", json.dumps(wanted))
            result["to_sasrec"] = run.ours("quality", *tables, "--model", arguments.model, *options)
    else:
        print("  no fully trained SASRec to compare with: run --only sasrec first", flush=True)
    return result


def evaluate(run: Runner, arguments: argparse.Namespace) -> dict:
    """All vectors and the evaluation of every test user."""
    tables = ("--tables", saved_tables("ml-100k"))
    result = run.take_turns("evaluate", arguments.rounds, tables, tables)
    result["what"] = (
        "ours: all vectors, then the exact rank of each test movie among all candidates, seen ones removed; the peer: "
        "inference_embedding of both towers, its Annoy with 10 trees, top 100, topk_metrics, seen ones left in"
    )
    return result


def serve(run: Runner, arguments: argparse.Namespace) -> dict:
    """One user's answer, raw ids to titles, on one core; ours in a process that cannot import torch."""
    from dssm_helpers.serving import export_bundle
    from dssm_helpers.workspace import Workspace

    workspace = Workspace("ml-100k", progress=False)
    data = workspace.data
    movie_ids = data.vocabularies["movie_id"].values
    with tempfile.TemporaryDirectory() as folder:
        bundle = export_bundle(Path(folder) / "bundle", workspace.trained("dssm")[0], data, workspace.split.train)
        requests = Path(folder) / "requests.json"
        requests.write_text(
            json.dumps(
                [
                    {
                        "user_id": int(data.vocabularies["user_id"].values[data.user[position] - 2]),
                        "history": movie_ids[data.history(position)[-50:] - 2].tolist(),
                    }
                    for position in workspace.split.test[:500]
                ]
            ),
            encoding="utf-8",
        )
        options = ("--requests", requests, "--repeats", 2000)
        result = run.take_turns(
            "serve",
            arguments.rounds,
            ("--bundle", bundle, *options),
            ("--tables", saved_tables("ml-100k"), *options),
        )
    result["what"] = (
        "ours: Recommender.recommend with an exact index; the peer has no serving route from raw ids, so it is "
        "assembled from its parts: encoding, its user tower in torch, its Annoy, seen ones dropped, titles"
    )
    return result


def sasrec(run: Runner, arguments: argparse.Namespace) -> dict:
    """RecBole's SASRec, trained once, ranked by our evaluation; leaves its test ranks in sasrec_ranks.json."""
    python = environment("recbole")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "sasrec.json"
        command = [str(python), "-W", "ignore", str(shared.HERE / "peer_recbole.py"), "--out", str(out)]
        command += ["--seconds", str(arguments.sasrec_seconds), "--threads", str(run.threads)]
        subprocess.run(command, check=True, env=run.environ)
        return keep_sasrec(out)


def keep_sasrec(path: Path) -> dict:
    """Put the test ranks into sasrec_ranks.json; the rest is the section."""
    result = json.loads(path.read_text(encoding="utf-8"))
    ranks = result.pop("test_ranks")
    note = "rank of each user's test movie, users in order of id (= split_by_time(data).test); ties count half"
    with shared.write_atomically(SASREC_RANKS) as temporary:
        finished = not report.still_improving(result)
        content = {"model": "SASRec, recbole 1.2.1", "dataset": "ml-100k", "fully_trained": finished, "note": note}
        text = json.dumps(content | {"test": ranks})
        temporary.write_text(text + "\n", encoding="utf-8")
    return result


PARTS = {f.__name__: f for f in (prep, train, evaluate, serve, quality, sasrec)}
DEFAULT = [name for name in PARTS if name != "sasrec"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", choices=[*PARTS, "eval"], default=DEFAULT, metavar="PART", help=", ".join(PARTS)
    )
    parser.add_argument("--out", type=Path, default=shared.RESULTS, help="default: benchmarks/results.json")
    parser.add_argument("--threads", type=int, default=1, help="threads of each side (default 1)")
    parser.add_argument("--rounds", type=int, default=3, help="how often both sides take turns (default 3)")
    parser.add_argument("--model", default="dssm", help="our recipe in the part quality (default dssm)")
    parser.add_argument("--peer-seconds", type=float, default=120, help="training limit of torch-rechub, each of two")
    parser.add_argument("--sasrec-seconds", type=float, default=600, help="training limit of RecBole's SASRec")
    arguments = parser.parse_args()
    run = Runner(arguments.threads)
    for part in arguments.only:
        part = "evaluate" if part == "eval" else part
        with shared.step(part):
            shared.merge_section(arguments.out, part, PARTS[part](run, arguments))
    print(report.write(arguments.out))


if __name__ == "__main__":
    main()
