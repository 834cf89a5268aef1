"""Fill the tables of ``benchmarks/RESULTS.md``, and the README's, from ``benchmarks/results.json``.

Text is written in those pages; only what stands between their markers comes from here. What was not measured says so.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import machine as shared

from dssm_helpers.course.runner import fill_block

Results = Mapping[str, Any]
HITS = ("hit@10", "hit@100", "ndcg@10")


@dataclass(frozen=True)
class Row:
    """What the peer needs beside what we need.

    Args:
        peer, ours: where the two figures are, see :func:`get`.
        at_least, goal: of the ratio; of a latency (``ms``), how long ours may take.
    """

    what: str
    unit: str
    peer: str
    ours: str
    at_least: float
    goal: float


ROWS = [
    *(
        Row(f"preparation of {title} ({how}): {what}", unit, f"prep/{name}/{side}/{key}", f"prep/{name}/ours/{key}", *marks)
        for name, title, memory_goal in (("ml-100k", "ml-100k", 10), ("synthetic-1m", "1 M generated ratings", 50))
        for side, how in (("theirs", "its example's 3 negatives"), ("theirs_without_negatives", "no negatives"))
        for what, unit, key, marks in (
            ("time", "s", "seconds", (50, 200)),
            ("memory", "MiB", "mib_above_imports", (10, memory_goal)),
        )
    ),
    *(
        Row(f"training examples per second ({how})", "/s", "train/theirs/examples_per_second", f"train/ours/{key}", 3, 6)
        for how, key in (
            ("towers compiled", "compiled_examples_per_second"),
            ("not compiled, the course's default", "examples_per_second"),
        )
    ),
    Row("seconds of training to the peer's best Hit@100", "s", "reach/peer_best", "reach/ours", 20, 60),
    Row("seconds of training to the quality of RecBole's SASRec ({})", "s", "reach/sasrec", "reach/to_sasrec", 16, 40),
    Row("all vectors + evaluation of every test user", "s", "evaluate/theirs/seconds", "evaluate/ours/seconds", 3, 10),
    Row("one user's answer, raw ids → titles, p99, one core", "ms", "serve/theirs/p99_ms", "serve/ours/p99_ms", 5, 1),
]  # fmt: skip


def get(results: Results, path: str) -> Any:
    """``results["a"]["b"]`` for ``"a/b"``, ``None`` where something on the way is missing."""
    value: Any = results
    for key in path.split("/"):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def finished(sasrec: Results | None) -> bool:
    """Whether every run was ended by its patience: a SASRec that was still improving is no yardstick."""
    return bool(sasrec) and all(run["stopped_by"] == "patience" for run in sasrec["runs"].values())


def mean(sasrec: Results, path: str) -> float:
    """Of a figure over the runs."""
    return fmean(get(run, path) for run in sasrec["runs"].values())


def reach(results: Results) -> dict[str, float]:
    """Seconds of training to two qualities; infinite where no run of ours got there."""
    found, quality, sasrec = {}, results.get("quality", {}), results.get("sasrec")
    if "theirs" in quality:  # to the target, or to the best it came to
        best = max(quality["theirs"], key=lambda peer: peer["best"]["hit@100"])
        there = [e for e in best["curve"] if e["hit@100"] >= quality["ours"]["target"]["hit@100"]]
        found["peer_best"] = (there or [best["best"]])[0]["seconds"]
    if finished(sasrec):
        found["sasrec"] = mean(sasrec, "seconds_to_best")
    for name in ("ours", *(["to_sasrec"] if finished(sasrec) else [])):
        if name in quality:
            found[name] = next((run["seconds"] for run in quality[name]["runs"] if run["reached"]), math.inf)
    return found


def how_trained(sasrec: Results | None) -> str:
    """For its row: how many seeds and epochs, and what ended them."""
    if not finished(sasrec):
        return "not trained to its end"
    runs = sasrec["runs"].values()
    epochs = sorted(run["epoch"] for run in runs)
    return f"mean of {len(runs)} seeds, best at epoch {epochs[0]} to {epochs[-1]}, ended by patience"


def show(value: float | None, unit: str) -> str:
    """A figure with its unit."""
    if value is None or value == math.inf:
        return "–" if value is None else "not reached"
    if unit == "s" and value < 1:
        value, unit = 1e3 * value, "ms"
    if unit == "MiB" and value >= 1024:
        value, unit = value / 1024, "GiB"
    return f"{value:,.0f}" if unit == "/s" else f"{value:,.0f} {unit}" if value >= 1000 else f"{value:.3g} {unit}"


def verdict(value: float | None, at_least: float, goal: float) -> str:
    """``goal met``, ``at least met``, ``not met`` or ``not measured``; a goal below ``at least`` is an upper limit."""
    if value is None:
        return "not measured"
    sign = 1 if goal >= at_least else -1
    return "goal met" if sign * value >= sign * goal else "at least met" if sign * value >= sign * at_least else "**not met**"


def fast(results: Results) -> list[dict[str, Any]]:
    """The first table: what the peer needs, what we need, the ratio, the two marks, and whether they are met."""
    results = {**results, "reach": reach(results)}
    rows = []
    for row in ROWS:
        peer, ours = get(results, row.peer), get(results, row.ours)
        ratio = None if peer is None or ours is None else ours / peer if row.unit == "/s" else peer / ours
        latency = row.unit == "ms"
        marks = [f"≤ {mark:g} ms" if latency else f"{mark:g}×" for mark in (row.at_least, row.goal)]
        rows.append({
            "against the peer": row.what.format(how_trained(results.get("sasrec"))),
            "peer": show(peer, row.unit),
            "ours": show(ours, row.unit),
            "ratio": f"{ratio:.3g}×" if ratio else "–",
            "at least": marks[0],
            "goal": marks[1],
            "": verdict(ours if latency else ratio, row.at_least, row.goal),
        })  # fmt: skip
    return rows


def details(results: Results) -> list[dict[str, Any]]:
    """What is less than a promise: medians beside the 99th percentile, processor time, what compiling costs."""
    ...


def against_seconds(results: Results) -> list[dict[str, Any]]:
    """Quality and the seconds of training it took."""
    quality = results["quality"]
    found = [(f"torch-rechub DSSM, {peer['mode']}", {"epochs": peer["best"]["epoch"], **peer["best"]}) for peer in quality["theirs"]]
    for name in ("ours", "to_sasrec"):
        for run in quality.get(name, {}).get("runs", []):
            found.append((f"ours, {quality[name]['model']}, {run['seeds']} seed(s)", run))
    return [{"model": model, **{key: run[key] for key in ("epochs", "seconds", *HITS)}} for model, run in found]


def sasrec_runs(results: Results) -> list[dict[str, Any]]:
    """Every seed of RecBole's SASRec, and their mean with the sample standard deviation."""
    runs = results["sasrec"]["runs"]
    columns = {"validation Hit@10": "validation/hit@10"}
    columns |= {f"test {label}": f"test/{key}" for label, key in (("Hit@10", "hit@10"), ("Hit@100", "hit@100"), ("NDCG@10", "ndcg@10"), ("MRR", "mrr"))}
    columns |= {"seconds to it": "seconds_to_best", "processor seconds": "cpu_seconds_to_best", "threads": "threads"}
    ...
