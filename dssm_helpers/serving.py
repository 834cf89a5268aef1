"""Offline item vectors → index → online user tower → top-k, from one folder and without torch (notebook 09).

:func:`export_bundle` writes the folder where the model was trained. :class:`Recommender` answers from it and needs
only NumPy, onnxruntime and the index library; everything else is imported inside :func:`export_bundle`.
"""

from __future__ import annotations

import copy
import difflib
import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import __version__
from .files import sha256, write_atomically
from .retrieval import build_index, load_index
from .vocabulary import FIRST, UNKNOWN, Vocabulary, age_group, load_vocabularies, save_vocabularies, zip_area

if TYPE_CHECKING:
    from .data import EncodedData
    from .model import DSSM
    from .onnx_export import OnnxTower

FORMAT = 1
MANIFEST = "manifest.json"
BASES = {
    "user": "a known user",
    "history": "an unknown user with a history",
    "demographics": "an unknown user without a history: demographics only",
    "popularity": "nothing is known about this user: popularity, the same list for everybody",
}


# --------------------------------------------------------------------------------------------------------------------
# Offline: write the folder
# --------------------------------------------------------------------------------------------------------------------


def export_bundle(
    path: str | Path,
    model: DSSM,
    data: EncodedData,
    train: np.ndarray,
    *,
    backend: str = "exact",
    **index_options: Any,
) -> Path:
    """Write everything a server needs into one folder, complete or not at all (notebook 09, "The bundle").

    Both towers as ONNX, the item vectors, the index over them, vocabularies, titles, training counts (the fallback),
    the users' demographics, and ``manifest.json`` with the format, versions, shapes and the SHA-256 of every file.

    Args:
        path: the folder; a bundle that is already there is replaced.
        train: positions whose ratings count towards popularity.
        backend: of the index: ``exact``, ``annoy``, ``faiss`` or ``milvus``.
        index_options: passed on to ``build_index``. With ``backend="milvus"``, ``uri=`` and ``token=`` fill a
            collection on a server, named after these very vectors; without, the bundle holds a Milvus Lite database.

    Raises:
        ValueError: the folder holds something that is not a bundle.
        ImportError: a library is not installed; the message says what to install.
    """
    import onnxruntime
    import torch

    from .onnx_export import OnnxTower, export_onnx

    path = Path(path)
    if path.exists() and not (path / MANIFEST).exists() and (path.is_file() or any(path.iterdir())):
        raise ValueError(f"{path} exists and is not a bundle; give another path, or remove it yourself")
    user_names = [f.name for f in model.user_tower.embedding.features if f.name != "history"]
    history = next((f for f in model.user_tower.embedding.features if f.name == "history"), None)
    if history is None:
        raise ValueError("a Recommender answers from a history; this model's user tower has no feature 'history'")
    with write_atomically(path) as folder:
        folder.mkdir()
        export_onnx(model, folder / "user_tower.onnx", "user")
        export_onnx(model, folder / "item_tower.onnx", "item")
        # The file that will encode new movies encodes the old ones, so both kinds of vectors come from one tower.
        tower = OnnxTower.load(folder / "item_tower.onnx")
        real = {name: column[FIRST:] for name, column in data.item_columns.items() if name in tower.ranks}
        parts = range(0, data.n_items - FIRST, 4096)
        vectors = np.concatenate([tower({n: c[start : start + 4096] for n, c in real.items()}) for start in parts])
        movie_ids = data.vocabularies["movie_id"].values
        np.save(folder / "item_vectors.npy", vectors)
        np.save(folder / "popularity.npy", data.item_counts(train)[FIRST:])
        np.save(folder / "users.npy", np.stack([data.user_columns[name] for name in user_names], axis=1))
        if backend == "milvus":
            index_options.setdefault("collection", collection_name(sha256(folder / "item_vectors.npy")))
        index = build_index(vectors, movie_ids, backend=backend, **index_options)
        index.save(folder / "index")
        index.close()
        save_vocabularies(data.vocabularies, folder / "vocabularies.json")
        (folder / "titles.json").write_text(json.dumps(data.titles[FIRST:], ensure_ascii=False), encoding="utf-8")
        manifest = {
            "format": FORMAT,
            "dataset": data.name,
            "backend": backend,
            "versions": {
                "dssm_helpers": __version__,
                "numpy": np.__version__,
                "onnxruntime": onnxruntime.__version__,
                "torch": torch.__version__,
            },
            "shapes": {"item_vectors": list(vectors.shape), "users": [data.n_users, len(user_names)]},
            "user_columns": user_names,
            "max_history": history.max_length,
            "temperature": model.temperature,
            "files": {p.relative_to(folder).as_posix(): sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()},
        }
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return path


def read_manifest(path: str | Path) -> dict[str, Any]:
    """The manifest of a bundle after checking its format and every file against its SHA-256.

    Raises:
        FileNotFoundError: no bundle at ``path``, or a file of it is missing (named).
        ValueError: an unreadable manifest, another format, or an altered file (named).
    """
    path = Path(path)
    if not (path / MANIFEST).is_file():
        raise FileNotFoundError(f"no bundle at {path}: {MANIFEST} is missing; write one with export_bundle")
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        version, files = manifest["format"], manifest["files"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path / MANIFEST} is damaged ({error!r}); export the bundle again") from error
    if version != FORMAT:
        raise ValueError(
            f"the bundle at {path} has format {version!r}, dssm_helpers {__version__} reads format {FORMAT}; "
            "export it again with this version, or load it with the version that wrote it"
        )
    for name, digest in files.items():
        if not (path / name).is_file():
            raise FileNotFoundError(f"the bundle at {path} is incomplete: {name} is missing; copy or export it again")
        if sha256(path / name) != digest:
            raise ValueError(f"the bundle at {path} was altered: {name} is not the exported file; export it again")
    return manifest


# --------------------------------------------------------------------------------------------------------------------
# Online: answer
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recommendations:
    """What :meth:`Recommender.recommend` returns, best first; iterating gives (movie_id, title, score).

    Attributes:
        scores: cosines; for ``basis == "popularity"`` the number of training ratings.
        basis: what the answer rests on, a key of :data:`BASES`: ``user``, ``history``, ``demographics``,
            ``popularity``.
        ignored: given values that the model has never seen and took for "unknown", such as ``"zip 'XYZ'"``.
    """

    movie_ids: list[int]
    titles: list[str]
    scores: list[float]
    basis: str
    ignored: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.movie_ids)

    def __iter__(self) -> Any:
        return iter(zip(self.movie_ids, self.titles, self.scores, strict=True))

    def __str__(self) -> str:
        lines = [f"For {BASES[self.basis]}"]
        if self.ignored:
            lines.append(f"(never seen in training: {', '.join(self.ignored)})")
        width = ".0f" if self.basis == "popularity" else ".3f"
        lines += [f"{rank:>3}  {score:{width}}  {title}" for rank, (_, title, score) in enumerate(self, start=1)]
        return "\n".join(lines)


@dataclass(frozen=True)
class Request:
    """A request as the user tower takes it. ``batch``: input name → ``[1]`` or ``[1, L]``. ``seen``: movie ids."""

    batch: dict[str, np.ndarray]
    seen: set[int]
    basis: str
    ignored: tuple[str, ...]


class Recommender:
    """Raw values in, titles out (notebook 09, "The recommender").

    Reads may come from any number of threads; :meth:`add_movie` takes a lock of its own.

    Attributes:
        user_tower, item_tower: :class:`~dssm_helpers.onnx_export.OnnxTower`. index: of ``retrieval.py``.
        vocabularies: by column. titles: movie id → title. manifest: what the bundle says about itself.
    """

    def __init__(
        self,
        manifest: dict[str, Any],
        user_tower: OnnxTower,
        item_tower: OnnxTower,
        index: Any,
        vocabularies: dict[str, Vocabulary],
        titles: list[str],
        item_vectors: np.ndarray,
        popularity: np.ndarray,
        users: np.ndarray,
    ):
        self.manifest, self.user_tower, self.item_tower, self.index = manifest, user_tower, item_tower, index
        self.vocabularies, self.users, self._item_vectors = vocabularies, users, item_vectors
        movie_ids = vocabularies["movie_id"].values
        self.titles: dict[int, str] = dict(zip(movie_ids.tolist(), titles, strict=True))
        order = np.argsort(-popularity, kind="stable")
        self.popular: list[tuple[int, int]] = list(
            zip(movie_ids[order].tolist(), popularity[order].tolist(), strict=True)
        )
        # Some films are in MovieLens twice. The one with more ratings comes first and stands for the title.
        self.ids_by_title: dict[str, list[int]] = {}
        for movie_id, _ in self.popular:
            self.ids_by_title.setdefault(self.titles[movie_id].casefold(), []).append(movie_id)
        self._place = {name: place for place, name in enumerate(manifest["user_columns"])}
        self._added: dict[int, np.ndarray] = {}  # vectors of new movies, for indexes that have to be built anew
        self._lock = threading.Lock()

    @classmethod
    def load(cls, path: str | Path, uri: str | None = None, token: str | None = None) -> Recommender:
        """Open a bundle after checking every file of it.

        Args:
            uri: search in Milvus: a file name ending in ``.db`` for Milvus Lite, or the address of a server or
                cluster, ``"http://host:19530"``. The collection is named after the bundle's item vectors, so vectors
                of another model never meet this user tower. A bundle exported with ``backend="milvus"`` connects to
                it and fills it only if it is not there; any other bundle sets it to its own movies at every load.
                Default: the index in the bundle.
            token: ``"user:password"`` or an API key for that server.

        Raises:
            FileNotFoundError, ValueError: see :func:`read_manifest`.
            ImportError: onnxruntime or the index library is not installed; the message says what to install.
        """
        from .onnx_export import OnnxTower

        path = Path(path)
        manifest = read_manifest(path)
        vocabularies = load_vocabularies(path / "vocabularies.json")
        connection = {name: value for name, value in (("uri", uri), ("token", token)) if value}
        if uri is not None and manifest["backend"] != "milvus":
            index = _fill(path, manifest, vocabularies, connection)
        else:
            try:
                index = load_index(path / "index", **connection)
            except ValueError:  # the files are as exported, so it is the server that has no such collection yet
                if uri is None:
                    raise
                index = _fill(path, manifest, vocabularies, connection)
        return cls(
            manifest,
            OnnxTower.load(path / "user_tower.onnx"),
            OnnxTower.load(path / "item_tower.onnx"),
            index,
            vocabularies,
            json.loads((path / "titles.json").read_text(encoding="utf-8")),
            np.load(path / "item_vectors.npy", mmap_mode="r"),
            np.load(path / "popularity.npy"),
            np.load(path / "users.npy"),
        )

    def __repr__(self) -> str:
        return f"Recommender({self.manifest['dataset']!r}: {len(self.titles):,} movies, index {self.index.backend!r})"

    # -- the request ------------------------------------------------------------------------------------------------

    def encode(
        self, user: int | Mapping[str, Any] | None = None, history: Sequence[int | str] | None = None
    ) -> Request:
        """Raw values to indices; the first stage of :meth:`recommend`, where the arguments are described."""
        columns, known, ignored = self._encode_user(user)
        movie_ids, seen = self._find_movies(history)
        latest = self.vocabularies["movie_id"].encode(np.asarray(movie_ids[-self.manifest["max_history"] :], np.int64))
        strangers = [f"movie {movie_id}" for movie_id in dict.fromkeys(movie_ids) if movie_id not in self.titles]
        if "user_id" in known:
            basis = "user"
        elif (latest > UNKNOWN).any():
            basis = "history"
        else:
            basis = "demographics" if known else "popularity"
        batch = {name: np.asarray([index], dtype=np.int64) for name, index in columns.items()}
        batch["history"] = latest[None, ::-1]  # [1, L], the newest first, as in training
        return Request(batch, seen, basis, (*ignored, *strangers))

    def _encode_user(self, user: int | Mapping[str, Any] | None) -> tuple[dict[str, int], set[str], list[str]]:
        """Index per user column, the columns that are known, and given values the vocabularies do not have."""
        if user is None:
            given: dict[str, Any] = {}
        elif isinstance(user, Mapping):
            given = {name: value for name, value in user.items() if not _is_missing(value)}
        else:
            given = {"user_id": user}
        valid = list(self._place)
        if given.keys() - valid:
            unexpected = sorted(map(str, given.keys() - valid))
            raise ValueError(f"user has no field {', '.join(unexpected)}; the fields are {', '.join(valid)}")
        columns, ignored = dict.fromkeys(valid, UNKNOWN), []
        if "user_id" in given:
            row = int(self.vocabularies["user_id"].encode([_whole("user_id", given["user_id"])])[0])
            if row != UNKNOWN:
                columns = dict(zip(valid, self.users[row].tolist(), strict=True))
        for name, value in given.items():
            columns[name] = int(self.vocabularies[name].encode(_column_value(name, value))[0])
            if columns[name] == UNKNOWN:
                ignored.append(f"{name} {value!r}")
        return columns, {name for name, index in columns.items() if index > UNKNOWN}, ignored

    def _find_movies(self, history: Sequence[int | str] | None) -> tuple[list[int], set[int]]:
        """Movie ids of a history in its order, and what counts as seen: for a title, every id it has."""
        if isinstance(history, (str, int)):
            raise ValueError(f"history is a list of movie ids or titles, oldest first; got {history!r}")
        movie_ids, seen = [], set()
        for movie in history if history is not None else ():
            if isinstance(movie, str):
                same = self.ids_by_title.get(movie.strip().casefold())
                if same is None:
                    raise ValueError(self._no_such_title(movie))
                movie_ids.append(same[0])
                seen.update(same)
            else:
                movie_ids.append(_whole("a movie id in history", movie))
                seen.add(movie_ids[-1])
        return movie_ids, seen

    def find_titles(self, text: str, n: int = 5) -> list[str]:
        """Titles that contain ``text``, the most rated first, then titles spelled alike."""
        wanted = text.strip().casefold()
        inside = [title for title in self.ids_by_title if wanted in title] if wanted else []
        alike = difflib.get_close_matches(wanted, self.ids_by_title, n=n, cutoff=0.5)
        return [self.titles[self.ids_by_title[title][0]] for title in dict.fromkeys([*inside, *alike])][:n]

    def _no_such_title(self, text: str) -> str:
        close = self.find_titles(text, 3)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "nothing is spelled like it."
        return f"no movie is called {text!r}; {hint} Titles carry their year, articles come last: 'Matrix, The (1999)'"

    # -- the answer -------------------------------------------------------------------------------------------------

    def recommend(
        self,
        user: int | Mapping[str, Any] | None = None,
        history: Sequence[int | str] | None = None,
        k: int = 10,
    ) -> Recommendations:
        """The ``k`` best movies that are not in ``history``; fewer where fewer are left.

        Args:
            user: a MovieLens user id, or a dict of any of ``user_id``, ``gender``, ``age`` (years), ``occupation``,
                ``zip``. Demographics of a known user id are filled in. What is missing or was never seen in training
                is "unknown"; a user about whom nothing is known gets the most popular movies.
            history: movie ids or titles, in the order they were watched: **oldest first**. The latest decide the
                vector, all of them are excluded. The server stores no ratings: what is not given was not watched.
            k: at least 1, at most the number of movies.

        Raises:
            ValueError: a title that does not exist (close ones are listed), an unknown field, a value of the wrong
                kind, a ``k`` out of range.
        """
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 1 <= k <= len(self.titles):
            raise ValueError(
                f"k must be a whole number between 1 and {len(self.titles)}, the number of movies; got {k!r}"
            )
        request = self.encode(user, history)
        if request.basis == "popularity":
            ranked: Iterable[tuple[int, float]] = self.popular
        else:
            vector = self.user_tower(request.batch)  # [1, D]
            found, cosines = self.index.search(vector, k, exclude=[request.seen], allow_fewer=True)
            ranked = zip(found[0].tolist(), cosines[0].tolist(), strict=True)
        # The index pads with -1 where fewer than k are left; another process may have added what was seen.
        left = ((movie_id, score) for movie_id, score in ranked if movie_id >= 0 and movie_id not in request.seen)
        best = list(islice(left, k))
        ids, scores = [movie_id for movie_id, _ in best], [float(score) for _, score in best]
        titles = [self.titles.get(movie_id, f"movie {movie_id}") for movie_id in ids]
        return Recommendations(ids, titles, scores, request.basis, request.ignored)

    # -- the catalogue ----------------------------------------------------------------------------------------------

    def item_vector(self, genres: str | Iterable[str], year: int) -> np.ndarray:
        """Unit vector ``[D]`` of a movie that the model has never met, from its genres and year."""
        names = genres.split("|") if isinstance(genres, str) else [str(name) for name in genres]
        if not names or not all(names):
            raise ValueError(f"a movie needs at least one genre, 'unknown' if there is none; got {genres!r}")
        columns = {
            "movie_id": np.asarray([UNKNOWN]),
            "year": self.vocabularies["year"].encode([_whole("year", year)]),
            "genres": self.vocabularies["genres"].encode([names]),
        }
        return self.item_tower({name: columns[name] for name in self.item_tower.ranks})[0]

    def add_movie(self, movie_id: int, title: str, genres: str | Iterable[str], year: int) -> np.ndarray:
        """Put a new movie into the index at once, from genres and year alone; return its vector ``[D]``.

        The vector of a new movie rests on what its features have in common with known movies, until the next
        training gives it an id of its own. Repeating the call replaces the movie. Bundle files stay as they are.

        Args:
            genres: ``"Action|Comedy"`` or a list; :attr:`vocabularies` has the known ones, others count as unknown.

        Raises:
            ValueError: the id belongs to a movie the model was trained on, an empty title, no genre, a year that is
                not a whole number.
        """
        movie_id = _whole("movie_id", movie_id)
        if movie_id < 0:
            raise ValueError(f"movie_id must not be negative, got {movie_id}")
        if not isinstance(title, str) or not title.strip():
            raise ValueError(f"a movie needs a title, got {title!r}")
        if self.vocabularies["movie_id"].encode([movie_id])[0] != UNKNOWN:
            raise ValueError(f"movie {movie_id} is already in the catalogue: {self.titles[movie_id]}; use a new id")
        vector = self.item_vector(genres, year)
        name = title.strip()
        with self._lock:
            added = {**self._added, movie_id: vector}
            index = self._index_with(movie_id, added)
            # New containers throughout: a reader keeps the ones it holds. Titles come before the index that needs them.
            if movie_id not in self.titles:
                self.popular = [*self.popular, (movie_id, 0)]
            ids = {t: [i for i in same if i != movie_id] for t, same in self.ids_by_title.items()}
            ids.setdefault(name.casefold(), []).append(movie_id)
            self.ids_by_title = {t: same for t, same in ids.items() if same}
            self.titles = {**self.titles, movie_id: name}
            self._added, self.index = added, index
        return vector

    def _index_with(self, movie_id: int, added: dict[int, np.ndarray]) -> Any:
        """The index with one more movie. A request in another thread keeps the index it started with, unchanged."""
        if self.index.backend in ("exact", "milvus"):
            # Adding to a copy of the exact index makes new arrays; Milvus keeps its own readers apart.
            index = copy.copy(self.index) if self.index.backend == "exact" else self.index
            index.add(added[movie_id][None], [movie_id])
            return index
        # Annoy is read-only and Faiss cannot be searched while it changes. Thousands of vectors take well under a
        # second to build anew; with millions, keep what is new in a small exact index beside the large one.
        vectors = np.concatenate([self._item_vectors, np.stack(list(added.values()))])
        ids = [*self.vocabularies["movie_id"].values.tolist(), *added]
        return build_index(vectors, ids, backend=self.index.backend, **self.index.options)


def collection_name(vectors_digest: str) -> str:
    """Name of the Milvus collection of a bundle, from the SHA-256 of its item vectors: one collection per model."""
    return f"movies_{vectors_digest[:12]}"


def _fill(path: Path, manifest: dict, vocabularies: dict[str, Vocabulary], connection: dict[str, str]) -> Any:
    """Put the bundle's item vectors into its Milvus collection."""
    vectors, name = np.load(path / "item_vectors.npy"), collection_name(manifest["files"]["item_vectors.npy"])
    return build_index(vectors, vocabularies["movie_id"].values, backend="milvus", collection=name, **connection)


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value) or value == ""


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise ValueError(f"{name}: expected a whole number, got {value!r}")
    return int(value)


def _column_value(name: str, value: Any) -> np.ndarray:
    """A user's raw value in the form its vocabulary was fitted on, ``[1]``."""
    if name == "user_id":
        return np.asarray([_whole(name, value)])
    if name == "age":
        if not 0 <= _whole(name, value) <= 130:
            raise ValueError(f"age: expected years between 0 and 130, got {value!r}")
        return age_group([value])
    if name == "zip":
        return zip_area([f"{value:05d}" if isinstance(value, (int, np.integer)) else str(value).strip()])
    return np.asarray([str(value)])
