"""The benchmarks' shared tools, their command lines, the report, and the committed results."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import machine  # noqa: E402
import out_of_core  # noqa: E402
import peers  # noqa: E402
import report  # noqa: E402
import scaling  # noqa: E402
import task  # noqa: E402
import variants  # noqa: E402

from dssm_helpers.data import encode  # noqa: E402
from dssm_helpers.objectives import TrainingConfig  # noqa: E402
from dssm_helpers.recipes import Recipe  # noqa: E402

HOST = {"date": "2020-02-02", "cpu": "A CPU", "cores": 2, "memory_gib": 4.0, "system": "Linux", "python": "3.11"}
HOST |= {"torch": "2", "numpy": "2"}
PAGE = (BENCHMARKS / "RESULTS.md").read_text(encoding="utf-8")


def test_machine_names_everything_and_where_machines_differ_each_value_once():
    here = machine.machine()
    assert set(here) == set(HOST)
    assert all(here.values())
    both = machine.machines([{"machine": HOST}, {"machine": {**HOST, "cpu": "Another"}}, {"machine": HOST}])
    assert (both["cpu"], both["date"]) == ("A CPU and Another", "2020-02-02")


def test_merge_replaces_one_section_keeps_the_others_and_fails_whole(tmp_path):
    path = tmp_path / "results.json"
    for name, section in (("a", {"x": 1}), ("b", {"x": np.float32(0.5)}), ("a", {"y": 2})):
        machine.merge_section(path, name, section)
    results = machine.read_json(path)
    assert results["a"].pop("machine")["date"]
    assert (results["a"], results["b"]["x"]) == ({"y": 2}, 0.5)
    before = path.read_bytes()
    with pytest.raises((TypeError, ValueError)):
        machine.merge_section(path, "a", {"x": object()})
    assert path.read_bytes() == before


def test_peak_memory_sees_what_was_freed():
    found = machine.preparation(lambda: None, lambda _: np.ones(8_000_000).sum())  # 61 MiB
    assert found["mib_above_imports"] > 50


def test_both_sides_read_the_same_tables(tables, data, tmp_path):
    path = task.save_tables(tables, tmp_path / "tables.npz")
    again, split, _ = task.prepare(task.load_tables(path))
    assert again.fingerprint() == data.fingerprint()
    assert again.titles == data.titles
    assert len(split.test) == len(np.unique(tables.ratings["user_id"])) - split.n_users_without_test


def test_training_rates_come_from_the_epochs_after_the_first():
    rates = machine.rates([10.0, 2.0, 1.0, 7.0], rows=100)
    assert rates == {"examples_per_second": 50.0, "seconds_to_start": 8.0}


@pytest.mark.parametrize("name", ["amount", "ann", "out_of_core", "peers", "report", "scaling", "variants"])
def test_every_script_answers_help(name):
    done = subprocess.run([sys.executable, BENCHMARKS / f"{name}.py", "--help"], capture_output=True, text=True)
    assert (done.returncode, done.stdout[:6]) == (0, "usage:"), done.stderr


def test_scaling_grows_the_catalogue_too_and_measures_a_point_once_for_its_code(tmp_path, monkeypatch):
    asked = []

    def ask(python, script, part, *, tables, **options):
        asked.append(task.load_tables(tables))
        return {"seconds": 1e-3 * len(asked[-1].movies) * len(asked[-1].ratings), "peak_gib": 1.0}

    monkeypatch.setattr(machine, "ask", ask)
    monkeypatch.setattr(machine, "POINTS", tmp_path)
    rows = [scaling.measure(300, items, "epoch", 5) for items in (100, 200, 100, 200)]
    assert len(asked) == 2
    assert all(row["key"] and row["machine"]["date"] for row in rows)
    assert math.isclose(scaling.slopes(rows[:2], "items")["epoch"]["seconds"], 1.0)
    monkeypatch.setattr(machine, "file_digest", lambda path: "edited" if path.name == "objectives.py" else "")
    scaling.measure(300, 100, "epoch", 5)
    assert len(asked) == 3


@pytest.mark.parametrize(
    ("where", "figure", "peer", "marks"),
    [
        ("serve", "p99_ms", 4.0, {1.0: "goal met", 1.1: "at least met", 5.0: "at least met", 5.1: "**not met**"}),
        ("evaluate", "seconds", 6.0, {0.6: "goal met", 0.61: "at least met", 2.0: "at least met", 2.1: "**not met**"}),
    ],
    ids=["less is better", "ratio"],
)
def test_verdicts_at_their_marks(where, figure, peer, marks):
    for ours, expected in marks.items():
        rows = report.fast({where: {"theirs": {figure: peer}, "ours": {figure: ours}}})
        assert [row[""] for row in rows if row[""] != "not measured"] == [expected], ours


def test_an_empty_report_claims_nothing():
    rows = report.fast({})
    assert [row[""] for row in rows] == ["not measured"] * 14
    page = report.render(PAGE, {})
    assert "met |" not in page.replace("not measured |", "")
    assert page.count("\nnot measured\n") == 4


def ours(reached: bool) -> dict:
    run = {"epochs": 1, "seeds": 1, "seconds": 9.0, "cpu_seconds": 2.0, "reached": reached}
    return {"model": "dssm", "target": {"hit@100": 0.387}, "runs": [run]}


def row_of(results: dict, what: str) -> dict:
    (row,) = [row for row in report.fast(results) if what in row["against the peer"]]
    return row


def test_preparation_is_compared_in_time_and_memory():
    theirs, mine = ({"seconds": s, "mib_above_imports": m} for s, m in ((6.0, 1024.0), (0.06, 64.0)))
    results = {"prep": {"machine": HOST, "ml-100k": {"theirs": theirs, "ours": mine}}}
    time, memory = (row_of(results, f"ml-100k (its example's 3 negatives): {what}") for what in ("time", "memory"))
    assert list(time.values())[1:] == ["6 s", "60 ms", "100×", "50×", "200×", "at least met"]
    assert memory["ratio"] == "16×"
    assert "| prep | 2020-02-02 | A CPU |" in report.render(PAGE, results)


def test_a_target_that_no_run_reached_is_not_claimed():
    best = {"epoch": 9, "seconds": 450.0, "hit@100": 0.35}
    for reached, expected in ((True, ["9 s", "50×", "at least met"]), (False, ["not reached", "–", "**not met**"])):
        quality = {"theirs": [{"best": best, "curve": [best]}], "ours": ours(reached)}
        row = row_of({"quality": quality}, "the peer's best Hit@100")
        assert [row["ours"], row["ratio"], row[""]] == expected


@pytest.mark.parametrize(("ended", "expected"), [("limit", ("–", "not measured")), ("patience", ("200×", "goal met"))])
def test_a_sasrec_is_compared_in_processor_seconds_and_only_if_its_patience_ended_it(ended, expected):
    last = {"stopped_by": ended, "epoch": 5, "seconds_to_best": 9e9, "cpu_seconds_to_best": 500.0}
    first = {**last, "stopped_by": "patience", "epoch": 3, "cpu_seconds_to_best": 300.0}
    row = row_of({"sasrec": {"runs": {"1": first, "2": last}}, "to_sasrec": ours(True)}, "SASRec")
    assert ("mean of 2 seeds, best at epoch 3 to 5" in row["against the peer"]) == (ended == "patience")
    assert (row["ratio"], row[""]) == expected


def test_above_another_model_only_where_the_whole_interval_is():
    gaps = {"hit@10": [0.02, 0.01, 0.03], "hit@100": [0.01, -0.01, 0.03], "ndcg@10": [-0.02, -0.03, -0.01]}
    (row,) = report.against({"against": {"others": [{"name": "SASRec", "seeds": 3, **gaps}]}})
    assert (row["above on"], row["hit@10"]) == ("hit@10", "+0.020 [+0.010, +0.030]")


def test_a_sasrec_is_kept_by_seed_and_its_ranks_apart(tmp_path):
    path = tmp_path / "results.json"
    for seed in (1, 2):
        peers.keep_sasrec(path, seed, {"epoch": 3 * seed, "test_ranks": [1.0, 2.5]})
    assert machine.read_json(path)["sasrec"]["runs"] == {"1": {"epoch": 3}, "2": {"epoch": 6}}
    assert machine.read_json(tmp_path / peers.SASREC_RANKS)["test"] == {"1": [1.0, 2.5], "2": [1.0, 2.5]}


@pytest.fixture
def small(workspace, monkeypatch):
    """A workspace whose default trains in a moment."""
    tiny = Recipe(dim=8, dims=(8,), max_history=5, training=TrainingConfig(epochs=2, batch_size=256))
    monkeypatch.setattr(variants, "RECIPES", {"dssm": tiny})
    return workspace


def variant(name: str, **line) -> variants.Variant:
    return variants.read_variant({"name": name, **line}, seeds=1)


def test_a_run_is_made_once_and_again_when_the_code_has_changed(small, monkeypatch):
    made, measure = [], variants.measure
    monkeypatch.setattr(variants, "measure", lambda *a: made.append(a[1].name) or measure(*a))
    first = variants.run(small, variant("default"))
    assert variants.run(small, variant("under another name")) == first
    variants.run(small, variant("warmer", temperature=0.5))
    monkeypatch.setattr(variants, "code_digest", lambda: "edited")
    variants.run(small, variant("default"))
    assert made == ["default", "warmer", "default"]
    assert len(first["ranks"]["validation"]) == len(small.split.validation)


def test_a_changed_model_several_members_and_a_diverged_run_are_recorded_as_such(small):
    bare = variants.measure(small, variant("bare", change="dot_products"))
    pair = variants.measure(small, variant("pair", members=2))
    assert bare["settings"]["change"].startswith("def dot_products")
    assert len(pair["loss"]) == 2 * 2
    assert pair["ranks"] != bare["ranks"]
    found = variants.measure(small, variant("diverges", learning_rate=1e30))
    assert found["diverged"]
    assert set(found["ranks"]["validation"]) == {float(small.data.n_items)}


def test_the_stored_sweeps_are_those_of_the_list():
    stored = machine.read_json(BENCHMARKS / "sweeps.json")
    assert set(stored["sweeps"]) == set(variants.SWEEPS)
    for sweep in stored["sweeps"].values():
        assert all(key in stored["points"] for point in sweep["points"] for key in point["keys"])
    rows = machine.read_json(BENCHMARKS / "ablation.json")["rows"]
    assert [row["name"] for row in rows] == [variant.name for variant in variants.ABLATION]


def test_committed_results_render_and_say_where_they_are_from():
    results = machine.read_json(machine.RESULTS)
    assert all(section["machine"]["date"] and section["machine"]["cpu"] for section in results.values())
    assert report.render(PAGE, results) == PAGE, "run python benchmarks/report.py"


def test_committed_sasrec_ranks_give_the_reported_metrics():
    runs = machine.read_json(machine.RESULTS)["sasrec"]["runs"]
    stored = machine.read_json(BENCHMARKS / peers.SASREC_RANKS)["test"]
    assert runs.keys() == stored.keys()
    for seed, ranks in stored.items():
        assert min(ranks) >= 1
        for k in (10, 100):
            assert math.isclose(np.mean(np.array(ranks) <= k), runs[seed]["test"][f"hit@{k}"])


def test_arrays_written_out_of_core_equal_those_of_encode(tmp_path):
    out_of_core.generate(tmp_path / "all.parquet", 5_000, 60, 50)
    frame = pd.read_parquet(tmp_path / "all.parquet").drop_duplicates(["user_id", "item_id"])
    frame["timestamp"] //= 10**7  # many ties
    frame.to_parquet(tmp_path / "ratings.parquet")
    out_of_core.flatten(tmp_path / "ratings.parquet", tmp_path, gib=1)
    data = encode(frame)
    for name in ("user", "item", "timestamp", "offsets"):
        assert np.array_equal(np.load(tmp_path / f"{name}.npy"), getattr(data, name)), name
