"""Ranking, metrics, baselines and comparisons, each against a slow and obvious version."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import notebook_definitions
from sklearn.metrics import ndcg_score
from torch.overrides import TorchFunctionMode

from dssm_helpers import evaluation as ev
from dssm_helpers.recipes import build_model


@pytest.fixture
def scores(data, rng) -> torch.Tensor:
    """Random scores on a coarse grid, so that ties abound: one row per user of the table."""
    return torch.from_numpy(rng.integers(0, 8, (data.n_users, data.n_items)).astype(np.float32))


@pytest.fixture
def scorer(data, scores):
    return lambda positions: scores[data.user[positions]]


def naive_rank(row: np.ndarray, target: int, candidates: list[int]) -> float:
    """Sort the candidates; average the places of all that share the target's score."""
    ordered = sorted((row[c] for c in candidates), reverse=True)
    return float(np.mean([place for place, score in enumerate(ordered, 1) if score == row[target]]))


def naive_candidates(data, position: int) -> list[int]:
    seen = set(data.history(position).tolist())
    return [i for i in range(2, data.n_items) if i not in seen]


# -- ranking ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 7, 1024])
def test_ranks_equal_a_naive_sort_with_ties_counting_half(data, split, scores, scorer, batch_size):
    expected = [naive_rank(scores[data.user[p]].numpy(), data.item[p], naive_candidates(data, p)) for p in split.test]
    ranks = ev.rank_targets(scorer, data, split.test, batch_size=batch_size)
    np.testing.assert_array_equal(ranks, expected)
    assert (ranks % 1 == 0.5).any(), "the grid should have produced ties"


def test_seen_movies_are_removed_and_the_target_never_is(data, split, scorer):
    masked = ev.candidate_scores(scorer, data, split.test)
    for row, position in enumerate(split.test):
        kept = np.flatnonzero(torch.isfinite(masked[row]).numpy()).tolist()
        assert kept == naive_candidates(data, position)
        assert data.item[position] in kept


def test_without_removal_only_padding_and_unknown_are_out(data, split, scorer):
    masked = ev.candidate_scores(scorer, data, split.test, remove_seen=False)
    assert torch.isfinite(masked[:, 2:]).all()
    assert not torch.isfinite(masked[:, :2]).any()


def test_a_constant_scorer_lands_at_chance_not_at_the_top(data, split):
    ranks = ev.rank_targets(lambda p: torch.zeros(len(p), data.n_items), data, split.test)
    middle = [(len(naive_candidates(data, p)) + 1) / 2 for p in split.test]
    np.testing.assert_array_equal(ranks, middle)


def test_random_scores_reach_what_chance_level_says(data, split):
    generator = torch.Generator().manual_seed(0)
    draws = [
        ev.rank_targets(lambda p: torch.rand(len(p), data.n_items, generator=generator), data, split.test)
        for _ in range(40)
    ]
    mean_candidates = np.mean([len(naive_candidates(data, p)) for p in split.test])
    expected, found = ev.chance_level(mean_candidates), ev.metrics(np.concatenate(draws))
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=0.03), name


def test_a_candidate_scored_minus_infinity_stays_a_candidate(data, split):
    def refuses_all(positions):
        return torch.full((len(positions), data.n_items), -torch.inf)

    expected = ev.rank_targets(lambda p: torch.zeros(len(p), data.n_items), data, split.test)
    np.testing.assert_array_equal(ev.rank_targets(refuses_all, data, split.test), expected)


def test_a_scorers_own_tensor_is_left_alone(data, split, scores):
    before = scores.clone()
    ev.rank_targets(lambda p: scores, data, np.repeat(split.test[0], data.n_users))
    assert torch.equal(scores, before)


def test_nan_is_refused_but_not_in_the_columns_that_do_not_matter(data, split):
    bad = torch.zeros(len(split.test), data.n_items)
    bad[:, :2] = torch.nan
    ev.rank_targets(lambda p: bad, data, split.test)
    bad[3, 5] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        ev.rank_targets(lambda p: bad, data, split.test)


@pytest.mark.parametrize("shape", [(1, 0), (0, -1), (0, 1)])
def test_a_wrong_shape_is_refused_with_both_shapes(data, split, shape):
    rows, columns = len(split.test) + shape[0], data.n_items + shape[1]
    with pytest.raises(ValueError, match=rf"\({rows}, {columns}\), expected \({len(split.test)}, {data.n_items}\)"):
        ev.rank_targets(lambda p: torch.zeros(rows, columns), data, split.test)


class WithoutFloat64(TorchFunctionMode):
    """A device as Apple's MPS: nothing may become float64 before ``.cpu()``, which here returns the tensor itself."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is torch.Tensor.cpu:
            result.came_to_cpu = True
        elif getattr(result, "dtype", None) == torch.float64 and not hasattr(args[0], "came_to_cpu"):
            raise TypeError("this device has no float64")
        return result


def test_a_device_without_float64_can_validate(data, split, batches):
    model = build_model(data)
    expected = ev.evaluate(model, batches, split.validation)
    with WithoutFloat64():
        assert ev.evaluate(model, batches, split.validation) == expected
        with pytest.raises(TypeError, match="no float64"):
            torch.zeros(2).double()  # the double does notice


def test_nothing_to_evaluate_is_an_error(data, scorer):
    with pytest.raises(ValueError, match="empty"):
        ev.rank_targets(scorer, data, np.array([], dtype=np.int64))


def test_top_k_equals_a_sort(data, split, rng):
    distinct = torch.from_numpy(rng.permutation(len(split.test) * data.n_items).reshape(len(split.test), -1)).float()
    items, values = ev.top_k(lambda p: distinct, data, split.test, k=5)
    for row, position in enumerate(split.test):
        best = sorted(naive_candidates(data, position), key=lambda i: -distinct[row, i].item())[:5]
        assert items[row].tolist() == best
        np.testing.assert_array_equal(values[row], distinct[row, best])


@pytest.mark.parametrize("k", [0, -1, 10_000])
def test_top_k_outside_the_candidates_says_how_many_there_are(data, split, scorer, k):
    fewest = min(len(naive_candidates(data, p)) for p in split.test)
    with pytest.raises(ValueError, match=f"between 1 and {fewest}.*got {k}"):
        ev.top_k(scorer, data, split.test, k)


# -- metrics ----------------------------------------------------------------------------------------------------------


def test_metrics_equal_their_definitions():
    ranks = np.array([1.0, 2.5, 10.0, 10.5, 21.0, 100.0, 400.0])
    found = ev.metrics(ranks)
    for k in ev.KS:
        assert found[f"hit@{k}"] == pytest.approx(sum(r <= k for r in ranks) / 7)
    assert found["mrr"] == pytest.approx(sum(1 / r for r in ranks) / 7)
    assert found["ndcg@10"] == pytest.approx(sum(1 / np.log2(r + 1) for r in ranks if r <= 10) / 7)


@pytest.mark.parametrize("k", [1, 5, 10, 50])
def test_ndcg_agrees_with_scikit_learn(rng, k):
    scores = rng.permutation(60 * 40).reshape(60, 40)  # no ties: scikit-learn averages over them, we take the middle
    target = rng.integers(0, 40, 60)
    relevance = np.eye(40)[target]
    ranks = 1 + (scores > scores[np.arange(60), target][:, None]).sum(axis=1)
    assert ev.ndcg(ranks, k).mean() == pytest.approx(ndcg_score(relevance, scores, k=k))


def test_k_beyond_the_candidates_is_a_certain_hit():
    found = ev.chance_level(30)
    assert (found["hit@10"], found["hit@50"]) == (1 / 3, 1.0)
    assert found["mrr"] == pytest.approx((1 / np.arange(1, 31)).mean())


def test_scoreboard_averages_over_seeds_and_shows_their_spread():
    board = ev.scoreboard({"two seeds": np.array([[1.0, 50.0], [1.0, 2.0]]), "one": np.array([3.0, 3.0])})
    assert board.loc["two seeds", ["hit@10", "±", "seeds"]].tolist() == [0.75, pytest.approx(0.125**0.5), 2]
    assert board.loc["one", ["hit@10", "±", "seeds"]].tolist() == pytest.approx([1.0, np.nan, 1], nan_ok=True)


def test_coverage_counts_distinct_movies():
    assert ev.coverage(np.array([[2, 3], [3, 4]]), n_candidates=12) == 0.25


# -- scorers ----------------------------------------------------------------------------------------------------------


def dense(data, positions) -> np.ndarray:
    matrix = np.zeros((data.n_users, data.n_items))
    for p in positions:
        matrix[data.user[p], data.item[p]] = 1
    return matrix


def test_popularity_counts_training_ratings_only(data, split):
    found = ev.Popularity(data, split.train)(split.test[:3])
    expected = [sum(data.item[p] == i for p in split.train) for i in range(data.n_items)]
    assert found.shape == (3, data.n_items)
    assert found[2].tolist() == expected


@pytest.mark.parametrize("last", [1, 3, 200])
def test_item_knn_sums_cosines_with_the_last_movies(data, split, last):
    matrix = dense(data, split.train)
    found = ev.ItemKNN(data, split.train, last)(split.test[:8]).numpy()
    for row, position in enumerate(split.test[:8]):
        for item in range(2, data.n_items, 7):
            expected = 0.0
            for other in data.history(position)[-last:]:
                a, b = matrix[:, item], matrix[:, other]
                if other != item and a.any() and b.any():
                    expected += a @ b / np.sqrt((a @ a) * (b @ b))
            assert found[row, item] == pytest.approx(expected, abs=1e-5)


def test_ease_solves_its_own_least_squares(data, split):
    """Column j is ridge regression of movie j on all others: the closed form must equal solving each one."""
    matrix, l2 = dense(data, split.train), 3.0
    ease = ev.EASE(data, split.train, l2)
    for j in (2, 10, 50):
        others = [i for i in range(data.n_items) if i != j]
        x = matrix[:, others]
        solution = np.linalg.solve(x.T @ x + l2 * np.eye(len(others)), x.T @ matrix[:, j])
        np.testing.assert_allclose(ease.weights[others, j], solution, atol=1e-5)
    position = int(split.test[4])
    history = np.zeros(data.n_items)
    history[data.history(position)] = 1
    np.testing.assert_allclose(ease(np.array([position]))[0], history @ ease.weights, atol=1e-4)


def test_ials_reconstructs_what_it_was_fitted_on(data, split):
    pytest.importorskip("implicit")
    scorer = ev.IALS(data, split.train, factors=16, seed=0)
    found = scorer(split.test)
    assert found.shape == (len(split.test), data.n_items)
    watched = np.concatenate([found[r, data.history(p)].numpy() for r, p in enumerate(split.test)])
    rest = np.concatenate([found[r, naive_candidates(data, p)].numpy() for r, p in enumerate(split.test)])
    assert watched.mean() > rest.mean() + 0.2
    assert torch.equal(found, ev.IALS(data, split.train, factors=16, seed=0)(split.test)), "same seed, same scores"


@pytest.mark.parametrize("fit", [ev.Popularity, ev.ItemKNN, ev.EASE])
def test_baselines_do_not_see_beyond_the_training_positions(data, split, fit):
    """Change every held-out movie: what was fitted, and so the scores of an unchanged history, must stay."""
    item = data.item.copy()
    held_out = np.concatenate([split.validation, split.test])
    item[held_out] = np.roll(item[held_out], 1)
    changed = replace(data, item=item)
    assert (changed.item != data.item).any()
    before, after = fit(data, split.train)(split.validation), fit(changed, split.train)(split.validation)
    torch.testing.assert_close(before, after)


def test_two_tower_scores_are_the_models_own(data, split, batches):
    model = build_model(data, "dssm", seed=3)
    model.train()
    scorer = ev.TwoTowerScorer(model, batches)
    positions = split.test[:6]
    found = scorer(positions)
    assert model.training, "scoring must put the model back into the mode it was in"
    model.eval()
    with torch.inference_mode():
        for row, position in enumerate(positions):
            users = batches.users(np.repeat(position, data.n_items))
            logits = model({**users, **batches.all_items()})  # cosine / temperature of this user with every movie
            torch.testing.assert_close(found[row], logits * model.temperature, atol=1e-5, rtol=1e-4)
            assert found[row, 2:].topk(10).indices.tolist() == logits[2:].topk(10).indices.tolist()


# -- comparing --------------------------------------------------------------------------------------------------------


def test_bootstrap_sees_a_clear_difference_and_its_sign(rng):
    base = rng.random(400)
    better = ev.paired_bootstrap(base + 0.1 + 0.05 * rng.normal(size=400), base, n_resamples=1000)
    assert 0 < better.low < better.difference < better.high
    worse = ev.paired_bootstrap(base, base + 0.1, n_resamples=1000)
    assert worse.low <= worse.difference <= worse.high < 0
    assert str(worse).startswith("-0.1000 [")


def test_bootstrap_interval_covers_the_truth_about_as_often_as_it_says(rng):
    """200 experiments without a true difference: zero lies outside a 95 % interval in about ten of them."""
    outside = 0
    for _ in range(200):
        a, b = rng.random((2, 100))
        result = ev.paired_bootstrap(a, b, n_resamples=400)
        outside += not result.low <= 0 <= result.high
    assert 2 <= outside <= 24


def test_bootstrap_pairs_users_and_averages_seeds():
    ours = np.array([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    result = ev.paired_bootstrap(ours, np.array([0.5, 0.0, 1.0]))
    assert (result.difference, result.low, result.high) == (0, 0, 0)
    with pytest.raises(ValueError, match="same users"):
        ev.paired_bootstrap(np.zeros(3), np.zeros(4))


def test_explain_marks_the_movie_watched_next_and_lists_the_newest_first(data, split):
    position = int(split.test[5])
    target = data.item[position]
    third = torch.zeros(1, data.n_items)
    first, second = [i for i in naive_candidates(data, position) if i != target][:2]
    third[0, [first, second, target]] = torch.tensor([3.0, 2.0, 1.0])
    watched, recommended = ev.explain(data, lambda p: third, position, n_history=4)
    assert recommended["recommended"].tolist()[:3] == [data.titles[i] for i in (first, second, target)]
    assert [bool(mark) for mark in recommended.iloc[:, -1]] == [False, False, True, *[False] * 7]
    assert recommended.index.tolist() == list(range(1, 11))
    assert watched.iloc[:, 0].tolist() == [data.titles[i] for i in data.history(position)[::-1][:4]]


# -- notebook 05 ------------------------------------------------------------------------------------------------------


def test_the_notebooks_ranks_and_metrics_are_the_helpers(data, split, scorer):
    notebook = notebook_definitions("05", "target_ranks", "average_metrics")
    masked = ev.candidate_scores(scorer, data, split.test)
    found = notebook["target_ranks"](masked, torch.from_numpy(data.item[split.test]).long()).numpy()
    ranks = ev.rank_targets(scorer, data, split.test)
    np.testing.assert_array_equal(found, ranks)
    theirs = ev.metrics(ranks)
    for name, value in notebook["average_metrics"](ranks).items():
        assert theirs[name] == pytest.approx(value), name


def test_the_notebooks_baselines_and_bootstrap_are_the_helpers(data, split, rng):
    notebook = notebook_definitions("05", "column_cosine", "ease_weights", "bootstrap_interval")
    matrix = ev.interaction_matrix(data, split.train)
    similarity = ev.ItemKNN(data, split.train).similarity
    np.testing.assert_allclose(notebook["column_cosine"](matrix), similarity, atol=1e-6)
    np.testing.assert_allclose(notebook["ease_weights"](matrix, 7), ev.EASE(data, split.train, 7).weights, atol=1e-6)
    difference = rng.normal(size=300)
    ours = ev.paired_bootstrap(difference, np.zeros(300))
    np.testing.assert_allclose(notebook["bootstrap_interval"](difference), [ours.low, ours.high], atol=0.01)
