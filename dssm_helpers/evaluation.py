"""Full-catalogue ranking, metrics, baselines, comparisons (notebook 05).

One protocol everywhere: the target is ranked among *all* items minus those the user had earlier (which stay where the
data's schema says ``repeats``); ties count half.
The baselines' defaults are what notebook 05 finds best on ml-100k's validation.
Why not a sample of candidates: W. Krichene and S. Rendle, "On Sampled Metrics for Item Recommendation", KDD 2020.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from torch import Tensor

from .data import EncodedData
from .features import BatchBuilder
from .model import DSSM, evaluation_mode
from .vocabulary import FIRST

KS = (10, 20, 50, 100)

Scorer = Callable[[np.ndarray], Tensor]  # positions [B] → scores [B, I], larger is better; columns 0 and 1 do not count


def seen_before(data: EncodedData, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every item each user had before their position: ``(rows, items)``, row ``r`` belongs to ``positions[r]``."""
    histories = [data.history(position) for position in positions]
    rows = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
    return rows, np.concatenate(histories).astype(np.int64)


def candidate_scores(
    scorer: Scorer, data: EncodedData, positions: np.ndarray, *, remove_seen: bool | None = None
) -> Tensor:
    """Scores ``[B, I]``, minus infinity where nothing is a candidate; ``remove_seen``: as the schema says, or not."""
    scores = torch.as_tensor(scorer(positions), dtype=torch.float32).clone()
    expected = (len(positions), data.n_items)
    if tuple(scores.shape) != expected:
        raise ValueError(f"the scorer returned shape {tuple(scores.shape)}, expected {expected} (users × item indices)")
    if torch.isnan(scores[:, FIRST:]).any():
        raise ValueError("the scorer returned NaN; a diverged training run would rank everything first")
    scores.clamp_(min=torch.finfo(scores.dtype).min)  # a candidate scored minus infinity stays a candidate
    scores[:, :FIRST] = -torch.inf
    if not data.schema.repeats if remove_seen is None else remove_seen:
        scores[seen_before(data, positions)] = -torch.inf
    return scores


def ranks_of(scores: Tensor | np.ndarray, target: np.ndarray) -> np.ndarray:
    """Rank ``[B]`` float64 of column ``target [B]`` in each row of ``scores [B, N]``: 1 is best, equals count half."""
    scores = torch.as_tensor(scores)
    own = scores[range(len(scores)), target].unsqueeze(1)  # [B, 1]
    above = (scores > own).sum(dim=1)
    tied = (scores == own).sum(dim=1) - 1
    return (1 + above + 0.5 * tied).cpu().numpy().astype(np.float64)


def rank_targets(
    scorer: Scorer, data: EncodedData, positions: np.ndarray, *, batch_size: int = 1024, remove_seen: bool | None = None
) -> np.ndarray:
    """Rank of each target among all candidates, ``[n]`` float64; 1 is best, and one score for all is the middle."""
    if len(positions) == 0:
        raise ValueError("nothing to evaluate: positions is empty")
    ranks = np.empty(len(positions))
    for start in range(0, len(positions), batch_size):
        part = positions[start : start + batch_size]
        scores = candidate_scores(scorer, data, part, remove_seen=remove_seen)
        ranks[start : start + batch_size] = ranks_of(scores, data.item[part])
    return ranks


def metrics(ranks: np.ndarray) -> dict[str, float]:
    """Hit@k (Recall@k with one target), NDCG@10 and MRR, averaged over ``ranks [n]``."""
    ranks = np.asarray(ranks, dtype=np.float64)
    hits = {f"hit@{k}": float((ranks <= k).mean()) for k in KS}
    return {**hits, "ndcg@10": float(ndcg(ranks, 10).mean()), "mrr": float((1.0 / ranks).mean())}


def ndcg(ranks: np.ndarray, k: int = 10) -> np.ndarray:
    """NDCG@k of each single target: 1/log2(rank + 1) within the first k, else 0."""
    return np.where(ranks <= k, 1.0 / np.log2(ranks + 1.0), 0.0)


def chance_level(n_candidates: float) -> dict[str, float]:
    """What :func:`metrics` gives in expectation when candidates are ordered at random."""
    return metrics(np.arange(1, int(n_candidates) + 1))


def top_k(
    scorer: Scorer, data: EncodedData, positions: np.ndarray, k: int = 10, *, remove_seen: bool | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The best ``k`` candidates for each position: ``(items [B, k], scores [B, k])``, best first."""
    scores = candidate_scores(scorer, data, positions, remove_seen=remove_seen)
    fewest = int((scores > -torch.inf).sum(dim=1).min())
    if not 1 <= k <= fewest:
        raise ValueError(f"k must be between 1 and {fewest}, the candidates left for the most active user; got {k}")
    best = scores.topk(k, dim=1)
    return best.indices.cpu().numpy(), best.values.cpu().numpy()


class TwoTowerScorer:
    """Cosine of user vectors with all ``item_vectors [I, D]``, which are computed once (notebook 05)."""

    def __init__(self, model: DSSM, batches: BatchBuilder):
        self.model, self.batches = model, batches
        with evaluation_mode(model):
            self.item_vectors = model.item_tower(batches.all_items())

    def user_vectors(self, positions: np.ndarray) -> Tensor:
        with evaluation_mode(self.model):
            return self.model.user_tower(self.batches.users(positions))

    def __call__(self, positions: np.ndarray) -> Tensor:
        return self.user_vectors(positions) @ self.item_vectors.T


class Popularity:
    """Every user gets the items with the most training interactions."""

    def __init__(self, data: EncodedData, train: np.ndarray):
        self.scores = torch.from_numpy(data.item_counts(train)).float()

    def __call__(self, positions: np.ndarray) -> Tensor:
        return self.scores.expand(len(positions), -1)


def interaction_matrix(data: EncodedData, positions: np.ndarray) -> sparse.csr_matrix:
    """Ones at (user, item) for the interactions at ``positions``, ``[U, I]`` float32."""
    return _ones(data.user[positions], data.item[positions], (data.n_users, data.n_items))


def history_matrix(data: EncodedData, positions: np.ndarray) -> sparse.csr_matrix:
    """Ones at everything before each position, ``[B, I]`` float32."""
    return _ones(*seen_before(data, positions), (len(positions), data.n_items))


def _ones(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> sparse.csr_matrix:
    matrix = sparse.csr_matrix((np.ones(len(rows), dtype=np.float32), (rows, columns)), shape=shape)
    matrix.data[:] = 1  # where a user had an item twice, they were added up
    return matrix


class ItemKNN:
    """Cosine between columns of the user × item matrix, summed over the ``last`` items. G. Linden et al., 2003."""

    def __init__(self, data: EncodedData, train: np.ndarray, last: int = 3):
        matrix = interaction_matrix(data, train)
        norm = np.sqrt(np.asarray(matrix.sum(axis=0)).ravel()).clip(min=1.0)
        scaled = matrix.multiply(1.0 / norm).tocsr()
        similarity = (scaled.T @ scaled).toarray()
        np.fill_diagonal(similarity, 0.0)
        self.similarity, self.last, self.data = torch.from_numpy(similarity.astype(np.float32)), last, data

    def __call__(self, positions: np.ndarray) -> Tensor:
        history = BatchBuilder(self.data, self.last).users(positions)["history"]  # [B, last]
        return (self.similarity[history] * (history > 0).unsqueeze(-1)).sum(dim=1)


class EASE:
    """A linear autoencoder over the whole history with a closed form. H. Steck, WWW 2019."""

    def __init__(self, data: EncodedData, train: np.ndarray, l2: float = 100.0):
        matrix = interaction_matrix(data, train)
        gram = (matrix.T @ matrix).toarray().astype(np.float64)
        gram[np.diag_indices_from(gram)] += l2
        inverse = np.linalg.inv(gram)
        weights = -inverse / np.diag(inverse)
        np.fill_diagonal(weights, 0.0)
        self.weights, self.data = weights.astype(np.float32), data

    def __call__(self, positions: np.ndarray) -> Tensor:
        return torch.from_numpy(history_matrix(self.data, positions) @ self.weights)


class IALS:
    """Matrix factorisation by ``implicit``, to be installed; solves users anew each time. Y. Hu et al., ICDM 2008."""

    def __init__(self, data: EncodedData, train: np.ndarray, factors: int = 32, seed: int = 0):
        from implicit.cpu.als import AlternatingLeastSquares
        from threadpoolctl import threadpool_limits

        # BLAS threads beside the library's own make it ten times slower, and it warns about them.
        with threadpool_limits(1, user_api="blas"):
            self.als = AlternatingLeastSquares(factors, regularization=1.0, random_state=seed, num_threads=1)
            self.als.fit(interaction_matrix(data, train), show_progress=False)
        self.data = data

    def __call__(self, positions: np.ndarray) -> Tensor:
        vectors = self.als.recalculate_user(np.arange(len(positions)), history_matrix(self.data, positions))
        return torch.from_numpy(vectors @ self.als.item_factors.T)


def evaluate(model: DSSM, batches: BatchBuilder, positions: np.ndarray) -> dict[str, float]:
    """:func:`metrics` of a model over the full catalogue; what a trainer's ``validate`` calls."""
    return metrics(rank_targets(TwoTowerScorer(model, batches), batches.data, positions))


class Comparison(NamedTuple):
    """Mean per-user difference and its 95 % bootstrap interval."""

    difference: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.difference:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


def paired_bootstrap(ours: np.ndarray, theirs: np.ndarray, n_resamples: int = 10_000) -> Comparison:
    """Resample users of a metric ``[n]``, or ``[seeds, n]`` averaged first (notebook 05, "Is the difference real?")."""
    ours, theirs = (np.atleast_2d(np.asarray(x, dtype=np.float64)).mean(axis=0) for x in (ours, theirs))
    difference = ours - theirs
    generator, n = np.random.default_rng(0), len(difference)
    means = [difference[generator.integers(0, n, n)].mean() for _ in range(n_resamples)]
    low, high = np.quantile(means, [0.025, 0.975])
    return Comparison(float(difference.mean()), float(low), float(high))


def scoreboard(ranks: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Means over seeds, from ranks ``[n]`` or ``[seeds, n]``; ``±`` is the sample deviation of hit@10 between seeds."""
    rows = {}
    for name, values in ranks.items():
        per_seed = pd.DataFrame([metrics(r) for r in np.atleast_2d(values)])
        rows[name] = per_seed.mean().to_dict() | {"±": float(per_seed["hit@10"].std()), "seeds": len(per_seed)}
    return pd.DataFrame.from_dict(rows, orient="index")


def coverage(items: np.ndarray, n_candidates: int) -> float:
    """Share of the catalogue that appears in anybody's recommendations ``items [B, k]``."""
    return len(np.unique(items)) / n_candidates


def explain(data: EncodedData, scorer: Scorer, position: int, n_history: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The ``n_history`` items one user had last, newest first, and the ten recommended, the true next one marked."""
    (items,), (scores,) = top_k(scorer, data, np.array([position]))
    had = [data.titles[i] for i in data.history(position)[::-1][:n_history]]
    mark = np.where(items == data.item[position], "◀ watched next", "")
    columns = {"recommended": [data.titles[i] for i in items], "score": scores.round(3), "": mark}
    ranks = pd.RangeIndex(1, len(items) + 1, name="rank")
    return pd.DataFrame({"watched (newest first)": had}), pd.DataFrame(columns, index=ranks)
