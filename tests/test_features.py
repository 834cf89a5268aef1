"""Poolings, batches and samplers against the slow and obvious way."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import notebook_definitions
from scipy.stats import chisquare

from dssm_helpers.features import DEFAULT_POOLING, POOLINGS, SAMPLERS, NegativeSampler, Pooling, default_features

KINDS = ("mean", "sum", "max", "recency", "recency:1", "recency:10")


def pool_by_loop(pooling: str, embedded: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """One example, one place, one dimension at a time."""
    kind, _, half_life = pooling.partition(":")
    rows = []
    for vectors, length in zip(embedded, lengths, strict=True):
        present = vectors[:length]
        if not length:
            rows.append(torch.zeros(embedded.shape[2]))
        elif kind == "max":
            rows.append(torch.stack([max(present[:, d], key=float) for d in range(embedded.shape[2])]))
        elif kind == "recency":
            weights = [0.5 ** (place / float(half_life or 3)) for place in range(length)]
            rows.append(sum(w * v for w, v in zip(weights, present, strict=True)) / sum(weights))
        else:
            rows.append(sum(present) / (length if kind == "mean" else 1))
    return torch.stack(rows)


def test_unknown_poolings_and_samplers_list_the_valid_ones():
    for pooling in ("median", "mean:3", "recency:0", "recency:-1", "recency:x", "recency:nan", ""):
        with pytest.raises(ValueError, match=r"choose from mean, sum, max, recency"):
            Pooling(pooling)
    with pytest.raises(ValueError, match=r"choose from uniform, count\^0\.75, log_count, log_uniform"):
        NegativeSampler("popular", COUNTS)


def test_default_features_fit_the_data(data, monkeypatch):
    user, item = default_features(data, dim=32, side_dim=4)
    sizes = {f.name: f.vocab_size for f in user + item}
    assert sizes["history"] == sizes["item_id"] == data.n_items
    assert {n: s for n, s in sizes.items() if n != "history"} == {n: len(v) for n, v in data.vocabularies.items()}
    history = next(f for f in user if f.name == "history")
    assert (history.shared_with, history.poolings, history.embed_dim) == ("item_id", DEFAULT_POOLING, 32)
    assert not user[0].rows_only
    monkeypatch.setattr("dssm_helpers.features.LARGE_TABLE", len(data.vocabularies["user_id"]) - 1)
    assert default_features(data)[0][0].rows_only


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("places", [1, 2, 7])
def test_pooling_equals_a_loop(kind, places, generator):
    lengths = [places, 0, min(places, 1), max(places - 1, 0)]
    embedded = torch.randn(4, places, 5, generator=generator)
    mask = torch.arange(places) < torch.tensor(lengths).unsqueeze(1)
    embedded[~mask] = 1e3  # what stands in a padded place must not matter
    embedded.requires_grad_()
    pooled = Pooling(kind, max_length=7)(embedded, mask)
    torch.testing.assert_close(pooled, pool_by_loop(kind, embedded.detach(), lengths), atol=1e-5, rtol=1e-5)
    pooled.square().sum().backward()
    assert embedded.grad.isfinite().all()
    assert not embedded.grad[~mask].any()
    assert embedded.grad[mask].any(dim=1).all() or kind == "max"


@pytest.mark.parametrize("half_life", [1.0, 3.0, 10.0])
def test_recency_starts_at_its_half_life_and_can_learn(half_life):
    pooling = Pooling(f"recency:{half_life:g}", max_length=30)
    (weights,) = pooling.recency_weights().values()
    assert weights.sum().item() == pytest.approx(1)
    assert (weights[int(half_life)] / weights[0]).item() == pytest.approx(0.5, rel=1e-4)
    embedded, mask = torch.eye(30)[None], torch.ones(1, 30, dtype=torch.bool)
    pooled = pooling(embedded, mask)
    pooled[0, 5].backward()
    gradient = pooling.heads[0].logits.grad
    assert gradient[5] > 0 > gradient[0]
    with torch.no_grad():
        pooling.heads[0].logits.add_(50.0)  # exp(10 × 50) does not fit a float; only differences between places count
    torch.testing.assert_close(pooling(embedded, mask), pooled, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kinds", [("recency:1", "mean", "recency:10", "sum"), ("mean", "max", "recency:2")])
def test_several_poolings_are_each_alone_side_by_side(kinds, generator):
    embedded = torch.randn(3, 7, 5, generator=generator)
    mask = torch.arange(7) < torch.tensor([7, 0, 3]).unsqueeze(1)
    pooling = Pooling(kinds, max_length=9)
    assert list(pooling.recency_weights()) == [kind for kind in kinds if kind.startswith("recency")]
    apart = [Pooling(kind, max_length=9)(embedded, mask) for kind in kinds]
    torch.testing.assert_close(pooling(embedded, mask), torch.cat(apart, dim=1))


def test_a_new_kind_of_pooling_is_one_class_and_one_entry(monkeypatch, generator):
    class Attention(torch.nn.Module):
        def __init__(self, dim, max_length):
            super().__init__()
            self.query = torch.nn.Parameter(torch.ones(dim))

        def forward(self, embedded, mask):
            return (embedded @ self.query).masked_fill(~mask, -1e9).softmax(dim=1) * mask

    monkeypatch.setitem(POOLINGS, "attention", Attention)
    embedded, mask = torch.randn(2, 4, 3, generator=generator), torch.ones(2, 4, dtype=torch.bool)
    pooled = Pooling(("attention", "mean"), dim=3)(embedded, mask)
    weight = embedded.sum(dim=2).softmax(dim=1)  # [2, 4]
    torch.testing.assert_close(pooled[:, :3], (weight.unsqueeze(2) * embedded).sum(dim=1))


def test_the_notebook_pools_alike(generator):
    notebook = notebook_definitions("02", "masked_mean", "recency_mean")
    embedded = torch.randn(5, 6, 3, generator=generator)
    mask = torch.arange(6) < torch.tensor([6, 3, 1, 0, 2]).unsqueeze(1)
    torch.testing.assert_close(notebook["masked_mean"](embedded, mask), Pooling("mean")(embedded, mask))
    torch.testing.assert_close(notebook["recency_mean"](embedded, mask, 3), Pooling("recency:3")(embedded, mask))


def test_a_batch_equals_rows_made_one_by_one(data, batches, rng):
    positions = np.concatenate([data.offsets[2:5], rng.integers(0, len(data), 60), [len(data) - 1]])
    batch = batches(positions)
    assert {column.dtype for column in batch.values()} == {torch.int64}
    for row, position in enumerate(positions):
        user, item = data.user[position], data.item[position]
        past = data.history(position)[::-1][:10].tolist()
        assert batch["history"][row].tolist() == past + [0] * (10 - len(past))
        for name, column in data.user_columns.items():
            assert batch[name][row].item() == column[user]
        for name, column in data.item_columns.items():
            assert batch[name][row].tolist() == column[item].tolist()


def test_items_take_any_shape(data, batches):
    items = torch.tensor([[2, 3, 0], [1, 4, 5]])
    columns = batches.items(items)
    assert torch.equal(columns["item_id"], items)
    assert columns["genres"].shape == (2, 3, data.item_columns["genres"].shape[1])
    assert torch.equal(batches.all_items()["item_id"], torch.arange(data.n_items))


@pytest.mark.parametrize("size", [1, 7, 64])
def test_an_epoch_covers_the_positions_once(batches, split, generator, size):
    pieces = list(batches.epoch(split.train, size, generator))
    assert {len(piece) for piece in pieces} == {size}
    drawn = torch.cat(pieces)
    assert len(drawn) == len(drawn.unique()) == len(split.train) // size * size
    assert set(drawn.tolist()) <= set(split.train.tolist())
    assert not torch.equal(torch.cat(list(batches.epoch(split.train, size, generator))), drawn)
    (piece,) = batches.epoch(np.array([5, 6, 9]), 512, generator)  # less than one batch comes whole
    assert sorted(piece.tolist()) == [5, 6, 9]


def test_the_notebook_gathers_alike(data, batches):
    gather_history = notebook_definitions("02", "gather_history")["gather_history"]
    positions = torch.arange(len(data))
    assert torch.equal(gather_history(data, positions, 10), batches.users(positions)["history"])


# -- negative samplers ------------------------------------------------------------------------------------------------

COUNTS = np.array([9, 9, 1, 50, 0, 7, 7, 400, 3])  # rows 0 and 1 are no movies


def exact_probabilities(kind: str) -> np.ndarray:
    real = COUNTS[2:].tolist()
    order = sorted(range(len(real)), key=lambda i: -real[i])  # stable: equal counts keep their order
    weight = [0.0, 0.0]
    for i, count in enumerate(real):
        rank = order.index(i) + 1
        by_rank = math.log((rank + 1) / rank)
        popular = {"uniform": 1.0, "count^0.75": count**0.75, "log_count": math.log(count + 1), "log_uniform": by_rank}
        weight.append(popular[kind])
    return np.array(weight) / sum(weight)


@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_sampler_follows_its_exact_distribution(kind, generator):
    sampler, exact = NegativeSampler(kind, COUNTS), exact_probabilities(kind)
    np.testing.assert_allclose(sampler.probabilities, exact, atol=1e-12)
    drawn = sampler.sample((100_000, 2), generator)
    assert drawn.shape == (100_000, 2)
    draws = np.bincount(drawn.flatten().numpy(), minlength=len(COUNTS))
    assert not draws[exact == 0].any()
    assert chisquare(draws[exact > 0], exact[exact > 0] * 200_000).pvalue > 1e-3
