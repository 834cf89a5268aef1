"""MovieLens as three tables with a schema (notebook 01).

F. M. Harper and J. A. Konstan, "The MovieLens Datasets: History and Context", ACM TiiS 5(4), 2015. The ratings may not
be redistributed, so they are fetched (or found) and never shipped.
"""

from __future__ import annotations

import hashlib
import io
import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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
RATINGS = ["user_id", "movie_id", "rating", "timestamp"]
USERS = ["user_id", "gender", "age", "occupation", "zip"]
MOVIES = ["movie_id", "title", "genres", "year"]


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


# -- Where the files come from -----------------------------------------------------------------------------------------

HOSTS = (
    "https://files.grouplens.org/datasets/movielens",
    "https://huggingface.co/datasets/Recommenders/MovieLens/resolve/main",  # byte for byte the same files
)


@dataclass(frozen=True)
class Archive:
    """The SHA-256 of ``<name>.zip`` on every host, and what its ratings are once parsed."""

    digest: str
    n_ratings: int
    ratings_digest: str | None = None  # known where a copy could be checked
    wheel: tuple[str, str, str] | None = None  # (requirement, file name, SHA-256) of a public wheel with a copy


ARCHIVES = {
    "ml-100k": Archive(
        digest="50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
        n_ratings=100_000,
        ratings_digest="d0366dc73dcd6c6620782fc3436fc07a4a003fe17c863aee0829c53db6a8f574",
        wheel=(
            "recbole==1.2.1",
            "recbole-1.2.1-py3-none-any.whl",
            "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
        ),
    ),
    "ml-1m": Archive(digest="a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20", n_ratings=1_000_209),
}


def load_movielens(
    name: str = "ml-100k", *, folder: str | Path | None = None, progress: bool = True, **synthetic_size: int
) -> MovieLens:
    """Load a data set by name; fetch it on first use.

    Args:
        name: ``"ml-100k"``, ``"ml-1m"`` or ``"synthetic"``.
        folder: where downloads live; default :func:`~dssm_helpers.settings.data_dir`.
        progress: draw a progress bar while downloading.
        synthetic_size: of :func:`synthetic`, for that name alone.

    Raises:
        ValueError: unknown name, or a size for a data set that has its own.
        DataUnavailable: every source failed.
    """
    if name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}; choose one of {', '.join(DATASETS)}")
    if name == "synthetic":
        return synthetic(**synthetic_size)
    if synthetic_size:
        raise ValueError(f"{', '.join(synthetic_size)} only apply to 'synthetic'; {name} has its own size")
    folder = Path(folder) if folder else data_dir()
    failures = []
    for source, find, *arguments in _sources(name, folder, progress):
        try:
            return parse(name, find(*arguments))
        except (OSError, ValueError, ArithmeticError, subprocess.SubprocessError) as error:  # of pooch, pandas and pip
            failures.append(f"  - {source}: {(str(error).strip() or repr(error)).splitlines()[-1][:300]}\n")
    raise DataUnavailable(
        f"could not get {name}. Tried:\n{''.join(failures)}"
        f"What you can do: download {name}.zip from https://grouplens.org/datasets/movielens/ in a browser and put it, "
        f"unopened, at\n  {folder / name}.zip\nor unpack it to\n  {folder / name}\n"
        "or set DSSM_DATA_DIR to a folder that has it. Offline, DSSM_DATASET=synthetic runs the whole course on "
        "generated data."
    )


def _sources(name: str, folder: Path, progress: bool) -> Iterator[tuple]:
    """In order: what a source is called, the function that gives a verified path, and its arguments."""
    archive, kept = ARCHIVES[name], folder / f"{name}.zip"
    yield kept, _verified, kept, archive.digest
    yield f"unpacked folder {folder / name}", _verified_folder, name, folder / name
    requirement, wheel, digest = archive.wheel or ("", "", "")
    if wheel:
        yield folder / wheel, _verified, folder / wheel, digest
    for host in HOSTS:
        yield f"{host}/{kept.name}", _download, f"{host}/{kept.name}", kept, archive.digest, progress
    if wheel:
        yield f"pip download {requirement}", _download_wheel, requirement, folder / wheel, digest


def _verified(path: Path, digest: str) -> Path:
    found = file_digest(path)
    if found != digest:
        raise ValueError(f"not the published file (SHA-256 {found[:12]}…, expected {digest[:12]}…); left untouched")
    return path


def _verified_folder(name: str, path: Path) -> Path:
    """A folder with the original files. Its digest is not published, so the parsed ratings are compared instead."""
    ratings, archive = parse(name, path).ratings, ARCHIVES[name]
    if len(ratings) != archive.n_ratings:
        raise ValueError(f"{len(ratings):,} ratings, expected {archive.n_ratings:,}; the folder is incomplete")
    if archive.ratings_digest and ratings_digest(ratings) != archive.ratings_digest:
        raise ValueError("the ratings differ from the published ones; left untouched")
    return path


def ratings_digest(ratings: pd.DataFrame) -> str:
    """SHA-256 of the ratings' four columns in file order, whatever format they came in."""
    return hashlib.sha256(ratings[RATINGS].to_numpy(dtype="<i8").tobytes()).hexdigest()


def _download(url: str, target: Path, digest: str, progress: bool) -> Path:
    import pooch

    if target.exists():  # it did not verify above: a file the user put there is never overwritten
        raise ValueError(f"{target} is in the way and is not the published file; move it away to download again")
    pooch.get_logger().setLevel(logging.WARNING)  # the progress bar says what is going on
    downloader = pooch.HTTPDownloader(progressbar=progress, timeout=20)
    pooch.retrieve(url, f"sha256:{digest}", fname=target.name, path=target.parent, downloader=downloader)
    return target


def _download_wheel(requirement: str, target: Path, digest: str) -> Path:
    """Through whatever package index the user has configured for pip."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, requirement]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if done.returncode:
            raise OSError(done.stderr.strip() or f"pip ended with {done.returncode}")
        fetched = _verified(Path(folder) / target.name, digest)
        with write_atomically(target) as file:
            shutil.copyfile(fetched, file)
    return target


# -- From files to tables ----------------------------------------------------------------------------------------------


def parse(name: str, path: Path) -> MovieLens:
    """The tables in an unpacked folder, a zip or the wheel; all give the same.

    Raises:
        ValueError: a missing file, or a value that is not what its column holds.
    """
    if path.suffix == ".whl":
        texts = _read(path, "recbole/dataset_example/ml-100k", "ml-100k.inter", "ml-100k.user", "ml-100k.item")
        ratings = _table(texts[0], "\t", RATINGS, header=0)
        users = _table(texts[1], "\t", ["user_id", "age", "gender", "occupation", "zip"], header=0)
        movies = _table(texts[2], "\t", ["movie_id", "title", "released", "genres"], header=0)
        dated = movies["title"] + " (" + movies["released"] + ")"
        movies["title"] = dated.mask(movies["title"] == "unkonwn", "unknown")  # the copy misspells movie 267
        order = GENRES_100K.index
        movies["genres"] = ["|".join(sorted(genres.split(), key=order)) for genres in movies["genres"]]
    elif name == "ml-100k":
        texts = _read(path, name, "u.data", "u.user", "u.item")
        ratings = _table(texts[0], "\t", RATINGS)
        users = _table(texts[1], "|", ["user_id", "age", "gender", "occupation", "zip"])
        movies = _table(texts[2], "|", ["movie_id", "title", "released", "video", "imdb", *GENRES_100K])
        flags = movies[list(GENRES_100K)].to_numpy() == 1
        movies["genres"] = ["|".join(np.asarray(GENRES_100K)[row]) for row in flags]
    else:
        texts = [text.replace(b"::", b"\t") for text in _read(path, name, "ratings.dat", "users.dat", "movies.dat")]
        ratings = _table(texts[0], "\t", RATINGS)
        users = _table(texts[1], "\t", ["user_id", "gender", "age", "code", "zip"])
        if not users["code"].between(0, len(OCCUPATIONS_1M) - 1).all():
            raise ValueError(f"users.dat: an occupation is no code from 0 to {len(OCCUPATIONS_1M) - 1}")
        users["occupation"] = np.asarray(OCCUPATIONS_1M)[users["code"]]
        movies = _table(texts[2], "\t", ["movie_id", "title", "genres"])
    movies["title"] = movies["title"].str.split().str.join(" ")  # GroupLens has a few double spaces
    movies["year"] = movies["title"].str.extract(r".*\((\d{4})\)", expand=False).fillna("0").astype("int64")
    return MovieLens(name, ratings[RATINGS], users[USERS], movies[MOVIES])


def _read(path: Path, inside: str, *names: str) -> list[bytes]:
    """Files anywhere in a folder, or in the folder ``inside`` a zip, of which nothing else is read or unpacked."""
    if path.is_file():
        with zipfile.ZipFile(path) as archive:
            return [archive.read(f"{inside}/{name}") for name in names]
    found = {file.name: file for file in path.rglob("*")}
    if missing := [name for name in names if name not in found]:
        raise ValueError(f"{missing[0]} is missing in {path}")
    return [found[name].read_bytes() for name in names]


def _table(raw: bytes, separator: str, columns: list[str], header: int | None = None) -> pd.DataFrame:
    """Delimited text without quotes. A number such as 1.5, or a field too many, is refused."""
    text = ("gender", "occupation", "zip", "title", "genres", "released", "video", "imdb")
    return pd.read_csv(
        io.BytesIO(raw),
        sep=separator,
        names=columns,
        header=header,
        encoding="latin-1" if header is None else "utf-8",  # the wheel's copy alone has headers, and is UTF-8
        dtype={column: str if column in text else "int64" for column in columns},
        quoting=3,
        keep_default_na=False,
    )


# -- Generated data ----------------------------------------------------------------------------------------------------


def synthetic(
    n_ratings: int = 20_000, n_users: int | None = None, n_movies: int | None = None, seed: int = 0
) -> MovieLens:
    """Ratings with planted tastes, for tests, offline use and scaling runs. Never to be shown as real data.

    A user stays in a genre for a while, then moves to another of their three, and within a genre picks movies by a
    long-tailed popularity: so what comes next depends on the last few movies, which is what a sequence model should
    find and a popularity count cannot.

    Args:
        n_ratings: exact number of rows.
        n_users, n_movies: default about 100 ratings per user, and 400 to 20,000 movies growing with the ratings.
        seed: the same seed gives the same tables.
    """
    n_users = n_users or max(20, n_ratings // 100)
    n_movies = n_movies or int(np.clip(8 * n_ratings**0.5, 400, 20_000))
    if min(n_ratings, n_users, n_movies) < 1 or n_ratings > 0.25 * n_users * n_movies:
        raise ValueError(
            f"expected from 1 rating to a quarter of users × movies, got {n_ratings:,} ratings of {n_users:,} users "
            f"and {n_movies:,} movies; give more users or movies"
        )
    random = np.random.default_rng(seed)
    genres = np.asarray(GENRES_100K[1:])[:n_movies]
    tastes = random.integers(0, len(genres), (n_users, 3), dtype=np.int32)
    activity = random.lognormal(0, 0.8, n_users)
    rows, chosen = 0.7 * n_ratings, np.empty(0, dtype=np.int64)
    while len(chosen) < n_ratings:  # repeats of a (user, movie) pair are dropped, so draw more than asked for
        rows *= 2
        user = np.repeat(np.arange(n_users, dtype=np.int32), np.ceil(rows * activity / activity.sum()).astype(int))
        streak = np.cumsum(random.random(len(user), dtype=np.float32) < 0.15)  # rows of one streak share a taste
        genre = tastes[user, random.choice(3, streak[-1] + 1, p=(0.5, 0.3, 0.2))[streak]]
        stray = random.random(len(user), dtype=np.float32) < 0.05
        genre[stray] = random.integers(0, len(genres), stray.sum())
        # Genre g owns the movies g, g + 18, g + 36, …, the most popular first: the cube of a random number is small.
        size = (n_movies - 1 - genre) // len(genres) + 1
        movie = genre + len(genres) * (size * random.random(len(user), dtype=np.float32) ** 3).astype(np.int32)
        _, chosen = np.unique(user * np.int64(n_movies) + movie, return_index=True)
    chosen = np.sort(random.choice(chosen, n_ratings, replace=False))
    movie_id = random.permutation(n_movies) + 1  # popularity does not show in the ids
    ratings = pd.DataFrame(
        {
            "user_id": user[chosen].astype(np.int64) + 1,
            "movie_id": movie_id[movie[chosen]],
            "rating": random.integers(3, 6, n_ratings),
            "timestamp": 874_724_710 + np.cumsum(random.integers(1, 600, n_ratings)),
        }
    )
    users = pd.DataFrame(
        {
            "user_id": np.arange(1, n_users + 1),
            "gender": random.choice(["F", "M"], n_users),
            "age": random.integers(15, 70, n_users),
            "occupation": random.choice(OCCUPATIONS_1M, n_users),
            "zip": [f"{code:05d}" for code in random.integers(0, 100_000, n_users)],
        }
    )
    first = genres[np.arange(n_movies) % len(genres)]
    second = random.choice(genres, n_movies)
    year = random.integers(1930, 1999, n_movies)
    movies = pd.DataFrame(
        {
            "movie_id": movie_id,
            "title": [f"Generated film {i} ({y})" for i, y in zip(movie_id, year, strict=True)],
            "genres": [a if a == b else f"{a}|{b}" for a, b in zip(first, second, strict=True)],
            "year": year,
        }
    )
    return MovieLens("synthetic", ratings, users, movies)
