"""Tables of your own: read them, look before anything is trained, mend them in sight (notebook 17)."""

from __future__ import annotations

import gzip
import time as clocks
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from .schema import Column, Schema

SESSION = 1800  # seconds of silence after which a new session begins
MILLISECONDS = 10**11  # as seconds, this is the year 5138


def read_tables(*paths: str | Path) -> pd.DataFrame:
    """One table from one or several files, in their order: Parquet, or CSV with any of ``, ; | tab`` (also ``.gz``).

    Raises:
        ValueError: a file without rows, files whose columns differ, another ending.
        ImportError: Parquet without pyarrow.
    """
    parts = [_read(Path(path)) for path in paths]
    for path, part in zip(paths, parts, strict=True):
        if part.empty:
            raise ValueError(f"{path} has no rows; expected a line of column names and lines below it")
        if list(part) != list(parts[0]):
            raise ValueError(f"{path} has columns {list(part)}, but {paths[0]} has {list(parts[0])}")
    return pd.concat(parts, ignore_index=True) if len(parts) > 1 else parts[0]


def _read(path: Path) -> pd.DataFrame:
    name = path.name.lower().removesuffix(".gz")
    if name.endswith((".parquet", ".pq")):
        try:
            return pd.read_parquet(path, engine="pyarrow")
        except ImportError as error:
            raise ImportError(f"{path} is Parquet, which needs pyarrow: pip install pyarrow") from error
    if not name.endswith((".csv", ".tsv", ".txt")):
        raise ValueError(f"{path}: expected .csv, .tsv or .txt (also with .gz), or .parquet")
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig") as file:
        titles = file.readline()
    if not titles.strip():
        raise ValueError(f"{path} is empty; expected a line of column names and lines below it")
    # low_memory would read piece by piece, and give one column numbers in one piece and text in the next.
    return pd.read_csv(path, sep=max(",;|\t", key=titles.count), low_memory=False, encoding="utf-8-sig")


def describe_interactions(frame: pd.DataFrame, schema: Schema, now: float | None = None) -> pd.DataFrame:
    """Look at interactions before they are encoded (notebook 17, "Look before you train").

    Each check sees what the mends of the lines above it leave, so their counts add up.

    Args:
        schema: names the user, item and time columns. now: seconds since 1970; what is later counts as future.

    Returns:
        A row per check: ``found`` (how many), ``of`` (what was counted), ``level`` (``stops``: ``encode`` refuses it;
        ``harms``: it would train, with wrong figures; ``choose``: you decide; ``know``: what to expect), ``what it
        does``, and ``mend``: a line of pandas about ``frame``. Where nothing was found the last three are "".

    Raises:
        ValueError: a column that is not there (those that are get listed), or no rows.
    """
    names = [schema.user, schema.item, schema.time]
    if absent := [name for name in names if name not in frame.columns]:
        raise ValueError(f"there is no column {', '.join(map(repr, absent))}; found {', '.join(map(repr, frame))}")
    if frame.empty:
        raise ValueError("the table has no rows")
    look = _Look(frame[names].copy())
    look.at("rows", len(frame), "rows", "know")
    for name in names[:2]:
        look.at(f"{name}: distinct", frame[name].nunique(), "ids", "know")
    found = int(frame[names].isna().any(axis=1).sum())
    look.at("missing id or time", found, "rows", "stops", "nobody's, or never", f"frame = frame.dropna(subset={names})")
    for name in names[:2]:
        _ids(look, name)
    _times(look, schema.time, now or clocks.time())
    _events(look, *names)
    columns = ["looked at", "found", "of", "level", "what it does", "mend"]
    return pd.DataFrame(look.rows, columns=columns).set_index("looked at")


def mend(frame: pd.DataFrame, report: pd.DataFrame, also: Iterable[str] = ()) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Run the mends of a report: of what stops or harms, and of the checks named in ``also``. ``frame`` stays as it is.

    Returns:
        The mended table, and of each line run the rows before and after it.
    """
    if unknown := set(also) - set(report.index):
        raise ValueError(f"no check is called {', '.join(unknown)}; there are {', '.join(report.index)}")
    frame, log = frame.copy(), []
    wanted = report["level"].isin(["stops", "harms"]) | report.index.isin(list(also))
    for name, line in report.loc[wanted & (report["mend"] != ""), "mend"].items():
        before, frame = len(frame), _run(line, frame)
        log.append((name, before, len(frame), line))
    return frame, pd.DataFrame(log, columns=["mended", "rows before", "after", "line"]).set_index("mended")


def _run(line: str, frame: pd.DataFrame) -> pd.DataFrame:
    """What a report prints is what is run, so the two cannot differ."""
    names = {"frame": frame, "pd": pd}
    exec(line, names)
    return names["frame"]


class _Look:
    """The rows of a report, and the table as the mends so far leave it."""

    def __init__(self, frame: pd.DataFrame):
        self.frame, self.rows = frame, []

    def at(self, name: str, found: int, of: str, level: str, why: str = "", line: str = "") -> None:
        self.rows.append((name, int(found), of, *((level, why, line) if found else ("", "", ""))))
        if found and level in ("stops", "harms"):
            self.frame = _run(line, self.frame)


def _ids(look: _Look, name: str) -> None:
    column, values = f"frame[{name!r}]", look.frame[name]
    found = len(values) if pd.api.types.is_float_dtype(values) else 0
    why = "one missing id made decimals of all"
    look.at(f"{name}: decimals", found, "rows", "stops", why, f"{column} = {column}.astype('int64')")
    kinds = look.frame[name].map(type).value_counts() if values.dtype == object else [len(values)]
    line = f"{column} = {column}.astype(str).str.strip().str.removesuffix('.0')"
    look.at(f"{name}: mixed kinds", sum(kinds[1:]), "rows", "stops", "7, 7.0 and '7' would be three ids", line)
    values = look.frame[name]
    text = not pd.api.types.is_numeric_dtype(values)
    found = (values.astype(str).str.strip() != values).sum() if text else 0
    why, line = "' 7' and '7' are two ids", f"{column} = {column}.str.strip()"
    look.at(f"{name}: spaces around", found, "rows", "harms", why, line)


def _times(look: _Look, name: str, now: float) -> None:
    column, values = f"frame[{name!r}]", look.frame[name]
    zoned, dated, text = 0, pd.api.types.is_datetime64_any_dtype(values), not pd.api.types.is_numeric_dtype(values)
    line = f"{column} = pd.to_numeric({column}, errors='coerce')"
    if text and (dated or pd.to_numeric(values, errors="coerce").isna().mean() > 0.5):
        form = "ISO8601" if dated or _dates(values, "ISO8601").notna().mean() > 0.5 else "mixed"
        moment = f"pd.to_datetime({column}, utc=True, errors='coerce', format={form!r})"
        line = f"{column} = ({moment} - pd.Timestamp(0, tz='UTC')) // pd.Timedelta('1s')"
        zoned = 0 if dated else values.astype(str).str.contains(r":\d\d.*(?:Z|[+-]\d\d:?\d\d)$").mean()
    why = "not every time names its zone; the others are read as UTC, perhaps hours off"
    look.at("time zones", (min(zoned, 1 - zoned) * len(values)).round() if zoned else 0, "rows", "know", why)
    look.at("times as text or dates", len(values) * text, "rows", "stops", "encode wants whole numbers", line)
    found, line = look.frame[name].isna().sum(), f"frame = frame.dropna(subset=[{name!r}])"
    look.at("unreadable times", found, "rows", "stops", "no date, no number", line)
    found = len(look.frame) * pd.api.types.is_float_dtype(look.frame[name])
    line = f"{column} = {column}.astype('int64')"
    look.at("times with decimals", found, "rows", "stops", "encode wants whole numbers", line)
    values = look.frame[name]
    fine, factor = values > MILLISECONDS, 1
    if fine.all():
        factor, fine = 1000 ** int(np.ceil(np.log10(values.median() / MILLISECONDS) / 3)), fine & False
    why = "seconds among milliseconds: they come first in every history"
    line = f"{column} = {column}.where({column} <= {MILLISECONDS}, {column} // 1000)"
    look.at("mixed units of time", fine.sum(), "rows", "harms", why, line)
    clock = look.frame[name].median() / factor > 10**8  # else a rank or a place, not a clock
    limit, why = 86_400 * factor, "the first day of 1970: first in every history"
    found, line = (look.frame[name] <= limit).sum() * clock, f"frame = frame[{column} > {limit}]"
    look.at("times never set", found, "rows", "harms", why, line)
    limit, why = int(now) * factor, "they become the targets, and the moment of a split"
    found, line = (look.frame[name] > limit).sum() * clock, f"frame = frame[{column} <= {limit}]"
    look.at("times in the future", found, "rows", "harms", why, line)
    order = look.frame.sort_values([look.frame.columns[0], name], kind="stable")
    breaks = (order.iloc[:, 0] != order.iloc[:, 0].shift()) | (order[name].diff() > SESSION * factor)
    why = f"{len(order) / max(1, breaks.sum()):.1f} rows each, half an hour of silence between two"
    look.at("sessions", breaks.sum() * clock, "sessions", "know", why)


def _dates(values: pd.Series, form: str) -> pd.Series:
    return pd.to_datetime(values, utc=True, errors="coerce", format=form)


def _events(look: _Look, user: str, item: str, time: str) -> None:
    found, line = look.frame.duplicated().sum(), f"frame = frame.drop_duplicates({[user, item, time]})"
    look.at("duplicates", found, "rows", "stops", "one event, written twice", line)
    frame = look.frame
    sizes = frame[user].value_counts()
    limit = max(100, int(3 * sizes.quantile(0.99, interpolation="lower")))
    why = f"over {limit:,} rows, three times what 99 % of the users have: programs?"
    line = f"frame = frame[frame.groupby({user!r})[{user!r}].transform('size') <= {limit}]"
    look.at("bots", (sizes > limit).sum(), "users", "choose", why, line)
    why = "keep the first; or let them stay, with Schema(repeats=True)"
    line = f"frame = frame.sort_values({time!r}, kind='stable').drop_duplicates({[user, item]})"
    look.at("repeats", frame.duplicated([user, item]).sum(), "rows", "choose", why, line)
    equal = frame[time].nunique() == 1
    line = f"frame[{time!r}] = range(len(frame))"
    look.at("all times equal", len(frame) * equal, "rows", "choose", "there is no order; is it that of the file?", line)
    ties = frame.duplicated([user, time], keep=False).sum() * (not equal)
    look.at("ties in a user's time", ties, "rows", "know", "which came last is left to the file's order")
    look.at("users with one row", (sizes == 1).sum(), "users", "know", "they train only: no history, no target")
    why = "leave-last-out holds out all they have"
    look.at("users with two rows", (sizes == 2).sum(), "users", "know", why)
    once = (frame[item].value_counts() == 1).sum()
    look.at("items with one row", once, "items", "know", "no second user leads to them: their columns must")


def side_table(frame: pd.DataFrame, key: str, side: str, title: str | None = None) -> tuple[pd.DataFrame, list[Column]]:
    """Columns by type, and the table with what is missing filled: a number with its median, else "(missing)".

    A number with more than twenty values becomes tenths, text with ``|`` a list, any other a category. Text that is
    different in more than half of the rows is a name and no feature: it gets no column.
    """
    frame, columns = frame.copy(), []
    for name in (name for name in frame.columns if name not in (key, title)):
        values = frame[name]
        distinct, number = values.nunique(), pd.api.types.is_numeric_dtype(values) and values.dtype != bool
        if number and distinct > 20:
            frame[name] = values.fillna(values.median())
            columns.append(Column(name, side, "number"))
        elif number or distinct <= max(20, len(frame) / 2) or values.astype(str).str.contains("|", regex=False).any():
            frame[name] = values.astype(object).where(values.notna(), "(missing)").astype(str)
            split = frame[name].str.contains("|", regex=False).any()
            columns.append(Column(name, side, "list" if split else "category"))
    return frame, columns
