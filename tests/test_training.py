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
from torch._inductor import config as inductor

from dssm_helpers.data import split_by_time
from dssm_helpers.evaluation import Popularity, chance_level, evaluate, metrics, rank_targets
from dssm_helpers.fast import RowwiseAdamW
from dssm_helpers.features import BatchBuilder
from dssm_helpers.movielens import synthetic
from dssm_helpers.objectives import OBJECTIVES, TrainingConfig, loss_at_chance
from dssm_helpers.recipes import RECIPES, build_model
from dssm_helpers.training import Diverged, Trainer, learning_rate, load_weights, resolve_device, save_weights

SMALL = replace(RECIPES["dssm"], dim=16, dims=(32, 16), max_history=10, dropout=0.1)
QUICK = TrainingConfig(epochs=3, batch_size=64, learning_rate=5e-3)


@pytest.fixture
def untrained(data, batches):
    """A trainer of a small model; what differs from the quick configuration is given by name."""

    def make(seed=0, recipe=SMALL, **changes):
        return Trainer(build_model(data, recipe, seed), batches, replace(QUICK, **changes))

    return make


@pytest.fixture
def validate(batches, split):
    return lambda model: evaluate(model, batches, split.validation)


@pytest.fixture
def trained(untrained, split, validate):
    def make(validate=validate, checkpoint=None, on_epoch=None, **changes):
        trainer = untrained(**changes)
        trainer.fit(split.train, validate, progress=False, checkpoint=checkpoint, on_epoch=on_epoch)
        return trainer

    return make


@pytest.fixture
def path(tmp_path):
    return tmp_path / "some.safetensors"


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def tables(trainer):
    """Every embedding table by the name of its feature."""
    return {**trainer.model.user_tower.embedding.tables, **trainer.model.item_tower.embedding.tables}


def alike(first, second):
    columns = first.history.drop(columns="seconds")
    return torch.equal(weights(first), weights(second)) and columns.equals(second.history.drop(columns="seconds"))


def stop_after_two(trainer):
    """Interrupts a training, as a person would."""
    if len(trainer.history) == 2:
        raise KeyboardInterrupt


@pytest.mark.parametrize(("objective", "logq"), [("in_batch", 0.0), ("in_batch", 0.5), *((o, 1.0) for o in OBJECTIVES)])
def test_untrained_model_starts_at_the_loss_of_chance(untrained, data, split, objective, logq):
    masks = {"mask_seen": False, "mask_accidental_hits": False} if objective == "in_batch" else {}
    trainer = untrained(objective=objective, logq=logq, epochs=5, learning_rate=1e-20, weight_decay=0.0, **masks)
    if objective == "point_wise":  # the only one for which the scores have to be 0 and not merely alike
        nn.init.zeros_(trainer.model.user_tower.mlp[-1].weight)
        nn.init.zeros_(trainer.model.user_tower.mlp[-1].bias)
    loss = trainer.fit(split.train, progress=False)["loss"].mean()
    # The sum over a batch of 1/q scatters, and the logarithm of a mean is above the mean of logarithms.
    tolerance = 0.12 if objective == "in_batch" and logq else 0.03
    assert loss == pytest.approx(loss_at_chance(trainer.config, data.item_counts(split.train)), abs=tolerance)


@pytest.fixture(scope="module")
def planted():
    """Generated tastes with enough rows to be found."""
    data = encoded(synthetic(n_ratings=12_000, n_users=400, n_movies=400, seed=2))
    return data, split_by_time(data), BatchBuilder(data, max_history=20)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_learns_planted_tastes(planted, objective):
    data, split, batches = planted
    drawn = {} if objective == "in_batch" else {"n_negatives": 16}
    config = TrainingConfig(objective, epochs=8, batch_size=256, learning_rate=1e-2, **drawn)
    trainer = Trainer(build_model(data, replace(SMALL, max_history=20)), batches, config)
    history = trainer.fit(split.train, lambda m: evaluate(m, batches, split.validation), progress=False)
    popular = metrics(rank_targets(Popularity(data, split.train), data, split.validation))
    know_nothing = loss_at_chance(config, data.item_counts(split.train))
    if objective == "point_wise":  # knowing that 1 in 17 is a positive is enough for less than ln 2
        know_nothing = -(math.log(1 / 17) + 16 * math.log(16 / 17)) / 17
    assert history["loss"].iloc[-1] < 0.9 * know_nothing
    assert history["loss"].is_monotonic_decreasing
    assert history["hit@10"].max() > 3 * popular["hit@10"] > 3 * chance_level(data.n_items - 2)["hit@10"]


def test_same_seed_same_numbers_other_seed_others(trained, untrained, split):
    first = trained()
    assert alike(first, trained())
    assert not alike(first, trained(seed=1))
    other = untrained()
    other.config = replace(other.config, seed=1)  # of the order, not of the weights
    assert other.fit(split.train, progress=False)["loss"].tolist() != first.history["loss"].tolist()


def test_dropout_is_drawn_anew_in_every_epoch(trained):
    seeds = []
    trained(on_epoch=lambda trainer: seeds.append(torch.initial_seed()))
    assert len(set(seeds)) == 3


@pytest.mark.parametrize(("objective", "large"), [("in_batch", 50_000), ("list_wise", 50_000), ("in_batch", 0)])
def test_resumed_equals_uninterrupted_bit_for_bit(trained, path, monkeypatch, objective, large):
    monkeypatch.setattr("dssm_helpers.features.LARGE_TABLE", large)  # 0: users are updated row by row
    whole = trained(objective=objective, epochs=4)
    assert whole.history["epoch"].tolist() == [1, 2, 3, 4]
    assert (tables(whole)["user_id"].weight.grad is None) == (large == 0)  # the optimizer took it
    with pytest.raises(KeyboardInterrupt):
        trained(objective=objective, epochs=4, checkpoint=path, on_epoch=stop_after_two)
    more = []
    for _ in range(2):  # the second time there is nothing left to train
        assert alike(whole, trained(seed=5, objective=objective, epochs=4, checkpoint=path, on_epoch=more.append))
    assert len(more) == 2


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("objective", ["in_batch", "list_wise"])
@inductor.patch(compile_threads=1)  # here, and not in a pool of processes
def test_compiled_towers_train_alike_and_leave_the_model_as_it_is(untrained, split, validate, objective):
    compiled, losses, names = [], [], []

    def counting(graph, inputs):
        compiled.append(graph)
        return graph.forward

    for backend in (None, "inductor", counting):
        trainer = untrained(recipe=replace(SMALL, dropout=0.0), objective=objective)
        for tower in (trainer.model.user_tower, trainer.model.item_tower) if backend else ():
            tower.compile(backend=backend)
        losses.append(trainer.fit(split.train, validate, progress=False)["loss"].tolist())
        names.append(list(trainer.model.state_dict()))
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert names[0] == names[1]
    if objective == "in_batch":  # drawn negatives come in different numbers, and the item tower is compiled for some
        assert len(compiled) == 2, "each tower once, and nothing for evaluation"


def optimized(sparse, batches_of_rows):
    """A table after a few steps of the optimizer, each on the rows of one batch."""
    torch.manual_seed(0)
    table = nn.Embedding(6, 3, sparse=sparse)
    optimizer = RowwiseAdamW(table.parameters(), lr=0.1, weight_decay=0.1)
    for rows in batches_of_rows:
        optimizer.zero_grad()
        table(torch.tensor(rows)).square().sum().backward()
        optimizer.step()
    return table.weight.detach()


def test_row_by_row_is_adamw_on_the_rows_that_come_and_the_others_stay():
    everything = [[0, 1, 2, 3, 4, 5, 5], [5, 4, 3, 2, 1, 0, 0], [0, 1, 2, 3, 4, 5]]  # a row may come twice
    torch.testing.assert_close(optimized(True, everything), optimized(False, everything))
    start, sparse, dense = optimized(True, []), optimized(True, [[1, 2], [2, 3]]), optimized(False, [[1, 2], [2, 3]])
    untouched = [0, 4, 5]
    assert torch.equal(sparse[untouched], start[untouched])
    assert not torch.equal(dense[untouched], start[untouched])  # weight decay moves every row
    assert (sparse[1:4].abs() < start[1:4].abs()).all()  # towards the minimum at 0


def test_patience_stops_and_the_best_weights_are_kept(trained, validate):
    trainer = trained(epochs=40, patience=2, learning_rate=3e-2)
    scores = trainer.history["hit@10"].tolist()
    assert len(scores) < 40
    assert len(scores) - 1 - int(np.argmax(scores)) == 2
    assert validate(trainer.model)["hit@10"] == max(scores)
    assert not trainer.model.training


@pytest.mark.parametrize(("by", "best"), [("b", 0), ("a", 2), (None, 2)])
def test_the_weights_of_the_best_epoch_by_the_stated_metric_are_kept(trained, by, best):
    scores = iter([{"a": 1.0, "b": 3.0}, {"a": 2.0, "b": 3.0}, {"a": 3.0, "b": 1.0}])
    kept = []
    validate = (lambda _: next(scores)) if by else None  # without validation the last stay
    trainer = trained(validate=validate, select_by=by or "hit@10", on_epoch=lambda t: kept.append(weights(t)))
    assert torch.equal(weights(trainer), kept[best])


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_the_unknown_row_learns_only_from_dropped_ids(trained, untrained, share):  # B14
    before, after = tables(untrained()), tables(trained(id_dropout=share, weight_decay=0.0))
    for name in ("user_id", "item_id"):
        assert torch.equal(before[name].weight[1], after[name].weight[1]) == (share == 0.0)


def test_a_run_follows_one_cycle(trained, split):
    rates = [learning_rate(QUICK, place) / QUICK.learning_rate for place in (0.0, 0.15, 0.3, 0.65, 0.999)]
    assert rates == pytest.approx([0.04, 0.52, 1.0, 0.5, 0.0], abs=1e-4)
    history, steps = trained().history, len(split.train) // QUICK.batch_size
    last = [learning_rate(QUICK, (epoch * steps - 1) / (3 * steps)) for epoch in history["epoch"]]
    assert history["learning_rate"].tolist() == pytest.approx(last)


def test_divergence_is_reported_with_advice(untrained, split):
    trainer = untrained()
    trainer.model.item_tower.mlp[0].weight.data[0, 0] = torch.nan
    with pytest.raises(Diverged, match=r"nan in epoch 1; lower the learning rate"):
        trainer.fit(split.train, progress=False)


def test_a_fit_that_cannot_do_as_told_is_refused(trained, untrained, split):
    for objective, enough in (("in_batch", 2), ("point_wise", 1)):
        with pytest.raises(ValueError, match=r"no training rows|a batch of one"):
            untrained(objective=objective).fit(split.train[: enough - 1], progress=False)
        untrained(objective=objective).fit(split.train[:enough], progress=False)
    with pytest.raises(ValueError, match="patience"):
        trained(validate=None, patience=1)
    with pytest.raises(ValueError, match=r"hit@10.* a"):
        trained(validate=lambda _: {"a": 1.0})
    with pytest.raises(ValueError, match="trained already"):
        trained().fit(split.train, progress=False)


@pytest.mark.parametrize(("cuda", "mps", "best"), [(False, False, "cpu"), (False, True, "mps"), (True, True, "cuda")])
def test_auto_takes_the_best_device_there_is(monkeypatch, cuda, mps, best):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert [resolve_device(name).type for name in ("auto", "cpu")] == [best, "cpu"]


def test_weights_survive_saving_and_loading(trained, untrained, batches, split, path):
    model = trained().model
    save_weights(model, path)
    other = untrained(seed=9)
    loaded, batch = load_weights(other.model, path), batches(split.validation)
    assert torch.equal(loaded(batch), model(batch))
    assert not loaded.training
    assert tables(other)["history"] is tables(other)["item_id"]
    assert sum(t.shape == tables(other)["item_id"].weight.shape for t in load_file(path).values()) == 1


def test_missing_damaged_and_foreign_weights(untrained, path):
    with pytest.raises(FileNotFoundError, match=r"some\.safetensors"):
        load_weights(untrained().model, path)
    save_weights(untrained().model, path)
    for other in (replace(SMALL, dims=(32, 8)), replace(SMALL, pooling="mean")):
        with pytest.raises(ValueError, match="other features or widths"):
            load_weights(untrained(recipe=other).model, path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match="damaged"):
        load_weights(untrained().model, path)


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("epochs, learning_rate", {"epochs": 5, "learning_rate": 1e-3}),
        ("validation", {"validate": None}),  # B7
        ("model", {"recipe": RECIPES["dssm"]}),
    ],
)
def test_a_checkpoint_is_continued_only_as_it_was_begun(trained, path, what, change):
    trained(checkpoint=path)
    with pytest.raises(ValueError, match=f"another {what}; delete it"):
        trained(checkpoint=path, **change)


def test_a_damaged_checkpoint_gives_a_clear_error(trained, untrained, split, validate, path):
    trained(checkpoint=path)
    cut = path.read_bytes()[:-100]
    save_weights(untrained().model, path)
    trainer = untrained()
    before = weights(trainer)
    for content in (path.read_bytes(), cut, b"not a checkpoint at all"):  # the first: a good file of another kind
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"damaged .* delete it"):
            trainer.fit(split.train, validate, progress=False, checkpoint=path)
    assert torch.equal(weights(trainer), before)


def test_an_interrupted_write_leaves_the_old_checkpoint(trained, path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        trained(checkpoint=path, on_epoch=stop_after_two)
    before = path.read_bytes()

    def full_disk(tensors, target, metadata):
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dssm_helpers.training.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        trained(checkpoint=path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
