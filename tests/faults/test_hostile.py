"""Odd tables and files of strangers: nothing runs, nothing outside is read, and what is odd is right or refused."""

from __future__ import annotations

import io
import os
import traceback
import zipfile
from pathlib import Path
from unittest import mock

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import small
import test_movielens
from test_movielens import DataUnavailable, assert_expected, load, unpacked

from dssm_helpers import movielens
from dssm_helpers.data import EncodedData, encode, split_by_time
from dssm_helpers.files import read_manifest, write_folder
from dssm_helpers.index import load_arrays
from dssm_helpers.movielens import SCHEMA
from dssm_helpers.onnx_export import OnnxTower
from dssm_helpers.recipes import build_model
from dssm_helpers.retrieval import build_index, load_index
from dssm_helpers.schema import Schema
from dssm_helpers.serving import Recommender, export_bundle
from dssm_helpers.tables import read_tables
from dssm_helpers.visualization import draw_map

server = test_movielens.server
fault = pytest.mark.fault
REFUSED = "a line that names it"

TITLES = [
    'The "Quoted", and, comma (1990)', "Emoji 🎬🍿 (1991)", "A | pipe | and *stars* _and_ `ticks` (1992)",
    "Cost: $5 or $6",
    "<script>alert(1)</script> (1993)", "<b>bold</b> & more", "two\nlines", "عربى ‮ rtl", "=1+1", "a" * 5000, "[x](http://e)",
]  # fmt: skip


@fault("titles with quotes, commas, emoji, pipes, formulas and markup", "them, as text and on one line", "every letter")
def test_titles_are_text(tmp_path):
    tables = small.TABLES["a"]
    movies = tables.movies.copy()
    movies.loc[: len(TITLES) - 1, "title"] = TITLES
    data = encode(tables.ratings, tables.users, movies, movielens.SCHEMA)
    everything = np.arange(len(data))
    with small.converted_once():
        path = export_bundle(tmp_path / "bundle", small.untrained("a"), data, everything)
    recommender = Recommender.load(path)
    answer = recommender.recommend(3, k=100)
    assert sorted(answer.titles) == sorted(movies["title"])
    assert len(str(answer).splitlines()) == 101
    for raw, title in zip(movies["movie_id"].tolist(), TITLES, strict=False):
        assert recommender.encode(history=[title]).seen == {raw}
    page = movies[["title"]].to_html()
    assert "<script>" not in page
    assert "<b>" not in page
    figure, ax = plt.subplots()
    names = ["a $ b $ c", "<b>", "d", "", "e"] * 2 + ["f_{x}^"]
    draw_map(ax, np.random.default_rng(0).normal(size=(len(TITLES), 2)), names, dict(enumerate(TITLES)))
    figure.canvas.draw()
    assert "<b>" in [text.get_text() for text in ax.legend().get_texts()]
    figure.canvas.draw()
    plt.close(figure)


def tables_with(**odd: object) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """The small tables with another value in the first movie, user or rating, wherever it stands."""
    frames = {name: getattr(small.TABLES["a"], name).copy() for name in ("ratings", "users", "movies")}
    for column, value in odd.items():
        name = next(n for n in ("movies", "users", "ratings") if column in frames[n])
        old = frames[name].loc[0, column]
        for frame in frames.values() if column.endswith("_id") else [frames[name]]:
            if column in frame:
                frame[column] = frame[column].astype(object).mask(frame[column] == old, value)
                frame[column] = frame[column].infer_objects()
    return tuple(frames.values())


@fault("times in the future, negative ids", "nothing", "their order; each id is itself")
def test_what_is_odd_and_harmless(tmp_path):
    for odd in ({"timestamp": 2**62}, {"timestamp": -5}, {"movie_id": -7}, {"user_id": -(2**62)}, {"movie_id": 2**62}):
        data = encode(*tables_with(**odd), movielens.SCHEMA)
        assert len(data) == 700
        for column, vocabulary in (("movie_id", "item_id"), ("user_id", "user_id")):
            if column in odd:
                (index,) = data.vocabularies[vocabulary].encode([odd[column]])
                assert index > 1
                assert data.vocabularies[vocabulary].decode([index]) == [odd[column]]


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        pytest.param(odd, message, marks=fault(what, REFUSED, "nothing is encoded"), id=what)
        for what, odd, message in (
            ("an id beyond 63 bits", {"movie_id": 2**63}, "movie_id.*beyond 63 bits; make these ids text"),
            ("an id of thirty digits", {"user_id": 10**30}, "user_id.*beyond 63 bits; make these ids text"),
            ("half an id", {"user_id": 1.5}, "user_id"),
            ("no id", {"movie_id": None}, "movie_id"),
            ("an age below zero", {"age": -5}, "age: expected between 0 and 130"),
            ("half a second", {"timestamp": 0.5}, "timestamp: expected whole numbers"),
            ("a time of thirty digits", {"timestamp": 10**30}, "timestamp: expected whole numbers"),
        )
    ],
)
def test_what_would_be_wrong_is_refused(odd, message):
    with pytest.raises(ValueError, match=message):
        encode(*tables_with(**odd), movielens.SCHEMA)


@fault("ids of 64 bits without a sign, as hashes are", REFUSED, "nothing is encoded")
def test_unsigned_ids_do_not_wrap():
    clicks = pd.DataFrame(
        {"user_id": [1, 1, 2], "item_id": np.array([2**63 + 1, 2**63 + 2, 2**63 + 1], dtype="uint64")}
    )
    with pytest.raises(ValueError, match="beyond 63 bits"):
        encode(clicks.assign(timestamp=[1, 2, 3]), schema=Schema())


@fault("every row ten times", REFUSED, "nothing is encoded")
def test_duplicates_are_refused():
    tables = small.TABLES["a"]
    with pytest.raises(ValueError, match=r"6300 duplicate rows.*drop_duplicates"):
        encode(pd.concat([tables.ratings] * 10), tables.users, tables.movies, movielens.SCHEMA)


CSV = 'who,what,when\n1,"a, ""b"" | c",5\n2,é🎬,6\n'


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(content, marks=fault(f"a CSV {what}", "nothing", "the same table"), id=what)
        for what, content in (
            ("with a byte order mark", CSV.encode("utf-8-sig")),
            ("with Windows' line ends", CSV.replace("\n", "\r\n").encode()),
            ("with another separator", CSV.replace(",", ";").replace("a; ", "a, ").encode()),
        )
    ],
)
def test_a_csv_of_another_dialect_is_the_same_table(tmp_path, content):
    for name, bytes_ in (("plain.csv", CSV.encode()), ("odd.csv", content)):
        (tmp_path / name).write_bytes(bytes_)
    pd.testing.assert_frame_equal(read_tables(tmp_path / "odd.csv"), read_tables(tmp_path / "plain.csv"))
    assert read_tables(tmp_path / "odd.csv")["what"].tolist() == ['a, "b" | c', "é🎬"]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
@fault("a CSV of another encoding", "that it is no UTF-8", "nothing is guessed")
def test_another_encoding_is_refused(tmp_path, encoding):
    (tmp_path / "odd.csv").write_bytes(CSV.replace("🎬", "").encode(encoding))
    with pytest.raises(ValueError, match="utf-8"):
        read_tables(tmp_path / "odd.csv")


@fault("MovieLens saved again by an editor: line ends, a byte order mark, UTF-8", "nothing; or the file is named",
       "the same tables")  # fmt: skip
@pytest.mark.parametrize("change", ["line ends", "byte order mark", "UTF-8"])
def test_movielens_saved_again(server, tmp_path, monkeypatch, change):
    monkeypatch.setattr(movielens, "_pip_download", mock.Mock(side_effect=OSError("no index")))
    for file in unpacked("ml-100k", tmp_path).iterdir():
        text = file.read_text(encoding="latin-1")
        encoding = {"UTF-8": "utf-8", "byte order mark": "utf-8-sig"}.get(change, "latin-1")
        file.write_bytes((text.replace("\n", "\r\n") if change == "line ends" else text).encode(encoding))
    try:
        tables = load("ml-100k", tmp_path)
    except DataUnavailable as refused:
        assert change == "byte order mark" and f"unpacked folder {tmp_path}" in str(refused)  # noqa: PT017, PT018
    else:
        assert_expected(tables)


def archive(*entries: tuple[str, bytes], link: str = "") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in entries:
            file.writestr(name, content)
        if link:
            entry = zipfile.ZipInfo("ml-100k/u.data")
            entry.external_attr = 0o120777 << 16
            file.writestr(entry, link)
    return buffer.getvalue()


ZIPS = {
    "with names that climb out of its folder": archive(("../../evil.txt", b"evil"), ("/tmp/evil.txt", b"evil")),
    "with a link": archive(link="/etc/passwd"),
    "that unpacks to a thousand times its size": archive(("ml-100k/u.data", bytes(2**25))),
}


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(c, id=what, marks=fault(f"a zip {what}", REFUSED, "the zip; it is not opened"))
        for what, c in ZIPS.items()
    ],
)
def test_a_zip_is_opened_only_if_it_is_the_published_one(server, tmp_path, monkeypatch, content):
    monkeypatch.setattr(movielens, "_pip_download", mock.Mock(side_effect=OSError("no index")))
    monkeypatch.setattr(zipfile, "ZipFile", mock.Mock(side_effect=AssertionError("it was opened")))
    (tmp_path / "ml-100k.zip").write_bytes(content)
    with pytest.raises(DataUnavailable, match=r"ml-100k\.zip: not the published file"):
        load("ml-100k", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["ml-100k.zip"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ours")
    small.save_bundle(folder, "a")
    return folder / "bundle"


def strangers(bundle: Path, target: Path, name: str, content: bytes) -> Path:
    """The bundle with another content of one file, its digests right."""
    manifest = read_manifest(bundle, "bundle")
    with write_folder(target, "bundle", manifest.fields) as folder:
        for file, ours in {**manifest.files, name: content}.items():
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_bytes(ours)
    return target


class Payload:
    def __reduce__(self):
        return os.mkdir, ("it_ran",)


def saved(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    if arrays.keys() == {"only"}:
        np.save(buffer, arrays["only"], allow_pickle=True)
    else:
        np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def boasting() -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": (10**13, 8)})
    return buffer.getvalue()


def with_data_outside(location: str) -> bytes:
    from onnx import TensorProto, helper

    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        weight.external_data.add(key=key, value=value)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    opset = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString()


STRANGERS = [
    pytest.param(name, content, id=what, marks=fault(f"a stranger's bundle: {what}", REFUSED, "nothing runs"))
    for what, name, content in (
        ("a pickle among its arrays", "popularity.npy", saved(only=np.array([Payload()], dtype=object))),
        ("a pickle in an archive", "users.npz", saved(gender=np.array([Payload()], dtype=object), age=np.zeros(3))),
        ("an archive that unpacks to a thousand times its size", "users.npz", saved(a=np.zeros(2**23), b=np.zeros(9))),
        ("vectors of which ten trillion are promised", "item_vectors.npy", boasting()),
        ("an empty file of vectors", "item_vectors.npy", b""),
    )
]


@pytest.mark.parametrize(("name", "content"), STRANGERS)
def test_a_strangers_bundle_runs_nothing(bundle, tmp_path, monkeypatch, name, content):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="no arrays of ours"):
        Recommender.load(strangers(bundle, tmp_path / "theirs", name, content))
    assert not Path("it_ran").exists()


@fault("a stranger's ONNX file with weights in another file", "that onnxruntime refuses it", "nothing outside is read")
@pytest.mark.parametrize("location", ["secret.bin", "../secret.bin", "/etc/hostname"])
def test_an_onnx_file_reads_no_other(tmp_path, monkeypatch, location):
    import onnx

    (tmp_path / "in").mkdir()
    for folder in (tmp_path, tmp_path / "in"):
        (folder / "secret.bin").write_bytes(np.full(4, 42, np.float32).tobytes())
    monkeypatch.chdir(tmp_path / "in")
    (tmp_path / "in" / "theirs.onnx").write_bytes(with_data_outside(location))
    assert onnx.load("theirs.onnx", load_external_data=False).graph.initializer[0].external_data
    with pytest.raises(Exception, match=r"xternal data path|model_path must not be empty"):
        OnnxTower.load("theirs.onnx")


@fault("a link in a bundle that leads outside", "that the file is missing", "what it leads to is not read")
def test_a_link_is_not_followed(bundle, tmp_path):
    theirs = strangers(bundle, tmp_path / "theirs", "titles.json", (bundle / "titles.json").read_bytes())
    (tmp_path / "outside.json").write_bytes((theirs / "titles.json").read_bytes())
    (theirs / "titles.json").unlink()
    (theirs / "titles.json").symlink_to(tmp_path / "outside.json")
    with pytest.raises(FileNotFoundError, match=r"titles\.json is missing"):
        Recommender.load(theirs)


@fault("an index of a stranger that says where to connect", REFUSED, "no connection is made")
def test_an_index_says_no_address(tmp_path):
    with write_folder(tmp_path / "theirs", "index", {"backend": "milvus", "dim": 8, "options": {"uri": "evil.db"}}):
        pass
    with pytest.raises(ValueError, match="wants to say where to connect"):
        load_index(tmp_path / "theirs")
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


@fault("vectors of no direction (NaN, infinity, zeros) in an index", "in how many rows", "nothing is answered from it")
@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_an_index_of_nan_is_refused(tmp_path, value):
    index = build_index(small.VECTORS["a"])
    index.vectors[5] = value
    index.save(tmp_path / "index")
    with pytest.raises(ValueError, match="in 1 rows, first row 5"):
        load_index(tmp_path / "index")


@fault("a token or a password of Milvus", "never", "it stands in no file, no message, no text of an object")
def test_a_token_is_written_nowhere(tmp_path):
    secret, uri = "hunter2", str(tmp_path / "movies.db")
    pytest.importorskip("milvus_lite")
    index = build_index(small.VECTORS["a"], backend="milvus", uri=uri, token=f"user:{secret}", index_type="FLAT")
    index.save(tmp_path / "index")
    shown = [repr(index), str(index), str(vars(index))]
    index.close()
    with pytest.raises(ValueError, match="no collection") as refused:
        load_index(tmp_path / "index", uri=str(tmp_path / "other.db"), token=f"user:{secret}")
    shown += [str(refused.value), *(path.read_text("latin-1") for path in (tmp_path / "index").rglob("*"))]
    for there in (f"user:{secret}@127.0.0.1:9", f"http://user:{secret}@127.0.0.1:9/name@home"):
        with pytest.raises(ValueError, match="pass them apart, token=") as refused:
            build_index(small.VECTORS["a"], backend="milvus", uri=there)
        shown += traceback.format_exception(refused.value)
    with pytest.raises(ConnectionError, match=r"127\.0\.0\.1:9") as refused:
        build_index(small.VECTORS["a"], backend="milvus", uri="http://127.0.0.1:9", token=f"user:{secret}")
    shown += traceback.format_exception(refused.value)
    assert secret not in "".join(shown)


PERSON, AREA = 987_654_321, "QX7"  # a user with a postal area of their own
WHOLE = f"{AREA}Y9"


def planted() -> EncodedData:
    """One user's id and zip code as nobody else has them."""
    tables = small.TABLES["a"]
    ratings, users = (t.replace({"user_id": {3: PERSON}}) for t in (tables.ratings, tables.users))
    users.loc[users["user_id"] == PERSON, "zip"] = WHOLE
    return encode(ratings, users, tables.movies, SCHEMA)


@pytest.mark.parametrize("users", [True, False])
@fault("a bundle without its users goes to strangers", "a user id is unknown there, and said to be",
       "no id, no row of a person, in any byte of any file")  # fmt: skip
def test_a_bundle_without_users_holds_none(tmp_path, users):
    data = planted()
    model, train = build_model(data, small.RECIPE).eval(), split_by_time(data).train
    folder = export_bundle(tmp_path / "bundle", model, data, train, users=users)
    content = b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())
    (row,) = data.vocabularies["user_id"].encode([PERSON])
    weights = model.user_tower.embedding.tables["user_id"].weight.detach().numpy()
    demographics = np.stack([column[row] for column in data.user_columns.values()])
    stored = load_arrays((folder / "users.npz").read_bytes())
    kept = np.stack(list(stored.values()), axis=1)
    marks = [str(PERSON).encode(), PERSON.to_bytes(8, "little"), weights[row].tobytes(), weights[2].tobytes()]
    assert [mark in content for mark in marks] == [users, False, users, users]
    assert bool((kept == demographics).all(axis=1).any()) == users
    assert str(WHOLE).encode() not in content  # only the area, a value of the column
    assert AREA.encode() in content

    recommender = Recommender.load(folder)
    answer = recommender.recommend(PERSON, [5, 7], 9)
    assert (answer.basis, answer.ignored) == (("user", ()) if users else ("history", (f"user_id {PERSON}",)))
    assert recommender.recommend({"zip": WHOLE, "age": 30}).basis == "demographics"
    assert recommender.recommend(PERSON).basis == ("user" if users else "popularity")
    unknown = Recommender.load(folder).recommend(history=[5, 7], k=9)
    assert users or unknown.item_ids == answer.item_ids
    if not users:
        whole = Recommender.load(export_bundle(tmp_path / "whole", model, data, train))
        assert unknown == whole.recommend(history=[5, 7], k=9)
