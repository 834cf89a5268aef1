"""Which changes give a better pair of towers, one vector a side: for notebook 13, as ``towers.toml`` lists them.

    python benchmarks/towers.py                      # everything, some three hours on one core
    python benchmarks/towers.py --only arms

Every arm is the default with one thing changed, read on validation. Each run is kept in
``artifacts/<dataset>/towers/``: an interrupted command goes on where it stopped. ``towers.json`` is written after each.
"""

from __future__ import annotations

import inspect
import re
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import machine as shared
import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from variants import MEASURES, compare, figures, read_variant

from dssm_helpers import seed_everything
from dssm_helpers.course.workspace import Workspace, code_digest
from dssm_helpers.data import EncodedData, encode
from dssm_helpers.evaluation import (
    TwoTowerScorer,
    chance_level,
    coverage,
    evaluate,
    interaction_matrix,
    metrics,
    rank_targets,
    top_k,
)
from dssm_helpers.features import (
    POOLINGS,
    Batch,
    BatchBuilder,
    Feature,
    RecencyPooling,
    SparseFeature,
    default_features,
)
from dssm_helpers.files import digest
from dssm_helpers.model import DSSM
from dssm_helpers.movielens import SCHEMA
from dssm_helpers.objectives import in_history, log_shares, with_unknown_ids
from dssm_helpers.recipes import Recipe
from dssm_helpers.schema import Column
from dssm_helpers.text import text_trigrams
from dssm_helpers.training import Trainer, both_towers
from dssm_helpers.vocabulary import FIRST, PADDING, UNKNOWN

LIKED = 4  # stars
FILE = Path(__file__).with_suffix(".json")

# -- encoders of the history ------------------------------------------------------------------------------------------


class AttentionPooling(RecencyPooling):
    """A weight per slot times exp(query · movie), one learned query; at the start the recency pooling."""

    def __init__(self, dim: int, max_length: int):
        super().__init__(dim, max_length)
        self.query = nn.Parameter(torch.zeros(dim))

    def forward(self, embedded: Tensor, mask: Tensor) -> Tensor:
        score = self.SCALE * self.logits[: mask.shape[1]] + embedded @ self.query  # [B, L]
        return score.masked_fill(~mask, torch.finfo(score.dtype).min).softmax(dim=1) * mask


POOLINGS["attention"] = AttentionPooling


class Block(nn.Module):
    """Self-attention, pre-norm, then a feed-forward layer (SASRec). A slot sees itself and what is older."""

    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query, self.key_value, self.out = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.feed = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, slots: Tensor, allowed: Tensor, newest: bool) -> Tensor:
        """``slots [B, L, D]``, ``allowed [B, 1, L, L]`` → ``[B, L, D]``, or ``[B, 1, D]`` of the newest slot alone."""
        normed = self.before(slots)
        if newest:  # nobody reads the others
            slots, allowed = slots[:, :1], allowed[:, :, :1]
        query, (key, value) = self.query(normed[:, : slots.shape[1]]), self.key_value(normed).chunk(2, dim=2)
        split = [x.unflatten(2, (self.heads, -1)).transpose(1, 2) for x in (query, key, value)]  # [B, H, L, D / H]
        mixed = F.scaled_dot_product_attention(*split, attn_mask=allowed).transpose(1, 2).flatten(2)
        slots = slots + self.dropout(self.out(mixed))
        return slots + self.dropout(self.feed(self.between(slots)))


class Encoder(nn.Module):
    """The newest slot's output of a few :class:`Block` over the last ``length`` slots, beside the poolings."""

    def __init__(self, poolings: nn.Module, dim: int, blocks: int = 1, heads: int = 2, length: int = 20, dropout=0.2):
        super().__init__()
        self.poolings, self.places = poolings, nn.Parameter(torch.zeros(length, dim))
        self.blocks = nn.ModuleList(Block(dim, heads, dropout) for _ in range(blocks))
        for weight in self.parameters():
            if weight.dim() == 2:
                nn.init.normal_(weight, std=0.02)

    def forward(self, embedded: Tensor, mask: Tensor) -> Tensor:
        """``embedded [B, L, D]``, newest first, ``mask [B, L]`` → ``[B, (P + 1)·D]``."""
        slots, present = embedded[:, : len(self.places)], mask[:, : len(self.places)]
        length = present.shape[1]
        older = torch.ones(length, length, dtype=torch.bool, device=mask.device).triu()  # itself included
        itself = torch.eye(length, dtype=torch.bool, device=mask.device)  # else padding would attend to nothing: NaN
        allowed = (older & present.unsqueeze(1) | itself).unsqueeze(1)  # [B, 1, L, L]
        slots = slots + self.places[:length]
        for number, block in enumerate(self.blocks, start=1):
            slots = block(slots, allowed, newest=number == len(self.blocks))
        return torch.cat([self.poolings(embedded, mask), slots[:, 0] * present[:, :1]], dim=1)


# -- what a row is compared with --------------------------------------------------------------------------------------


def softmax_losses(own: Tensor, others: Tensor, masked: Tensor) -> Tensor:
    """Cross-entropy of each row's positive ``own [B]`` among it and ``others [B, N]``, ``masked`` left out: ``[B]``."""
    logits = torch.cat([own.unsqueeze(1), others.masked_fill(masked, -torch.inf)], dim=1)
    return -logits.log_softmax(dim=1)[:, 0]


class Candidates(Trainer):
    """The course's loss, row by row, with other candidates than the batch; as it stands, the batch."""

    options: Mapping[str, Any] = {}
    setting: Setting

    def _loss(self, positions: Tensor, generator: Generator) -> Tensor:
        batch = self.batches(positions)
        users, items = both_towers(self.model, batch, self.config)
        target = batch["item_id"]
        vectors, others, log_q = self.candidates(items, target, generator)  # [N, D], [N], [I]
        logits = self.model.logits(users, vectors) - log_q[others]  # [B, N]
        own = self.model.logits(users, items.unsqueeze(1)).squeeze(1) - log_q[target]
        masked = (others == target.unsqueeze(1)) | in_history(batch["history"], others)
        return self.reduce(own, logits, masked, positions)

    def candidates(self, items: Tensor, target: Tensor, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
        return items, target, self._log_q

    def reduce(self, own: Tensor, others: Tensor, masked: Tensor, positions: Tensor) -> Tensor:
        return softmax_losses(own, others, masked).mean()

    def encode(self, items: Tensor) -> Tensor:
        """Vectors of items, a share of their ids dropped as in the batch."""
        batch = {**self.batches.items(items), "user_id": items}
        return self.model.item_tower(with_unknown_ids(batch, self.config.id_dropout))

    def draw(self, generator: Generator) -> Tensor:
        return torch.randint(FIRST, self.batches.data.n_items, (self.options["n"],), generator=generator)


class Full(Candidates):
    """All items."""

    def candidates(self, items, target, generator):
        every = torch.arange(FIRST, self.batches.data.n_items)
        return self.encode(every), every, torch.zeros_like(self._log_q)


class Uniform(Candidates):
    """``n`` items for the whole batch, each as probable; then q is the same for all and cancels."""

    def candidates(self, items, target, generator):
        drawn = self.draw(generator)
        return self.encode(drawn), drawn, torch.zeros_like(self._log_q)


class GBCE(Uniform):
    """gBCE (A. Petrov, C. Macdonald, RecSys 2023): binary, sigmoid of the positive to the power beta."""

    def reduce(self, own, others, masked, positions):
        share = self.options["n"] / (self.batches.data.n_items - FIRST - 1)
        beta = share * (self.options["t"] * (1 - 1 / share) + 1 / share)
        return (beta * F.softplus(-own) + (F.softplus(others) * ~masked).sum(dim=1)).mean()


class Mixed(Candidates):
    """The batch and ``n`` uniform ones, corrected by the mixture's q (J. Yang et al., WWW 2020)."""

    def candidates(self, items, target, generator):
        drawn, n, rows = self.draw(generator), self.options["n"], len(items)
        q = (rows * self._log_q.exp() + n / (len(self._log_q) - FIRST)) / (rows + n)
        return torch.cat([items, self.encode(drawn)]), torch.cat([target, drawn]), q.log()


class Queue(Candidates):
    """The batch, and the vectors of the last ``keep`` batches as they were then."""

    def candidates(self, items, target, generator):
        kept = [*getattr(self, "kept", []), (items, target)]
        self.kept = [(vectors.detach(), ids) for vectors, ids in kept[-self.options["keep"] :]]
        vectors, ids = zip(*kept, strict=True)
        return torch.cat(vectors), torch.cat(ids), self._log_q


class LateQueue(Queue):
    """The same once ``after`` epochs have settled the vectors (J. Wang et al., SIGIR 2021)."""

    def candidates(self, items, target, generator):
        late = len(self._rows) >= self.options["after"]
        return super().candidates(items, target, generator) if late else (items, target, self._log_q)


class Hard(Candidates):
    """For each row ``n`` of the model's own top ``depth``, found anew each epoch; beside the batch, or ``alone``."""

    def _train_epoch(self, train, steps, bar):
        had = interaction_matrix(self.batches.data, train)
        self.top = torch.zeros(len(self.batches.data), self.options["depth"], dtype=torch.int32)
        scorer = TwoTowerScorer(self.model, self.batches)
        for part in np.array_split(train, max(1, len(train) // 4096)):
            scores = scorer(part)
            scores[:, :FIRST] = -torch.inf
            scores[had[self.batches.data.user[part]].nonzero()] = -torch.inf  # whatever the user has in training
            self.top[part] = scores.topk(self.options["depth"], dim=1).indices.int()
        return super()._train_epoch(train, steps, bar)

    def _loss(self, positions, generator):
        batch = self.batches(positions)
        users, items = both_towers(self.model, batch, self.config)
        target, (n, depth) = batch["item_id"], (self.options["n"], self.options["depth"])
        column = torch.rand(len(positions), depth, generator=generator).topk(n, dim=1).indices
        drawn = self.top[positions].long().gather(1, column)  # [B, n]
        distinct, place = drawn.unique(return_inverse=True)
        hard = self.model.logits(users, F.embedding(place, self.encode(distinct)))  # [B, n]
        own, seen = self.model.logits(users, items.unsqueeze(1)).squeeze(1), torch.zeros_like(drawn, dtype=torch.bool)
        if self.options.get("alone"):
            return softmax_losses(own, hard, seen).mean()
        others = torch.cat([self.model.logits(users, items) - self._log_q[target], hard - self._log_q[drawn]], dim=1)
        masked = (target == target.unsqueeze(1)) | in_history(batch["history"], target)
        return softmax_losses(own - self._log_q[target], others, torch.cat([masked, seen], dim=1)).mean()


class Weighted(Candidates):
    """A row counts by its stars."""

    def reduce(self, own, others, masked, positions):
        weight = torch.from_numpy(self.setting.stars)[positions].float()
        return (softmax_losses(own, others, masked) * weight).sum() / weight.sum()


class Distilled(Candidates):
    """Half of the target is what ``members`` default models, their vectors side by side, say of the batch."""

    def _train_epoch(self, train, steps, bar):
        if not hasattr(self, "teachers"):
            ws = self.setting.ws
            scorers = [ws.scorer("dssm", seed) for seed in self.options["members"]]
            self.teachers = torch.cat([scorer.item_vectors for scorer in scorers], dim=1)  # [I, M·D]
            parts = np.array_split(np.arange(len(ws.data)), 50)
            self.users = torch.cat([torch.cat([s.user_vectors(part) for s in scorers], dim=1) for part in parts])
        return super()._train_epoch(train, steps, bar)

    def _loss(self, positions, generator):
        batch = self.batches(positions)
        users, items = both_towers(self.model, batch, self.config)
        target = batch["item_id"]
        own = torch.eye(len(target), dtype=torch.bool)
        masked = ((target == target.unsqueeze(1)) | in_history(batch["history"], target)) & ~own
        said = self.users[positions] @ self.teachers[target].T / len(self.options["members"])
        teacher, student = (
            (scores - self._log_q[target]).masked_fill(masked, -torch.inf).log_softmax(dim=1)
            for scores in (said / self.model.temperature, self.model.logits(users, items))
        )
        soft = -(teacher.exp() * student.masked_fill(masked, 0.0)).sum(dim=1).mean()
        share = self.options.get("share", 0.5)
        return share * soft - (1 - share) * student.diagonal().mean()


class Student(Mixed):
    """Mixed candidates; a share of the history is forgotten; part of the target is what default models say.

    Options: ``n`` uniform candidates, ``forget`` that share of slots, and ``share`` of the target by the teachers
    ``members`` (seeds), whose vectors stand side by side.
    """

    def _train_epoch(self, train, steps, bar):
        if self.options.get("share") and not self._rows:
            scorers = [self.setting.ws.scorer("dssm", seed) for seed in self.options["members"]]
            self.taught = torch.cat([scorer.item_vectors for scorer in scorers], dim=1)  # [I, M·D]
            parts = np.array_split(np.arange(len(self.batches.data)), 50)
            self.users = torch.cat([torch.cat([s.user_vectors(part) for s in scorers], dim=1) for part in parts])
        return super()._train_epoch(train, steps, bar)

    def _loss(self, positions, generator):
        batch = self.batches(positions)
        seen, target = batch["history"], batch["item_id"]
        kept = torch.rand(seen.shape) >= self.options.get("forget", 0.0)
        users, items = both_towers(self.model, {**batch, "history": seen * kept}, self.config)
        vectors, others, log_q = self.candidates(items, target, generator)  # the batch comes first
        masked = (others == target.unsqueeze(1)) | in_history(seen, others)
        masked.fill_diagonal_(False)
        own = self.log_softmax(self.model.logits(users, vectors) - log_q[others], masked)
        loss, share = -own.diagonal().mean(), self.options.get("share", 0.0)
        if not share:
            return loss
        said = self.users[positions] @ self.taught[others].T / len(self.options["members"]) / self.model.temperature
        teacher = self.log_softmax(said - log_q[others], masked)
        soft = -(teacher.exp() * own.masked_fill(masked, 0.0)).sum(dim=1).mean()
        return (1 - share) * loss + share * soft

    def log_softmax(self, logits: Tensor, masked: Tensor) -> Tensor:
        return logits.masked_fill(masked, -torch.inf).log_softmax(dim=1)


# -- what an arm changes ----------------------------------------------------------------------------------------------


class Setting:
    """The course's default, step by step. A part overrides a step and goes on from the one it replaces."""

    def __init__(self, ws: Workspace, recipe: Recipe, options: Mapping[str, Any]):
        self.ws, self.recipe, self.options = ws, recipe, options
        self.data = self.encode()
        self.batches = self.make_batches()

    @cached_property
    def stars(self) -> np.ndarray:
        """Of every position, ``[N]``."""
        return stars(self.ws)

    def encode(self) -> EncodedData:
        return self.ws.data

    def make_batches(self) -> BatchBuilder:
        return BatchBuilder(self.data)

    def rows(self) -> np.ndarray:
        return self.ws.split.train

    def validation(self) -> np.ndarray:
        return self.ws.split.validation

    def features(self) -> tuple[list[Feature], list[Feature]]:
        recipe = self.recipe
        names = {"dim": recipe.dim, "pooling": recipe.pooling, "max_history": recipe.max_history}
        return default_features(self.data, **names, without=recipe.without)

    def model(self, seed: int) -> DSSM:
        seed_everything(seed)
        tower = {"dims": self.recipe.dims, "dropout": self.recipe.dropout}
        return DSSM(*self.features(), tower, tower, temperature=self.recipe.temperature)


def stars(ws: Workspace) -> np.ndarray:
    ratings, ids = ws.tables.ratings, ws.data.vocabularies["user_id"]
    order = np.lexsort((ratings["timestamp"].to_numpy(), ids.encode(ratings["user_id"].to_numpy())))
    return ratings["rating"].to_numpy()[order]


class Attentive(Setting):
    """:class:`Encoder` beside the poolings of the history."""

    def model(self, seed):
        model = super().model(seed)
        tower, embedding, dim = model.user_tower, model.user_tower.embedding, self.recipe.dim
        names = ("blocks", "heads", "length")
        options = {name: self.options[name] for name in names if name in self.options}
        embedding.poolings["history"] = Encoder(embedding.poolings["history"], dim, **options)
        embedding.width += dim
        tower.mlp[0] = nn.Linear(embedding.width, tower.mlp[0].out_features)
        return model


class LastOnly(Setting):
    """Each user's last training row, as often as makes as many steps."""

    def rows(self):
        train = super().rows()
        return np.resize(train[np.append(np.diff(self.data.user[train]) > 0, True)], len(train))


class Liked(Setting):
    """Only what was liked is a target."""

    def rows(self):
        return (rows := super().rows())[self.stars[rows] >= LIKED]


class Sampled(Liked):
    """As many rows as were liked, whichever."""

    def rows(self):
        train = self.ws.split.train
        return np.sort(np.random.default_rng(0).choice(train, len(super().rows()), replace=False))


class Filtered(BatchBuilder):
    """Histories without some positions; ``cold [I]`` are items whose id nobody knows."""

    keep: Tensor
    cold: Tensor | None = None

    def users(self, positions):
        positions = torch.as_tensor(positions)
        slots = (positions.unsqueeze(1) - torch.arange(1, self.max_history + 1)).clamp(min=0)
        history = (batch := super().users(positions))["history"] * self.keep[slots]
        order = (history == PADDING).int().argsort(dim=1, stable=True)  # what is left moves together
        return {**batch, "history": history.gather(1, order)}

    def items(self, items):
        return self._unknown(super().items(items))

    def all_items(self):
        return self._unknown(super().all_items())

    def _unknown(self, batch: Batch) -> Batch:
        if self.cold is None:
            return batch
        return {**batch, "item_id": batch["item_id"].masked_fill(self.cold[batch["item_id"]], UNKNOWN)}


class LikedHistory(Liked):
    """And only what was liked is in a history."""

    def make_batches(self):
        batches = Filtered(self.data)
        batches.keep = torch.from_numpy(self.stars >= LIKED)
        return batches


class Titles(Setting):
    """Letter trigrams of the title, without its year, as a list column of the items, mean-pooled."""

    def encode(self):
        movies = self.ws.tables.movies
        found = [text_trigrams(re.sub(r"\(\d{4}\)", "", title)) for title in movies["title"]]
        often = {t for t, n in zip(*np.unique(np.concatenate(found), return_counts=True), strict=True) if n >= 3}
        movies = movies.assign(trigrams=[[t for t in row if t in often] or ["#"] for row in found])
        schema = replace(SCHEMA, columns=(*SCHEMA.columns, Column("trigrams", "item", "list")))
        return encode(self.ws.tables.ratings, self.ws.tables.users, movies, schema, name=self.ws.data.name)

    def features(self):
        user, item = super().features()
        width = self.options.get("width", 48)
        return user, [replace(f, embed_dim=width) if f.name == "trigrams" else f for f in item]


PAUSES = (1, 60, 3600, 86_400, 7 * 86_400, 30 * 86_400)  # seconds
DAYS = (0, 86_400, 7 * 86_400, 30 * 86_400)
TIMES = {
    "hour": 24,
    "weekday": 7,
    "pause": len(PAUSES) + 2,
    "days": len(DAYS) + 1,
    "week": 40,
}  # how many values each has


class Timed(BatchBuilder):
    """What a request's time says, as further columns of the user."""

    def users(self, positions):
        batch, at = super().users(positions), np.asarray(positions)
        time, first = self.data.timestamp, self.data.offsets[self.data.user[at]] == at
        pause = np.where(first, len(PAUSES) + 1, np.digitize(time[at] - time[at - 1], PAUSES))
        week = (time[at] - time.min()) // (7 * 86_400)
        days = np.where(first, len(DAYS), np.digitize(time[at] - time[at - 1], DAYS))
        found = {"hour": time[at] // 3600 % 24, "weekday": time[at] // 86_400 % 7, "pause": pause, "days": days}
        found["week"] = week
        return {**batch, **{name: torch.from_numpy(values + FIRST) for name, values in found.items()}}


class Time(Setting):
    """Columns of :class:`Timed` as user features."""

    def make_batches(self):
        return Timed(self.data)

    def features(self):
        user, item = super().features()
        return [*user, *(SparseFeature(n, FIRST + TIMES[n], 16) for n in self.options["columns"])], item


class Cold(Setting):
    """A tenth of the items (``draw``) is in no history and no row; each user's last five rows are kept apart."""

    @cached_property
    def cold(self) -> Tensor:
        """Which items, ``[I]``: of those with five interactions."""
        often = np.flatnonzero(self.ws.data.item_counts(np.arange(len(self.ws.data))) >= 5)
        chosen = np.random.default_rng(self.options["draw"]).choice(often, self.ws.data.n_items // 10, replace=False)
        return torch.zeros(self.ws.data.n_items, dtype=torch.bool).index_fill(0, torch.from_numpy(chosen), True)

    @cached_property
    def is_cold(self) -> np.ndarray:
        """Of every position, ``[N]``."""
        return self.cold.numpy()[self.ws.data.item]

    @cached_property
    def apart(self) -> np.ndarray:
        """Of every position, ``[N]``: whether it is one of its user's last five."""
        return np.arange(len(self.ws.data)) >= self.ws.data.offsets[self.ws.data.user + 1] - 5

    def make_batches(self):
        batches = Filtered(self.data)
        batches.keep, batches.cold = torch.from_numpy(~self.is_cold), self.cold
        return batches

    def rows(self):
        rows = super().rows()
        return rows[~self.is_cold[rows] & ~self.apart[rows]]

    def validation(self):
        rows = super().validation()
        return rows[~self.is_cold[rows]]

    def asked(self) -> np.ndarray:
        """The positions kept apart whose item is cold."""
        return np.flatnonzero(self.apart & self.is_cold)


# -- runs -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Arm:
    """A line of ``towers.toml``, which explains the fields."""

    row: str
    name: str
    what: str
    seeds: int
    recipe: Recipe
    parts: tuple[str, ...]
    trainer: str
    options: Mapping[str, Any]

    @property
    def setting(self) -> type[Setting]:
        return type(self.name, tuple(globals()[name] for name in self.parts) or (Setting,), {})

    def made_of(self, seed: int) -> dict[str, Any]:
        """Everything that decides the outcome besides data and the library's code."""
        recipe = asdict(replace(self.recipe, training=replace(self.recipe.training, seed=seed)))
        names = [*self.parts, self.trainer, *(["AttentionPooling"] if "attention" in self.recipe.pooling else [])]
        return {"recipe": recipe, "options": dict(self.options), "parts": names, "code": code_of(names)}


def code_of(names: Sequence[str]) -> str:
    """A hash of these classes of this file, and of those they name."""
    found, wanted = {}, list(names)
    while wanted:
        name = wanted.pop()
        if name not in found and inspect.getmodule(globals().get(name)) is sys.modules[__name__]:
            found[name] = inspect.getsource(globals()[name])
            wanted += re.findall(r"\b[A-Z]\w+", found[name])
    return digest(dict(sorted(found.items())))


def read_arm(line: Mapping[str, Any]) -> Arm:
    own = {"row": "", "what": "", "parts": [], "trainer": "Trainer", "options": {}}
    variant = read_variant({n: v for n, v in line.items() if n not in own}, seeds=3)
    fields = {name: line.get(name, default) for name, default in own.items()}
    return Arm(
        **{**fields, "parts": tuple(fields["parts"])}, name=variant.name, seeds=variant.seeds, recipe=variant.recipe
    )


def train(arm: Arm, setting: Setting, seed: int) -> Trainer:
    config = replace(arm.recipe.training, seed=seed)
    trainer = globals()[arm.trainer](setting.model(seed), setting.batches, config)
    trainer.options, trainer.setting = arm.options, setting
    trainer.fit(setting.rows(), lambda m: evaluate(m, setting.batches, setting.validation()), progress=False)
    return trainer


def run(ws: Workspace, arm: Arm, seed: int) -> dict[str, Any]:
    """:func:`measure`, once."""
    return shared.once(path_of(ws, "arm", arm, seed), lambda: measure(ws, arm, seed))


def path_of(ws: Workspace, kind: str, arm: Arm, seed: int) -> Path:
    made_of = [arm.made_of(seed), ws.data.fingerprint(), ws.split.fingerprint(), code_digest()]
    made_of += [kind] if kind != "arm" else []
    return ws.folder / "towers" / f"{digest(made_of)[:12]}.json"


def measure(ws: Workspace, arm: Arm, seed: int) -> dict[str, Any]:
    """Train an arm and rank every user's validation and test row."""
    setting = arm.setting(ws, arm.recipe, arm.options)
    if arm.name == "default":  # other parts need its weights
        model, seconds = ws.trained("dssm", seed)
    else:
        trainer = train(arm, setting, seed)
        model, seconds = trainer.model, trainer.train_seconds
    scorer = TwoTowerScorer(model, setting.batches)
    parts = {part: getattr(ws.split, part) for part in ("validation", "test")}
    ranks = {part: rank_targets(scorer, setting.data, positions).tolist() for part, positions in parts.items()}
    covered = coverage(top_k(scorer, setting.data, ws.split.validation)[0], ws.data.n_items - FIRST)
    return {"settings": arm.made_of(seed), "seconds": seconds, "coverage": covered, "ranks": ranks}


def measure_cold(arm: Arm, setting: Cold, seed: int) -> dict[str, Any]:
    """Ranks of cold and of warm targets; the cold ids are unknown, as they were drawn, or the mean of neighbours."""
    trainer = train(arm, setting, seed)
    rows = trainer.model.item_tower.embedding.tables["item_id"].weight.data

    def cold() -> list[float]:
        return rank_targets(TwoTowerScorer(trainer.model, setting.batches), setting.data, setting.asked()).tolist()

    warm = TwoTowerScorer(trainer.model, setting.batches)
    ranks = {"warm": rank_targets(warm, setting.data, setting.validation()).tolist(), "unknown": cold()}
    setting.batches.cold = None
    ranks["as drawn"] = cold()
    rows[setting.cold] = rows[neighbours(setting)].mean(dim=1)
    return {"seconds": trainer.train_seconds, "ranks": ranks | {"neighbours": cold()}}


def neighbours(setting: Cold, k: int = 10) -> Tensor:
    """The ``k`` warm items most like each cold one: genres (Jaccard), then a year less for thirty: ``[C, k]``."""
    data, counts = setting.data, setting.data.item_counts(setting.rows())
    genres = genres_of(data)
    year = torch.from_numpy(np.append([0, 0], data.vocabularies["year"].values))[data.item_columns["year"]].float()
    common, size = genres[setting.cold] @ genres.T, genres.sum(dim=1)
    alike = common / (size[setting.cold].unsqueeze(1) + size - common).clamp(min=1)
    alike -= (year[setting.cold].unsqueeze(1) - year).abs() / 30
    return alike.masked_fill(torch.from_numpy(counts < 5), -torch.inf).topk(k, dim=1).indices


LIST = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
ARMS, COLD = ([read_arm(line) for line in LIST[table]] for table in ("arms", "cold"))


def genres_of(data: EncodedData) -> Tensor:
    """Ones at (item, genre), ``[I, G]``."""
    genres = torch.zeros(data.n_items, len(data.vocabularies["genres"]))
    genres.scatter_(1, torch.from_numpy(data.item_columns["genres"]), 1.0)[:, PADDING] = 0
    return genres


# -- tables -----------------------------------------------------------------------------------------------------------


def ranks_of(runs: Sequence[Mapping[str, Any]], part: str = "validation") -> np.ndarray:
    return np.array([found["ranks"][part] for found in runs])


def ranges(ranks: np.ndarray) -> dict[str, float]:
    """Between the best and the worst seed of ranks ``[seeds, n]``."""
    per_seed = [figures(one[None]) for one in ranks]
    return {name: float(np.ptp([found[name] for found in per_seed])) for name in MEASURES}


def passes(difference: Mapping[str, Sequence[float]], spread: Mapping[str, float]) -> bool:
    """Above noise (interval above zero, further than the default's seeds apart) on Hit@10 or NDCG@10, below on none."""
    above = any(difference[m][1] > 0 and difference[m][0] > spread[m] for m in ("hit@10", "ndcg@10"))
    return above and not any(high < 0 for _, _, high in difference.values())


def arms(ws: Workspace, most: int = 5) -> None:
    """Make the runs of all arms, at most so many seeds of each, and the table."""
    for arm in ARMS:
        for seed in range(min(arm.seeds, most)):
            run(ws, arm, seed)
    table(ws)


def table(ws: Workspace) -> None:
    """The sections ``arms``, ``default_range`` and ``stars``, of the runs there are."""
    rows, liked, default = [], [], None
    for arm in ARMS:
        paths = [path_of(ws, "arm", arm, seed) for seed in range(arm.seeds)]
        runs = [shared.read_json(path) for path in paths if path.exists()]
        if not runs:
            continue
        ranks = ranks_of(runs)
        default = ranks if default is None else default
        row = {"row": arm.row, "name": arm.name, "what": arm.what, "seeds": len(runs), **figures(ranks)}
        row |= {name: float(np.mean([r[name] for r in runs if name in r] or [0])) for name in ("coverage", "seconds")}
        row["difference"] = compare(ranks, default[: len(ranks)])
        row["passes"] = len(runs) >= 3 and passes(row["difference"], ranges(default))
        rows.append(row)
        if arm.row in ("default", "positives"):
            liked.append(judged(ws, arm.name, ranks, default[: len(ranks)]))
        gaps = (f"{name} {row[name]:.4f} {row['difference'][name][0]:+.4f}" for name in MEASURES)
        print(f"{arm.name:32s}", len(runs), *gaps, f"{row['seconds']:.0f} s", row["passes"], flush=True)
    keep(ws, runs, arms=rows, default_range=ranges(default), stars=liked)


def dial(ws: Workspace) -> None:
    """The section ``dial``: scores of the default plus lambda · log q (cosines, so times the temperature)."""
    log_q = log_shares(ws.data.item_counts(ws.split.train))
    curve = []
    for strength in np.linspace(-0.6, 0.4, 21).round(2).tolist():
        found = []
        for seed in range(3):
            scorer = ws.scorer("dssm", seed)
            scorer = partial(shifted, scorer, strength * scorer.model.temperature * log_q)
            hits = metrics(rank_targets(scorer, ws.data, ws.split.validation))["hit@10"]
            shown = top_k(scorer, ws.data, ws.split.validation)[0]
            found.append([hits, coverage(shown, ws.data.n_items - FIRST)])
        curve.append({"lambda": strength, **dict(zip(("hit@10", "coverage"), np.mean(found, axis=0), strict=True))})
    keep(ws, [], dial=curve)


def shifted(scorer: TwoTowerScorer, offset: Tensor, positions: np.ndarray) -> Tensor:
    return scorer(positions) + offset


def cold(ws: Workspace) -> None:
    """The section ``cold``: three draws of cold items, one seed each, the users' cold and warm targets."""
    arms, places = [], []
    for arm in COLD:
        runs = []
        for draw in range(arm.seeds):
            one = replace(arm, options={**arm.options, "draw": draw})
            setting = one.setting(ws, one.recipe, one.options)
            path = path_of(ws, "cold", one, draw)
            runs.append(shared.once(path, lambda: measure_cold(one, setting, draw)))  # noqa: B023
            if arm is COLD[0]:
                places.append(by_genre(setting))
        ranks = {name: np.concatenate([found["ranks"][name] for found in runs]) for name in runs[0]["ranks"]}
        default = ranks if not arms else default  # noqa: F821
        one = {"name": arm.name, "what": arm.what, "draws": arm.seeds}
        one["seconds"] = float(np.mean([found["seconds"] for found in runs]))
        for name, found in ranks.items():
            one[name] = {**short(found), "difference": compare(found, default[name])}
        arms.append(one)
        sizes = {"cold_rows": len(ranks["unknown"]), "warm_rows": len(ranks["warm"])}
        baselines = {"chance": chance_level(ws.data.n_items - FIRST), "by genre": metrics(np.concatenate(places))}
        baselines = {name: {m: found[m] for m in MEASURES} for name, found in baselines.items()}
        keep(ws, runs, cold={**sizes, "baselines": baselines, "arms": arms})
        print(arm.name, {name: short(found) for name, found in ranks.items()}, flush=True)


def short(ranks: np.ndarray) -> dict[str, float]:
    return {name: metrics(ranks)[name] for name in MEASURES}


def by_genre(setting: Cold) -> np.ndarray:
    """Ranks of cold targets by the share of their genres in the history times popularity; a cold item has the mean
    count of its genres' items."""
    data, genres = setting.data, genres_of(setting.data)
    counts = torch.from_numpy(data.item_counts(setting.rows())).float()
    warm = genres * ~setting.cold.unsqueeze(1)
    typical = genres @ (warm.T @ counts / warm.sum(dim=0).clamp(min=1)) / genres.sum(dim=1).clamp(min=1)
    counts = torch.where(setting.cold, typical, counts)

    def scorer(positions: np.ndarray) -> Tensor:
        taste = genres[setting.batches.users(positions)["history"]].mean(dim=1)  # [B, G]
        return taste @ genres.T / genres.sum(dim=1).clamp(min=1) * counts

    return rank_targets(scorer, data, setting.asked())


def test(ws: Workspace) -> None:
    """The section ``test``: the best arm on test, once, beside the default and RecBole's SASRec."""
    best, default = (next(arm for arm in ARMS if arm.name == name) for name in (LIST["best"], "default"))
    runs = {arm.name: [run(ws, arm, seed) for seed in range(5)] for arm in (default, best)}
    ranks = {name: ranks_of(found, "test") for name, found in runs.items()}
    sasrec = shared.read_json(shared.HERE / "sasrec_ranks.json")
    ranks["sasrec"] = np.array(list(sasrec["test"].values()))
    found = {"default": "default", "best": best.name, "sasrec": "sasrec"}
    section = {name: {"name": key, "seeds": len(ranks[key]), **figures(ranks[key])} for name, key in found.items()}
    section["difference"] = compare(ranks[best.name], ranks["default"])
    section["to_sasrec"] = compare(ranks[best.name], ranks["sasrec"])
    section["passes"] = passes(section["difference"], ranges(ranks["default"]))
    keep(ws, [], test=section)


def judged(ws: Workspace, name: str, ranks: np.ndarray, default: np.ndarray) -> dict[str, Any]:
    """An arm on every user's validation row, and on those of them with at least four stars."""
    liked = stars(ws)[ws.split.validation] >= LIKED
    both = {"any": np.ones_like(liked), "liked": liked}
    return {
        "name": name,
        **{
            target: {
                "users": int(of.sum()),
                **figures(ranks[:, of]),
                "difference": compare(ranks[:, of], default[:, of]),
            }
            for target, of in both.items()
        },
    }


def keep(ws: Workspace, runs: Sequence[Mapping[str, Any]], **sections: Any) -> None:
    """Write sections of ``towers.json``, the others as they are."""
    about = {"dataset": ws.dataset, "split": "validation"}
    if runs:
        about |= {"machine": (machine := shared.machines(list(runs))), "date": machine["date"]}
    shared.write_json(FILE, {**shared.read_json(FILE), **about, **sections})


if __name__ == "__main__":
    tables = {part.__name__: part for part in (arms, table, dial, cold, test)}
    parser = shared.command_line(__doc__)
    parser.add_argument("--only", nargs="+", choices=tables, default=list(tables))
    parser.add_argument("--seeds", type=int, default=5, help="of an arm at most")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tables["arms"] = partial(arms, most=arguments.seeds)
    for name in arguments.only:
        tables[name](Workspace("ml-100k", progress=False))
