"""replay.py: nothing of a week is known before it, everybody counts once, new movies are misses (notebook 15)."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from dssm_helpers.course.replay import Replay, alike, under_load, watched
from dssm_helpers.evaluation import TwoTowerScorer, candidate_scores
from dssm_helpers.features import BatchBuilder
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


def test_a_server_is_asked_in_raw_ids(replay):
    data = replay.day(9)
    users, items = (data.vocabularies[name].values for name in ("user_id", "item_id"))
    asked = {(users[data.user[row] - 2], *items[data.history(row) - 2]) for row in replay.rows(8)}
    requests = {(user, *history) for user, history in replay.requests(8, 500)}
    assert len(requests) > 1
    assert requests <= asked


def test_a_new_item_is_like_those_that_share_its_genres(replay):
    before, after = replay.day(8), replay.day(20)
    genres = [set(row) - {0, 1} for row in after.item_columns["genres"]]
    counts, found = np.bincount(before.item), alike(before, after, 5)
    assert len(found) == after.n_items - before.n_items > 0
    for item, places in enumerate(found, start=before.n_items):
        agreement = [len(genres[item] & other) / max(1, len(genres[item] | other)) for other in genres]
        known = sorted(range(2, before.n_items), key=lambda other: (-agreement[other], -counts[other]))
        assert places.tolist() == known[:5]


def test_under_load_an_answer_of_two_halves_is_counted():
    right = [{"ab"}, {"ab", "xy"}]  # to the second request the change is right

    def answers(change):
        live = ["a", "b"]

        def piece_by_piece():
            for place, half in enumerate("xy"):
                live[place] = half
                time.sleep(0.05)

        return under_load(lambda request: "".join(live), [0, 1], right, piece_by_piece if change else lambda: None)

    n, wrong = answers(change=True)
    assert 0 < wrong < n
    assert answers(change=False)[1] == 0


def test_under_load_an_error_of_a_client_is_raised():
    with pytest.raises(ZeroDivisionError):
        under_load(lambda request: 1 / request, [0], [{1}], lambda: time.sleep(0.05))


def test_what_is_watched_is_the_share_of_unknown_ids_and_the_best_known_cosine(replay):
    before, after, rows = replay.day(8), replay.day(9), replay.rows(8)
    model = grown(build_model(before), after.vocabularies).train()  # dropout must not show
    scorer = TwoTowerScorer(model, BatchBuilder(after))
    scorer.item_vectors[before.n_items :] = scorer.user_vectors(rows[:1])  # the best of all, and not known
    found = watched(scorer, rows, before.n_items)
    new = np.array(
        [np.mean(after.history(row)[-50:] >= before.n_items) if len(after.history(row)) else 0 for row in rows]
    )
    assert 0 < new.max() < 1
    assert found["unknown ids"] == pytest.approx(new)
    assert found["best score"].tolist() == candidate_scores(scorer, after, rows)[:, : before.n_items].amax(1).tolist()
    lost = watched(scorer, rows, before.n_items, np.zeros_like)
    assert not lost["unknown ids"].any()
    assert (lost["best score"] != found["best score"]).any()
