"""The nearest item vectors: exact search, Annoy, Faiss, Milvus behind one small interface (notebook 06).

One line builds, one searches, one saves, whatever the library::

    index = build_index(vectors, ids, backend="faiss", kind="hnsw")
    ids, scores = index.search(user_vectors, k=10, exclude=seen)
    index.save("artifacts/index"); index = load_index("artifacts/index")

Item ids go in and come out, never row numbers. Scores are cosines, larger is better, in every backend. Needs NumPy
alone; a library is imported when its backend is used.
"""

from __future__ import annotations

import importlib
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from .files import sha256, write_atomically

FORMAT_VERSION = 1
NOTHING = -1  # the id that pads a short answer

ANNOY_CURE = (
    "compile it again without -ffast-math: ANNOY_COMPILER_ARGS=-O3,-std=c++14,-fpermissive,"
    "-DANNOYLIB_MULTITHREADED_BUILD pip install --no-cache-dir --force-reinstall --no-binary annoy annoy==1.17.3; "
    "or take prebuilt wheels: pip uninstall annoy, then pip install annoy-mm==1.17.3"
)


def build_index(vectors: np.ndarray, ids: Sequence[int] | None = None, backend: str = "exact", **options: Any) -> Index:
    """An index over item vectors (notebook 06, "Three lines for every library").

    Args:
        vectors: ``[n, D]``, any float type and memory layout; scaled to unit length.
        ids: ``[n]`` unique whole numbers from 0; default the row numbers.
        backend: ``"exact"``, ``"annoy"``, ``"faiss"`` or ``"milvus"``.
        options: of the backend, see ``DEFAULTS`` of its class. ``normalize=False`` keeps the lengths, so that all but
            Annoy (angular) rank by inner product: a switch to break things with.

    Raises:
        ValueError: vectors that are empty, not two-dimensional, not finite or of zero length; ids that repeat or do
            not match; an unknown backend or option; an Annoy that returns wrong neighbours.
        ImportError: the library is missing; the message holds the command that installs it.
    """
    kind = _backend(backend)
    unknown = set(options) - set(kind.DEFAULTS)
    if unknown:
        raise ValueError(f"{backend} has no option {sorted(unknown)}; it knows {', '.join(kind.DEFAULTS)}")
    options = {**kind.DEFAULTS, **options}
    vectors = _checked_vectors(vectors, options["normalize"])
    if len(vectors) == 0:
        raise ValueError("nothing to index: vectors is empty")
    return kind(vectors, _checked_ids(ids, len(vectors)), options)


def load_index(path: str | Path, **connection: Any) -> Index:
    """Read what :meth:`Index.save` wrote, after comparing version, hashes and dimension.

    Args:
        connection: for an index on a Milvus server, ``uri`` and ``token`` (neither a token nor a password is saved).

    Raises:
        FileNotFoundError: there is nothing at ``path``.
        ValueError: no index, another format version, an altered or missing file (by name), another dimension.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no index at {path}; make one with build_index(...).save({str(path)!r})")
    try:
        note = json.loads((path / "index.json").read_text(encoding="utf-8"))
        version, name, files = note["version"], note["backend"], note["sha256"]
        dim, n, options = int(note["dim"]), int(note["n"]), note["options"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a saved index: index.json is missing or unreadable ({error})") from error
    if version != FORMAT_VERSION:
        raise ValueError(f"{path} has format version {version}, expected {FORMAT_VERSION}; build the index again")
    for file, digest in files.items():
        if not (path / file).exists():
            raise ValueError(f"{path}: {file} is missing; build the index again")
        if sha256(path / file) != digest:
            raise ValueError(f"{path}: {file} is not what was saved (altered or damaged); build the index again")
    kind = _backend(name)
    if connection and not set(connection) <= set(kind.CONNECTION):
        raise ValueError(
            f"a {name} index takes {', '.join(kind.CONNECTION) or 'no connection'}, got {sorted(connection)}"
        )
    index = kind.__new__(kind)
    index.options, index.dim = {**kind.DEFAULTS, **options, **connection}, dim
    index._read(path)
    if index._stored_dim() != dim:
        raise ValueError(f"{path}: index.json says {dim} dimensions, the vectors have {index._stored_dim()}")
    if len(index.ids) != n and not index._external:
        raise ValueError(f"{path}: index.json says {n} items, there are {len(index.ids)}")
    return index


class Index:
    """What the four backends share: checks, exclusion, saving. Made by :func:`build_index` or :func:`load_index`.

    Attributes:
        backend: its name. dim: ``D``. ids: ``[n]`` int64, what is in the index.
        options: everything it was built with; :meth:`tune` changes those that are read at search time.
    """

    backend: ClassVar[str]
    DEFAULTS: ClassVar[dict[str, Any]] = {"normalize": True}
    TUNABLE: ClassVar[tuple[str, ...]] = ()
    CONNECTION: ClassVar[tuple[str, ...]] = ()
    _external = False  # True where the vectors live in a database that others may write to

    def __init__(self, vectors: np.ndarray, ids: np.ndarray, options: dict[str, Any]):
        self.options, self.ids, self.dim = options, ids, vectors.shape[1]
        self._build(vectors)

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"<{self.backend} index: {len(self):,} vectors of {self.dim} dimensions>"

    def search(
        self,
        queries: np.ndarray,
        k: int,
        exclude: Collection[int] | Sequence[Collection[int] | None] | None = None,
        *,
        allow_fewer: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The ``k`` nearest items of each query, best first: ``(ids [B, k] int64, scores [B, k] float32)``.

        Args:
            queries: ``[B, D]``, or ``[D]`` for one.
            exclude: per query the ids not to return (a single query may give just its ids). As many more are fetched,
                so ``k`` remain; ids that are not in the index do no harm.
            allow_fewer: pad with id -1 and score ``-inf`` where fewer than ``k`` candidates remain.

        Raises:
            ValueError: fewer than ``k`` candidates remain, ``k`` below 1, or queries that do not fit.
        """
        queries = _checked_vectors(queries, self.options["normalize"], what="queries", single=True)
        if queries.shape[1] != self.dim:
            raise ValueError(f"queries have {queries.shape[1]} dimensions, the index has {self.dim}")
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        excluded = self._checked_exclude(exclude, len(queries))
        left = np.array([len(self) - self._contains(ids).sum() for ids in excluded], dtype=np.int64)
        if len(queries) and left.min() < k and not allow_fewer:
            worst = int(left.argmin())
            raise ValueError(
                f"k={k}, but only {left[worst]} of {len(self):,} items are left for query {worst} after excluding "
                f"{len(excluded[worst])}; ask for fewer, or pass allow_fewer=True to have the answer padded with id -1"
            )
        found_ids = np.full((len(queries), k), NOTHING, dtype=np.int64)
        found_scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        todo = np.arange(len(queries))
        for exhaustive in (False, True):  # a narrow search may come short (a nearly empty cell); then look everywhere
            if len(todo) == 0:
                break
            fetch = len(self) if exhaustive else min(len(self), k + max(len(excluded[row]) for row in todo))
            ids, scores = self._search(queries[todo], fetch, exhaustive)
            keep = ids != NOTHING
            for i, row in enumerate(todo):
                if len(excluded[row]):
                    keep[i] &= ~_among(ids[i], excluded[row])
            best = np.argsort(~keep, axis=1, kind="stable")[:, :k]  # those to keep first, otherwise in the old order
            at = np.arange(len(todo))[:, None], best
            width = best.shape[1]
            found_ids[todo, :width] = np.where(keep[at], ids[at], NOTHING)
            found_scores[todo, :width] = np.where(keep[at], scores[at], -np.inf)
            todo = todo[(found_ids[todo] != NOTHING).sum(axis=1) < np.minimum(left[todo], k)]
        if len(todo) and not allow_fewer:
            raise ValueError(
                f"{self.backend} found fewer than {k} items for {len(todo)} queries although more are left"
            )
        return found_ids, found_scores

    def add(self, vectors: np.ndarray, ids: Sequence[int]) -> None:
        """Insert vectors ``[m, D]`` under ``ids [m]``; an id that exists gets its new vector.

        Raises:
            ValueError: the backend has to be built again instead (Annoy; replacing in Faiss' HNSW).
        """
        vectors = _checked_vectors(vectors, self.options["normalize"], single=True)
        if vectors.shape[1] != self.dim:
            raise ValueError(f"vectors have {vectors.shape[1]} dimensions, the index has {self.dim}")
        ids = _checked_ids(ids, len(vectors))
        kept = ~np.isin(self.ids, ids)  # [n], the rest is replaced
        self._add(vectors, ids, kept)
        self.ids = np.concatenate([self.ids[kept], ids])

    def tune(self, **options: Any) -> Index:
        """Change search-time options (``search_k``, ``nprobe``, ``efSearch``, ``ef``) without building again."""
        unknown = set(options) - set(self.TUNABLE)
        if unknown:
            raise ValueError(f"{sorted(unknown)} cannot change after building; {self.backend} has {self.TUNABLE}")
        self.options.update(options)
        return self

    def save(self, path: str | Path) -> None:
        """Write one folder: ``index.json`` and the payload. What was there before stays until the new one is whole.

        Raises:
            ValueError: ``path`` is a folder with other things in it, which saving would remove.
        """
        path = Path(path)
        if path.is_dir() and any(path.iterdir()) and not (path / "index.json").exists():
            raise ValueError(f"{path} holds other files; saving replaces the whole folder, so give the index its own")
        with write_atomically(path) as temporary:
            temporary.mkdir()
            self._write(temporary)
            hidden = {"token"} | (set() if self._external else {"uri"})
            note = {
                "version": FORMAT_VERSION,
                "backend": self.backend,
                "dim": self.dim,
                "n": len(self),
                "options": {name: value for name, value in self.options.items() if name not in hidden},
                "sha256": {file.name: sha256(file) for file in sorted(temporary.iterdir())},
            }
            (temporary / "index.json").write_text(json.dumps(note, indent=1, default=int) + "\n", encoding="utf-8")

    @property
    def nbytes(self) -> int:
        """Bytes the index takes, without Python's own overhead (0 on a Milvus server: its memory, not ours)."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of files and connections."""

    def _checked_exclude(self, exclude: Any, n_queries: int) -> list[np.ndarray]:
        if exclude is None:
            return [np.empty(0, dtype=np.int64)] * n_queries
        exclude = list(exclude)
        if n_queries == 1 and all(isinstance(entry, (int, np.integer)) for entry in exclude):
            exclude = [exclude]
        if len(exclude) != n_queries:
            raise ValueError(f"exclude has {len(exclude)} entries for {n_queries} queries; give one per query")
        return [np.unique(np.asarray([] if entry is None else list(entry), dtype=np.int64)) for entry in exclude]

    def _contains(self, ids: np.ndarray) -> np.ndarray:
        """Which of ``ids`` are in the index, without a pass over the whole catalogue."""
        if getattr(self, "_sorted_from", None) is not self.ids:
            self._sorted_from, self._sorted = self.ids, np.sort(self.ids)
        return _among(ids, self._sorted)

    # What a backend supplies ----------------------------------------------------------------------------------------

    def _build(self, vectors: np.ndarray) -> None:
        raise NotImplementedError

    def _search(self, queries: np.ndarray, n: int, exhaustive: bool) -> tuple[np.ndarray, np.ndarray]:
        """``(ids [B, m], scores [B, m])``, best first, ``m ≤ n``, id -1 where nothing was found."""
        raise NotImplementedError

    def _add(self, vectors: np.ndarray, ids: np.ndarray, kept: np.ndarray) -> None:
        raise NotImplementedError

    def _write(self, folder: Path) -> None:
        raise NotImplementedError

    def _read(self, folder: Path) -> None:
        raise NotImplementedError

    def _stored_dim(self) -> int:
        raise NotImplementedError


class ExactIndex(Index):
    """One matrix product (notebook 06, "Exact first"). Nothing is lost; the time grows with the catalogue."""

    backend = "exact"

    def _build(self, vectors: np.ndarray) -> None:
        self.vectors = vectors

    def _search(self, queries: np.ndarray, n: int, exhaustive: bool) -> tuple[np.ndarray, np.ndarray]:
        ids = np.empty((len(queries), n), dtype=np.int64)
        scores = np.empty((len(queries), n), dtype=np.float32)
        step = max(1, 2**24 // len(self))  # at most 64 MB of scores at a time
        for start in range(0, len(queries), step):
            rows = slice(start, start + step)
            product = queries[rows] @ self.vectors.T  # [b, n_items]
            if n < len(self):
                best = np.argpartition(product, -n, axis=1)[:, -n:]
            else:
                best = np.broadcast_to(np.arange(n), product.shape)
            row = np.arange(len(product))[:, None]
            best = best[row, np.argsort(-product[row, best], axis=1, kind="stable")]
            ids[rows], scores[rows] = self.ids[best], product[row, best]
        return ids, scores

    def _add(self, vectors: np.ndarray, ids: np.ndarray, kept: np.ndarray) -> None:
        self.vectors = np.concatenate([self.vectors[kept], vectors])

    @property
    def nbytes(self) -> int:
        return self.vectors.nbytes + self.ids.nbytes

    def _write(self, folder: Path) -> None:
        np.savez(folder / "items.npz", ids=self.ids, vectors=self.vectors)

    def _read(self, folder: Path) -> None:
        with np.load(folder / "items.npz", allow_pickle=False) as saved:
            self.ids, self.vectors = saved["ids"], saved["vectors"]

    def _stored_dim(self) -> int:
        return self.vectors.shape[1]


class AnnoyIndex(Index):
    """Spotify's forest of random-projection trees: a read-only file, mapped into memory, shared by processes.

    ``n_trees`` costs memory and build time; ``search_k``, the number of vectors looked at, costs time per query (-1 is
    Annoy's own ``n · n_trees``). Because a wrongly compiled Annoy answers wrongly without an error, every build is
    compared with exact search on a sample and refused with the cure.
    """

    backend = "annoy"
    DEFAULTS: ClassVar = {"normalize": True, "n_trees": 40, "search_k": 4000, "seed": 0, "n_jobs": 1}
    TUNABLE = ("search_k",)

    def _build(self, vectors: np.ndarray) -> None:
        annoy = _library("annoy", "annoy")
        self._annoy = annoy.AnnoyIndex(self.dim, "angular")
        self._annoy.set_seed(self.options["seed"])
        for row, vector in enumerate(vectors):
            self._annoy.add_item(row, vector)
        self._annoy.build(self.options["n_trees"], self.options["n_jobs"])
        self._check(vectors)
        # Saving makes Annoy map the file instead of keeping its own copy, so the file must outlive the object.
        self._folder = _private_folder()
        file = Path(self._folder.name) / "items.ann"
        self._annoy.save(str(file))
        self._file = file.open("rb")

    def _check(self, vectors: np.ndarray, n_queries: int = 8) -> None:
        sample = np.random.default_rng(0).permutation(len(vectors))[:n_queries]
        n = min(10, len(vectors))
        unit = vectors if self.options["normalize"] else vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        found = errors = 0.0
        for row in sample:
            cosine = unit @ unit[row]
            expected = np.argpartition(-cosine, n - 1)[:n]
            rows, distances = self._annoy.get_nns_by_vector(vectors[row], n, max(len(vectors), 1000), True)
            reached = cosine[rows] >= cosine[expected].min() - 1e-4  # equal vectors may stand in for each other
            found += reached.sum() / n / len(sample)
            if rows:
                errors = max(errors, float(np.abs(_cosine(distances) - cosine[rows]).max()))
        if found < 0.7 or not errors < 0.01:
            raise ValueError(
                f"this Annoy returns wrong neighbours: it found {found:.0%} of what exact search finds and its scores "
                f"are off by up to {errors:.2g}. It was probably compiled with -ffast-math by clang; {ANNOY_CURE}"
            )

    def _search(self, queries: np.ndarray, n: int, exhaustive: bool) -> tuple[np.ndarray, np.ndarray]:
        search_k = self.options["search_k"]
        if exhaustive:
            search_k = 2 * len(self) * self._annoy.get_n_trees()
        elif search_k >= 0:
            search_k = max(search_k, n)
        ids = np.full((len(queries), n), NOTHING, dtype=np.int64)
        scores = np.full((len(queries), n), -np.inf, dtype=np.float32)
        for i, query in enumerate(queries):
            rows, distances = self._annoy.get_nns_by_vector(query, n, search_k, True)
            ids[i, : len(rows)], scores[i, : len(rows)] = self.ids[rows], _cosine(distances)
        return ids, scores

    def _add(self, vectors: np.ndarray, ids: np.ndarray, kept: np.ndarray) -> None:
        raise ValueError("an Annoy index is read-only once built; call build_index again with all vectors")

    @property
    def nbytes(self) -> int:
        return self._file.seek(0, 2) + self.ids.nbytes

    def _write(self, folder: Path) -> None:
        self._file.seek(0)  # the open file is the mapped one, even if another index has taken its path since
        with (folder / "items.ann").open("wb") as copy:
            shutil.copyfileobj(self._file, copy)
        np.savez(folder / "ids.npz", ids=self.ids, dim=self.dim)

    def _read(self, folder: Path) -> None:
        annoy = _library("annoy", "annoy")
        with np.load(folder / "ids.npz", allow_pickle=False) as saved:
            self.ids, self._saved_dim = saved["ids"], int(saved["dim"])
        self._annoy = annoy.AnnoyIndex(self._saved_dim, "angular")
        try:
            self._annoy.load(str(folder / "items.ann"))
        except OSError as error:
            raise ValueError(f"{folder / 'items.ann'} cannot be read by Annoy: {error}") from error
        self._file = (folder / "items.ann").open("rb")

    def _stored_dim(self) -> int:
        return self._annoy.f

    def close(self) -> None:
        self._annoy.unload()
        self._file.close()


def _cosine(angular: Sequence[float]) -> np.ndarray:
    """Annoy's angular distance is √(2 − 2 cos)."""
    return 1.0 - np.square(np.asarray(angular, dtype=np.float64)) / 2.0


class FaissIndex(Index):
    """Meta's library. ``kind`` is the trade:

    ``flat`` exact; ``ivf`` looks at the ``nprobe`` nearest of ``nlist`` cells; ``hnsw`` walks a graph of ``M``
    neighbours with a beam of ``efSearch``; ``sq8`` exact search over 8-bit numbers, a quarter of the memory; ``ivfpq``
    cells with vectors compressed to ``m`` codes of ``nbits`` bits.

    H. Jégou et al., "Product Quantization for Nearest Neighbor Search", TPAMI 2011; Y. Malkov and D. Yashunin,
    "Efficient and Robust Approximate Nearest Neighbor Search Using HNSW Graphs", TPAMI 2018.
    """

    backend = "faiss"
    KINDS = ("flat", "ivf", "hnsw", "ivfpq", "sq8")
    DEFAULTS: ClassVar = {
        "normalize": True,
        "kind": "hnsw",
        "nlist": None,  # cells; None: about 4·√n
        "nprobe": 16,
        "M": 32,
        "efConstruction": 100,
        "efSearch": 64,
        "m": None,  # codes per vector; None: half of the dimensions (8 times smaller with 8 bits)
        "nbits": 8,
        "seed": 0,
    }
    TUNABLE = ("nprobe", "efSearch")

    def _build(self, vectors: np.ndarray) -> None:
        faiss = _library("faiss", "faiss-cpu")
        options, (n, dim), metric = self.options, vectors.shape, faiss.METRIC_INNER_PRODUCT
        kind = options["kind"]
        if kind not in self.KINDS:
            raise ValueError(f"unknown kind of Faiss index {kind!r}; choose one of {', '.join(self.KINDS)}")
        if kind in ("ivf", "ivfpq"):
            # Faiss asks for 39 training vectors per cell.
            options["nlist"] = options["nlist"] or int(np.clip(round(4 * n**0.5), 1, max(1, n // 39)))
            if options["nlist"] > n:
                raise ValueError(f"nlist={options['nlist']} cells for {n} vectors; take fewer cells than vectors")
        if kind == "flat":
            index = faiss.IndexFlat(dim, metric)
        elif kind == "sq8":
            index = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_8bit, metric)
        elif kind == "hnsw":
            index = faiss.IndexHNSWFlat(dim, options["M"], metric)
            index.hnsw.efConstruction = options["efConstruction"]
        elif kind == "ivf":
            index = faiss.IndexIVFFlat(faiss.IndexFlat(dim, metric), dim, options["nlist"], metric)
        else:
            m = options["m"] = options["m"] or next(d for d in range(max(1, dim // 2), 0, -1) if dim % d == 0)
            if dim % m:
                raise ValueError(f"m={m} codes do not divide {dim} dimensions")
            if n < 2 ** options["nbits"]:
                raise ValueError(
                    f"nbits={options['nbits']} needs {2 ** options['nbits']} vectors to learn from, got {n}"
                )
            index = faiss.IndexIVFPQ(faiss.IndexFlat(dim, metric), dim, options["nlist"], m, options["nbits"], metric)
            index.pq.cp.min_points_per_centroid = 1
        if kind in ("ivf", "ivfpq"):
            index.cp.seed, index.cp.min_points_per_centroid = options["seed"], 1
            self._faiss = index
        else:
            self._faiss = faiss.IndexIDMap2(index)
        self._faiss.train(vectors)
        self._faiss.add_with_ids(vectors, self.ids)

    def _search(self, queries: np.ndarray, n: int, exhaustive: bool) -> tuple[np.ndarray, np.ndarray]:
        import faiss

        kind = self.options["kind"]
        if kind in ("ivf", "ivfpq"):
            nprobe = self._faiss.nlist if exhaustive else min(self.options["nprobe"], self._faiss.nlist)
            scores, ids = self._faiss.search(queries, n, params=faiss.SearchParametersIVF(nprobe=nprobe))
        elif kind == "hnsw" and exhaustive:  # a graph may have unreachable corners, its vectors have not
            graph = faiss.downcast_index(self._faiss.index)
            scores, rows = graph.storage.search(queries, n)
            ids = faiss.vector_to_array(self._faiss.id_map)[rows]
        elif kind == "hnsw":
            beam = faiss.SearchParametersHNSW(efSearch=max(self.options["efSearch"], n))
            scores, ids = self._faiss.search(queries, n, params=beam)
        else:
            scores, ids = self._faiss.search(queries, n)
        return ids, scores

    def _add(self, vectors: np.ndarray, ids: np.ndarray, kept: np.ndarray) -> None:
        replaced = self.ids[~kept]
        if len(replaced):
            if self.options["kind"] == "hnsw":
                raise ValueError(
                    f"Faiss' HNSW graph cannot replace a vector ({len(replaced)} ids exist already, first "
                    f"{replaced[0]}); call build_index again, or use another kind"
                )
            self._faiss.remove_ids(replaced)
        self._faiss.add_with_ids(vectors, ids)

    @property
    def nbytes(self) -> int:
        import faiss

        return len(faiss.serialize_index(self._faiss))

    def _write(self, folder: Path) -> None:
        import faiss

        faiss.write_index(self._faiss, str(folder / "items.faiss"))
        np.savez(folder / "ids.npz", ids=self.ids)

    def _read(self, folder: Path) -> None:
        faiss = _library("faiss", "faiss-cpu")
        self._faiss = faiss.read_index(str(folder / "items.faiss"))
        with np.load(folder / "ids.npz", allow_pickle=False) as saved:
            self.ids = saved["ids"]

    def _stored_dim(self) -> int:
        return self._faiss.d


class MilvusIndex(Index):
    """A vector database. Embedded (Milvus Lite) by default; a server or cluster by ``uri="http://host:19530"``.

    Without ``uri`` the database is a private working copy: :meth:`save` puts it into the index folder, and
    :func:`load_index` works on a copy of that, so several processes may load it. With ``uri`` (an address, or a file of
    your own) the vectors live there, others see an upsert at once, and :meth:`save` writes only where they are.
    Building into a collection that exists makes it hold exactly the given items, and is refused unless the collection
    was made here with the same dimension and metric. Nothing is ever dropped.
    """

    backend = "milvus"
    DEFAULTS: ClassVar = {
        "normalize": True,
        "uri": None,
        "token": "",
        "collection": "items",
        "index_type": "HNSW",  # or FLAT, IVF_FLAT, AUTOINDEX
        "M": 32,
        "efConstruction": 100,
        "ef": 64,
        "nlist": 128,
        "nprobe": 16,
    }
    TUNABLE = ("ef", "nprobe")
    CONNECTION = ("uri", "token")
    LIMIT = 16_384  # Milvus returns no more than this
    _ID, _VECTOR = "item_id", "item_vector"

    @property
    def _external(self) -> bool:
        return self.options["uri"] is not None

    def _build(self, vectors: np.ndarray) -> None:
        milvus, name = _library("pymilvus", "pymilvus milvus-lite"), self.options["collection"]
        if not self._external:
            self._folder = _private_folder()
        self._connect()
        metric = "COSINE" if self.options["normalize"] else "IP"
        index = self._client.prepare_index_params()
        # Nested, because pymilvus sends a flat dict key by key, which a server reads and Milvus Lite overlooks.
        params = {"params": self._build_params()}
        index.add_index(self._VECTOR, index_type=self.options["index_type"], metric_type=metric, params=params)
        if self._client.has_collection(name):
            self._check_ours(metric)
            stale = np.setdiff1d(self._stored_ids(), self.ids)
        else:
            schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
            schema.add_field(self._ID, milvus.DataType.INT64, is_primary=True)
            schema.add_field(self._VECTOR, milvus.DataType.FLOAT_VECTOR, dim=self.dim)
            self._client.create_collection(name, schema=schema, consistency_level="Strong")
            stale = []
        self._upsert(vectors, self.ids)
        for start in range(0, len(stale), self.LIMIT):
            self._client.delete(name, ids=stale[start : start + self.LIMIT].tolist())
        self._client.flush(name)  # before create_index: until then not even its field names are checked
        if not self._client.list_indexes(name):
            self._client.create_index(name, index)
        self._client.load_collection(name)

    def _build_params(self) -> dict[str, int]:
        names = {"HNSW": ("M", "efConstruction"), "IVF_FLAT": ("nlist",)}.get(self.options["index_type"], ())
        return {name: self.options[name] for name in names}

    def _connect(self) -> None:
        milvus = _library("pymilvus", "pymilvus milvus-lite")
        uri = self.options["uri"] or str(Path(self._folder.name) / "milvus.db")
        if not uri.startswith(("http://", "https://", "tcp://", "unix:")):
            _library("milvus_lite", "pymilvus milvus-lite")
            Path(uri).parent.mkdir(parents=True, exist_ok=True)
        try:
            self._client = milvus.MilvusClient(uri, token=self.options["token"])
        except milvus.MilvusException as error:
            reason = f"no Milvus answers at {uri} ({error.message}); is it running, is the token right?"
            raise ConnectionError(reason) from error

    def _check_ours(self, metric: str) -> None:
        name = self.options["collection"]
        fields = {field["name"] for field in self._client.describe_collection(name)["fields"]}
        if fields != {self._ID, self._VECTOR}:
            raise ValueError(f"collection {name!r} was not made here and stays as it is; choose another collection=")
        indexes = self._client.list_indexes(name)
        has = self._client.describe_index(name, indexes[0])["metric_type"] if indexes else metric
        if (self._stored_dim(), has) != (self.dim, metric):
            raise ValueError(
                f"collection {name!r} holds {self._stored_dim()} dimensions under {has}, these vectors have "
                f"{self.dim} under {metric}; choose another collection="
            )

    def _upsert(self, vectors: np.ndarray, ids: np.ndarray) -> None:
        step = max(1, 2**22 // self.dim)  # 16 MB a request, well below the server's limit
        for start in range(0, len(ids), step):
            rows = slice(start, start + step)
            items = [{self._ID: i, self._VECTOR: v} for i, v in zip(ids[rows].tolist(), vectors[rows], strict=True)]
            self._client.upsert(self.options["collection"], items)

    def _stored_ids(self) -> np.ndarray:
        logger = logging.getLogger("pymilvus")
        level = logger.level
        logger.setLevel(logging.ERROR)  # Lite has no snapshots for iterators and warns about it
        try:
            pages = self._client.query_iterator(
                self.options["collection"],
                filter=f"{self._ID} >= 0",
                output_fields=[self._ID],
                batch_size=self.LIMIT // 2,
            )
            ids: list[int] = []
            while page := pages.next():
                ids += [row[self._ID] for row in page]
            pages.close()
        finally:
            logger.setLevel(level)
        return np.asarray(ids, dtype=np.int64)

    def _search(self, queries: np.ndarray, n: int, exhaustive: bool) -> tuple[np.ndarray, np.ndarray]:
        n = min(n, self.LIMIT)
        params = {
            "HNSW": {"ef": max(self.options["ef"], n)},
            "IVF_FLAT": {"nprobe": self.options["nlist"] if exhaustive else self.options["nprobe"]},
        }.get(self.options["index_type"], {})
        ids = np.full((len(queries), n), NOTHING, dtype=np.int64)
        scores = np.full((len(queries), n), -np.inf, dtype=np.float32)
        for start in range(0, len(queries), 1024):
            answers = self._client.search(
                self.options["collection"],
                data=list(queries[start : start + 1024]),
                anns_field=self._VECTOR,
                limit=n,
                search_params={"params": params},
                output_fields=[self._ID],
            )
            for row, hits in enumerate(answers, start):
                ids[row, : len(hits)] = [hit[self._ID] for hit in hits]
                scores[row, : len(hits)] = [hit["distance"] for hit in hits]
        return ids, scores

    def _add(self, vectors: np.ndarray, ids: np.ndarray, kept: np.ndarray) -> None:
        self._upsert(vectors, ids)

    @property
    def nbytes(self) -> int:
        if self._external:
            return 0
        self._client.flush(self.options["collection"])
        return sum(file.stat().st_size for file in Path(self._folder.name).rglob("*") if file.is_file())

    def _write(self, folder: Path) -> None:
        self._client.flush(self.options["collection"])
        if not self._external:
            self.close()
            shutil.copytree(
                Path(self._folder.name) / "milvus.db", folder / "milvus.db", ignore=shutil.ignore_patterns("LOCK")
            )
            self._connect()
            self._client.load_collection(self.options["collection"])

    def _read(self, folder: Path) -> None:
        if not self._external:
            self._folder = _private_folder()
            shutil.copytree(folder / "milvus.db", Path(self._folder.name) / "milvus.db")
        self._connect()
        if not self._client.has_collection(self.options["collection"]):
            raise ValueError(
                f"no collection {self.options['collection']!r} at {self.options['uri']}; put the vectors there with "
                "build_index(vectors, ids, backend='milvus', uri=..., token=...)"
            )
        self._client.load_collection(self.options["collection"])
        self.ids = self._stored_ids()

    def _stored_dim(self) -> int:
        fields = self._client.describe_collection(self.options["collection"])["fields"]
        return next((int(f["params"]["dim"]) for f in fields if f["name"] == self._VECTOR), 0)

    def close(self) -> None:
        self._client.close()


# --------------------------------------------------------------------------------------------------------------------
# Measuring
# --------------------------------------------------------------------------------------------------------------------


def recall(found: np.ndarray, exact: np.ndarray) -> float:
    """The share of the exact answers ``[B, k]`` that are among those ``found [B, k]`` (notebook 06)."""
    return float(np.mean([len(np.intersect1d(f, e)) / len(e) for f, e in zip(found, exact, strict=True)]))


def measure(index: Index, queries: np.ndarray, exact_ids: np.ndarray) -> dict[str, float]:
    """Recall against exact search, latency of single queries, throughput of one batch, bytes.

    Args:
        queries: ``[B, D]``. exact_ids: ``[B, k]``, the answers of exact search; their width is ``k``.
    """
    k = exact_ids.shape[1]
    for query in queries[:10]:  # the first calls pay for caches and lazy loading
        index.search(query, k)
    seconds = np.empty(len(queries))
    for i, query in enumerate(queries):
        start = time.perf_counter()
        index.search(query, k)
        seconds[i] = time.perf_counter() - start
    start = time.perf_counter()
    found, _ = index.search(queries, k)
    batch = time.perf_counter() - start
    return {
        f"recall@{k}": recall(found, exact_ids),
        "p50_ms": 1000 * float(np.quantile(seconds, 0.5)),
        "p99_ms": 1000 * float(np.quantile(seconds, 0.99)),
        "queries_per_second": len(queries) / batch,
        "megabytes": index.nbytes / 1e6,
    }


def enlarge(vectors: np.ndarray, n: int, seed: int = 0) -> np.ndarray:
    """``n`` unit vectors clustered like a real catalogue: real ones with noise the size of their nearest-neighbour gap.

    Uniform random vectors have no neighbourhoods, and no index would find any: they flatter nobody and teach nothing.

    Args:
        vectors: ``[m, D]`` trained item vectors of unit length.
    """
    generator = np.random.default_rng(seed)
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -np.inf)
    gap = np.sqrt(np.maximum(2 - 2 * similarity.max(axis=1), 1e-6))  # [m] distance to the nearest neighbour
    result = np.empty((n, vectors.shape[1]), dtype=np.float32)
    for start in range(0, n, 100_000):
        rows = generator.integers(0, len(vectors), min(100_000, n - start))
        noise = generator.standard_normal((len(rows), vectors.shape[1]), dtype=np.float32)
        moved = vectors[rows] + gap[rows, None] * noise / vectors.shape[1] ** 0.5
        result[start : start + len(rows)] = moved / np.linalg.norm(moved, axis=1, keepdims=True)
    return result


# --------------------------------------------------------------------------------------------------------------------


_BACKENDS: dict[str, type[Index]] = {kind.backend: kind for kind in (ExactIndex, AnnoyIndex, FaissIndex, MilvusIndex)}
BACKENDS = tuple(_BACKENDS)


def _backend(name: str) -> type[Index]:
    if name not in _BACKENDS:
        raise ValueError(f"unknown backend {name!r}; choose one of {', '.join(_BACKENDS)}")
    return _BACKENDS[name]


def _library(module: str, packages: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"this index needs {module}: pip install {packages}") from error


def _private_folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="dssm-index-", ignore_cleanup_errors=True)


def _checked_vectors(vectors: Any, normalize: bool, *, what: str = "vectors", single: bool = False) -> np.ndarray:
    """``[n, D]`` float32, contiguous, finite, of unit length unless ``normalize`` is off."""
    try:
        with np.errstate(over="ignore"):  # what does not fit float32 becomes infinite and is refused below
            array = np.ascontiguousarray(vectors, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} must be numbers in an array [n, D]: {error}") from error
    shape = np.shape(vectors)
    if single and len(shape) == 1:
        array = array.reshape(1, -1)
    elif len(shape) != 2:
        raise ValueError(f"{what} must be an array [n, D], got shape {shape}")
    if array.shape[1] == 0:
        raise ValueError(f"{what} have no dimensions, shape {array.shape}")
    bad = ~np.isfinite(array).all(axis=1)  # [n]
    if bad.any():
        raise ValueError(f"{what} hold NaN or infinity in {bad.sum()} rows, first row {bad.argmax()}")
    if not normalize:
        return array
    length = np.linalg.norm(array, axis=1, keepdims=True)
    if len(length) and length.min() < 1e-12:
        raise ValueError(f"{what}: row {length.argmin()} has length zero, so it has no direction and no cosine")
    return array / length


def _among(values: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """Which ``values`` are in ``ordered``, sorted and not empty; for one request, many times as fast as np.isin."""
    return ordered[np.searchsorted(ordered, values).clip(max=len(ordered) - 1)] == values


def _checked_ids(ids: Sequence[int] | None, n: int) -> np.ndarray:
    if ids is None:
        return np.arange(n, dtype=np.int64)
    array = np.asarray(ids)
    if array.shape != (n,):
        raise ValueError(f"{n} vectors need {n} ids, got shape {array.shape}")
    if n and array.dtype.kind not in "iu":
        raise ValueError(f"ids must be whole numbers, got {array.dtype}")
    array = array.astype(np.int64)
    values, counts = np.unique(array, return_counts=True)
    if (counts > 1).any():
        raise ValueError(f"ids must be unique; {(counts > 1).sum()} repeat, first {values[counts > 1][0]}")
    if n and values[0] < 0:
        raise ValueError(f"ids must not be negative, got {values[0]} (-1 stands for no item)")
    return array
