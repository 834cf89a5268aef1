"""Raw values to indices and back, with NumPy alone (notebook 01, "Ids become indices").

Index 0 is padding, index 1 is "unknown" (a value never seen at fit time), real values start at 2. So no real item
shares the padding index, and a new user is neither a crash nor somebody else's embedding.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from .files import write_atomically

PADDING = 0
UNKNOWN = 1
FIRST = 2


class Vocabulary:
    """A fixed list of different values, all text or all whole numbers, and their indices.

    :meth:`fit` sorts them, :meth:`extended` puts new ones behind: no index ever moves. ``len(vocabulary)`` counts
    padding and unknown too, so it is the number of rows of the embedding table. No values, missing values and values of
    mixed kinds are a ``ValueError``.
    """

    def __init__(self, name: str, values: Sequence[int] | Sequence[str]):
        array = np.asarray(values)
        if array.shape in ((), (0,)) or array.dtype.kind not in "iuU":
            found = f"{array.dtype} {array.shape}"
            raise ValueError(f"vocabulary {name!r}: expected integers or text, got {found} (missing ids?)")
        array = array.astype(str if array.dtype.kind == "U" else np.int64)
        self.name, self.values = name, array
        self._order = np.argsort(array)
        self._sorted = array[self._order]
        if (self._sorted[1:] == self._sorted[:-1]).any():
            raise ValueError(f"vocabulary {name!r}: values must be unique; use Vocabulary.fit")

    @classmethod
    def fit(cls, name: str, values: Iterable) -> Vocabulary:
        array = np.asarray(values)
        if array.dtype.kind == "O":  # pandas' text, or something missing
            text = any(isinstance(v, str) for v in array.flat)
            if bad := [v for v in array.flat if not isinstance(v, str if text else (int, np.integer))]:
                problem = f"{len(bad)} values are missing or of another kind than the rest, first {bad[0]!r}"
                raise ValueError(f"vocabulary {name!r}: {problem}; drop or fill them before fitting")
            array = array.astype(str) if text else array
        if array.dtype.kind in "Ou":
            if (largest := max(array.tolist(), default=0)) >= 2**63:  # it would wrap, to another's id
                raise ValueError(f"vocabulary {name!r}: {largest} is beyond 63 bits; make these ids text, .astype(str)")
            array = array.astype(np.int64)
        return cls(name, np.unique(array))

    def extended(self, values: Iterable) -> Vocabulary:
        """This vocabulary with those of ``values`` that it lacks behind its own, sorted (notebook 15, "Append")."""
        found = Vocabulary.fit(self.name, values).values
        return Vocabulary(self.name, np.concatenate([self.values, found[self.encode(found) == UNKNOWN]]))

    def __len__(self) -> int:
        return len(self.values) + FIRST

    @property
    def is_text(self) -> bool:
        return self.values.dtype.kind == "U"

    @cached_property
    def _index(self) -> dict[int | str, int]:
        return {value: index for index, value in enumerate(self.values.tolist(), FIRST)}

    def encode(self, values: Iterable) -> np.ndarray:
        """Indices of ``values``, int64, the same shape; what was not seen at fit time becomes 1.

        Text for integers, or the reverse, is a ``ValueError``: silently, every value would be unknown.
        """
        array = np.asarray(values)
        sample = next((v for v in array.flat if v is not None), None)
        if sample is not None and isinstance(sample, str) != self.is_text:
            held = f"holds {'text' if self.is_text else 'integers'} such as {self.values[0]}"
            raise ValueError(f"vocabulary {self.name!r} {held}, got {array.dtype} such as {sample}")
        if array.dtype.kind not in "iU":  # text of pandas, something missing, or numbers beyond int64
            indices = [self._index.get(v, UNKNOWN) for v in array.ravel().tolist()]
            return np.asarray(indices, dtype=np.int64).reshape(array.shape)
        place = np.minimum(np.searchsorted(self._sorted, array), len(self.values) - 1)
        return np.where(self._sorted[place] == array, self._order[place] + FIRST, UNKNOWN)

    def decode(self, indices: Iterable[int]) -> list:
        """Raw values; ``None`` for padding and unknown."""
        return [self.values[i - FIRST].item() if i >= FIRST else None for i in np.asarray(indices).tolist()]


def save_vocabularies(vocabularies: Mapping[str, Vocabulary], path: str | Path) -> None:
    """Write one JSON object ``{name: [values]}``."""
    values = {name: vocabulary.values.tolist() for name, vocabulary in vocabularies.items()}
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")


def load_vocabularies(content: bytes) -> dict[str, Vocabulary]:
    """What :func:`save_vocabularies` wrote, from the file's bytes."""
    return {name: Vocabulary(name, values) for name, values in json.loads(content).items()}
