"""Faults that `diagnose` was not written for: each planted in a short run of its own, and what is said of it.

The verdicts are judged, the rest is measured: `python tests/faults/test_diagnosis_faults.py` writes docs/diagnosis.md.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from dssm_helpers.course.diagnosis import FINDINGS, Diagnosis, diagnose
from dssm_helpers.data import EncodedData, Split, encode, split_by_time
from dssm_helpers.evaluation import TwoTowerScorer, evaluate, metrics, rank_targets, ranks_of, top_k
from dssm_helpers.features import Batch, BatchBuilder, Index
from dssm_helpers.model import DSSM, evaluation_mode
from dssm_helpers.movielens import SCHEMA, MovieLens, synthetic
from dssm_helpers.objectives import SAMPLED
from dssm_helpers.recipes import Recipe, build_model
from dssm_helpers.training import Trainer, TrainingConfig, both_towers
from dssm_helpers.vocabulary import FIRST, UNKNOWN

CONFIG = TrainingConfig(epochs=4, batch_size=256, learning_rate=1e-2)
RECIPE = Recipe(dim=32, dims=(64, 32), max_history=10)
TABLES = cache(lambda: synthetic(12_000, 300, 400))


@dataclass
class Run:
    """What a learner has after training, and hands to `diagnose`; ``hit`` is what the run itself reports."""

    model: DSSM
    batches: BatchBuilder
    split: Split
    config: TrainingConfig
    history: pd.DataFrame
    initial_loss: float | None = None
    scorer: Callable[[np.ndarray], Tensor] | None = None
    recommend: Callable[[np.ndarray], np.ndarray] | None = None
    hit: float = 0.0

    def diagnosis(self) -> Diagnosis:
        given = (self.model, self.batches, self.split, self.config, self.history)
        return diagnose(*given, scorer=self.scorer, recommend=self.recommend)


def encoded(tables: MovieLens) -> EncodedData:
    return encode(tables.ratings, tables.users, tables.movies, SCHEMA, name=tables.name)


@cache
def sound_data() -> EncodedData:
    return encoded(TABLES())


def run(
    batches: BatchBuilder | None = None,
    split: Split | None = None,
    *,
    model: DSSM | None = None,
    validate: Callable[[DSSM], dict] | bool = True,
    trainer: type[Trainer] = Trainer,
    temperature: float = 0.1,
    **settings: object,
) -> Run:
    """Train as the course does, but for what is given."""
    batches = batches or BatchBuilder(sound_data(), RECIPE.max_history)
    split = split or split_by_time(batches.data)
    model = model or build_model(batches.data, replace(RECIPE, temperature=temperature))
    config = replace(CONFIG, **settings)
    fitted = trainer(model, batches, config)
    if validate is True:
        validate = lambda m: evaluate(m, batches, split.validation)  # noqa: E731
    history = fitted.fit(split.train, validate or None, progress=False)
    return served(Run(model, batches, split, config, history))


def served(after: Run, scorer: Callable[[np.ndarray], Tensor] | None = None) -> Run:
    """The run with another ``scorer`` between the model and the answers."""
    answers = scorer or TwoTowerScorer(after.model, after.batches)
    data = after.batches.data
    hit = metrics(rank_targets(answers, data, after.split.test))["hit@10"]
    return replace(after, scorer=scorer, recommend=lambda p: top_k(answers, data, p)[0], hit=hit)


@cache
def _sound() -> Run:
    return run()


def sound() -> Run:
    """The run that nothing is wrong with: trained once, a copy for each fault."""
    return replace(_sound(), model=copy.deepcopy(_sound().model))


@dataclass(frozen=True)
class Fault:
    """What is planted, and how its findings are judged.

    ``named``: findings that say the cause; ``near``: the section, or a consequence. ``at_first``: the verdict before
    `diagnose` was sharpened for faults of this kind. ``instead``: what else in the course shows it.
    """

    plant: Callable[[], Run]
    section: str
    what: str
    named: str = ""
    near: str = ""
    at_first: str = ""
    instead: str = ""

    def verdict(self, found: list[str]) -> str:
        """Over the names ``found``; a sound run's do not count."""
        for verdict, names in (("named", self.named), ("near", self.near), ("wrong", " ".join(found))):
            if set(names.split()) & set(found):
                return verdict
        return "silent"


FAULTS: list[Fault] = []


def fault(section: str, what: str, **judged: str) -> Callable:
    def add(plant: Callable[[], Run]) -> Callable[[], Run]:
        FAULTS.append(Fault(plant, section, what, **judged))
        return plant

    return add


def with_ratings(ratings: pd.DataFrame, users: pd.DataFrame | None = None) -> BatchBuilder:
    tables = TABLES()
    tables = replace(tables, ratings=ratings, users=tables.users if users is None else users)
    return BatchBuilder(encoded(tables), RECIPE.max_history)


def scorer_of(
    after: Run, batch: Callable[[Batch], Batch] = dict, items: Tensor | None = None, users: DSSM | None = None
) -> Callable[[np.ndarray], Tensor]:
    """A server that changes the request's ``batch``, or has other vectors of the ``items`` or another user tower."""
    items = TwoTowerScorer(after.model, after.batches).item_vectors if items is None else items

    def scores(positions: np.ndarray) -> Tensor:
        with evaluation_mode(model := users or after.model):
            return model.user_tower(batch(after.batches.users(positions))) @ items.T

    return scores


# -- 01 data preparation ----------------------------------------------------------------------------------------------


@fault("01", "rows sorted by user and movie, their number taken for the time", named="no_order", at_first="silent")
def file_order() -> Run:
    ratings = TABLES().ratings.sort_values(["user_id", "movie_id"], ignore_index=True)
    return run(with_ratings(ratings.assign(timestamp=np.arange(len(ratings)))))


@fault("01", "a join makes five of every training row", named="split_leaks", at_first="wrong")
def rows_multiplied() -> Run:
    split = split_by_time(sound_data())
    return run(split=replace(split, train=np.repeat(split.train, 5)), epochs=2)


@fault("01", "the test rows are among the training rows", named="split_leaks")
def rows_of_the_test() -> Run:
    split = split_by_time(sound_data())
    return run(split=replace(split, train=np.concatenate([split.train, split.test])))


# -- 02 features ------------------------------------------------------------------------------------------------------


def oldest_first(batch: Batch) -> Batch:
    history = batch["history"]
    length = (history > 0).sum(dim=1, keepdim=True)
    place = length - 1 - torch.arange(history.shape[1])  # [B, L]
    return {**batch, "history": history.gather(1, place.clamp(min=0)) * (place >= 0)}


@fault("02", "the history is ordered oldest first, in training and evaluation", named="history_reversed")
def history_reversed() -> Run:
    class Batches(BatchBuilder):
        def users(self, positions: Index) -> Batch:
            return oldest_first(super().users(positions))

    return run(Batches(sound_data(), RECIPE.max_history))


@fault("02", "the history holds the target, off by one", named="future_in_history")
def history_with_target() -> Run:
    class Batches(BatchBuilder):
        def users(self, positions: Index) -> Batch:
            batch, target = super().users(positions), self.item[torch.as_tensor(positions)].long()
            return {**batch, "history": torch.cat([target.unsqueeze(1), batch["history"][:, :-1]], dim=1)}

    return run(Batches(sound_data(), RECIPE.max_history))


@fault("02", "padding is pooled like an item, and learns", named="padding_row_trained")
def padding_pooled() -> Run:
    class Unmasked(nn.Module):
        def __init__(self, pooling: nn.Module):
            super().__init__()
            self.pooling = pooling

        def forward(self, embedded: Tensor, mask: Tensor) -> Tensor:
            return self.pooling(embedded, torch.ones_like(mask))

    model = build_model(sound_data(), RECIPE)
    embedding = model.user_tower.embedding
    embedding.poolings["history"] = Unmasked(embedding.poolings["history"])
    embedding.tables["history"].padding_idx = None
    return run(model=model)


# -- 03 model ---------------------------------------------------------------------------------------------------------


@fault("03", "the item tower is trained on user ids in place of item ids", named="rows_misaligned")
def item_tower_of_users() -> Run:
    class Batches(BatchBuilder):
        def __call__(self, positions: Index) -> Batch:
            batch = super().__call__(positions)
            return {**batch, "item_id": batch["user_id"]}

    return run(Batches(sound_data(), RECIPE.max_history))


@fault("03", "item vectors are not scaled to length 1", named="not_normalized")
def not_normalised() -> Run:
    model = build_model(sound_data(), RECIPE)
    model.item_tower.normalize = False
    return run(model=model)


@fault("03", "both towers end in a ReLU", named="never_negative", at_first="silent")
def ends_in_relu() -> Run:
    model = build_model(sound_data(), RECIPE)
    for tower in (model.user_tower, model.item_tower):
        last = nn.ReLU()
        last.out_features = tower.mlp[-1].out_features
        tower.mlp.append(last)
    return run(model=model)


# -- 04 training ------------------------------------------------------------------------------------------------------


@fault("04", "a learning rate a hundred times too large", named="learning_rate_too_high diverged")
def learning_rate() -> Run:
    return run(learning_rate=100 * CONFIG.learning_rate)


@fault(
    "04",
    "weight decay 1.0, of the embeddings too",
    named="weight_decay_too_high",
    instead="nothing has to, Hit@10 stays; above 1 `weight_decay_too_high` says it",
)
def weight_decay() -> Run:
    return run(weight_decay=1.0)


@fault("04", "batches of 8", near="collapsed_vectors only_popular", instead='04, "A batch is a list of candidates"')
def small_batches() -> Run:
    return run(batch_size=8, epochs=1)


# -- 05 evaluation ----------------------------------------------------------------------------------------------------


@fault(
    "05",
    "dropout 0.5 stays on in the evaluation",
    near="figure_differs",
    at_first="silent",
    instead='08, "Dropout left on": the same request twice gives two answers',
)
def dropout_on() -> Run:
    after = run(model=build_model(sound_data(), replace(RECIPE, dropout=0.5)))
    after.model.train()

    @torch.no_grad()
    def scores(positions: np.ndarray) -> Tensor:
        items = after.model.item_tower(after.batches.all_items())
        return after.model.user_tower(after.batches.users(positions)) @ items.T

    return served(after, scores)


def sampled(model: DSSM, batches: BatchBuilder, positions: np.ndarray) -> dict[str, float]:
    scores, target = TwoTowerScorer(model, batches)(positions), batches.data.item[positions]
    drawn = torch.randint(FIRST, batches.data.n_items, (len(positions), 100))
    candidates = torch.cat([torch.from_numpy(target).long().unsqueeze(1), drawn], dim=1)
    return metrics(ranks_of(scores.gather(1, candidates), np.zeros(len(positions), dtype=int)))


@fault("05", "the target is ranked among 100 sampled items", named="figure_differs", at_first="silent")
def sampled_candidates() -> Run:
    data = sound_data()
    batches, split = BatchBuilder(data, RECIPE.max_history), split_by_time(data)
    after = run(validate=lambda m: sampled(m, batches, split.validation))
    return replace(after, hit=sampled(after.model, batches, split.test)["hit@10"])


@fault("05", "what the user has had stays among the candidates", named="seen_not_removed")
def seen_stays() -> Run:
    data = sound_data()
    batches, split = BatchBuilder(data, RECIPE.max_history), split_by_time(data)

    def with_seen(model: DSSM, positions: np.ndarray) -> dict[str, float]:
        return metrics(rank_targets(TwoTowerScorer(model, batches), data, positions, remove_seen=False))

    after = run(validate=lambda m: with_seen(m, split.validation))
    scorer = TwoTowerScorer(after.model, batches)
    recommend = lambda p: top_k(scorer, data, p, remove_seen=False)[0]  # noqa: E731
    return replace(after, hit=with_seen(after.model, split.test)["hit@10"], recommend=recommend)


# -- 06 retrieval -----------------------------------------------------------------------------------------------------


@fault("06", "the index holds the vectors of an older model", named="scorer_misaligned")
def older_index() -> Run:
    after = sound()
    older = run(model=build_model(sound_data(), RECIPE, seed=1), epochs=1, seed=1)
    return served(after, scorer_of(after, items=TwoTowerScorer(older.model, older.batches).item_vectors))


@fault(
    "06",
    "vectors before their scaling, searched by Euclidean distance",
    near="scorer_misaligned",
    instead='06, "Exercise 3": the same fault beside the exact ten',
)
def euclidean() -> Run:
    after = sound()
    raw = copy.deepcopy(after.model)
    raw.user_tower.normalize = raw.item_tower.normalize = False

    def scores(positions: np.ndarray) -> Tensor:
        with evaluation_mode(raw):
            users, items = raw.user_tower(after.batches.users(positions)), raw.item_tower(after.batches.all_items())
        return -torch.cdist(users, items)

    return served(after, scores)


@fault("06", "rows of the index taken for item indices, off by two", named="scorer_misaligned")
def rows_for_ids() -> Run:
    after = sound()
    right = TwoTowerScorer(after.model, after.batches)
    return served(after, lambda positions: right(positions).roll(-FIRST, dims=1))


# -- 08 export --------------------------------------------------------------------------------------------------------


@fault(
    "08",
    "weights rounded to three bits, one scale for the whole model",
    near="scorer_misaligned",
    instead='08, "The same numbers?" and "Smaller": vectors beside those of torch',
)
def crude_rounding() -> Run:
    after, small = sound(), sound().model
    step = max(float(p.detach().abs().max()) for p in small.parameters()) / 3
    for parameter in small.parameters():
        parameter.data = (parameter.data / step).round() * step
    return served(after, TwoTowerScorer(small, after.batches))


@fault("08", "the exported model is the one from before training", named="scorer_misaligned")
def exported_too_early() -> Run:
    after = sound()
    return served(after, TwoTowerScorer(build_model(sound_data(), RECIPE).eval(), after.batches))


@fault(
    "08",
    "the exported user tower reads one item of the history",
    named="scorer_misaligned",
    near="figure_differs",
    at_first="silent",
    instead='08, "Sizes that are not free": a batch of another length',
)
def history_of_one() -> Run:
    after = sound()
    return served(after, scorer_of(after, lambda batch: {**batch, "history": batch["history"][:, :1]}))


# -- 09 serving -------------------------------------------------------------------------------------------------------


@fault("09", "the server's vocabulary was built anew, in another order", named="scorer_misaligned", at_first="near")
def vocabulary_rebuilt() -> Run:
    after, n = sound(), sound_data().n_items
    other = torch.cat(
        [torch.arange(FIRST), FIRST + torch.randperm(n - FIRST, generator=torch.Generator().manual_seed(0))]
    )
    return served(after, scorer_of(after, lambda batch: {**batch, "history": other[batch["history"]]}))


@fault("09", "the history is sent newest first", named="scorer_misaligned", at_first="near")
def sent_newest_first() -> Run:
    after = sound()
    return served(after, scorer_of(after, oldest_first))


@fault("09", "ids sent as text and looked up with a default: all unknown", named="scorer_misaligned", at_first="near")
def ids_as_text() -> Run:
    after = sound()

    def unknown(batch: Batch) -> Batch:
        known = {name: batch[name].clamp(max=UNKNOWN) for name in ("user_id", "history")}
        return {**batch, **known}

    return served(after, scorer_of(after, unknown))


# -- 10 tuning --------------------------------------------------------------------------------------------------------


@fault("10", "temperature 1.0, another order of magnitude", named="temperature_too_large")
def temperature() -> Run:
    return run(temperature=1.0)


@fault("10", "the best epoch is chosen on the test rows", named="split_leaks", at_first="near")
def chosen_on_test() -> Run:
    split = split_by_time(sound_data())
    return run(split=replace(split, validation=split.test))


@fault("10", "every setting of the sweep gets one epoch", named="collapsed_vectors")
def one_epoch() -> Run:
    return run(epochs=1)


# -- 13 better towers -------------------------------------------------------------------------------------------------


@fault(
    "13", "nine of ten ids are dropped in training", instead='13, "7 · Dropping ids": the share is a dial, and measured'
)
def ids_dropped() -> Run:
    return run(id_dropout=0.9)


@fault(
    "13",
    "the item columns are joined anew after training, to other items",
    near="figure_differs",
    at_first="silent",
    instead="`EncodedData.fingerprint()` is not that of the training data",
)
def columns_of_others() -> Run:
    after, data = sound(), sound_data()
    order = np.concatenate([np.arange(FIRST), FIRST + np.random.default_rng(0).permutation(data.n_items - FIRST)])
    moved = {name: column if name == "item_id" else column[order] for name, column in data.item_columns.items()}
    batches = BatchBuilder(replace(data, item_columns=moved), RECIPE.max_history)
    return served(replace(after, batches=batches))


@fault(
    "13",
    "hard negatives are what the user takes next",
    near="collapsed_vectors recall_at_chance",
    instead='13, "4 · Other negatives"',
)
def negatives_are_positives() -> Run:
    class Hard(Trainer):
        def _loss(self, positions: Tensor, generator: torch.Generator) -> Tensor:
            batches, batch = self.batches, self.batches(positions)
            last = batches.offsets[batch["user_id"] + 1] - 1
            later = torch.minimum(positions.unsqueeze(1) + torch.arange(1, 9), last.unsqueeze(1))
            drawn = batches.item[later].long()  # [B, 8]
            users, items = both_towers(self.model, batch, self.config)
            negatives = self.model.item_tower(batches.items(drawn.flatten())).view(*drawn.shape, -1)
            items = torch.cat([items.unsqueeze(1), negatives], dim=1)  # [B, 9, D]
            scores = self.model.logits(users, items)
            return SAMPLED["list_wise"](scores[:, 0], scores[:, 1:], drawn == batch["item_id"].unsqueeze(1))

    return run(trainer=Hard, objective="list_wise", n_negatives=8)


# -- 15 every day -----------------------------------------------------------------------------------------------------


@fault(
    "15",
    "the nightly run goes on with the last day's rows alone",
    near="overfitted below_popularity",
    instead='15, "Four ways to go on"; the note `train_validation_gap` has both figures',
)
def only_yesterday() -> Run:
    after, time = sound(), sound_data().timestamp
    train = after.split.train
    split = replace(after.split, train=train[np.argsort(time[train])[-300:]])
    return run(split=split, model=after.model, validate=False, batch_size=32, epochs=10)


@fault(
    "15",
    "a new item moves the rows of the item table by one",
    near="figure_differs recall_at_chance",
    at_first="near",
    instead='15, "Break it: the sorted rebuild"; a bundle with other vocabularies is refused',
)
def rows_moved() -> Run:
    after = sound()
    table = after.model.item_tower.embedding.tables["item_id"].weight
    table.data[FIRST:] = table.data[FIRST:].roll(1, dims=0)
    return served(after)


@fault("15", "the items that came last are not in the index", named="scorer_misaligned", at_first="silent")
def new_items_missing() -> Run:
    after, data = sound(), sound_data()
    first_seen = np.full(data.n_items, np.iinfo(np.int64).max)
    np.minimum.at(first_seen, data.item, data.timestamp)
    missing = torch.from_numpy(np.argsort(first_seen)[-data.n_items // 4 :])
    right = TwoTowerScorer(after.model, after.batches)
    return served(after, lambda positions: right(positions).index_fill(1, missing, -torch.inf))


# -- 17 your own data -------------------------------------------------------------------------------------------------


@fault("17", "every row has the same time", named="no_order", at_first="silent")
def no_times() -> Run:
    return run(with_ratings(TABLES().ratings.sample(frac=1, random_state=0).assign(timestamp=0)))


@fault(
    "17",
    "twenty crawlers open nine items of ten",
    instead='17, "Look before you train" counts rows per user; twenty alike are too many for its `bots`',
)
def crawlers() -> Run:
    tables = TABLES()
    robots = pd.DataFrame({"user_id": np.arange(10_001, 10_021)})
    rows = robots.merge(tables.movies[["movie_id"]], how="cross").sample(frac=0.9, random_state=0).assign(rating=5)
    rows["timestamp"] = np.random.default_rng(0).choice(tables.ratings["timestamp"], len(rows))
    users = pd.concat([tables.users, tables.users.head(20).assign(user_id=robots["user_id"])], ignore_index=True)
    return run(with_ratings(pd.concat([tables.ratings, rows], ignore_index=True), users))


@fault("17", "sessions of three rows taken for users", instead='17, "Short sessions"')
def sessions_as_users() -> Run:
    tables = TABLES()
    ratings = tables.ratings.sort_values(["user_id", "timestamp"], ignore_index=True)
    session = ratings["user_id"] * 10_000 + ratings.groupby("user_id").cumcount() // 3
    owners = pd.DataFrame({"user_id": ratings["user_id"], "session": session}).drop_duplicates("session")
    users = owners.merge(tables.users, on="user_id").drop(columns="user_id").rename(columns={"session": "user_id"})
    return run(with_ratings(ratings.assign(user_id=session), users))


# -- the page ---------------------------------------------------------------------------------------------------------

HEAD = """\
# What diagnose finds, and what it does not

Three faults for each section that a run passes through, invented before the checks of `diagnose` were read, each
planted in a short run on generated data with planted tastes ({users} users, {epochs} epochs, one seed) and looked over
with what a learner would pass. Hit@10 is what the faulty run itself reports, or what its users get; the sound run
reports {hit:.3f}, and a difference below {noise:.2f} says nothing. A fault that raises it is no better.

**named**: a finding says the cause. **near**: it says the section, or a consequence. **silent**: nothing beyond what is
said of the sound run. **wrong**: it names another cause. Some findings were added or sharpened because of this table;
those rows say what they got *at first*, and only the others are faults that `diagnose` was not written for.

`python tests/faults/test_diagnosis_faults.py` writes this page; tests/faults/test_diagnosis_faults.py holds it.

| section | fault | Hit@10 | diagnose says | verdict | at first | what else shows it |
|---|---|---|---|---|---|---|
"""
PAGE = Path(__file__).resolve().parents[2] / "docs" / "diagnosis.md"
VERDICTS = ("named", "near", "silent", "wrong")
HIT, SAYS = 2, 3  # cells that differ a little between machines: the figure, and what is said besides the first


def cells(fault: Fault) -> list[str]:
    """The row of a fault."""
    after = fault.plant()
    found = [finding.name for finding in after.diagnosis() if finding.name not in quiet()]
    says = ", ".join(f"`{name}`" for name in found)
    given = fault.verdict(found), fault.at_first, fault.instead
    return [f"{fault.section}", fault.what, f"{after.hit:.3f}", says, *given]


@cache
def quiet() -> list[str]:
    """What is said of the sound run too."""
    return [finding.name for finding in sound().diagnosis()]


def page() -> str:
    head = HEAD.format(users=len(sound().split.test), epochs=CONFIG.epochs, hit=sound().hit, noise=noise())
    rows = [cells(fault) for fault in FAULTS]
    first, now = Counter(row[5] or row[4] for row in rows), Counter(row[4] for row in rows)
    counts = [", ".join(f"{count[verdict]} {verdict}" for verdict in VERDICTS) for count in (first, now)]
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    return f"{head}{table}\nOf {len(rows)} faults at first {counts[0]}; now {counts[1]}.\n"


def noise() -> float:
    """Two standard errors of a difference between two shares like the sound run's."""
    return 2 * math.sqrt(2 * sound().hit * (1 - sound().hit) / len(sound().split.test))


def written() -> dict[str, list[str]]:
    """The rows of the page, by fault."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith(("| 0", "| 1"))
    ]
    return {row[1]: row for row in rows}


def test_the_page_has_a_row_for_every_fault():
    assert list(written()) == [fault.what for fault in FAULTS]
    assert set(Counter(fault.section for fault in FAULTS).values()) == {3}
    judged = {name for fault in FAULTS for name in f"{fault.named} {fault.near}".split()}
    assert judged <= set(FINDINGS)


@pytest.mark.slow
def test_the_sound_run_is_sound():
    assert sound().diagnosis().healthy


@pytest.mark.slow
@pytest.mark.parametrize("fault", [pytest.param(fault, id=fault.plant.__name__) for fault in FAULTS])
def test_the_page_says_what_diagnose_says(fault: Fault):
    now, before = cells(fault), written()[fault.what]
    assert abs(float(now[HIT]) - float(before[HIT])) < noise()
    now[SAYS], before[SAYS] = now[SAYS].partition(",")[0], before[SAYS].partition(",")[0]
    assert [*now[:HIT], *now[SAYS:]] == [*before[:HIT], *before[SAYS:]]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
