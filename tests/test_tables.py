"""Tables of your own: every kind of damage is planted once, found once, and mended to the same data."""

from __future__ import annotations

import gzip
import sys

import numpy as np
import pandas as pd
import pytest

from dssm_helpers.data import encode
from dssm_helpers.schema import Schema
from dssm_helpers.tables import describe_interactions, mend, read_tables, side_table

SCHEMA, KEYS, NOW = Schema("who", "what", "when"), ["who", "what", "when"], 1_700_000_000


@pytest.fixture
def clean() -> pd.DataFrame:
    """40 users of 12 rows each, no two alike, in a random order; items are text."""
    rng = np.random.default_rng(0)
    rows = [
        (u, f"i{i}", 1_600_000_000 + 977 * u + 7000 * n)
        for u in range(40)
        for n, i in enumerate(rng.permutation(50)[:12])
    ]
    return pd.DataFrame(rows, columns=KEYS).sample(frac=1, random_state=0, ignore_index=True)


def found(report: pd.DataFrame) -> dict[str, int]:
    """What is to be mended or to be chosen."""
    return report[report["level"].isin(["stops", "harms", "choose"])]["found"].to_dict()


def more(frame: pd.DataFrame, **changed) -> pd.DataFrame:
    """Five rows again at the end, with columns changed."""
    return pd.concat([frame, frame[:5].assign(**changed)], ignore_index=True)


def as_text(frame: pd.DataFrame, form: str) -> pd.DataFrame:
    return frame.assign(when=pd.to_datetime(frame["when"], unit="s").dt.strftime(form))


def program(frame: pd.DataFrame) -> pd.DataFrame:
    rows = pd.DataFrame({"who": 99, "what": [f"i{i % 50}" for i in range(150)], "when": 1_600_000_000 + np.arange(150)})
    return pd.concat([frame, rows], ignore_index=True)


DAMAGE = {
    "nothing": (lambda f: f, {}),
    "nobody": (lambda f: more(f, who=np.nan), {"missing id or time": 5, "who: decimals": 480}),
    "decimals": (lambda f: f.assign(who=f["who"].astype(float)), {"who: decimals": 480}),
    "spaces": (lambda f: f.assign(what=f["what"].where(f.index > 2, f["what"] + " ")), {"what: spaces around": 3}),
    "sent twice": (more, {"duplicates": 5}),
    "had again": (lambda f: more(f, when=f["when"].max() + 1), {"repeats": 5}),
    "never": (lambda f: more(f, when=0), {"times never set": 5}),
    "late": (lambda f: more(f, when=NOW + 1), {"times in the future": 5}),
    "milliseconds": (lambda f: f.assign(when=f["when"] * np.where(f.index > 2, 1, 1000)), {"mixed units of time": 3}),
    "decimal times": (lambda f: f.assign(when=f["when"] + 0.25), {"times with decimals": 480}),
    "numbers as text": (lambda f: f.assign(when=f["when"].astype(str)), {"times as text or dates": 480}),
    "dates": (lambda f: f.assign(when=pd.to_datetime(f["when"], unit="s")), {"times as text or dates": 480}),
    "ISO text": (lambda f: as_text(f, "%Y-%m-%dT%H:%M:%SZ"), {"times as text or dates": 480}),
    "other text": (lambda f: as_text(f, "%d %b %Y %H:%M:%S"), {"times as text or dates": 480}),
    "no date": (
        lambda f: more(as_text(f, "%Y-%m-%d %H:%M:%S"), when="soon"),
        {"times as text or dates": 485, "unreadable times": 5, "times with decimals": 480},
    ),
    "a program": (program, {"bots": 1, "repeats": 100}),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_each_damage_is_found_and_its_mend_gives_the_same_data_back(clean, name):
    spoil, expected = DAMAGE[name]
    dirty = spoil(clean)
    before = dirty.copy()
    report = describe_interactions(dirty, SCHEMA, now=NOW)
    assert found(report) == expected
    mended, log = mend(dirty, report, also=expected.keys() & {"repeats", "bots"})
    assert encode(mended, schema=SCHEMA).fingerprint() == encode(clean, schema=SCHEMA).fingerprint()
    pd.testing.assert_frame_equal(dirty, before)
    assert log.index.tolist() == list(expected)
    assert log["rows before"].tolist() == [len(dirty), *log["after"].tolist()][: len(log)]
    assert not found(describe_interactions(mended, SCHEMA, now=NOW))


def test_where_everybody_has_many_rows_nobody_is_a_program():
    rows = {"who": np.repeat(np.arange(30), 200), "what": np.tile(np.arange(200), 30), "when": NOW - np.arange(6000)}
    assert "bots" not in found(describe_interactions(pd.DataFrame(rows), SCHEMA, now=NOW))


def test_ids_of_several_kinds_become_one_kind_of_text(clean):
    kinds = [int, float, str]
    dirty = clean.assign(who=[kinds[n % 3](u) for n, u in enumerate(clean["who"])])
    dirty["who"] = dirty["who"].astype(object)
    report = describe_interactions(dirty, SCHEMA, now=NOW)
    assert found(report) == {"who: mixed kinds": 320}
    mended, _ = mend(dirty, report)
    assert encode(mended, schema=SCHEMA).vocabularies["user_id"].values.tolist() == sorted(map(str, range(40)))


def test_what_is_to_know(clean):
    users = pd.DataFrame({"who": [100, 101, 101], "what": ["new", "i1", "i2"], "when": 1_600_000_500})
    zoned = as_text(pd.concat([clean, users], ignore_index=True), "%Y-%m-%d %H:%M:%S")
    zoned.loc[:9, "when"] += "+02:00"
    report = describe_interactions(zoned, SCHEMA, now=NOW)
    know = report[report["level"] == "know"]["found"].to_dict()
    assert (know["rows"], know["who: distinct"], know["what: distinct"]) == (483, 42, 51)
    assert (know["time zones"], know["ties in a user's time"], know["items with one row"]) == (10, 2, 1)
    assert (know["users with one row"], know["users with two rows"]) == (1, 1)


def test_times_that_are_all_equal_or_no_clock(clean):
    equal = describe_interactions(clean.assign(when=1_600_000_000), SCHEMA, now=NOW)
    assert found(equal) == {"all times equal": 480}
    places = describe_interactions(clean.assign(when=range(480)), SCHEMA, now=NOW)
    assert found(places) == {}
    assert places["found"]["sessions"] == 0
    milliseconds = describe_interactions(clean.assign(when=clean["when"] * 1000), SCHEMA, now=NOW)
    assert found(milliseconds) == {}
    assert milliseconds["found"]["sessions"] == 480


def test_refusals(clean, tmp_path):
    with pytest.raises(ValueError, match=r"no column 'user'; found 'who', 'what', 'when'"):
        describe_interactions(clean, Schema("user", "what", "when"))
    with pytest.raises(ValueError, match="no rows"):
        describe_interactions(clean[:0], SCHEMA)
    with pytest.raises(ValueError, match="no check is called bot"):
        mend(clean, describe_interactions(clean, SCHEMA), also=["bot"])
    for name, content, message in (
        ("a.csv", "", "is empty"), ("a.csv", "who,what\n", "has no rows"), ("a.xlsx", "x", "expected .csv"),
    ):  # fmt: skip
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=message):
            read_tables(tmp_path / name)
    clean.to_csv(tmp_path / "a.csv", index=False)
    clean[["what", "who", "when"]].to_csv(tmp_path / "b.csv", index=False)
    with pytest.raises(ValueError, match="has columns"):
        read_tables(tmp_path / "a.csv", tmp_path / "b.csv")


def test_files_of_every_kind_are_read_the_same(clean, tmp_path, monkeypatch):
    pytest.importorskip("pyarrow", reason="pip install pyarrow")
    clean[:100].to_csv(tmp_path / "a.csv", sep=";", index=False, encoding="utf-8-sig")
    clean[100:200].to_csv(tmp_path / "b.tsv", sep="\t", index=False)
    with gzip.open(tmp_path / "c.csv.gz", "wt") as file:
        clean[200:300].to_csv(file, sep="|", index=False)
    clean[300:].to_parquet(tmp_path / "d.parquet")
    read = read_tables(*sorted(tmp_path.iterdir()))
    pd.testing.assert_frame_equal(read, clean, check_dtype=False)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match="pip install pyarrow"):
        read_tables(tmp_path / "d.parquet")


def test_columns_by_type():
    n = 60
    frame = pd.DataFrame({
        "what": range(n), "title": "same", "price": np.arange(n) / 2, "stars": np.arange(n) % 5,
        "tags": ["a|b", "a"] * 30, "kind": ["x", None, "y"] * 20, "sold": [True, False] * 30,
        "note": [f"text {i}" for i in range(n)],
    })  # fmt: skip
    frame.loc[3, "price"] = np.nan
    filled, columns = side_table(frame, "what", "item", "title")
    kinds = {column.name: column.kind for column in columns}
    assert kinds == {"price": "number", "stars": "category", "tags": "list", "kind": "category", "sold": "category"}
    assert (filled["kind"] == "(missing)").sum() == 20
    assert filled.loc[3, "price"] == frame["price"].median()
    rows = pd.DataFrame({"who": np.arange(n) // 6, "what": range(n), "when": range(n)})
    data = encode(rows, items=filled, schema=Schema("who", "what", "when", "title", tuple(columns)))
    assert data.item_columns["tags"].shape == (n + 2, 2)
