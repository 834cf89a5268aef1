"""pairs.py, ranking.py, the second stage in serving.py: no leakage, one order everywhere, diversity (notebook 14)."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT

from dssm_helpers.evaluation import TwoTowerScorer, metrics, rank_targets
from dssm_helpers.onnx_export import open_session
from dssm_helpers.pairs import Lists, PairTables, mmr
from dssm_helpers.ranking import (
    candidate_lists,
    export_ranker,
    fit_ranker,
    go_back,
    near_in_time,
    pair_tables,
    ranked,
    ranks_within,
)
from dssm_helpers.serving import Recommender, export_bundle

K = 30


@pytest.fixture(scope="module")
def scorer(model, batches):
    return TwoTowerScorer(model, batches)


@pytest.fixture(scope="module")
def known(data, split, scorer):
    return pair_tables(data, split.train, scorer)


@pytest.fixture(scope="module")
def lists(data, split, scorer, known):
    return candidate_lists(scorer, known, data, split.validation, K)


@pytest.fixture(scope="module")
def ranker(lists):
    return fit_ranker(lists, epochs=2)


@pytest.fixture(scope="module")
def second(model, data, split, ranker, known, tmp_path_factory):
    path = tmp_path_factory.mktemp("second") / "bundle"
    return export_bundle(path, model, data, split.train, second=(ranker, known))


def test_queries_are_each_users_last_training_positions_and_the_past_ends_before_them(data, split):
    past, queries = go_back(data, split.train, last=3)
    assert len(past) + len(queries) == len(split.train)
    for user in np.unique(data.user):
        own = split.train[data.user[split.train] == user]
        held = min(3, len(own) // 2)
        assert queries[data.user[queries] == user].tolist() == own[len(own) - held :].tolist()
        row = slice(past.offsets[user], past.offsets[user + 1])
        assert past.item[row].tolist() == data.item[own[: len(own) - held]].tolist()
        assert (past.user[row] == user).all()


def test_nothing_that_is_read_for_a_query_knows_its_target(data, split, model, batches):
    """Targets of queries, validation and test are exchanged: tables of the past and its features stay as they were."""
    past, queries = go_back(data, split.train, last=3)
    item = data.item.copy()
    later = np.concatenate([queries, split.validation, split.test])
    item[later] = item[later][::-1]
    other_past, _ = go_back(replace(data, item=item), split.train, last=3)
    everything = np.arange(len(past))
    one, two = (pair_tables(p, everything, TwoTowerScorer(model, batches)) for p in (past, other_past))
    assert np.array_equal(one.similar, two.similar)
    assert np.array_equal(one.popularity, two.popularity)
    first = queries[np.flatnonzero(np.diff(data.user[queries], prepend=-1))]  # histories that end in the past
    same = [candidate_lists(TwoTowerScorer(model, batches), one, data, first, 9).pairs]
    changed = replace(data, item=np.where(np.isin(np.arange(len(data)), first), 2, data.item))
    same.append(candidate_lists(TwoTowerScorer(model, batches), one, changed, first, 9).pairs)
    assert np.array_equal(*same)


def test_lists_hold_what_retrieval_finds_in_its_order(data, split, scorer, lists):
    ranks = rank_targets(scorer, data, split.validation)
    assert np.array_equal(np.where(ranks <= K, ranks, np.inf), ranks_within(lists.pairs[:, :, 0], lists))
    assert lists.pairs.shape == (len(split.validation), K, len(lists.pairs[0, 0]))
    assert (np.diff(lists.pairs[:, :, 0], axis=1) <= 0).all()
    found = lists.target >= 0
    assert 0 < found.sum() < len(found)
    assert np.array_equal(lists.items[found, lists.target[found]], data.item[split.validation[found]])


def test_features_have_names_and_say_what_they_say(data, split, known, lists):
    names, position = known.names, split.validation[3]
    assert lists.pairs.shape[2] == len(names)
    history, items, pairs = (
        data.history(position)[::-1],
        lists.items[3],
        dict(zip(names, lists.pairs[3].T, strict=True)),
    )
    counts = data.item_counts(split.train)
    assert pairs["popularity"] == pytest.approx(np.log1p(counts[items]))
    assert pairs["kNN, last 1"] == pytest.approx(known.similar[0, history[0], items].astype(float), abs=1e-6)
    assert pairs["EASE, last 3"] == pytest.approx(
        known.similar[2, history[:3]][:, items].mean(0).astype(float), abs=1e-5
    )
    assert pairs["vectors, last 10"] == pytest.approx(
        (known.vectors[history[:10]] @ known.vectors[items].T).mean(0), abs=1e-5
    )
    genres = data.item_columns["genres"]
    share = [len(set(genres[i]) & set(genres[history[0]]) - {0}) > 0 for i in items]
    assert (pairs["genres, last 1"] > 0).tolist() == share
    assert pairs["cosine below the best"].max() == 0


def test_an_empty_history_and_an_unknown_item_have_features(known):
    pairs = known.features(np.array([], dtype=np.int64), np.array([1, 5]), np.array([0.5, 0.1], dtype=np.float32))
    assert np.isfinite(pairs).all()
    alike = [i for i, name in enumerate(known.names) if "last" in name]
    assert not pairs[:, alike].any()
    assert not known.features(np.array([4, 5]), np.array([1]), np.ones(1, dtype=np.float32))[:, alike].any()
    below = known.features(np.array([4]), np.array([5, 6]), np.float32([-0.5, -0.2]))
    assert below[:, known.names.index("cosine below the best")] == pytest.approx([-0.3, 0])


def test_near_in_time_counts_steps_of_one_user(data):
    (user,) = np.unique(data.user)[:1]
    train = np.arange(data.offsets[user], data.offsets[user] + 4)
    near, items = near_in_time(data, train, steps=2), data.item[train]
    assert near[items[0], items[1]] == pytest.approx(1 / 6)  # one count each, and five more
    assert near[items[0], items[2]] == near[items[2], items[0]] == pytest.approx(0.5 / 6)
    assert near[items[0], items[3]] == 0
    assert not near_in_time(data, train[[0, 3]], steps=2).any()  # what is left out of training still lies between
    edge = data.offsets[user + 1]  # of two users
    assert not near_in_time(data, np.array([edge - 1, edge])).any()


def test_a_ranker_learns_what_a_list_tells(rng):
    pairs = rng.standard_normal((400, 20, 3)).astype(np.float32)
    target = (pairs[..., 0] - pairs[..., 1]).argmax(axis=1)
    target[300:] = -1
    lists = Lists(np.zeros((400, 20), dtype=int), pairs, target)
    ranks = ranks_within(ranked(fit_ranker(lists, epochs=40, learning_rate=0.01), lists), lists)
    assert (ranks[:300] == 1).mean() > 0.9
    assert np.isinf(ranks[300:]).all()
    assert metrics(ranks)["hit@100"] == 0.75


def test_the_same_seed_gives_the_same_ranker(lists):
    one, two, other = (ranked(fit_ranker(lists, epochs=1, seed=seed), lists) for seed in (0, 0, 1))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)


def test_the_file_ranks_as_the_network(ranker, lists, tmp_path):
    session = open_session(export_ranker(ranker, tmp_path / "ranker.onnx"))
    for pairs in (lists.pairs, lists.pairs[:1, :7]):
        with torch.no_grad():
            expected = ranker(torch.from_numpy(pairs))
        assert session.run(None, {"pairs": pairs})[0] == pytest.approx(expected.numpy(), abs=1e-4)


def test_a_recommender_with_a_second_stage_gives_the_evaluated_order(second, data, split, scorer, ranker, known):
    recommender, users, movies = Recommender.load(second), *(data.vocabularies[f"{s}_id"] for s in ("user", "item"))
    changed = 0
    for position in split.test[:20]:
        (user,), history = users.decode([data.user[position]]), movies.decode(data.history(position))
        lists = candidate_lists(scorer, known, data, np.array([position]), min(100, data.n_items - 2 - len(history)))
        (items,), (scores,) = lists.items, ranked(ranker, lists)
        best = np.argsort(-scores, kind="stable")[:10]
        answer = recommender.recommend(user, history)
        assert answer.item_ids == movies.decode(items[best])
        assert answer.scores == pytest.approx(scores[best], abs=1e-3)
        changed += answer.item_ids != movies.decode(items[:10])
    assert changed > 5


def test_without_a_history_or_without_the_part_retrieval_decides(second, model, data, split, tmp_path):
    plain, both = (
        Recommender.load(export_bundle(tmp_path / "plain", model, data, split.train)),
        Recommender.load(second),
    )
    for user, history, k in ((1, None, 10), ({"age": 33}, [], 3), (None, None, 10)):
        assert both.recommend(user, history, k) == plain.recommend(user, history, k)
    for history in ([5, 6], [5, 10**9, 6]):
        assert plain.recommend(1, history).scores != both.recommend(1, history).scores


def test_a_second_stage_ranks_however_many_are_asked_for_or_left(second, data):
    recommender, movies = Recommender.load(second), data.vocabularies["item_id"].values.tolist()
    assert len(recommender.recommend(1, movies[:5], k=3)) == 3
    assert len(recommender.recommend(1, movies[:5], k=len(movies))) == len(movies) - 5
    assert len(recommender.recommend(1, movies[:-2])) == 2
    assert len(recommender.recommend(1, movies)) == 0
    recommender.add_item(5000, "A New Film (1998)", genres="Action", year=1998)
    assert 5000 in recommender.recommend(1, movies).item_ids


def test_both_stages_serve_without_torch(second):
    code = f"""
import sys
from dssm_helpers.serving import Recommender
answer = Recommender.load({str(second)!r}).recommend(1, [5, 6])
print(len(answer), 'torch' in sys.modules)
"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT).split() == ["10", "False"]


def test_tables_return_from_their_bytes(known):
    again = PairTables.from_bytes(known.to_bytes())
    assert again.names == known.names
    for name in ("similar", "vectors", "popularity"):
        assert np.array_equal(getattr(again, name), getattr(known, name))
    assert all(np.array_equal(again.columns[name], table) for name, table in known.columns.items())


def test_mmr_goes_from_relevance_to_difference():
    relevance = np.array([0.2, 3.0, 2.9, 1.0, 0.0])
    vectors = np.array([[0, 1], [1, 0], [1, 0], [0.6, 0.8], [-1, 0]], dtype=np.float32)
    assert mmr(relevance, vectors, 4, trade=1.0).tolist() == [1, 2, 3, 0]
    assert mmr(relevance, vectors, 3, trade=0.0).tolist() == [1, 4, 0]  # the opposite, then the one across
    assert mmr(relevance, vectors, 2, trade=0.5).tolist() == [1, 4]
    assert mmr(relevance, vectors, 2, trade=0.9).tolist() == [1, 2]
    assert sorted(mmr(relevance, vectors, 10)) == [0, 1, 2, 3, 4]
    assert mmr(np.ones(3), vectors[:3], 2).tolist()[0] == 0
