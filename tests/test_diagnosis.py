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
from conftest import encoded, notebook_paths
from torch import nn

from dssm_helpers.course import diagnosis
from dssm_helpers.course.diagnosis import SEVERITIES, Diagnosis, Finding, diagnose
from dssm_helpers.data import EncodedData, Split, split_by_time
from dssm_helpers.evaluation import Popularity, TwoTowerScorer, top_k
from dssm_helpers.features import BatchBuilder
from dssm_helpers.model import DSSM
from dssm_helpers.movielens import synthetic
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


@pytest.fixture
def scorer(healthy: Run) -> TwoTowerScorer:
    return TwoTowerScorer(healthy.model, healthy.batches)


def first(diagnosis: Diagnosis) -> str:
    assert not diagnosis.healthy
    return diagnosis[0].name


def names(diagnosis: Diagnosis) -> list[str]:
    return [finding.name for finding in diagnosis]


# -- a sound run ------------------------------------------------------------------------------------------------------


def test_a_healthy_run_gives_notes_only(healthy: Run, scorer: TwoTowerScorer):
    found = healthy.diagnose(
        history=healthy.trainer.history.to_dict("records"),
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
    healthy.model.eval()


# -- faults in the batches --------------------------------------------------------------------------------------------


class Misaligned(BatchBuilder):
    """The item side is sorted on its own, as after two separate shuffles."""

    def __call__(self, positions):
        positions = torch.as_tensor(positions)
        return {**self.users(positions), **self.items(self.item[positions.roll(1)])}


class AnotherUser(BatchBuilder):
    """The user side is that of the row before."""

    def users(self, positions):
        return super().users(torch.as_tensor(positions).roll(1))


class NeighboursColumns(BatchBuilder):
    """The year and the genres of the item before it in the table."""

    def __init__(self, data, **options):
        super().__init__(data, **options)
        self.item_columns = {n: c if n == "item_id" else c.roll(1, dims=0) for n, c in self.item_columns.items()}


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


class EmptyHistory(BatchBuilder):
    """Somebody forgot to fill it."""

    def users(self, positions):
        batch = super().users(positions)
        return {**batch, "history": torch.zeros_like(batch["history"])}


class EmptyWhenAsked(BatchBuilder):
    """Filled for the training rows alone."""

    def users(self, positions):
        batch, positions = super().users(positions), torch.as_tensor(positions)
        last = self.offsets[self.user[positions].long() + 1] - 1
        return {**batch, "history": batch["history"] * (positions < last - 1).unsqueeze(1)}


class OldestFirst(BatchBuilder):
    """The items are right, their order is not."""

    def users(self, positions):
        batch = super().users(positions)
        length = (batch["history"] > 0).sum(dim=1, keepdim=True)
        slot = torch.arange(self.max_history)
        turned = batch["history"].gather(1, (length - 1 - slot).clamp(min=0)) * (slot < length)
        return {**batch, "history": turned}


# -- faults in the model ----------------------------------------------------------------------------------------------


class ForgetsTemperature(DSSM):
    """Takes the argument, stores it, and never divides."""

    def forward(self, batch):
        return (self.user_tower(batch) * self.item_tower(batch)).sum(dim=-1)


def forget_temperature(model: DSSM) -> None:
    model.__class__ = ForgetsTemperature


def leave_length(model: DSSM) -> None:
    model.user_tower.normalize = model.item_tower.normalize = False


def kill_item_tower(model: DSSM) -> None:
    """A last ReLU-like layer whose units are all negative: the same output for everybody."""
    nn.init.zeros_(model.item_tower.mlp[-1].weight)
    model.item_tower.mlp[-1].weight.requires_grad_(False)


def detach_user_tower(model: DSSM) -> None:
    model.user_tower.mlp.requires_grad_(False)


def train_padding(model: DSSM) -> None:
    table = model.item_tower.embedding.tables["item_id"]
    table.padding_idx = None
    nn.init.normal_(table.weight)


FLOOR = np.log1p(63 * np.exp(-2))  # the loss of a perfect model among the 64 movies of a batch, at temperature 1


@pytest.mark.parametrize(
    ("fault", "name", "evidence"),
    [
        ({"builder": Misaligned}, "rows_misaligned", r"another item(?!.*another user)"),
        ({"builder": AnotherUser}, "rows_misaligned", r"another user(?!.*another item)"),
        ({"builder": NeighboursColumns}, "columns_of_another_item", "genres in"),
        ({"builder": OneTooLate}, "future_in_history", "the target itself is in 100% of the training"),
        ({"builder": WholeHistory}, "future_in_history", "the target itself is in"),
        ({"builder": EmptyHistory}, "history_empty", "no history where"),
        ({"builder": OldestFirst}, "history_reversed", "the older item comes first"),
        ({"change": forget_temperature}, "temperature_ignored", r"temperature=0\.1.*divided by 1"),
        ({"recipe": replace(RECIPE, temperature=1.0)}, "temperature_too_large", f"cannot fall below {FLOOR:.2f}"),
        ({"change": leave_length}, "not_normalized", "expected 1"),
        ({"change": kill_item_tower}, "dead_tower", "item tower"),
        ({"change": detach_user_tower}, "dead_tower", "user tower"),
        ({"logq": 0.0}, "no_logq", "logq=0"),
        ({"mask_accidental_hits": False}, "accidental_hits", "among the negatives"),
        ({"learning_rate": 0.05}, "learning_rate_too_high", "learning rate 0.05"),
        ({"learning_rate": 0.3}, "learning_rate_too_high", "learning rate 0.3"),
        ({"learning_rate": 1.0}, "learning_rate_too_high", "learning rate 1"),
        ({"learning_rate": 1e9}, "diverged", "NaN or infinity"),
        ({"learning_rate": 1e-7}, "loss_not_moving|collapsed_vectors", ""),
        ({"weight_decay": 50.0}, "weight_decay_too_high", "weight decay 50"),
    ],
)
def test_a_planted_fault_is_named_first(data: EncodedData, split: Split, fault, name, evidence):
    found = Run(data, split, **fault).diagnose()
    assert re.fullmatch(name, first(found))
    assert re.search(evidence, found[0].evidence)
    assert name != "weight_decay_too_high" or "learning_rate_too_high" not in names(found)


@pytest.mark.parametrize(
    ("fault", "name", "not_called"),
    [
        ({"change": train_padding}, "padding_row_trained", "diverged"),
        ({"recipe": replace(RECIPE, temperature=0.005)}, "temperature_too_small", "collapsed_vectors"),
    ],
)
def test_what_costs_little_is_named_somewhere(data: EncodedData, split: Split, fault, name, not_called):
    found = names(Run(data, split, **fault).diagnose())
    assert name in found
    assert not_called not in found


def test_histories_that_are_empty_only_when_it_counts(healthy: Run):
    batches = EmptyWhenAsked(healthy.data, max_history=10)
    found = {finding.name: finding.evidence for finding in diagnose(healthy.model, batches, healthy.split)}
    assert "0% of the training rows and 100% of the validation rows" in found["history_empty"]


def test_histories_of_somebody_else_hold_the_target_by_chance(healthy: Run):
    batches = AnotherUser(healthy.data, max_history=10)
    found = {finding.name: finding.evidence for finding in diagnose(healthy.model, batches, healthy.split)}
    assert int(re.search(r"the target itself is in (\d+)% of", found["future_in_history"])[1]) < 50


def test_dropout_is_off_while_it_looks(data: EncodedData, split: Split):
    run = Run(data, split, recipe=replace(RECIPE, dropout=0.5), epochs=1)
    said = str(run.diagnose())
    run.model.train()
    assert str(run.diagnose()) == said


# -- faults in what else is given -------------------------------------------------------------------------------------


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


def test_random_split(data: EncodedData, split: Split, healthy: Run, rng: np.random.Generator):
    shuffled, n = rng.permutation(len(data)), len(split.test)
    random = Split(np.sort(shuffled[2 * n :]), np.sort(shuffled[:n]), np.sort(shuffled[n : 2 * n]))
    assert first(healthy.diagnose(split=random)) == "split_leaks"


@pytest.mark.parametrize(
    ("part", "positions", "evidence"),
    [
        ("train", lambda split: np.repeat(split.train, 2), "1,380 of 2,760 training rows are repetitions"),
        ("validation", lambda split: split.test, "60 positions are in validation and in test"),
    ],
)
def test_rows_that_come_twice(healthy: Run, split: Split, part, positions, evidence):
    found = healthy.diagnose(split=replace(split, **{part: positions(split)}))
    assert first(found) == "split_leaks"
    assert evidence in found[0].evidence


def test_times_that_give_no_order(data: EncodedData, healthy: Run):
    alike = replace(data, timestamp=np.zeros_like(data.timestamp))
    by_item = replace(data, item=data.item[np.lexsort((data.item, data.user))])
    for other, evidence in ((alike, "100% share a time"), (by_item, "100% rise in item index")):
        found = diagnose(healthy.model, BatchBuilder(other, 10))
        assert first(found) == "no_order"
        assert evidence in found[0].evidence


def test_towers_that_end_in_a_relu(healthy: Run):
    model = copy.deepcopy(healthy.model)
    for tower in (model.user_tower, model.item_tower):
        tower.mlp.append(nn.ReLU())
    assert "never_negative" in names(diagnose(model, healthy.batches, healthy.split))


def test_item_vectors_in_another_order(healthy: Run, scorer: TwoTowerScorer):
    scorer.item_vectors = scorer.item_vectors.roll(1, dims=0)
    found = healthy.diagnose(scorer=scorer)
    assert first(found) == "scorer_misaligned"
    assert "explain 100%" not in found[0].evidence


def test_sound_item_vectors_for_misread_users(healthy: Run, scorer: TwoTowerScorer):
    empty = EmptyHistory(healthy.data, 10)
    found = healthy.diagnose(scorer=lambda p: healthy.model.user_tower(empty.users(p)).detach() @ scorer.item_vectors.T)
    assert first(found) == "scorer_misaligned"
    assert "its item vectors explain 100%" in found[0].evidence


def test_items_that_nobody_can_get(healthy: Run, scorer: TwoTowerScorer):
    found = healthy.diagnose(scorer=lambda p: scorer(p).index_fill(1, torch.arange(10, 20), -torch.inf))
    assert first(found) == "scorer_misaligned"
    assert "110 of 120 items have scores; these correlate +1.00" in found[0].evidence


def test_lists_of_the_popular_of_the_unpopular_and_at_chance(healthy: Run):
    popular, uncorrected = Popularity(healthy.data, healthy.split.train), replace(healthy.config, logq=0.0)
    assert {"only_popular", "scorer_misaligned"} <= set(names(healthy.diagnose(scorer=popular)))
    unpopular = names(healthy.diagnose(scorer=lambda p: -popular(p)))
    assert "recall_at_chance" in unpopular
    assert not {"only_popular", "too_unpopular"} & set(unpopular)  # a correction is on, so nothing punishes the popular
    assert "too_unpopular" in names(healthy.diagnose(scorer=lambda p: -popular(p), config=uncorrected))


def test_between_chance_and_popularity():
    data = encoded(synthetic(60_000, 4000, 200))
    popular = Popularity(data, (split := split_by_time(data)).train)
    model, batches = build_model(data, RECIPE), BatchBuilder(data, max_history=10)

    def two_of_three(positions):  # the third list is upside down
        return popular(positions) * torch.where(torch.as_tensor(positions) % 3 > 0, 1.0, -1.0)[:, None]

    assert "below_popularity" in names(diagnose(model, batches, split=split, scorer=two_of_three))
    assert "below_popularity" not in names(diagnose(model, batches, split=split, scorer=popular))


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"labels": np.ones(500)}, "labels_all_alike"),
        ({"labels": torch.zeros(500)}, "labels_all_alike"),
        ({"history": pd.DataFrame({"loss": [4.0, 3, 2, 1], "hit@10": [0.2, 0.4, 0.2, 0.1]})}, "overfitted"),
        ({"history": pd.DataFrame({"loss": [4.0, 3], "hit@10": [0.8, 0.9]})}, "figure_differs"),
        ({"initial_loss": 9.0}, "initial_loss_off"),
    ],
)
def test_faults_in_what_is_told_of_the_run(healthy: Run, given, name):
    assert first(healthy.diagnose(**given)) == name


@pytest.mark.parametrize(("losses", "rises"), [([0.9, 0.8, 0.4, 0.4], False), ([0.9, 0.4, 0.4, 0.8], True)])
def test_a_loss_that_rises_again_at_a_high_rate(healthy: Run, losses, rises):
    config = replace(healthy.config, learning_rate=0.03)
    found = healthy.diagnose(history=pd.DataFrame({"loss": losses}), config=config)
    assert any("the loss rose again from 0.40" in finding.evidence for finding in found) == rises


def test_seen_items_not_removed(healthy: Run, scorer: TwoTowerScorer):
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
