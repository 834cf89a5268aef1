"""The nearest item vectors: exact search, Annoy, Faiss, Milvus behind one small interface (notebook 06).

    index = build_index(vectors, ids, backend="faiss", kind="hnsw")
    ids, scores = index.search(user_vectors, k=10, exclude=seen)
    index.save("artifacts/index"); index = load_index("artifacts/index")

Item ids go in and come out, never row numbers. Scores are cosines in every backend. A library is imported when its
backend is used.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np

from .files import Manifest, read_manifest
from .index import Answers, Index, checked_ids, checked_vectors, library, load_arrays
from .milvus import MilvusIndex

# Annoy's own flags contain -ffast-math, with which clang builds return wrong neighbours.
ANNOY_FLAGS = {"ANNOY_COMPILER_ARGS": "-O3,-std=c++14,-fpermissive,-DANNOYLIB_MULTITHREADED_BUILD"}
ANNOY_CURE = (
    f"compile it again without -ffast-math: ANNOY_COMPILER_ARGS={ANNOY_FLAGS['ANNOY_COMPILER_ARGS']} "
    "pip install --no-cache-dir --force-reinstall --no-binary annoy annoy==1.17.3; "
    "or take prebuilt wheels: pip uninstall annoy, then pip install annoy-mm==1.17.3"
)


def build_index(vectors: np.ndarray, ids: Sequence[int] | None = None, backend: str = "exact", **options: Any) -> Index:
    """An index over ``vectors [n, D]``, scaled to unit length here (notebook 06, "Three lines for every library").

    ``ids [n]`` are unique whole numbers from 0, by default the row numbers; ``options`` those in the ``DEFAULTS`` of a
    backend's class. ``ValueError``: what cannot work, or an Annoy that answers wrongly; ``ImportError``: a library is
    missing, and the message holds the command that installs it.
    """
    index = _empty(backend, options)
    vectors = checked_vectors(vectors)
    n, index.dim = vectors.shape
    index.ids = checked_ids(np.arange(n) if ids is None else ids, n)
    index._build(vectors)
    return index


def load_index(source: str | Path | Manifest, *, uri: str | None = None, token: str | None = None) -> Index:
    """What :meth:`Index.save` wrote, built from the very bytes that were verified; damage is a ``ValueError``.

    ``source`` is the folder, or its manifest where it is a part of a larger one; ``uri`` and ``token`` are those of a
    :class:`MilvusIndex`. A crafted file can crash Annoy: take a stranger's index as exact or Faiss.
    """
    manifest = source if isinstance(source, Manifest) else read_manifest(source, "index")
    saved, given = manifest.fields["options"], {"uri": uri, "token": token}
    if saved.keys() & given.keys():
        raise ValueError(f"{manifest.path} wants to say where to connect; only load_index(uri=, token=) may")
    index = _empty(manifest.fields["backend"], saved | {name: value for name, value in given.items() if value})
    index.dim = manifest.fields["dim"]
    if uri:
        index.open()
        return index
    if "items.npz" not in manifest.files:
        raise ValueError(f"the vectors of {manifest.path} live elsewhere, in a Milvus; say where by uri=")
    items = load_arrays(manifest.files["items.npz"])
    index.ids = items["ids"]
    index._unpack(items["vectors"])
    return index


def _empty(backend: str, options: Mapping[str, Any]) -> Index:
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; choose one of {', '.join(BACKENDS)}")
    index = BACKENDS[backend]()
    if unknown := options.keys() - index.DEFAULTS.keys():
        raise ValueError(f"{backend} has no option {sorted(unknown)}; it knows {', '.join(index.DEFAULTS)}")
    index.options = {**index.DEFAULTS, **options}
    return index


class ExactIndex(Index):
    """One matrix product (notebook 06, "Exact first"). Nothing is lost; the time grows with the catalogue."""

    backend = "exact"

    def _build(self, vectors: np.ndarray) -> None:
        self.vectors = vectors

    _search = Index._search_all

    def _vectors_of(self, ids: np.ndarray) -> np.ndarray:
        return self.vectors if len(ids) == len(self) else self.vectors[np.isin(self.ids, ids)]

    def _add(self, vectors: np.ndarray, ids: np.ndarray, replaced: np.ndarray) -> None:
        self.vectors = np.concatenate([self.vectors[~replaced], vectors])


class AnnoyIndex(Index):
    """Spotify's forest of random-projection trees, read-only once built, mapped from a private file.

    ``n_trees`` costs memory and build time; ``search_k``, the number of vectors looked at, costs time per query.
    """

    backend = "annoy"
    DEFAULTS: ClassVar = {"n_trees": 40, "search_k": 4000}
    TUNABLE = ("search_k",)

    def _open(self) -> None:
        self._annoy = library("annoy").AnnoyIndex(self.dim, "angular")
        self._folder = TemporaryDirectory(ignore_cleanup_errors=True)
        self._file = Path(self._folder.name, "items.ann")

    def _build(self, vectors: np.ndarray) -> None:
        self._open()
        self._annoy.set_seed(0)
        for row, vector in enumerate(vectors):
            self._annoy.add_item(row, vector)
        self._annoy.build(self.options["n_trees"], 1)  # of several threads the forest would differ each time
        self._check(vectors)
        self._annoy.save(str(self._file))  # from now on Annoy maps this file and keeps nothing of its own

    def _check(self, vectors: np.ndarray) -> None:
        """A wrongly compiled Annoy answers wrongly without an error: compare a sample with exact search."""
        n, right = min(10, len(vectors)), 0
        sample = vectors[np.random.default_rng(0).permutation(len(vectors))[:8]]
        for query, cosine in zip(sample, sample @ vectors.T, strict=True):
            rows, distances = self._annoy.get_nns_by_vector(query, n, max(len(vectors), 1000), True)
            near = cosine[rows] >= np.sort(cosine)[-n] - 1e-4  # equal vectors stand in for each other
            right += np.sum(near & (np.abs(1 - np.square(distances) / 2 - cosine[rows]) < 0.01))
        if right < 0.7 * n * len(sample):
            wrong = f"this Annoy returns wrong neighbours: only {right} of {n * len(sample)} are right"
            raise ValueError(f"{wrong}. It was probably compiled with -ffast-math by clang; {ANNOY_CURE}")

    def _search(self, queries: np.ndarray, n: int, inside: np.ndarray) -> Answers:
        if len(inside) < len(self):  # Annoy knows no filter
            yield from self._search_all(queries, n, inside)
            return
        search_k = max(self.options["search_k"], n)
        for query in queries:
            rows, distances = self._annoy.get_nns_by_vector(query, n, search_k, True)
            yield self.ids[rows], 1 - np.square(distances) / 2  # angular distance is √(2 − 2 cos)

    def _vectors_of(self, ids: np.ndarray) -> np.ndarray:
        rows = np.flatnonzero(np.isin(self.ids, ids)).tolist()
        return checked_vectors([self._annoy.get_item_vector(row) for row in rows])

    def _add(self, vectors: np.ndarray, ids: np.ndarray, replaced: np.ndarray) -> None:
        raise ValueError("an Annoy index is read-only once built; call build_index again with all vectors")

    def _packed(self) -> np.ndarray:
        return np.fromfile(self._file, dtype=np.uint8)

    def _unpack(self, packed: np.ndarray) -> None:
        self._open()
        packed.tofile(self._file)
        self._annoy.load(str(self._file))

    def close(self) -> None:
        self._annoy.unload()
        self._folder.cleanup()


class FaissIndex(Index):
    """Meta's library. ``kind`` is the trade: ``flat`` exact; ``sq8`` exact search over 8-bit numbers; ``ivf`` looks at
    the ``nprobe`` nearest of ``nlist`` cells (default about 4·√n); ``ivfpq`` the same over vectors compressed to ``m``
    bytes; ``hnsw`` walks a graph of ``M`` neighbours with a beam of ``efSearch``.

    H. Jégou et al., TPAMI 2011, for product quantization; Y. Malkov and D. Yashunin, TPAMI 2018, for HNSW.
    """

    backend = "faiss"
    KINDS: ClassVar = {  # for faiss.index_factory; IDMap2, because only cells store ids of their own
        "flat": "IDMap2,Flat",
        "ivf": "IVF{nlist},Flat",
        "hnsw": "IDMap2,HNSW{M}",
        "ivfpq": "IVF{nlist},PQ{m}np",
        "sq8": "IDMap2,SQ8",
    }
    DEFAULTS: ClassVar = {
        "kind": "hnsw", "nlist": None, "nprobe": 16, "M": 32, "efConstruction": 100, "efSearch": 64, "m": None,
    }  # fmt: skip
    TUNABLE = ("nprobe", "efSearch")

    def _build(self, vectors: np.ndarray) -> None:
        faiss = library("faiss")
        options, kind, (n, dim) = self.options, self.options["kind"], vectors.shape
        if kind not in self.KINDS:
            raise ValueError(f"unknown kind of Faiss index {kind!r}; choose one of {', '.join(self.KINDS)}")
        # Faiss asks for 39 training vectors per cell.
        options["nlist"] = options["nlist"] or max(1, min(round(4 * n**0.5), n // 39))
        options["m"] = options["m"] or max((m for m in range(1, dim // 2 + 1) if dim % m == 0), default=1)
        self._faiss = index = faiss.index_factory(dim, self.KINDS[kind].format(**options), faiss.METRIC_INNER_PRODUCT)
        if kind == "hnsw":
            faiss.downcast_index(index.index).hnsw.efConstruction = options["efConstruction"]
        if kind in ("ivf", "ivfpq"):
            index.cp.seed, index.cp.min_points_per_centroid = 0, 1  # no warnings on a small set
        if kind == "ivfpq":
            index.pq.cp.min_points_per_centroid = 1
        index.train(vectors)
        index.add_with_ids(vectors, self.ids)

    def _search(self, queries: np.ndarray, n: int, inside: np.ndarray, nprobe: int | None = None) -> Answers:
        faiss, kind = library("faiss"), self.options["kind"]
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
        if replaced.any():
            if self.options["kind"] == "hnsw":
                raise ValueError("Faiss' HNSW cannot replace a vector whose id exists; call build_index again")
            self._faiss.remove_ids(self.ids[replaced])
        self._faiss.add_with_ids(vectors, ids)

    def _packed(self) -> np.ndarray:
        return library("faiss").serialize_index(self._faiss)

    def _unpack(self, packed: np.ndarray) -> None:
        self._faiss = library("faiss").deserialize_index(packed)


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
    """``[n, D]`` with neighbourhoods to find: unit ``vectors [m, D]`` plus noise the size of the gap to the nearest."""
    generator = np.random.default_rng(seed)
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -np.inf)
    gap = np.sqrt(np.maximum(2 - 2 * similarity.max(axis=1), 1e-6))  # [m] distance to the nearest neighbour
    rows = generator.integers(0, len(vectors), n)
    noise = generator.standard_normal((n, vectors.shape[1]), dtype=np.float32)
    return checked_vectors(vectors[rows] + noise * (gap[rows, None] / vectors.shape[1] ** 0.5))
