"""replay.py: nothing of a week is known before it, everybody counts once, new movies are misses (notebook 15)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from dssm_helpers.course.replay import Replay
from dssm_helpers.model import grown
from dssm_helpers.recipes import build_model


@pytest.fixture(scope="module")
def replay(tables):
    rng = np.random.default_rng(0)  # generated users come one after the other: here everybody comes back
    ratings = tables.ratings.assign(timestamp=rng.permutation(tables.ratings["timestamp"].to_numpy()))
    return Replay(replace(tables, ratings=ratings), most=2)


def test_a_day_knows_the_past_and_no_id_moves(replay):
    ratings = replay.tables.ratings
    for week in (8, 9, 20):
        data = replay.day(week)
        assert len(data) == (ratings["timestamp"] < replay.begin(week)).sum() > 0
        assert data.timestamp.max() < replay.begin(week)
        assert set(data.vocabularies["user_id"].values) == set(
            ratings[ratings["timestamp"] < replay.begin(week)]["user_id"]
        )
        for name, vocabulary in data.vocabularies.items():
            assert (
                replay.day(21).vocabularies[name].values.tolist()[: len(vocabulary.values)]
                == vocabulary.values.tolist()
            )
    assert replay.begin(replay.weeks.stop) > ratings["timestamp"].max()  # the last week is whole


def test_everybody_is_asked_for_their_first_rows_of_the_week(replay):
    for week in (8, 20):
        for data in (replay.day(week + 1), replay.day(25)):
            inside = (data.timestamp >= replay.begin(week)) & (data.timestamp < replay.begin(week + 1))
            expected = [
                position
                for user in np.unique(data.user)
                for position in np.flatnonzero(inside & (data.user == user))[:2]
            ]
            assert replay.rows(week, data).tolist() == expected
    new, both = replay.since(20), replay.new_and_old(20)
    assert (replay.day(20).timestamp[new] >= replay.begin(19)).all()
    assert len(both) == len(set(both)) == 2 * len(new)
    assert set(new) <= set(both)
    assert len(replay.since(20, weeks=100)) == len(replay.day(20))


def test_ranks_are_those_of_unknown_ids_and_new_movies_come_last(replay):
    week = 8
    before, after = replay.day(week), replay.day(week + 1)
    model = build_model(before)
    ranks, rows = replay.ranks(model, week), replay.rows(week)
    new = after.item[rows] >= before.n_items
    assert 0 < new.sum() < len(rows)
    seen = np.array([np.sum(after.history(position) < before.n_items) for position in rows])
    assert (ranks[new] > before.n_items - 2 - seen[new]).all()
    assert (ranks[~new] <= before.n_items - 2 - seen[~new]).all()
    assert np.array_equal(ranks, replay.ranks(grown(model, after.vocabularies), week))
    later = replay.ranks(model, week, replay.day(20))  # where more movies are new, and tie behind the known ones
    assert np.array_equal(ranks[~new], later[~new])
    shares = replay.hits(ranks, week)
    assert len(shares) == len(np.unique(after.user[rows]))
    assert shares.mean() == pytest.approx(np.mean([(ranks[after.user[rows] == u] <= 10).mean() for u in shares.index]))
    assert torch.is_grad_enabled()
