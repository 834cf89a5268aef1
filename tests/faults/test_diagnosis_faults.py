"""Faults that `diagnose` was not written for: each planted in a short run of its own, and what is said of it.

The verdicts are judged, the rest is measured: `python tests/faults/test_diagnosis_faults.py` writes docs/diagnosis.md.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from dssm_helpers.course.diagnosis import Diagnosis, diagnose
from dssm_helpers.data import EncodedData, Split, encode, split_by_time
from dssm_helpers.evaluation import TwoTowerScorer, evaluate, metrics, rank_targets, ranks_of, top_k
from dssm_helpers.features import Batch, BatchBuilder, Index
from dssm_helpers.model import DSSM, evaluation_mode
from dssm_helpers.movielens import SCHEMA, MovieLens, synthetic
from dssm_helpers.objectives import SAMPLED
from dssm_helpers.recipes import Recipe, build_model
from dssm_helpers.training import Trainer, TrainingConfig, both_towers
from dssm_helpers.vocabulary import FIRST, UNKNOWN

CONFIG = TrainingConfig(epochs=5, batch_size=256, learning_rate=5e-3)
RECIPE = Recipe(dim=32, dims=(64, 32), max_history=20)
TABLES = cache(lambda: synthetic(25_000, 500, 600))


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
    validate: Callable[[DSSM], dict] | None = None,
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
    validate = validate or (lambda m: evaluate(m, batches, split.validation))
    history = fitted.fit(split.train, validate, progress=False)
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
    """``named`` are the findings that say the cause, ``near`` those of a consequence; ``else_where``: who sees it."""

    section: str
    what: str
    plant: Callable[[], Run]


FAULTS: list[Fault] = []


def fault(section: str, what: str) -> Callable:
    def add(plant: Callable[[], Run]) -> Callable[[], Run]:
        FAULTS.append(Fault(section, what, plant))
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


@fault("01", "rows sorted by user and movie, their number taken for the time")
def file_order() -> Run:
    ratings = TABLES().ratings.sort_values(["user_id", "movie_id"], ignore_index=True)
    return run(with_ratings(ratings.assign(timestamp=np.arange(len(ratings)))))


@fault("01", "a join makes five of every training row")
def rows_multiplied() -> Run:
    split = split_by_time(sound_data())
    return run(split=replace(split, train=np.repeat(split.train, 5)), epochs=2)


@fault("01", "the test rows are among the training rows")
def test_in_train() -> Run:
    split = split_by_time(sound_data())
    return run(split=replace(split, train=np.concatenate([split.train, split.test])))


# -- 02 features ------------------------------------------------------------------------------------------------------


def oldest_first(batch: Batch) -> Batch:
    history = batch["history"]
    length = (history > 0).sum(dim=1, keepdim=True)
    place = length - 1 - torch.arange(history.shape[1])  # [B, L]
    return {**batch, "history": history.gather(1, place.clamp(min=0)) * (place >= 0)}


@fault("02", "the history is ordered oldest first, in training and evaluation")
def history_reversed() -> Run:
    class Batches(BatchBuilder):
        def users(self, positions: Index) -> Batch:
            return oldest_first(super().users(positions))

    return run(Batches(sound_data(), RECIPE.max_history))


@fault("02", "the history holds the target, off by one")
def history_with_target() -> Run:
    class Batches(BatchBuilder):
        def users(self, positions: Index) -> Batch:
            batch, target = super().users(positions), self.item[torch.as_tensor(positions)].long()
            return {**batch, "history": torch.cat([target.unsqueeze(1), batch["history"][:, :-1]], dim=1)}

    return run(Batches(sound_data(), RECIPE.max_history))


@fault("02", "padding is pooled like an item, and learns")
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


@fault("03", "the item tower is trained on user ids in place of item ids")
def item_tower_of_users() -> Run:
    class Batches(BatchBuilder):
        def __call__(self, positions: Index) -> Batch:
            batch = super().__call__(positions)
            return {**batch, "item_id": batch["user_id"]}

    return run(Batches(sound_data(), RECIPE.max_history))


@fault("03", "item vectors are not scaled to length 1")
def not_normalised() -> Run:
    model = build_model(sound_data(), RECIPE)
    model.item_tower.normalize = False
    return run(model=model)


@fault("03", "both towers end in a ReLU")
def ends_in_relu() -> Run:
    model = build_model(sound_data(), RECIPE)
    for tower in (model.user_tower, model.item_tower):
        last = nn.ReLU()
        last.out_features = tower.mlp[-1].out_features
        tower.mlp.append(last)
    return run(model=model)


# -- 04 training ------------------------------------------------------------------------------------------------------


@fault("04", "a learning rate a hundred times too large")
def learning_rate() -> Run:
    return run(learning_rate=100 * CONFIG.learning_rate)


@fault("04", "weight decay 1.0, of the embeddings too")
def weight_decay() -> Run:
    return run(weight_decay=1.0)


@fault("04", "batches of 8")
def small_batches() -> Run:
    return run(batch_size=8, epochs=1)


# -- 05 evaluation ----------------------------------------------------------------------------------------------------


@fault("05", "dropout stays on in the evaluation")
def dropout_on() -> Run:
    after = sound()
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


@fault("05", "the target is ranked among 100 sampled items")
def sampled_candidates() -> Run:
    data = sound_data()
    batches, split = BatchBuilder(data, RECIPE.max_history), split_by_time(data)
    after = run(validate=lambda m: sampled(m, batches, split.validation))
    return replace(after, hit=sampled(after.model, batches, split.test)["hit@10"])


@fault("05", "what the user has had stays among the candidates")
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


@fault("06", "the index holds the vectors of an older model")
def older_index() -> Run:
    after = sound()
    older = run(model=build_model(sound_data(), RECIPE, seed=1), epochs=1, seed=1)
    return served(after, scorer_of(after, items=TwoTowerScorer(older.model, older.batches).item_vectors))


@fault("06", "vectors before their scaling, searched by Euclidean distance")
def euclidean() -> Run:
    after = sound()
    raw = copy.deepcopy(after.model)
    raw.user_tower.normalize = raw.item_tower.normalize = False

    def scores(positions: np.ndarray) -> Tensor:
        with evaluation_mode(raw):
            users, items = raw.user_tower(after.batches.users(positions)), raw.item_tower(after.batches.all_items())
        return -torch.cdist(users, items)

    return served(after, scores)


@fault("06", "rows of the index taken for item indices, off by two")
def rows_for_ids() -> Run:
    after = sound()
    right = TwoTowerScorer(after.model, after.batches)
    return served(after, lambda positions: right(positions).roll(-FIRST, dims=1))


# -- 08 export --------------------------------------------------------------------------------------------------------


@fault("08", "weights rounded to four bits, one scale for the whole model")
def crude_rounding() -> Run:
    after, small = sound(), sound().model
    step = max(float(p.detach().abs().max()) for p in small.parameters()) / 7
    for parameter in small.parameters():
        parameter.data = (parameter.data / step).round() * step
    return served(after, TwoTowerScorer(small, after.batches))


@fault("08", "the exported model is the one from before training")
def exported_too_early() -> Run:
    after = sound()
    return served(after, TwoTowerScorer(build_model(sound_data(), RECIPE).eval(), after.batches))


@fault("08", "the exported user tower reads one item of the history")
def history_of_one() -> Run:
    after = sound()
    return served(after, scorer_of(after, lambda batch: {**batch, "history": batch["history"][:, :1]}))


# -- 09 serving -------------------------------------------------------------------------------------------------------


@fault("09", "the server's vocabulary was built anew, in another order")
def vocabulary_rebuilt() -> Run:
    after, n = sound(), sound_data().n_items
    other = torch.cat([torch.arange(FIRST), FIRST + torch.randperm(n - FIRST, generator=torch.Generator().manual_seed(0))])
    return served(after, scorer_of(after, lambda batch: {**batch, "history": other[batch["history"]]}))


@fault("09", "the history is sent newest first")
def sent_newest_first() -> Run:
    after = sound()
    return served(after, scorer_of(after, oldest_first))


@fault("09", "ids sent as text and looked up with a default: all unknown")
def ids_as_text() -> Run:
    after = sound()

    def unknown(batch: Batch) -> Batch:
        known = {name: batch[name].clamp(max=UNKNOWN) for name in ("user_id", "history")}
        return {**batch, **known}

    return served(after, scorer_of(after, unknown))


# -- 10 tuning --------------------------------------------------------------------------------------------------------


@fault("10", "temperature 1.0, another order of magnitude")
def temperature() -> Run:
    return run(temperature=1.0)


@fault("10", "the best epoch is chosen on the test rows")
def chosen_on_test() -> Run:
    split = split_by_time(sound_data())
    return run(split=replace(split, validation=split.test))


@fault("10", "every setting of the sweep gets one epoch")
def one_epoch() -> Run:
    return run(epochs=1)


# -- 13 better towers -------------------------------------------------------------------------------------------------


@fault("13", "nine of ten ids are dropped in training")
def ids_dropped() -> Run:
    return run(id_dropout=0.9)


@fault("13", "the item columns are joined anew after training, to other items")
def columns_of_others() -> Run:
    after, data = sound(), sound_data()
    order = np.concatenate([np.arange(FIRST), FIRST + np.random.default_rng(0).permutation(data.n_items - FIRST)])
    moved = {name: column if name == "item_id" else column[order] for name, column in data.item_columns.items()}
    batches = BatchBuilder(replace(data, item_columns=moved), RECIPE.max_history)
    return served(replace(after, batches=batches))


@fault("13", "hard negatives are what the user takes next")
def negatives_are_positives() -> Run:
    class Hard(Trainer):
        def _loss(self, positions: Tensor, generator: torch.Generator) -> Tensor:
            batches, batch = self.batches, self.batches(positions)
            last = batches.offsets[batch["user_id"] + 1] - 1
            later = torch.minimum(positions.unsqueeze(1) + torch.arange(1, 9), last.unsqueeze(1))
            drawn = batches.item[later].long()  # [B, 8]
            users, items = both_towers(self.model, batch, self.config)
            items = torch.cat([items.unsqueeze(1), self.model.item_tower(batches.items(drawn))], dim=1)
            scores = self.model.logits(users, items)
            return SAMPLED["list_wise"](scores[:, 0], scores[:, 1:], drawn == batch["item_id"].unsqueeze(1))

    return run(trainer=Hard, objective="list_wise", n_negatives=8)


# -- 15 every day -----------------------------------------------------------------------------------------------------


@fault("15", "the nightly run goes on with the last day's rows alone")
def only_yesterday() -> Run:
    after, time = sound(), sound_data().timestamp
    train = after.split.train
    return run(split=replace(after.split, train=train[np.argsort(time[train])[-600:]]), model=after.model, epochs=20)


@fault("15", "a new item moves the rows of the item table by one")
def rows_moved() -> Run:
    after = sound()
    table = after.model.item_tower.embedding.tables["item_id"].weight
    table.data[FIRST:] = table.data[FIRST:].roll(1, dims=0)
    return served(after)


@fault("15", "the items that came last are not in the index")
def new_items_missing() -> Run:
    after, data = sound(), sound_data()
    first_seen = np.full(data.n_items, np.iinfo(np.int64).max)
    np.minimum.at(first_seen, data.item, data.timestamp)
    missing = torch.from_numpy(np.argsort(first_seen)[-data.n_items // 4 :])
    right = TwoTowerScorer(after.model, after.batches)
    return served(after, lambda positions: right(positions).index_fill(1, missing, -torch.inf))


# -- 17 your own data -------------------------------------------------------------------------------------------------


@fault("17", "every row has the same time")
def no_times() -> Run:
    return run(with_ratings(TABLES().ratings.sample(frac=1, random_state=0).assign(timestamp=0)))


@fault("17", "twenty crawlers open every item")
def crawlers() -> Run:
    tables = TABLES()
    robots = pd.DataFrame({"user_id": np.arange(10_001, 10_021)})
    rows = robots.merge(tables.movies[["movie_id"]], how="cross").assign(rating=5)
    rows["timestamp"] = np.random.default_rng(0).choice(tables.ratings["timestamp"], len(rows))
    users = pd.concat([tables.users, tables.users.head(20).assign(user_id=robots["user_id"])], ignore_index=True)
    return run(with_ratings(pd.concat([tables.ratings, rows], ignore_index=True), users))


@fault("17", "sessions of three rows taken for users")
def sessions_as_users() -> Run:
    tables = TABLES()
    ratings = tables.ratings.sort_values(["user_id", "timestamp"], ignore_index=True)
    session = ratings["user_id"] * 10_000 + ratings.groupby("user_id").cumcount() // 3
    owners = pd.DataFrame({"user_id": ratings["user_id"], "session": session}).drop_duplicates("session")
    users = owners.merge(tables.users, on="user_id").drop(columns="user_id").rename(columns={"session": "user_id"})
    return run(with_ratings(ratings.assign(user_id=session), users))


if __name__ == "__main__":
    import sys
    import time
    for f in [Fault("00", "sound", sound), *FAULTS]:
        if sys.argv[1:] and f.plant.__name__ not in sys.argv[1:]: continue
        t = time.perf_counter()
        r = f.plant(); t1 = time.perf_counter()
        d = r.diagnosis(); t2 = time.perf_counter()
        print(f"{f.section} {f.plant.__name__:22} hit {r.hit:.3f} {t1-t:5.1f}s {t2-t1:5.1f}s", [(x.name, x.severity) for x in d], flush=True)
        if sys.argv[1:]: print(d)
