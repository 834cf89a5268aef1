"""Encoding and splitting: any table with a schema, bad tables, flat order, histories, the split."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import encoded, notebook_definitions
from test_movielens import MOVIES, RATINGS, USERS

from dssm_helpers.data import REQUEST, SPLITS, encode, make_split, split_by_time, with_request_time
from dssm_helpers.features import BatchBuilder
from dssm_helpers.movielens import MovieLens, synthetic
from dssm_helpers.schema import Column, Schema
from dssm_helpers.vocabulary import FIRST, UNKNOWN

GOOD = MovieLens("small", RATINGS, USERS, MOVIES)


BAD_TABLES = {
    "misnamed column": ("ratings", lambda t: t.rename(columns={"movie_id": "item"}), "missing column movie_id; found"),
    "no ratings": ("ratings", lambda t: t.iloc[:0], "interactions: the table is empty"),
    "NaN user": ("ratings", lambda t: t.assign(user_id=t["user_id"].where(t.index != 1)), "1 missing .* in row 1"),
    "None": ("users", lambda t: t.replace({"gender": {"M": None}}), r"users\.gender: 1 missing"),
    "time as text": ("ratings", lambda t: t.assign(timestamp="1997-12-04"), r"timestamp: expected whole numbers"),
    "ids as text": ("ratings", lambda t: t.assign(user_id=t["user_id"].astype(str)), "holds integers"),
    "ids as floats": ("movies", lambda t: t.assign(movie_id=t["movie_id"] + 0.0), "integers or text, got float64"),
    "age as text": ("users", lambda t: t.assign(age="young"), r"age: expected between 0 and 130, got 'young'"),
    "double rating": ("ratings", lambda t: pd.concat([t, t.iloc[:2]]), "2 duplicate rows, .*drop_duplicates"),
    "double movie": ("movies", lambda t: pd.concat([t, t.iloc[:1]]), "items: 1 duplicate rows"),
    "stranger": ("users", lambda t: t.iloc[1:], "3 rows have a user_id that is not in users, first 7"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_TABLES)
def test_bad_tables_are_refused(what):
    table, change, message = BAD_TABLES[what]
    bad = replace(GOOD, **{table: change(getattr(GOOD, table))})
    with pytest.raises(ValueError, match=message):
        encoded(bad)


def with_ties(seed: int) -> MovieLens:
    """Generated tables in random row order, many equal timestamps; users 1 to 3 have one, two and no ratings."""
    tables = synthetic(800, n_users=40, n_movies=150, seed=seed)
    ratings = tables.ratings.sample(frac=1, random_state=seed)
    ratings["timestamp"] = np.random.default_rng(seed).integers(0, 25, len(ratings))
    ratings.loc[ratings["user_id"] == 4, "timestamp"] = 18  # between the two moments, without a past
    few = ratings["user_id"].isin([1, 2, 3])
    short = pd.concat([ratings[ratings["user_id"] == 1].iloc[:1], ratings[ratings["user_id"] == 2].iloc[:2]])
    return replace(tables, ratings=pd.concat([ratings[~few], short]).reset_index(drop=True))


@pytest.mark.parametrize("seed", range(2))
def test_flat_order_is_user_time_and_original_row(seed):
    tables = with_ties(seed)
    data = encoded(tables)
    expected = sorted(tables.ratings.itertuples(), key=lambda r: (r.user_id, r.timestamp, r.Index))
    assert data.vocabularies["user_id"].decode(data.user) == [r.user_id for r in expected]
    assert data.vocabularies["item_id"].decode(data.item) == [r.movie_id for r in expected]
    assert data.timestamp.tolist() == [r.timestamp for r in expected]
    for user in range(data.n_users):
        assert np.flatnonzero(data.user == user).tolist() == [*range(data.offsets[user], data.offsets[user + 1])]


def test_rows_zero_and_one_are_padding_and_unknown(data):
    for name, column in {**data.user_columns, **data.item_columns}.items():
        assert not column[0].any(), name
        assert column[1].ravel().tolist() == [1, *[0] * (column[1].size - 1)]
        assert column[2:].max() == len(data.vocabularies[name]) - 1
    assert data.user.min() == data.item.min() == 2


def test_columns_decode_to_the_tables(tables, data):
    users = data.vocabularies["user_id"].encode(tables.users["user_id"])
    found = {name: data.vocabularies[name].decode(column[users]) for name, column in data.user_columns.items()}
    assert found["occupation"] == tables.users["occupation"].tolist()
    assert found["zip"] == tables.users["zip"].str[:3].tolist()
    assert (np.array(found["age"]) <= tables.users["age"]).all()
    movies = data.vocabularies["item_id"].encode(tables.movies["movie_id"])
    for genres, movie in zip(tables.movies["genres"], movies, strict=True):
        given = data.vocabularies["genres"].decode(data.item_columns["genres"][movie])
        assert "|".join(filter(None, given)) == genres
    assert [data.titles[movie] for movie in movies] == tables.movies["title"].tolist()
    assert data.titles[:2] == ["(padding)", "(unknown)"]


def test_counts_and_histories_equal_a_loop(data, split):
    counts = data.item_counts(split.train)
    assert counts.shape == (data.n_items,)
    assert counts.tolist() == [int((data.item[split.train] == i).sum()) for i in range(data.n_items)]
    for position in (0, 17, len(data) - 1):
        before = (data.user == data.user[position]) & (np.arange(len(data)) < position)
        assert data.history(position).tolist() == data.item[before].tolist()


def test_multi_hot_says_which_values_an_item_has(tables, data):
    found, values = data.multi_hot("genres"), data.vocabularies["genres"].values
    assert found.dtype == bool
    assert found.shape == (data.n_items, len(values) + FIRST)
    listed = tables.movies.set_index("movie_id")["genres"]
    for item in range(FIRST, data.n_items):
        raw = data.vocabularies["item_id"].decode([item])[0]
        assert set(values[found[item, FIRST:]]) == set(listed[raw].split("|"))
    assert np.array_equal(np.argwhere(found[:FIRST]), [[UNKNOWN, UNKNOWN]])
    assert (data.multi_hot("year").sum(axis=1)[FIRST:] == 1).all()


def test_fingerprint_notices_a_change(tables, data):
    assert encoded(tables).fingerprint() == data.fingerprint()
    later = replace(tables, ratings=tables.ratings.assign(timestamp=tables.ratings["timestamp"] + 1))
    older = replace(tables, users=tables.users.assign(age=20))
    turned = replace(data, schema=replace(data.schema, columns=data.schema.columns[::-1]))
    for other in (encoded(later), encoded(older), turned):
        assert other.fingerprint() != data.fingerprint()
    scattered = replace(data, item=np.repeat(data.item, 2)[::2])  # the same numbers, not side by side in memory
    assert scattered.fingerprint() == data.fingerprint()


def test_memory_is_linear_and_independent_of_history_length():
    data = encoded(synthetic(20_000, n_users=200, n_movies=600))
    arrays = [v for v in vars(data).values() if isinstance(v, np.ndarray)]
    assert {len(a) for a in arrays} == {20_000, 200 + 3}
    assert sum(a.nbytes for a in arrays) <= 20 * 20_000


CLICKS = pd.DataFrame({"who": ["b", "a", "b", "a"], "what": ["x", "x", "y", "z"], "when": [3, 1, 1, 2]})


def test_text_ids_without_tables_of_users_and_items():
    data = encode(CLICKS, schema=Schema("who", "what", "when"), name="clicks")
    assert repr(data) == "EncodedData('clicks': 4 interactions, 2 users, 3 items)"
    assert data.vocabularies["item_id"].decode(data.item) == ["x", "z", "y", "x"]  # user a, then b, each by time
    assert data.titles == ["(padding)", "(unknown)", "x", "y", "z"]
    assert list(data.user_columns) == ["user_id"]


def test_columns_of_every_kind_follow_the_schema():
    items = pd.DataFrame({"what": list("xyz"), "price": [1.5, 20, 300], "n": "N"})
    items["tags"] = [["new"], [], ["new", "hot"]]
    price, tags = Column("price", "item", kind="number", bins=(0, 10, 100)), Column("tags", "item", kind="list")
    columns = (price, tags, Column("country", "user", optional=True))
    data = encode(CLICKS, items=items, schema=Schema("who", "what", "when", title="n", columns=columns))
    assert [column.name for column in data.schema.columns] == ["price", "tags"]  # the optional one is not there
    assert data.vocabularies["price"].decode(data.item_columns["price"][2:]) == [0, 10, 100]
    assert data.item_columns["tags"].tolist() == [[0, 0], [1, 0], [3, 0], [0, 0], [3, 2]]
    assert data.titles[2:] == ["N", "N", "N"]
    with pytest.raises(ValueError, match="users: missing column country"):
        encode(CLICKS, schema=Schema("who", "what", "when", columns=(Column("country", "user"),)))


def test_numbers_without_bins_fall_into_tenths():
    items = pd.DataFrame({"what": range(100), "price": range(100)})
    schema = Schema("who", "what", "when", columns=(Column("price", "item", "number"),))
    data = encode(items[["what"]].assign(who=1, when=1), items=items, schema=schema)
    assert data.schema.columns[0].bins == (0, 9, 19, 29, 39, 49, 59, 69, 79, 89)
    assert np.bincount(data.item_columns["price"][2:]).max() <= 11


def test_a_later_day_moves_no_index_and_no_group(tables):
    def until(moment, yesterday=None):
        past = tables.ratings[tables.ratings["timestamp"] < moment]
        users = tables.users[tables.users["user_id"].isin(past["user_id"])]
        movies = tables.movies[tables.movies["movie_id"].isin(past["movie_id"])].drop(columns="genres")
        if yesterday is None:
            columns = (Column("gender", "user"), Column("age", "user", kind="number"), Column("year", "item"))
            return encode(past, users, movies, Schema("user_id", "movie_id", title="title", columns=columns))
        return encode(past, users, movies, yesterday.schema, vocabularies=yesterday.vocabularies)

    half, end = np.quantile(tables.ratings["timestamp"], 0.4), tables.ratings["timestamp"].max() + 1
    before = until(half)
    after = until(end, before)
    assert after.schema == before.schema  # the tenths of the first users, not of all
    assert after.n_users > before.n_users
    assert after.n_items > before.n_items
    assert after.titles[: before.n_items] == before.titles
    for name, vocabulary in before.vocabularies.items():
        assert after.vocabularies[name].values.tolist()[: len(vocabulary.values)] == vocabulary.values.tolist()
    for side, n in (("user_columns", before.n_users), ("item_columns", before.n_items)):
        for name, column in getattr(before, side).items():
            assert np.array_equal(getattr(after, side)[name][:n], column)
    assert len(after) == len(tables.ratings)
    rows = after.timestamp < half
    assert np.array_equal(after.user[rows], before.user)
    assert np.array_equal(after.item[rows], before.item)


@pytest.mark.parametrize("seed", range(2))
def test_nothing_leaks_from_the_future(seed):
    data = encoded(with_ties(seed))
    split = split_by_time(data)
    together = np.concatenate([split.train, split.validation, split.test])
    assert np.array_equal(np.sort(together), np.arange(len(data)))  # every position is in exactly one part
    trained_until = {u: p for p, u in zip(split.train, data.user[split.train], strict=True)}  # last training position
    for validation, test in zip(split.validation, split.test, strict=True):
        user = data.user[test]
        assert data.user[validation] == user
        assert trained_until.get(user, -1) < validation < test == data.offsets[user + 1] - 1
        history = slice(data.offsets[user], test)
        assert (data.timestamp[history] <= data.timestamp[test]).all()
        assert data.item[test] not in data.history(test)


def test_splits_go_by_name_and_have_a_fingerprint(data, split):
    assert make_split(data).fingerprint() == make_split(data, "leave_last_out").fingerprint() == split.fingerprint()
    moved = replace(split, train=split.train[1:], validation=np.append(split.validation, split.train[0]))
    less = [replace(split, **{part: getattr(split, part)[:-1]}) for part in ("train", "validation", "test")]
    assert len({each.fingerprint() for each in (split, moved, *less)}) == 5
    with pytest.raises(ValueError, match=f"unknown split 'random'; choose from {', '.join(SPLITS)}"):
        make_split(data, "random")


@pytest.mark.parametrize("seed", range(2))
def test_a_split_at_one_moment_learns_nothing_from_after_it(seed):
    data = encoded(with_ties(seed))
    split, moments = make_split(data, "one_moment"), np.quantile(data.timestamp, [0.7, 0.8])
    assert np.array_equal(split.train, np.flatnonzero(data.timestamp < moments[0]))
    validation, test = [], []
    for start, end in zip(data.offsets[:-1].tolist(), data.offsets[1:].tolist(), strict=True):
        times = data.timestamp[start:end]
        for moment, stop, found in ((*moments, validation), (moments[1], np.inf, test)):
            after = [start + i for i, time in enumerate(times) if moment <= time < stop]
            found += after[:1] if after and times[0] < moment else []
    assert len(validation) * len(test) > 0
    assert split.validation.tolist() == validation
    assert split.test.tolist() == test


def test_users_of_one_rating_train_and_those_of_two_are_asked_as_in_the_notebook():
    data = encoded(with_ties(0))
    split = split_by_time(data)
    parts = [set(data.user[part].tolist()) for part in (split.train, split.validation, split.test)]
    users = data.vocabularies["user_id"].encode([1, 2, 3]).tolist()
    assert [[user in part for part in parts] for user in users] == [[1, 0, 0], [0, 1, 1], [0, 0, 0]]
    ours = notebook_definitions("01", "last_two_out")["last_two_out"](data.offsets)
    for mine, helpers in zip(ours, (split.train, split.validation, split.test), strict=True):
        assert np.array_equal(mine, helpers)


def test_the_time_of_a_request_is_what_the_clock_says(data):
    timed, positions = with_request_time(data), np.arange(len(data))
    batch = BatchBuilder(timed).users(positions)
    hour, weekday, days = (timed.vocabularies[column.name].decode(batch[column.name].numpy()) for column in REQUEST)
    clock = pd.to_datetime(data.timestamp, unit="s")
    assert hour == clock.hour.tolist()
    assert weekday == clock.day_of_week.tolist()
    for position in positions[:200]:
        if position in data.offsets:  # nothing came before
            assert batch["request_days"][position] == UNKNOWN
        else:
            passed = (data.timestamp[position] - data.timestamp[position - 1]) / 86_400
            assert days[position] == max(bound for bound in REQUEST[2].bins if bound <= passed)


def test_a_request_time_is_unknown_in_the_users_table_and_leaves_the_rest(data):
    timed = with_request_time(data)
    for column in REQUEST:
        assert timed.user_columns[column.name].tolist() == [0] + [UNKNOWN] * (data.n_users - 1)
    assert timed.schema.columns[: len(data.schema.columns)] == data.schema.columns
    assert timed.fingerprint() != data.fingerprint()
    plain, batch = (BatchBuilder(d).users(np.array([7, 40])) for d in (data, timed))
    assert batch.keys() - plain.keys() == {column.name for column in REQUEST}
    assert all(torch.equal(batch[name], values) for name, values in plain.items())
