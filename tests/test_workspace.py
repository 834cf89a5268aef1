"""Artefacts are built once, found again, and rebuilt with a word where they cannot be used."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

import dssm_helpers
from dssm_helpers import recipes
from dssm_helpers.course import workspace as workspace_module
from dssm_helpers.course.scoreboard import read_results
from dssm_helpers.course.workspace import Workspace, code_digest
from dssm_helpers.data import REQUEST, encode
from dssm_helpers.objectives import TrainingConfig
from dssm_helpers.recipes import Recipe
from dssm_helpers.schema import Schema
from dssm_helpers.training import Trainer


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A small recipe, so that training takes a fraction of a second."""
    tiny = Recipe(dim=8, dims=(8,), max_history=5, training=TrainingConfig(epochs=2, batch_size=256))
    monkeypatch.setattr(recipes, "RECIPES", {"dssm": tiny, "dssm_mean": replace(tiny, pooling="mean")})
    for name in ("DSSM_SEEDS", "DSSM_DATASET", "DSSM_DEVICE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def fit():
    """Counts the training runs."""
    with mock.patch.object(Trainer, "fit", autospec=True, side_effect=Trainer.fit) as counted:
        yield counted


def same(one, two) -> bool:
    return all(map(torch.equal, one.state_dict().values(), two.state_dict().values()))


def test_trained_once_each_then_loaded_and_in_any_order_the_same(workspace, tables, fit, capsys):
    wanted = [("dssm", 0, {}), ("dssm", 1, {}), ("dssm_mean", 0, {}), ("dssm", 0, {"logq": 0.0})]
    first = [workspace.trained(name, seed, **training) for name, seed, training in wanted]
    another = Workspace("synthetic", tables=tables, progress=False)
    again = [another.trained(name, seed, **training) for name, seed, training in wanted]
    assert fit.call_count == len(list(workspace.folder.glob("*/weights.safetensors"))) == 4
    shutil.rmtree(workspace.folder)
    anew = [workspace.trained(name, seed, **training) for name, seed, training in reversed(wanted)]
    assert [call.args[0].config.seed for call in fit.call_args_list] == [0, 1, 0, 0, 0, 0, 1, 0]
    assert capsys.readouterr().out == ""
    for (model, seconds), (loaded, same_seconds), (reordered, _) in zip(first, again, reversed(anew), strict=True):
        assert seconds == same_seconds > 0
        assert same(model, loaded)
        assert same(model, reordered)
        assert not loaded.training
    assert not same(first[0][0], first[1][0])
    assert not same(first[0][0], first[3][0])


@pytest.mark.parametrize("victim", ["weights.safetensors", "history.json", "manifest.json"])
@pytest.mark.parametrize("harm", ["cut", "altered"])
def test_a_damaged_model_is_trained_again_and_one_line_says_so(workspace, capsys, victim, harm):
    """Its seconds are protected like its weights (R12)."""
    expected = workspace.trained()[0]
    path = workspace.folder / "dssm-seed0" / victim
    content = path.read_bytes()
    path.write_bytes(content[:50] if harm == "cut" else content.replace(b"e", b"f", 1))
    model, seconds = workspace.trained()
    assert seconds > 0
    assert same(model, expected)
    assert len(workspace.training_history()) == 2
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("dssm-seed0 is unusable (")


def test_other_data_another_split_or_other_code_make_it_stale(workspace, tables, fit, capsys, monkeypatch):
    workspace.trained()
    fewer = Workspace("synthetic", tables=replace(tables, ratings=tables.ratings.iloc[:-1]), progress=False)
    fewer.trained()
    fewer.split = replace(fewer.split, train=fewer.split.train[1:])
    fewer.trained()
    monkeypatch.setattr(workspace_module, "code_digest", lambda: "edited")
    fewer.trained()
    assert fit.call_count == 4
    assert capsys.readouterr().out.count("dssm-seed0 is stale") == 3


def test_every_module_that_decides_a_figure_counts():
    """The workspace itself is one of them (B9)."""
    package, read, counted = Path(dssm_helpers.__file__).parent, Path.read_bytes, set()
    before = code_digest()
    for edited in package.rglob("*.py"):
        with mock.patch.object(Path, "read_bytes", lambda path, edited=edited: read(path) + b"#" * (path == edited)):
            if code_digest() != before:
                counted.add(edited.relative_to(package).with_suffix("").as_posix())
    until = dssm_helpers.MODULES.index("index")
    assert counted == {"__init__", "course/workspace", *dssm_helpers.MODULES[:until]}


def test_any_encoded_data_and_any_split_will_do_and_vectors_belong_to_their_ids(workspace, tables):
    clicks = tables.ratings.assign(user_id="user " + tables.ratings["user_id"].astype(str))
    data = encode(clicks, schema=Schema(item="movie_id"), name="clicks")
    ours = Workspace(data=data, split="one_moment", progress=False)
    assert ours.folder == workspace.folder.with_name("clicks-one_moment")
    ids, vectors = ours.item_vectors()
    assert vectors.shape == (data.n_items - 2, 8)
    assert vectors.dtype == np.float32
    batch = ours.batches.items(data.vocabularies["item_id"].encode(ids[[3, 40]]))
    with torch.inference_mode():
        direct = ours.trained()[0].item_tower(batch)
    np.testing.assert_allclose(vectors[[3, 40]], direct, atol=1e-5)


def test_artifacts_of_version_1_are_set_aside_with_a_word(workspace, tables, capsys):
    workspace.folder.mkdir(parents=True)
    (workspace.folder / "dssm-seed0.safetensors.made-from.json").write_text("{}")
    Workspace("synthetic", tables=tables, progress=False)
    assert [path.name for path in workspace.folder.parent.iterdir()] == ["synthetic-version-1"]
    assert "moved to synthetic-version-1" in capsys.readouterr().out


def test_a_comparison_takes_all_rows_or_so_many_and_says_so(capsys):
    rows = np.arange(0, 3000, 3)
    assert Workspace.glance(rows, 1000) is rows
    assert capsys.readouterr().out == ""
    some = Workspace.glance(rows, 100)
    assert capsys.readouterr().out == "for this comparison, 100 of 1,000 rows, drawn at random\n"
    assert len(set(some)) == 100
    assert set(some) < set(rows)
    assert (some == np.sort(some)).all()
    assert 1000 < some.mean() < 2000  # from everywhere
    assert (some == Workspace.glance(rows, 100)).all()  # everything in a notebook is compared on the same ones


def test_an_unknown_name_is_refused(workspace):
    with pytest.raises(ValueError, match="unknown model 'dsm'; choose one of dssm, dssm_mean"):
        workspace.trained("dsm")


def test_results_merge_by_section_and_carry_the_protocol(workspace, tables):
    workspace.record(models={"dssm": {"hit@10": 0.2}}, seeds=3)
    Workspace("synthetic", tables=tables, progress=False).record(models={"ease": {"hit@10": 0.1}}, retrieval={"a": 1})
    workspace.record(models={"dssm": {"hit@10": np.float32(0.5)}})
    results = workspace.results()
    assert results["models"] == {"dssm": {"hit@10": 0.5}, "ease": {"hit@10": 0.1}}
    assert (results["retrieval"], results["seeds"], results["dataset"]) == ({"a": 1}, 3, "synthetic")
    assert "leave last out; candidates are all items" in results["protocol"]


@pytest.mark.parametrize("other", ["data", "split", "code"])
def test_figures_of_another_origin_are_kept_aside_and_never_adopted(workspace, tables, monkeypatch, capsys, other):
    """Not even their number of seeds."""
    monkeypatch.setenv("DSSM_SEEDS", "2")
    workspace.record(models={"dssm": {"hit@10": 0.9}}, seeds=7)
    before = (workspace.folder / "results.json").read_bytes()
    if other == "code":
        monkeypatch.setattr(workspace_module, "code_digest", lambda: "edited")
    elif other == "split":
        workspace.split = replace(workspace.split, train=workspace.split.train[1:])
    else:
        workspace = Workspace(tables=replace(tables, ratings=tables.ratings.iloc[:-1]), progress=False)
    assert workspace.results() == {}
    workspace.record(retrieval={"a": 1})
    assert workspace.results().keys() == {"seeds", "dataset", "protocol", "origin", "retrieval"}
    assert workspace.results()["seeds"] == 2
    assert (workspace.folder / "results.json.aside").read_bytes() == before
    assert "is of other data, another split or other code" in capsys.readouterr().out


@pytest.mark.parametrize("damaged", ['{"models": {', "[1, 2]", "\xff", "a digit"])
def test_damaged_results_are_kept_and_start_anew_with_a_word(workspace, capsys, damaged):
    """A digit that flips is damage too."""
    workspace.record(models={"dssm": {"hit@10": 0.25}})
    path = workspace.folder / "results.json"
    path.write_text(path.read_text().replace("0.25", "0.75") if damaged == "a digit" else damaged, encoding="latin-1")
    before = path.read_bytes()
    workspace.record(models={"ease": {}})
    assert workspace.results()["models"] == {"ease": {}}
    assert path.with_name("results.json.aside").read_bytes() == before
    assert "results.json is damaged (" in capsys.readouterr().out


def test_of_many_recorders_at_once_every_section_stays(workspace, tables):
    """Each a process of its own."""
    names = [f"{letter}{n}" for letter in "abc" for n in range(12)]
    line = "from dssm_helpers.course.scoreboard import update_results as u; from pathlib import Path; import sys\n"
    line += "for n in range(12):\n    with u(Path(sys.argv[1])) as r: r[sys.argv[2] + str(n)] = n"
    command = [sys.executable, "-c", line, str(workspace.folder)]
    running = [subprocess.Popen([*command, letter]) for letter in "abc"]
    assert [process.wait() for process in running] == [0, 0, 0]
    assert sorted(read_results(workspace.folder)) == sorted(names)


def test_a_recipe_may_read_the_time_of_the_request(workspace, monkeypatch):
    timed = replace(recipes.RECIPES["dssm"], request_time=True)
    monkeypatch.setitem(recipes.RECIPES, "timed", timed)
    model, _ = workspace.trained("timed")
    features = {feature.name for feature in model.user_tower.embedding.features}
    plain = {feature.name for feature in workspace.trained("dssm")[0].user_tower.embedding.features}
    assert features - plain == {column.name for column in REQUEST}
    scorer, positions = workspace.scorer("timed"), workspace.split.test[:5]
    batch = scorer.batches.users(positions)
    assert torch.equal(scorer.user_vectors(positions), model.user_tower(batch))
    another = model.user_tower({**batch, "request_hour": (batch["request_hour"] - 1) % 24 + 2})  # an hour later
    assert not torch.allclose(model.user_tower(batch), another, atol=1e-4)
