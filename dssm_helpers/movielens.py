"""MovieLens as three tables with a schema (notebook 01).

F. M. Harper and J. A. Konstan, "The MovieLens Datasets: History and Context", ACM TiiS 5(4), 2015. The ratings may not
be redistributed, so they are fetched (or found) and never shipped.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import numpy as np
import pandas as pd
import requests
from tqdm import tqdm

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

COLUMNS = (
    Column("gender", "user"),
    Column("age", "user", kind="number", bins=AGE_GROUPS, limits=(0, 130)),
    Column("occupation", "user"),
    Column("zip", "user", prefix=3, digits=5),  # the postal area: whole zip codes are nearly unique per user
    Column("year", "item"),
    Column("genres", "item", kind="list"),
)
SCHEMA = Schema(user="user_id", item="movie_id", time="timestamp", title="title", columns=COLUMNS)
RATINGS = ["user_id", "movie_id", "rating", "timestamp"]
USERS = ["user_id", "gender", "age", "occupation", "zip"]
MOVIES = ["movie_id", "title", "genres", "year"]


@dataclass(frozen=True)
class MovieLens:
    """Three tables with the MovieLens-1M columns; ``encode(tables.ratings, tables.users, tables.movies, SCHEMA)``.

    Times are in seconds, ages in years (in ml-1m the lower bound of a group), genres ``"A|B"``; year 0 is unknown.
    """

    name: str
    ratings: pd.DataFrame
    users: pd.DataFrame
    movies: pd.DataFrame

    def __repr__(self) -> str:
        sizes = f"{len(self.ratings):,} ratings, {len(self.users):,} users, {len(self.movies):,} movies"
        return f"MovieLens({self.name!r}: {sizes})"


class DataUnavailable(RuntimeError):
    """No source gave the data. The message names every source, its reason, and what to put where by hand."""


HOSTS = (
    "https://files.grouplens.org/datasets/movielens",
    "https://huggingface.co/datasets/Recommenders/MovieLens/resolve/main",  # byte for byte the same files
)


ZIP_DIGESTS = {  # SHA-256, the same on every host
    "ml-100k": "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
    "ml-1m": "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
}
# Of the parsed tables, where a copy could be checked: only then is an unpacked folder enough.
TABLES_DIGESTS = {"ml-100k": "4d69398eb7bfc1957c9b6482316697af1e08e00cb9adc414029839e7061175cc"}
# A public wheel that holds a copy of ml-100k.
REQUIREMENT, WHEEL = "recbole==1.2.1", "recbole-1.2.1-py3-none-any.whl"
WHEEL_DIGEST = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
PATIENCE, LARGEST = 300, 2**25  # seconds and bytes that one source may take; the largest of the files has 6 MB


def load_movielens(
    name: str = "ml-100k", *, folder: str | Path | None = None, progress: bool = True, **synthetic_size: int
) -> MovieLens:
    """``"ml-100k"`` or ``"ml-1m"``, fetched into ``folder`` on first use, or ``"synthetic"`` of some size.

    If every source fails, :class:`DataUnavailable` says why and what to do.
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
            path = find(*arguments)
            tables = parse(name, path)
            if path == folder / name and tables_digest(tables) != TABLES_DIGESTS[name]:
                raise ValueError("the tables differ from the published ones; left untouched")
            return tables
        except (OSError, ValueError, ArithmeticError, subprocess.SubprocessError) as error:  # requests, pandas and pip
            reason = (str(error).strip() or repr(error)).splitlines()[-1]
            failures.append(f"  - {source}: {re.sub('//.*@', '//…@', reason)[:300]}\n")  # without a password
    raise DataUnavailable(
        f"could not get {name}. Tried:\n{''.join(failures)}"
        f"What you can do: download {name}.zip from https://grouplens.org/datasets/movielens/ in a browser and put it, "
        f"unopened, at\n  {folder / name}.zip\n"
        "or set DSSM_DATA_DIR to a folder that has it. Offline, DSSM_DATASET=synthetic is generated data."
    )


def _sources(name: str, folder: Path, progress: bool) -> Iterator[tuple]:
    """In order: what a source is called, the function that gives its path, and that function's arguments."""
    kept, digest, wheel = folder / f"{name}.zip", ZIP_DIGESTS[name], folder / WHEEL
    yield kept, _verified, kept, digest
    yield f"unpacked folder {folder / name}", _unpacked, folder / name
    if name == "ml-100k":
        yield wheel, _verified, wheel, WHEEL_DIGEST
    for host in HOSTS:
        yield f"{host}/{kept.name}", _download, kept, digest, _fetch, f"{host}/{kept.name}", progress
    if name == "ml-100k":
        yield f"pip download {REQUIREMENT}", _download, wheel, WHEEL_DIGEST, _pip_download


def _verified(path: Path, digest: str) -> Path:
    found = file_digest(path)
    if found != digest:
        raise ValueError(f"not the published file (SHA-256 {found[:12]}…, expected {digest[:12]}…)")
    return path


def _unpacked(folder: Path) -> Path:
    """A folder whose tables can be compared with the published ones, once they are parsed."""
    if folder.exists() and folder.name not in TABLES_DIGESTS:
        raise ValueError(f"nobody published digests of its files, so it could be anything; put {folder.name}.zip there")
    return folder


def tables_digest(tables: MovieLens) -> str:
    """SHA-256 of all rows and columns of the three tables in file order, whatever format they came in."""
    text = [table.to_csv(index=False, lineterminator="\n") for table in (tables.ratings, tables.users, tables.movies)]
    return hashlib.sha256("".join(text).encode()).hexdigest()


def _download(target: Path, digest: str, get: Callable, *arguments: object) -> Path:
    if target.exists():  # it was not there a moment ago, or did not verify: a file the user put is never overwritten
        if file_digest(target) != digest:
            raise ValueError(f"{target} is in the way and is not the published file; move it away to download again")
        return target
    with write_atomically(target) as temporary:
        get(temporary, *arguments)
        _verified(temporary, digest)
    return target


def _fetch(path: Path, url: str, progress: bool) -> None:
    """Download in a thread, left behind if the server does not let go of it: no wait is endless."""
    until, failures = time.monotonic() + PATIENCE, []

    def fetch() -> None:
        try:
            with requests.get(url, stream=True, timeout=20) as response, path.open("wb") as file:
                response.raise_for_status()
                size = int(response.headers.get("Content-Length", 0))
                with tqdm(total=size, unit="B", unit_scale=True, disable=not progress) as bar:
                    for part in response.iter_content(2**10):
                        bar.update(file.write(part))
                        if file.tell() > LARGEST or time.monotonic() > until:
                            raise ValueError(f"more than {LARGEST:,} bytes or {PATIENCE} seconds: no file of ours")
        except requests.exceptions.InvalidURL:  # whose message may hold a part of a password
            encode = "in its password write # / ? @ and backslash as %23 %2F %3F %40 %5C"
            failures.append(f"an address that is none, probably that of the proxy: {encode}")
        except Exception as failure:
            failures.append(failure)

    thread = Thread(target=fetch, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    if thread.is_alive():
        raise TimeoutError(f"no end after {PATIENCE} seconds")
    if failures:
        raise OSError(str(failures[0]))  # whatever it was, the next source may do


def _pip_download(path: Path) -> None:
    """Through whatever package index the user has configured for pip."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, REQUIREMENT]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        if done.returncode:
            raise OSError(done.stderr.strip() or f"pip ended with {done.returncode}")
        shutil.copyfile(Path(folder) / WHEEL, path)


USERS_100K = ["user_id", "age", "gender", "occupation", "zip"]
NUMBERS = ("user_id", "movie_id", "rating", "timestamp", "age", "code", *GENRES_100K)  # whole ones; the rest is text


def parse(name: str, path: Path) -> MovieLens:
    """The tables in an unpacked folder, a zip or the wheel; all give the same. What is no such file is an error."""
    if path.suffix == ".whl":
        ratings = _table(path, "ml-100k.inter", "\t", RATINGS)
        users = _table(path, "ml-100k.user", "\t", USERS_100K)
        movies = _table(path, "ml-100k.item", "\t", ["movie_id", "title", "released", "genres"])
        dated = movies["title"] + " (" + movies["released"] + ")"
        movies["title"] = dated.mask(movies["title"] == "unkonwn", "unknown")  # the copy misspells movie 267
        order = GENRES_100K.index
        movies["genres"] = ["|".join(sorted(genres.split(), key=order)) for genres in movies["genres"]]
    elif name == "ml-100k":
        ratings = _table(path, "u.data", "\t", RATINGS)
        users = _table(path, "u.user", "|", USERS_100K)
        movies = _table(path, "u.item", "|", ["movie_id", "title", "released", "video", "imdb", *GENRES_100K])
        flags = movies[list(GENRES_100K)].to_numpy() == 1
        movies["genres"] = ["|".join(np.asarray(GENRES_100K)[row]) for row in flags]
    else:
        ratings = _table(path, "ratings.dat", "::", RATINGS)
        users = _table(path, "users.dat", "::", ["user_id", "gender", "age", "code", "zip"])
        users["occupation"] = np.choose(users["code"], OCCUPATIONS_1M)  # refuses -1 and 21
        movies = _table(path, "movies.dat", "::", ["movie_id", "title", "genres"])
    movies["title"] = movies["title"].str.split().str.join(" ")  # GroupLens has a few double spaces
    movies["year"] = movies["title"].str.extract(r".*\((\d{4})\)", expand=False).fillna("0").astype("int64")
    return MovieLens(name, ratings[RATINGS], users[USERS], movies[MOVIES])


def _table(path: Path, file: str, separator: str, columns: list[str]) -> pd.DataFrame:
    """Delimited text without quotes, of which a number such as 1.5, or a field too many, is refused."""
    table = pd.read_csv(
        io.StringIO(_read(path, file).replace("::", "\t")),  # pandas reads two characters slowly
        sep=separator.replace("::", "\t"),
        names=columns,
        header=0 if path.suffix == ".whl" else None,
        dtype={column: "int64" if column in NUMBERS else str for column in columns},
        quoting=csv.QUOTE_NONE,
        keep_default_na=False,
    )
    if not isinstance(table.index, pd.RangeIndex):  # made of the first of too many fields
        raise ValueError(f"{file}: expected {len(columns)} fields, found more")
    return table


def _read(path: Path, file: str) -> str:
    """A file anywhere in a folder or a zip. Nothing is unpacked."""
    if path.is_file():
        with zipfile.ZipFile(path) as archive:
            (inside,) = (name for name in archive.namelist() if name.endswith(f"/{file}"))
            content = archive.read(inside)
    elif found := next(path.rglob(file), None):
        content = found.read_bytes()
    else:
        raise ValueError(f"{file} is missing in {path}")
    try:
        return content.decode("utf-8")  # the wheel's copy, or saved again by an editor
    except UnicodeDecodeError:
        return content.decode("latin-1")  # as GroupLens publishes it


def synthetic(n_ratings: int = 20_000, n_users: int = 0, n_movies: int = 0, seed: int = 0) -> MovieLens:
    """Ratings with planted tastes, for tests, offline use and scaling runs. Never to be shown as real data.

    A user stays in a genre for a while, then moves to another of their three, and within a genre picks movies by a
    long-tailed popularity: so what comes next depends on the last few movies, as a sequence model should find.
    Without sizes there are about 100 ratings per user, and 400 to 20,000 movies, growing with the ratings.
    """
    n_users = n_users or max(20, n_ratings // 100)
    n_movies = n_movies or int(np.clip(8 * n_ratings**0.5, 400, 20_000))
    if not 1 <= n_ratings <= n_users * n_movies / 4:
        given = f"{n_ratings:,} of {n_users:,} users and {n_movies:,} movies"
        raise ValueError(f"expected from 1 rating to a quarter of users × movies, got {given}")
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
    ratings = pd.DataFrame({"user_id": user[chosen].astype(np.int64) + 1, "movie_id": movie_id[movie[chosen]]})
    ratings["rating"] = random.integers(3, 6, n_ratings)
    ratings["timestamp"] = 874_724_710 + np.cumsum(random.integers(1, 600, n_ratings))
    users = pd.DataFrame({"user_id": np.arange(1, n_users + 1), "gender": random.choice(["F", "M"], n_users)})
    users["age"] = random.integers(15, 70, n_users)
    users["occupation"] = random.choice(OCCUPATIONS_1M, n_users)
    users["zip"] = [f"{code:05d}" for code in random.integers(0, 100_000, n_users)]
    first, second = genres[np.arange(n_movies) % len(genres)], random.choice(genres, n_movies)
    movies = pd.DataFrame({"movie_id": movie_id, "year": random.integers(1930, 1999, n_movies)})
    movies["title"] = [f"Generated film {i} ({year})" for i, year in movies.to_numpy()]
    movies["genres"] = [a if a == b else f"{a}|{b}" for a, b in zip(first, second, strict=True)]
    return MovieLens("synthetic", ratings, users, movies[MOVIES])
