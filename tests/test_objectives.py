"""Objectives and settings against naive loops, and notebook 04's own objectives."""

import math

import numpy as np
import pytest
import torch
from conftest import notebook_definitions

from dssm_helpers.objectives import (
    OBJECTIVES,
    SAMPLED,
    TrainingConfig,
    in_batch_loss,
    in_history,
    loss_at_chance,
    with_unknown_ids,
)


def naive_in_batch(logits, items, log_q, history, mask, smoothing):
    """Row by row and column by column, with plain Python numbers."""
    total = 0.0
    for r in range(len(items)):
        allowed = []
        for c in range(len(items)):
            same = mask and items[c] == items[r]
            seen = history is not None and items[c] in history[r]
            if c == r or not (same or seen):
                allowed.append(c)
        shifted = {c: float(logits[r, c]) - (float(log_q[c]) if log_q is not None else 0.0) for c in allowed}
        log_sum = math.log(sum(math.exp(x) for x in shifted.values()))
        losses = {c: log_sum - x for c, x in shifted.items()}
        total += (1 - smoothing) * losses[r] + smoothing * sum(losses.values()) / len(losses)
    return total / len(items)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("with_history", [False, True])
@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("with_log_q", [False, True])
def test_in_batch_loss_against_a_naive_loop(with_log_q, mask, with_history, smoothing, generator):
    logits = 3 * torch.randn(9, 9, generator=generator)
    items = torch.tensor([2, 3, 2, 4, 5, 2, 6, 3, 7])
    log_q = -4 * torch.rand(9, generator=generator) if with_log_q else None
    history = torch.randint(0, 9, (9, 4), generator=generator) if with_history else None
    if history is not None:
        history[0] = 0  # an empty one
        history[1, 0] = 3  # the target itself: it stays the positive
    settings = {"mask_accidental_hits": mask, "label_smoothing": smoothing}
    loss = in_batch_loss(logits, items, log_q, history=history, **settings).item()
    lists = history.tolist() if history is not None else None
    assert loss == pytest.approx(naive_in_batch(logits, items.tolist(), log_q, lists, mask, smoothing), rel=1e-5)
    parts = []  # rows of a larger batch, as every process of several has them
    for rows in (slice(0, 3), slice(3, 6), slice(6, 9)):
        past = history[rows] if with_history else None
        parts.append(in_batch_loss(logits[rows], items, log_q, history=past, first=rows.start, **settings).item())
    assert np.mean(parts) == pytest.approx(loss, rel=1e-5)
    if mask and not smoothing:
        in_batch_softmax = notebook_definitions("04", "in_batch_softmax")["in_batch_softmax"]
        assert in_batch_softmax(logits, items, log_q, history).item() == pytest.approx(loss, rel=1e-5)


def test_masked_columns_get_no_gradient_and_may_be_of_any_size(generator):
    logits = torch.randn(4, 4, generator=generator, requires_grad=True)
    items, history = torch.tensor([2, 3, 2, 4]), torch.tensor([[0], [4], [0], [0]])
    in_batch_loss(logits, items, history=history, label_smoothing=0.1).backward()
    assert (logits.grad == 0).nonzero().tolist() == [[0, 2], [1, 3], [2, 0]]
    assert torch.isfinite(logits.grad).all()
    large = torch.tensor([[0.0, 9e8], [9e8, 0.0]])
    assert in_batch_loss(large, torch.tensor([2, 2])).item() == 0.0
    drawn = SAMPLED["list_wise"](torch.tensor([0.0]), torch.tensor([[9e8]]), torch.tensor([[True]]))
    assert drawn.item() == 0.0


def naive_sampled(objective, positive, negative, hit):
    sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    losses = []
    for p, row, out in zip(positive.tolist(), negative.tolist(), hit.tolist(), strict=True):
        kept = [n for n, h in zip(row, out, strict=True) if not h]
        if objective == "list_wise":
            losses.append(-math.log(math.exp(p) / (math.exp(p) + sum(math.exp(n) for n in kept))))
        elif objective == "pair_wise":
            losses += [-math.log(sigmoid(p - n)) for n in kept]
        else:
            losses += [-math.log(sigmoid(p))] + [-math.log(1 - sigmoid(n)) for n in kept]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("objective", OBJECTIVES[1:])
def test_sampled_loss_against_a_naive_loop(objective, generator):
    positive, negative = torch.randn(6, generator=generator), torch.randn(6, 5, generator=generator)
    hit = torch.rand(6, 5, generator=generator) < 0.3
    hit[0] = True  # a row whose every draw was the positive
    notebooks = notebook_definitions("04", objective)[objective]
    for loss in (SAMPLED[objective], notebooks):
        expected = naive_sampled(objective, positive, negative, hit)
        assert loss(positive, negative, hit).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("first", [2, 10**12])  # no table of the size of the catalogue fits the second
def test_in_history_equals_a_loop(first, generator):
    history = torch.randint(first - 2, first + 10, (40, 7), generator=generator)
    items = torch.randint(first, first + 10, (9,), generator=generator)
    expected = [[item in row for item in items.tolist()] for row in history.tolist()]
    assert in_history(history, items).tolist() == expected


@pytest.mark.parametrize("logq", [0.0, 0.5, 1.0])
def test_loss_at_chance_by_the_formula(logq):
    shares, config = [0.5, 0.25, 0.25], TrainingConfig(batch_size=32, logq=logq)
    correction = logq * sum(q * math.log(q) for q in shares) + math.log(sum(q ** (1 - logq) for q in shares))
    assert loss_at_chance(config, np.array([0, 0, 8, 4, 4])) == pytest.approx(math.log(32) + correction)
    assert loss_at_chance(config, np.array([0, 0, 5, 5])) == pytest.approx(math.log(32))


def test_unknown_ids_come_in_the_stated_share_and_never_to_padding():
    torch.manual_seed(0)
    batch = {"user_id": torch.full((10_000,), 7), "item_id": torch.tensor([0, 9]).repeat(5_000)}
    changed = with_unknown_ids({**batch, "history": batch["user_id"], "request_hour": batch["user_id"]}, 0.2)
    assert (changed["user_id"] == 1).float().mean().item() == pytest.approx(0.2, abs=0.02)
    assert set(changed["user_id"].tolist()) == set(changed["request_hour"].tolist()) == {1, 7}
    assert torch.equal(changed["item_id"] == 0, batch["item_id"] == 0)
    assert (changed["history"] == 7).all()  # nothing else, and the batch itself is left alone


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective": "triplet"}, "choose from in_batch, list_wise, pair_wise"),
        ({"sampler": "hard"}, "choose from uniform"),
        ({"epochs": 0}, "at least 1, got 0"),
        ({"patience": 0}, "patience"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"id_dropout": -0.1}, "id_dropout"),
        ({"n_negatives": 8}, "'in_batch' does not read n_negatives"),  # B6
        ({"objective": "list_wise", "logq": 0.0}, "does not read logq"),
        ({"objective": "pair_wise", "mask_seen": False}, "does not read mask_seen"),
        ({"objective": "point_wise", "label_smoothing": 0.1}, "does not read label_smoothing"),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**change)
