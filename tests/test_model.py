"""Two towers: shapes, unit length, the shared table, refusals, and notebook 03's own towers."""

import math
from contextlib import suppress

import pytest
import torch
from conftest import notebook_definitions
from torch import nn

from dssm_helpers.features import SparseFeature, default_features
from dssm_helpers.model import ACTIVATIONS, DSSM, evaluation_mode, grown
from dssm_helpers.objectives import TrainingConfig
from dssm_helpers.recipes import build_model
from dssm_helpers.training import adamw
from dssm_helpers.vocabulary import UNKNOWN


@pytest.fixture
def model(data):
    torch.manual_seed(0)
    user, item = default_features(data, dim=16, side_dim=4, max_history=10)
    return DSSM(user, item, {"dims": [24, 8]}, {"dims": [24, 8]}, temperature=0.2).eval()


@pytest.fixture
def batch(batches, split):
    return batches(split.train[:7])


def test_score_is_cosine_over_temperature(model, batch):
    users, items = model.user_tower(batch), model.item_tower(batch)
    assert users.shape == items.shape == (7, model.dim) == (7, 8)
    torch.testing.assert_close(torch.cat([users, items]).norm(dim=1), torch.ones(14))
    expected = torch.cosine_similarity(users, items) / 0.2
    torch.testing.assert_close(model(batch), expected)
    model.temperature = 0.1
    torch.testing.assert_close(model(batch), 2 * expected)  # the temperature is used, not only stored
    every = model.logits(users, items)  # [7, 7]
    torch.testing.assert_close(every, users @ items.T / 0.1)
    torch.testing.assert_close(every.diagonal(), model(batch))
    own = items[torch.tensor([[0, 1, 2]]).expand(7, 3)]  # [7, 3, D]
    torch.testing.assert_close(model.logits(users, own), every[:, :3])


def test_a_grown_model_says_of_old_ids_what_it_said_and_of_new_ones_what_it_says_of_unknown(model, data, batch):
    new = {"user_id": [10**6, 10**6 + 1], "item_id": [10**6], "zip": ["zzz"]}
    vocabularies = {name: v.extended(new.get(name, v.values)) for name, v in data.vocabularies.items()}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    larger = grown(model, vocabularies)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])  # the model itself stays as it was
        now = larger.state_dict()[name]
        assert torch.equal(now[: len(value)], value)
        assert len(now) == len(value) or (now[len(value) :] == value[UNKNOWN]).all()
    sizes = {
        f.name: f.vocab_size for f in (*larger.user_tower.embedding.features, *larger.item_tower.embedding.features)
    }
    assert sizes == {**{name: len(v) for name, v in vocabularies.items()}, "history": len(vocabularies["item_id"])}
    assert larger.user_tower.embedding.tables["history"] is larger.item_tower.embedding.tables["item_id"]
    assert torch.equal(larger(batch), model(batch))
    asked, unknown = dict(batch), dict(batch)
    for name in new:
        asked[name] = torch.full_like(batch[name], len(vocabularies[name]) - 1)
        unknown[name] = torch.full_like(batch[name], UNKNOWN)
    asked["history"] = batch["history"].masked_fill(batch["history"] > 0, len(vocabularies["item_id"]) - 1)
    unknown["history"] = batch["history"].clamp(max=UNKNOWN)
    assert torch.equal(larger(asked), model(unknown))
    larger(asked).sum().backward()
    assert larger.item_tower.embedding.tables["item_id"].weight.grad[-1].abs().sum() > 0  # and learns


def test_evaluation_mode_is_over_when_its_block_is(model):
    model.train()
    model.item_tower.eval()  # a mixture of modes comes back as it was
    with suppress(KeyError), evaluation_mode(model):
        assert not model.user_tower.embedding.dropout.training
        assert not torch.is_grad_enabled()
        raise KeyError
    assert model.user_tower.training
    assert not model.item_tower.training
    assert torch.is_grad_enabled()


def test_cosines_can_be_negative(model, data, batches, split):
    model.user_tower.mlp[-1].bias.data.fill_(-1.0)
    model.item_tower.mlp[-1].bias.data.fill_(1.0)
    cosines = model.user_tower(batches.users(split.train)) @ model.item_tower(batches.all_items()).T
    assert cosines.min() < 0


def test_widths_left_out_are_those_of_the_course(data):
    given, left_out = build_model(data), DSSM(*default_features(data))
    assert str(left_out.user_tower.mlp) == str(given.user_tower.mlp)


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
    model.item_tower.embedding.tables["item_id"].weight.data[movie] += 5.0
    changed = (model.user_tower(users) - before).abs().amax(dim=1) > 1e-6
    assert changed[0]
    assert torch.equal(changed, (users["history"] == movie).any(dim=1))


def test_padding_rows_stay_zero_in_a_step_with_weight_decay(model, batches, data):
    positions = data.offsets[2:12]  # each user's first rating: the history is nothing but padding
    missing = {"year": torch.zeros(10, dtype=torch.int64), "zip": torch.zeros(10, dtype=torch.int64)}
    model({**batches(positions), **missing}).sum().backward()
    adamw(model, TrainingConfig()).step()
    for table in [*model.user_tower.embedding.tables.values(), *model.item_tower.embedding.tables.values()]:
        assert not table.weight[0].any()


@pytest.mark.parametrize("length", [0, 1, 10, 25])
def test_any_history_length(model, batch, length):
    longer = {**batch, "history": batch["history"].repeat(1, 3)[:, :length]}
    vectors = model.user_tower(longer)
    assert torch.isfinite(vectors).all()
    cut = {**batch, "history": longer["history"][:, :10]}  # the declared maximum
    assert torch.equal(vectors, model.user_tower(cut))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_towers_may_differ_train_every_layer_and_drop_in_training_only(data, batch, activation):
    user, item = default_features(data, dim=8, side_dim=4)
    model = DSSM(user, item, {"dims": [32, 16, 6], "dropout": 0.5}, {"dims": [9, 6], "activation": activation})
    model(batch).sum().backward()
    assert all(parameter.grad.any() for name, parameter in model.named_parameters() if "mlp" in name)
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
    loss = nn.functional.cross_entropy(cosines / 0.3, torch.tensor([0])).item()
    assert lowest_loss(50, 0.3) == pytest.approx(loss, rel=1e-5)
