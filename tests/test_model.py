"""Two towers: shapes, unit length, the shared table, refusals, and notebook 03's own towers."""

import math

import pytest
import torch
from conftest import notebook_definitions
from torch import nn

from dssm_helpers.features import SparseFeature, default_features
from dssm_helpers.model import ACTIVATIONS, DSSM, FeatureEmbedding, evaluation_mode


@pytest.fixture
def model(data):
    torch.manual_seed(0)
    user, item = default_features(data, dim=16, side_dim=4, max_history=10)
    params = {"dims": [24, 8]}
    return DSSM(user, item, params, params, temperature=0.2).eval()


@pytest.fixture
def batch(batches, split):
    return batches(split.train[:7])


def test_shapes_and_unit_length(model, batch):
    users, items = model.user_tower(batch), model.item_tower(batch)
    assert users.shape == items.shape == (7, 8)
    assert model.dim == 8
    for vectors in (users, items):
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(7))


def test_score_is_cosine_over_temperature(model, batch):
    users, items = model.user_tower(batch), model.item_tower(batch)
    expected = torch.cosine_similarity(users, items) / 0.2
    torch.testing.assert_close(model(batch), expected)
    model.temperature = 0.1
    torch.testing.assert_close(model(batch), 2 * expected)  # the temperature is used, not only stored
    every = model.logits(users, items)  # [7, 7]
    torch.testing.assert_close(every, users @ items.T / 0.1)
    torch.testing.assert_close(every.diagonal(), model(batch))
    own = items[torch.tensor([[0, 1, 2]]).expand(7, 3)]  # [7, 3, D]
    torch.testing.assert_close(model.logits(users, own), every[:, :3])


def test_evaluation_mode_is_over_when_its_block_is(model):
    model.train()
    model.item_tower.eval()  # a mixture of modes comes back as it was
    with evaluation_mode(model):
        inside = [model.user_tower.embedding.dropout.training, torch.is_grad_enabled()]
    assert inside == [False, False]
    with pytest.raises(KeyError), evaluation_mode(model):
        raise KeyError
    assert model.user_tower.training
    assert not model.item_tower.training
    assert torch.is_grad_enabled()


def test_cosines_can_be_negative(model, data, batches, split):
    model.user_tower.mlp[-1].bias.data.fill_(-1.0)
    model.item_tower.mlp[-1].bias.data.fill_(1.0)
    cosines = model.user_tower(batches.users(split.train)) @ model.item_tower(batches.all_items()).T
    assert cosines.min() < 0


def test_without_normalisation_length_is_free(model, batch):
    unit = model.item_tower(batch)
    model.item_tower.normalize = False
    free = model.item_tower(batch)
    assert (free.norm(dim=1) - 1).abs().max() > 0.01
    torch.testing.assert_close(nn.functional.normalize(free, dim=1), unit)


def test_a_movie_learned_as_target_changes_histories_with_it(model, batches, split):
    users = batches.users(split.validation)
    before = model.user_tower(users)
    movie = int(users["history"][0, 0])
    with torch.no_grad():
        model.item_tower.embedding.tables["item_id"].weight[movie] += 5.0
    changed = (model.user_tower(users) - before).abs().amax(dim=1) > 1e-6
    assert changed[0]
    assert torch.equal(changed, (users["history"] == movie).any(dim=1))


def test_padding_row_is_zero_and_gets_no_gradient(model, batches, data):
    positions = data.offsets[2:12]  # each user's first rating: the history is nothing but padding
    missing = {"year": torch.zeros(10, dtype=torch.int64), "zip": torch.zeros(10, dtype=torch.int64)}
    model({**batches(positions), **missing}).sum().backward()
    for tower in (model.user_tower, model.item_tower):
        for name, table in tower.embedding.tables.items():
            assert table.weight[0].abs().max() == 0, name
            assert table.weight.grad is None or table.weight.grad[0].abs().max() == 0, name


def test_order_of_the_batch_does_not_matter_order_of_features_does(data, batch):
    sparse = [SparseFeature("item_id", data.n_items, 3), SparseFeature("year", len(data.vocabularies["year"]), 2)]
    embedding = FeatureEmbedding(sparse).eval()
    x = embedding(batch)
    assert torch.equal(embedding(dict(reversed(batch.items()))), x)
    swapped = FeatureEmbedding(sparse[::-1]).eval()
    swapped.tables.load_state_dict(embedding.tables.state_dict())
    assert torch.equal(swapped(batch), torch.cat([x[:, 3:], x[:, :3]], dim=1))


@pytest.mark.parametrize("length", [0, 1, 10, 25])
def test_any_history_length(model, batch, length):
    longer = {**batch, "history": batch["history"].repeat(1, 3)[:, :length]}
    vectors = model.user_tower(longer)
    assert torch.isfinite(vectors).all()
    cut = {**batch, "history": longer["history"][:, :10]}  # the declared maximum
    assert torch.equal(vectors, model.user_tower(cut))


def test_towers_may_differ_and_drop_in_training_only(data, batch):
    user, item = default_features(data, dim=8, side_dim=4)
    model = DSSM(user, item, {"dims": [32, 16, 6], "dropout": 0.5}, {"dims": [6], "activation": "tanh"})
    assert model.user_tower(batch).shape == model.item_tower(batch).shape == (7, 6)
    assert not torch.equal(model(batch), model(batch))
    model.eval()
    assert torch.equal(model(batch), model(batch))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"item_params": {"activation": "sigmoid"}}, "choose from prelu, relu, gelu"),
        ({"item_params": {"dim": [64]}}, "'dim'"),
        ({"item_params": {"dims": [32, 5]}}, "ends in 64 dimensions and the item tower in 5"),
        ({"item_features": [SparseFeature("year", 9)]}, "needs a table 'item_id'"),
        ({"item_features": [SparseFeature("item_id", 9, 4)]}, r"there are {'item_id': \(9, 4\)}"),
    ],
)
def test_refusals(data, change, message):
    user, item = default_features(data)
    with pytest.raises((ValueError, TypeError), match=message):
        DSSM(**{"user_features": user, "item_features": item} | change)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_trains_every_layer(data, batch, activation):
    user, item = default_features(data, dim=8, side_dim=4)
    params = {"dims": [16, 8, 4], "activation": activation}
    model = DSSM(user, item, params, params)
    model(batch).sum().backward()
    for name, parameter in model.named_parameters():
        if "mlp" in name:
            assert parameter.grad.abs().sum() > 0, name


# -- notebook 03 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["mean", "max", ("mean", "recency:1", "recency:10")])
def test_notebook_towers_agree(data, batch, pooling):
    ours = notebook_definitions("03", "unit", "Tower", "TwoTowers")["TwoTowers"]
    user, item = default_features(data, dim=16, side_dim=4, pooling=pooling)
    theirs = DSSM(user, item, {"dims": [24, 8]}, {"dims": [24, 8]}, temperature=0.2).eval()
    mine = ours(user, item, (24, 8), 0.2)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # so that no part is at its first value
        theirs.item_tower.embedding.tables["item_id"].weight[0] = 0
        for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
            a.copy_(b)
    torch.testing.assert_close(mine(batch), theirs(batch), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mine.user_tower(batch), theirs.user_tower(batch), atol=1e-5, rtol=1e-5)


def test_notebook_layers_agree_with_torch(generator):
    names = notebook_definitions("03", "linear", "prelu", "unit")
    x = torch.randn(5, 6, generator=generator)
    layer, bend = nn.Linear(6, 3), nn.PReLU(init=0.3)
    torch.testing.assert_close(names["linear"](x, layer.weight, layer.bias), layer(x))
    torch.testing.assert_close(names["prelu"](x, bend.weight), bend(x))
    torch.testing.assert_close(names["unit"](x), nn.functional.normalize(x, dim=-1))


def test_lowest_loss_is_the_loss_of_a_perfect_model():
    lowest_loss = notebook_definitions("04", "lowest_loss")["lowest_loss"]
    cosines = torch.full((1, 50), -1.0)
    cosines[0, 0] = 1.0
    for temperature in (1.0, 0.3):
        loss = nn.functional.cross_entropy(cosines / temperature, torch.tensor([0])).item()
        assert lowest_loss(50, temperature) == pytest.approx(loss, rel=1e-5)
