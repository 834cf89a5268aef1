"""The tables of ``benchmarks/RESULTS.md`` and the README's table of peers, from ``results.json`` and ``load.json``.

    python benchmarks/report.py

The text of ``RESULTS.md`` is written by hand; between its markers stand the tables. What was not measured says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean
from typing import Any

import machine as shared

from dssm_helpers.course.runner import fill_block

Results = Mapping[str, Any]
Rows = list[dict[str, Any]]
HITS = ("hit@10", "hit@100", "ndcg@10")
PAGE = shared.HERE / "RESULTS.md"

# What the peer needs beside what we need: where the two figures are (see get), and how many times better ours must be
# and should be; of a latency (ms), how long ours may take. Of both data sets, with and without the peer's negatives:
PREPARATION = []
for _name, _title, _goal in (("ml-100k", "ml-100k", 10), ("synthetic-1m", "1 M generated ratings", 50)):
    for _side, _how in (("theirs", "its example's 3 negatives"), ("theirs_without_negatives", "no negatives")):
        _what, _paths = f"preparation of {_title} ({_how})", (f"prep/{_name}/{_side}", f"prep/{_name}/ours")
        PREPARATION += [
            (f"{_what}: time", "s", *(f"{path}/seconds" for path in _paths), 50, 200),
            (f"{_what}: memory", "MiB", *(f"{path}/mib_above_imports" for path in _paths), 10, _goal),
        ]
ROWS = [
    *PREPARATION,
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

    def soonest(section: str, clock: str) -> float:
        return next((run[clock] for run in get(results, section)["runs"] if run["reached"]), math.inf)

    found = {}
    if quality := results.get("quality"):
        best = max((peer["best"] for peer in quality["theirs"]), key=lambda best: best["hit@100"])
        found |= {"peer_best": best["seconds"], "ours": soonest("quality/ours", "seconds")}
    if runs := sasrec_runs(results):
        found["sasrec"] = fmean(run["cpu_seconds_to_best"] for run in runs)
        if "to_sasrec" in results:
            found["to_sasrec"] = soonest("to_sasrec", "cpu_seconds")
    return found


def show(value: float | None, unit: str) -> str:
    """A figure with its unit."""
    if value is None or value == math.inf:
        return "–" if value is None else "not reached"
    if unit == "s" and value < 1:
        value, unit = 1e3 * value, "ms"
    if unit == "MiB" and value >= 1024:
        value, unit = value / 1024, "GiB"
    return cell(value) if unit == "/s" else f"{cell(value)} {unit}"


def fast(results: Results) -> Rows:
    """The first table: what the peer needs, what we need, the ratio, the two marks, and whether they are met."""
    how, rows = "not trained to its end", []
    if epochs := [run["epoch"] for run in sasrec_runs(results)]:
        how = f"mean of {len(epochs)} seeds, best at epoch {min(epochs)} to {max(epochs)}, ended by patience"
    results = {**results, "reach": reach(results)}
    for what, unit, peer_path, ours_path, at_least, goal in ROWS:
        peer, ours = get(results, peer_path), get(results, ours_path)
        ratio = None if peer is None or ours is None else ours / peer if unit == "/s" else peer / ours
        judged, mark, sign = (ours, "≤ {:g} ms", -1) if unit == "ms" else (ratio, "{:g}×", 1)
        marks = {"goal met": goal, "at least met": at_least, "**not met**": -sign * math.inf}
        met = [verdict for verdict, limit in marks.items() if judged is not None and sign * judged >= sign * limit]
        rows.append({
            "against the peer": what.format(how),
            "peer": show(peer, unit),
            "ours": show(ours, unit),
            "ratio": f"{ratio:.3g}×" if ratio else "–",
            "at least": mark.format(at_least),
            "goal": mark.format(goal),
            "": met[0] if met else "not measured",
        })  # fmt: skip
    return rows


def quality(results: Results) -> Rows:
    """Quality on test and the seconds of training it took."""
    found = get(results, "quality/theirs") or []
    rows = [{"model": f"torch-rechub DSSM, {p['mode']}", "epochs": p["best"]["epoch"], **p["best"]} for p in found]
    for seed, run in (get(results, "sasrec/runs") or {}).items():
        about = {"model": f"RecBole SASRec, seed {seed}, ended by {run['stopped_by']}", "epochs": run["epoch"]}
        clocks = {name: run.get(f"{name}_to_best") for name in ("seconds", "cpu_seconds")}
        rows.append({**about, **clocks, **run.get("test", {})})
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


def load(results: Results) -> Rows:
    """What a recommender answered that was asked, enlarged and exchanged at once."""
    found = {name: value for name, value in results["load"].items() if name != "machine"}
    outcomes = ", ".join(f"{kind} {number:,}" for kind, number in found.pop("kinds").items())
    found |= {"answers by what they rest on, and refusals": outcomes}
    return [{"under load": name.replace("_", " "), "": value} for name, value in found.items()]


def where(results: Results) -> Rows:
    """When and where each section was measured."""
    return [{"section": name, **section["machine"]} for name, section in sorted(results.items())]


def table(rows: Rows) -> str:
    """Rows as a Markdown table."""
    if not rows:
        return "not measured"
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([cell(row.get(name)) for name in rows[0]] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(value: Any) -> str:
    """Floats with three significant digits, ``None`` as a dash."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return "–" if value is None else str(value)


def write() -> None:
    """Fill both pages from the stored results, and print the first table."""
    results = shared.read_json(shared.RESULTS)
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8")
    readme, first = shared.ROOT / "README.md", table(fast(results))
    readme.write_text(fill_block(readme.read_text(encoding="utf-8"), "benchmarks", first), encoding="utf-8")
    print(first)


def render(page: str, results: Results) -> str:
    """``RESULTS.md`` with its tables filled."""
    results = {**results, "load": shared.read_json(shared.HERE / "load.json")}
    for rows in (fast, quality, against, load, where):
        page = fill_block(page, rows.__name__, table(rows(results)))
    return page


if __name__ == "__main__":
    shared.command_line(__doc__).parse_args()
    write()
