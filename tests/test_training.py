"""The trainer's promises and its files."""

import math
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import encoded
from safetensors.torch import load_file
from torch import nn

from dssm_helpers.data import split_by_time
from dssm_helpers.evaluation import Popularity, chance_level, evaluate, metrics, rank_targets
from dssm_helpers.fast import RowwiseAdamW
from dssm_helpers.features import BatchBuilder, NegativeSampler
from dssm_helpers.movielens import synthetic
from dssm_helpers.objectives import OBJECTIVES, TrainingConfig, log_shares, loss_at_chance
from dssm_helpers.recipes import RECIPES, build_model
from dssm_helpers.training import (
    Diverged,
    Trainer,
    learning_rate_schedule,
    load_weights,
    resolve_device,
    save_weights,
)

QUICK = TrainingConfig(epochs=3, batch_size=64, learning_rate=5e-3)


@pytest.fixture
def recipe():
    return replace(RECIPES["dssm"], dim=16, dims=(32, 16), max_history=10, temperature=0.1, dropout=0.1)


@pytest.fixture
def new_trainer(data, batches, recipe):
    """A trainer of a small model; what differs from the quick configuration is given by name."""

    def make(seed=0, model_recipe=recipe, **changes):
        config = replace(QUICK, **changes)
        return Trainer(build_model(data, model_recipe, seed), batches, config)

    return make


@pytest.fixture
def validate(batches, split):
    return lambda model: evaluate(model, batches, split.validation)


@pytest.fixture
def fit(new_trainer, split, validate):
    def run(seed=0, validate=validate, checkpoint=None, on_epoch=None, **changes):
        trainer = new_trainer(seed, **changes)
        trainer.fit(split.train, validate, progress=False, checkpoint=checkpoint, on_epoch=on_epoch)
        return trainer

    return run


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def stop_after(epochs):
    """What interrupts a training after so many epochs, as a person would."""

    def interrupt(trainer):
        if len(trainer.history) == epochs:
            raise KeyboardInterrupt

    return interrupt


# -- the loss of a model -----------------------------------------------------------------------------------------------


def mean_loss(trainer, data, split):
    """The trainer's own loss over five passes, without a step."""
    counts = data.item_counts(split.train)
    sampler = None if trainer.config.objective == "in_batch" else NegativeSampler("uniform", counts)
    log_q = log_shares(counts)
    generator = torch.Generator().manual_seed(0)
    trainer.model.eval()
    with torch.no_grad():
        parts = [p for _ in range(5) for p in trainer.batches.epoch(split.train, QUICK.batch_size, generator)]
        return np.mean([trainer._loss(p, log_q, sampler, generator).item() for p in parts])


@pytest.mark.parametrize(("objective", "logq"), [("in_batch", 0.0), ("in_batch", 0.5), *((o, 1.0) for o in OBJECTIVES)])
def test_untrained_model_starts_at_the_loss_of_chance(new_trainer, data, split, objective, logq):
    masks = {"mask_seen": False, "mask_accidental_hits": False} if objective == "in_batch" else {}
    trainer = new_trainer(objective=objective, logq=logq, **masks)
    if objective == "point_wise":  # the only one for which the scores have to be 0 and not merely alike
        nn.init.zeros_(trainer.model.user_tower.mlp[-1].weight)
        nn.init.zeros_(trainer.model.user_tower.mlp[-1].bias)
    expected = loss_at_chance(trainer.config, data.item_counts(split.train))
    # The sum over a batch of 1/q scatters, and the logarithm of a mean is above the mean of logarithms.
    tolerance = 0.12 if objective == "in_batch" and logq else 0.03
    assert mean_loss(trainer, data, split) == pytest.approx(expected, abs=tolerance)


# -- the trainer ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planted():
    """Generated tastes with enough rows to be found."""
    data = encoded(synthetic(n_ratings=12_000, n_users=400, n_movies=400, seed=2))
    return data, split_by_time(data), BatchBuilder(data, max_history=20)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_learns_planted_tastes(planted, recipe, objective):
    data, split, batches = planted
    drawn = {} if objective == "in_batch" else {"n_negatives": 16}
    config = TrainingConfig(objective, epochs=8, batch_size=256, learning_rate=1e-2, **drawn)
    trainer = Trainer(build_model(data, replace(recipe, max_history=20), 0), batches, config)
    history = trainer.fit(split.train, lambda m: evaluate(m, batches, split.validation), progress=False)
    popular = metrics(rank_targets(Popularity(data, split.train), data, split.validation))
    know_nothing = loss_at_chance(config, data.item_counts(split.train))
    if objective == "point_wise":  # knowing that 1 in 17 is a positive is enough for less than ln 2
        know_nothing = -(math.log(1 / 17) + 16 * math.log(16 / 17)) / 17
    assert history["loss"].iloc[-1] < 0.9 * know_nothing
    assert history["loss"].is_monotonic_decreasing
    assert history["hit@10"].max() > 3 * popular["hit@10"]
    assert history["hit@10"].max() > 5 * chance_level(data.n_items - 2)["hit@10"]


def test_same_seed_same_numbers_other_seed_others(fit):
    first, again, other = fit(), fit(), fit(seed=1)
    assert torch.equal(weights(first), weights(again))
    assert first.history.drop(columns="seconds").equals(again.history.drop(columns="seconds"))
    assert not torch.equal(weights(first), weights(other))


def test_the_configurations_seed_decides_the_order(new_trainer, split):
    losses = []
    for seed in (0, 0, 1):
        trainer = new_trainer()
        trainer.config = replace(trainer.config, seed=seed)
        losses.append(trainer.fit(split.train, progress=False)["loss"].tolist())
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize(("objective", "large"), [("in_batch", 50_000), ("list_wise", 50_000), ("in_batch", 0)])
def test_resumed_equals_uninterrupted_bit_for_bit(fit, tmp_path, monkeypatch, objective, large):
    monkeypatch.setattr("dssm_helpers.features.LARGE_TABLE", large)  # 0: users are updated row by row
    whole, path = fit(objective=objective, epochs=4), tmp_path / "checkpoint.safetensors"
    users = whole.model.user_tower.embedding.tables["user_id"].weight
    assert (users.grad is None) == (large == 0)  # the optimizer took it
    with pytest.raises(KeyboardInterrupt):
        fit(objective=objective, epochs=4, checkpoint=path, on_epoch=stop_after(2))
    resumed = fit(seed=5, objective=objective, epochs=4, checkpoint=path)  # a fresh model with other weights
    assert torch.equal(weights(whole), weights(resumed))
    assert whole.history.drop(columns="seconds").equals(resumed.history.drop(columns="seconds"))


# -- compiled towers --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("objective", ["in_batch", "list_wise"])
def test_compiled_towers_train_alike_and_leave_the_model_as_it_is(data, batches, split, validate, recipe, objective):
    config, compiled = replace(QUICK, objective=objective), []

    def counting(graph, inputs):
        compiled.append(graph)
        return graph.forward

    losses, names = [], []
    for backend in (None, "inductor", counting):
        model = build_model(data, replace(recipe, dropout=0.0), 0)
        for tower in (model.user_tower, model.item_tower) if backend else ():
            tower.compile(backend=backend)
        losses.append(Trainer(model, batches, config).fit(split.train, validate, progress=False)["loss"].tolist())
        names.append(list(model.state_dict()))
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert names[0] == names[1]
    if objective == "in_batch":  # drawn negatives come in different numbers, and the item tower is compiled for some
        assert len(compiled) == 2, "each tower once, and nothing for evaluation"


# -- tables updated row by row ------------------------------------------------------------------------------------


def optimized(sparse, batches_of_rows, weight_decay=0.1):
    """A table after a few steps of the optimizer, each on the rows of one batch."""
    torch.manual_seed(0)
    table = torch.nn.Embedding(6, 3, sparse=sparse)
    optimizer = RowwiseAdamW(table.parameters(), lr=0.1, weight_decay=weight_decay)
    for rows in batches_of_rows:
        optimizer.zero_grad()
        table(torch.tensor(rows)).square().sum().backward()
        optimizer.step()
    return table.weight.detach()


def test_a_table_whose_rows_all_come_is_updated_as_by_adamw():
    everything = [[0, 1, 2, 3, 4, 5, 5], [5, 4, 3, 2, 1, 0, 0], [0, 1, 2, 3, 4, 5]]  # a row may come twice
    torch.testing.assert_close(optimized(True, everything), optimized(False, everything))


def test_rows_that_did_not_come_stay_as_they_are():
    start, sparse, dense = optimized(True, []), optimized(True, [[1, 2], [2, 3]]), optimized(False, [[1, 2], [2, 3]])
    untouched = [0, 4, 5]
    assert torch.equal(sparse[untouched], start[untouched])
    assert not torch.equal(dense[untouched], start[untouched])  # weight decay moves every row
    assert (sparse[1:4] != start[1:4]).all()


def test_a_finished_checkpoint_is_not_trained_further(fit, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    first = fit(checkpoint=path)
    calls = []
    again = fit(seed=1, checkpoint=path, on_epoch=calls.append)
    assert not calls
    assert torch.equal(weights(first), weights(again))


def test_patience_stops_and_the_best_weights_are_kept(fit, data, batches, split):
    trainer = fit(epochs=40, patience=2, learning_rate=3e-2, schedule="constant")
    scores = trainer.history["hit@10"].tolist()
    assert len(scores) < 40
    assert len(scores) - 1 - int(np.argmax(scores)) == 2
    assert evaluate(trainer.model, batches, split.validation)["hit@10"] == max(scores)
    assert not trainer.model.training


def test_the_best_epoch_is_chosen_by_the_stated_metric(new_trainer, split):
    scores = iter([{"a": 1.0, "b": 3.0}, {"a": 2.0, "b": 2.0}, {"a": 3.0, "b": 1.0}])
    kept = []
    trainer = new_trainer(select_by="b")
    trainer.fit(split.train, lambda _: next(scores), progress=False, on_epoch=lambda t: kept.append(weights(t)))
    assert torch.equal(weights(trainer), kept[0])
    with pytest.raises(ValueError, match="select_by is 'hit@10', but validate gives a"):
        new_trainer().fit(split.train, lambda _: {"a": 1.0}, progress=False)


def test_without_validation_all_epochs_run_and_the_last_weights_stay(fit):
    kept = []
    trainer = fit(validate=None, on_epoch=lambda t: kept.append(weights(t)))
    assert "hit@10" not in trainer.history
    assert torch.equal(weights(trainer), kept[-1])
    with pytest.raises(ValueError, match="patience counts epochs without a better validation"):
        fit(validate=None, patience=1)


def test_a_trainer_trains_once(fit, split):
    trainer = fit()
    with pytest.raises(ValueError, match="has trained already; make a new one"):
        trainer.fit(split.train, progress=False)


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_the_unknown_row_learns_only_from_dropped_ids(fit, data, recipe, share):
    model, fresh = fit(id_dropout=share, weight_decay=0.0).model, build_model(data, recipe, 0)
    for tower, name in (("user_tower", "user_id"), ("item_tower", "item_id")):
        before, after = (getattr(m, tower).embedding.tables[name].weight[1] for m in (fresh, model))
        assert torch.equal(before, after) == (share == 0.0)


@pytest.mark.parametrize("schedule", ["one_cycle", "constant"])
def test_schedules(new_trainer, schedule):
    trainer = new_trainer(schedule=schedule)
    steps = learning_rate_schedule(trainer.optimizer, trainer.config, 1000)
    rates = []
    for _ in range(1000):
        rates.append(trainer.optimizer.param_groups[0]["lr"] / trainer.config.learning_rate)
        trainer.optimizer.step()
        steps.step()
    expected = [0.04, 0.52, 1.0, 0.5, 0.0] if schedule == "one_cycle" else [1.0] * 5
    assert [rates[i] for i in (0, 150, 300, 650, 999)] == pytest.approx(expected, abs=1e-4)


def test_divergence_is_reported_with_advice(new_trainer, split):
    trainer = new_trainer()
    with torch.no_grad():
        trainer.model.item_tower.mlp[0].weight[0, 0] = torch.nan
    with pytest.raises(Diverged, match=r"the loss is nan in epoch 1; lower the learning rate \(now 0.005\) or raise"):
        trainer.fit(split.train, progress=False)


@pytest.mark.parametrize(("objective", "enough"), [("in_batch", 2), ("point_wise", 1)])
def test_too_few_rows_are_refused(new_trainer, split, objective, enough):
    for n_rows in range(enough):
        with pytest.raises(ValueError, match="no training rows" if n_rows == 0 else "a batch of one has no in-batch"):
            new_trainer(objective=objective).fit(split.train[:n_rows], progress=False)
    history = new_trainer(objective=objective).fit(split.train[:enough], progress=False)
    assert np.isfinite(history["loss"]).all()


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(False, False, "cpu"), (False, True, "mps"), (True, False, "cuda"), (True, True, "cuda")],
)
def test_auto_takes_the_best_device_there_is(monkeypatch, cuda, mps, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert resolve_device("auto").type == expected
    assert resolve_device("cpu").type == "cpu"


def test_model_and_batches_on_two_devices_are_refused(data, recipe, batches):
    model = build_model(data, recipe).to("meta")
    with pytest.raises(ValueError, match="the model is on meta, the batches on cpu"):
        Trainer(model, batches)


# -- files ------------------------------------------------------------------------------------------------------------


def test_weights_survive_saving_and_loading(fit, data, batches, split, recipe, tmp_path):
    model = fit().model
    save_weights(model, tmp_path / "model.safetensors")
    loaded = load_weights(build_model(data, recipe, seed=9), tmp_path / "model.safetensors")
    batch = batches(split.validation)
    assert torch.equal(loaded(batch), model(batch))
    assert not loaded.training
    assert sum(t.shape == (data.n_items, recipe.dim) for t in load_file(tmp_path / "model.safetensors").values()) == 1
    table = loaded.item_tower.embedding.tables["item_id"]
    assert loaded.user_tower.embedding.tables["history"] is table


def test_another_shape_is_refused(data, recipe, tmp_path):
    save_weights(build_model(data, recipe), tmp_path / "model.safetensors")
    for other in (replace(recipe, dims=(32, 8)), replace(recipe, pooling="mean")):
        with pytest.raises(ValueError, match="does not fit this model"):
            load_weights(build_model(data, other), tmp_path / "model.safetensors")


def test_missing_and_damaged_weights(new_trainer, tmp_path):
    model, path = new_trainer().model, tmp_path / "model.safetensors"
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        load_weights(model, path)
    save_weights(model, path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match="damaged"):
        load_weights(model, path)


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("epochs, learning_rate", {"epochs": 5, "learning_rate": 1e-3}),
        ("validation", {"validate": None}),
        ("model", {"model_recipe": RECIPES["dssm"]}),
    ],
)
def test_a_checkpoint_is_continued_only_as_it_was_begun(fit, tmp_path, what, change):
    fit(checkpoint=tmp_path / "checkpoint.safetensors")
    with pytest.raises(ValueError, match=f"made with another {what}; delete it"):
        fit(checkpoint=tmp_path / "checkpoint.safetensors", **change)


@pytest.mark.parametrize("kind", ["cut", "text", "weights"])
def test_a_damaged_checkpoint_gives_a_clear_error(fit, new_trainer, split, validate, tmp_path, kind):
    path = tmp_path / "checkpoint.safetensors"
    fit(checkpoint=path)
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "weights":  # a good file of another kind
        save_weights(new_trainer().model, path)
    else:
        path.write_text("not a checkpoint at all")
    trainer = new_trainer()
    before = weights(trainer)
    with pytest.raises(ValueError, match=r"damaged or no checkpoint of a Trainer .* delete it"):
        trainer.fit(split.train, validate, progress=False, checkpoint=path)
    assert torch.equal(weights(trainer), before)


def test_an_interrupted_write_leaves_the_old_checkpoint(fit, tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(KeyboardInterrupt):
        fit(checkpoint=path, on_epoch=stop_after(1))
    before = path.read_bytes()

    def full_disk(tensors, target, metadata):
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dssm_helpers.training.save_file", full_disk)
    with pytest.raises(OSError, match="No space left on device"):
        fit(checkpoint=path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
