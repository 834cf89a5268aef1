"""Artefacts are built once, found again, and rebuilt with a word where they cannot be used."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import dssm_helpers
from dssm_helpers import recipes
from dssm_helpers.course import workspace as workspace_module
from dssm_helpers.course.workspace import Workspace, code_digest
from dssm_helpers.data import encode
from dssm_helpers.objectives import TrainingConfig
from dssm_helpers.recipes import Recipe, build_model
from dssm_helpers.schema import Schema
from dssm_helpers.training import Trainer


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A small recipe, so that training takes a fraction of a second."""
    tiny = Recipe(dim=8, dims=(8,), max_history=5, training=TrainingConfig(epochs=2, batch_size=256))
    monkeypatch.setattr(recipes, "RECIPES", {"dssm": tiny, "dssm_mean": replace(tiny, pooling="mean")})
    for name in ("DSSM_SEEDS", "DSSM_STRICT", "DSSM_DATASET", "DSSM_DEVICE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def fits(monkeypatch) -> list[int]:
    """One entry for each training run."""
    calls, original = [], Trainer.fit

    def counted(self, *arguments, **options):
        calls.append(self.config.seed)
        return original(self, *arguments, **options)

    monkeypatch.setattr(Trainer, "fit", counted)
    return calls


# -- trained ----------------------------------------------------------------------------------------------------------


def test_trained_once_then_loaded_the_same(workspace, tables, fits, capsys):
    model, seconds = workspace.trained("dssm", seed=1)
    again, same_seconds = Workspace("synthetic", tables=tables, progress=False).trained("dssm", seed=1)
    assert fits == [1]
    assert seconds == same_seconds > 0
    assert not model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert capsys.readouterr().out == ""


def test_seeds_names_and_overrides_are_kept_apart(workspace, fits):
    for arguments in (("dssm", 0), ("dssm", 1), ("dssm_mean", 0)):
        workspace.trained(*arguments)
    workspace.trained("dssm", 0, logq=0.0)
    workspace.trained("dssm", 0, logq=0.0)
    workspace.trained("dssm", 0)
    assert fits == [0, 1, 0, 0]
    assert len(list(workspace.folder.glob("*/weights.safetensors"))) == 4


@pytest.mark.parametrize("victim", ["weights.safetensors", "history.json", "manifest.json"])
@pytest.mark.parametrize("harm", ["missing", "cut", "altered"])
def test_a_damaged_model_is_trained_again_and_one_line_says_so(workspace, fits, capsys, victim, harm):
    expected = workspace.trained("dssm", 0)[0].state_dict()
    path = workspace.folder / "dssm-seed0" / victim
    content = path.read_bytes()
    path.write_bytes(content[:50] if harm == "cut" else content.replace(b"e", b"f", 1))
    if harm == "missing":
        path.unlink()
        if victim == "manifest.json":  # then nothing says that these files are the course's own
            with pytest.raises(FileExistsError, match="holds other files"):
                workspace.trained("dssm", 0)
            return
    model, seconds = workspace.trained("dssm", 0)
    assert fits == [0, 0]
    assert seconds > 0
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert len(workspace.training_history("dssm", 0)) == 2
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("dssm-seed0 is unusable (") == line.endswith("; building it again") == True  # noqa: E712


def test_other_data_another_split_or_other_code_make_it_stale(workspace, tables, fits, capsys, monkeypatch):
    workspace.trained()
    fewer = Workspace("synthetic", tables=replace(tables, ratings=tables.ratings.iloc[:-1]), progress=False)
    fewer.trained()
    fewer.split = replace(fewer.split, train=fewer.split.train[1:])
    fewer.trained()
    monkeypatch.setattr(workspace_module, "code_digest", lambda: "edited")
    fewer.trained()
    assert len(fits) == 4
    assert capsys.readouterr().out.count("dssm-seed0 is stale") == 3


def test_every_module_that_decides_a_figure_counts(tmp_path, monkeypatch):
    package = tmp_path / "dssm_helpers"
    shutil.copytree(Path(dssm_helpers.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(dssm_helpers, "__file__", str(package / "__init__.py"))
    monkeypatch.setattr(workspace_module, "__file__", str(package / "course" / "workspace.py"))
    before, counted = code_digest(), set()
    for path in sorted(package.rglob("*.py")):
        content = path.read_bytes()
        path.write_bytes(content + b"# edited")
        if code_digest() != before:
            counted.add(path.relative_to(package).with_suffix("").as_posix())
        path.write_bytes(content)
    until = dssm_helpers.MODULES.index("index")
    assert counted == {"__init__", "course/workspace", *dssm_helpers.MODULES[:until]}


def test_a_training_that_is_interrupted_leaves_nothing(workspace, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(workspace_module, "save_weights", interrupted)
        with pytest.raises(KeyboardInterrupt):
            workspace.trained()
    assert list(workspace.folder.iterdir()) == []
    workspace.trained()


def test_any_encoded_data_will_do(tables, tmp_path, monkeypatch):
    monkeypatch.setenv("DSSM_ARTIFACTS_DIR", str(tmp_path))
    clicks = tables.ratings.assign(user_id="user " + tables.ratings["user_id"].astype(str))
    data = encode(clicks, schema=Schema(item="movie_id"), name="clicks")
    workspace = Workspace(data=data, progress=False)
    ids, vectors = workspace.item_vectors()
    assert vectors.shape == (len(ids), 8)
    assert workspace.folder == tmp_path / "clicks"


def test_artifacts_of_version_1_are_set_aside_with_a_word(workspace, tables, capsys):
    workspace.folder.mkdir(parents=True)
    (workspace.folder / "dssm-seed0.safetensors.made-from.json").write_text("{}")
    again = Workspace("synthetic", tables=tables, progress=False)
    assert not again.folder.exists()
    assert [path.name for path in again.folder.parent.iterdir()] == ["synthetic-version-1"]
    assert "moved to synthetic-version-1" in capsys.readouterr().out


def test_item_vectors_belong_to_their_movielens_ids(workspace):
    ids, vectors = workspace.item_vectors()
    assert vectors.shape == (workspace.data.n_items - 2, 8)
    assert vectors.dtype == np.float32
    assert vectors.flags.c_contiguous
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    batch = workspace.batches.items(workspace.data.vocabularies["item_id"].encode(ids[[3, 40]]))
    with torch.inference_mode():
        direct = workspace.trained()[0].item_tower(batch)
    np.testing.assert_allclose(vectors[[3, 40]], direct, atol=1e-5)


def test_the_order_of_training_changes_nothing(tables, tmp_path, monkeypatch, fits):
    def run(folder, *order):
        monkeypatch.setenv("DSSM_ARTIFACTS_DIR", str(tmp_path / folder))
        ws = Workspace("synthetic", tables=tables, progress=False)
        weights = {name: nn.utils.parameters_to_vector(ws.trained(name)[0].parameters()) for name in order}
        return [weights["dssm"], weights["dssm_mean"]]

    assert all(map(torch.equal, run("one", "dssm", "dssm_mean"), run("two", "dssm_mean", "dssm")))
    assert len(fits) == 4


def test_the_same_seed_builds_the_same_model_and_another_does_not(data):
    weights = [build_model(data, "dssm", seed).state_dict()["item_tower.mlp.0.weight"] for seed in (5, 5, 6)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


# -- results ----------------------------------------------------------------------------------------------------------


def test_results_merge_by_section_and_carry_the_protocol(workspace, tables):
    assert workspace.results() == {}
    workspace.record(models={"dssm": {"hit@10": 0.2}}, seeds=3)
    Workspace("synthetic", tables=tables, progress=False).record(models={"ease": {"hit@10": 0.1}}, retrieval={"a": 1})
    workspace.record(models={"dssm": {"hit@10": np.float32(0.5)}})
    results = json.loads((workspace.folder / "results.json").read_text(encoding="utf-8"))
    assert results["models"] == {"dssm": {"hit@10": 0.5}, "ease": {"hit@10": 0.1}}
    assert (results["retrieval"], results["seeds"], results["dataset"]) == ({"a": 1}, 3, "synthetic")
    assert "leave last out; candidates are all items" in results["protocol"]
    assert workspace.results() == results


@pytest.mark.parametrize("damaged", ['{"models": {', "[1, 2]", "\xff"])
def test_damaged_results_are_kept_and_start_anew_with_a_word(workspace, capsys, damaged):
    workspace.record(models={"dssm": {}})
    (workspace.folder / "results.json").write_text(damaged, encoding="latin-1")
    workspace.record(models={"ease": {}})
    assert workspace.results()["models"] == {"ease": {}}
    assert (workspace.folder / "results.json.damaged").read_text(encoding="latin-1") == damaged
    (line,) = capsys.readouterr().out.splitlines()
    assert "results.json is damaged (" in line


# -- names and settings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "options", "error", "said"),
    [
        ("dsm", {}, ValueError, r"unknown model 'dsm'; choose one of dssm, dssm_mean"),
        ("dssm", {"learnrate": 1}, TypeError, "learnrate"),
    ],
)
def test_unknown_names_are_refused(workspace, model, options, error, said):
    with pytest.raises(error, match=said):
        workspace.trained(model, **options)


def test_an_unwritable_folder_says_what_to_do(tables, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    monkeypatch.setenv("DSSM_ARTIFACTS_DIR", str(tmp_path / "file"))
    with pytest.raises(OSError, match="DSSM_ARTIFACTS_DIR"):
        Workspace("synthetic", tables=tables, progress=False).record(models={})
