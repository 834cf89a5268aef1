"""Raw values to indices and back, with NumPy alone (notebook 01, "Ids become indices").

Index 0 is padding, index 1 is "unknown" (a value never seen at fit time), real values start at 2. Two of the classic
two-tower bugs end here: a real movie that shares the padding index, and a crash (or somebody else's embedding) for a
new user.
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

AGE_GROUPS = (1, 18, 25, 35, 45, 50, 56)  # lower bounds, as MovieLens-1M publishes them


class Vocabulary:
    """A fixed, sorted set of values and their indices.

    ``len(vocabulary)`` counts padding and unknown too, so it is the number of rows of the embedding table.

    Raises:
        ValueError: no values, missing values, or values of mixed kinds.
    """

    def __init__(self, name: str, values: Sequence[int] | Sequence[str]):
        array = np.asarray(values)
        if array.ndim != 1 or array.size == 0:
            raise ValueError(f"vocabulary {name!r}: expected a non-empty list of values, got shape {array.shape}")
        if array.dtype.kind == "O" or array.dtype.kind in "US":
            bad = [v for v in array.tolist() if not isinstance(v, str)]
            if bad:
                raise ValueError(
                    f"vocabulary {name!r}: {len(bad)} values are missing or not text, first {bad[0]!r}; "
                    "drop or fill them before fitting"
                )
            array = array.astype(str)
        elif array.dtype.kind in "iu":
            array = array.astype(np.int64)
        else:
            raise ValueError(f"vocabulary {name!r}: expected integers or text, got {array.dtype} (missing ids?)")
        if array.size > 1 and not (array[1:] > array[:-1]).all():
            raise ValueError(f"vocabulary {name!r}: values must be sorted and unique; use Vocabulary.fit")
        self.name = name
        self.values = array

    @classmethod
    def fit(cls, name: str, values: Iterable) -> Vocabulary:
        """Collect the distinct ``values`` of a column."""
        array = np.asarray(values)
        if array.dtype.kind == "O":
            missing = [v for v in array.tolist() if not isinstance(v, (str, int, np.integer))]
            if missing:
                raise ValueError(
                    f"vocabulary {name!r}: {len(missing)} missing values, first {missing[0]!r}; "
                    "drop or fill them before fitting"
                )
        return cls(name, np.unique(array))

    def __len__(self) -> int:
        return len(self.values) + FIRST

    def __repr__(self) -> str:
        return f"Vocabulary({self.name!r}, {len(self.values)} values)"

    @cached_property
    def _table(self) -> np.ndarray | None:
        """Index of each integer from one before the first value to one after the last, if they lie close together.

        A look in a table takes a fraction of a search, which tells with tens of millions of ratings.
        """
        if self.values.dtype.kind != "i":
            return None
        first, last = int(self.values[0]) - 1, int(self.values[-1]) + 1
        if last - first > 10 * len(self.values) + 1_000 or first < -(2**63) or last >= 2**63:
            return None
        table = np.full(last - first + 1, UNKNOWN, dtype=np.int64)
        table[self.values - first] = np.arange(len(self.values)) + FIRST
        return table

    def encode(self, values: Iterable) -> np.ndarray:
        """Indices of ``values``, int64, the same shape; what was not seen at fit time becomes 1.

        Raises:
            ValueError: text given to a vocabulary of integers or the reverse. Silently, every value would be unknown.
        """
        array = np.asarray(values)
        known = True
        if array.dtype.kind == "O":  # pandas' text, or something missing or huge among the numbers
            text = [isinstance(v, str) for v in array.flat]
            if self.values.dtype.kind == "U" or any(text):
                array = array.astype(str)
            else:
                known = np.reshape(
                    [isinstance(v, (int, np.integer)) and abs(v) < 2**63 for v in array.flat], array.shape
                )
                array = np.where(known, array, 0).astype(np.int64)
        elif array.dtype == np.uint64:  # against int64 NumPy compares the two as floats, and large ids would coincide
            known = array < 2**63
            array = np.where(known, array, 0).astype(np.int64)
        if array.size and (array.dtype.kind == "U") != (self.values.dtype.kind == "U"):
            raise ValueError(
                f"vocabulary {self.name!r} holds {'text' if self.values.dtype.kind == 'U' else 'integers'}, "
                f"e.g. {self.values[0].item()!r}; got {array.dtype} such as {array.flat[0].item()!r}"
            )
        if not array.size:
            return np.empty(array.shape, dtype=np.int64)
        if array.dtype.kind in "iu" and self._table is not None:
            before = self.values[0] - 1  # clipped to just outside the values, whatever is further out is unknown too
            index = self._table[array.astype(np.int64, copy=False).clip(before, self.values[-1] + 1) - before]
            return index if known is True else np.where(known, index, UNKNOWN)
        place = np.searchsorted(self.values, array).clip(max=len(self.values) - 1)
        return np.where(known & (self.values[place] == array), place + FIRST, UNKNOWN).astype(np.int64)

    def decode(self, indices: Iterable[int]) -> list:
        """Raw values of ``indices``; ``None`` stands for padding and unknown."""
        return [self.values[i - FIRST].item() if i >= FIRST else None for i in np.asarray(indices).tolist()]


def save_vocabularies(vocabularies: Mapping[str, Vocabulary], path: str | Path) -> None:
    """Write vocabularies as one JSON object ``{name: [values]}``."""
    text = json.dumps({name: v.values.tolist() for name, v in vocabularies.items()}, ensure_ascii=False)
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def load_vocabularies(path: str | Path) -> dict[str, Vocabulary]:
    """Read what :func:`save_vocabularies` wrote."""
    loaded = json.loads(Path(path).read_text(encoding="utf-8"))
    return {name: Vocabulary(name, values) for name, values in loaded.items()}


def age_group(ages: Iterable[int]) -> np.ndarray:
    """Ages in years to the lower bound of their MovieLens-1M group (1, 18, 25, 35, 45, 50, 56)."""
    bounds = np.asarray(AGE_GROUPS)
    return bounds[np.searchsorted(bounds, np.asarray(ages, dtype=np.int64), side="right").clip(min=1) - 1]


def zip_area(zips: Iterable[str]) -> np.ndarray:
    """The first three characters of a zip code, its postal area. Whole zip codes are nearly unique per user."""
    return np.asarray([str(z)[:3] for z in zips], dtype=str)
