"""folding.py: several models as one, no wider than one of them (notebook 13)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import make_model

from dssm_helpers.evaluation import TwoTowerScorer, rank_targets, top_k
from dssm_helpers.folding import fold
from dssm_helpers.serving import Recommender, export_bundle
from dssm_helpers.training import Trainer, TrainingConfig
from dssm_helpers.vocabulary import FIRST


@pytest.fixture(scope="module")
def models(data, batches, split):
    """Trained a little: what differs between random models is noise, and nothing of it can be folded away."""
    found = []
    for seed in range(3):
        model = make_model(data, max_history=10)
        torch.manual_seed(seed)
        for parameter in model.parameters():
            parameter.data += 0.05 * torch.randn(parameter.shape)
        Trainer(model, batches, TrainingConfig(epochs=2, batch_size=128, seed=seed)).fit(split.train, progress=False)
        found.append(model)
    return found


@pytest.fixture(scope="module")
def folded(models, batches, split):
    return fold(models, batches, split.train)


def side_by_side(models, batches, positions):
    return sum(TwoTowerScorer(model, batches)(positions) for model in models)


def test_vectors_are_as_wide_as_one_models_and_of_length_one(folded, models, batches, split):
    scorer = TwoTowerScorer(folded, batches)
    users, items = scorer.user_vectors(split.test), scorer.item_vectors[2:]
    assert users.shape[1] == items.shape[1] == folded.dim == models[0].dim
    for vectors in (users, items):
        assert torch.allclose(vectors.norm(dim=1), torch.ones(len(vectors)), atol=1e-5)


def test_one_model_folded_with_nothing_cut_orders_as_it_did(models, batches, split):
    wide = fold(models[:1], batches, split.train)
    wide.user_tower.fold, wide.item_tower.fold = torch.eye(16), torch.eye(16)
    wide.item_tower.longest = 1.0
    scores = [TwoTowerScorer(model, batches)(split.test) for model in (wide, models[0])]
    assert torch.allclose(scores[0], scores[1], atol=1e-5)


def test_the_fold_is_nearer_to_the_sum_than_the_widest_directions_of_the_items(folded, models, batches, split):
    positions = split.train[::3]
    whole = side_by_side(models, batches, positions)[:, 2:]
    users = torch.cat([TwoTowerScorer(model, batches).user_vectors(positions) for model in models], dim=1)
    items = torch.cat([TwoTowerScorer(model, batches).item_vectors for model in models], dim=1)[2:]
    near = (users @ folded.user_tower.fold) @ (items @ folded.item_tower.fold).T
    directions = torch.linalg.svd(items, full_matrices=False).Vh[: folded.dim - 1].T
    other = (users @ directions) @ (items @ directions).T
    assert (near - whole).norm() < (other - whole).norm()
    assert (near - whole).norm() < 0.1 * whole.norm()


def test_a_users_order_is_that_of_the_products(folded, models, batches, split):
    scorer = TwoTowerScorer(folded, batches)
    tower = folded.user_tower
    users = torch.cat([one(batches.users(split.test)) for one in tower.towers], dim=1) @ tower.fold
    items = torch.cat([one(batches.all_items()) for one in folded.item_tower.towers], dim=1) @ folded.item_tower.fold
    products = (users @ items.T)[:, 2:]
    assert torch.equal(scorer(split.test)[:, 2:].argmax(dim=1), products.argmax(dim=1))
    correlation = np.corrcoef(scorer(split.test)[0, 2:], products.detach()[0])[0, 1]
    assert correlation == pytest.approx(1.0, abs=1e-5)


def test_a_bundle_of_a_folded_model_answers_as_it_is_evaluated(folded, data, batches, split, tmp_path):
    recommender = Recommender.load(export_bundle(tmp_path / "bundle", folded, data, split.train))
    items, _ = top_k(TwoTowerScorer(folded, batches), data, split.test[:10], 5)
    users, movies = data.vocabularies["user_id"], data.vocabularies["item_id"]
    for row, position in zip(items, split.test[:10], strict=True):
        answer = recommender.recommend(*users.decode([data.user[position]]), movies.decode(data.history(position)), k=5)
        assert answer.item_ids == movies.decode(row)
    assert rank_targets(TwoTowerScorer(folded, batches), data, split.test).min() >= 1


@pytest.mark.parametrize("users", [True, False])
def test_a_bundle_without_users_has_them_from_none_of_the_models(folded, data, split, tmp_path, users):
    folder = export_bundle(tmp_path / "bundle", folded, data, split.train, users=users)
    content = (folder / "user_tower.onnx").read_bytes()
    for tower in folded.user_tower.towers:
        row = tower.embedding.tables["user_id"].weight[FIRST].detach().numpy()
        assert (row.tobytes() in content) == users
    assert len(Recommender.load(folder).recommend(history=[2, 3], k=5)) == 5
