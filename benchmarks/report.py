"""The tables of ``benchmarks/RESULTS.md`` and the README's table of peers, from ``benchmarks/results.json``.

    python benchmarks/report.py

The text of ``RESULTS.md`` is written by hand; between its markers stand the tables. What was not measured says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean, stdev
from typing import Any

import machine as shared

from dssm_helpers.course.runner import fill_block

Results = Mapping[str, Any]
Rows = list[dict[str, Any]]
HITS = ("hit@10", "hit@100", "ndcg@10")
PAGE = shared.HERE / "RESULTS.md"

# What the peer needs beside what we need: where the two figures are (see get), and how many times better ours must be
# and should be; of a latency (ms), how long ours may take.
ROWS = [
    ("training examples per second (towers compiled)", "/s",
     "train/theirs/examples_per_second", "train/ours/compiled_examples_per_second", 3, 6),
    ("training examples per second (not compiled, the course's default)", "/s",
     "train/theirs/examples_per_second", "train/ours/examples_per_second", 3, 6),
    ("seconds of training to the peer's best Hit@100", "s", "reach/peer_best", "reach/ours", 20, 60),
    ("processor seconds of training to the quality of RecBole's SASRec ({})", "s",
     "reach/sasrec", "reach/to_sasrec", 16, 40),
    ("all vectors + evaluation of every test user", "s", "evaluate/theirs/seconds", "evaluate/ours/seconds", 3, 10),
    ("one user's answer, raw ids → titles, p99, one core", "ms", "serve/theirs/p99_ms", "serve/ours/p99_ms", 5, 1),
]  # fmt: skip


def preparation_rows() -> list[tuple]:
    """As :data:`ROWS`: two data sets, with and without the peer's negatives, time and memory."""
    rows = []
    for name, title, memory_goal in (("ml-100k", "ml-100k", 10), ("synthetic-1m", "1 M generated ratings", 50)):
        for side, how in (("theirs", "its example's 3 negatives"), ("theirs_without_negatives", "no negatives")):
            what, peer, ours = f"preparation of {title} ({how})", f"prep/{name}/{side}", f"prep/{name}/ours"
            rows.append((f"{what}: time", "s", f"{peer}/seconds", f"{ours}/seconds", 50, 200))
            memory = [f"{where}/mib_above_imports" for where in (peer, ours)]
            rows.append((f"{what}: memory", "MiB", *memory, 10, memory_goal))
    return rows


def get(results: Results, path: str) -> Any:
    """``results["a"]["b"]`` for ``"a/b"``, ``None`` where something on the way is missing."""
    value: Any = results
    for key in path.split("/"):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def sasrec_runs(results: Results) -> list[Results]:
    """RecBole's SASRec by seed; none unless every one ended by its patience: one still improving is no yardstick."""
    runs = list((get(results, "sasrec/runs") or {}).values())
    return runs if all(run["stopped_by"] == "patience" for run in runs) else []


def reach(results: Results) -> dict[str, float]:
    """Seconds of training to two qualities; infinite where no run of ours got there."""
    found, quality, sasrec = {}, results.get("quality", {}), sasrec_runs(results)
    if "theirs" in quality:  # to the target, or to the best it came to
        best = max(quality["theirs"], key=lambda peer: peer["best"]["hit@100"])
        there = [e for e in best["curve"] if e["hit@100"] >= quality["ours"]["target"]["hit@100"]]
        found["peer_best"] = (there or [best["best"]])[0]["seconds"]
        found["ours"] = soonest(quality["ours"], "seconds")
    if sasrec:
        found["sasrec"] = fmean(run["cpu_seconds_to_best"] for run in sasrec)
        if "to_sasrec" in results:
            found["to_sasrec"] = soonest(results["to_sasrec"], "cpu_seconds")
    return found


def soonest(ours: Results, clock: str) -> float:
    """Of the first run that reached its target."""
    return next((run[clock] for run in ours["runs"] if run["reached"]), math.inf)


def how_trained(results: Results) -> str:
    """For SASRec's row: how many seeds and epochs, and what ended them."""
    if not (epochs := [run["epoch"] for run in sasrec_runs(results)]):
        return "not trained to its end"
    return f"mean of {len(epochs)} seeds, best at epoch {min(epochs)} to {max(epochs)}, ended by patience"


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
    """``goal met``, ``at least met``, ``not met`` or ``not measured``."""
    if value is None:
        return "not measured"
    return "goal met" if value >= goal else "at least met" if value >= at_least else "**not met**"


def fast(results: Results) -> Rows:
    """The first table: what the peer needs, what we need, the ratio, the two marks, and whether they are met."""
    results = {**results, "reach": reach(results)}
    rows = []
    for what, unit, peer_path, ours_path, at_least, goal in preparation_rows() + ROWS:
        peer, ours = get(results, peer_path), get(results, ours_path)
        ratio = None if peer is None or ours is None else ours / peer if unit == "/s" else peer / ours
        mark = "≤ {:g} ms" if unit == "ms" else "{:g}×"
        rows.append({
            "against the peer": what.format(how_trained(results)),
            "peer": show(peer, unit),
            "ours": show(ours, unit),
            "ratio": f"{ratio:.3g}×" if ratio else "–",
            "at least": mark.format(at_least),
            "goal": mark.format(goal),
            "": verdict(ours and goal / ours, goal / at_least, 1) if unit == "ms" else verdict(ratio, at_least, goal),
        })  # fmt: skip
    return rows


def behind(results: Results) -> Rows:
    """Everything else that was timed of both sides, or of ours alone."""
    rows = []
    for section in ("train", "evaluate", "serve"):
        for name, ours in (get(results, f"{section}/ours") or {}).items():
            peer = get(results, f"{section}/theirs/{name}")
            rows.append({"behind it": f"{section}: {name.replace('_', ' ')}", "peer": peer, "ours": ours})
    return rows


def quality(results: Results) -> Rows:
    """Quality and the seconds of training it took."""
    found = get(results, "quality/theirs") or []
    rows = [{"model": f"torch-rechub DSSM, {p['mode']}", "epochs": p["best"]["epoch"], **p["best"]} for p in found]
    for path in ("quality/ours", "to_sasrec"):
        for run in get(results, f"{path}/runs") or []:
            rows.append({"model": f"ours, {get(results, path)['model']}, {run['seeds']} seed(s)", **run})
    return [{name: row.get(name) for name in ("model", "epochs", "seconds", "cpu_seconds", *HITS)} for row in rows]


def against(results: Results) -> Rows:
    """The course's model minus others, with its interval; above where the whole interval is above zero."""
    rows = []
    for other in get(results, "against/others") or []:
        gaps = {name: "{:+.3f} [{:+.3f}, {:+.3f}]".format(*other[name]) for name in HITS}
        above = ", ".join(name for name in HITS if other[name][1] > 0) or "none"
        rows.append({"minus": f"{other['name']}, {other['seeds']} seed(s)", **gaps, "above on": above})
    return rows


def sasrec(results: Results) -> Rows:
    """Every seed of RecBole's SASRec, and their mean with the sample standard deviation."""
    columns = {"validation Hit@10": "validation/hit@10", "test Hit@10": "test/hit@10", "test Hit@100": "test/hit@100"}
    columns |= {"test NDCG@10": "test/ndcg@10", "processor seconds to it": "cpu_seconds_to_best"}
    rows = []
    for seed, run in (get(results, "sasrec/runs") or {}).items():
        ended = f"epoch {run['epoch']} of {run['epochs_run']}, ended by {run['stopped_by']}"
        found = {name: get(run, path) for name, path in columns.items()}
        rows.append({"seed": seed, "best": ended, **found, "threads": run["threads"]})
    if len(rows) > 1:
        values = {name: [row[name] for row in rows] for name in columns}
        spread = {name: f"{fmean(found):.3f} ± {stdev(found):.3f}" for name, found in values.items()}
        rows.append({"seed": f"mean of {len(rows)}", "best": "", **spread})
    return rows


def profile(results: Results) -> Rows:
    """Where the time of one training step of the default model goes."""
    if not (found := get(results, "train/profile")):
        return []
    step = {"operator": f"**one step, {found['step_milliseconds']:.1f} ms**", "share of the step": "100 %"}
    product = f"matrix products at their peak would take {found['share_of_peak']:.0%}"
    return [step, {"operator": product}, *found["operators"]]


def where(results: Results) -> Rows:
    """When and where each section was measured."""
    return [{"section": name, **section["machine"]} for name, section in sorted(results.items())]


def table(rows: Rows) -> str:
    """Rows as a Markdown table; floats get three significant digits, ``None`` a dash."""
    if not rows:
        return "not measured"
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([cell(row.get(column)) for column in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value).replace("|", "\\|")


def render(page: str, results: Results) -> str:
    """``RESULTS.md`` with its tables filled."""
    for rows in (fast, behind, quality, against, sasrec, profile, where):
        page = fill_block(page, rows.__name__, table(rows(results)))
    return page


def write() -> None:
    """Fill both pages from the stored results, and print the first table."""
    results = shared.read_json(shared.RESULTS)
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8")
    readme, first = shared.ROOT / "README.md", table(fast(results))
    readme.write_text(fill_block(readme.read_text(encoding="utf-8"), "benchmarks", first), encoding="utf-8")
    print(first)


if __name__ == "__main__":
    shared.command_line(__doc__).parse_args()
    write()
