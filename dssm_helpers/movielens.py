"""MovieLens as three tables with a schema (notebook 01).

F. M. Harper and J. A. Konstan, "The MovieLens Datasets: History and Context", ACM TiiS 5(4), 2015. The ratings may not
be redistributed, so they are fetched (or found) and never shipped.
"""

from __future__ import annotations

import hashlib
import io
import logging
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from .files import file_digest, write_atomically
from .schema import Column, Schema
from .settings import DATASETS, data_dir

AGE_GROUPS = (1, 18, 25, 35, 45, 50, 56)  # lower bounds, as MovieLens-1M publishes them
GENRES_100K = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
OCCUPATIONS_1M = (
    "other", "educator", "artist", "clerical", "college student", "customer service", "doctor", "executive", "farmer",
    "homemaker", "K-12 student", "lawyer", "programmer", "retired", "salesman", "scientist", "self-employed",
    "engineer", "tradesman", "none", "writer",
)  # fmt: skip


SCHEMA = Schema(
    user="user_id",
    item="movie_id",
    time="timestamp",
    title="title",
    columns=(
        Column("gender", "user"),
        Column("age", "user", kind="number", bins=AGE_GROUPS, limits=(0, 130)),
        Column("occupation", "user"),
        Column("zip", "user", prefix=3, digits=5),  # the postal area: whole zip codes are nearly unique per user
        Column("year", "item"),
        Column("genres", "item", kind="list"),
    ),
)
TABLES = {
    "ratings": ["user_id", "movie_id", "rating", "timestamp"],
    "users": ["user_id", "gender", "age", "occupation", "zip"],
    "movies": ["movie_id", "title", "genres", "year"],
}


@dataclass(frozen=True)
class MovieLens:
    """Three tables with the MovieLens-1M columns; ``encode(tables.ratings, tables.users, tables.movies, SCHEMA)``.

    ``ratings``: user_id, movie_id, rating, timestamp (seconds). ``users``: user_id, gender, age (years; in ml-1m the
    lower bound of a group), occupation (a name), zip (text). ``movies``: movie_id, title, genres (``"A|B"``), year
    (0 where the title has none).
    """

    name: str
    ratings: pd.DataFrame
    users: pd.DataFrame
    movies: pd.DataFrame

    def __repr__(self) -> str:
        return (
            f"MovieLens({self.name!r}: {len(self.ratings):,} ratings, "
            f"{len(self.users):,} users, {len(self.movies):,} movies)"
        )


class DataUnavailable(RuntimeError):
    """No source gave the data. The message names every source, its reason, and what to put where by hand."""


# --------------------------------------------------------------------------------------------------------------------
# Where the files come from
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Archive:
    """One data set's download: ``urls`` are tried in order and must all have the SHA-256 ``digest``."""

    filename: str
    digest: str
    urls: tuple[str, ...]
    wheel: tuple[str, str, str] | None = None  # (requirement, file name, SHA-256) of a public wheel with a copy
    n_ratings: int = 0
    ratings_digest: str | None = None  # of the parsed ratings; known where a copy could be checked
    page: str = "https://grouplens.org/datasets/movielens/"


ARCHIVES = {
    "ml-100k": Archive(
        filename="ml-100k.zip",
        digest="50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
        urls=(
            "https://files.grouplens.org/datasets/movielens/ml-100k.zip",
            "https://huggingface.co/datasets/Recommenders/MovieLens/resolve/main/ml-100k.zip",
        ),
        wheel=(
            "recbole==1.2.1",
            "recbole-1.2.1-py3-none-any.whl",
            "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
        ),
        n_ratings=100_000,
        ratings_digest="d0366dc73dcd6c6620782fc3436fc07a4a003fe17c863aee0829c53db6a8f574",
    ),
    "ml-1m": Archive(
        filename="ml-1m.zip",
        digest="a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
        urls=(
            "https://files.grouplens.org/datasets/movielens/ml-1m.zip",
            "https://huggingface.co/datasets/Recommenders/MovieLens/resolve/main/ml-1m.zip",
        ),
        n_ratings=1_000_209,
    ),
}


def load_movielens(
    name: str = "ml-100k", *, folder: str | Path | None = None, progress: bool = True, **synthetic_size: int
) -> MovieLens:
    """Load a data set by name; fetch it on first use.

    Sources, in order, each verified before use: the zip in ``folder``; an unpacked copy the user put there;
    GroupLens; a byte-identical mirror; for ml-100k, the copy inside a public wheel.

    Args:
        name: ``"ml-100k"``, ``"ml-1m"`` or ``"synthetic"``.
        folder: where downloads live; default :func:`data_dir`.
        progress: draw a progress bar while downloading.
        synthetic_size: ``n_ratings``, ``n_users``, ``n_movies``, ``seed`` for ``"synthetic"``, see :func:`synthetic`.

    Raises:
        ValueError: unknown name, or a source whose content is not what it should be.
        DataUnavailable: every source failed.
    """
    if name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}; choose one of {', '.join(DATASETS)}")
    if name == "synthetic":
        return synthetic(**synthetic_size)
    if synthetic_size:
        raise ValueError(f"{', '.join(synthetic_size)} only apply to 'synthetic'; {name} has its own size")
    archive = ARCHIVES[name]
    folder = Path(folder) if folder else data_dir()
    path, failures = _find(name, archive, folder, progress)
    if path is None:
        raise DataUnavailable(_what_to_do(name, archive, folder, failures))
    tables = _parse(name, path)
    return tables


def _find(name: str, archive: Archive, folder: Path, progress: bool) -> tuple[Path | None, list[str]]:
    """The first source that verifies, and why the ones before it did not."""
    failures: list[str] = []
    attempts: list[tuple[str, Callable[[], Path | None]]] = [
        (f"{folder / archive.filename}", lambda: _verified(folder / archive.filename, archive.digest)),
        (f"unpacked folder {folder / name}", lambda: _unpacked(name, archive, folder / name)),
    ]
    if archive.wheel:
        _, wheel_name, wheel_digest = archive.wheel
        attempts.append((f"{folder / wheel_name}", lambda: _verified(folder / wheel_name, wheel_digest)))
    attempts += [(url, lambda url=url: _download(url, archive, folder, progress)) for url in archive.urls]
    if archive.wheel:
        attempts.append((f"pip download {archive.wheel[0]}", lambda: _from_wheel(archive.wheel, folder)))
    for source, attempt in attempts:
        try:
            found = attempt()
        except (OSError, ValueError, LookupError, subprocess.SubprocessError) as error:  # of pooch, pandas and pip
            reason = str(error).strip().splitlines() or [type(error).__name__]
            failures.append(f"{source}: {reason[-1][:300]}")
            continue
        if found is not None:
            return found, failures
    return None, failures


def _verified(path: Path, digest: str) -> Path | None:
    if not path.exists():
        return None
    found = file_digest(path)
    if found != digest:
        raise ValueError(f"not the published file (SHA-256 {found[:12]}…, expected {digest[:12]}…); left untouched")
    return path


def _unpacked(name: str, archive: Archive, path: Path) -> Path | None:
    """A folder with the original files. Its digest is not published, so the parsed content is compared instead."""
    if not path.is_dir():
        return None
    ratings = _parse(name, path).ratings
    if len(ratings) != archive.n_ratings:
        raise ValueError(f"{len(ratings):,} ratings, expected {archive.n_ratings:,}; the folder is incomplete")
    if archive.ratings_digest and ratings_digest(ratings) != archive.ratings_digest:
        raise ValueError("the ratings differ from the published ones; left untouched")
    return path


def ratings_digest(ratings: pd.DataFrame) -> str:
    """SHA-256 of the ratings' four columns in file order, whatever format they came in."""
    return hashlib.sha256(ratings[TABLES["ratings"]].to_numpy(dtype="<i8").tobytes()).hexdigest()


def _download(url: str, archive: Archive, folder: Path, progress: bool) -> Path:
    import pooch

    pooch.get_logger().setLevel(logging.WARNING)  # the progress bar says what is going on
    target = folder / archive.filename
    if target.exists():  # it did not verify above: a file the user put there is never overwritten
        raise ValueError(f"{target} is in the way and is not the published file; move it away to download again")
    downloader = pooch.HTTPDownloader(progressbar=progress, timeout=20)
    pooch.retrieve(url, f"sha256:{archive.digest}", fname=target.name, path=folder, downloader=downloader)
    return target


def _from_wheel(wheel: tuple[str, str, str], folder: Path) -> Path:
    """Fetch the wheel through whatever package index the user has configured for pip."""
    requirement, filename, digest = wheel
    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", temporary, requirement]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if done.returncode:
            raise OSError(done.stderr.strip() or f"pip ended with {done.returncode}")
        fetched = _verified(Path(temporary) / filename, digest)
        if fetched is None:
            raise ValueError(f"pip did not deliver {filename}")
        with write_atomically(folder / filename) as target:
            target.write_bytes(fetched.read_bytes())
    return folder / filename


def _what_to_do(name: str, archive: Archive, folder: Path, failures: list[str]) -> str:
    tried = "\n".join(f"  - {failure}" for failure in failures) or "  - no source is configured"
    return (
        f"could not get {name}. Tried:\n{tried}\n"
        f"What you can do: download {archive.filename} from {archive.page} in a browser and put it, unopened, at\n"
        f"  {folder / archive.filename}\n"
        f"or unpack it to\n  {folder / name}\n"
        "or set DSSM_DATA_DIR to a folder that has it. Offline, DSSM_DATASET=synthetic runs the whole course on "
        "generated data."
    )


# --------------------------------------------------------------------------------------------------------------------
# From files to tables
# --------------------------------------------------------------------------------------------------------------------


def _open_members(path: Path) -> Callable[[str], bytes]:
    """A reader of files by base name, from a zip (nothing is unpacked) or a folder."""
    if path.is_dir():
        files = {p.name: p for p in sorted(path.rglob("*")) if p.is_file()}

        def read(member: str) -> bytes:
            if member not in files:
                raise ValueError(f"{member} is missing in {path}")
            return files[member].read_bytes()

        return read
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is not a zip file ({error})") from error
    names = archive.namelist()
    for member in names:
        if "\\" in member or PurePosixPath(member).is_absolute() or ".." in PurePosixPath(member).parts:
            raise ValueError(f"{path} holds the unsafe path {member!r}; refusing to read it")
    by_name = {PurePosixPath(member).name: member for member in names if not member.endswith("/")}

    def read(member: str) -> bytes:
        if member not in by_name:
            raise ValueError(f"{member} is missing in {path}")
        return archive.read(by_name[member])

    return read


def _parse(name: str, path: Path) -> MovieLens:
    read = _open_members(path)
    if path.suffix == ".whl":
        return _parse_wheel(name, read)
    return _parse_100k(name, read) if name == "ml-100k" else _parse_1m(name, read)


def _table(raw: bytes, separator: str, columns: list[str], *, header: int | None = None) -> pd.DataFrame:
    """Delimited text without quoting. ``::`` becomes a tab first: pandas' fast parser takes one character only."""
    encoding = "utf-8" if header is not None else "latin-1"
    if len(separator) > 1:
        raw, separator = raw.replace(separator.encode(), b"\t"), "\t"
    text_columns = {c: str for c in ("zip", "title", "genres", "gender", "occupation", "year") if c in columns}
    return pd.read_csv(
        io.BytesIO(raw),
        sep=separator,
        names=columns,
        header=header,
        encoding=encoding,
        dtype=text_columns,
        quoting=3,
        keep_default_na=False,
        usecols=range(len(columns)),
    )


def _parse_100k(name: str, read: Callable[[str], bytes]) -> MovieLens:
    ratings = _table(read("u.data"), "\t", ["user_id", "movie_id", "rating", "timestamp"])
    users = _table(read("u.user"), "|", ["user_id", "age", "gender", "occupation", "zip"])
    flags = [f"genre_{i}" for i in range(len(GENRES_100K))]
    movies = _table(read("u.item"), "|", ["movie_id", "title", "released", "video", "imdb", *flags])
    on = movies[flags].to_numpy() == 1
    movies["genres"] = ["|".join(g for g, flag in zip(GENRES_100K, row, strict=True) if flag) for row in on]
    return _tables(name, ratings, users, movies)


def _parse_1m(name: str, read: Callable[[str], bytes]) -> MovieLens:
    ratings = _table(read("ratings.dat"), "::", ["user_id", "movie_id", "rating", "timestamp"])
    users = _table(read("users.dat"), "::", ["user_id", "gender", "age", "occupation", "zip"])
    users["occupation"] = [OCCUPATIONS_1M[int(code)] for code in users["occupation"]]
    movies = _table(read("movies.dat"), "::", ["movie_id", "title", "genres"])
    return _tables(name, ratings, users, movies)


def _parse_wheel(name: str, read: Callable[[str], bytes]) -> MovieLens:
    ratings = _table(read("ml-100k.inter"), "\t", ["user_id", "movie_id", "rating", "timestamp"], header=0)
    users = _table(read("ml-100k.user"), "\t", ["user_id", "age", "gender", "occupation", "zip"], header=0)
    movies = _table(read("ml-100k.item"), "\t", ["movie_id", "title", "year", "genres"], header=0)
    movies["title"] = [
        "unknown" if title == "unkonwn" else f"{title} ({year})"  # the copy misspells movie 267
        for title, year in zip(movies["title"], movies["year"], strict=True)
    ]
    order = {genre: place for place, genre in enumerate(GENRES_100K)}
    movies["genres"] = ["|".join(sorted(g.split(), key=order.__getitem__)) for g in movies["genres"]]
    return _tables(name, ratings, users, movies)


def _tables(name: str, ratings: pd.DataFrame, users: pd.DataFrame, movies: pd.DataFrame) -> MovieLens:
    """The common form: titles with single spaces, the year out of the title, integer columns."""
    movies = movies.assign(title=movies["title"].str.split().str.join(" "))
    year = movies["title"].str.extract(r".*\((\d{4})\)", expand=False)
    movies["year"] = year.fillna("0").astype("int64")
    for column in ("rating", "timestamp"):
        ratings[column] = ratings[column].astype("int64")
    return MovieLens(name, ratings[TABLES["ratings"]], users[TABLES["users"]], movies[TABLES["movies"]])


# --------------------------------------------------------------------------------------------------------------------
# Generated data
# --------------------------------------------------------------------------------------------------------------------


def synthetic(
    n_ratings: int = 20_000, n_users: int | None = None, n_movies: int | None = None, seed: int = 0
) -> MovieLens:
    """Ratings with planted tastes, for tests, offline use and scaling runs. Never to be shown as real data.

    Each user mixes a few of 18 genres. A user stays in a genre for a while, then moves to another of their mix, and
    within a genre picks movies by a long-tailed popularity: so what comes next depends on the last few movies, which
    is what a sequence model should find and a popularity count cannot.

    Args:
        n_ratings: exact number of rows.
        n_users, n_movies: default about 100 ratings per user, and 400 to 20,000 movies growing with the ratings.
        seed: the same seed gives the same tables.
    """
    n_users = n_users or max(20, n_ratings // 100)
    n_movies = n_movies or int(np.clip(8 * n_ratings**0.5, 400, 20_000))
    if min(n_ratings, n_users, n_movies) < 1:
        raise ValueError(f"sizes must be positive, got n_ratings={n_ratings}, n_users={n_users}, n_movies={n_movies}")
    if n_ratings > 0.25 * n_users * n_movies:
        raise ValueError(
            f"{n_ratings:,} ratings fill over a quarter of {n_users:,} users × {n_movies:,} movies; "
            "give more users or movies"
        )
    generator = np.random.default_rng(seed)
    genres = GENRES_100K[1:]
    n_genres = len(genres)

    movie_genre = generator.integers(0, n_genres, n_movies)
    movie_genre[: min(n_genres, n_movies)] = np.arange(min(n_genres, n_movies))  # no genre without a movie
    second = generator.integers(0, n_genres, n_movies)
    popularity = 1.0 / (1.0 + generator.permutation(n_movies)) ** 0.8

    # One cumulative distribution per genre, laid end to end: genre g owns [g, g + 1).
    order = np.argsort(movie_genre, kind="stable")
    weight = popularity[order]
    total = np.bincount(movie_genre, weights=popularity, minlength=n_genres)
    inside = np.cumsum(weight) - np.concatenate([[0.0], np.cumsum(total)])[movie_genre[order]]
    ladder = movie_genre[order] + (inside / total[movie_genre[order]]).clip(0, 1 - 1e-12)

    tastes = np.argsort(generator.random((n_users, n_genres)), axis=1)[:, :3].astype(np.int8)  # three genres a user
    length = generator.lognormal(0, 0.8, n_users)
    # Repeats of a (user, movie) pair are dropped, so draw more than asked for; twice as many as long as it is short.
    draw = int(1.3 * n_ratings) + 100
    while True:
        counts = np.maximum(1, np.floor(draw * length / length.sum())).astype(np.int64)
        user = np.repeat(np.arange(n_users, dtype=np.int32), counts)
        stay = generator.random(len(user), dtype=np.float32) < 0.85
        stay[np.concatenate([[0], np.cumsum(counts)[:-1]])] = False  # a user's first movie starts a new streak
        streak = np.cumsum(~stay) - 1
        slot = generator.choice(3, size=int(streak[-1]) + 1, p=(0.5, 0.3, 0.2)).astype(np.int8)
        genre = tastes[user, slot[streak]]
        stray = generator.random(len(user), dtype=np.float32) < 0.05
        genre = np.where(stray, generator.integers(0, n_genres, len(user), dtype=np.int8), genre)
        del stay, streak, slot, stray
        movie = order[np.searchsorted(ladder, genre + generator.random(len(user)), side="left").clip(max=n_movies - 1)]
        _, first = np.unique(user.astype(np.int64) * n_movies + movie, return_index=True)
        if len(first) >= n_ratings:
            break
        draw *= 2
    kept = np.sort(generator.choice(first, n_ratings, replace=False))
    user, movie = user[kept], movie[kept]
    ratings = pd.DataFrame(
        {
            "user_id": user.astype(np.int64) + 1,
            "movie_id": movie.astype(np.int64) + 1,
            "rating": generator.integers(3, 6, n_ratings),
            "timestamp": 874_724_710 + np.cumsum(generator.integers(1, 600, n_ratings)),
        }
    )
    users = pd.DataFrame(
        {
            "user_id": np.arange(1, n_users + 1),
            "gender": generator.choice(["F", "M"], n_users),
            "age": generator.integers(15, 70, n_users),
            "occupation": generator.choice(OCCUPATIONS_1M, n_users),
            "zip": [f"{z:05d}" for z in generator.integers(0, 100_000, n_users)],
        }
    )
    year = generator.integers(1930, 1999, n_movies)
    movies = pd.DataFrame(
        {
            "movie_id": np.arange(1, n_movies + 1),
            "title": [f"Generated film {i + 1} ({y})" for i, y in enumerate(year)],
            "genres": [
                genres[a] if a == b else f"{genres[a]}|{genres[b]}" for a, b in zip(movie_genre, second, strict=True)
            ],
            "year": year,
        }
    )
    return MovieLens("synthetic", ratings, users, movies)
