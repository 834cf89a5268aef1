"""serving.py: the bundle is whole or refused, raw values in, titles out, no torch (notebook 09)."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import ROOT, notebook_definitions
from test_onnx_export import make_model

from dssm_helpers import serving
from dssm_helpers.data import EncodedData
from dssm_helpers.evaluation import TwoTowerScorer, top_k
from dssm_helpers.files import file_digest, read_manifest, write_folder
from dssm_helpers.serving import Recommender, export_bundle

NEW_ITEM = {"title": "A New Film (1998)", "genres": "Action|Comedy", "year": 1998}


@pytest.fixture(scope="module")
def model(data):
    return make_model(data, max_history=10)


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
    return lambda data=data, **options: export_bundle(tmp_path / "bundle", model, data, split.train, **options)


@pytest.fixture
def recommender(bundle):
    return Recommender.load(bundle)


def raw_request(data, position):
    user = data.vocabularies["user_id"].decode([data.user[position]])[0]
    return user, data.vocabularies["item_id"].decode(data.history(position))


@pytest.fixture
def requests(data, split):
    return [raw_request(data, position) for position in split.test[:5]]


def answers(recommender, requests):
    return [recommender.recommend(*request).item_ids for request in requests]


def test_served_answers_are_the_evaluated_ones(recommender, model, data, split, batches):
    items, scores = top_k(TwoTowerScorer(model, batches), data, split.test, 5)
    for position, row, cosines in zip(split.test, items, scores, strict=True):
        answer = recommender.recommend(*raw_request(data, position), k=5)
        assert answer.item_ids == data.vocabularies["item_id"].decode(row)
        assert answer.titles == [data.titles[i] for i in row]
        assert answer.scores == pytest.approx(cosines, abs=1e-5)


def test_the_history_is_oldest_first_and_only_the_latest_reach_the_tower(recommender, data):
    movies = data.vocabularies["item_id"].values[:15].tolist()
    request = recommender.encode(history=movies)
    expected = data.vocabularies["item_id"].encode(movies[::-1][:10])
    assert request.batch["history"].tolist() == [expected.tolist()]
    assert request.seen == set(movies)
    forth, back = (recommender.recommend(history=h, k=3) for h in (movies, movies[::-1]))
    assert forth.scores != pytest.approx(back.scores, abs=1e-4)


def test_ids_titles_and_numpy_values_mean_the_same(recommender, data):
    ids = data.vocabularies["item_id"].values[:3]
    titles = [recommender.titles[i].upper() + " " for i in ids.tolist()]
    assert recommender.recommend(history=ids) == recommender.recommend(history=titles)
    assert not set(recommender.recommend(history=titles, k=50).item_ids) & set(ids.tolist())


@pytest.mark.parametrize(
    ("user", "with_history", "basis", "ignored"),
    [
        (1, False, "user", ()),
        ({"user_id": 1, "zip": "?"}, False, "user", ("zip '?'",)),
        (10**9, True, "history", (f"user_id {10**9}",)),
        ({"gender": "F"}, False, "demographics", ()),
        ({"age": 33, "gender": None, "zip": float("nan"), "occupation": ""}, False, "demographics", ()),
        ({"gender": "X"}, False, "popularity", ("gender 'X'",)),
        (None, False, "popularity", ()),
    ],
)
def test_what_an_answer_rests_on_is_said(recommender, data, user, with_history, basis, ignored):
    history = data.vocabularies["item_id"].values[:2].tolist() if with_history else None
    answer = recommender.recommend(user, history, k=4)
    assert (answer.basis, answer.ignored, len(answer)) == (basis, ignored, 4)
    assert serving.BASES[basis] in str(answer)


def test_demographics_of_a_known_user_are_filled_in_and_can_be_overridden(recommender, data):
    row = data.vocabularies["user_id"].encode([1])[0]
    batch = recommender.encode(1).batch
    assert all(batch[name][0] == column[row] for name, column in data.user_columns.items())
    ages = data.vocabularies["age"]
    assert recommender.encode({"user_id": 1, "age": 29}).batch["age"][0] == ages.encode([25])[0]


def test_an_integer_zip_keeps_its_leading_zeros(recommender, data):
    area = str(data.vocabularies["zip"].values[0])
    assert area.startswith("0")
    assert recommender.encode({"zip": int(area + "07")}).batch["zip"][0] == data.vocabularies["zip"].encode([area])[0]


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
    ("arguments", "message"),
    [
        ({"history": ["Generated film 1"]}, "no item is called 'Generated film 1'; did you mean 'Generated film 1"),
        ({"history": ["qqq"]}, "nothing is spelled like it"),
        ({"history": "Generated film 1"}, "history is a list"),
        ({"history": 3}, "history is a list"),
        ({"history": [1.5]}, "history: expected text or a whole number, got 1.5"),
        ({"user": {"sex": "F"}}, "no field 'sex'; the fields are user_id, gender, age, occupation, zip"),
        ({"user": "1"}, "user_id: expected a whole number, got '1'"),
        ({"user": {"age": "old"}}, "age: expected a number, got 'old'"),
        ({"user": {"age": -3}}, "age: expected between 0 and 130, got -3"),
        ({"k": 0}, "k must be between 1 and 120"),
        ({"k": 121}, "k must be between 1 and 120"),
        ({"k": 2.5}, "k: expected a whole number, got 2.5"),
        ({"history": ["x" * 100_000]}, r"no item is called 'x{30,40}\.\.\.x{30,40}'; nothing"),
    ],
)
def test_bad_requests_are_refused_with_a_reason(recommender, arguments, message):
    with pytest.raises(ValueError, match=message):
        recommender.recommend(**arguments)


def test_a_title_with_two_ids_stands_for_the_more_rated_and_excludes_both(quick_export, data, split):
    counts = data.item_counts(split.train)
    rare, common = sorted((5, int(counts.argmax())), key=lambda item: counts[item])
    titles = list(data.titles)
    titles[rare] = titles[common]
    twins = EncodedData(**{**data.__dict__, "titles": titles})
    recommender = Recommender.load(quick_export(twins))
    request = recommender.encode(history=[titles[common]])
    assert request.batch["history"].tolist() == [[common]]
    assert request.seen == set(data.vocabularies["item_id"].decode([common, rare]))


def test_every_file_is_listed_and_damage_is_refused_by_name(bundle, tmp_path):
    files = {p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file()} - {"manifest.json"}
    assert files == set(read_manifest(bundle, "bundle").files)
    copy = shutil.copytree(bundle, tmp_path / "copy")
    for name in files:
        content = (copy / name).read_bytes()
        (copy / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(ValueError, match=f"was altered: {name}"):
            Recommender.load(copy)
        (copy / name).unlink()
        with pytest.raises(FileNotFoundError, match=f"incomplete: {name} is missing"):
            Recommender.load(copy)
        (copy / name).write_bytes(content)


@pytest.mark.parametrize(("column", "new"), [("item_id", 121), ("zip", "zzz")])
def test_a_rebuilt_vocabulary_is_refused_beside_an_old_tower_in_a_sound_folder(bundle, tmp_path, column, new):
    manifest = read_manifest(bundle, "bundle")
    values = json.loads(manifest.files["vocabularies.json"])
    values[column] = [*values[column][1:], new]  # of the same size: each id is valid and means another row
    with write_folder(tmp_path / "bundle", "bundle", manifest.fields) as folder:
        (folder / "index").mkdir()
        for name, content in {**manifest.files, "vocabularies.json": json.dumps(values).encode()}.items():
            (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"user tower knows another vocabulary of {column}: "):
        Recommender.load(tmp_path / "bundle")


def test_a_folder_that_goes_after_its_digests_were_compared_is_no_matter(bundle, recommender, tmp_path, monkeypatch):
    def read_and_lose(path, kind):
        manifest = read_manifest(path, kind)
        shutil.rmtree(path)
        return manifest

    monkeypatch.setattr(serving, "read_manifest", read_and_lose)
    lost = Recommender.load(shutil.copytree(bundle, tmp_path / "copy"))
    assert lost.recommend(1, [2, 3]) == recommender.recommend(1, [2, 3])


def test_a_failed_export_leaves_the_good_bundle_and_other_files(quick_export, tmp_path):
    path = quick_export()
    with pytest.raises(ValueError, match="unknown backend"):
        quick_export(backend="nearest")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    (path / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"holds other files \(thesis.txt\)"):
        quick_export()
    assert len(Recommender.load(path).recommend(1, k=3)) == 3
    assert (path / "thesis.txt").read_text() == "years of work"


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


@pytest.mark.parametrize(
    "options",
    [
        {"backend": "annoy", "search_k": 100_000},
        {"backend": "faiss", "kind": "flat"},
        {"backend": "faiss", "kind": "hnsw"},
        {"backend": "milvus"},
    ],
)
def test_every_backend_serves_the_same_and_takes_new_movies(quick_export, recommender, requests, options):
    path = quick_export(**options)
    other = Recommender.load(path)
    assert answers(other, requests) == answers(recommender, requests)
    vector = other.add_item(5000, **NEW_ITEM)
    assert other.index.search(vector, 1)[0].tolist() == [[5000]]
    assert Recommender.load(path).index.search(vector, 1)[0].tolist() != [[5000]]  # the files are untouched


def test_any_bundle_is_served_from_milvus_by_uri_and_nothing_there_is_deleted(bundle, recommender, requests, tmp_path):
    uri = str(tmp_path / "movies.db")
    first = Recommender.load(bundle, uri=uri)
    assert first.index.options["collection"] == f"items_{file_digest(bundle / 'item_vectors.npy')[:12]}"
    assert answers(first, requests) == answers(recommender, requests)
    vector = first.add_item(5000, **NEW_ITEM)
    first.index.close()
    second = Recommender.load(bundle, uri=uri)  # another server starts
    assert second.index.search(vector, 1)[0].tolist() == [[5000]]
    assert "item 5000" in second.recommend(1, k=120).titles  # of which this server knows only the id


def test_a_milvus_bundle_fills_its_collection_once(quick_export, recommender, requests, tmp_path, monkeypatch):
    path = quick_export(backend="milvus", uri=str(tmp_path / "here.db"))
    with pytest.raises(ValueError, match="say where by uri="):  # no address is ever taken from a file
        Recommender.load(path)
    for place, build in (("elsewhere.db", serving.build_index), ("here.db", None)):
        monkeypatch.setattr(serving, "build_index", build)
        assert answers(Recommender.load(path, uri=str(tmp_path / place)), requests) == answers(recommender, requests)


def test_uri_and_token_reach_a_server(bundle, monkeypatch):
    calls = []
    monkeypatch.setattr(serving, "build_index", lambda *a, **options: calls.append(options))
    server = {"uri": "http://milvus:19530", "token": "user:secret"}
    Recommender.load(bundle, **server)
    assert server.items() <= calls[0].items()


def test_a_new_movie_has_the_vector_of_an_unknown_id_and_is_found_at_once(recommender, model, data):
    before = recommender.index
    vector = recommender.add_item(5000, **NEW_ITEM)
    genres = data.vocabularies["genres"].encode(["Action", "Comedy"])
    year = data.vocabularies["year"].encode([1998])
    with torch.inference_mode():
        batch = {"item_id": torch.tensor([1]), "year": torch.tensor(year), "genres": torch.tensor(genres)[None]}
        assert vector == pytest.approx(model.item_tower(batch)[0].numpy(), abs=1e-5)
    assert recommender.index.search(vector, 1)[0].tolist() == [[5000]]
    assert 5000 not in before.ids  # a request in another thread keeps what it started with
    assert 5000 not in recommender.recommend(history=["a new film (1998)"], k=121).item_ids
    assert recommender.recommend(k=121).item_ids[-1] == 5000


def test_adding_again_replaces_also_the_title(recommender):
    recommender.add_item(5000, **NEW_ITEM)
    vector = recommender.add_item(5000, "Renamed (1990)", genres=["Drama"], year=1990)
    assert (recommender.index.ids == 5000).sum() == 1
    assert recommender.index.search(vector, 1)[0].tolist() == [[5000]]
    assert recommender.encode(history=["Renamed (1990)"]).seen == {5000}
    with pytest.raises(ValueError, match="no item is called"):
        recommender.encode(history=["A New Film (1998)"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"item_id": 1}, "item 1 is already in the catalogue: Generated film 1"),
        ({"item_id": "x"}, "item_id: expected a whole number"),
        ({"title": " "}, "needs a title"),
        ({"genres": [], "year": None}, "sees only its columns, so give some: year, genres"),
        ({"colour": "red"}, "the item has no field 'colour'; the fields are year, genres"),
        ({"year": "1998"}, "year: expected a whole number"),
    ],
)
def test_bad_new_movies_are_refused(recommender, change, message):
    with pytest.raises(ValueError, match=message):
        recommender.add_item(**{"item_id": 5000, **NEW_ITEM, **change})
    assert 5000 not in recommender.titles
    assert len(recommender.index.ids) == 120


def test_unknown_genres_and_years_count_as_unknown(recommender):
    one = recommender.add_item(5000, "A", genres="Nonsense", year=1700)
    assert one == pytest.approx(recommender.add_item(5001, "B", genres=["?"], year=3000), abs=1e-6)


def test_readers_are_undisturbed_and_no_movie_is_lost_while_threads_add(recommender, monkeypatch):
    build = serving.build_index  # slow enough for the other threads to get in between
    monkeypatch.setattr(serving, "build_index", lambda *a, **kw: time.sleep(0.003) or build(*a, **kw))

    def read():
        for _ in range(100):
            answer = recommender.recommend(1, [2, 3], k=100)
            assert len(set(answer.item_ids)) == 100
            assert all(recommender.titles[i] == t for i, t in zip(answer.item_ids, answer.titles, strict=True))

    def add(first):
        for item_id in range(first, first + 10):
            recommender.add_item(item_id, f"New {item_id}", genres="Action", year=1998)

    with ThreadPoolExecutor(8) as pool:
        done = [pool.submit(read) for _ in range(4)] + [pool.submit(add, 5000 + 10 * n) for n in range(4)]
    assert [task.exception() for task in done] == [None] * 8
    assert len(recommender.index.ids) == len(recommender.titles) == 160


def test_the_notebook_builds_the_same(recommender, data, split):
    by_hand = notebook_definitions("09", "recommend_by_hand")["recommend_by_hand"]
    for position in split.test[:5]:
        user_id, history = raw_request(data, position)
        columns = {n: data.vocabularies[n].decode([c[data.user[position]]])[0] for n, c in data.user_columns.items()}
        history = history[-10:]  # the model of this test has max_history 10, the notebook's 50
        ids, scores = by_hand(recommender.user_tower, recommender.index, recommender.vocabularies, columns, history, 5)
        answer = recommender.recommend(user_id, history, k=5)
        assert answer.item_ids == ids
        assert answer.scores == pytest.approx(scores, abs=1e-5)


@pytest.mark.parametrize(
    ("asked", "session", "expected"), [("", "", False), ("", "lab", True), ("0", "lab", False), ("1", "", True)]
)
def test_the_form_appears_only_where_somebody_can_click(recommender, monkeypatch, asked, session, expected):
    notebook = notebook_definitions("09", "live_front_end", "form")
    for name, value in (("DSSM_WIDGETS", asked), ("JPY_SESSION_NAME", session)):
        monkeypatch.setenv(name, value)
        if not value:
            monkeypatch.delenv(name)
    assert notebook["live_front_end"]() is expected
    notebook["recommender"] = recommender
    titles = list(recommender.titles.values())[:5]
    assert notebook["form"](titles).kwargs == {"films": tuple(titles[:2])}
