"""Ranking, metrics, baselines and comparisons, each against a slow and obvious version."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import notebook_definitions
from sklearn.linear_model import Ridge
from sklearn.metrics import ndcg_score
from sklearn.metrics.pairwise import cosine_similarity
from torch.overrides import TorchFunctionMode

from dssm_helpers import evaluation as ev
from dssm_helpers.recipes import build_model


@pytest.fixture
def scorer(data, rng) -> ev.Scorer:
    """Random scores on a coarse grid, so that ties abound: one row per user of the table."""
    scores = torch.from_numpy(rng.integers(0, 8, (data.n_users, data.n_items)).astype(np.float32))
    return lambda positions: scores[data.user[positions]]


def naive_rank(row: np.ndarray, target: int, candidates: list[int]) -> float:
    """Sort the candidates; average the places of all that share the target's score."""
    ordered = sorted((row[c] for c in candidates), reverse=True)
    return float(np.mean([place for place, score in enumerate(ordered, 1) if score == row[target]]))


def naive_candidates(data, position: int) -> list[int]:
    seen = set(data.history(position).tolist())
    return [i for i in range(2, data.n_items) if i not in seen]


@pytest.mark.parametrize("batch_size", [1, 7, 1024])
def test_ranks_equal_a_naive_sort_with_ties_counting_half(data, split, scorer, batch_size):
    rows = zip(scorer(split.test).numpy(), split.test, strict=True)
    expected = [naive_rank(row, data.item[p], naive_candidates(data, p)) for row, p in rows]
    ranks = ev.rank_targets(scorer, data, split.test, batch_size=batch_size)
    np.testing.assert_array_equal(ranks, expected)
    assert (ranks % 1 == 0.5).any(), "the grid should have produced ties"


@pytest.mark.parametrize("remove_seen", [True, False])
def test_seen_movies_are_removed_and_the_target_never_is(data, split, scorer, remove_seen):
    masked = ev.candidate_scores(scorer, data, split.test, remove_seen=remove_seen)
    for row, position in zip(masked, split.test, strict=True):
        kept = naive_candidates(data, position) if remove_seen else [*range(2, data.n_items)]
        assert torch.isfinite(row).nonzero().ravel().tolist() == kept
        assert data.item[position] in kept


@pytest.mark.parametrize("constant", [0.0, -torch.inf])
def test_a_constant_scorer_lands_at_chance_not_at_the_top(data, split, constant):
    ranks = ev.rank_targets(lambda p: torch.full((len(p), data.n_items), constant), data, split.test)
    np.testing.assert_array_equal(ranks, [(len(naive_candidates(data, p)) + 1) / 2 for p in split.test])


def test_nan_wrong_shapes_and_nothing_at_all_are_refused(data, split, scorer):
    bad = torch.zeros(len(split.test), data.n_items)
    bad[:, :2] = torch.nan
    ev.rank_targets(lambda p: bad, data, split.test)  # these columns do not matter
    assert (bad[:, 2:] == 0).all(), "a scorer's own tensor is left alone"
    bad[3, 5] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        ev.rank_targets(lambda p: bad, data, split.test)
    for wrong in (bad[1:], bad[:, 1:]):
        with pytest.raises(ValueError, match=re.escape(f"{tuple(wrong.shape)}, expected {tuple(bad.shape)}")):
            ev.rank_targets(lambda p, wrong=wrong: wrong, data, split.test)
    with pytest.raises(ValueError, match="empty"):
        ev.rank_targets(scorer, data, split.test[:0])


class WithoutFloat64(TorchFunctionMode):
    """A device as Apple's MPS: torch has no float64, metrics are NumPy's."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if getattr(result, "dtype", None) == torch.float64:
            raise TypeError("this device has no float64")
        return result


def test_a_device_without_float64_can_validate(data, split, batches):
    with WithoutFloat64():
        ev.evaluate(build_model(data), batches, split.validation)
        with pytest.raises(TypeError, match="no float64"):
            torch.zeros(2).double()  # the double does notice


def test_top_k_equals_a_sort(data, split, rng):
    distinct = torch.from_numpy(rng.permutation(len(split.test) * data.n_items).reshape(len(split.test), -1)).float()
    items, values = ev.top_k(lambda p: distinct, data, split.test, k=5)
    for row, position in enumerate(split.test):
        best = sorted(naive_candidates(data, position), key=lambda i: -distinct[row, i].item())[:5]
        assert items[row].tolist() == best
        np.testing.assert_array_equal(values[row], distinct[row, best])
    fewest = min(len(naive_candidates(data, p)) for p in split.test)
    for k in (0, fewest + 1):
        with pytest.raises(ValueError, match=f"between 1 and {fewest}.*got {k}"):
            ev.top_k(lambda p: distinct, data, split.test, k)


def test_metrics_equal_their_definitions(rng):
    ranks = np.array([1.0, 2.5, 10.0, 10.5, 21.0, 100.0, 400.0])
    found = ev.metrics(ranks)
    for k in ev.KS:
        assert found[f"hit@{k}"] == pytest.approx(sum(r <= k for r in ranks) / 7)
    assert found["mrr"] == pytest.approx(sum(1 / r for r in ranks) / 7)
    assert found["ndcg@10"] == pytest.approx(sum(1 / np.log2(r + 1) for r in ranks if r <= 10) / 7)
    scores, target = rng.permutation(60 * 40).reshape(60, 40), rng.integers(0, 40, 60)  # no ties: scikit-learn averages
    ranks = 1 + (scores > scores[np.arange(60), target][:, None]).sum(axis=1)
    for k in (1, 10, 50):
        assert ev.ndcg(ranks, k).mean() == pytest.approx(ndcg_score(np.eye(40)[target], scores, k=k))
    assert ev.coverage(np.array([[2, 3], [3, 4]]), n_candidates=12) == 0.25
    found = ev.chance_level(30)
    assert (found["hit@10"], found["hit@50"]) == (1 / 3, 1.0)  # k beyond the candidates is a certain hit
    assert found["mrr"] == pytest.approx((1 / np.arange(1, 31)).mean())


def test_scoreboard_averages_over_seeds_and_shows_their_spread():
    board = ev.scoreboard({"two seeds": np.array([[1.0, 50.0], [1.0, 2.0]]), "one": np.array([3.0, 3.0])})
    assert board.loc["two seeds", ["hit@10", "±", "seeds"]].tolist() == [0.75, pytest.approx(0.125**0.5), 2]
    assert board.loc["one", ["hit@10", "±", "seeds"]].tolist() == pytest.approx([1.0, np.nan, 1], nan_ok=True)


def dense(data, positions) -> np.ndarray:
    matrix = np.zeros((data.n_users, data.n_items))
    matrix[data.user[positions], data.item[positions]] = 1
    return matrix


def test_popularity_counts_training_ratings_only(data, split):
    found = ev.Popularity(data, split.train)(split.test[:3])
    assert found.tolist() == [[sum(data.item[split.train] == i) for i in range(data.n_items)]] * 3


@pytest.mark.parametrize("last", [1, 3, 200])
def test_item_knn_sums_cosines_with_the_last_movies(data, split, last):
    cosines = cosine_similarity(dense(data, split.train).T) * (1 - np.eye(data.n_items))
    for position, row in zip(split.test, ev.ItemKNN(data, split.train, last)(split.test), strict=True):
        np.testing.assert_allclose(row, cosines[data.history(position)[-last:]].sum(axis=0), atol=1e-5)


def test_ease_solves_its_own_least_squares(data, split):
    """Column j is ridge regression of movie j on all others: the closed form must equal solving each one."""
    matrix, ease = dense(data, split.train), ev.EASE(data, split.train, l2=3.0)
    for j in (2, 10, 50):
        others = np.delete(np.arange(data.n_items), j)
        solution = Ridge(3.0, fit_intercept=False).fit(matrix[:, others], matrix[:, j]).coef_
        np.testing.assert_allclose(ease.weights[others, j], solution, atol=1e-5)
        assert ease.weights[j, j] == 0
    for position, row in zip(split.test, ease(split.test), strict=True):
        np.testing.assert_allclose(row, ease.weights[np.unique(data.history(position))].sum(axis=0), atol=1e-4)


def test_ials_reconstructs_what_it_was_fitted_on(data, split):
    pytest.importorskip("implicit")
    found, again = (ev.IALS(data, split.train, factors=16, seed=0)(split.test) for _ in range(2))
    assert torch.equal(found, again), "same seed, same scores"
    for position, row in zip(split.test, found, strict=True):
        assert row[data.history(position)].mean() > row[naive_candidates(data, position)].mean() + 0.1


@pytest.mark.parametrize("fit", [ev.Popularity, ev.ItemKNN, ev.EASE])
def test_baselines_do_not_see_beyond_the_training_positions(data, split, fit):
    """Change every held-out movie: what was fitted, and so the scores of an unchanged history, must stay."""
    item = data.item.copy()
    held_out = np.concatenate([split.validation, split.test])
    item[held_out] = np.roll(item[held_out], 1)
    changed = replace(data, item=item)
    assert (changed.item != data.item).any()
    assert torch.equal(fit(data, split.train)(split.validation), fit(changed, split.train)(split.validation))


def test_two_tower_scores_are_the_models_own(data, split, batches):
    model = build_model(data, "dssm", seed=3).train()
    found = ev.TwoTowerScorer(model, batches)(split.test[:6])
    assert model.training, "scoring must put the model back into the mode it was in"
    model.eval()
    for row, position in zip(found, split.test, strict=False):
        users = batches.users(np.repeat(position, data.n_items))
        with torch.inference_mode():
            logits = model({**users, **batches.all_items()})  # cosine / temperature of this user with every movie
        torch.testing.assert_close(row, logits * model.temperature, atol=1e-5, rtol=1e-4)


def test_bootstrap_sees_a_clear_difference_pairs_users_and_averages_seeds(rng):
    base = rng.random(400)
    better = ev.paired_bootstrap(base + 0.1 + 0.05 * rng.normal(size=400), base, n_resamples=1000)
    assert 0 < better.low < better.difference < better.high
    assert str(ev.paired_bootstrap(base, base + 0.1, n_resamples=100)) == "-0.1000 [-0.1000, -0.1000]"
    seeds = np.array([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    assert ev.paired_bootstrap(seeds, np.array([0.5, 0.0, 1.0])) == (0, 0, 0)
    with pytest.raises(ValueError, match="shapes"):
        ev.paired_bootstrap(np.zeros(3), np.zeros(4))


def test_bootstrap_interval_covers_the_truth_about_as_often_as_it_says(rng):
    """200 experiments without a true difference: zero lies outside a 95 % interval in about ten of them."""
    outside = 0
    for _ in range(200):
        result = ev.paired_bootstrap(*rng.random((2, 100)), n_resamples=400)
        outside += not result.low <= 0 <= result.high
    assert 2 <= outside <= 24


def test_explain_marks_the_movie_watched_next_and_lists_the_newest_first(data, split):
    position = int(split.test[5])
    target, scores = data.item[position], torch.zeros(1, data.n_items)
    best = [*[i for i in naive_candidates(data, position) if i != target][:2], target]
    scores[0, best] = torch.tensor([3.0, 2.0, 1.0])
    watched, recommended = ev.explain(data, lambda p: scores, position, n_history=4)
    assert recommended["recommended"].tolist()[:3] == [data.titles[i] for i in best]
    assert recommended.iloc[:, -1].astype(bool).tolist() == [False, False, True, *[False] * 7]
    assert recommended.index.tolist() == list(range(1, 11))
    assert watched.iloc[:, 0].tolist() == [data.titles[i] for i in data.history(position)[::-1][:4]]


def test_what_the_notebook_builds_are_the_helpers(data, split, scorer, rng):
    names = "target_ranks", "average_metrics", "column_cosine", "ease_weights", "bootstrap_interval"
    ranks_of, average, cosine, ease, interval = map(notebook_definitions("05", *names).get, names)
    ranks = ev.rank_targets(scorer, data, split.test)
    masked = ev.candidate_scores(scorer, data, split.test)
    np.testing.assert_array_equal(ranks_of(masked, torch.from_numpy(data.item[split.test]).long()), ranks)
    theirs = average(ranks)
    assert theirs == pytest.approx({name: ev.metrics(ranks)[name] for name in theirs})
    matrix = ev.interaction_matrix(data, split.train)
    np.testing.assert_allclose(cosine(matrix), ev.ItemKNN(data, split.train).similarity, atol=1e-6)
    np.testing.assert_allclose(ease(matrix, 7), ev.EASE(data, split.train, 7).weights, atol=1e-6)
    difference = rng.normal(size=300)
    ours = ev.paired_bootstrap(difference, np.zeros(300))
    np.testing.assert_allclose(interval(difference), [ours.low, ours.high], atol=0.01)
