"""What an arm of ``towers.py`` changes in the default training: encoders, losses, rows, columns, batches."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from dssm_helpers import seed_everything
from dssm_helpers.course.workspace import Workspace
from dssm_helpers.data import EncodedData, encode
from dssm_helpers.evaluation import TwoTowerScorer, interaction_matrix
from dssm_helpers.features import POOLINGS, BatchBuilder, Feature, RecencyPooling, SparseFeature, default_features
from dssm_helpers.model import DSSM, UserTower
from dssm_helpers.movielens import SCHEMA
from dssm_helpers.objectives import in_history, list_wise_loss, with_unknown_ids
from dssm_helpers.recipes import Recipe
from dssm_helpers.schema import Column
from dssm_helpers.text import text_trigrams
from dssm_helpers.training import Trainer, both_towers
from dssm_helpers.vocabulary import FIRST, PADDING, UNKNOWN

LIKED = 4  # stars

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
        return list_wise_loss(own, others, masked)

    def encode(self, items: Tensor) -> Tensor:
        """Vectors of items, a share of their ids dropped as in the batch."""
        batch = {**self.batches.items(items), "user_id": items}
        return self.model.item_tower(with_unknown_ids(batch, self.config.id_dropout))

    def draw(self, generator: Generator) -> Tensor:
        return torch.randint(FIRST, self.batches.data.n_items, (self.options["n"],), generator=generator)


class Uniform(Candidates):
    """``n`` items for the whole batch, each as probable; then q is the same for all and cancels."""

    def candidates(self, items, target, generator):
        drawn = self.draw(generator)
        return self.encode(drawn), drawn, torch.zeros_like(self._log_q)


class Full(Uniform):
    """All items."""

    def draw(self, generator):
        return torch.arange(FIRST, self.batches.data.n_items)


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
            return list_wise_loss(own, hard, seen)
        others = torch.cat([self.model.logits(users, items) - self._log_q[target], hard - self._log_q[drawn]], dim=1)
        masked = (target == target.unsqueeze(1)) | in_history(batch["history"], target)
        return list_wise_loss(own - self._log_q[target], others, torch.cat([masked, seen], dim=1))


class Weighted(Candidates):
    """A row counts by its stars."""

    def reduce(self, own, others, masked, positions):
        weight = torch.from_numpy(self.setting.stars)[positions].float()
        logits = torch.cat([own.unsqueeze(1), others.masked_fill(masked, -torch.inf)], dim=1)
        return (-logits.log_softmax(dim=1)[:, 0] * weight).sum() / weight.sum()


class Student(Mixed):
    """Mixed candidates; half of the target is what ``members`` default models, their vectors side by side, say."""

    def _train_epoch(self, train, steps, bar):
        if not self._rows:
            scorers = [self.setting.ws.scorer("dssm", seed) for seed in self.options["members"]]
            self.taught = torch.cat([scorer.item_vectors for scorer in scorers], dim=1)  # [I, M·D]
            parts = np.array_split(np.arange(len(self.batches.data)), 50)
            self.users = torch.cat([torch.cat([s.user_vectors(part) for s in scorers], dim=1) for part in parts])
        return super()._train_epoch(train, steps, bar)

    def _loss(self, positions, generator):
        batch = self.batches(positions)
        seen, target = batch["history"], batch["item_id"]
        users, items = both_towers(self.model, batch, self.config)
        vectors, others, log_q = self.candidates(items, target, generator)  # the batch comes first
        masked = (others == target.unsqueeze(1)) | in_history(seen, others)
        masked.fill_diagonal_(False)
        said = self.users[positions] @ self.taught[others].T / len(self.options["members"]) / self.model.temperature
        logits = (self.model.logits(users, vectors), said)
        own, teacher = ((of - log_q[others]).masked_fill(masked, -torch.inf).log_softmax(dim=1) for of in logits)
        soft = -(teacher.exp() * own.masked_fill(masked, 0.0)).sum(dim=1).mean()
        return (soft - own.diagonal().mean()) / 2


# -- what an arm changes ----------------------------------------------------------------------------------------------


class Setting:
    """The course's default, step by step. A part overrides a step and goes on from the one it replaces."""

    scorer = TwoTowerScorer

    def __init__(self, ws: Workspace, recipe: Recipe, options: Mapping[str, Any]):
        self.ws, self.recipe, self.options = ws, recipe, options
        self.data, self.stars = self.encode(), stars(ws)
        self.batches = self.make_batches()

    def encode(self) -> EncodedData:
        return self.ws.data

    def make_batches(self) -> BatchBuilder:
        return BatchBuilder(self.data)

    def rows(self) -> np.ndarray:
        return self.ws.split.train

    def validation(self) -> np.ndarray:
        return self.ws.split.validation

    def features(self) -> tuple[list[Feature], list[Feature]]:
        names = ("dim", "pooling", "max_history", "without")
        return default_features(self.data, **{name: getattr(self.recipe, name) for name in names})

    def model(self, seed: int) -> DSSM:
        seed_everything(seed)
        tower = {"dims": self.recipe.dims, "dropout": self.recipe.dropout}
        return DSSM(*self.features(), tower, tower, temperature=self.recipe.temperature)


def stars(ws: Workspace) -> np.ndarray:
    """Of every position, ``[N]``."""
    ratings, ids = ws.tables.ratings, ws.data.vocabularies["user_id"]
    order = np.lexsort((ratings["timestamp"].to_numpy(), ids.encode(ratings["user_id"].to_numpy())))
    return ratings["rating"].to_numpy()[order]


class Attentive(Setting):
    """:class:`Encoder` beside the poolings of the history."""

    def model(self, seed):
        model = super().model(seed)
        tower, embedding, dim = model.user_tower, model.user_tower.embedding, self.recipe.dim
        embedding.poolings["history"] = Encoder(embedding.poolings["history"], dim, self.options.get("blocks", 1))
        embedding.width += dim
        tower.mlp[0] = nn.Linear(embedding.width, tower.mlp[0].out_features)
        return model


class ManyVectors(UserTower):
    """The mlp's result is cut into unit vectors of the items' size: ``[B, K, D]``."""

    dim: int

    def forward(self, batch):
        return F.normalize(self.mlp(self.embedding(batch)).unflatten(1, (-1, self.dim)), dim=2)


class BestOf(DSSM):
    """Of a user's vectors the one with the higher score counts, item by item."""

    def logits(self, users: Tensor, items: Tensor) -> Tensor:
        return super().logits(users, items).amax(dim=1)  # [B, K, N] → [B, N]


class BestScorer(TwoTowerScorer):
    def __call__(self, positions: np.ndarray) -> Tensor:
        return super().__call__(positions).amax(dim=1)


class Interests(Setting):
    """``vectors`` user vectors instead of one."""

    scorer = BestScorer

    def model(self, seed):
        model = super().model(seed)
        tower, dim = model.user_tower, model.dim
        tower.mlp[-1] = nn.Linear(tower.mlp[-1].in_features, self.options["vectors"] * dim)
        tower.__class__, tower.dim, model.__class__ = ManyVectors, dim, BestOf
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
    """Histories of what is to ``keep``, positions ``[N]``."""

    keep: Tensor

    def users(self, positions):
        positions = torch.as_tensor(positions)
        slots = (positions.unsqueeze(1) - torch.arange(1, self.max_history + 1)).clamp(min=0)
        history = (batch := super().users(positions))["history"] * self.keep[slots]
        order = (history == PADDING).int().argsort(dim=1, stable=True)  # what is left moves together
        return {**batch, "history": history.gather(1, order)}


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
        return user, [replace(f, embed_dim=48) if f.name == "trigrams" else f for f in item]


PAUSES = (1, 60, 3600, 86_400, 7 * 86_400, 30 * 86_400)  # seconds
DAYS = (0, 86_400, 7 * 86_400, 30 * 86_400)
TIMES = {"hour": 24, "weekday": 7, "pause": len(PAUSES) + 2, "days": len(DAYS) + 1, "week": 40}  # values of each


class Timed(BatchBuilder):
    """What a request's time says, as further columns of the user."""

    def users(self, positions):
        batch, at = super().users(positions), np.asarray(positions)
        time, first = self.data.timestamp, self.data.offsets[self.data.user[at]] == at
        pause = np.where(first, len(PAUSES) + 1, np.digitize(time[at] - time[at - 1], PAUSES))
        days = np.where(first, len(DAYS), np.digitize(time[at] - time[at - 1], DAYS))
        found = {"hour": time[at] // 3600 % 24, "weekday": time[at] // 86_400 % 7, "pause": pause, "days": days}
        found["week"] = (time[at] - time.min()) // (7 * 86_400)
        return {**batch, **{name: torch.from_numpy(values + FIRST) for name, values in found.items()}}


class Time(Setting):
    """Columns of :class:`Timed` as user features."""

    def make_batches(self):
        return Timed(self.data)

    def features(self):
        user, item = super().features()
        return [*user, *(SparseFeature(n, FIRST + TIMES[n], 16) for n in self.options["columns"])], item


class Cold(Setting):
    """A tenth of the items (``draw``), of those with five interactions, is ``cold [I]``: no id, in no history or row.
    Each user's last five rows are kept ``apart [N]``, and those of them whose item is cold are ``asked``."""

    def make_batches(self):
        data = self.data
        often = np.flatnonzero(data.item_counts(np.arange(len(data))) >= 5)
        chosen = np.random.default_rng(self.options["draw"]).choice(often, data.n_items // 10, replace=False)
        self.cold = torch.zeros(data.n_items, dtype=torch.bool).index_fill(0, torch.from_numpy(chosen), True)
        self.is_cold = self.cold.numpy()[data.item]
        self.apart = np.arange(len(data)) >= data.offsets[data.user + 1] - 5
        self.asked = np.flatnonzero(self.apart & self.is_cold)
        batches = Filtered(data)
        batches.keep = torch.from_numpy(~self.is_cold)
        batches.item_columns["item_id"] = batches.item_columns["item_id"].masked_fill(self.cold, UNKNOWN)
        return batches

    def rows(self):
        rows = super().rows()
        return rows[~self.is_cold[rows] & ~self.apart[rows]]

    def validation(self):
        rows = super().validation()
        return rows[~self.is_cold[rows]]


def neighbours(setting: Cold, k: int = 10) -> Tensor:
    """The ``k`` warm items most like each cold one: genres (Jaccard), then a year less for thirty: ``[C, k]``."""
    data, counts = setting.data, setting.data.item_counts(setting.rows())
    genres = torch.from_numpy(data.multi_hot("genres")).float()
    year = torch.from_numpy(np.append([0, 0], data.vocabularies["year"].values))[data.item_columns["year"]].float()
    common, size = genres[setting.cold] @ genres.T, genres.sum(dim=1)
    alike = common / (size[setting.cold].unsqueeze(1) + size - common).clamp(min=1)
    alike -= (year[setting.cold].unsqueeze(1) - year).abs() / 30
    return alike.masked_fill(torch.from_numpy(counts < 5), -torch.inf).topk(k, dim=1).indices
