"""Offline item vectors → index → online user tower → top-k, from one folder and without torch (notebook 09).

:func:`export_bundle` writes the folder where the model was trained. :class:`Recommender` answers from it and needs
only NumPy, onnxruntime and the index library.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import reprlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .files import Manifest, file_digest, read_manifest, write_folder
from .index import NOTHING, Index, load_arrays
from .onnx_export import OnnxTower, export_onnx, open_session
from .pairs import NEWEST, RETRIEVED, PairTables
from .retrieval import build_index, load_index
from .schema import Column, Schema
from .vocabulary import FIRST, PADDING, UNKNOWN, Vocabulary, load_vocabularies, save_vocabularies

if TYPE_CHECKING:
    from .data import EncodedData
    from .model import DSSM
    from .ranking import Ranker

COLLECTION = "items_{:.12}"  # in Milvus; named by a digest, vectors of another model never meet its user tower
BASES = {
    "user": "a known user",
    "history": "an unknown user with a history",
    "demographics": "an unknown user without a history: demographics only",
    "popularity": "a user of whom nothing is known: popularity, the same list for everybody",
}
KINDS = {str: "text", int: "a whole number", float: "a number"}
RawId = int | str
User = RawId | Mapping[str, Any] | None
History = Sequence[RawId] | None

_quoted = reprlib.Repr()
_quoted.maxstring = _quoted.maxother = _quoted.maxlong = 80  # characters of a value in a message


def index_id(raw: RawId) -> int:
    """The id of an item in an index, which takes 63 bits: a whole number itself, of anything else a hash."""
    if isinstance(raw, int) and 0 <= raw < 2**63:
        return raw
    return int.from_bytes(hashlib.sha256(str(raw).encode()).digest()[:8]) >> 1


def export_bundle(
    path: str | Path,
    model: DSSM,
    data: EncodedData,
    train: np.ndarray,
    *,
    second: tuple[Ranker, PairTables] | None = None,
    backend: str = "exact",
    users: bool = True,
    **index_options: Any,
) -> Path:
    """Write everything a server needs into one folder, complete or not at all (notebook 09, "The bundle").

    Both towers as ONNX, the item vectors and an index over them, vocabularies, titles, training counts (the fallback),
    and the users' columns. A bundle that is already there is replaced; other files are a FileExistsError.

    The interactions at the positions ``train`` count towards popularity. ``backend`` and ``index_options`` are those of
    ``build_index``; ``"milvus"`` with ``uri=`` and ``token=`` fills a collection there. ``second`` is an optional
    second stage, a ranker and the tables of its features: with it a recommender ranks anew what it has retrieved.

    Of persons the bundle holds their ids, their columns and, in the user tower, a row for each of them: no ratings and
    no histories. With ``users=False`` it holds none of these, and everybody is answered from history and given columns.
    What remains are counts and vectors over all users, and the values that their columns have (one may be of a single
    person; a zip code is kept to its first three digits).
    """
    from .model import features_of

    history = features_of(model.user_tower).get("history")
    if history is None:
        raise ValueError("a Recommender answers from a history; this model's user tower has no feature 'history'")
    seen = features_of(model).keys()
    fields = {
        "dataset": data.name,
        "schema": replace(data.schema, columns=tuple(c for c in data.schema.columns if c.name in seen)).to_json(),
        "max_history": history.max_length,
    }
    model, data = (model, data) if users else _without_users(model, data)
    with write_folder(path, "bundle", fields) as folder:
        for part in ("user", "item"):
            export_onnx(model, folder / f"{part}_tower.onnx", part, data.vocabularies)
        # The file that will encode new items encodes the old ones, so both kinds of vectors come from one tower.
        tower = OnnxTower.load(folder / "item_tower.onnx")
        real = {name: data.item_columns[name][FIRST:] for name in tower.ranks}
        parts = range(0, data.n_items - FIRST, 4096)
        vectors = np.concatenate([tower({n: c[start : start + 4096] for n, c in real.items()}) for start in parts])
        np.save(folder / "item_vectors.npy", vectors)
        np.save(folder / "popularity.npy", data.item_counts(train)[FIRST:])
        np.savez(folder / "users.npz", **{name: c for name, c in data.user_columns.items() if name in seen})
        save_vocabularies(data.vocabularies, folder / "vocabularies.json")
        (folder / "titles.json").write_text(json.dumps(data.titles[FIRST:], ensure_ascii=False), encoding="utf-8")
        if second is not None:
            from .ranking import export_ranker

            export_ranker(second[0], folder / "ranker.onnx")
            (folder / "pairs.npz").write_bytes(second[1].to_bytes())
        if backend == "milvus":
            index_options.setdefault("collection", COLLECTION.format(file_digest(folder / "item_vectors.npy")))
        ids = [index_id(raw) for raw in data.vocabularies["item_id"].values.tolist()]
        index = build_index(vectors, ids, backend=backend, **index_options)
        index.save(folder / "index")
        index.close()
    return Path(path)


def _without_users(model: DSSM, data: EncodedData) -> tuple[DSSM, EncodedData]:
    """Copies that know no user: in place of all ids the id of nobody, whose rows are those of "unknown"."""
    from .model import with_rows

    rows = [PADDING, UNKNOWN, UNKNOWN]
    nobody = Vocabulary("user_id", [""] if data.vocabularies["user_id"].is_text else [-(2**63)])
    columns = {name: column[rows] for name, column in data.user_columns.items()}
    vocabularies = {**data.vocabularies, "user_id": nobody}
    return with_rows(model, {"user_id": rows}), replace(data, vocabularies=vocabularies, user_columns=columns)


@dataclass(frozen=True)
class Recommendations:
    """What :meth:`Recommender.recommend` returns, best first."""

    item_ids: list[RawId]
    titles: list[str]
    scores: list[float]  # cosines, or a second stage's scores; for "popularity" the number of training interactions
    basis: str  # what the answer rests on, a key of BASES
    ignored: tuple[str, ...] = ()  # given values that the model has never seen, such as "zip 'XYZ'"

    def __len__(self) -> int:
        return len(self.item_ids)

    def __str__(self) -> str:
        lines = [f"For {BASES[self.basis]}"]
        if self.ignored:
            lines.append(f"(never seen in training: {', '.join(self.ignored)})")
        width = ".0f" if self.basis == "popularity" else ".3f"
        best = enumerate(zip(self.scores, self.titles, strict=True), start=1)
        return "\n".join(
            lines + [f"{rank:>3}  {score:{width}}  {' '.join(title.split())}" for rank, (score, title) in best]
        )


@dataclass(frozen=True)
class Request:
    """A request as the user tower takes it, its ``batch``: input name → ``[1]`` or ``[1, L]``. ``seen``: index ids."""

    catalogue: Catalogue  # in which titles were looked up; the answer comes from the same
    batch: dict[str, np.ndarray]
    history: np.ndarray  # [L], newest first, for a second stage
    seen: set[int]
    basis: str
    ignored: tuple[str, ...]


class Catalogue:
    """What can be recommended at one moment; :meth:`Recommender.add_item` puts another in its place, whole.

    ``titles``: raw id → title, the most popular first. ``added``: raw id → vector ``[D]``.
    """

    def __init__(self, index: Index, titles: dict[RawId, str], added: dict[RawId, np.ndarray]):
        self.index, self.titles, self.added = index, titles, added
        self.raw_ids = {index_id(raw): raw for raw in titles}
        self.ids_by_title: dict[str, list[RawId]] = {}  # folded title → raw ids; the first stands for the title
        for raw, title in titles.items():
            self.ids_by_title.setdefault(title.casefold(), []).append(raw)


class Recommender:
    """Raw values in, titles out (notebook 09, "The recommender"). Any number of threads may ask and add."""

    def __init__(self, manifest: Manifest, uri: str | None, token: str):
        self.fields, files = manifest.fields, manifest.files
        self.vocabularies = load_vocabularies(files["vocabularies.json"])
        self.user_tower = OnnxTower.load(files["user_tower.onnx"], self.vocabularies)
        self.item_tower = OnnxTower.load(files["item_tower.onnx"], self.vocabularies)
        self._columns = {"user": {"user_id": Column("user_id", "user")}, "item": {}}
        for column in Schema.from_json(self.fields["schema"]).columns:
            self._columns[column.side][column.name] = column
        self._users, self._vectors = load_arrays(files["users.npz"]), load_arrays(files["item_vectors.npy"])
        counts = load_arrays(files["popularity.npy"])
        raw_ids, titles = self.vocabularies["item_id"].values.tolist(), json.loads(files["titles.json"])
        self._ids = [index_id(raw) for raw in raw_ids]
        self._counts = dict(zip(self._ids, counts.tolist(), strict=True))
        self._second, self.retrieved = None, RETRIEVED  # for a second stage; fewer are quicker
        if "ranker.onnx" in files:
            self._second = PairTables.from_bytes(files["pairs.npz"]), open_session(files["ranker.onnx"])
            self._rows = {item: row for row, item in enumerate(self._ids, start=FIRST)}
        try:
            index = load_index(manifest.inside("index", "index"), uri=uri, token=token)
        except ValueError:  # with sound bytes: the index is no Milvus, or this Milvus has no such collection yet
            if uri is None:
                raise
            milvus = {"collection": COLLECTION.format(hashlib.sha256(files["item_vectors.npy"]).hexdigest())}
            index = build_index(self._vectors, self._ids, backend="milvus", uri=uri, token=token, **milvus)
        popular = np.argsort(-counts, kind="stable").tolist()
        self.catalogue = Catalogue(index, {raw_ids[i]: titles[i] for i in popular}, {})
        self._lock = threading.Lock()

    @classmethod
    def load(cls, path: str | Path, uri: str | None = None, token: str = "") -> Recommender:
        """Open a bundle, from the very bytes that were compared with its manifest.

        With ``uri`` it searches in Milvus instead of in the index of the bundle: a file ``"movies.db"`` for Milvus
        Lite, or a server's ``"http://host:19530"`` with a ``token``, ``"user:password"`` or an API key. The collection
        is filled here unless :func:`export_bundle` did; what others added stays. No bundle, a missing or altered file
        (named), a tower of other vocabularies: FileNotFoundError or ValueError. A crafted file can crash Annoy: take a
        stranger's bundle with an exact or a Faiss index.
        """
        return cls(read_manifest(path, "bundle"), uri, token)

    @property
    def index(self) -> Index:
        return self.catalogue.index

    @property
    def titles(self) -> dict[RawId, str]:
        return self.catalogue.titles

    def encode(self, user: User = None, history: History = None) -> Request:
        """Raw values to indices; the first stage of :meth:`recommend`, where the arguments are described."""
        now = self.catalogue
        given, ignored = self._encode_columns("user", user if isinstance(user, Mapping) else {"user_id": user})
        row = int(given.get("user_id", [UNKNOWN])[0])
        batch = {name: given.get(name, table[row : row + 1]) for name, table in self._users.items()}
        items, seen = self._find_items(now, [] if history is None else history)
        longest = self.fields["max_history"]
        latest = items[-max(longest, NEWEST[-1]) :][::-1]  # the newest first, as in training
        history = self.vocabularies["item_id"].encode(np.array(latest, dtype=object))  # [L]
        batch["history"] = history[None, :longest]
        basis = "user" if row != UNKNOWN else "history" if (batch["history"] > UNKNOWN).any() else "demographics"
        if basis == "demographics" and all((index <= UNKNOWN).all() for index in given.values()):
            basis = "popularity"
        ignored += [f"item {_quoted.repr(item)}" for item in dict.fromkeys(items) if item not in now.titles]
        excluded = set() if self.fields["schema"].get("repeats") else seen
        return Request(now, batch, history, excluded, basis, tuple(ignored))

    def _encode_columns(self, side: str, given: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], list[str]]:
        """The given columns as indices ``[1]``, or ``[1, G]`` of a list, and values the vocabularies do not have."""
        columns, encoded, ignored = self._columns[side], {}, []
        for name, value in given.items():
            if name not in columns:
                raise ValueError(f"the {side} has no field {_quoted.repr(name)}; the fields are {', '.join(columns)}")
            value = value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
            if value is None or value != value or value in ("", [], ()):
                continue
            column, vocabulary = columns[name], self.vocabularies[name]
            kinds = [str, int] if column.prefix or column.digits else [str] if vocabulary.is_text else [int]
            kinds = [float] if column.kind == "number" else kinds
            several = column.kind == "list" and isinstance(value, (str, list, tuple))
            values = [_checked(name, entry, *kinds) for entry in (column.split(value) if several else [value])]
            indices = vocabulary.encode(column.normalise(values))
            encoded[name] = indices[None] if column.kind == "list" else indices
            ignored += [f"{name} {_quoted.repr(v)}" for v, i in zip(values, indices, strict=True) if i == UNKNOWN]
        return encoded, ignored

    def _find_items(self, now: Catalogue, history: Sequence[RawId]) -> tuple[list[RawId], set[int]]:
        """Raw ids of a history in its order, and the index ids that count as seen: for a title, every id it has."""
        if not isinstance(history, (list, tuple, np.ndarray)):
            raise ValueError(f"history is a list of item ids or titles, oldest first; got {_quoted.repr(history)}")
        text_ids = self.vocabularies["item_id"].is_text
        kinds = [str] if text_ids else [str, int]
        items, seen = [], []
        for entry in history:
            item = _checked("history", entry, *kinds)
            same = [item]
            if isinstance(item, str) and item not in now.titles:
                same = now.ids_by_title.get(item.strip().casefold(), same if text_ids else [])
                if not same:
                    raise ValueError(self._no_such_title(now, item))
            items.append(same[0])
            seen += same
        return items, set(map(index_id, seen))

    def _no_such_title(self, now: Catalogue, text: str) -> str:
        wanted = text.strip().casefold()
        close = [title for title in now.ids_by_title if wanted and wanted in title]  # the most popular first
        close += difflib.get_close_matches(wanted, now.ids_by_title, cutoff=0.5)
        close = [now.titles[now.ids_by_title[title][0]] for title in dict.fromkeys(close)][:3]
        hint = f"did you mean {' or '.join(map(_quoted.repr, close))}?" if close else "nothing is spelled like it."
        return f"no item is called {_quoted.repr(text)}; {hint}"

    def recommend(self, user: User = None, history: History = None, k: int = 10) -> Recommendations:
        """The ``k`` best items that are not in ``history``; fewer where fewer are left.

        Args:
            user: a raw user id, or a dict of any of ``user_id`` and the users' columns. Columns of a known user id are
                filled in. What is missing or was never seen in training is "unknown"; a user about whom nothing is
                known gets the most popular items.
            history: raw item ids or titles, **oldest first**. The latest decide the vector, all are excluded (where the
                schema says ``repeats``, none). The server stores no interactions: what is not given did not happen.

        A ValueError: a title that does not exist (close ones are listed), an unknown field, a value of the wrong kind,
        a ``k`` that is not from 1 to the number of items.
        """
        request = self.encode(user, history)
        now = request.catalogue
        if _checked("k", k, int) not in range(1, len(now.titles) + 1):
            raise ValueError(f"k must be between 1 and {len(now.titles)}, the number of items; got {_quoted.repr(k)}")
        if request.basis == "popularity":
            unseen = (item for item in now.raw_ids if item not in request.seen)
            best = {item: self._counts.get(item, 0) for item in islice(unseen, k)}
        else:
            vector = self.user_tower(request.batch)  # [1, D]
            again = self._second is not None and (request.history > UNKNOWN).any()
            fetch = max(k, self.retrieved) if again else k
            found, cosines = now.index.search(vector, fetch, exclude=[request.seen], allow_fewer=True)
            best = dict(zip(found[0].tolist(), cosines[0].tolist(), strict=True))
            best.pop(NOTHING, None)  # which pads the answer where fewer than k are left
            best = dict(islice(self._ranked(best, request.history), k)) if again else best
        items = [now.raw_ids.get(item, item) for item in best]  # another server may have added items to a Milvus
        titles = [now.titles.get(item, f"item {item}") for item in items]
        return Recommendations(items, titles, list(best.values()), request.basis, request.ignored)

    def _ranked(self, best: dict[int, float], history: np.ndarray) -> Iterator[tuple[int, float]]:
        """What was retrieved, index id → cosine, in the order of the second stage and with its scores."""
        tables, session = self._second
        items = np.array([self._rows.get(item, UNKNOWN) for item in best], dtype=np.int64)  # added ones are in no table
        pairs = tables.features(history, items, np.array(list(best.values()), dtype=np.float32))
        scores = session.run(None, {"pairs": pairs[None]})[0][0]
        ids = list(best)
        return ((ids[place], float(scores[place])) for place in np.argsort(-scores, kind="stable"))

    def add_item(self, item_id: RawId, title: str, **columns: Any) -> np.ndarray:
        """Put a new item into the index at once, from its columns alone; return its vector ``[D]``.

        Repeating the call replaces the item; the bundle's files stay as they are. A ValueError: the id of an item that
        the model was trained on, no title, no column or an unknown one, a value of the wrong kind.
        """
        vocabulary = self.vocabularies["item_id"]
        item_id = _checked("item_id", item_id, str if vocabulary.is_text else int)
        if not _checked("title", title, str).strip():
            raise ValueError(f"an item needs a title, got {_quoted.repr(title)}")
        if vocabulary.encode([item_id])[0] != UNKNOWN:
            raise ValueError(f"item {item_id} is already in the catalogue: {self.titles[item_id]}; use a new id")
        encoded, _ = self._encode_columns("item", columns)
        if not encoded:
            known = ", ".join(self._columns["item"]) or "none, this model tells items by their ids alone"
            raise ValueError(f"of a new item the model sees only its columns, so give some: {known}")
        unknown = {name: np.full((1,) * rank, UNKNOWN) for name, rank in self.item_tower.ranks.items()}
        vector = self.item_tower(unknown | encoded)[0]
        with self._lock:
            now = self.catalogue
            added, titles = {**now.added, item_id: vector}, {**now.titles, item_id: title.strip()}
            if now.index.backend == "milvus":  # it keeps its own readers apart
                index = now.index
                index.add(vector, [index_id(item_id)])
            else:
                # A request under way keeps the index it started with. With millions of items, keep what is new in a
                # small exact index beside the large one.
                vectors = np.concatenate([self._vectors, *(v[None] for v in added.values())])
                ids = [*self._ids, *map(index_id, added)]
                index = build_index(vectors, ids, backend=now.index.backend, **now.index.options)
            self.catalogue = Catalogue(index, titles, added)
        return vector


def _checked(name: str, value: Any, *kinds: type) -> Any:
    """The value as Python's own, if it is of one of these kinds; where a float is expected an int will do."""
    if type(value) in kinds:
        return value
    value = value.item() if isinstance(value, np.generic) else value
    if not isinstance(value, (*kinds, int) if float in kinds else kinds) or isinstance(value, bool):
        raise ValueError(f"{name}: expected {' or '.join(map(KINDS.get, kinds))}, got {_quoted.repr(value)}")
    return value
