"""Write ``benchmarks/RESULTS.md`` from ``benchmarks/results.json``: what was measured, beside what was promised.

The README's table is refreshed as well.

Sections that are missing are named as not measured; nothing is made up. Run peers.py first.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import machine as shared

from dssm_helpers.course import fill_block

NOT_MEASURED = "not measured"


def verdict(value: float | None, at_least: float, goal: float, *, smaller_is_better: bool = False) -> str:
    """``goal met``, ``at least met``, ``not met`` or ``not measured``."""
    if value is None:
        return NOT_MEASURED
    sign = -1 if smaller_is_better else 1
    if sign * value >= sign * goal:
        return "goal met"
    return "at least met" if sign * value >= sign * at_least else "**not met**"


def _get(results: Mapping[str, Any], *path: str) -> Any:
    """``results[a][b]…``, ``None`` where something on the way is missing."""
    value: Any = results
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _ratio(larger: float | None, smaller: float | None) -> float | None:
    return None if larger is None or not smaller else larger / smaller


def _seconds(value: float | None) -> str | None:
    if value is None:
        return None
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"


def _memory(mib: float | None) -> str | None:
    if mib is None:
        return None
    return f"{mib / 1024:.3g} GiB" if mib >= 1024 else f"{mib:.3g} MiB"


def _factor(value: float | None) -> str | None:
    return None if value is None else f"{value:.3g}×"


def reached(section: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The shortest training run that reached its target, if one did."""
    return next((run for run in (section or {}).get("runs", []) if run["reached"]), None)


def still_improving(sasrec: Mapping[str, Any]) -> bool:
    """Whether its time ran out at its best epoch so far: such a SASRec is no yardstick."""
    return sasrec["stopped_by"] == "time limit" and sasrec["epoch"] == sasrec["epochs_run"]


def fast_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The table "Fast": what the peer needs, what we need, the ratio, the two marks, and whether they are met."""
    rows = []

    def row(
        what: str, peer: Any, ours: Any, ratio: float | None, at_least: float, goal: float, *, failed: bool = False
    ) -> None:
        ours = "not reached" if failed else ours
        marks = {"at least": f"{at_least:g}×", "goal": f"{goal:g}×"}
        marks[""] = "**not met**" if failed else verdict(ratio, at_least, goal)
        rows.append({"against the peer": what, "peer": peer, "ours": ours, "ratio": _factor(ratio)} | marks)

    for name, title, memory_goal in (("ml-100k", "ml-100k", 10), ("synthetic-1m", "1 M generated ratings", 50)):
        for side, how in (("theirs", "its example's 3 negatives"), ("theirs_without_negatives", "no negatives")):
            theirs, ours = _get(results, "prep", name, side), _get(results, "prep", name, "ours")
            a, b = _get(theirs, "seconds"), _get(ours, "seconds")
            row(f"preparation of {title} ({how}): time", _seconds(a), _seconds(b), _ratio(a, b), 50, 200)
            a, b = _get(theirs, "mib_above_imports"), _get(ours, "mib_above_imports")
            row(f"preparation of {title} ({how}): memory", _memory(a), _memory(b), _ratio(a, b), 10, memory_goal)
    a = _get(results, "train", "theirs", "examples_per_second")
    for name, how in (("compiled_", "towers compiled"), ("", "not compiled, the course's default")):
        b = _get(results, "train", "ours", f"{name}examples_per_second")
        row(f"training examples per second ({how})", a, b, _ratio(b, a), 3, 6)
    quality = results.get("quality") or {}
    run = reached(quality.get("ours"))
    peer = max(quality.get("theirs", []), key=lambda p: p["best"]["hit@100"], default=None)
    hit = _get(quality, "ours", "target", "hit@100")
    enough = [e["seconds"] for e in _get(peer, "curve") or [] if e["hit@100"] >= hit]
    a, b = enough[0] if enough else _get(peer, "best", "seconds"), _get(run, "seconds")
    shown = None if a is None else _seconds(a) + ("" if enough else f" to {peer['best']['hit@100']:.3f}")
    failed = run is None and "ours" in quality
    title = "seconds of training to the peer's best Hit@100" + (f" ({hit:.3f})" if hit else "")
    row(title, shown, _seconds(b), _ratio(a, b), 20, 60, failed=failed)
    run = reached(quality.get("to_sasrec"))
    failed = run is None and "to_sasrec" in quality
    sasrec = results.get("sasrec")
    if sasrec and still_improving(sasrec):  # reaching what it had by then proves nothing
        sasrec, run, failed = None, None, False
    a, b = _get(sasrec, "seconds_to_best"), _get(run, "seconds")
    title = "seconds of training to the quality of RecBole's SASRec"
    row(title, _seconds(a), _seconds(b), _ratio(a, b), 16, 40, failed=failed)
    a, b = (_get(results, "evaluate", side, "seconds") for side in ("theirs", "ours"))
    row("all vectors + evaluation of every test user", _seconds(a), _seconds(b), _ratio(a, b), 3, 10)
    a, b = (_get(results, "serve", side, "p99_ms") for side in ("theirs", "ours"))
    rows.append(
        {
            "against the peer": "one user's answer, raw ids → titles, p99, one core",
            "peer": None if a is None else f"{a:.3g} ms",
            "ours": None if b is None else f"{b:.3g} ms",
            "ratio": _factor(_ratio(a, b)),
            "at least": "≤ 5 ms",
            "goal": "≤ 1 ms",
            "": verdict(b, 5, 1, smaller_is_better=True),
        }
    )
    return rows


def compiling_pays(ours: Mapping[str, Any]) -> str | None:
    """What compiling the towers costs and saves, in a sentence; ``None`` where it was not measured."""
    if "compiled_examples_per_second" not in ours:
        return None
    costs = ours["compiled_seconds_to_start"]
    text = f"compiling took {costs:.0f} s before the first step"
    saved = 1 / ours["examples_per_second"] - 1 / ours["compiled_examples_per_second"]
    if saved > 0:
        text += f", which later steps have earned back after {costs / saved / 1e6:.1f} M training examples"
    gains = [
        ours[f"{name}compiled_examples_per_second"] / ours[f"{name}examples_per_second"]
        for name in ("course_pooling_", "default_")
    ]
    return (
        f"{text}; a compiled step with the course's three poolings at these widths is {gains[0]:.2f}× as fast, "
        f"one of the course's default model {gains[1]:.2f}×"
    )


def _peer_quality(results: Mapping[str, Any]) -> str:
    quality = results["quality"]
    rows = [
        {
            "model": f"torch-rechub DSSM, {peer['mode']}",
            "epochs": peer["best"]["epoch"],
            "seconds": peer["best"]["seconds"],
            **{k: f"{peer['best'][k]:.3f}" for k in ("hit@10", "hit@100", "ndcg@10")},
        }
        for peer in quality["theirs"]
    ]
    for name in ("ours", "to_sasrec"):
        for run in quality.get(name, {}).get("runs", []):
            seeds = "" if run["seeds"] == 1 else f", mean of {run['seeds']} seeds"
            rows.append(
                {
                    "model": f"ours, {quality[name]['model']}{seeds}",
                    "epochs": run["epochs"],
                    "seconds": run["seconds"],
                    **{k: f"{run[k]:.3f}" for k in ("hit@10", "hit@100", "ndcg@10")},
                }
            )
    note = (
        "The peer's rows are its best epoch *on test* within the time limit of this run, and its training set includes "
        f"our validation movies: both favour it. {quality['peer_best_hit@100_known']} Hit@100 in "
        f"{quality['peer_seconds_known']} s is the best that tuning it on test had found beforehand, on another day; "
        "the table above takes this run's seconds. Ours are whole runs of that many epochs; less than one is a pass "
        "over that share of the training rows."
    )
    return f"{note}\n\n{shared.markdown_table(rows)}"


def _sasrec(results: Mapping[str, Any]) -> str:
    sasrec = results["sasrec"]
    row = {
        "epoch (by validation Hit@10)": f"{sasrec['epoch']} of {sasrec['epochs_run']}, {sasrec['stopped_by']}",
        "validation Hit@10": f"{sasrec['validation']['hit@10']:.3f}",
        **{
            f"test {label}": f"{sasrec['test'][key]:.3f}"
            for label, key in (("Hit@10", "hit@10"), ("Hit@100", "hit@100"), ("NDCG@10", "ndcg@10"), ("MRR", "mrr"))
        },
        "seconds to it": sasrec["seconds_to_best"],
        "processor seconds": sasrec["cpu_seconds_to_best"],
        "threads": sasrec["threads"],
    }
    settings = ", ".join(f"{k} {v}" for k, v in sasrec["settings"].items())
    text = f"RecBole 1.2.1, {settings}. Its scores went through our evaluation."
    if still_improving(sasrec):
        text += (
            " **Its time ran out while it was still improving**: this is not SASRec's quality, and nothing is compared "
            "with it. Run `peers.py --only sasrec` on an idle machine, with more `--threads` or `--sasrec-seconds`."
        )
    return f"{text}\n\n{shared.markdown_table([row])}"


def _profile(results: Mapping[str, Any]) -> str:
    profile = results["train"]["profile"]
    text = (
        f"One training step of the default model (batch {profile['batch_size']}, {profile['parameters']:,} parameters, "
        f"{profile['threads']} thread(s)) takes {profile['step_milliseconds']:.2f} ms and needs "
        f"{profile['megaflop_per_step']:.0f} MFLOP in matrix products: {profile['gflops_achieved']:.1f} GFLOP/s, "
        f"**{profile['share_of_peak']:.0%}** of the {profile['gflops_peak']:.0f} GFLOP/s that a 2048 × 2048 product "
        "reached in the same process. Matrix products alone would therefore take "
        f"{profile['step_milliseconds'] * profile['share_of_peak']:.2f} ms; the rest goes where the profiler says:"
    )
    table = shared.markdown_table(profile["operators"], ["operator", "share of the step", "calls per step"])
    return f"{text}\n\n{table}"


def machine_row(section: str, described: Mapping[str, Any]) -> dict[str, Any]:
    """When and where a section was measured."""
    row = {
        "section": section,
        "date": described["date"],
        "machine": f"{described['cpu']}, {described['cores']} cores, {described['memory_gib']} GiB",
    }
    return row | {k: described[k] for k in ("system", "python", "torch", "numpy")}


def render(results: Mapping[str, Any]) -> str:
    """The whole page as Markdown."""
    page = [
        "# Measured against the peers",
        "Made by `python benchmarks/report.py` from `results.json`; [peers.py](peers.py) says how. Both sides ran on "
        "the same machine in the same run, one process per measurement, taking turns where both are timed (medians), "
        "with `OMP_WAIT_POLICY=PASSIVE`. MovieLens-100K (Harper & Konstan, 2015). Peers: torch-rechub 0.9.0, "
        "RecBole 1.2.1.",
        "## Fast",
        shared.markdown_table(fast_rows(results)),
    ]
    notes = [_get(results, part, "what") for part in ("train", "evaluate", "serve")]
    if "prep" in results:
        how = _get(results, "prep", "synthetic-1m", "theirs", "how")
        notes.append(
            "preparation: memory is the peak above the imports, the loaded tables included; ours counts the encoding "
            "of raw ids, the peer's does not; we draw negatives while training. The peer's million ratings: "
            f"{how or NOT_MEASURED}"
        )
    medians = [_get(results, "serve", side, "p50_ms") for side in ("theirs", "ours")]
    if all(medians):
        notes.append(f"one user's answer, median: {medians[0]:.2f} ms (peer) and {medians[1]:.2f} ms (ours)")
    rates = [_get(results, "train", side, "examples_per_cpu_second") for side in ("theirs", "ours")]
    if all(rates):
        notes.append(
            f"training per second of processor time (less disturbed by other work): {rates[0]:,.0f} and, not compiled, "
            f"{rates[1]:,.0f}, {rates[1] / rates[0]:.2f}×"
        )
    notes.append(compiling_pays(_get(results, "train", "ours") or {}))
    page.append("\n".join(f"- {note}" for note in notes if note))
    titles = (
        ("quality", "Quality against seconds", _peer_quality),
        ("sasrec", "RecBole's SASRec", _sasrec),
        ("train", "Where a training step's time goes", _profile),
    )
    for name, title, section in titles:
        page += [f"## {title}", section(results) if name in results else f"{NOT_MEASURED}: `peers.py --only {name}`"]
    measured = [machine_row(name, section["machine"]) for name, section in sorted(results.items())]
    if measured:
        page += ["## When and where", shared.markdown_table(measured)]
    return "\n\n".join(part for part in page if part) + "\n"


def write(results_path: Path, out: Path | None = None) -> str:
    """Write the page (default: ``RESULTS.md`` beside the results) and return the first table.

    The README quotes that table: where the project's own page is written, it follows.
    """
    results = shared.read_results(results_path)
    with shared.write_atomically(out or results_path.with_name("RESULTS.md")) as temporary:
        temporary.write_text(render(results), encoding="utf-8")
    table = shared.markdown_table(fast_rows(results))
    if results_path == shared.RESULTS and out is None:
        readme = shared.ROOT / "README.md"
        text = fill_block(readme.read_text(encoding="utf-8"), "benchmarks", table)
        with shared.write_atomically(readme) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=shared.RESULTS, help="default: benchmarks/results.json")
    parser.add_argument("--out", type=Path, help="default: RESULTS.md beside the results")
    arguments = parser.parse_args()
    print(write(arguments.results, arguments.out))


if __name__ == "__main__":
    main()
