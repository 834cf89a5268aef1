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
import io
import shutil
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from .files import Manifest, read_manifest, write_folder

NOTHING = -1  # the id that pads a short answer
CONNECTION = ("uri", "token")  # options that no file may hold: they say where to connect, and as whom
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
        backend: one of :data:`BACKENDS`.
        options: of the backend, see ``DEFAULTS`` of its class. ``normalize=False`` keeps the lengths, so that all but
            Annoy (angular) rank by inner product: a switch to break things with.

    Raises:
        ValueError: vectors that are empty, not two-dimensional, not finite or of zero length; ids that repeat or do
            not match; an unknown backend or option; an Annoy that returns wrong neighbours.
        ImportError: a library is missing; the message holds the command that installs it.
    """
    index = _empty(backend, options)
    vectors = _checked_vectors(vectors, index.options["normalize"], "vectors")
    if len(vectors) == 0:
        raise ValueError("nothing to index: vectors is empty")
    index.ids, index.dim = _checked_ids(range(len(vectors)) if ids is None else ids, len(vectors)), vectors.shape[1]
    index._build(vectors)
    return index


def load_index(source: str | Path | Manifest, *, uri: str | None = None, token: str | None = None) -> Index:
    """What :meth:`Index.save` wrote, built from the very bytes that were verified.

    A digest tells damage, not intent: a crafted file can crash Annoy, so take a stranger's index as exact or Faiss.

    Args:
        source: the folder, or its manifest where it is a part of a larger folder.
        uri, token: of a Milvus elsewhere (:class:`MilvusIndex`).

    Raises:
        FileNotFoundError: there is no index, or a file of it is missing (named).
        ValueError: not an index, an altered file (named), an unknown option, or vectors elsewhere and no ``uri``.
    """
    manifest = source if isinstance(source, Manifest) else read_manifest(source, "index")
    saved, elsewhere = manifest.fields["options"], manifest.fields["elsewhere"]
    if forbidden := saved.keys() & set(CONNECTION):
        raise ValueError(f"{manifest.path} wants to choose {sorted(forbidden)}, which only load_index may be given")
    if elsewhere and uri is None:
        raise ValueError(f"{manifest.path} says only that its vectors live elsewhere, in a Milvus; give its uri=")
    given = {name: value for name, value in zip(CONNECTION, (uri, token), strict=True) if value is not None}
    index = _empty(manifest.fields["backend"], saved | given)
    index.dim = manifest.fields["dim"]
    index._read(manifest.files)
    return index


def _empty(backend: str, options: Mapping[str, Any]) -> Index:
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; choose one of {', '.join(BACKENDS)}")
    index = _CLASSES[backend]()
    if unknown := options.keys() - index.DEFAULTS.keys():
        raise ValueError(f"{backend} has no option {sorted(unknown)}; it knows {', '.join(index.DEFAULTS)}")
    index.options = {**index.DEFAULTS, **options}
    return index


class Index:
    """What the backends share: checks, exclusion, saving. Made by :func:`build_index` or :func:`load_index`.

    Any number of threads may search. A backend supplies ``nbytes`` and ``_build(vectors)``, ``_add(vectors, ids,
    replaced)``, ``_write(folder)``, ``_read(files)`` and ``_search(queries, n, exhaustive)``, which returns ``(ids [B, m],
    scores [B, m])``, best first, ``m ≤ n``, with :data:`NOTHING` where nothing was found.

    Attributes:
        backend: its name. dim: ``D``. ids: ``[n]`` int64, what is in the index.
        options: everything it was built with; :meth:`tune` changes those that are read at search time.
        nbytes: what it takes, without Python's own overhead (0 on a Milvus server: its memory, not ours).
    """

    backend: ClassVar[str]
    DEFAULTS: ClassVar[dict[str, Any]] = {"normalize": True}
    TUNABLE: ClassVar[tuple[str, ...]] = ()
    options: dict[str, Any]
    dim: int

    @property
    def ids(self) -> np.ndarray:
        return self._ids[0]

    @ids.setter
    def ids(self, ids: np.ndarray) -> None:
        self._ids = ids, np.sort(ids)  # in one store: no thread sees one without the other

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
            allow_fewer: pad with :data:`NOTHING` and score ``-inf`` where fewer than ``k`` candidates remain.

        Raises:
            ValueError: fewer than ``k`` candidates remain, ``k`` below 1, or queries that do not fit.
        """
        queries = self._fitting(queries, "queries")
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        excluded = _checked_exclude(exclude, len(queries))
        n, ordered = len(self), self._ids[1]
        left = np.array([n - _among(seen, ordered).sum() for seen in excluded], dtype=np.int64)
        if not allow_fewer and (left < k).any():
            worst = int(left.argmin())
            raise ValueError(
                f"k={k}, but only {left[worst]} of {n:,} items are left for query {worst} after excluding "
                f"{len(excluded[worst])}; ask for fewer, or pass allow_fewer=True to have the answer padded with id -1"
            )
        wanted = np.minimum(left, k)
        found = np.full((len(queries), k), NOTHING, dtype=np.int64)
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        short = np.flatnonzero(wanted)
        for exhaustive in (False, True):  # a narrow search may come short (a nearly empty cell); then look everywhere
            if len(short) == 0:
                break
            fetch = n if exhaustive else min(n, k + max(len(excluded[row]) for row in short))
            candidates, cosines = self._search(queries[short], fetch, exhaustive)
            for i, row in enumerate(short):
                good = (candidates[i] != NOTHING) & ~_among(candidates[i], excluded[row])
                best = np.flatnonzero(good)[:k]
                found[row, : len(best)], scores[row, : len(best)] = candidates[i, best], cosines[i, best]
            short = short[(found[short] != NOTHING).sum(axis=1) < wanted[short]]
        if len(short) and not allow_fewer:
            raise ValueError(f"{self.backend} found fewer than {k} items for {len(short)} queries, more are left")
        return found, scores

    def add(self, vectors: np.ndarray, ids: Sequence[int]) -> None:
        """Insert vectors ``[m, D]`` under ``ids [m]``; an id that exists gets its new vector.

        Raises:
            ValueError: the backend has to be built again instead (Annoy; replacing in Faiss' HNSW).
        """
        vectors = self._fitting(vectors, "vectors")
        ids = _checked_ids(ids, len(vectors))
        replaced = np.isin(self.ids, ids)  # [n]
        self._add(vectors, ids, replaced)
        self.ids = np.concatenate([self.ids[~replaced], ids])

    def tune(self, **options: Any) -> Index:
        """Change search-time options (``search_k``, ``nprobe``, ``efSearch``, ``ef``) without building again."""
        if unknown := options.keys() - set(self.TUNABLE):
            raise ValueError(f"{sorted(unknown)} cannot change after building; {self.backend} has {self.TUNABLE}")
        self.options.update(options)
        return self

    def save(self, path: str | Path) -> None:
        """Write a folder; :func:`dssm_helpers.files.write_folder` says what it replaces and what it refuses."""
        options = {name: value for name, value in self.options.items() if name not in CONNECTION}
        elsewhere = self.options.get("uri") is not None
        fields = {"backend": self.backend, "dim": self.dim, "options": options, "elsewhere": elsewhere}
        with write_folder(path, "index", fields) as folder:
            if not elsewhere:
                np.save(folder / "ids.npy", self.ids)
                self._write(folder)

    def close(self) -> None:
        """Let go of files and connections."""

    def _fitting(self, vectors: np.ndarray, what: str) -> np.ndarray:
        vectors = _checked_vectors(np.atleast_2d(vectors), self.options["normalize"], what)
        if vectors.shape[1] != self.dim:
            raise ValueError(f"{what} have {vectors.shape[1]} dimensions, the index has {self.dim}")
        return vectors


class ExactIndex(Index):
    """One matrix product (notebook 06, "Exact first"). Nothing is lost; the time grows with the catalogue."""

    backend = "exact"

    def _build(self, vectors: np.ndarray) -> None:
        self.vectors = vectors

    def _search(self, queries: np.ndarray, n: int, exhaustive: bool) -> tuple[np.ndarray, np.ndarray]:
        ids, scores = np.empty((len(queries), n), dtype=np.int64), np.empty((len(queries), n), dtype=np.float32)
        step = max(1, 2**24 // len(self))  # at most 64 MB of scores at a time
        for start in range(0, len(queries), step):
            rows = slice(start, start + step)
            product = queries[rows] @ self.vectors.T  # [b, n_items]
            best = np.sort(np.argpartition(product, -n, axis=1)[:, -n:], axis=1)  # equals keep their order
            row = np.arange(len(product))[:, None]
            best = best[row, np.argsort(-product[row, best], axis=1, kind="stable")]
            ids[rows], scores[rows] = self.ids[best], product[row, best]
        return ids, scores

    def _add(self, vectors: np.ndarray, ids: np.ndarray, replaced: np.ndarray) -> None:
        self.vectors = np.concatenate([self.vectors[~replaced], vectors])

    @property
    def nbytes(self) -> int:
        return self.vectors.nbytes + self.ids.nbytes

    def _write(self, folder: Path) -> None:
        np.save(folder / "vectors.npy", self.vectors)

    def _read(self, files: Mapping[str, bytes]) -> None:
        self.ids, self.vectors = _array(files["ids.npy"]), _array(files["vectors.npy"])


class AnnoyIndex(Index):
    """Spotify's forest of random-projection trees, read-only once built, mapped from a private file.

    ``n_trees`` costs memory and build time; ``search_k``, the number of vectors looked at, costs time per query (-1 is
    Annoy's own ``n · n_trees``). Because a wrongly compiled Annoy answers wrongly without an error, every build is
    compared with exact search on a sample and refused with the cure.
    """

    backend = "annoy"
    DEFAULTS: ClassVar = {"normalize": True, "n_trees": 40, "search_k": 4000, "seed": 0, "n_jobs": 1}
    TUNABLE = ("search_k",)

    def _open(self) -> None:
        self._annoy = _library("annoy", "annoy").AnnoyIndex(self.dim, "angular")
        self._folder = _private_folder()
        self._file = Path(self._folder.name, "items.ann")

    def _build(self, vectors: np.ndarray) -> None:
        self._open()
        self._annoy.set_seed(self.options["seed"])
        for row, vector in enumerate(vectors):
            self._annoy.add_item(row, vector)
        self._annoy.build(self.options["n_trees"], self.options["n_jobs"])
        self._check(vectors)
        self._annoy.save(str(self._file))  # from now on Annoy maps this file and keeps nothing of its own

    def _check(self, vectors: np.ndarray) -> None:
        n, lengths = min(10, len(vectors)), np.linalg.norm(vectors, axis=1)
        sample, right = np.random.default_rng(0).permutation(len(vectors))[:8], 0
        for row in sample:
            cosine = vectors @ vectors[row] / (lengths * lengths[row])
            rows, distances = self._annoy.get_nns_by_vector(vectors[row], n, max(len(vectors), 1000), True)
            near = cosine[rows] >= np.partition(cosine, -n)[-n] - 1e-4  # equal vectors stand in for each other
            right += np.sum(near & (np.abs(_cosine(distances) - cosine[rows]) < 0.01))
        if right < 0.7 * n * len(sample):
            raise ValueError(
                f"this Annoy returns wrong neighbours: of {n * len(sample)} that exact search finds, it finds {right} "
                f"with a right score. It was probably compiled with -ffast-math by clang; {ANNOY_CURE}"
            )

    def _search(self, queries: np.ndarray, n: int, exhaustive: bool) -> tuple[np.ndarray, np.ndarray]:
        search_k = self.options["search_k"]
        if exhaustive:
            search_k = 2 * len(self) * self._annoy.get_n_trees()
        elif search_k >= 0:
            search_k = max(search_k, n)
        answers = (self._annoy.get_nns_by_vector(query, n, search_k, True) for query in queries)
        return _padded([(self.ids[rows], _cosine(distances)) for rows, distances in answers], n)

    def _add(self, vectors: np.ndarray, ids: np.ndarray, replaced: np.ndarray) -> None:
        raise ValueError("an Annoy index is read-only once built; call build_index again with all vectors")

    @property
    def nbytes(self) -> int:
        return self._file.stat().st_size + self.ids.nbytes

    def _write(self, folder: Path) -> None:
        shutil.copyfile(self._file, folder / "items.ann")

    def _read(self, files: Mapping[str, bytes]) -> None:
        self.ids = _array(files["ids.npy"])
        self._open()
        self._file.write_bytes(files["items.ann"])
        self._annoy.load(str(self._file))

    def close(self) -> None:
        self._annoy.unload()
        self._folder.cleanup()


class FaissIndex(Index):
    """Meta's library. ``kind`` is the trade:

    ``flat`` exact; ``ivf`` looks at the ``nprobe`` nearest of ``nlist`` cells; ``hnsw`` walks a graph of ``M``
    neighbours with a beam of ``efSearch``; ``sq8`` exact search over 8-bit numbers, a quarter of the memory; ``ivfpq``
    cells with vectors compressed to ``m`` codes of ``nbits`` bits. By default about 4·√n cells and D/2 codes.

    H. Jégou et al., "Product Quantization for Nearest Neighbor Search", TPAMI 2011; Y. Malkov and D. Yashunin,
    "Efficient and Robust Approximate Nearest Neighbor Search Using HNSW Graphs", TPAMI 2018.
    """

    backend = "faiss"
    KINDS: ClassVar = {  # for faiss.index_factory; IDMap2 because only cells store ids of their own
        "flat": "IDMap2,Flat",
        "ivf": "IVF{nlist},Flat",
        "hnsw": "IDMap2,HNSW{M}",
        "ivfpq": "IVF{nlist},PQ{m}x{nbits}np",
        "sq8": "IDMap2,SQ8",
    }
    DEFAULTS: ClassVar = {
        "normalize": True, "kind": "hnsw", "nlist": None, "nprobe": 16, "M": 32, "efConstruction": 100, "efSearch": 64,
        "m": None, "nbits": 8, "seed": 0,
    }  # fmt: skip
    TUNABLE = ("nprobe", "efSearch")

    def _build(self, vectors: np.ndarray) -> None:
        faiss = _library("faiss", "faiss-cpu")
        options, kind, (n, dim) = self.options, self.options["kind"], vectors.shape
        if kind not in self.KINDS:
            raise ValueError(f"unknown kind of Faiss index {kind!r}; choose one of {', '.join(self.KINDS)}")
        if kind in ("ivf", "ivfpq"):
            # Faiss asks for 39 training vectors per cell.
            nlist = options["nlist"] = options["nlist"] or int(np.clip(round(4 * n**0.5), 1, max(1, n // 39)))
            if nlist > n:
                raise ValueError(f"nlist={nlist} cells for {n} vectors; take fewer cells than vectors")
        if kind == "ivfpq":
            m = options["m"] = options["m"] or next(m for m in range(max(1, dim // 2), 0, -1) if dim % m == 0)
            if dim % m:
                raise ValueError(f"m={m} codes do not divide {dim} dimensions")
            if n < 2 ** options["nbits"]:
                raise ValueError(
                    f"nbits={options['nbits']} needs {2 ** options['nbits']} vectors to learn from, got {n}"
                )
        index = faiss.index_factory(dim, self.KINDS[kind].format(**options), faiss.METRIC_INNER_PRODUCT)
        if kind == "hnsw":
            faiss.downcast_index(index.index).hnsw.efConstruction = options["efConstruction"]
        if kind in ("ivf", "ivfpq"):
            index.cp.seed, index.cp.min_points_per_centroid = options["seed"], 1
        if kind == "ivfpq":
            index.pq.cp.min_points_per_centroid = 1
        index.train(vectors)
        index.add_with_ids(vectors, self.ids)
        self._faiss = index

    def _search(self, queries: np.ndarray, n: int, exhaustive: bool) -> tuple[np.ndarray, np.ndarray]:
        import faiss

        kind, params = self.options["kind"], None
        if kind == "hnsw" and exhaustive:  # a graph may have unreachable corners, its vectors have not
            scores, rows = faiss.downcast_index(self._faiss.index).storage.search(queries, n)
            return self.ids[rows], scores
        if kind == "hnsw":
            params = faiss.SearchParametersHNSW(efSearch=max(self.options["efSearch"], n))
        elif kind in ("ivf", "ivfpq"):
            nprobe = self._faiss.nlist if exhaustive else min(self.options["nprobe"], self._faiss.nlist)
            params = faiss.SearchParametersIVF(nprobe=nprobe)
        return self._faiss.search(queries, n, params=params)[::-1]

    def _add(self, vectors: np.ndarray, ids: np.ndarray, replaced: np.ndarray) -> None:
        if self.options["kind"] == "hnsw" and replaced.any():
            which = f"{replaced.sum()} ids exist already, first {self.ids[replaced][0]}"
            raise ValueError(f"Faiss' HNSW cannot replace a vector ({which}); build_index again, or use another kind")
        if replaced.any():
            self._faiss.remove_ids(self.ids[replaced])
        self._faiss.add_with_ids(vectors, ids)

    @property
    def nbytes(self) -> int:
        import faiss

        return len(faiss.serialize_index(self._faiss))

    def _write(self, folder: Path) -> None:
        import faiss

        faiss.write_index(self._faiss, str(folder / "items.faiss"))

    def _read(self, files: Mapping[str, bytes]) -> None:
        faiss = _library("faiss", "faiss-cpu")
        self.ids = _array(files["ids.npy"])
        self._faiss = faiss.deserialize_index(np.frombuffer(files["items.faiss"], dtype=np.uint8))


class MilvusIndex(Index):
    """A vector database. Embedded (Milvus Lite) by default; a server or cluster by ``uri="http://host:19530"``.

    Without ``uri`` the database is a private working copy, which :meth:`save` puts into the index folder. With ``uri``
    (an address, or a file of your own) the vectors live there and others see an upsert at once; :meth:`save` notes only
    that they live elsewhere, never ``uri`` or ``token``.

    Building into a collection that exists upserts the given vectors and leaves all others there; ``ids`` has both. A
    collection that holds something else, another dimension or metric is refused. Nothing is ever deleted.
    """

    backend = "milvus"
    DEFAULTS: ClassVar = {  # index_type: HNSW, FLAT, IVF_FLAT or AUTOINDEX
        "normalize": True, "uri": None, "token": "", "collection": "items", "index_type": "HNSW",
        "M": 32, "efConstruction": 100, "ef": 64, "nlist": 128, "nprobe": 16,
    }  # fmt: skip
    TUNABLE = ("ef", "nprobe")
    LIMIT = 16_384  # Milvus returns no more than this

    def _connect(self) -> None:
        milvus, uri = (
            _library("pymilvus", "pymilvus milvus-lite"),
            self.options["uri"] or f"{self._folder.name}/milvus.db",
        )
        if not uri.startswith(("http://", "https://", "tcp://", "unix:")):
            _library("milvus_lite", "pymilvus milvus-lite")
            Path(uri).parent.mkdir(parents=True, exist_ok=True)
        try:
            self._client = milvus.MilvusClient(uri, token=self.options["token"])
        except milvus.MilvusException as error:
            reason = f"no Milvus answers at {uri} ({error.message}); is it running, is the token right?"
            raise ConnectionError(reason) from error

    def _build(self, vectors: np.ndarray) -> None:
        self._folder = _private_folder()
        self._connect()
        name, kind, index = self.options["collection"], self.options["index_type"], self._client.prepare_index_params()
        metric = "COSINE" if self.options["normalize"] else "IP"
        names = {"HNSW": ("M", "efConstruction"), "IVF_FLAT": ("nlist",)}.get(kind, ())
        # Nested, because pymilvus sends a flat dict key by key, which a server reads and Milvus Lite overlooks.
        params = {"params": {name: self.options[name] for name in names}}
        index.add_index("item_vector", index_type=kind, metric_type=metric, params=params)
        if shared := self._client.has_collection(name):
            self._check_collection()
        else:
            from pymilvus import DataType

            schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
            schema.add_field("item_id", DataType.INT64, is_primary=True)
            schema.add_field("item_vector", DataType.FLOAT_VECTOR, dim=self.dim)
            self._client.create_collection(name, schema=schema, consistency_level="Strong")
        self._add(vectors, self.ids)
        self._client.flush(name)  # before create_index: until then not even its field names are checked
        if not self._client.list_indexes(name):
            self._client.create_index(name, index)
        self._client.load_collection(name)
        if shared:
            self.ids = self._stored_ids()
