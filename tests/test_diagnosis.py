"""Plant one fault at a time in a small run; diagnose must name it first. A healthy run must stay clean."""

from __future__ import annotations

import copy
import re
from dataclasses import replace

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import notebook_paths
from torch import nn

from dssm_helpers.course import diagnosis
from dssm_helpers.course.diagnosis import SEVERITIES, Diagnosis, Finding, diagnose
from dssm_helpers.data import EncodedData, Split
from dssm_helpers.evaluation import TwoTowerScorer, top_k
from dssm_helpers.features import BatchBuilder
from dssm_helpers.model import DSSM
from dssm_helpers.objectives import TrainingConfig
from dssm_helpers.recipes import Recipe, build_model
from dssm_helpers.training import Diverged, Trainer

RECIPE = Recipe(dim=16, dims=(32, 16), dropout=0.0, max_history=10)
CONFIG = TrainingConfig(epochs=6, batch_size=64, learning_rate=5e-3)


class Run:
    """A small training run, whole or with a fault in its batches, model or configuration."""

    def __init__(self, data: EncodedData, split: Split, *, builder=BatchBuilder, recipe=RECIPE, change=None, **config):
        self.data, self.split, self.config = data, split, replace(CONFIG, **config)
        self.batches = builder(data, max_history=10)
        self.model = build_model(data, recipe)
        if change is not None:
            change(self.model)
        self.trainer = Trainer(self.model, self.batches, self.config)
        try:
            self.trainer.fit(split.train, progress=False)
        except Diverged:
            self.model.eval()

    def diagnose(self, **more) -> Diagnosis:
        given = {"split": self.split, "config": self.config, "history": self.trainer.history, **more}
        return diagnose(self.model, self.batches, **given)


@pytest.fixture(scope="module")
def healthy(data: EncodedData, split: Split) -> Run:
    return Run(data, split)


def first(diagnosis: Diagnosis) -> str:
    assert not diagnosis.healthy
    return diagnosis[0].name


def names(diagnosis: Diagnosis) -> list[str]:
    return [finding.name for finding in diagnosis]


# -- a sound run ------------------------------------------------------------------------------------------------------


def test_a_healthy_run_gives_notes_only(healthy: Run):
    scorer = TwoTowerScorer(healthy.model, healthy.batches)
    found = healthy.diagnose(
        scorer=scorer,
        recommend=lambda positions: top_k(scorer, healthy.data, positions, 5)[0],
        labels=np.array([1, 0, 0, 1]),
        initial_loss=4.4,
    )
    assert found.healthy
    assert {"recall", "train_validation_gap"} <= set(names(found))
    assert found.unchecked == []
    assert str(found).startswith("Nothing above a note.")


def test_model_and_batches_are_enough(healthy: Run):
    found = diagnose(healthy.model, healthy.batches)
    assert found.healthy
    assert len(found.unchecked) == 5
    assert "Not looked at: the labels (labels=)" in str(found)


def test_nothing_of_the_run_is_changed(healthy: Run):
    before = copy.deepcopy(healthy.model.state_dict())
    healthy.model.train()
    healthy.diagnose()
    assert healthy.model.training
    assert all(torch.equal(value, before[name]) for name, value in healthy.model.state_dict().items())
    assert not any(module._forward_hooks for module in healthy.model.modules())
    healthy.model.eval()


def test_a_history_of_plain_rows_is_taken(healthy: Run):
    assert healthy.diagnose(history=healthy.trainer.history.to_dict("records")).healthy


# -- faults in the data -----------------------------------------------------------------------------------------------


def test_all_labels_positive(healthy: Run):
    assert first(healthy.diagnose(labels=np.ones(500))) == "labels_all_alike"
    assert first(healthy.diagnose(labels=torch.zeros(500))) == "labels_all_alike"


def test_training_without_negatives_is_seen_in_the_vectors(data: EncodedData, split: Split, healthy: Run):
    model = build_model(data, RECIPE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for positions in list(healthy.batches.epoch(split.train, 64)) * 3:
        loss = nn.functional.softplus(-model(healthy.batches(positions))).mean()  # every label is 1
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert first(diagnose(model, healthy.batches, split)) == "collapsed_vectors"


def test_padding_index_used_by_a_real_movie(data: EncodedData, split: Split):
    popular = np.bincount(data.item).argmax()
    clashing = replace(data, item=np.where(data.item == popular, 0, data.item).astype(np.int32))
    found = Run(clashing, split).diagnose()
    assert first(found) == "padding_is_a_real_id"
    assert "items of the interactions" in found[0].evidence


def test_padding_row_that_learns(data: EncodedData, split: Split):
    def without_padding_idx(model: DSSM) -> None:
        table = model.item_tower.embedding.tables["item_id"]
        table.padding_idx = None
        nn.init.normal_(table.weight)

    assert "padding_row_trained" in names(Run(data, split, change=without_padding_idx).diagnose())


class Misaligned(BatchBuilder):
    """The item side is sorted on its own, as after two separate shuffles."""

    def __call__(self, positions):
        positions = torch.as_tensor(positions)
        return {**self.users(positions), **self.items(self.item[positions.roll(1)])}


def test_user_and_item_rows_misaligned(data: EncodedData, split: Split):
    found = Run(data, split, builder=Misaligned).diagnose()
    assert first(found) == "rows_misaligned"
    assert "another item" in found[0].evidence
    assert "another user" not in found[0].evidence


def test_item_vectors_in_another_order(healthy: Run):
    scorer = TwoTowerScorer(healthy.model, healthy.batches)
    scorer.item_vectors = scorer.item_vectors.roll(1, dims=0)
    assert first(healthy.diagnose(scorer=scorer)) == "scorer_misaligned"


class OneTooLate(BatchBuilder):
    """The history is cut after the target instead of before it."""

    def users(self, positions):
        batch = super().users(positions)
        target = self.item[torch.as_tensor(positions)].long().unsqueeze(1)
        return {**batch, "history": torch.cat([target, batch["history"][:, :-1]], dim=1)}


class WholeHistory(BatchBuilder):
    """Everything a user ever rated, whatever the target's place."""

    def users(self, positions):
        positions = torch.as_tensor(positions)
        last = self.offsets[self.user[positions].long() + 1] - 1
        return super().users(last)


@pytest.mark.parametrize("builder", [OneTooLate, WholeHistory])
def test_future_leaked_into_history(data: EncodedData, split: Split, builder):
    found = Run(data, split, builder=builder).diagnose()
    assert first(found) == "future_in_history"
    assert "the target itself is in" in found[0].evidence


class EmptyHistory(BatchBuilder):
    """Somebody forgot to fill it."""

    def users(self, positions):
        batch = super().users(positions)
        return {**batch, "history": torch.zeros_like(batch["history"])}


class OldestFirst(BatchBuilder):
    """The items are right, their order is not."""

    def users(self, positions):
        batch = super().users(positions)
        length = (batch["history"] > 0).sum(dim=1, keepdim=True)
        slot = torch.arange(self.max_history)
        turned = batch["history"].gather(1, (length - 1 - slot).clamp(min=0)) * (slot < length)
        return {**batch, "history": turned}


class NeighboursColumns(BatchBuilder):
    """The year and the genres of the item before it in the table."""

    def __init__(self, data, **options):
        super().__init__(data, **options)
        self.item_columns = {n: c if n == "item_id" else c.roll(1, dims=0) for n, c in self.item_columns.items()}


@pytest.mark.parametrize(
    ("builder", "name"),
    [
        (EmptyHistory, "history_empty"),
        (OldestFirst, "history_reversed"),
        (NeighboursColumns, "columns_of_another_item"),
    ],
)
def test_histories_and_columns_that_are_not_the_rows_own(data: EncodedData, split: Split, builder, name):
    assert first(Run(data, split, builder=builder).diagnose()) == name


def test_weight_decay_is_not_called_a_learning_rate(data: EncodedData, split: Split):
    found = Run(data, split, weight_decay=50.0).diagnose()
    assert first(found) == "weight_decay_too_high"
    assert "learning_rate_too_high" not in names(found)


def test_random_split(data: EncodedData, split: Split, healthy: Run, rng: np.random.Generator):
    shuffled = rng.permutation(len(data))
    n = len(split.test)
    random = Split(np.sort(shuffled[2 * n :]), np.sort(shuffled[:n]), np.sort(shuffled[n : 2 * n]))
    assert first(healthy.diagnose(split=random)) == "split_leaks"


# -- faults in the model ----------------------------------------------------------------------------------------------


class ForgetsTemperature(DSSM):
    """Takes the argument, stores it, and never divides."""

    def forward(self, batch):
        return (self.user_tower(batch) * self.item_tower(batch)).sum(dim=-1)


def test_temperature_ignored(data: EncodedData, split: Split):
    def forget(model: DSSM) -> None:
        model.__class__ = ForgetsTemperature

    found = Run(data, split, change=forget).diagnose()
    assert first(found) == "temperature_ignored"
    assert "temperature=0.1" in found[0].evidence
    assert "divided by 1" in found[0].evidence


def test_temperature_too_large(data: EncodedData, split: Split):
    found = Run(data, split, recipe=replace(RECIPE, temperature=1.0)).diagnose()
    assert first(found) == "temperature_too_large"
    floor = np.log1p(63 * np.exp(-2))  # a perfect model among the 64 movies of a batch
    assert f"cannot fall below {floor:.2f}" in found[0].evidence


def test_temperature_too_small_is_noted(data: EncodedData, split: Split):
    found = Run(data, split, recipe=replace(RECIPE, temperature=0.005)).diagnose()
    assert "temperature_too_small" in names(found)
    assert "collapsed_vectors" not in names(found)


def test_no_normalisation(data: EncodedData, split: Split):
    def leave_length(model: DSSM) -> None:
        model.user_tower.normalize = model.item_tower.normalize = False

    assert first(Run(data, split, change=leave_length).diagnose()) == "not_normalized"


def kill_item_tower(model: DSSM) -> None:
    """A last ReLU-like layer whose units are all negative: the same output for everybody."""
    last = model.item_tower.mlp[-1]
    nn.init.zeros_(last.weight)
    last.weight.requires_grad_(False)


def detach_user_tower(model: DSSM) -> None:
    for parameter in model.user_tower.mlp.parameters():
        parameter.requires_grad_(False)


@pytest.mark.parametrize(("change", "side"), [(kill_item_tower, "item"), (detach_user_tower, "user")])
def test_dead_towers(data: EncodedData, split: Split, change, side: str):
    found = Run(data, split, change=change).diagnose()
    assert first(found) == "dead_tower"
    assert side in found[0].evidence


# -- faults in the training -------------------------------------------------------------------------------------------


def test_no_logq(data: EncodedData, split: Split):
    assert first(Run(data, split, logq=0.0).diagnose()) == "no_logq"


def test_accidental_hits(data: EncodedData, split: Split):
    assert first(Run(data, split, mask_accidental_hits=False).diagnose()) == "accidental_hits"


@pytest.mark.parametrize("rate", [0.05, 0.3, 1.0])
def test_learning_rate_too_high(data: EncodedData, split: Split, rate: float):
    assert first(Run(data, split, learning_rate=rate).diagnose()) == "learning_rate_too_high"


def test_diverged(data: EncodedData, split: Split):
    run = Run(data, split, learning_rate=1e9)
    assert first(run.diagnose()) == "diverged"


def test_learning_rate_too_low(data: EncodedData, split: Split):
    assert first(Run(data, split, learning_rate=1e-7).diagnose()) in ("loss_not_moving", "collapsed_vectors")


def test_overfitted(healthy: Run):
    curve = pd.DataFrame({"loss": [4.0, 3.0, 2.0, 1.0], "hit@10": [0.2, 0.4, 0.2, 0.1]})
    assert first(healthy.diagnose(history=curve)) == "overfitted"


def test_initial_loss_far_from_chance(healthy: Run):
    assert first(healthy.diagnose(initial_loss=9.0)) == "initial_loss_off"


# -- faults in the serving --------------------------------------------------------------------------------------------


def test_seen_items_not_removed(healthy: Run):
    scorer = TwoTowerScorer(healthy.model, healthy.batches)
    found = healthy.diagnose(recommend=lambda p: top_k(scorer, healthy.data, p, 10, remove_seen=False)[0])
    assert first(found) == "seen_not_removed"


def test_recommend_of_the_wrong_shape_is_refused(healthy: Run):
    with pytest.raises(ValueError, match=r"recommend returned shape \(3,\), expected \(60, k\)"):
        healthy.diagnose(recommend=lambda p: np.arange(3))


# -- the report -------------------------------------------------------------------------------------------------------


def test_the_report_puts_the_worst_first_and_reads_as_a_table(data: EncodedData, split: Split):
    found = Run(data, split, builder=Misaligned, logq=0.0).diagnose(labels=np.ones(10))
    order = [SEVERITIES.index(finding.severity) for finding in found]
    assert order == sorted(order)
    assert names(found)[:2] == ["labels_all_alike", "rows_misaligned"]
    assert "1. CRITICAL labels_all_alike" in str(found)
    assert max(map(len, str(found).splitlines())) <= 100
    rows = found._repr_markdown_().splitlines()
    assert sum(row.startswith("| critical") for row in rows) == order.count(0)
    assert all(getattr(finding, part) for finding in found for part in Finding.__annotations__)


def test_every_section_named_is_in_the_notebooks():
    sections = [finding["section"] for finding in diagnosis.FINDINGS.values()]
    named = [re.fullmatch(r'(\d\d) · [^"]+, "([^"]+)"', section).groups() for section in sections]
    assert len(named) > 20
    headings = {}
    for path in notebook_paths():
        cells = nbformat.read(path, as_version=4).cells
        text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        headings[path.stem[:2]] = " ".join(re.findall(r"^#+ (.+)$", text, re.M))
    assert not [(number, title) for number, title in named if title not in headings[number]]
