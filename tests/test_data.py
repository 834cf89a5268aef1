"""Every source of the data one by one, the three formats, bad tables, generated data, encoding and the split.

Small archives in the original formats are built here and served from loopback; nothing is fetched from outside.
"""

from __future__ import annotations

import hashlib
import io
import socket
import threading
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import requests
from conftest import notebook_definitions

from dssm_helpers import data as data_module
from dssm_helpers.data import (
    GENRES_100K,
    OCCUPATIONS_1M,
    DataUnavailable,
    MovieLens,
    check_tables,
    data_dir,
    encode,
    load_movielens,
    ratings_digest,
    split_by_time,
    synthetic,
)

RATINGS = pd.DataFrame(
    [(7, 10, 5, 300), (7, 30, 3, 100), (9, 10, 4, 100), (7, 20, 1, 300), (8, 40, 2, 50), (9, 20, 3, 70)],
    columns=["user_id", "movie_id", "rating", "timestamp"],
)
USERS = pd.DataFrame(
    [(7, "M", 24, "scientist", "05201"), (8, "F", 53, "writer", "V3N4P"), (9, "F", 1, "lawyer", "94043")],
    columns=["user_id", "gender", "age", "occupation", "zip"],
)
MOVIES = pd.DataFrame(
    [
        (10, "Misérables, Les (1995)", "Drama|Musical", 1995),
        (20, "Cité des enfants perdus, La (1995)", "Adventure|Sci-Fi", 1995),
        (30, "unknown", "unknown", 0),
        (40, "War Room, The (1993)", "Documentary", 1993),
    ],
    columns=["movie_id", "title", "genres", "year"],
)


# -- archives in the original formats ---------------------------------------------------------------------------------


def files_100k() -> dict[str, bytes]:
    items = []
    for m in MOVIES.itertuples():
        title = m.title.replace("War Room, The (", "War Room, The  (")  # GroupLens has a few double spaces
        flags = "|".join(str(int(genre in m.genres.split("|"))) for genre in GENRES_100K)
        items.append(f"{m.movie_id}|{title}|01-Jan-{m.year}||http://example.org/{m.movie_id}|{flags}\n")
    users = USERS[["user_id", "age", "gender", "occupation", "zip"]]
    return {
        "ml-100k/u.data": RATINGS.to_csv(sep="\t", header=False, index=False).encode(),
        "ml-100k/u.user": users.to_csv(sep="|", header=False, index=False).encode(),
        "ml-100k/u.item": "".join(items).encode("latin-1"),
    }


def files_1m() -> dict[str, bytes]:
    def rows(table: pd.DataFrame) -> bytes:
        return "".join("::".join(map(str, row)) + "\n" for row in table.to_numpy()).encode("latin-1")

    users = USERS.assign(occupation=[OCCUPATIONS_1M.index(o) for o in USERS["occupation"]])
    return {
        "ml-1m/ratings.dat": rows(RATINGS),
        "ml-1m/users.dat": rows(users),
        "ml-1m/movies.dat": rows(MOVIES[["movie_id", "title", "genres"]]),
    }


def files_wheel() -> dict[str, bytes]:
    def rows(header: str, table: list[tuple]) -> bytes:
        return "\n".join(["\t".join(header.split()), *("\t".join(map(str, row)) for row in table), ""]).encode()

    folder, info = "recbole/dataset_example/ml-100k/ml-100k", "recbole-1.2.1.dist-info"
    movies = [
        (
            m.movie_id,
            "unkonwn" if m.title == "unknown" else m.title[:-7],
            m.year or "",
            " ".join(m.genres.split("|")[::-1]),
        )
        for m in MOVIES.itertuples()
    ]
    users = USERS[["user_id", "age", "gender", "occupation", "zip"]].itertuples(index=False)
    return {
        f"{folder}.inter": rows(
            "user_id:token item_id:token rating:float timestamp:float", RATINGS.to_numpy().tolist()
        ),
        f"{folder}.user": rows("user_id:token age:token gender:token occupation:token zip_code:token", list(users)),
        f"{folder}.item": rows("item_id:token movie_title:token_seq release_year:token class:token_seq", movies),
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: recbole\nVersion: 1.2.1\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)  # a fixed date: the same bytes every time
    return buffer.getvalue()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


WHEEL_NAME = "recbole-1.2.1-py3-none-any.whl"
CONTENT = {"ml-100k": zipped(files_100k()), "ml-1m": zipped(files_1m()), "wheel": zipped(files_wheel())}


class Server(ThreadingHTTPServer):
    """Answers with what ``pages`` holds: bytes, a status code, or ("truncated", bytes). Counts requests."""

    daemon_threads = True

    def __init__(self):
        self.pages: dict[str, object] = {}
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), Handler)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        page = self.server.pages.get(self.path, 404)
        if isinstance(page, int):
            self.send_error(page)
            return
        body = page[1] if isinstance(page, tuple) else page
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if isinstance(page, tuple) else body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with Server() as running:
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield running
        running.shutdown()


def refusing_url() -> str:
    """A loopback address where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/{{}}.zip"


@pytest.fixture
def archive(monkeypatch):
    """Point the course at the small archives: ``archive("ml-100k", urls=[…])``. Without urls nothing can be fetched."""

    def point(name: str, urls=(), wheel: bool = False, digest: str | None = None):
        changed = replace(
            data_module.ARCHIVES[name],
            digest=digest or sha256(CONTENT[name]),
            urls=tuple(urls),
            wheel=("recbole==1.2.1", WHEEL_NAME, sha256(CONTENT["wheel"])) if wheel else None,
            n_ratings=len(RATINGS),
            ratings_digest=ratings_digest(RATINGS),
        )
        monkeypatch.setitem(data_module.ARCHIVES, name, changed)
        return changed

    return point


def load(name: str, folder: Path) -> MovieLens:
    return load_movielens(name, folder=folder, progress=False)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def assert_expected(tables: MovieLens) -> None:
    for got, expected in ((tables.ratings, RATINGS), (tables.users, USERS), (tables.movies, MOVIES)):
        pd.testing.assert_frame_equal(got.reset_index(drop=True), expected, check_dtype=False)
        assert [d.kind for d in got.dtypes] == [d.kind for d in expected.dtypes]


# -- the three formats ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["ml-100k", "ml-1m", "wheel"])
def test_formats_parse_to_the_same_tables(archive, tmp_path, source):
    name = "ml-100k" if source == "wheel" else source
    archive(name, wheel=True)
    (tmp_path / (WHEEL_NAME if source == "wheel" else f"{name}.zip")).write_bytes(CONTENT[source])
    tables = load(name, tmp_path)
    assert_expected(tables)
    assert tables.name == name


@pytest.mark.parametrize("source", ["ml-100k", "ml-1m"])
def test_an_unpacked_folder_parses_alike(archive, tmp_path, source):
    archive(source)
    zipfile.ZipFile(io.BytesIO(CONTENT[source])).extractall(tmp_path)
    assert_expected(load(source, tmp_path))
    assert names(tmp_path) == [source]


# -- sources, one by one ----------------------------------------------------------------------------------------------


def test_a_cached_zip_needs_no_network(archive, server, tmp_path):
    archive("ml-100k", urls=[server.url("/ml-100k.zip")])
    (tmp_path / "ml-100k.zip").write_bytes(CONTENT["ml-100k"])
    assert_expected(load("ml-100k", tmp_path))
    assert server.asked == []


def test_a_download_is_kept_and_fetched_once(archive, server, tmp_path):
    server.pages["/a.zip"] = CONTENT["ml-1m"]
    archive("ml-1m", urls=[server.url("/a.zip")])
    folder = tmp_path / "made" / "on the way"
    for _ in range(2):
        assert_expected(load("ml-1m", folder))
    assert server.asked == ["/a.zip"]
    assert names(folder) == ["ml-1m.zip"]


BAD_FIRST = {
    "404": (404, "404"),
    "500": (500, "500"),
    "other content": (b"<html>certificate expired</html>", "does not match"),
    "empty": (b"", "does not match"),
    "truncated": (("truncated", CONTENT["ml-100k"]), "IncompleteRead|does not match"),
    "refused": (None, "refused|Failed to establish|Max retries"),
}


@pytest.mark.parametrize("first", BAD_FIRST)
def test_the_mirror_delivers_when_the_first_fails(archive, server, tmp_path, first):
    server.pages |= {"/first.zip": BAD_FIRST[first][0], "/second.zip": CONTENT["ml-100k"]}
    url = refusing_url().format("first") if first == "refused" else server.url("/first.zip")
    archive("ml-100k", urls=[url, server.url("/second.zip")])
    assert_expected(load("ml-100k", tmp_path))
    assert server.asked[-1] == "/second.zip"
    assert names(tmp_path) == ["ml-100k.zip"]
    assert sha256((tmp_path / "ml-100k.zip").read_bytes()) == sha256(CONTENT["ml-100k"])


@pytest.mark.parametrize("first", BAD_FIRST)
def test_a_failed_download_is_named_and_leaves_nothing(archive, server, tmp_path, first):
    page, reason = BAD_FIRST[first]
    server.pages["/first.zip"] = page
    url = refusing_url().format("first") if first == "refused" else server.url("/first.zip")
    archive("ml-100k", urls=[url])
    with pytest.raises(DataUnavailable, match=reason) as caught:
        load("ml-100k", tmp_path)
    assert f"{url}: " in str(caught.value)
    assert names(tmp_path) == []


def test_an_interrupted_download_leaves_nothing(archive, server, tmp_path, monkeypatch):
    def interrupted(self, chunk_size=1, decode_unicode=False):
        yield self.raw.read(10)
        raise KeyboardInterrupt

    server.pages["/a.zip"] = CONTENT["ml-100k"]
    archive("ml-100k", urls=[server.url("/a.zip")])
    with monkeypatch.context() as patched:
        patched.setattr(requests.Response, "iter_content", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load("ml-100k", tmp_path)
    assert names(tmp_path) == []
    assert_expected(load("ml-100k", tmp_path))  # and the next attempt starts afresh


def test_a_zip_with_another_digest_is_left_untouched_and_named(archive, server, tmp_path):
    server.pages["/a.zip"] = CONTENT["ml-100k"]
    archive("ml-100k", urls=[server.url("/a.zip")])
    mine = tmp_path / "ml-100k.zip"
    mine.write_bytes(b"a download that broke off")
    with pytest.raises(DataUnavailable, match="not the published file") as caught:
        load("ml-100k", tmp_path)
    assert "in the way" in str(caught.value)
    assert str(mine) in str(caught.value)
    assert mine.read_bytes() == b"a download that broke off"
    assert names(tmp_path) == ["ml-100k.zip"]


def test_a_broken_zip_does_not_hide_a_good_folder(archive, tmp_path):
    archive("ml-100k")
    (tmp_path / "ml-100k.zip").write_bytes(b"broken")
    zipfile.ZipFile(io.BytesIO(CONTENT["ml-100k"])).extractall(tmp_path)
    assert_expected(load("ml-100k", tmp_path))


def cut(raw: bytes) -> bytes:
    return b"".join(raw.splitlines(keepends=True)[:-1])


@pytest.mark.parametrize(
    ("member", "change", "reason"),
    [
        ("u.data", cut, "5 ratings, expected 6; the folder is incomplete"),
        ("u.data", lambda raw: raw.replace(b"\t300", b"\t301"), "differ from the published ones"),
        ("u.data", lambda raw: b"", "0 ratings, expected 6"),
        ("u.data", lambda raw: raw.replace(b"\t", b";"), r"unpacked folder .*: \S+"),
        ("u.user", None, "u.user is missing"),
    ],
)
def test_an_altered_folder_is_refused(archive, tmp_path, member, change, reason):
    archive("ml-100k")
    zipfile.ZipFile(io.BytesIO(CONTENT["ml-100k"])).extractall(tmp_path)
    file = tmp_path / "ml-100k" / member
    if change is None:
        file.unlink()
    else:
        file.write_bytes(change(file.read_bytes()))
    with pytest.raises(DataUnavailable, match=reason) as caught:
        load("ml-100k", tmp_path)
    assert f"unpacked folder {tmp_path / 'ml-100k'}" in str(caught.value)


def test_an_occupation_out_of_range_is_a_reason_not_a_crash(archive, tmp_path):
    archive("ml-1m")
    zipfile.ZipFile(io.BytesIO(CONTENT["ml-1m"])).extractall(tmp_path)
    users = tmp_path / "ml-1m" / "users.dat"
    users.write_bytes(users.read_bytes().replace(b"::15::", b"::99::"))
    with pytest.raises(DataUnavailable, match="unpacked folder"):
        load("ml-1m", tmp_path)


# -- the wheel --------------------------------------------------------------------------------------------------------


@pytest.fixture
def package_index(tmp_path, monkeypatch) -> Path:
    """A local folder that pip is told to use instead of any index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    return folder


def test_the_wheel_comes_through_pip_when_every_url_fails(archive, server, package_index, tmp_path):
    (package_index / WHEEL_NAME).write_bytes(CONTENT["wheel"])
    archive("ml-100k", urls=[server.url("/gone.zip")], wheel=True)
    folder = tmp_path / "data"
    assert_expected(load("ml-100k", folder))
    assert names(folder) == [WHEEL_NAME]
    (package_index / WHEEL_NAME).unlink()
    assert_expected(load("ml-100k", folder))  # from the kept copy
    assert server.asked == ["/gone.zip"]


def test_a_wheel_with_other_content_is_refused(archive, package_index, tmp_path):
    (package_index / WHEEL_NAME).write_bytes(zipped({**files_wheel(), "extra.py": b"import this"}))
    archive("ml-100k", wheel=True)
    with pytest.raises(DataUnavailable, match=r"pip download recbole==1\.2\.1: not the published file"):
        load("ml-100k", tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_when_everything_fails_each_source_and_the_cure_are_named(archive, server, package_index, tmp_path):
    server.pages |= {"/one.zip": 404, "/two.zip": b"not it"}
    urls = [server.url("/one.zip"), server.url("/two.zip")]
    archive("ml-100k", urls=urls, wheel=True)
    with pytest.raises(DataUnavailable) as caught:
        load("ml-100k", tmp_path / "data")
    message = str(caught.value)
    for source, reason in ((urls[0], "404"), (urls[1], "does not match"), ("pip download recbole", "recbole==1.2.1")):
        (line,) = (line for line in message.splitlines() if f"- {source}" in line)
        assert reason in line
    assert str(tmp_path / "data" / "ml-100k.zip") in message
    assert "grouplens.org/datasets/movielens" in message
    assert "DSSM_DATA_DIR" in message
    assert "synthetic" in message


@pytest.mark.network
def test_the_real_wheel_gives_the_published_ratings(tmp_path):
    try:
        path = data_module._from_wheel(data_module.ARCHIVES["ml-100k"].wheel, tmp_path)
    except OSError as error:
        pytest.skip(f"no package index within reach: {str(error)[-80:]}")
    tables = data_module._parse("ml-100k", path)
    check_tables(tables)
    assert ratings_digest(tables.ratings) == data_module.ARCHIVES["ml-100k"].ratings_digest
    assert (len(tables.users), len(tables.movies)) == (943, 1_682)
    titles = tables.movies.set_index("movie_id")["title"]
    assert titles[267] == "unknown"
    assert "  " not in "".join(titles)
    assert titles.str.contains("é").any()


# -- dangerous and unusable -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("member", ["../evil.txt", "ml-100k/../../evil.txt", "/etc/evil.txt", "..\\evil.txt"])
def test_path_traversal_is_refused(archive, tmp_path, member):
    content = zipped({**files_100k(), member: b"evil"})
    archive("ml-100k", digest=sha256(content))
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "ml-100k.zip").write_bytes(content)
    with pytest.raises(ValueError, match="unsafe path"):
        load("ml-100k", folder)
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")] == ["data", "data/ml-100k.zip"]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"no zip at all", "not a zip file"), (zipped({"ml-100k/u.data": b""}), "No columns|empty|missing")],
)
def test_a_verified_but_unreadable_zip_is_an_error(archive, tmp_path, content, message):
    archive("ml-100k", digest=sha256(content))
    (tmp_path / "ml-100k.zip").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load("ml-100k", tmp_path)


@pytest.mark.parametrize("below", [".", "deeper"])
def test_an_unwritable_cache_folder_says_so(archive, server, tmp_path, below):
    server.pages["/a.zip"] = CONTENT["ml-100k"]
    archive("ml-100k", urls=[server.url("/a.zip")])
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(DataUnavailable, match="cannot write"):
        load("ml-100k", tmp_path / "cache" / below)
    assert (tmp_path / "cache").read_text() == "a file where the folder should be"


def test_the_data_folder_can_be_chosen(monkeypatch, tmp_path):
    monkeypatch.setenv("DSSM_DATA_DIR", str(tmp_path / "elsewhere"))
    assert data_dir() == tmp_path / "elsewhere"
    monkeypatch.setenv("DSSM_DATA_DIR", "")
    assert data_dir() == data_module.project_root() / "data"


def test_an_unknown_name_lists_the_valid_ones():
    with pytest.raises(ValueError, match="choose one of ml-100k, ml-1m, synthetic"):
        load_movielens("ml-20m")


def test_sizes_are_for_generated_data_only():
    with pytest.raises(ValueError, match="n_ratings only apply to 'synthetic'"):
        load_movielens("ml-100k", n_ratings=10)
    assert len(load_movielens("synthetic", n_ratings=321).ratings) == 321


# -- bad tables -------------------------------------------------------------------------------------------------------

GOOD = MovieLens("small", RATINGS, USERS, MOVIES)


def with_value(table: pd.DataFrame, column: str, value: object) -> pd.DataFrame:
    return table.assign(**{column: table[column].astype(object).where(table.index != 1, value)})


BAD_TABLES = {
    "misnamed column": ("ratings", lambda t: t.rename(columns={"movie_id": "item"}), "missing column movie_id; found"),
    "no zip": ("users", lambda t: t.drop(columns="zip"), "users: missing column zip"),
    "no ratings": ("ratings", lambda t: t.iloc[:0], "ratings: the table is empty"),
    "no users": ("users", lambda t: t.iloc[:0], "users: the table is empty"),
    "NaN user": ("ratings", lambda t: with_value(t, "user_id", None), r"user_id: 1 missing values, first in row 1"),
    "NaN movie": ("movies", lambda t: with_value(t, "movie_id", np.nan), r"movies\.movie_id: 1 missing"),
    "NaN gender": ("users", lambda t: with_value(t, "gender", None), r"users\.gender: 1 missing"),
    "NaN time": ("ratings", lambda t: with_value(t, "timestamp", np.nan), r"ratings\.timestamp: 1 missing"),
    "time as text": ("ratings", lambda t: t.assign(timestamp="1997-12-04"), r"timestamp: expected whole numbers"),
    "ids as text": ("ratings", lambda t: t.assign(user_id=t["user_id"].astype(str)), r"user_id: expected whole"),
    "ids as floats": ("ratings", lambda t: t.assign(movie_id=t["movie_id"] + 0.0), r"movie_id: expected whole"),
    "age as text": ("users", lambda t: t.assign(age="young"), r"users\.age: expected whole numbers"),
    "double rating": ("ratings", lambda t: pd.concat([t, t.iloc[:2]]), "2 duplicate rows, .*drop_duplicates"),
    "double user": ("users", lambda t: pd.concat([t, t.iloc[:1]]), "users: 1 duplicate rows"),
    "double movie": ("movies", lambda t: pd.concat([t, t.iloc[:1]]), "movies: 1 duplicate rows"),
    "stranger": ("users", lambda t: t.iloc[1:], "3 rows have a user_id that is not in users, first 7"),
    "unlisted movie": ("movies", lambda t: t.iloc[1:], "2 rows have a movie_id that is not in movies, first 10"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_TABLES)
def test_bad_tables_are_refused(what):
    table, change, message = BAD_TABLES[what]
    bad = replace(GOOD, **{table: change(getattr(GOOD, table))})
    for refuse in (check_tables, encode):
        with pytest.raises(ValueError, match=message):
            refuse(bad)


def test_good_tables_pass():
    check_tables(GOOD)


# -- generated data ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size",
    [
        {"n_ratings": 1},
        {"n_ratings": 777},
        {"n_ratings": 30_000},
        {"n_ratings": 500, "n_users": 7, "n_movies": 900},
        {"n_ratings": 200, "n_users": 20, "n_movies": 40},
    ],
)
def test_generated_tables_have_the_size_asked_for(size):
    tables = synthetic(**size)
    check_tables(tables)
    assert len(tables.ratings) == size["n_ratings"]
    for key, table in (("n_users", tables.users), ("n_movies", tables.movies)):
        assert len(table) == size.get(key, len(table))


def test_generated_tables_are_seeded():
    first, again, other = (synthetic(2_000, seed=seed) for seed in (5, 5, 6))
    for table in ("ratings", "users", "movies"):
        pd.testing.assert_frame_equal(getattr(first, table), getattr(again, table))
    assert not first.ratings.equals(other.ratings)


@pytest.mark.parametrize(("size", "message"), [((-1, 5, 5), "must be positive"), ((100, 10, 20), "a quarter")])
def test_impossible_sizes_are_refused(size, message):
    with pytest.raises(ValueError, match=message):
        synthetic(*size)


def test_tastes_are_planted():
    """The next genre is mostly the last one, or one of the user's few; a random movie's genre is neither."""
    tables = synthetic(20_000, seed=2)
    genre = tables.movies.set_index("movie_id")["genres"].str.split("|").str[0]
    rows = tables.ratings.assign(genre=tables.ratings["movie_id"].map(genre))
    rows = rows.sort_values(["user_id", "timestamp"])
    same_user = (rows["user_id"] == rows["user_id"].shift())[1:]
    follows = (rows["genre"] == rows["genre"].shift())[1:][same_user].mean()
    by_chance = (rows["genre"].value_counts(normalize=True) ** 2).sum()
    assert follows > 0.5 > 5 * by_chance
    top_three = rows.groupby("user_id")["genre"].apply(lambda g: g.value_counts(normalize=True)[:3].sum())
    assert top_three.mean() > 0.85


def test_popularity_has_a_long_tail():
    counts = synthetic(20_000).ratings["movie_id"].value_counts()
    assert counts[: len(counts) // 10].sum() > 0.18 * counts.sum()  # drawn alike, chance gives the top tenth .14


# -- encoding ---------------------------------------------------------------------------------------------------------


def with_ties(seed: int, n_ratings: int = 800) -> MovieLens:
    """Generated tables in random row order, with many equal timestamps and a few users of one or two ratings."""
    tables = synthetic(n_ratings, n_users=40, n_movies=150, seed=seed)
    ratings = tables.ratings.sample(frac=1, random_state=seed)
    ratings["timestamp"] = np.random.default_rng(seed).integers(0, 25, len(ratings))
    few = ratings["user_id"].isin([1, 2])
    short = pd.concat([ratings[ratings["user_id"] == 1].iloc[:1], ratings[ratings["user_id"] == 2].iloc[:2]])
    return replace(tables, ratings=pd.concat([ratings[~few], short]).reset_index(drop=True))


@pytest.mark.parametrize("seed", range(5))
def test_flat_order_is_user_time_and_original_row(seed):
    tables = with_ties(seed)
    data = encode(tables)
    rows = list(tables.ratings.itertuples())
    for user_id, user in zip(tables.users["user_id"], data.vocabularies["user_id"].encode(tables.users["user_id"])):  # noqa: B905
        expected = sorted((r for r in rows if r.user_id == user_id), key=lambda r: (r.timestamp, r.Index))
        mine = slice(data.offsets[user], data.offsets[user + 1])
        assert data.vocabularies["movie_id"].decode(data.item[mine]) == [r.movie_id for r in expected]
        assert data.timestamp[mine].tolist() == [r.timestamp for r in expected]
        assert (data.user[mine] == user).all()
    assert data.offsets[:3].tolist() == [0, 0, 0]  # padding and unknown have no interactions
    assert data.offsets[-1] == len(data) == len(rows)


def test_rows_zero_and_one_are_padding_and_unknown(data):
    for name, column in {**data.user_columns, **data.item_columns}.items():
        assert not column[0].any(), name
        assert column[1].ravel()[0] == 1
        assert not column[1].ravel()[1:].any()
        assert column[2:].max() == len(data.vocabularies[name]) - 1
    assert data.user.min() == data.item.min() == 2


def test_columns_decode_to_the_tables(tables, data):
    for row in tables.users.itertuples():
        (user,) = data.vocabularies["user_id"].encode([row.user_id])
        assert data.vocabularies["occupation"].decode([data.user_columns["occupation"][user]]) == [row.occupation]
        assert data.vocabularies["zip"].decode([data.user_columns["zip"][user]]) == [row.zip[:3]]
        assert data.vocabularies["age"].decode([data.user_columns["age"][user]])[0] <= row.age
    for row in tables.movies.itertuples():
        (movie,) = data.vocabularies["movie_id"].encode([row.movie_id])
        genres = [g for g in data.vocabularies["genres"].decode(data.item_columns["genres"][movie]) if g]
        assert genres == row.genres.split("|")
        assert data.titles[movie] == row.title
    assert data.titles[:2] == ["(padding)", "(unknown)"]


def test_counts_and_histories_equal_a_loop(data, split):
    counts = data.item_counts(split.train)
    assert counts.shape == (data.n_items,)
    assert counts.tolist() == [int((data.item[split.train] == i).sum()) for i in range(data.n_items)]
    for position in (0, 17, len(data) - 1):
        before = [p for p in range(position) if data.user[p] == data.user[position]]
        assert data.history(position).tolist() == data.item[before].tolist()


def test_fingerprint_notices_a_change(tables, data):
    assert encode(tables).fingerprint() == data.fingerprint()
    changed = tables.ratings.assign(timestamp=tables.ratings["timestamp"] + 1)
    assert encode(replace(tables, ratings=changed)).fingerprint() != data.fingerprint()
    older = replace(tables, users=tables.users.assign(age=20))
    assert encode(older).fingerprint() != data.fingerprint()


def test_memory_is_linear_and_independent_of_history_length():
    def bytes_per_rating(n_ratings: int, n_users: int) -> float:
        data = encode(synthetic(n_ratings, n_users=n_users, n_movies=600))
        arrays = [v for v in vars(data).values() if isinstance(v, np.ndarray)]
        assert {len(a) for a in arrays} == {n_ratings, n_users + 3}
        return sum(a.nbytes for a in arrays) / n_ratings

    few_long, many_long = bytes_per_rating(2_000, 20), bytes_per_rating(20_000, 200)
    assert many_long == pytest.approx(few_long, rel=0.05)
    assert many_long <= 20


# -- the split --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_every_position_is_in_exactly_one_part(seed):
    data = encode(with_ties(seed))
    split = split_by_time(data)
    together = np.concatenate([split.train, split.validation, split.test])
    assert np.array_equal(np.sort(together), np.arange(len(data)))


@pytest.mark.parametrize("seed", range(5))
def test_nothing_leaks_from_the_future(seed):
    data = encode(with_ties(seed))
    split = split_by_time(data)
    trained_until = {u: p for p, u in zip(split.train, data.user[split.train], strict=True)}  # last training position
    for validation, test in zip(split.validation, split.test, strict=True):
        user = data.user[test]
        assert data.user[validation] == user
        assert trained_until.get(user, -1) < validation < test == data.offsets[user + 1] - 1
        history = slice(data.offsets[user], test)
        assert (data.timestamp[history] <= data.timestamp[test]).all()
        assert data.item[test] not in data.history(test)
        assert np.array_equal(data.history(test), data.item[history])


def test_short_users_train_and_are_counted():
    data = encode(with_ties(0))
    split = split_by_time(data)
    one, two = data.vocabularies["user_id"].encode([1, 2])
    assert one in data.user[split.train]
    assert one not in data.user[split.test]
    assert two in data.user[split.test]
    assert two in data.user[split.validation]
    assert two not in data.user[split.train]
    assert split.n_users_without_test == 1
    assert "1 users with one rating only train" in repr(split)


def test_a_user_without_ratings_is_in_no_part():
    users = pd.concat([USERS, USERS.iloc[:1].assign(user_id=77)])
    data = encode(replace(GOOD, users=users))
    split = split_by_time(data)
    assert len(split.test) == 2
    assert split.n_users_without_test == 1  # user 8 has one rating; user 77 has none and is nobody's business


def test_the_notebook_splits_alike():
    last_two_out = notebook_definitions("01", "last_two_out")["last_two_out"]
    for seed in range(3):
        data = encode(with_ties(seed))
        split = split_by_time(data)
        ours = last_two_out(data.offsets)
        for mine, helpers in zip(ours, (split.train, split.validation, split.test), strict=True):
            assert np.array_equal(mine, helpers)
