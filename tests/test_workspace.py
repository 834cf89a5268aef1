"""Artefacts are built once, found again, and rebuilt with a word where they cannot be used."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from dssm_helpers.workspace import RECIPES, Recipe, Workspace, build_model, dataset_name, seeds, strict

from dssm_helpers import workspace as workspace_module
from dssm_helpers.files import sha256
from dssm_helpers.training import Trainer, TrainingConfig


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A small recipe, so that training takes a fraction of a second."""
    tiny = Recipe(dim=8, dims=(8,), max_history=5, training=TrainingConfig(epochs=2, batch_size=256))
    monkeypatch.setattr(workspace_module, "RECIPES", {"dssm": tiny, "dssm_mean": replace(tiny, pooling="mean")})
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


class Builder:
    """Writes a text and counts how often it had to."""

    def __init__(self, text: str = "content"):
        self.text, self.count = text, 0

    def __call__(self, path):
        self.count += 1
        path.write_text(self.text, encoding="utf-8")


def read(path) -> str:
    return path.read_text(encoding="utf-8")


# -- cached -----------------------------------------------------------------------------------------------------------


def test_built_once_and_loaded_ever_after(workspace, tables, capsys):
    build = Builder()
    assert [workspace.cached("a.txt", {"x": 1}, build, read) for _ in range(3)] == ["content"] * 3
    again = Workspace("synthetic", tables=tables, progress=False)
    assert again.cached("a.txt", {"x": 1}, build, read) == "content"
    assert build.count == 1
    assert capsys.readouterr().out == "", "nothing to tell when all is well"


def stale(workspace, path):
    return {"x": 2}


def damaged(workspace, path):
    path.write_text("contemt", encoding="utf-8")


def unfinished(workspace, path):
    path.with_name("a.txt.made-from.json").unlink()


def unreadable_note(workspace, path):
    path.with_name("a.txt.made-from.json").write_text("{", encoding="utf-8")


@pytest.mark.parametrize(
    ("harm", "word"),
    [(stale, "stale"), (damaged, "damaged"), (unfinished, "unfinished"), (unreadable_note, "unfinished")],
)
def test_an_unusable_artefact_is_rebuilt_and_one_line_says_so(workspace, capsys, harm, word):
    build = Builder()
    workspace.cached("a.txt", {"x": 1}, build, read)
    recipe = harm(workspace, workspace.folder / "a.txt") or {"x": 1}
    assert workspace.cached("a.txt", recipe, build, read) == "content"
    assert build.count == 2
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"a.txt is {word}")
    workspace.cached("a.txt", recipe, build, read)
    assert build.count == 2, "and then it is usable again"


def test_other_data_or_other_code_make_it_stale(workspace, tables, capsys, monkeypatch):
    build = Builder()
    workspace.cached("a.txt", {}, build, read)
    fewer = replace(tables, ratings=tables.ratings.iloc[:-1])
    Workspace("synthetic", tables=fewer, progress=False).cached("a.txt", {}, build, read)
    monkeypatch.setattr(workspace_module, "_code_digest", lambda: "edited")
    Workspace("synthetic", tables=fewer, progress=False).cached("a.txt", {}, build, read)
    assert build.count == 3
    assert capsys.readouterr().out.count("a.txt is stale") == 2


def test_a_build_that_fails_halfway_is_not_taken_for_an_artefact(workspace, capsys):
    def interrupted(path):
        path.write_text("half", encoding="utf-8")
        raise KeyboardInterrupt

    workspace.cached("a.txt", {}, Builder("old"), read)
    with pytest.raises(KeyboardInterrupt):
        workspace.cached("a.txt", {"new": True}, interrupted, read)
    assert workspace.cached("a.txt", {"new": True}, Builder("whole"), read) == "whole"
    assert "unfinished" in capsys.readouterr().out


def test_a_folder_is_an_artefact_too(workspace):
    def build(path):
        path.mkdir(exist_ok=True)
        (path / "part").write_text("1", encoding="utf-8")

    def load(path):
        return sorted(p.name for p in path.iterdir())

    assert workspace.cached("folder", {}, build, load) == ["part"]
    (workspace.folder / "folder" / "stray").write_text("", encoding="utf-8")
    before = sha256(workspace.folder / "folder")
    (workspace.folder / "folder" / "stray").rename(workspace.folder / "folder" / "other")
    assert sha256(workspace.folder / "folder") != before, "names count"


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
    workspace.trained("dssm", 0, logq=False)
    workspace.trained("dssm", 0, logq=False)
    workspace.trained("dssm", 0)
    assert fits == [0, 1, 0, 0]
    assert len(list(workspace.folder.glob("*.safetensors"))) == 4


@pytest.mark.parametrize("victim", ["dssm-seed0.safetensors", "dssm-seed0.safetensors.training.json"])
@pytest.mark.parametrize("harm", ["missing", "cut"])
def test_half_a_model_is_trained_again(workspace, fits, victim, harm):
    expected = workspace.trained("dssm", 0)[0].state_dict()
    path = workspace.folder / victim
    path.unlink() if harm == "missing" else path.write_bytes(path.read_bytes()[:50])
    model, seconds = workspace.trained("dssm", 0)
    assert fits == [0, 0]
    assert seconds > 0
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert len(workspace.training_history("dssm", 0)) == 2


def test_item_vectors_belong_to_their_movielens_ids(workspace):
    ids, vectors = workspace.item_vectors()
    assert vectors.shape == (workspace.data.n_items - 2, 8)
    assert vectors.dtype == np.float32
    assert vectors.flags.c_contiguous
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    batch = workspace.batches.items(workspace.data.vocabularies["movie_id"].encode(ids[[3, 40]]))
    with torch.inference_mode():
        direct = workspace.trained()[0].item_tower(batch)
    np.testing.assert_allclose(vectors[[3, 40]], direct, atol=1e-5)


def test_two_workspaces_in_another_order_agree(tables, tmp_path, monkeypatch, fits):
    def run(folder, order):
        monkeypatch.setenv("DSSM_ARTIFACTS_DIR", str(tmp_path / folder))
        ws = Workspace("synthetic", tables=tables, progress=False)
        models = {name: ws.trained(name, 0)[0].state_dict() for name in order}
        return {name: {k: v.clone() for k, v in models[name].items()} for name in sorted(models)}

    first, second = run("one", ["dssm", "dssm_mean"]), run("two", ["dssm_mean", "dssm"])
    assert len(fits) == 4
    for name, state in first.items():
        assert all(torch.equal(value, second[name][k]) for k, value in state.items()), name


def test_the_same_seed_builds_the_same_model_and_another_does_not(data):
    weights = [build_model(data, "dssm", seed).state_dict()["item_tower.mlp.0.weight"] for seed in (5, 5, 6)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


# -- results ----------------------------------------------------------------------------------------------------------


def test_results_merge_by_section_and_carry_the_protocol(workspace, tables):
    workspace.record(models={"dssm": {"hit@10": 0.2}}, seeds=3)
    Workspace("synthetic", tables=tables, progress=False).record(models={"ease": {"hit@10": 0.1}}, retrieval={"a": 1})
    workspace.record(models={"dssm": {"hit@10": np.float32(0.5)}})
    results = json.loads(workspace.results_path.read_text(encoding="utf-8"))
    assert results["models"] == {"dssm": {"hit@10": 0.5}, "ease": {"hit@10": 0.1}}
    assert (results["retrieval"], results["seeds"], results["dataset"]) == ({"a": 1}, 3, "synthetic")
    assert "leave-one-out" in results["protocol"]
    assert workspace.results() == results


def test_damaged_results_start_anew_with_a_word(workspace, capsys):
    workspace.record(models={"dssm": {}})
    workspace.results_path.write_text('{"models": {', encoding="utf-8")
    workspace.record(models={"ease": {}})
    assert workspace.results()["models"] == {"ease": {}}
    assert capsys.readouterr().out.splitlines() == ["results.json is damaged; starting it anew"]


def test_no_results_yet(workspace):
    assert workspace.results() == {}


# -- names and settings -----------------------------------------------------------------------------------------------


def test_an_unknown_model_lists_the_known_ones(workspace):
    with pytest.raises(ValueError, match=r"unknown model 'dsm'; choose one of dssm, dssm_mean"):
        workspace.trained("dsm")
    assert set(RECIPES) == {"dssm", "dssm_mean"}


def test_an_unknown_training_option_is_refused(workspace):
    with pytest.raises(TypeError, match="learnrate"):
        workspace.trained("dssm", learnrate=1)


@pytest.mark.parametrize(("text", "expected"), [(None, [0, 1, 2]), ("", [0, 1, 2]), ("1", [0]), ("5", [0, 1, 2, 3, 4])])
def test_number_of_seeds(monkeypatch, text, expected):
    if text is not None:
        monkeypatch.setenv("DSSM_SEEDS", text)
    assert seeds() == expected


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "²", " "])
def test_nonsense_for_the_number_of_seeds_is_refused(monkeypatch, text):
    monkeypatch.setenv("DSSM_SEEDS", text)
    with pytest.raises(ValueError, match="DSSM_SEEDS must be a whole number"):
        seeds()


@pytest.mark.parametrize(("text", "expected"), [(None, False), ("", False), ("0", False), ("1", True)])
def test_strict(monkeypatch, text, expected):
    if text is not None:
        monkeypatch.setenv("DSSM_STRICT", text)
    assert strict() is expected


def test_dataset_name_from_the_environment(monkeypatch):
    assert dataset_name() == "ml-100k"
    monkeypatch.setenv("DSSM_DATASET", "synthetic")
    assert dataset_name() == "synthetic"
    monkeypatch.setenv("DSSM_DATASET", "ml-10m")
    with pytest.raises(ValueError, match=r"ml-10m.*ml-100k, ml-1m, synthetic"):
        dataset_name()


def test_an_unwritable_folder_says_what_to_do(tables, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    monkeypatch.setenv("DSSM_ARTIFACTS_DIR", str(tmp_path / "file"))
    with pytest.raises(OSError, match="DSSM_ARTIFACTS_DIR"):
        Workspace("synthetic", tables=tables, progress=False).record(models={})
