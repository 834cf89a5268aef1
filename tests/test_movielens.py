"""Every source of the data one by one, the three formats, generated data.

Small archives in the original formats are built here and served from loopback; nothing is fetched from outside.
"""

from __future__ import annotations

import hashlib
import io
import socket
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import pytest
import requests
from conftest import encoded

from dssm_helpers import movielens
from dssm_helpers.movielens import (
    GENRES_100K,
    OCCUPATIONS_1M,
    REQUIREMENT,
    WHEEL,
    DataUnavailable,
    MovieLens,
    load_movielens,
    synthetic,
    tables_digest,
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
    movies = []
    for m in MOVIES.itertuples():
        title = "unkonwn" if m.title == "unknown" else m.title[:-7]
        movies.append((m.movie_id, title, m.year or "", " ".join(m.genres.split("|")[::-1])))
    users = USERS[["user_id", "age", "gender", "occupation", "zip"]].to_numpy().tolist()
    return {
        f"{folder}.inter": rows("user_id item_id rating:float timestamp:float", RATINGS.to_numpy().tolist()),
        f"{folder}.user": rows("user_id age gender occupation zip_code", users),
        f"{folder}.item": rows("item_id movie_title release_year class:token_seq", movies),
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


def refusing_host() -> str:
    """A loopback address where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def archive(monkeypatch):
    """Point the course at the small archives and these hosts. Without hosts nothing can be fetched."""

    def point(name: str, *hosts: str, wheel: bool = False):
        changed = movielens.Archive(
            digest=sha256(CONTENT[name]),
            rows=(len(RATINGS), len(USERS), len(MOVIES)),
            tables_digest=tables_digest(MovieLens(name, RATINGS, USERS, MOVIES)),
            wheel=(WHEEL, sha256(CONTENT["wheel"])) if wheel else None,
        )
        monkeypatch.setitem(movielens.ARCHIVES, name, changed)
        monkeypatch.setattr(movielens, "HOSTS", hosts)

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
def test_formats_parse_to_the_same_tables_without_the_network(archive, server, tmp_path, source):
    name = "ml-100k" if source == "wheel" else source
    archive(name, server.url(""), wheel=True)
    (tmp_path / (WHEEL if source == "wheel" else f"{name}.zip")).write_bytes(CONTENT[source])
    tables = load(name, tmp_path)
    assert_expected(tables)
    assert tables.name == name
    assert server.asked == []


# -- sources, one by one ----------------------------------------------------------------------------------------------


def test_a_download_is_kept_and_fetched_once(archive, server, tmp_path):
    server.pages["/a/ml-1m.zip"] = CONTENT["ml-1m"]
    archive("ml-1m", server.url("/a"))
    folder = tmp_path / "made" / "on the way"
    for _ in range(2):
        assert_expected(load("ml-1m", folder))
    assert server.asked == ["/a/ml-1m.zip"]
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
def test_a_failed_download_is_named_and_leaves_nothing_and_the_mirror_delivers(archive, server, tmp_path, first):
    page, reason = BAD_FIRST[first]
    server.pages |= {"/first/ml-100k.zip": page, "/second/ml-100k.zip": CONTENT["ml-100k"]}
    host = refusing_host() if first == "refused" else server.url("/first")
    archive("ml-100k", host)
    with pytest.raises(DataUnavailable, match=reason) as caught:
        load("ml-100k", tmp_path)
    assert f"{host}/ml-100k.zip: " in str(caught.value)
    assert names(tmp_path) == []
    archive("ml-100k", host, server.url("/second"))
    assert_expected(load("ml-100k", tmp_path))
    assert server.asked[-1] == "/second/ml-100k.zip"
    assert names(tmp_path) == ["ml-100k.zip"]
    assert sha256((tmp_path / "ml-100k.zip").read_bytes()) == sha256(CONTENT["ml-100k"])


def test_an_interrupted_download_leaves_nothing(archive, server, tmp_path, monkeypatch):
    def interrupted(self, chunk_size=1, decode_unicode=False):
        yield self.raw.read(10)
        raise KeyboardInterrupt

    server.pages["/ml-100k.zip"] = CONTENT["ml-100k"]
    archive("ml-100k", server.url(""))
    with monkeypatch.context() as patched:
        patched.setattr(requests.Response, "iter_content", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load("ml-100k", tmp_path)
    assert names(tmp_path) == []
    assert_expected(load("ml-100k", tmp_path))  # and the next attempt starts afresh


def test_a_zip_with_another_digest_is_left_untouched_and_named(archive, server, tmp_path):
    server.pages["/ml-100k.zip"] = CONTENT["ml-100k"]
    archive("ml-100k", server.url(""))
    mine = tmp_path / "ml-100k.zip"
    mine.write_bytes(b"a download that broke off")
    with pytest.raises(DataUnavailable, match="not the published file") as caught:
        load("ml-100k", tmp_path)
    assert "in the way" in str(caught.value)
    assert str(mine) in str(caught.value)
    assert mine.read_bytes() == b"a download that broke off"
    assert names(tmp_path) == ["ml-100k.zip"]


def cut(raw: bytes) -> bytes:
    return b"".join(raw.splitlines(keepends=True)[:-1])


@pytest.fixture
def unpacked(archive, tmp_path):
    """Unpack one of the small archives; returns its folder."""

    def unpack(name: str) -> Path:
        archive(name)
        zipfile.ZipFile(io.BytesIO(CONTENT[name])).extractall(tmp_path)
        return tmp_path / name

    return unpack


ALTERED = {
    "a row cut": ("u.data", lambda raw: cut(raw), r"\(5, 3, 4\) ratings, users and movies, expected \(6, 3, 4\)"),
    "a user cut": ("u.user", lambda raw: cut(raw), r"\(6, 2, 4\) ratings, users and movies"),
    "a time": ("u.data", lambda raw: raw.replace(b"\t300", b"\t301"), "tables differ from the published ones"),
    "a zip code": ("u.user", lambda raw: raw.replace(b"05201", b"05202"), "tables differ"),
    "a genre": ("u.item", lambda raw: raw.replace(b"|0\n", b"|1\n", 1), "tables differ"),
    "empty": ("u.data", lambda raw: b"", r"\(0, 3, 4\) ratings"),
    "another separator": ("u.data", lambda raw: raw.replace(b"\t", b";"), r"unpacked folder .*: \S+"),
    "no users": ("u.user", None, "u.user is missing"),
    "half a second": ("ratings.dat", lambda raw: raw.replace(b"::300", b"::300.5"), "unpacked folder"),
    "a time of 1e30": ("ratings.dat", lambda raw: raw.replace(b"::300", b"::1e30"), "unpacked folder"),
    "a time of 31 digits": ("ratings.dat", lambda raw: raw.replace(b"::300", b"::1" + b"0" * 30), "unpacked folder"),
    "a field too many": ("ratings.dat", lambda raw: raw.replace(b"\n", b"::1\n"), "expected 4 fields, found more"),
    "a title with ::": ("movies.dat", lambda raw: raw.replace(b"Room, ", b"Room::"), "Expected 3 fields"),
    "occupation 99": ("users.dat", lambda raw: raw.replace(b"::15::", b"::99::"), "no code from 0 to 20"),
    "occupation -1": ("users.dat", lambda raw: raw.replace(b"::15::", b"::-1::"), "no code from 0 to 20"),
}


@pytest.mark.parametrize("what", ALTERED)
def test_an_altered_folder_is_refused_with_a_reason(unpacked, tmp_path, what):
    member, change, reason = ALTERED[what]
    name = "ml-1m" if member.endswith(".dat") else "ml-100k"
    file = unpacked(name) / member
    if change is None:
        file.unlink()
    else:
        content = file.read_bytes()
        file.write_bytes(change(content))
        assert file.read_bytes() != content
    with pytest.raises(DataUnavailable, match=reason) as caught:
        load(name, tmp_path)
    assert f"unpacked folder {tmp_path / name}" in str(caught.value)


@pytest.mark.parametrize("name", ["ml-100k", "ml-1m"])
def test_an_unpacked_folder_parses_alike_beside_a_broken_zip(unpacked, tmp_path, name):
    unpacked(name)
    (tmp_path / f"{name}.zip").write_bytes(b"broken")
    assert_expected(load(name, tmp_path))
    assert names(tmp_path) == [name, f"{name}.zip"]


def test_a_folder_saved_again_as_utf_8_gives_the_same_titles(unpacked, tmp_path):
    file = unpacked("ml-1m") / "movies.dat"
    file.write_text(file.read_text(encoding="latin-1"), encoding="utf-8")
    assert_expected(load("ml-1m", tmp_path))


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
    (package_index / WHEEL).write_bytes(CONTENT["wheel"])
    archive("ml-100k", server.url("/gone"), wheel=True)
    folder = tmp_path / "data"
    assert_expected(load("ml-100k", folder))
    assert names(folder) == [WHEEL]
    (package_index / WHEEL).unlink()
    assert_expected(load("ml-100k", folder))  # from the kept copy
    assert server.asked == ["/gone/ml-100k.zip"]


def test_a_wheel_with_other_content_is_refused(archive, package_index, tmp_path):
    (package_index / WHEEL).write_bytes(zipped({**files_wheel(), "extra.py": b"import this"}))
    archive("ml-100k", wheel=True)
    with pytest.raises(DataUnavailable, match=r"pip download recbole==1\.2\.1: .*does not match"):
        load("ml-100k", tmp_path / "data")
    assert names(tmp_path / "data") == []


def test_when_everything_fails_each_source_and_the_cure_are_named(archive, server, package_index, tmp_path):
    server.pages |= {"/one/ml-100k.zip": 404, "/two/ml-100k.zip": b"not it"}
    urls = [server.url("/one/ml-100k.zip"), server.url("/two/ml-100k.zip")]
    archive("ml-100k", server.url("/one"), server.url("/two"), wheel=True)
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
def test_the_real_wheel_gives_the_published_tables(tmp_path):
    name, digest = movielens.ARCHIVES["ml-100k"].wheel
    try:
        path = movielens._download(REQUIREMENT, tmp_path / name, digest, movielens._pip_download)
    except OSError as error:
        pytest.skip(f"no package index within reach: {str(error)[-80:]}")
    tables = movielens.parse("ml-100k", path)
    encoded(tables)
    assert tables_digest(tables) == movielens.ARCHIVES["ml-100k"].tables_digest
    titles = tables.movies.set_index("movie_id")["title"]
    assert titles[267] == "unknown"
    assert "  " not in "".join(titles)
    assert titles.str.contains("é").any()


# -- dangerous and unusable -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("member", ["../evil.txt", "ml-100k/../../evil.txt", "/etc/evil.txt", "..\\evil.txt"])
def test_nothing_of_a_zip_is_unpacked(archive, monkeypatch, tmp_path, member):
    monkeypatch.setitem(CONTENT, "ml-100k", zipped({**files_100k(), member: b"evil"}))
    archive("ml-100k")
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "ml-100k.zip").write_bytes(CONTENT["ml-100k"])
    assert_expected(load("ml-100k", folder))
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")] == ["data", "data/ml-100k.zip"]


@pytest.mark.parametrize("below", [".", "deeper"])
def test_an_unwritable_cache_folder_is_a_reason(archive, server, tmp_path, below):
    server.pages["/ml-100k.zip"] = CONTENT["ml-100k"]
    archive("ml-100k", server.url(""))
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(DataUnavailable, match=r"exists|Not a directory"):
        load("ml-100k", tmp_path / "cache" / below)
    assert (tmp_path / "cache").read_text() == "a file where the folder should be"


def test_an_unknown_name_or_a_size_of_real_data_is_refused():
    with pytest.raises(ValueError, match="choose one of ml-100k, ml-1m, synthetic"):
        load_movielens("ml-20m")
    with pytest.raises(ValueError, match="n_ratings only apply to 'synthetic'"):
        load_movielens("ml-100k", n_ratings=10)


# -- generated data ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1,), (777,), (30_000,), (500, 7, 900), (200, 20, 40)])
def test_generated_tables_have_the_size_asked_for(size):
    tables = load_movielens("synthetic", **dict(zip(("n_ratings", "n_users", "n_movies"), size, strict=False)))
    encoded(tables)
    sizes = len(tables.ratings), len(tables.users), len(tables.movies)
    assert sizes[: len(size)] == size


def test_generated_tables_are_seeded():
    first, again, other = (synthetic(2_000, seed=seed) for seed in (5, 5, 6))
    for table in ("ratings", "users", "movies"):
        pd.testing.assert_frame_equal(getattr(first, table), getattr(again, table))
    assert not first.ratings.equals(other.ratings)


@pytest.mark.parametrize(("size", "message"), [((-1, 5, 5), "from 1 rating"), ((100, 10, 20), "a quarter")])
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
