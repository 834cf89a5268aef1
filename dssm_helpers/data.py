"""Interactions as flat arrays of indices, split by time (notebook 01).

Nothing here knows where the tables come from: a :class:`~dssm_helpers.schema.Schema` declares their columns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from .files import digest
from .schema import Column, Schema
from .vocabulary import FIRST, PADDING, UNKNOWN, Vocabulary


@dataclass(frozen=True)
class EncodedData:
    """Everything as indices. Interactions are flat: sorted by (user, timestamp, original row).

    A training example is a *position* in the flat arrays: the item there is the target, the user's items before it
    are the history. Nothing is stored per example, so memory is O(interactions), not O(interactions × history length).

    Attributes:
        schema: the columns that are there, numbers with their groups.
        user, item: ``[N]`` int32, vocabulary indices. timestamp: ``[N]`` int64.
        offsets: ``[U + 1]`` int64; user ``u``'s rows are ``offsets[u]:offsets[u + 1]``.
        vocabularies: by column name; the keys are ``"user_id"`` and ``"item_id"``, whatever the tables call them.
        user_columns, item_columns: name → ``[U]`` or ``[U, G]`` int64, row = index (0 and 1: padding, unknown).
        titles: item index → title.
        n_users, n_items: rows of a table, padding and unknown included.
    """

    name: str
    schema: Schema
    user: np.ndarray
    item: np.ndarray
    timestamp: np.ndarray
    offsets: np.ndarray
    vocabularies: dict[str, Vocabulary]
    user_columns: dict[str, np.ndarray]
    item_columns: dict[str, np.ndarray]
    titles: list[str] = field(repr=False)

    @property
    def n_users(self) -> int:
        return len(self.vocabularies["user_id"])

    @property
    def n_items(self) -> int:
        return len(self.vocabularies["item_id"])

    def __len__(self) -> int:
        return len(self.user)

    def __repr__(self) -> str:
        users, items = self.n_users - FIRST, self.n_items - FIRST
        return f"EncodedData({self.name!r}: {len(self):,} interactions, {users:,} users, {items:,} items)"

    def history(self, position: int) -> np.ndarray:
        """Indices of the user's items before ``position``, oldest first."""
        return self.item[self.offsets[self.user[position]] : position]

    def item_counts(self, positions: np.ndarray) -> np.ndarray:
        """How often each item is the target at ``positions``: ``[I]`` int64."""
        return np.bincount(self.item[positions], minlength=self.n_items)

    def multi_hot(self, column: str) -> np.ndarray:
        """Which values of an item column each item has: ``[I, V]`` bool; nothing has padding."""
        found = np.zeros((self.n_items, len(self.vocabularies[column])), dtype=bool)
        np.put_along_axis(found, self.item_columns[column].reshape(self.n_items, -1), True, axis=1)
        found[:, PADDING] = False
        return found

    def fingerprint(self) -> str:
        """SHA-256 over the interactions, the columns and the schema; artefacts carry it to know what made them."""
        found = hashlib.sha256(digest(self.schema.to_json()).encode())
        for array in (self.user, self.item, self.timestamp, *self.user_columns.values(), *self.item_columns.values()):
            found.update(np.ascontiguousarray(array).data)
        return found.hexdigest()


def encode(
    interactions: pd.DataFrame,
    users: pd.DataFrame | None = None,
    items: pd.DataFrame | None = None,
    schema: Schema | None = None,
    *,
    name: str = "data",
    vocabularies: Mapping[str, Vocabulary] | None = None,
) -> EncodedData:
    """Fit the vocabularies on the users' and items' tables and flatten the interactions (notebook 01).

    The tables have the columns of ``schema``, times as whole numbers. Without ``users`` or ``items`` there are the
    distinct ids and no columns of that side. Given the ``vocabularies`` of yesterday's data, they are extended, and
    what they hold keeps its index; pass that data's ``schema`` too, so that numbers keep their groups (notebook 15).

    A missing column or value, an empty table, a duplicate key, or an interaction whose user or item is not in its table
    is a ``ValueError`` that says which rows and what to do.
    """
    schema = schema or Schema()
    _check("interactions", interactions, [schema.user, schema.item, schema.time])
    time = interactions[schema.time]
    if not pd.api.types.is_integer_dtype(time):
        found = f"{time.dtype} such as {time.iloc[0]!r}"
        raise ValueError(f"interactions.{schema.time}: expected whole numbers, got {found}")
    earlier = vocabularies or {}
    vocabularies, tables, fitted, rows = {}, {}, [], {}
    for side, frame, key in (("user", users, schema.user), ("item", items, schema.item)):
        if frame is None:
            frame = interactions[[key]].drop_duplicates()
        columns = [c for c in schema.of(side) if c.name in frame.columns or not c.optional]
        title = schema.title if side == "item" and schema.title else key
        _check(f"{side}s", frame, [key, title, *(c.name for c in columns)])
        _refuse_duplicates(f"{side}s", frame, [key])
        vocabulary = vocabularies[f"{side}_id"] = _vocabulary(key, frame[key].to_numpy(), earlier.get(f"{side}_id"))
        rows[side] = vocabulary.encode(interactions[key].to_numpy()).astype(np.int32)
        strangers = interactions.loc[rows[side] == UNKNOWN, key]
        if len(strangers):
            problem = f"{len(strangers)} rows have a {key} that is not in {side}s, first {strangers.iloc[0]}"
            raise ValueError(f"interactions: {problem}; add it to {side}s or drop those interactions")
        index = vocabulary.encode(frame[key].to_numpy())
        tables[side] = {f"{side}_id": _placed(index, index, len(vocabulary))}
        for column in columns:
            column = column.fit(frame[column.name])
            vocabularies[column.name], encoded = _encode_column(column, frame[column.name], earlier)
            tables[side][column.name] = _placed(index, encoded, len(vocabulary))
            fitted.append(column)
    titles = frame[title].astype(str).iloc[np.argsort(index)]  # of the items, which come last
    again = [schema.time] if schema.repeats else []
    _refuse_duplicates("interactions", interactions, [schema.user, schema.item, *again])
    order = np.lexsort((time.to_numpy(), rows["user"]))  # stable: equal times keep their original order
    user = rows["user"][order]
    return EncodedData(
        name=name,
        schema=replace(schema, columns=tuple(fitted)),
        user=user,
        item=rows["item"][order],
        timestamp=time.to_numpy(dtype=np.int64)[order],
        offsets=np.searchsorted(user, np.arange(len(vocabularies["user_id"]) + 1)),
        vocabularies=vocabularies,
        user_columns=tables["user"],
        item_columns=tables["item"],
        titles=["(padding)", "(unknown)", *titles],
    )


def _vocabulary(name: str, values: np.ndarray, earlier: Vocabulary | None) -> Vocabulary:
    return earlier.extended(values) if earlier else Vocabulary.fit(name, values)


def _encode_column(
    column: Column, values: pd.Series, earlier: Mapping[str, Vocabulary]
) -> tuple[Vocabulary, np.ndarray]:
    """The vocabulary of a column, and its values as indices: ``[n]``, or ``[n, G]`` padded for a list."""
    lists = [column.split(value) for value in values]
    flat = column.normalise([entry for entries in lists for entry in entries])
    vocabulary = _vocabulary(column.name, flat, earlier.get(column.name))
    length = np.asarray([len(entries) for entries in lists])
    present = np.arange(max(1, length.max())) < length[:, None]
    encoded = np.zeros(present.shape, dtype=np.int64)
    encoded[present] = vocabulary.encode(flat)
    return vocabulary, encoded if column.kind == "list" else encoded[:, 0]


def _placed(index: np.ndarray, encoded: np.ndarray, n_rows: int) -> np.ndarray:
    """A table with one row per index of the key: row 0 is all padding, row 1 unknown."""
    table = np.zeros((n_rows, *encoded.shape[1:]), dtype=np.int64)
    table.reshape(n_rows, -1)[UNKNOWN, 0] = UNKNOWN  # of a list: one unknown entry, the rest padding
    table[index] = encoded
    return table


def _check(table: str, frame: pd.DataFrame, columns: list[str]) -> None:
    if missing := [column for column in columns if column not in frame.columns]:
        raise ValueError(f"{table}: missing column {', '.join(missing)}; found {', '.join(map(str, frame.columns))}")
    if frame.empty:
        raise ValueError(f"{table}: the table is empty; expected at least one row")
    for column in columns:
        if len(absent := frame.index[frame[column].isna()]):
            problem = f"{len(absent)} missing values, first in row {absent[0]}"
            raise ValueError(f"{table}.{column}: {problem}; drop or fill them")


def _refuse_duplicates(table: str, frame: pd.DataFrame, key: list[str]) -> None:
    twice = frame.duplicated(key)
    if twice.any():
        problem = f"{twice.sum()} duplicate rows, first {frame.loc[twice, key].iloc[0].to_dict()}"
        raise ValueError(f"{table}: {problem}; keep one each, for example with {table}.drop_duplicates({key})")


# What the time of a request says (UTC), known before it is answered; ``days`` since the user's last interaction.
REQUEST = (
    Column("request_hour", "user"),
    Column("request_weekday", "user"),  # 0 is Monday
    Column("request_days", "user", "number", bins=(0, 1, 7, 30)),
)


def with_request_time(data: EncodedData) -> EncodedData:
    """``data`` with the columns :data:`REQUEST` on the user's side (notebook 13); its times are in seconds.

    A ``BatchBuilder`` fills them from each position's time. In the users' table they are unknown: a server that is
    given no time answers as for any, and takes one as fields of the user.
    """
    values = {column.name: known for column, known in zip(REQUEST, (range(24), range(7), REQUEST[2].bins), strict=True)}
    unknown = np.full(data.n_users, UNKNOWN)
    unknown[PADDING] = PADDING
    return replace(
        data,
        schema=replace(data.schema, columns=(*data.schema.columns, *REQUEST)),
        vocabularies=data.vocabularies | {name: Vocabulary(name, list(known)) for name, known in values.items()},
        user_columns=data.user_columns | dict.fromkeys(values, unknown),
    )


@dataclass(frozen=True)
class Split:
    """Positions of the flat interactions, ``[n]`` int64 each. Disjoint; a split says what is in none of them."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray

    def __repr__(self) -> str:
        return f"Split(train={len(self.train):,}, validation={len(self.validation):,}, test={len(self.test):,})"

    def fingerprint(self) -> str:
        """SHA-256 over the three parts; whatever was trained on one split is never taken for another's."""
        found = hashlib.sha256()
        for part in (self.train, self.validation, self.test):
            found.update(len(part).to_bytes(8, "little") + np.ascontiguousarray(part).tobytes())
        return found.hexdigest()


def split_by_time(data: EncodedData) -> Split:
    """Per user with two or more: the last one is the test, the one before the validation, the rest training (01)."""
    test = data.offsets[1:][np.diff(data.offsets) >= 2] - 1
    validation = test - 1
    held_out = np.zeros(len(data), dtype=bool)
    held_out[test] = held_out[validation] = True
    return Split(np.flatnonzero(~held_out), validation, test)


def split_at_moment(data: EncodedData) -> Split:
    """One moment for everybody, a quantile of all times: train before it, test on what comes first after (notebook 05).

    Nothing that anybody did later is learnt from. Training ends at an earlier moment, and the validation is each user's
    first interaction between the two. Only users with a past have a target; whatever comes after it is in no part.
    """
    start, moments = data.offsets[:-1], np.quantile(data.timestamp, [0.7, 0.8])
    earlier = [np.concatenate([[0], np.cumsum(data.timestamp < moment)]) for moment in moments]
    validation, test = (start + np.diff(count[data.offsets]) for count in earlier)  # each user's first one at or after
    return Split(
        train=np.flatnonzero(data.timestamp < moments[0]),
        validation=validation[(validation > start) & (validation < test)],
        test=test[(test > start) & (test < data.offsets[1:])],
    )


SPLITS: dict[str, Callable[[EncodedData], Split]] = {"leave_last_out": split_by_time, "one_moment": split_at_moment}


def make_split(data: EncodedData, how: str = "leave_last_out") -> Split:
    """A split by name, one of :data:`SPLITS`."""
    if how not in SPLITS:
        raise ValueError(f"unknown split {how!r}; choose from {', '.join(SPLITS)}")
    return SPLITS[how](data)
