"""What every index shares: checks, exclusion and filters, saving (notebook 06). A backend brings the search itself."""

from __future__ import annotations

import importlib
import io
import zipfile
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from .files import write_folder

NOTHING = -1  # the id that pads a short answer
PACKAGES = {"faiss": "faiss-cpu", "pymilvus": "pymilvus milvus-lite", "milvus_lite": "pymilvus milvus-lite"}
Answers = Iterable[tuple[np.ndarray, np.ndarray]]  # ids and scores of each query


class Index:
    """Vectors of ``dim`` dimensions under ``ids [n]`` int64. Any number of threads may search.

    A backend supplies ``_build(vectors)``, ``_add(vectors, ids, replaced)``, ``_vectors_of(ids)`` and
    ``_search(queries, n, inside)``, which gives each query at most ``n`` of the ids ``inside`` and their scores, best
    first.
    """

    backend: ClassVar[str]
    DEFAULTS: ClassVar[dict[str, Any]] = {}
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

        ``queries`` are ``[B, D]``, or ``[D]`` for one. ``exclude`` gives per query the ids not to return, ``allowed``
        for all queries the only ids to return. As many more are fetched, so ``k`` remain. Where fewer do, that is a
        ``ValueError``, or with ``allow_fewer`` :data:`NOTHING` and score ``-inf`` pad the answer.
        """
        queries = checked_vectors(np.atleast_2d(queries), self.dim, "queries")
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        excluded = [set()] * len(queries) if exclude is None else [set(ids) for ids in exclude]
        if len(excluded) != len(queries):
            raise ValueError(f"exclude has {len(excluded)} entries for {len(queries)} queries; give one per query")
        inside = self.ids
        if allowed is not None:
            inside = inside[np.isin(inside, allowed if isinstance(allowed, np.ndarray) else list(allowed))]
        fetch = np.minimum([k + len(ids) for ids in excluded], len(inside))  # [B]
        found = np.full((len(queries), k), NOTHING, dtype=np.int64)
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        # Of less than a tenth an approximate search would meet too few.
        narrow = self._search if 10 * len(inside) >= len(self) else self._search_all
        # In groups that fetch alike: one long list of excluded ids must not make the whole batch fetch as many.
        groups = [(narrow, n, np.flatnonzero(fetch == n)) for n in set(fetch.tolist())]
        for search, n, rows in (*groups, (self._search_all, len(inside), None)):
            # A narrow search may leave some rows short; in the end look everywhere.
            short = np.flatnonzero(found[:, -1] == NOTHING) if rows is None else rows
            if len(short) == 0 or n == 0:
                continue
            for row, (ids, cosines) in zip(short, search(queries[short], n, inside), strict=True):
                keep = [i for i, item in enumerate(ids.tolist()) if item != NOTHING and item not in excluded[row]][:k]
                found[row, : len(keep)], scores[row, : len(keep)] = ids[keep], cosines[keep]
        if not allow_fewer and (found[:, -1] == NOTHING).any():
            row = (found[:, -1] == NOTHING).argmax()
            left = (found[row] != NOTHING).sum()
            few = f"k={k}, but only {left} of {len(inside):,} items are left for query {row}"
            raise ValueError(f"{few} after excluding {len(excluded[row])}; ask for fewer, or pass allow_fewer=True")
        return found, scores

    def _search_all(self, queries: np.ndarray, n: int, inside: np.ndarray) -> Answers:
        """Like ``_search``, with every vector looked at."""
        vectors = self._vectors_of(inside)
        step = max(1, 2**24 // len(inside))  # at most 64 MB of scores at a time
        for start in range(0, len(queries), step):
            product = queries[start : start + step] @ vectors.T  # [b, m]
            row = np.arange(len(product))[:, None]
            best = np.argpartition(product, -n, axis=1)[:, -n:]
            best = best[row, np.lexsort((best, -product[row, best]))]  # equals keep their order
            yield from zip(inside[best], product[row, best], strict=True)

    def add(self, vectors: np.ndarray, ids: Sequence[int]) -> None:
        """Insert vectors ``[m, D]``; an id that exists gets its new one. ``ValueError``: Annoy, replacing in HNSW."""
        vectors = checked_vectors(np.atleast_2d(vectors), self.dim)
        ids = checked_ids(ids, len(vectors))
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
        with write_folder(path, "index", {"backend": self.backend, "dim": self.dim, "options": options}) as folder:
            if not self.options.get("uri"):
                np.savez(folder / "items.npz", ids=self.ids, vectors=self._packed())

    def _packed(self) -> np.ndarray:
        """The vectors as they are saved; a backend may pack its search structure with them."""
        return self._vectors_of(self.ids)

    def _unpack(self, packed: np.ndarray) -> None:
        checked_vectors(packed, self.dim)  # a stranger's may have no direction; ours stay to the bit
        self._build(packed)

    @property
    def nbytes(self) -> int:
        """Bytes of the index as it is saved, which is how it lies in memory; of Milvus those of the vectors alone."""
        return self.ids.nbytes + self._packed().nbytes

    def close(self) -> None:
        """Let go of files and connections."""


def load_arrays(content: bytes) -> Any:
    """What ``np.save`` or ``np.savez`` wrote; what claims to hold more than its bytes do is a ``ValueError``."""
    try:
        if zipfile.is_zipfile(io.BytesIO(content)):
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                if sum(entry.file_size for entry in archive.infolist()) > len(content):
                    raise ValueError("they are packed, which ours never are")
            return dict(np.load(io.BytesIO(content)))
        return np.load(io.BytesIO(content))
    except (zipfile.BadZipFile, MemoryError, EOFError, ValueError) as error:
        raise ValueError(f"these are no arrays of ours: {error}") from error


def library(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:  # of the library, or of something that it needs in its turn
        missing = (error.name or name).partition(".")[0]
        command = f"pip install {PACKAGES.get(missing, missing)}"
        raise ImportError(f"this index needs {missing}: {command} ({error})", name=missing) from error


def checked_vectors(vectors: Any, dim: int | None = None, what: str = "vectors") -> np.ndarray:
    """``[n, D]`` float32, contiguous, of unit length."""
    array = np.asarray(vectors, dtype=np.float32, order="C")
    if array.ndim != 2 or dim not in (None, array.shape[1]):
        raise ValueError(f"{what} must be an array [n, {dim or 'D'}], got shape {array.shape}")
    length = np.sqrt(np.square(array).sum(axis=1, keepdims=True))  # [n, 1], not finite where a number of the row is not
    bad = ~((length >= 1e-12) & (length < np.inf))
    if bad.any():
        why = f"hold NaN, infinity or zeros only in {bad.sum()} rows, first row {bad.argmax()}"
        raise ValueError(f"{what} {why}: they have no direction and no cosine")
    return array / length


def checked_ids(ids: Sequence[int], n: int) -> np.ndarray:
    array = np.asarray(ids)
    different = len(np.unique(array))
    if array.shape != (n,) or array.dtype.kind not in "iu" or different < n or (array < 0).any():
        found = f"got shape {array.shape} of {array.dtype}, {different} different ones"
        raise ValueError(f"{n} vectors need {n} different whole numbers from 0 as ids, {found}")
    return array.astype(np.int64)
