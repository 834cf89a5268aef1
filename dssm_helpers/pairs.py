"""What a ranker reads about a user and a candidate, and diversity: NumPy alone, for a server too (notebook 14)."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .index import load_arrays
from .vocabulary import UNKNOWN

RETRIEVED = 100  # candidates that the second stage gets
TABLES = ("kNN", "near", "EASE", "vectors")  # how alike two items are, by four sources
NEWEST = (1, 3, 10, 50)  # of a history; the mean over each part is a feature of its own
ALIKE = [f"{table}, last {n}" for table in TABLES for n in NEWEST]
OTHERS = ["cosine", "cosine below the best", "popularity", "popularity above the history's", "length of the history"]


@dataclass(frozen=True)
class PairTables:
    """What the features of pairs are computed from; rows are item indices, rows 0 and 1 are zeros.

    Attributes:
        similar: ``[3, I, I]`` float16, row: what was had, column: the candidate. Right for catalogues of thousands.
        vectors: ``[I, D]`` of the retriever that hands over the candidates.
        popularity: ``[I]``, log(1 + count in training).
        columns: name → ``[I, C]``, the values of an item column as unit rows: their product is what two share.
    """

    similar: np.ndarray
    vectors: np.ndarray
    popularity: np.ndarray
    columns: dict[str, np.ndarray]

    @property
    def names(self) -> list[str]:
        """Of the features, in their order."""
        return [*OTHERS, *ALIKE, *(f"{name}, last {n}" for name in self.columns for n in (1, 10))]

    def features(self, history: np.ndarray, items: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """One request: ``history [L]`` newest first, candidates ``items [k]`` and their cosines → ``[k, F]`` float32.

        The very function that training and serving both call: computed twice, the two would drift apart.
        """
        history = history[history > UNKNOWN][: NEWEST[-1]]
        ages = np.arange(len(history))
        parts = np.stack([(ages < n) / max(1, min(n, len(history))) for n in NEWEST]).astype(np.float32)  # [4, L]
        near = self.similar[:, history[:, None], items].astype(np.float32)  # [3, L, k]
        alike = np.concatenate([near, (self.vectors[history] @ self.vectors[items].T)[None]])  # [4, L, k]
        popularity = self.popularity[items]
        usual, length = parts[2] @ self.popularity[history], np.log1p(len(history))
        rows = [scores, scores - scores.max(initial=-1), popularity, popularity - usual, np.full(len(items), length)]
        rows += list((parts @ alike).reshape(len(ALIKE), -1))  # [16, k]
        for column in self.columns.values():
            rows += list(parts[[0, 2]] @ column[history] @ column[items].T)
        return np.stack(rows, axis=1).astype(np.float32)

    def to_bytes(self) -> bytes:
        """As a file of a bundle; :meth:`from_bytes` reads it."""
        file = io.BytesIO()
        np.savez(file, **{**vars(self), "columns": list(self.columns)}, **self.columns)
        return file.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> PairTables:
        arrays = load_arrays(content)
        columns = {name: arrays.pop(name) for name in arrays.pop("columns").tolist()}
        return cls(columns=columns, **arrays)


class Lists(NamedTuple):
    """Candidates of ``B`` queries, best first by retrieval; ``target`` is its place, or -1 where it was not found."""

    items: np.ndarray  # [B, k]
    pairs: np.ndarray  # [B, k, F] float32
    target: np.ndarray  # [B]


def mmr(relevance: np.ndarray, vectors: np.ndarray, n: int = 10, trade: float = 0.7) -> np.ndarray:
    """Places of ``n`` of ``k`` candidates by maximal marginal relevance (notebook 14, "Ten that differ").

    Each next one has the largest ``trade · relevance - (1 - trade) · largest cosine with those chosen``. ``relevance
    [k]`` is scaled to [0, 1]; ``vectors [k, D]`` have length 1. J. Carbonell and J. Goldstein, SIGIR 1998.
    """
    scaled = (relevance - relevance.min()) / max(np.ptp(relevance), 1e-9)
    chosen, closest = [int(scaled.argmax())], np.full(len(scaled), -np.inf)
    while len(chosen) < min(n, len(scaled)):
        closest = np.maximum(closest, vectors @ vectors[chosen[-1]])
        value = trade * scaled - (1 - trade) * closest
        value[chosen] = -np.inf
        chosen.append(int(value.argmax()))
    return np.array(chosen)
