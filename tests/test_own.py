"""``python -m dssm_helpers.course own``: from files to a served recommender, and what it says where that cannot be."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dssm_helpers import recipes
from dssm_helpers.course import own
from dssm_helpers.course.commands import main
from dssm_helpers.data import encode, split_by_time
from dssm_helpers.evaluation import Popularity, interaction_matrix, rank_targets
from dssm_helpers.movielens import MovieLens
from dssm_helpers.objectives import TrainingConfig
from dssm_helpers.recipes import Recipe
from dssm_helpers.schema import Schema
from dssm_helpers.serving import Recommender
from dssm_helpers.training import Trainer

served = pytest.mark.skipif(find_spec("onnxruntime") is None, reason="pip install onnx onnxscript onnxruntime")


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    tiny = Recipe(dim=8, dims=(8,), max_history=5, training=TrainingConfig(epochs=2, batch_size=256))
    monkeypatch.setattr(recipes, "RECIPES", {"dssm": tiny})
    monkeypatch.delenv("DSSM_DEVICE", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def log(tables: MovieLens) -> pd.DataFrame:
    names = {"user_id": "who", "movie_id": "what", "timestamp": "when"}
    return tables.ratings.rename(columns=names)[["who", "what", "when"]]


def run(log: pd.DataFrame, *options: str, columns: str = "--user who --item what --time when") -> int:
    log.to_csv("log.csv", index=False)
    return main(["own", "--interactions", "log.csv", "--out", "out", *columns.split(), *options])


@served
def test_from_files_to_a_request_and_a_second_run_that_trains_nothing(log, tables, capsys, monkeypatch):
    pytest.importorskip("pyarrow", reason="pip install pyarrow")
    log[700:].to_csv("b.csv", index=False)
    log[:700].assign(who=log["who"].astype(float)).to_parquet("a.parquet")
    tables.users.rename(columns={"user_id": "who"}).assign(zip=None).to_csv("users.csv", index=False)
    tables.movies.rename(columns={"movie_id": "what"}).to_csv("items.csv", index=False)
    command = "own --interactions a.parquet b.csv --user who --item what --time when --users users.csv "
    command += "--items items.csv --title title --mend --seeds 3 --k 4 --out out"
    assert main(command.split()) == 0
    said = capsys.readouterr().out
    for piece in ("who: decimals", "mended who: decimals: 1,500 rows before, 1,500 after", "genres (list)", "item_knn",
                  "age (number)", "popularity", "chance", "mean of 3 seeds", "a difference that counts",
                  "Recommender.load('out/bundle')"):  # fmt: skip
        assert piece in said, piece
    answer = Recommender.load("out/bundle").recommend(
        user=int(log["who"].iloc[0]), history=[int(log["what"].iloc[0])], k=4
    )
    assert len(answer) == 4
    assert answer.basis == "user"
    assert set(answer.titles) <= set(tables.movies["title"])
    results = Path("out/results.json").read_text()
    assert set(json.loads(results)["models"]) == {"dssm", "item_knn", "popularity", "chance"}
    monkeypatch.setattr(Trainer, "fit", lambda *_, **__: pytest.fail("it trained again"))
    assert main(command.split()) == 0
    assert Path("out/results.json").read_text() == results


@served
def test_nothing_is_mended_unless_it_was_asked_for(log, capsys):
    dirty = pd.concat([log, log[:3], log[5:7].assign(when=log["when"].max() + 9)])
    assert run(dirty) == 2
    said = capsys.readouterr()
    assert "frame = frame.drop_duplicates(['who', 'what', 'when'])" in said.out
    assert "first mend duplicates, repeats: in your file, or with --mend repeats (or --repeats)" in said.err
    assert not Path("out").exists()
    assert run(dirty, "--mend") == 2  # repeats are not the command's to decide
    assert run(dirty, "--mend", "repeats") == 0
    assert "mended duplicates: 1,505 rows before, 1,502 after" in capsys.readouterr().out


@served
def test_people_who_come_back_get_what_they_had(log, capsys):
    log = log.assign(what=log["what"] % 30).drop_duplicates(["who", "when"])
    assert run(log, "--repeats") == 0
    capsys.readouterr()
    user = int(log["who"].iloc[0])
    history = log.loc[log["who"] == user, "what"].tolist()
    recommender = Recommender.load("out/bundle")
    assert set(recommender.recommend(user, history, k=30).item_ids) > set(history)
    assert len(recommender.recommend(None, [], k=30)) == 30


def test_the_schema_says_whether_what_was_had_stays_a_candidate(log):
    log = log.assign(what=log["what"] % 30).drop_duplicates(["who", "when"])
    data = encode(log, schema=Schema("who", "what", "when", repeats=True))
    test = split_by_time(data).test
    had = np.array([data.item[p] in data.history(p) for p in test])
    scorer = Popularity(data, split_by_time(data).train)
    stay, removed = (rank_targets(scorer, data, test, remove_seen=remove) for remove in (None, True))
    assert had.any()
    assert stay[had].mean() < removed[had].mean()
    assert interaction_matrix(data, test).max() == interaction_matrix(data, np.arange(len(data))).max() == 1


@served
def test_without_a_time_the_file_is_the_order(log, capsys):
    assert run(log.drop(columns="when"), columns="--user who --item what") == 0
    assert "a lower line of the file counts as later" in capsys.readouterr().out


REFUSED = {
    "missing column": (lambda f: f.drop(columns="who"), (), "there is no column 'who'; found 'what', 'when'"),
    "empty": (lambda f: f[:0], (), "log.csv has no rows"),
    "one moment": (lambda f: f.assign(when=7), (), "first mend all times equal"),
    "one user": (lambda f: f.drop_duplicates("what").assign(who=1), (), "one user only"),
    "k": (lambda f: f, ("--k", "500"), "--k is 500; choose from 1 to 120"),
    "fifty rows": (
        lambda f: f.sort_values("who")[:50],
        (),
        "users can be tested, and 30 are the least",
    ),
    "no such file": (lambda f: f, ("--items", "none.csv"), "none.csv"),
    "no title": (lambda f: f, ("--items", "log.csv", "--title", "name"), "log.csv has no column 'name'"),
    "names": (lambda f: f.assign(history="x", n="x"), ("--users", "log.csv"), "rename history"),
    "no such check": (lambda f: f, ("--mend", "everything"), "no check is called everything"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_say_what_to_do(log, name, capsys):
    spoil, options, message = REFUSED[name]
    assert run(spoil(log), *options) == 2
    assert message in capsys.readouterr().err
    assert not Path("out/bundle").exists()


@pytest.mark.parametrize("name", ["thesis.txt", "results.json"])
def test_foreign_files_are_left_alone(log, name, capsys):
    Path("out").mkdir()
    Path("out", name).write_text("mine")
    assert run(log) == 2
    assert f"holds other files ({name}); choose a folder of its own" in capsys.readouterr().err
    assert [(path.name, path.read_text()) for path in Path("out").iterdir()] == [(name, "mine")]
    Path("file").write_text("mine")
    assert run(log, "--out", "file") == 2


@served
def test_a_large_catalogue_goes_without_item_knn(log, capsys, monkeypatch):
    monkeypatch.setattr(own, "MOST_ITEMS", 10)
    assert run(log, "--epochs", "1") == 0
    said = capsys.readouterr().out
    assert "item-kNN is left out" in said
    assert "over popularity" in said
    assert "--seeds 3" in said


def test_what_a_bundle_needs_is_asked_for_before_the_training(log, capsys, monkeypatch):
    monkeypatch.setattr(own, "find_spec", lambda name: None)
    monkeypatch.setattr(Trainer, "fit", lambda *_, **__: pytest.fail("it trained"))
    assert run(log) == 2
    assert "a bundle needs onnx, onnxscript, onnxruntime: pip install onnx" in capsys.readouterr().err


def test_the_help_names_the_options(capsys):
    with pytest.raises(SystemExit):
        main(["own", "--help"])
    said = capsys.readouterr().out
    assert all(
        f"--{name}" in said for name in ("interactions", "user", "item", "time", "users", "items", "mend", "out")
    )
