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


def test_where_machines_differ_each_value_stands_once():
    here = machine.machine()
    assert all(here.values())
    both = machine.machines([{"machine": here}, {"machine": {**here, "cpu": "Another"}}, {"machine": here}])
    assert (both["cpu"], both["date"]) == (f"{here['cpu']} and Another", here["date"])


def test_merge_replaces_one_section_and_keeps_the_others(tmp_path):
    path = tmp_path / "results.json"
    for name, section in (("a", {"x": 1}), ("b", {"x": np.float32(0.5)}), ("a", {"y": 2})):
        machine.merge_section(path, name, section)
    results = machine.read_json(path)
    assert all(section.pop("machine")["date"] for section in results.values())
    assert results == {"a": {"y": 2}, "b": {"x": 0.5}}


def test_peak_memory_sees_what_preparation_freed_and_not_what_loading_did():
    work = (lambda *_: np.ones(8_000_000).sum()), (lambda *_: None)  # 61 MiB
    assert machine.preparation(work[1], work[0])["mib_above_imports"] > 50
    assert machine.preparation(work[0], work[1])["mib_above_imports"] < 50


def test_both_sides_read_the_same_tables(tables, data, tmp_path):
    task.save_tables(tables, tmp_path / "tables.npz")
    again, _, _ = task.prepare(task.load_tables(tmp_path / "tables.npz"))
    assert again.fingerprint() == data.fingerprint()
    assert again.titles == data.titles


def test_training_rates_come_from_the_epochs_after_the_first():
    assert machine.rates([10.0, 2.0, 1.0, 7.0], rows=100) == {"examples_per_second": 50.0, "seconds_to_start": 8.0}


@pytest.mark.parametrize(
    "name", ["amount", "ann", "every_day", "out_of_core", "peers", "report", "scaling", "variants"]
)
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
    monkeypatch.setattr(machine, "PEERS", tmp_path)
    monkeypatch.setattr(machine, "file_digest", lambda path: "")
    rows = [scaling.measure(300, items, "epoch") for items in (100, 200, 100, 200)]
    assert len(asked) == 2
    assert math.isclose(scaling.slopes(rows[:2], "items")["epoch"]["seconds"], 1.0)
    monkeypatch.setattr(machine, "file_digest", lambda path: "edited" if path.name == "objectives.py" else "")
    scaling.measure(300, 100, "epoch")
    assert len(asked) == 3


def verdicts(results: dict) -> list[str]:
    return [row[""] for row in report.fast(results) if row[""] != "not measured"]


@pytest.mark.parametrize(
    ("section", "figure", "peer", "goal", "at_least"),
    [("serve", "p99_ms", 4.0, 1.0, 5.0), ("evaluate", "seconds", 6.0, 0.6, 2.0)],
)
def test_verdicts_at_their_marks(section, figure, peer, goal, at_least):
    marks = {goal: "goal met", goal + 0.01: "at least met", at_least: "at least met", at_least + 0.01: "**not met**"}
    for ours, expected in marks.items():
        assert verdicts({section: {"theirs": {figure: peer}, "ours": {figure: ours}}}) == [expected], ours


def test_an_empty_report_claims_nothing():
    assert verdicts({}) == []


def trained(reached: bool) -> dict:
    run = {"epochs": 1, "seeds": 1, "seconds": 9.0, "cpu_seconds": 2.0, "reached": reached}
    return {"model": "dssm", "target": {"hit@100": 0.387}, "runs": [run]}


@pytest.mark.parametrize(("reached", "expected"), [(True, "at least met"), (False, "**not met**")])
def test_a_target_that_no_run_reached_is_not_claimed(reached, expected):
    best = {"epoch": 9, "seconds": 450.0, "hit@100": 0.35}
    assert verdicts({"quality": {"theirs": [{"best": best}], "ours": trained(reached)}}) == [expected]


@pytest.mark.parametrize(("ended", "expected"), [("limit", []), ("patience", ["goal met"])])
def test_a_sasrec_is_compared_in_processor_seconds_and_only_if_its_patience_ended_it(ended, expected):
    last = {"stopped_by": ended, "epoch": 5, "seconds_to_best": 9.0, "cpu_seconds_to_best": 100.0}
    runs = {"1": {**last, "stopped_by": "patience", "epoch": 3, "cpu_seconds_to_best": 80.0}, "2": last}
    assert verdicts({"sasrec": {"runs": runs}, "to_sasrec": trained(True)}) == expected


def test_above_another_model_only_where_the_whole_interval_is():
    gaps = {"hit@10": [0.02, 0.01, 0.03], "hit@100": [0.01, -0.01, 0.03], "ndcg@10": [-0.02, -0.03, -0.01]}
    (row,) = report.against({"against": {"others": [{"name": "SASRec", "seeds": 3, **gaps}]}})
    assert (row["above on"], row["hit@10"]) == ("hit@10", "+0.020 [+0.010, +0.030]")


def test_a_sasrec_is_kept_by_seed_and_its_ranks_apart(tmp_path):
    for seed in (1, 2):
        peers.keep_sasrec(tmp_path / "results.json", seed, {"epoch": 3 * seed, "test_ranks": [1.0, 2.5]})
    assert machine.read_json(tmp_path / "results.json")["sasrec"]["runs"] == {"1": {"epoch": 3}, "2": {"epoch": 6}}
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


def test_a_changed_model_several_members_and_a_diverged_run_are_recorded_as_such(small):
    lines = {"bare": {"change": "dot_products"}, "pair": {"members": 2}, "diverges": {"learning_rate": 1e30}}
    found = {name: variants.measure(small, variant(name, **line)) for name, line in lines.items()}
    assert found["bare"]["settings"]["change"].startswith("def dot_products")
    assert len(found["pair"]["loss"]) == 2 * 2
    assert found["pair"]["ranks"] != found["bare"]["ranks"]
    assert set(found["diverges"]["ranks"]["validation"]) == {float(small.data.n_items)}


def test_the_stored_sweeps_are_those_of_the_list():
    assert set(machine.read_json(BENCHMARKS / "sweeps.json")["sweeps"]) == set(variants.SWEEPS)
    rows = machine.read_json(BENCHMARKS / "ablation.json")["rows"]
    assert [row["name"] for row in rows] == [variant.name for variant in variants.ABLATION]


def test_committed_results_render():
    page = report.PAGE.read_text(encoding="utf-8")
    assert report.render(page, machine.read_json(machine.RESULTS)) == page, "run python benchmarks/report.py"


def test_committed_sasrec_ranks_give_the_reported_metrics():
    runs = machine.read_json(machine.RESULTS)["sasrec"]["runs"]
    stored = machine.read_json(BENCHMARKS / peers.SASREC_RANKS)["test"]
    assert runs.keys() == stored.keys()
    for seed, ranks in stored.items():
        assert math.isclose(np.mean(np.array(ranks) <= 10), runs[seed]["test"]["hit@10"])


def test_arrays_written_out_of_core_equal_those_of_encode(tmp_path):
    out_of_core.generate(tmp_path / "all.parquet", 5_000, 60, 50)
    frame = pd.read_parquet(tmp_path / "all.parquet").drop_duplicates(["user_id", "item_id"])
    frame["timestamp"] //= 10**7  # many ties
    frame.to_parquet(tmp_path / "ratings.parquet")
    out_of_core.flatten(tmp_path / "ratings.parquet", tmp_path, gib=1)
    data = encode(frame)
    for name in ("user", "item", "timestamp", "offsets"):
        assert np.array_equal(np.load(tmp_path / f"{name}.npy"), getattr(data, name)), name
