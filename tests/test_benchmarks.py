"""The benchmarks' shared tools, their command lines, the report, and the committed results."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tqdm import tqdm

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import machine  # noqa: E402
import peers  # noqa: E402
import report  # noqa: E402
import scaling  # noqa: E402
import task  # noqa: E402
import tower_parts  # noqa: E402
import towers  # noqa: E402
import variants  # noqa: E402

from dssm_helpers.data import encode  # noqa: E402
from dssm_helpers.evaluation import TwoTowerScorer  # noqa: E402
from dssm_helpers.features import Pooling, RecencyPooling  # noqa: E402
from dssm_helpers.model import evaluation_mode  # noqa: E402
from dssm_helpers.objectives import TrainingConfig, log_shares  # noqa: E402
from dssm_helpers.recipes import Recipe  # noqa: E402
from dssm_helpers.vocabulary import FIRST  # noqa: E402


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
    "name",
    [
        "amount",
        "ann",
        "every_day",
        "load",
        "out_of_core",
        "peers",
        "queries",
        "report",
        "scaling",
        "second_stage",
        "towers",
        "variants",
    ],
)
def test_every_script_answers_help(name):
    if name == "out_of_core":
        pytest.importorskip("duckdb", reason="pip install duckdb pyarrow")
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
    import out_of_core  # its duckdb is optional

    out_of_core.generate(tmp_path / "all.parquet", 5_000, 60, 50)
    frame = pd.read_parquet(tmp_path / "all.parquet").drop_duplicates(["user_id", "item_id"])
    frame["timestamp"] //= 10**7  # many ties
    frame.to_parquet(tmp_path / "ratings.parquet")
    out_of_core.flatten(tmp_path / "ratings.parquet", tmp_path, gib=1)
    data = encode(frame)
    for name in ("user", "item", "timestamp", "offsets"):
        assert np.array_equal(np.load(tmp_path / f"{name}.npy"), getattr(data, name)), name


# -- better towers: every mechanism does what its name says ------------------------------------------------------------


def arm(*parts: str, trainer: str = "Trainer", **line) -> towers.Arm:
    options = {"dim": 8, "dims": [8], "epochs": 1, "batch_size": 128}
    line = {"name": "a", "parts": list(parts), "trainer": trainer, **options, **line}
    return variants.read_variant(line, seeds=1, kind=towers.Arm)


def setting_of(ws, *parts: str, **options) -> tower_parts.Setting:
    return arm(*parts, options=options).setting(ws)


def trainer_of(ws, name: str, id_dropout: float = 0.0, **options) -> tower_parts.Candidates:
    """A trainer at its first step, without dropout, so that its loss can be computed by hand."""
    one = arm(trainer=name, dropout=0.0, id_dropout=id_dropout, options=options)
    setting = one.setting(ws)
    trainer = getattr(tower_parts, name)(setting.model(0), setting.batches, one.recipe.training)
    trainer.options, trainer.setting = one.options, setting
    trainer._log_q = log_shares(ws.data.item_counts(ws.split.train))
    return trainer


def scores_of(trainer, positions) -> torch.Tensor:
    """Logits ``[B, I]`` of the rows with every item."""
    scorer = TwoTowerScorer(trainer.model, trainer.batches)
    return scorer(positions) / trainer.model.temperature


def test_candidates_of_the_batch_are_the_courses_loss(workspace, generator):
    positions = torch.from_numpy(workspace.split.train[::7])
    trainer = trainer_of(workspace, "Candidates")
    assert torch.isclose(trainer._loss(positions, generator), tower_parts.Trainer._loss(trainer, positions, generator))


def test_the_full_softmax_is_cross_entropy_over_all_movies_but_those_had(workspace, generator):
    positions = workspace.split.train[::7]
    trainer = trainer_of(workspace, "Full")
    scores = scores_of(trainer, positions)
    scores[:, :2] = -torch.inf
    scores[torch.arange(len(positions)).unsqueeze(1), trainer.batches(positions)["history"]] = -torch.inf
    expected = torch.nn.functional.cross_entropy(scores, torch.from_numpy(workspace.data.item[positions]).long())
    assert torch.isclose(trainer._loss(torch.from_numpy(positions), generator), expected)


def test_gbce_lies_between_binary_cross_entropy_and_the_share_that_was_drawn(workspace):
    own, others = torch.tensor([1.0, -2.0]), torch.tensor([[0.5, 3.0], [-1.0, 0.0]])
    masked = torch.tensor([[False, True], [False, False]])
    negatives = torch.nn.functional.softplus(torch.tensor([0.5, -1.0, 0.0])).sum()
    positives, share = torch.nn.functional.softplus(-own).sum(), 30 / (workspace.data.n_items - 3)
    for t, beta in ((0.0, 1.0), (1.0, share)):
        loss = trainer_of(workspace, "GBCE", n=30, t=t).reduce(own, others, masked, None)
        assert torch.isclose(2 * loss, beta * positives + negatives), t


def test_mixed_candidates_are_corrected_by_a_distribution_over_all_movies(workspace, generator):
    trainer = trainer_of(workspace, "Mixed", n=40)
    target = torch.from_numpy(workspace.data.item[workspace.split.train[:60]]).long()
    vectors, items, log_q = trainer.candidates(torch.zeros(60, 8), target, generator)
    assert vectors.shape == (100, 8)
    assert items[60:].min() >= FIRST
    unseen = workspace.data.item_counts(workspace.split.train) == 0
    counted = log_q.exp()[FIRST:].sum() - 0.6 * unseen[FIRST:].sum() / len(workspace.split.train)  # counted as one
    assert math.isclose(counted, 1.0, abs_tol=1e-5)
    assert log_q[FIRST:].min() >= math.log(0.4 / (workspace.data.n_items - FIRST))


def test_the_queue_holds_the_last_batches_as_they_were(workspace, generator):
    trainer = trainer_of(workspace, "Queue", keep=2)
    seen = [(torch.full((3, 8), float(i), requires_grad=True), torch.tensor([i + 2] * 3)) for i in range(4)]
    found = [trainer.candidates(vectors, ids, generator) for vectors, ids in seen]
    assert [sorted(set(ids.tolist())) for _, ids, _ in found] == [[2], [2, 3], [2, 3, 4], [3, 4, 5]]
    found[-1][0].sum().backward()
    assert seen[-1][0].grad is not None
    assert seen[-2][0].grad is None


def test_hard_negatives_are_the_models_best_and_nothing_the_user_has(workspace):
    trainer = trainer_of(workspace, "Hard", n=3, depth=5)
    train, data = workspace.split.train, workspace.data
    had = tower_parts.interaction_matrix(data, train).toarray().astype(bool)
    expected = scores_of(trainer, train)
    trainer._rows, steps = [], len(train) // 128
    trainer._train_epoch(train, steps, tqdm(disable=True))
    assert not had[data.user[train][:, None], trainer.top[train].numpy()].any()
    expected[:, :FIRST] = expected[torch.from_numpy(had[data.user[train]])] = -torch.inf
    assert torch.equal(trainer.top[train].long().sort().values, expected.topk(5, dim=1).indices.sort().values)


def test_half_of_a_distilled_target_is_the_teachers(workspace, generator):
    positions = torch.from_numpy(workspace.split.train[::7])
    trainer = trainer_of(workspace, "Student", n=0, members=[0])
    scorer = TwoTowerScorer(trainer.model, trainer.batches)  # its own teacher: nothing to learn from that half
    trainer.taught, trainer.users = scorer.item_vectors, scorer.user_vectors(np.arange(len(workspace.data)))
    losses = [loss(trainer, positions, generator) for loss in (tower_parts.Student._loss, tower_parts.Trainer._loss)]
    mixed, plain = (torch.autograd.grad(loss, trainer.model.item_tower.mlp[-1].weight)[0] for loss in losses)
    assert torch.allclose(2 * mixed, plain, atol=1e-6)
    assert losses[0] > losses[1] / 2
    trainer.taught = trainer.taught.roll(1, dims=0)
    (other,) = torch.autograd.grad(trainer._loss(positions, generator), trainer.model.item_tower.mlp[-1].weight)
    assert not torch.allclose(other, mixed, atol=1e-4)


def test_a_block_looks_back_only_and_the_encoder_ignores_padding():
    torch.manual_seed(0)
    encoder = tower_parts.Encoder(Pooling("mean", 8, 6), 8, blocks=2, length=5).eval()
    embedded, mask = torch.randn(3, 6, 8), torch.tensor([[True] * 6, [True] * 3 + [False] * 3, [False] * 6])
    block, allowed = encoder.blocks[0], torch.ones(6, 6, dtype=torch.bool).triu()[None, None]
    changed = embedded.clone()
    changed[:, 2] += torch.randn(8)  # (a constant would be lost in the normalisation)
    moved = (block(embedded, allowed, newest=False) - block(changed, allowed, newest=False)).abs().amax(dim=2) > 1e-6
    assert moved[0].tolist() == [True, True, True, False, False, False]  # newest first: what is older does not move
    found = encoder(embedded, mask)
    assert found.shape == (3, 16)
    assert torch.equal(found[2], torch.zeros(16))
    changed = embedded.masked_fill(~mask.unsqueeze(2), 9.0)
    assert torch.equal(encoder(changed, mask), found)
    changed[0, 5] += torch.randn(8)  # beyond the encoder's length: only the pooling sees it
    assert torch.equal(encoder(changed, mask)[:, 8:], found[:, 8:])
    changed[0, 4] += torch.randn(8)
    assert not torch.allclose(encoder(changed, mask)[0, 8:], found[0, 8:], atol=1e-6)


def test_newest_alone_is_the_newest_of_all():
    torch.manual_seed(0)
    block, slots = tower_parts.Block(8, 2, 0.0).eval(), torch.randn(4, 5, 8)
    allowed = torch.ones(5, 5, dtype=torch.bool).triu()[None, None]
    assert torch.allclose(block(slots, allowed, True), block(slots, allowed, False)[:, :1], atol=1e-6)


def test_attention_pooling_weighs_by_the_query_and_leaves_padding_out():
    head, embedded = tower_parts.AttentionPooling(4, 5), torch.zeros(2, 5, 4)
    mask = torch.tensor([[True, True, True, False, False], [False] * 5])
    assert torch.allclose(head(embedded, mask), RecencyPooling(4, 5)(embedded, mask))  # where it starts
    head.query.data[0], embedded[0, 2, 0] = 5.0, 2.0
    weight = head(embedded, mask)
    assert weight[0].argmax() == 2
    assert weight[0, 3:].sum() == 0
    assert weight[1].sum() == 0


def test_stars_stand_at_their_positions(workspace, tables):
    data, found = workspace.data, tower_parts.stars(workspace)
    keys = zip(*(data.vocabularies[f"{s}_id"].values[getattr(data, s) - 2] for s in ("user", "item")), strict=True)
    expected = tables.ratings.set_index(["user_id", "movie_id"])["rating"]
    assert [expected[key] for key in keys] == found.tolist()


def test_what_counts_as_positive(workspace):
    train, rating = workspace.split.train, tower_parts.stars(workspace)
    liked, sample = setting_of(workspace, "Liked").rows(), setting_of(workspace, "Sampled").rows()
    assert rating[liked].min() == 4
    assert len(liked) == len(sample) == (rating[train] >= 4).sum()
    assert len(np.unique(sample)) == len(sample)
    assert rating[sample].min() == 3
    last = setting_of(workspace, "LastOnly").rows()
    assert len(last) == len(train)
    assert len(np.unique(last)) == len(np.unique(workspace.data.user[train]))
    assert set(np.unique(last) + 1) <= set(workspace.split.validation)


def test_a_history_of_what_was_liked_keeps_its_order(workspace):
    batches, rating = setting_of(workspace, "LikedHistory").batches, tower_parts.stars(workspace)
    position = workspace.split.test[3]
    start = workspace.data.offsets[workspace.data.user[position]]
    liked = [
        workspace.data.item[p] for p in range(position - 1, start - 1, -1) if rating[p] >= 4 and position - p <= 50
    ]
    history = batches.users(np.array([position]))["history"][0]
    assert history[: len(liked)].tolist() == liked
    assert history[len(liked) :].sum() == 0


def test_cold_items_are_in_no_row_and_no_history_and_have_no_id(workspace):
    cold = setting_of(workspace, "Titles", "Cold", draw=1)
    everywhere = np.concatenate([cold.rows(), cold.validation()])
    for items in (cold.data.item[everywhere], cold.batches.users(np.arange(len(cold.data)))["history"].unique()):
        assert not cold.cold[items].any()
    assert len(cold.asked)
    assert cold.cold[cold.data.item[cold.asked]].all()
    ends = cold.data.offsets[cold.data.user[cold.rows()] + 1]
    assert (ends - cold.rows() > 5).all()
    ids = cold.batches.all_items()["item_id"]
    assert (ids[cold.cold] == 1).all()
    assert torch.equal(ids[~cold.cold], torch.arange(len(ids))[~cold.cold])
    assert not cold.cold[tower_parts.neighbours(cold, 3)].any()
    assert not torch.equal(cold.cold, setting_of(workspace, "Cold", draw=2).cold)


def test_titles_add_trigrams_without_years(workspace):
    setting = setting_of(workspace, "Titles")
    known = setting.data.vocabularies["trigrams"].values.tolist()
    assert "#ge" in known
    assert not any("19" in trigram for trigram in known if "#" in trigram and len(trigram) > 3)
    model = setting.model(0)
    assert model.item_tower.embedding.tables["trigrams"].weight.shape == (len(known) + 2, 48)
    assert np.array_equal(setting.data.item, workspace.data.item)


def test_a_requests_time_is_what_the_clock_says(workspace):
    data, at = workspace.data, workspace.split.test[:5]
    found = setting_of(workspace, "Time", columns=["hour"]).batches.users(at)
    clock = pd.to_datetime(data.timestamp[at], unit="s")
    assert (found["hour"] - FIRST).tolist() == clock.hour.tolist()
    days = (found["weekday"] - FIRST).numpy()
    assert ((days + 3) % 7).tolist() == clock.day_of_week.tolist()  # the first of 1970 was a Thursday
    pause = (found["pause"] - FIRST).numpy()
    expected = np.digitize(data.timestamp[at] - data.timestamp[at - 1], tower_parts.PAUSES)
    assert pause.tolist() == expected.tolist()
    first = data.offsets[2:4]  # of two users
    assert setting_of(workspace, "Time", columns=[]).batches.users(first)["pause"].tolist() == [FIRST + 7] * 2


def test_of_several_user_vectors_the_one_with_the_higher_score_counts(workspace):
    setting, positions = setting_of(workspace, "Interests", vectors=3), workspace.split.validation[:7]
    model = setting.model(0)
    scorer = setting.scorer(model, setting.batches)
    with evaluation_mode(model):
        users = model.user_tower(setting.batches.users(positions))  # [B, K, D]
        logits = model.logits(users, scorer.item_vectors)
    assert users.shape == (7, 3, 8)
    assert torch.allclose(users.norm(dim=2), torch.ones(7, 3))
    best = torch.stack([user @ scorer.item_vectors.T for user in users.unbind(dim=1)]).amax(dim=0)
    assert torch.allclose(scorer(positions), best)
    assert torch.allclose(logits * model.temperature, best, atol=1e-6)


@pytest.mark.parametrize("line", towers.LIST["arms"] + towers.LIST["cold"], ids=lambda line: line["name"])
def test_every_arm_trains(line, small):
    one = arm(**{**line, "options": {"draw": 0, **line.get("options", {})}})
    setting = one.setting(small)
    before = setting.model(0).item_tower.mlp[-1].weight
    assert not torch.equal(towers.train(one, setting, 0).model.item_tower.mlp[-1].weight, before)


def test_a_key_covers_the_classes_that_a_part_names(monkeypatch):
    before, source = towers.code_of(["Attentive"]), towers.inspect.getsource
    assert before == towers.code_of(["Attentive"])
    monkeypatch.setattr(towers.inspect, "getsource", lambda c: source(c) + ("#" if c is tower_parts.Block else ""))
    assert before != towers.code_of(["Attentive"])


def test_the_stored_towers_are_those_of_the_list_and_judged_by_the_rule():
    stored = machine.read_json(towers.FILE)
    for table, rows in (("arms", stored["arms"]), ("cold", stored["cold"]["arms"])):
        names = [row["name"] for row in rows]
        assert names == [line["name"] for line in towers.LIST[table]]
    for row in stored["arms"]:
        assert row["seeds"] == 5, row["name"]
        assert row["passes"] == towers.passes(row["difference"], stored["default_range"]), row["name"]
    passed = [size for size in towers.SIZES if stored["chosen"][f"{size} folded"]["passes"]]
    assert passed[0] == towers.CHOSEN


@pytest.mark.parametrize(
    ("hit", "ndcg", "expected"),
    [
        ([0.02, 0.01, 0.03], [0.0, -0.01, 0.01], True),
        ([0.0, -0.01, 0.01], [0.02, 0.01, 0.03], True),
        ([0.009, 0.001, 0.02], [0.0, -0.01, 0.01], False),  # nearer than the default's seeds are to each other
        ([0.02, -0.01, 0.05], [0.0, -0.01, 0.01], False),
        ([0.02, 0.01, 0.03], [-0.02, -0.03, -0.01], False),
    ],
)
def test_an_arm_passes_above_noise_on_one_measure_and_below_on_none(hit, ndcg, expected):
    difference = {"hit@10": hit, "hit@100": [0.0, -0.01, 0.01], "ndcg@10": ndcg}
    assert towers.passes(difference, dict.fromkeys(difference, 0.01)) == expected
