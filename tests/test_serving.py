"""serving.py: the bundle is whole or refused, raw values in, titles out, no torch (notebook 09)."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import ROOT, make_model, notebook_definitions

from dssm_helpers import serving
from dssm_helpers.data import REQUEST, with_request_time
from dssm_helpers.evaluation import TwoTowerScorer, top_k
from dssm_helpers.features import BatchBuilder
from dssm_helpers.files import file_digest, read_manifest
from dssm_helpers.model import grown
from dssm_helpers.serving import Recommender, export_bundle
from dssm_helpers.vocabulary import FIRST, Vocabulary

NEW_ITEM = {"item_id": 5000, "title": "A New Film (1998)", "genres": "Action|Comedy", "year": 1998}


@pytest.fixture(scope="module")
def bundle(model, data, split, tmp_path_factory):
    return export_bundle(tmp_path_factory.mktemp("serving") / "bundle", model, data, split.train)


@pytest.fixture
def quick_export(bundle, model, data, split, tmp_path, monkeypatch):
    """Export the same model again without running the exporter again."""
    monkeypatch.setattr(
        "dssm_helpers.serving.export_onnx",
        lambda model, path, part, vocabularies: shutil.copyfile(bundle / f"{part}_tower.onnx", path),
    )
    return lambda **options: export_bundle(tmp_path / "bundle", model, data, split.train, **options)


@pytest.fixture
def recommender(bundle):
    return Recommender.load(bundle)


def with_file(bundle, name, content):
    """A recommender from the bundle as it would be, digests and all, with another content of one file."""
    manifest = read_manifest(bundle, "bundle")
    return Recommender(replace(manifest, files={**manifest.files, name: json.dumps(content).encode()}), None, "")


def answers(recommender):
    return [recommender.recommend(user, [user + 1, user + 50]).item_ids for user in range(1, 6)]


def test_served_answers_are_the_evaluated_ones(recommender, model, data, split, batches):
    users, movies = data.vocabularies["user_id"], data.vocabularies["item_id"]
    items, scores = top_k(TwoTowerScorer(model, batches), data, split.test, 5)
    for position, row, cosines in zip(split.test, items, scores, strict=True):
        (user,) = users.decode([data.user[position]])
        answer = recommender.recommend(user, movies.decode(data.history(position)), k=5)
        assert answer.item_ids == movies.decode(row)
        assert answer.titles == [data.titles[i] for i in row]
        assert answer.scores == pytest.approx(cosines, abs=1e-5)


def test_a_request_may_say_its_time(data, split, tmp_path):
    timed = with_request_time(data)
    model = make_model(timed, max_history=10)
    recommender = Recommender.load(export_bundle(tmp_path / "bundle", model, timed, split.train))
    users, movies = data.vocabularies["user_id"], data.vocabularies["item_id"]
    batches, positions = BatchBuilder(timed, max_history=10), split.test[:10]
    names = [column.name for column in REQUEST]
    found = {name: timed.vocabularies[name].decode(batches.users(positions)[name].numpy()) for name in names}
    items, _ = top_k(TwoTowerScorer(model, batches), timed, positions, 5)
    for row, position in enumerate(positions):
        (user,), history = users.decode([data.user[position]]), movies.decode(data.history(position))
        time = {name: found[name][row] for name in names}
        answer = recommender.recommend(
            {"user_id": user, **time, "request_days": time["request_days"] + 0.5}, history, k=5
        )
        assert answer.item_ids == movies.decode(items[row])
    batch = recommender.encode(user, history).batch
    assert [batch[name].tolist() for name in names] == [[1]] * 3  # unknown


def test_the_history_is_oldest_first_and_only_the_latest_reach_the_tower(recommender, data):
    movies = data.vocabularies["item_id"].values[:15].tolist()
    request = recommender.encode(history=movies)
    expected = data.vocabularies["item_id"].encode(movies[::-1][:10])
    assert request.batch["history"].tolist() == [expected.tolist()]
    assert request.seen == set(movies)


def test_ids_titles_and_numpy_values_mean_the_same(recommender, data):
    ids = data.vocabularies["item_id"].values[:3]
    titles = [recommender.titles[i].upper() + " " for i in ids.tolist()]
    assert recommender.recommend(history=ids) == recommender.recommend(history=titles)


@pytest.mark.parametrize(
    ("user", "history", "basis", "ignored"),
    [
        (1, None, "user", ()),
        ({"user_id": 1, "zip": 99999}, [], "user", ("zip 99999",)),
        (10**9, [2, 3], "history", (f"user_id {10**9}",)),
        ({"gender": None, "age": 33}, None, "demographics", ()),
        ({"age": 33, "gender": None, "zip": float("nan"), "occupation": ""}, None, "demographics", ()),
        ({"gender": "X"}, None, "popularity", ("gender 'X'",)),
    ],
)
def test_what_an_answer_rests_on_is_said(recommender, user, history, basis, ignored):
    answer = recommender.recommend(user, history, k=4)
    assert (answer.basis, answer.ignored, len(answer)) == (basis, ignored, 4)
    assert serving.BASES[basis] in str(answer)
    assert ("never seen in training" in str(answer)) == bool(ignored)


def test_demographics_of_a_known_user_are_filled_in_and_can_be_overridden(recommender, data):
    row = data.vocabularies["user_id"].encode([1])[0]
    batch = recommender.encode(1).batch
    assert all(batch[name][0] == column[row] for name, column in data.user_columns.items())
    assert recommender.encode({"user_id": 1, "age": 29}).batch["age"] == data.vocabularies["age"].encode([25])


def test_popularity_counts_training_ratings_and_excludes_the_seen(recommender, data, split):
    counts = data.item_counts(split.train)[2:]
    answer = recommender.recommend(k=5)
    assert answer.scores == sorted(counts.tolist(), reverse=True)[:5]
    for unknown in (10**6, 2**63, 10**30):  # says nothing about a user, however long the number
        again = recommender.recommend(history=[unknown], k=5)
        assert (again.basis, again.ignored) == ("popularity", (f"item {unknown}",))
        assert again.item_ids == answer.item_ids


def test_seeing_nearly_everything_leaves_the_rest(recommender):
    everything = list(recommender.titles)
    assert sorted(recommender.recommend(history=everything[:-2], k=5).item_ids) == sorted(everything[-2:])
    assert len(recommender.recommend(history=everything, k=5)) == 0
    assert len(recommender.recommend(k=len(everything))) == len(everything)


@pytest.mark.parametrize(
    ("call", "arguments", "message"),
    [
        ("recommend", {"history": ["Generated film 1"]}, "did you mean 'Generated film 1"),
        ("recommend", {"history": ["ilm 1   "]}, "did you mean 'Generated film 1"),
        ("recommend", {"history": ["x" * 100_000]}, r"called 'x{30,40}\.\.\.x{30,40}'; nothing"),
        ("recommend", {"history": "Generated film 1"}, "is a list"),
        ("recommend", {"history": 5.0}, "is a list"),
        ("recommend", {"history": [1.5]}, "history: expected text or a whole number"),
        ("recommend", {"history": [True]}, "history: expected text or a whole number"),
        ("recommend", {"user": {"sex": "F"}}, "the fields are user_id, gender, age, occupation, zip"),
        ("recommend", {"user": "1"}, "user_id: expected a whole number"),
        ("recommend", {"user": {"age": "old"}}, "age: expected a number"),
        ("recommend", {"k": 0}, "between 1 and 120"),
        ("recommend", {"k": 121}, "between 1 and 120"),
        ("add_item", {**NEW_ITEM, "item_id": 1}, "already in the catalogue: Generated film 1"),
        ("add_item", {**NEW_ITEM, "item_id": "x"}, "item_id: expected a whole number"),
        ("add_item", {**NEW_ITEM, "title": " "}, "needs a title"),
        ("add_item", {**NEW_ITEM, "genres": [], "year": None}, "give some: year, genres"),
    ],
)
def test_bad_requests_and_new_movies_are_refused_with_a_reason(recommender, call, arguments, message):
    with pytest.raises(ValueError, match=message):
        getattr(recommender, call)(**arguments)
    assert len(recommender.index.ids) == len(recommender.titles) == 120


def test_a_title_with_two_ids_stands_for_the_more_rated_and_excludes_both(bundle, data, split):
    counts = data.item_counts(split.train)
    rare, common = sorted((5, int(counts.argmax())), key=lambda item: counts[item])
    titles = list(data.titles)
    titles[rare] = titles[common]
    request = with_file(bundle, "titles.json", titles[2:]).encode(history=[titles[common]])
    assert request.batch["history"].tolist() == [[common]]
    assert request.seen == set(data.vocabularies["item_id"].decode([common, rare]))


@pytest.mark.parametrize(("column", "new"), [("item_id", 121), ("zip", "zzz")])
def test_a_rebuilt_vocabulary_is_refused_beside_an_old_tower(bundle, column, new):
    values = json.loads((bundle / "vocabularies.json").read_bytes())
    values[column] = [*values[column][1:], new]  # of the same size: each id is valid and means another row
    with pytest.raises(ValueError, match=f"user tower knows another vocabulary of {column}: "):
        with_file(bundle, "vocabularies.json", values)


def test_only_bytes_that_were_compared_are_served(bundle, recommender, tmp_path, monkeypatch):
    damaged = shutil.copytree(bundle, tmp_path / "damaged")
    (damaged / "item_vectors.npy").write_bytes(b"others")
    with pytest.raises(ValueError, match="was altered: item_vectors"):
        Recommender.load(damaged)

    def read_and_lose(path, kind):
        manifest = read_manifest(path, kind)
        shutil.rmtree(path)
        return manifest

    monkeypatch.setattr(serving, "read_manifest", read_and_lose)
    lost = Recommender.load(shutil.copytree(bundle, tmp_path / "copy"))
    assert lost.recommend(1, [2, 3]) == recommender.recommend(1, [2, 3])


def test_a_bundle_answers_where_torch_and_pandas_cannot_be_imported(bundle, recommender):
    code = (
        "import sys\n"
        "for name in ('torch', 'pandas', 'scipy', 'sklearn', 'onnx', 'safetensors'): sys.modules[name] = None\n"
        "from dssm_helpers.serving import Recommender\n"
        "r = Recommender.load(sys.argv[1])\n"
        "print(r.recommend({'user_id': 3, 'age': 40}, [4, 5, 6], k=6).item_ids)\n"
        "r.add_item(5000, 'A New Film (1998)', genres='Action', year=1998)\n"
    )
    found = subprocess.check_output([sys.executable, "-c", code, str(bundle)], cwd=ROOT, timeout=120)
    assert json.loads(found) == recommender.recommend({"user_id": 3, "age": 40}, [4, 5, 6], k=6).item_ids


@pytest.mark.parametrize("backend", ["annoy", "faiss", "milvus"])
def test_every_backend_serves_the_same_and_takes_new_movies(quick_export, recommender, backend):
    path = quick_export(backend=backend)
    other = Recommender.load(path)
    assert answers(other) == answers(recommender)
    vector = other.add_item(**NEW_ITEM)
    assert other.index.search(vector, 1)[0].tolist() == [[5000]]
    assert Recommender.load(path).index.search(vector, 1)[0].tolist() != [[5000]]  # the files are untouched


def test_milvus_is_where_the_caller_says_and_keeps_what_it_has(
    bundle, quick_export, recommender, tmp_path, monkeypatch
):
    here, elsewhere = str(tmp_path / "here.db"), str(tmp_path / "elsewhere.db")
    filled = quick_export(backend="milvus", uri=here)
    with pytest.raises(ValueError, match="uri="):  # no address is ever taken from a file
        Recommender.load(filled)
    with monkeypatch.context() as patch:
        patch.setattr(serving, "build_index", None)  # the export has filled it
        assert answers(Recommender.load(filled, uri=here)) == answers(recommender)
    first = Recommender.load(filled, uri=elsewhere)
    assert first.index.options["collection"] == f"items_{file_digest(bundle / 'item_vectors.npy')[:12]}"
    assert answers(first) == answers(recommender)
    vector = first.add_item(**NEW_ITEM)
    first.index.close()
    second = Recommender.load(bundle, uri=elsewhere)  # another server starts, from a bundle of another backend
    assert second.index.search(vector, 1)[0].tolist() == [[5000]]
    assert "item 5000" in second.recommend(1, k=120).titles  # of which this server knows only the id


def test_uri_and_token_reach_a_server(bundle, monkeypatch):
    monkeypatch.setattr(serving, "build_index", build := Mock())
    server = {"uri": "http://milvus:19530", "token": "user:secret"}
    Recommender.load(bundle, **server)
    assert server.items() <= build.call_args.kwargs.items()


def test_a_new_movie_has_the_vector_of_an_unknown_id_is_found_at_once_and_can_be_replaced(recommender, model, data):
    before = recommender.index
    vector = recommender.add_item(**NEW_ITEM)
    genres = data.vocabularies["genres"].encode(["Action", "Comedy"])
    year = data.vocabularies["year"].encode([1998])
    with torch.inference_mode():
        batch = {"item_id": torch.tensor([1]), "year": torch.tensor(year), "genres": torch.tensor(genres)[None]}
        assert vector == pytest.approx(model.item_tower(batch)[0].numpy(), abs=1e-5)
    assert recommender.index.search(vector, 1)[0].tolist() == [[5000]]
    assert 5000 not in before.ids  # a request in another thread keeps what it started with
    assert 5000 not in recommender.recommend(history=["a new film (1998)"], k=121).item_ids
    assert recommender.recommend(k=121).item_ids[-1] == 5000
    # Adding again replaces it, and its title.
    vector = recommender.add_item(5000, "Renamed (1990)", genres=["Drama"], year=1990)
    assert (recommender.index.ids == 5000).sum() == 1
    assert recommender.index.search(vector, 1)[0].tolist() == [[5000]]
    assert recommender.encode(history=["Renamed (1990)"]).seen == {5000}
    with pytest.raises(ValueError, match="no item is called"):
        recommender.encode(history=["A New Film (1998)"])


def test_without_users_an_id_of_text_is_unknown_too(model, data, split, tmp_path):
    names = Vocabulary("user_id", [f"u{number}" for number in range(data.n_users - FIRST)])
    named = replace(data, vocabularies={**data.vocabularies, "user_id": names})
    recommender = Recommender.load(export_bundle(tmp_path / "bundle", model, named, split.train, users=False))
    answer = recommender.recommend("u3", [2, 3], k=5)
    assert (answer.basis, answer.ignored) == ("history", ("user_id 'u3'",))
    assert answer.item_ids == recommender.recommend(None, [2, 3], k=5).item_ids
    assert recommender.recommend("").ignored == ()


def test_unknown_genres_and_years_count_as_unknown(recommender):
    one = recommender.add_item(5000, "A", genres="Nonsense", year=1700)
    assert one == pytest.approx(recommender.add_item(5001, "B", genres=["?"], year=3000), abs=1e-6)


def test_a_request_is_answered_from_the_catalogue_in_which_it_was_read(recommender, monkeypatch):
    encode = recommender.encode

    def encode_and_add(*request):
        read = encode(*request)
        recommender.add_item(**NEW_ITEM)  # as another thread does that gets in between
        return read

    monkeypatch.setattr(recommender, "encode", encode_and_add)
    with pytest.raises(ValueError, match="between 1 and 120"):
        recommender.recommend(1, [2], k=121)
    assert 5000 in recommender.titles


def test_readers_are_undisturbed_and_no_movie_is_lost_while_threads_add(recommender, monkeypatch):
    build = serving.build_index  # slow enough for the other threads to get in between
    monkeypatch.setattr(serving, "build_index", lambda *a, **kw: time.sleep(0.003) or build(*a, **kw))

    def read(_):
        answer = recommender.recommend(1, [2, 3], k=100)
        assert len(set(answer.item_ids)) == 100
        assert answer.titles == [recommender.titles[item] for item in answer.item_ids]

    def add(item_id):
        recommender.add_item(item_id, f"New {item_id}", genres="Action", year=1998)

    with ThreadPoolExecutor(4) as readers, ThreadPoolExecutor(4) as writers:
        for done in [readers.map(read, range(400)), writers.map(add, range(5000, 5040))]:
            list(done)  # raises what one of them has raised
    assert len(recommender.index.ids) == len(recommender.titles) == 160


def test_every_catalogue_that_goes_live_has_a_title_for_each_item_of_its_index(bundle):
    class Watched(Recommender):
        def __setattr__(self, name, value):
            if name == "catalogue":
                assert set(value.index.ids.tolist()) == value.titles.keys()
            super().__setattr__(name, value)

    assert len(Watched.load(bundle).add_item(**NEW_ITEM)) == 16


@pytest.fixture(scope="module")
def next_week(model, data, split, tmp_path_factory):
    """A bundle of a week later: a movie more, and other weights."""
    tables = {name: v.extended([5000] if name == "item_id" else v.values) for name, v in data.vocabularies.items()}
    columns = {n: np.concatenate([c, [np.full_like(c[0], len(tables["item_id"]) - 1)] if n == "item_id" else c[-1:]])
               for n, c in data.item_columns.items()}  # fmt: skip
    later = replace(data, vocabularies=tables, item_columns=columns, titles=[*data.titles, "A New Film (1998)"])
    network = grown(model, tables)
    network.item_tower.mlp[-1].weight.data.neg_()
    return export_bundle(tmp_path_factory.mktemp("next") / "bundle", network, later, split.train)


def test_weeks_go_live_and_back_under_load_without_a_mixture(bundle, next_week, data):
    requests = [(user, [user + 1, user + 50]) for user in range(1, 31)]
    alone = [[Recommender.load(path).recommend(*r) for r in requests] for path in (bundle, next_week)]
    assert not any(old == new for old, new in zip(*alone, strict=True))
    live, stop, begun = [Recommender.load(bundle)], threading.Event(), threading.Barrier(4)

    def client(seed):
        answers, order = [], random.Random(seed)
        begun.wait()
        while not stop.is_set():
            number = order.randrange(len(requests))
            answers.append((number, live[0].recommend(*requests[number])))
        return answers

    with ThreadPoolExecutor(3) as pool:
        clients = [pool.submit(client, seed) for seed in range(3)]
        try:
            begun.wait()
            for path in (next_week, bundle, next_week, bundle):
                tomorrow = Recommender.load(path)
                assert len(tomorrow.recommend(*requests[0])) == 10
                live[0] = tomorrow
                time.sleep(0.1)
        finally:
            stop.set()
    told = [[alone[week][number] == answer for week in (0, 1)] for done in clients for number, answer in done.result()]
    assert all(map(any, told))  # none that no bundle gives by itself
    assert all(np.sum(told, axis=0) > 10)  # and both weeks were live
    # Rolled back, the old bundle takes the newer movie for unknown; the others keep their ids.
    assert live[0].recommend(history=[5000, 2]).ignored == ("item 5000",)
    assert Recommender.load(next_week).recommend(history=[5000, 2]).ignored == ()
    later = Recommender.load(next_week)
    assert (
        later.encode(history=[3, 2]).batch["history"].tolist()
        == live[0].encode(history=[3, 2]).batch["history"].tolist()
    )


def test_a_grown_model_is_served_as_torch_has_it(next_week, model, data):
    later = Recommender.load(next_week)
    new = later.encode(history=[5000]).batch
    assert new["history"].tolist() == [[data.n_items]]
    unknown = {name: torch.tensor(ids) for name, ids in {**new, "history": np.array([[1]])}.items()}
    with torch.inference_mode():
        assert later.user_tower(new)[0] == pytest.approx(model.user_tower(unknown)[0].numpy(), abs=1e-5)


def test_the_notebook_builds_the_same(recommender):
    by_hand = notebook_definitions("09", "recommend_by_hand")["recommend_by_hand"]
    user = recommender.encode(3).batch.items()
    columns = {name: recommender.vocabularies[name].decode(ids)[0] for name, ids in user if name != "history"}
    tower, index, vocabularies = recommender.user_tower, recommender.index, recommender.vocabularies
    ids, scores = by_hand(tower, index, vocabularies, columns, [4, 5, 6], 5)
    answer = recommender.recommend(3, [4, 5, 6], k=5)
    assert answer.item_ids == ids
    assert answer.scores == pytest.approx(scores, abs=1e-5)


def test_the_form_of_the_notebook_asks_the_recommender(recommender):
    notebook = notebook_definitions("09", "form")
    notebook["recommender"] = recommender
    assert notebook["form"](["a", "b", "c"]).kwargs == {"films": ("a", "b")}
