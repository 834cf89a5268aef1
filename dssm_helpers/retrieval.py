"""The nearest item vectors: exact search, Annoy, Faiss, Milvus behind one small interface (notebook 06).

    index = build_index(vectors, ids, backend="faiss", kind="hnsw")
    ids, scores = index.search(user_vectors, k=10, exclude=seen)
    index.save("artifacts/index"); index = load_index("artifacts/index")

Item ids go in and come out, never row numbers. Scores are cosines in every backend. A library is imported when its
backend is used.
"""

from __future__ import annotations

import importlib
import io
import shutil
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from .files import Manifest, read_manifest, write_folder

NOTHING = -1  # the id that pads a short answer
Answers = Iterable[tuple[np.ndarray, np.ndarray]]  # ids and scores of each query
MILVUS = "pymilvus milvus-lite"  # what to install for it
ANNOY_CURE = (
    "compile it again without -ffast-math: ANNOY_COMPILER_ARGS=-O3,-std=c++14,-fpermissive,"
    "-DANNOYLIB_MULTITHREADED_BUILD pip install --no-cache-dir --force-reinstall --no-binary annoy annoy==1.17.3; "
    "or take prebuilt wheels: pip uninstall annoy, then pip install annoy-mm==1.17.3"
)


def build_index(vectors: np.ndarray, ids: Sequence[int] | None = None, backend: str = "exact", **options: Any) -> Index:
    """An index over item vectors (notebook 06, "Three lines for every library").

    Args:
        vectors: ``[n, D]`` numbers, scaled to unit length here.
        ids: ``[n]`` unique whole numbers from 0; default the row numbers.
        backend, options: a key of :data:`BACKENDS` and what the ``DEFAULTS`` of its class name. ``normalize=False``
            keeps the lengths, so that all but Annoy rank by inner product: a switch to break things with.

    Raises:
        ValueError: vectors, ids, a backend or options that cannot work; an Annoy that answers wrongly.
        ImportError: a library is missing; the message holds the command that installs it.
    """
    index = _empty(backend, options)
    vectors = _checked_vectors(vectors, index.options["normalize"])
    n, index.dim = vectors.shape
    if n == 0:
        raise ValueError("nothing to index: vectors is empty")
    index.ids = _checked_ids(np.arange(n) if ids is None else ids, n)
    index._build(vectors)
    return index


def load_index(source: str | Path | Manifest, *, uri: str | None = None, token: str | None = None) -> Index:
    """What :meth:`Index.save` wrote, built from the very bytes that were verified.

    ``source`` is the folder, or its manifest where it is a part of a larger one; ``uri`` and ``token`` are those of a
    :class:`MilvusIndex`. A digest tells damage, not intent: a crafted file can crash Annoy, so take a stranger's index
    as exact or Faiss.

    Raises:
        FileNotFoundError, ValueError: of :func:`~dssm_helpers.files.read_manifest`; an option that this backend does
            not have or no file may set; vectors elsewhere and no ``uri``.
    """
    manifest = source if isinstance(source, Manifest) else read_manifest(source, "index")
    saved, given = manifest.fields["options"], {"uri": uri, "token": token}
    if saved.keys() & given.keys():
        raise ValueError(f"{manifest.path} wants to say where to connect; only load_index(uri=, token=) may")
    if manifest.fields["elsewhere"] and not uri:
        raise ValueError(f"the vectors of {manifest.path} live elsewhere, in a Milvus; say where by uri=")
    index = _empty(manifest.fields["backend"], saved | {name: value for name, value in given.items() if value})
    index.dim = manifest.fields["dim"]
    index._read(manifest.files)
    return index


def _empty(backend: str, options: Mapping[str, Any]) -> Index:
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; choose one of {', '.join(BACKENDS)}")
    index = BACKENDS[backend]()
    if unknown := options.keys() - index.DEFAULTS.keys():
        raise ValueError(f"{backend} has no option {sorted(unknown)}; it knows {', '.join(index.DEFAULTS)}")
    index.options = {**index.DEFAULTS, **options}
    return index


class Index:
    """What the backends share: checks, exclusion, saving. Any number of threads may search.

    A backend supplies ``_build(vectors)``, ``_write(folder)``, ``_read(files)``, ``_add(vectors, ids, replaced)``,
    ``_vectors_of(ids)`` and ``_search(queries, n, inside)``, which gives each query at most ``n`` of the ids ``inside``
    and their scores, best first. ``ids [n]`` int64 are in the index, of ``dim`` dimensions; ``options`` are those it
    was built with, as :meth:`tune` left them.
    """

    backend: ClassVar[str]
    DEFAULTS: ClassVar[dict[str, Any]] = {"normalize": True}
    TUNABLE: ClassVar[tuple[str, ...]] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"<{self.backend} index: {len(self):,} vectors of {self.dim} dimensions>"

    def search(
        self,
        queries: np.ndarray,
        k: int,
        exclude: Sequence[Collection[int]] | None = None,
        allow_fewer: bool = False,
        allowed: Collection[int] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The ``k`` nearest items of each query, best first: ``(ids [B, k] int64, scores [B, k] float32)``.

        Args:
            queries: ``[B, D]``, or ``[D]`` for one.
            exclude: per query the ids not to return. As many more are fetched, so ``k`` remain. Where fewer do, that is
                a ``ValueError``, or with ``allow_fewer`` :data:`NOTHING` and score ``-inf`` pad the answer.
            allowed: the only ids to return, for all queries, such as what is in stock. Of less than a tenth of the
                index every vector is looked at: an approximate search would meet too few of them.
        """
        queries = _checked_vectors(np.atleast_2d(queries), self.options["normalize"], self.dim, "queries")
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        excluded = [set()] * len(queries) if exclude is None else [set(ids) for ids in exclude]
        if len(excluded) != len(queries):
            raise ValueError(f"exclude has {len(excluded)} entries for {len(queries)} queries; give one per query")
        inside = self.ids
        if allowed is not None:
            inside = inside[np.isin(inside, allowed if isinstance(allowed, np.ndarray) else list(allowed))]
        fetch = min(len(inside), k + max(map(len, excluded), default=0))
        found = np.full((len(queries), k), NOTHING, dtype=np.int64)
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        narrow = self._search if 10 * len(inside) >= len(self) else self._search_all
        for search, n in ((narrow, fetch), (self._search_all, len(inside))):
            short = np.flatnonzero(found[:, -1] == NOTHING)  # a narrow search may leave some; then look everywhere
            if len(short) == 0 or n == 0:
                break
            answers = search(queries[short], n, inside)
            for row, (ids, cosines) in zip(short, answers, strict=True):
                keep = [i for i, item in enumerate(ids.tolist()) if item != NOTHING and item not in excluded[row]][:k]
                found[row, : len(keep)], scores[row, : len(keep)] = ids[keep], cosines[keep]
        left = (found != NOTHING).sum(axis=1)  # [B]
        if not allow_fewer and (left < k).any():
            row = (left < k).argmax()
            few = f"k={k}, but only {left[row]} of {len(inside):,} items are left for query {row}"
            raise ValueError(f"{few} after excluding {len(excluded[row])}; ask for fewer, or pass allow_fewer=True")
        return found, scores

    def _search_all(self, queries: np.ndarray, n: int, inside: np.ndarray) -> Answers:
        """Like ``_search``, with every vector looked at."""
        vectors = self._vectors_of(inside)
        step = max(1, 2**24 // len(inside))  # at most 64 MB of scores at a time
        for start in range(0, len(queries), step):
            product = queries[start : start + step] @ vectors.T  # [b, m]
            row = np.arange(len(product))[:, None]
            best = np.sort(np.argpartition(product, -n, axis=1)[:, -n:], axis=1)  # equals keep their order
            best = best[row, np.argsort(-product[row, best], axis=1, kind="stable")]
            yield from zip(inside[best], product[row, best], strict=True)

    def add(self, vectors: np.ndarray, ids: Sequence[int]) -> None:
        """Insert vectors ``[m, D]``; an id that exists gets its new one. ``ValueError``: Annoy, replacing in HNSW."""
        vectors = _checked_vectors(np.atleast_2d(vectors), self.options["normalize"], self.dim)
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
        options = {name: value for name, value in self.options.items() if name not in ("uri", "token")}
        elsewhere = self.options.get("uri") is not None
        fields = {"backend": self.backend, "dim": self.dim, "options": options, "elsewhere": elsewhere}
        with write_folder(path, "index", fields) as folder:
            if not elsewhere:
                self._write(folder)

    @property
    def nbytes(self) -> int:
        """Bytes of the index as it is saved, which is how it lies in memory (0 where it lives elsewhere)."""
        with TemporaryDirectory() as folder:
            self.save(f"{folder}/index")
            return sum(map(len, read_manifest(f"{folder}/index", "index").files.values()))

    def close(self) -> None:
        """Let go of files and connections."""


class ExactIndex(Index):
    """One matrix product (notebook 06, "Exact first"). Nothing is lost; the time grows with the catalogue."""

    backend = "exact"

    def _build(self, vectors: np.ndarray) -> None:
        self.vectors = vectors

    def _search(self, queries: np.ndarray, n: int, inside: np.ndarray) -> Answers:
        return self._search_all(queries, n, inside)

    def _vectors_of(self, ids: np.ndarray) -> np.ndarray:
        return self.vectors if len(ids) == len(self) else self.vectors[np.isin(self.ids, ids)]

    def _add(self, vectors: np.ndarray, ids: np.ndarray, replaced: np.ndarray) -> None:
        self.vectors = np.concatenate([self.vectors[~replaced], vectors])

    def _write(self, folder: Path) -> None:
        np.savez(folder / "items.npz", ids=self.ids, vectors=self.vectors)

    def _read(self, files: Mapping[str, bytes]) -> None:
        saved = np.load(io.BytesIO(files["items.npz"]))
        self.ids, self.vectors = saved["ids"], saved["vectors"]


class AnnoyIndex(Index):
    """Spotify's forest of random-projection trees, read-only once built, mapped from a private file.

    ``n_trees`` costs memory and build time; ``search_k``, the number of vectors looked at, costs time per query (-1 is
    Annoy's own ``n · n_trees``). A wrongly compiled Annoy answers wrongly without an error: each build is checked. It
    knows no filter, so the allowed are searched exactly.
    """

    backend = "annoy"
    DEFAULTS: ClassVar = {"normalize": True, "n_trees": 40, "search_k": 4000, "seed": 0, "n_jobs": 1}
    TUNABLE = ("search_k",)

    def _open(self) -> None:
        self._annoy = _library("annoy", "annoy").AnnoyIndex(self.dim, "angular")
        self._folder = TemporaryDirectory(ignore_cleanup_errors=True)
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
        """Compare the neighbours and scores of a sample with exact search."""
        n, right, unit = min(10, len(vectors)), 0, vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        sample = unit[np.random.default_rng(0).permutation(len(unit))[:8]]
        for query, cosine in zip(sample, sample @ unit.T, strict=True):
            rows, distances = self._annoy.get_nns_by_vector(query, n, max(len(unit), 1000), True)
            near = cosine[rows] >= np.sort(cosine)[-n] - 1e-4  # equal vectors stand in for each other
            right += np.sum(near & (np.abs(1 - np.square(distances) / 2 - cosine[rows]) < 0.01))
        if right < 0.7 * n * len(sample):
            wrong = f"this Annoy returns wrong neighbours: only {right} of {n * len(sample)} are right"
            raise ValueError(f"{wrong}. It was probably compiled with -ffast-math by clang; {ANNOY_CURE}")

    def _search(self, queries: np.ndarray, n: int, inside: np.ndarray) -> Answers:
        if len(inside) < len(self):
            yield from self._search_all(queries, n, inside)
            return
        search_k = self.options["search_k"]
        search_k = max(search_k, n) if search_k >= 0 else search_k
        for query in queries:
            rows, distances = self._annoy.get_nns_by_vector(query, n, search_k, True)
            yield self.ids[rows], 1 - np.square(distances) / 2  # angular distance is √(2 − 2 cos)

    def _vectors_of(self, ids: np.ndarray) -> np.ndarray:
        rows = np.flatnonzero(np.isin(self.ids, ids)).tolist()
        return _checked_vectors([self._annoy.get_item_vector(row) for row in rows], normalize=True)

    def _add(self, vectors: np.ndarray, ids: np.ndarray, replaced: np.ndarray) -> None:
        raise ValueError("an Annoy index is read-only once built; call build_index again with all vectors")

    def _write(self, folder: Path) -> None:
        np.save(folder / "ids.npy", self.ids)
        shutil.copyfile(self._file, folder / "items.ann")

    def _read(self, files: Mapping[str, bytes]) -> None:
        self.ids = np.load(io.BytesIO(files["ids.npy"]))
        self._open()
        self._file.write_bytes(files["items.ann"])
        self._annoy.load(str(self._file))

    def close(self) -> None:
        self._annoy.unload()
        self._folder.cleanup()


class FaissIndex(Index):
    """Meta's library. ``kind`` is the trade: ``flat`` exact; ``sq8`` exact search over 8-bit numbers; ``ivf`` looks at
    the ``nprobe`` nearest of ``nlist`` cells (default about 4·√n); ``ivfpq`` the same over vectors compressed to ``m``
    codes of ``nbits`` bits; ``hnsw`` walks a graph of ``M`` neighbours with a beam of ``efSearch``.

    H. Jégou et al., "Product Quantization for Nearest Neighbor Search", TPAMI 2011; Y. Malkov and D. Yashunin,
    "Efficient and Robust Approximate Nearest Neighbor Search Using HNSW Graphs", TPAMI 2018.
    """

    backend = "faiss"
    KINDS: ClassVar = {  # for faiss.index_factory; IDMap2, because only cells store ids of their own
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
        # Faiss asks for 39 training vectors per cell.
        options["nlist"] = options["nlist"] or max(1, min(round(4 * n**0.5), n // 39))
        options["m"] = options["m"] or max((m for m in range(1, dim // 2 + 1) if dim % m == 0), default=1)
        try:
            index = faiss.index_factory(dim, self.KINDS[kind].format(**options), faiss.METRIC_INNER_PRODUCT)
            if kind == "hnsw":
                faiss.downcast_index(index.index).hnsw.efConstruction = options["efConstruction"]
            if kind in ("ivf", "ivfpq"):
                index.cp.seed, index.cp.min_points_per_centroid = options["seed"], 1  # no warnings on a small set
            if kind == "ivfpq":
                index.pq.cp.min_points_per_centroid = 1
            index.train(vectors)
        except RuntimeError as error:
            raise ValueError(f"Faiss cannot build this from {n} vectors of {dim}, {options}: {error}") from error
        index.add_with_ids(vectors, self.ids)
        self._faiss = index

    def _search(self, queries: np.ndarray, n: int, inside: np.ndarray, nprobe: int | None = None) -> Answers:
        faiss, kind = _library("faiss", "faiss-cpu"), self.options["kind"]
        only = {"sel": faiss.IDSelectorBatch(inside)} if len(inside) < len(self) else {}
        if kind == "hnsw":
            params = faiss.SearchParametersHNSW(efSearch=max(self.options["efSearch"], n), **only)
        elif kind in ("ivf", "ivfpq"):
            params = faiss.SearchParametersIVF(nprobe=nprobe or self.options["nprobe"], **only)
        else:
            params = faiss.SearchParameters(**only)
        scores, ids = self._faiss.search(queries, n, params=params)
        return zip(ids, scores, strict=True)

    def _search_all(self, queries: np.ndarray, n: int, inside: np.ndarray) -> Answers:
        if self.options["kind"] in ("ivf", "ivfpq"):  # cells do not know where a vector lies
            return self._search(queries, n, inside, nprobe=self._faiss.nlist)
        return super()._search_all(queries, n, inside)

    def _vectors_of(self, ids: np.ndarray) -> np.ndarray:
        return self._faiss.reconstruct_batch(ids)

    def _add(self, vectors: np.ndarray, ids: np.ndarray, replaced: np.ndarray) -> None:
        if replaced.any() and self.options["kind"] == "hnsw":
            known = self.ids[replaced][0]
            raise ValueError(f"Faiss' HNSW cannot replace a vector (id {known} exists); call build_index again")
        if replaced.any():
            self._faiss.remove_ids(self.ids[replaced])
        self._faiss.add_with_ids(vectors, ids)

    def _write(self, folder: Path) -> None:
        np.save(folder / "ids.npy", self.ids)
        _library("faiss", "faiss-cpu").write_index(self._faiss, str(folder / "items.faiss"))

    def _read(self, files: Mapping[str, bytes]) -> None:
        self.ids = np.load(io.BytesIO(files["ids.npy"]))
        content = np.frombuffer(files["items.faiss"], dtype=np.uint8)
        self._faiss = _library("faiss", "faiss-cpu").deserialize_index(content)


class MilvusIndex(Index):
    """A vector database. Without ``uri`` a private Milvus Lite, which :meth:`save` puts into the index folder.

    With ``uri`` (a server's ``"http://host:19530"``, or a file of your own) the vectors live there, others see an
    upsert at once, and :meth:`save` writes neither them nor where they are. Building into a collection that exists
    upserts into it: nothing is ever deleted, and a collection of something else is refused.
    """

    backend = "milvus"
    DEFAULTS: ClassVar = {  # index_type: HNSW, FLAT, IVF_FLAT or AUTOINDEX
        "normalize": True, "uri": None, "token": "", "collection": "items", "index_type": "HNSW",
        "M": 32, "efConstruction": 100, "ef": 64, "nlist": 128, "nprobe": 16,
    }  # fmt: skip
    TUNABLE = ("ef", "nprobe")
    LIMIT = 16_384  # Milvus returns no more than this

    def _connect(self) -> bool:
        """Whether our collection is there; one of something else is refused."""
        uri, self._name = self.options["uri"] or f"{self._folder.name}/milvus.db", self.options["collection"]
        if "://" not in uri:
            _library("milvus_lite", MILVUS)
        self._client = _library("pymilvus", MILVUS).MilvusClient(uri, token=self.options["token"])
        if not self._client.has_collection(self._name):
            return False
        described = self._client.describe_collection(self._name)["fields"]
        fields = {field["name"]: field["params"].get("dim") for field in described}
        if fields != {"item_id": None, "item_vector": self.dim}:
            theirs = f"collection {self._name!r} holds {fields}, not item vectors of {self.dim} dimensions"
            raise ValueError(f"{theirs}; it stays as it is, choose another collection=")
        return True

    def _load(self) -> None:
        self._client.load_collection(self._name)
        rows = self._client.query(self._name, filter="item_id >= 0", output_fields=["item_id"])
        self.ids = np.array([row["item_id"] for row in rows], dtype=np.int64)

    def _build(self, vectors: np.ndarray) -> None:
        self._folder = TemporaryDirectory(ignore_cleanup_errors=True)
        if not self._connect():
            types, schema = _library("pymilvus", MILVUS).DataType, self._client.create_schema()
            schema.add_field("item_id", types.INT64, is_primary=True)
            schema.add_field("item_vector", types.FLOAT_VECTOR, dim=self.dim)
            self._client.create_collection(self._name, schema=schema, consistency_level="Strong")
        self._add(vectors, self.ids, self.ids)
        self._client.flush(self._name)  # before create_index: until then not even its field names are checked
        if not self._client.list_indexes(self._name):
            index, kind = self._client.prepare_index_params(), self.options["index_type"]
            dials = {"HNSW": ("M", "efConstruction"), "IVF_FLAT": ("nlist",)}.get(kind, ())
            # Nested, because pymilvus sends a flat dict key by key, which a server reads and Milvus Lite overlooks.
            params = {"params": {dial: self.options[dial] for dial in dials}}
            index.add_index("item_vector", index_type=kind, metric_type="IP", params=params)
            self._client.create_index(self._name, index)
        self._load()

    def _search(self, queries: np.ndarray, n: int, inside: np.ndarray) -> Answers:
        n, only = min(n, self.LIMIT), f"item_id in {inside.tolist()}" if len(inside) < len(self) else ""
        dials = {"HNSW": {"ef": max(self.options["ef"], n)}, "IVF_FLAT": {"nprobe": self.options["nprobe"]}}
        params = {"params": dials.get(self.options["index_type"], {})}
        for start in range(0, len(queries), 1024):
            part = list(queries[start : start + 1024])
            for hits in self._client.search(self._name, part, only, n, ["item_id"], params):
                yield np.array([hit["item_id"] for hit in hits]), np.array([hit["distance"] for hit in hits])

    def _vectors_of(self, ids: np.ndarray) -> np.ndarray:
        found = {item["item_id"]: item["item_vector"] for item in self._client.get(self._name, ids.tolist())}
        return np.array([found[item] for item in ids.tolist()], dtype=np.float32)

    def _add(self, vectors: np.ndarray, ids: np.ndarray, replaced: np.ndarray) -> None:
        items = [{"item_id": item, "item_vector": vector} for item, vector in zip(ids.tolist(), vectors, strict=True)]
        step = max(1, 2**22 // self.dim)  # 16 MB a request, well below the server's limit
        for start in range(0, len(items), step):
            self._client.upsert(self._name, items[start : start + step])

    def _write(self, folder: Path) -> None:
        self._client.flush(self._name)
        self._client.close()
        try:
            shutil.copytree(self._folder.name, folder, dirs_exist_ok=True)
        finally:
            self._connect()
            self._load()

    def _read(self, files: Mapping[str, bytes]) -> None:
        self._folder = TemporaryDirectory(ignore_cleanup_errors=True)
        for name, content in files.items():
            path = Path(self._folder.name, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        if not self._connect():
            raise ValueError(f"no collection {self._name!r} at {self.options['uri']}; build_index(..., uri=) makes it")
        self._load()

    def close(self) -> None:
        self._client.close()
        self._folder.cleanup()


BACKENDS: dict[str, type[Index]] = {kind.backend: kind for kind in (ExactIndex, AnnoyIndex, FaissIndex, MilvusIndex)}


def recall(found: np.ndarray, exact: np.ndarray) -> float:
    """The share of the exact answers ``[B, k]`` that are among those ``found [B, k]`` (notebook 06)."""
    return float(np.mean([len(np.intersect1d(f, e)) / len(e) for f, e in zip(found, exact, strict=True)]))


def measure(index: Index, queries: np.ndarray, exact_ids: np.ndarray) -> dict[str, float]:
    """Recall against exact search (its answers ``[B, k]``), latency of single queries, throughput of a batch, size."""
    k, clock = exact_ids.shape[1], [time.perf_counter()]
    for query in [*queries[:10], *queries]:  # the first calls pay for caches and lazy loading
        index.search(query, k)
        clock.append(time.perf_counter())
    found, _ = index.search(queries, k)
    batch = time.perf_counter() - clock[-1]
    p50, p99 = 1000 * np.quantile(np.diff(clock)[-len(queries) :], [0.5, 0.99])
    speed = {"p50_ms": float(p50), "p99_ms": float(p99), "queries_per_second": len(queries) / batch}
    return {f"recall@{k}": recall(found, exact_ids), **speed, "megabytes": index.nbytes / 1e6}


def enlarge(vectors: np.ndarray, n: int, seed: int = 0) -> np.ndarray:
    """``[n, D]`` clustered like a catalogue: unit vectors ``[m, D]`` with noise the size of the gap to the nearest.

    Uniform random vectors have no neighbourhoods for an index to find.
    """
    generator = np.random.default_rng(seed)
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -np.inf)
    gap = np.sqrt(np.maximum(2 - 2 * similarity.max(axis=1), 1e-6))  # [m] distance to the nearest neighbour
    rows = generator.integers(0, len(vectors), n)
    moved = generator.standard_normal((n, vectors.shape[1]), dtype=np.float32)
    moved *= gap[rows, None] / vectors.shape[1] ** 0.5
    moved += vectors[rows]
    return moved / np.linalg.norm(moved, axis=1, keepdims=True)


def _library(module: str, packages: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:  # of the library, or of something that it needs in its turn
        missing = (error.name or module).partition(".")[0]
        command = packages if missing == module else missing
        raise ImportError(f"this index needs {missing}: pip install {command} ({error})", name=missing) from error


def _checked_vectors(vectors: Any, normalize: bool, dim: int | None = None, what: str = "vectors") -> np.ndarray:
    """``[n, D]`` float32, contiguous, finite, of unit length unless ``normalize`` is off."""
    array = np.asarray(vectors, dtype=np.float32, order="C")
    if array.ndim != 2 or dim not in (None, array.shape[1]):
        raise ValueError(f"{what} must be an array [n, {dim or 'D'}], got shape {array.shape}")
    length = np.linalg.norm(array, axis=1, keepdims=True)  # [n, 1], not finite where a number of the row is not
    bad = ~np.isfinite(length) | ((length < 1e-12) & normalize)
    if bad.any():
        why = f"hold NaN, infinity or zeros only in {bad.sum()} rows, first row {bad.argmax()}"
        raise ValueError(f"{what} {why}: they have no direction and no cosine")
    return array / length if normalize else array


def _checked_ids(ids: Sequence[int], n: int) -> np.ndarray:
    array = np.asarray(ids)
    if array.shape != (n,) or array.dtype.kind not in "iu":
        raise ValueError(f"{n} vectors need {n} whole numbers as ids, got shape {array.shape} of {array.dtype}")
    array = array.astype(np.int64)
    if len(np.unique(array)) < n or (array < 0).any():
        raise ValueError(f"ids must be unique and not negative; got {len(np.unique(array))} different of {n}")
    return array
