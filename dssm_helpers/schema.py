"""The one table of columns: what they are called, whose they are, and how a raw value becomes a category.

Encoding, the default features and serving follow it: a new column is one line in a schema. A schema travels in a bundle
as JSON, and needs NumPy alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

KNOWN = {"kind": ("category", "number", "list"), "side": ("user", "item")}


@dataclass(frozen=True)
class Column:
    """One column of the users' or the items' table.

    Args:
        name: of the feature too.
        kind: ``category`` (text or a whole number), ``number`` (becomes the lower bound of its group) or ``list`` (of
            categories; text is split at ``separator``).
        bins: lower bounds of the groups of a number; without them :meth:`fit` takes tenths of the values.
        limits: smallest and largest number that makes sense; others are refused.
        prefix: keep only this many first characters of a text.
        digits: whole numbers are written with this many digits before they count as text.
    """

    name: str
    side: str
    kind: str = "category"
    bins: tuple[float, ...] = ()
    limits: tuple[float, float] | None = None
    prefix: int | None = None
    digits: int | None = None
    separator: str = "|"
    optional: bool = False  # the table may lack it

    def __post_init__(self) -> None:
        for field, known in KNOWN.items():
            if (given := getattr(self, field)) not in known:
                raise ValueError(f"column {self.name!r}: unknown {field} {given!r}; choose from {', '.join(known)}")

    def fit(self, values: Iterable) -> Column:
        """This column with bins, if it is a number without: the tenths of ``values``."""
        if self.kind != "number" or self.bins:
            return self
        tenths = np.quantile(np.asarray(list(values), dtype=float), np.linspace(0, 0.9, 10))
        return replace(self, bins=tuple(np.unique(np.floor(tenths)).astype(int).tolist()))

    def normalise(self, values: Iterable) -> np.ndarray:
        """Raw values ``[n]`` to categories ``[n]``, text or int64 (a list column: each of its entries alone)."""
        values = list(values)
        if self.kind == "number":
            low, high = self.limits or (-np.inf, np.inf)
            for value in values:
                if isinstance(value, (bool, str)) or not low <= value <= high:
                    expected = f"between {low:g} and {high:g}" if self.limits else "a number"
                    raise ValueError(f"{self.name}: expected {expected}, got {value!r}")
            bins = np.asarray(self.bins, dtype=np.int64)
            return bins[np.searchsorted(bins, np.asarray(values), side="right").clip(min=1) - 1]
        if self.prefix is None and self.digits is None:
            return np.asarray(values)
        text = [f"{v:0{self.digits}d}" if self.digits and isinstance(v, (int, np.integer)) else str(v) for v in values]
        return np.asarray([t.strip()[: self.prefix] for t in text], dtype=str)

    def split(self, value: Any) -> list:
        """The entries of one value of a list column; of another, the value."""
        if self.kind != "list":
            return [value]
        return value.split(self.separator) if isinstance(value, str) else list(value)


@dataclass(frozen=True)
class Schema:
    """Names of the key columns, and the columns beside them.

    Args:
        user, item, time: columns of the interactions; ``user`` and ``item`` are also the keys of the two other tables.
        title: column of the items with a name to show; without it an item is shown by its id.
        columns: of both sides, in the order in which the towers see them.
        repeats: a user may have an item again, so that what was had stays a candidate, in evaluation and in serving.
    """

    user: str = "user_id"
    item: str = "item_id"
    time: str = "timestamp"
    title: str | None = None
    columns: tuple[Column, ...] = ()
    repeats: bool = False

    def of(self, side: str) -> tuple[Column, ...]:
        return tuple(column for column in self.columns if column.side == side)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Schema:
        columns = []
        for column in fields["columns"]:  # JSON turns tuples into lists
            columns.append(Column(**{name: tuple(v) if isinstance(v, list) else v for name, v in column.items()}))
        return cls(**{**fields, "columns": tuple(columns)})
