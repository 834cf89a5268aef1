"""The benchmarks' shared tools, their command lines, the report, and the committed results."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"
SCRIPTS = sorted(BENCHMARKS.glob("*.py"))
sys.path.insert(0, str(BENCHMARKS))

import machine  # noqa: E402
import our_side  # noqa: E402
import peers  # noqa: E402
import report  # noqa: E402

HOST = {
    "date": "2020-02-02",
    "cpu": "A CPU",
    "cores": 2,
    "memory_gib": 4.0,
    "system": "Linux",
    "python": "3.11",
    "torch": "2",
    "numpy": "2",
}


# -- shared tools ----------------------------------------------------------------------------------------------------


def test_machine_names_everything():
    described = machine.machine()
    assert set(described) == set(HOST)
    assert all(described[key] for key in ("date", "cpu", "cores", "python", "torch", "numpy"))
    assert described["torch"] == machine.version_of("torch")
    assert machine.version_of("no-such-package") is None


def test_merge_replaces_one_section_and_keeps_the_others(tmp_path):
    path = tmp_path / "results.json"
    machine.merge_section(path, "a", {"x": 1})
    machine.merge_section(path, "b", {"x": np.float32(0.5)})
    machine.merge_section(path, "a", {"y": 2})
    results = machine.read_results(path)
    assert set(results) == {"a", "b"}
    assert "x" not in results["a"]
    assert results["a"]["y"] == 2
    assert results["b"]["x"] == 0.5
    assert results["a"]["machine"]["date"]


def test_writers_at_the_same_time_lose_nothing(tmp_path):
    path = tmp_path / "results.json"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: machine.merge_section(path, f"part{i}", {"machine": HOST, "i": i}), range(24)))
    results = machine.read_results(path)
    assert {name: section["i"] for name, section in results.items()} == {f"part{i}": i for i in range(24)}


def test_a_failed_merge_leaves_the_old_file(tmp_path):
    path = tmp_path / "results.json"
    machine.merge_section(path, "a", {"x": 1})
    before = path.read_bytes()
    with pytest.raises((TypeError, ValueError)):
        machine.merge_section(path, "a", {"x": object()})
    assert path.read_bytes() == before


def test_markdown_table():
    table = machine.markdown_table([{"a": 0.12345, "b": None, "c": 1234567, "d": "x|y"}, {"a": 23456.7}])
    assert table.splitlines() == [
        "| a | b | c | d |",
        "| --- | --- | --- | --- |",
        "| 0.123 | – | 1,234,567 | x\\|y |",
        "| 23,457 | – | – | – |",
    ]
    assert machine.markdown_table([{"a": 1, "b": 2}], ["b"]).splitlines()[0] == "| b |"
    with pytest.raises(ValueError, match="at least one row"):
        machine.markdown_table([])


def test_latency_and_best_of():
    assert machine.latency([i / 1000 for i in range(1, 102)]) == {
        "p50_ms": pytest.approx(51),
        "p99_ms": pytest.approx(100),
        "requests": 101,
    }
    timed = machine.best_of(lambda: sum(range(1000)), 3)
    assert 0 < timed["best"] <= timed["median"]


@pytest.mark.parametrize(
    ("spent", "done", "limit", "expected"), [(0, 0, 1, True), (500, 5, 600, True), (501, 5, 600, False)]
)
def test_a_limit_is_not_overrun(spent, done, limit, expected):
    assert machine.room_for_another(spent, done, limit) is expected


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is reset through Linux' /proc")
def test_peak_memory_sees_what_was_freed():
    machine.reset_peak()
    before = machine.resident_memory()
    block = np.ones(8_000_000)  # 61 MiB
    del block
    assert machine.peak_memory() - before > 50 * 2**20


def test_both_sides_read_the_same_tables(tables, data, tmp_path):
    path = tmp_path / "tables.npz"
    our_side.save_tables(tables, path)
    again, split, _ = our_side.prepare(our_side.load_tables(path))
    assert again.fingerprint() == data.fingerprint()
    assert again.titles == data.titles
    assert len(split.test) == len(np.unique(tables.ratings["user_id"])) - split.n_users_without_test


def test_medians_over_rounds():
    runs = [{"seconds": s, "users": 7} for s in (3.0, 1.0, 2.0)]
    assert peers._medians(runs) == {"seconds": 2.0, "users": 7}


def test_sasrec_ranks_leave_the_section(tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "SASREC_RANKS", tmp_path / "ranks.json")
    source = tmp_path / "sasrec.json"
    section = {"stopped_by": "time limit", "epoch": 3, "epochs_run": 3}
    source.write_text(json.dumps(section | {"test_ranks": [1.0, 2.5]}), encoding="utf-8")
    assert peers.keep_sasrec(source) == section
    ranks = json.loads((tmp_path / "ranks.json").read_text(encoding="utf-8"))
    assert (ranks["test"], ranks["fully_trained"]) == ([1.0, 2.5], False)


# -- command lines ---------------------------------------------------------------------------------------------------


def test_every_script_answers_help():
    def help_of(script: Path) -> tuple[str, int, str]:
        done = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True)
        return script.name, done.returncode, done.stdout

    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(help_of, SCRIPTS))
    assert len(answers) >= 6
    bad = [name for name, status, text in answers if status or not text.startswith("usage:")]
    assert not bad, f"no help from {bad}"


# -- the report ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [(70, "goal met"), (60, "goal met"), (59, "at least met"), (20, "at least met"), (19.9, "**not met**"),
     (None, "not measured")],
)  # fmt: skip
def test_verdict(value, expected):
    assert report.verdict(value, 20, 60) == expected


@pytest.mark.parametrize(("value", "expected"), [(0.9, "goal met"), (3, "at least met"), (6, "**not met**")])
def test_verdict_where_less_is_better(value, expected):
    assert report.verdict(value, 5, 1, smaller_is_better=True) == expected


def test_an_empty_report_claims_nothing():
    page = report.render({})
    rows = report.fast_rows({})
    assert {row[""] for row in rows} == {"not measured"}
    assert len(rows) == 14
    assert "met |" not in page.replace("not measured |", "")


def _quality(reached: bool) -> dict:
    run = {"epochs": 1, "seeds": 1, "seconds": 2.0, "hit@10": 0.1, "hit@100": 0.5, "ndcg@10": 0.05, "reached": reached}
    best = {"epoch": 9, "seconds": 100.0, "hit@10": 0.1, "hit@100": 0.35, "ndcg@10": 0.04}
    return {
        "machine": HOST,
        "peer_seconds_known": 300,
        "peer_best_hit@100_known": 0.387,
        "theirs": [{"mode": "in-batch", "best": best, "curve": [best]}],
        "ours": {"model": "dssm", "target": {"hit@100": 0.387}, "runs": [run]},
    }


def test_report_of_a_few_sections():
    results = {
        "prep": {
            "machine": HOST,
            "ml-100k": {
                "theirs": {"seconds": 6.0, "mib_above_imports": 1024.0},
                "ours": {"seconds": 0.06, "mib_above_imports": 64.0},
            },
        },
        "serve": {"machine": HOST, "theirs": {"p99_ms": 3.0}, "ours": {"p99_ms": 0.5}},
        "quality": _quality(reached=True),
    }
    rows = {row["against the peer"]: row for row in report.fast_rows(results)}
    time = rows["preparation of ml-100k (its example's 3 negatives): time"]
    assert (time["peer"], time["ours"], time["ratio"], time[""]) == ("6 s", "60 ms", "100×", "at least met")
    assert rows["preparation of ml-100k (its example's 3 negatives): memory"]["ratio"] == "16×"
    assert rows["one user's answer, raw ids → titles, p99, one core"][""] == "goal met"
    soonest = rows["seconds of training to the peer's best Hit@100 (0.387)"]
    assert (soonest["peer"], soonest["ratio"], soonest[""]) == ("100 s to 0.350", "50×", "at least met")
    assert rows["training examples per second (towers compiled)"][""] == "not measured"
    page = report.render(results)
    assert "2020-02-02" in page
    assert "A CPU" in page


def test_training_rates_come_from_the_epochs_after_the_first():
    clocks = [(0.0, 0.0), (10.0, 8.0), (12.0, 9.0), (13.0, 10.0), (20.0, 11.0)]  # 10 s, then 2, 1 and 7
    assert machine.rates(clocks, rows=100) == {
        "examples_per_second": 50.0,
        "examples_per_cpu_second": 100.0,
        "seconds_to_start": 8.0,
    }


def test_what_compiling_costs_is_said_beside_what_it_gains():
    ours = {
        "examples_per_second": 20_000.0,
        "compiled_examples_per_second": 25_000.0,
        "compiled_seconds_to_start": 10.0,
    }
    ours |= {"course_pooling_examples_per_second": 10.0, "course_pooling_compiled_examples_per_second": 11.0}
    ours |= {"default_examples_per_second": 10.0, "default_compiled_examples_per_second": 12.0}
    assert "10 s before the first step" in report.compiling_pays(ours)
    assert "after 1.0 M training examples" in report.compiling_pays(ours)
    assert "1.10× as fast, one of the course's default model 1.20×" in report.compiling_pays(ours)
    assert "earned back" not in report.compiling_pays(ours | {"compiled_examples_per_second": 19_000.0})
    assert report.compiling_pays({}) is None


def test_a_target_that_no_run_reached_is_not_claimed():
    rows = report.fast_rows({"quality": _quality(reached=False)})
    (row,) = [row for row in rows if row["ours"] == "not reached"]
    assert (row["ratio"], row[""]) == (None, "**not met**")


@pytest.mark.parametrize(("epochs_run", "expected"), [(3, "not measured"), (4, "goal met")])
def test_a_sasrec_still_improving_is_no_yardstick(epochs_run, expected):
    sasrec = {"stopped_by": "time limit", "epoch": 3, "epochs_run": epochs_run, "seconds_to_best": 400.0}
    rows = report.fast_rows({"sasrec": sasrec, "quality": {"to_sasrec": _quality(reached=True)["ours"]}})
    (row,) = [row for row in rows if "SASRec" in row["against the peer"]]
    assert row[""] == expected


# -- what is committed -----------------------------------------------------------------------------------------------


def test_committed_results_render_and_say_where_they_are_from():
    results = machine.read_results()
    assert results, "benchmarks/results.json is missing: python benchmarks/peers.py"
    for name, section in results.items():
        assert section["machine"]["date"], name
        assert section["machine"]["cpu"], name
    page = report.render(results)
    assert page.count("\n| ") > 10
    assert (BENCHMARKS / "RESULTS.md").read_text(encoding="utf-8") == page, "run python benchmarks/report.py"


def test_committed_sasrec_ranks_give_the_reported_metrics():
    section = machine.read_results().get("sasrec")
    assert (section is None) == (not peers.SASREC_RANKS.exists())
    if section is not None:
        ranks = np.asarray(json.loads(peers.SASREC_RANKS.read_text(encoding="utf-8"))["test"])
        assert ranks.min() >= 1
        assert math.isclose((ranks <= 10).mean(), section["test"]["hit@10"])
        assert math.isclose((ranks <= 100).mean(), section["test"]["hit@100"])
