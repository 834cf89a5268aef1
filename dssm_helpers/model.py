"""DSSM: two towers, cosine, temperature (notebook 03).

P.-S. Huang et al., "Learning Deep Structured Semantic Models for Web Search using Clickthrough Data", CIKM 2013.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .features import Batch, Feature, Pooling, SequenceFeature, column_of
from .vocabulary import PADDING, UNKNOWN, Vocabulary

ACTIVATIONS = {"prelu": nn.PReLU, "relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}

Tables = Mapping[str, nn.Embedding]


class FeatureEmbedding(nn.Module):
    """Look up every feature and lay the results side by side (notebook 03, "From a batch to a vector").

    A sequence declared with ``shared_with`` uses that table of ``shared``. ``dropout`` sets a share of the result to 0.
    """

    def __init__(self, features: Sequence[Feature], shared: Tables | None = None, dropout: float = 0.0):
        super().__init__()
        self.features = tuple(features)
        self.tables = nn.ModuleDict({feature.name: _table(feature, shared or {}) for feature in features})
        sequences = [feature for feature in features if isinstance(feature, SequenceFeature)]
        self.poolings = nn.ModuleDict({f.name: Pooling(f.poolings, f.embed_dim, f.max_length) for f in sequences})
        self.dropout = nn.Dropout(dropout)
        self.width = sum(feature.width for feature in features)

    def forward(self, batch: Batch) -> Tensor:
        """Batch of indices → ``[B, width]``."""
        parts = []
        for feature in self.features:
            table, index = self.tables[feature.name], batch[feature.name]  # [B], or [B, L] of a sequence
            if isinstance(feature, SequenceFeature):
                index = index[..., : feature.max_length]
                parts.append(self.poolings[feature.name](table(index), index != PADDING))
            else:
                parts.append(table(index))
        return self.dropout(torch.cat(parts, dim=-1))


def _table(feature: Feature, shared: Tables) -> nn.Embedding:
    """The feature's embedding table: the one it shares, or its own with a padding row that stays zero."""
    source = getattr(feature, "shared_with", None)
    if source is None:
        rows_only = getattr(feature, "rows_only", False)
        table = nn.Embedding(feature.vocab_size, feature.embed_dim, padding_idx=PADDING, sparse=rows_only)
        # Small, so that early cosines come from all features alike and not from the widest table.
        nn.init.normal_(table.weight, std=0.02)
        table.weight.data[PADDING] = 0
        return table
    if source not in shared or shared[source].weight.shape != (feature.vocab_size, feature.embed_dim):
        tables = {name: tuple(table.weight.shape) for name, table in shared.items()}
        raise ValueError(f"{feature} needs a table {source!r} of its own vocab_size and embed_dim; there are {tables}")
    return shared[source]


class Tower(nn.Module):
    """Columns → unit vectors ``[B, D]``: embeddings, linear layers with an activation between, length 1.

    The last layer is linear, so that cosines can be negative. ``normalize = False`` leaves the vectors' length.
    """

    def __init__(
        self,
        features: Sequence[Feature],
        shared: Tables | None = None,
        *,
        dims: Sequence[int] = (256, 64),
        activation: str = "prelu",
        dropout: float = 0.0,
    ):
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation {activation!r}; choose from {', '.join(ACTIVATIONS)}")
        self.embedding = FeatureEmbedding(features, shared, dropout)
        layers: list[nn.Module] = []
        for wide, narrow in pairwise([self.embedding.width, *dims]):
            layers += [nn.Linear(wide, narrow), ACTIVATIONS[activation]()]
        self.mlp = nn.Sequential(*layers[:-1])
        self.normalize = True

    def forward(self, batch: Batch) -> Tensor:
        vector = self.mlp(self.embedding(batch))
        return F.normalize(vector, dim=-1) if self.normalize else vector


class UserTower(Tower):
    """A name of its own: drawings show class names."""


class ItemTower(Tower):
    """Likewise."""


class DSSM(nn.Module):
    """Two towers whose only contact is a dot product (notebook 03).

    ``user_params`` and ``item_params`` are the named parameters of :class:`Tower`; both end in the same width. The
    temperature divides the cosine: a softmax over thousands of candidates needs a wider range than [-1, 1] to say "this
    one".
    """

    def __init__(
        self,
        user_features: Sequence[Feature],
        item_features: Sequence[Feature],
        user_params: Mapping[str, Any] | None = None,
        item_params: Mapping[str, Any] | None = None,
        temperature: float = 0.1,
    ):
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        self.temperature = float(temperature)
        self.item_tower = ItemTower(item_features, **(item_params or {}))
        self.user_tower = UserTower(user_features, dict(self.item_tower.embedding.tables), **(user_params or {}))
        user_width = self.user_tower.mlp[-1].out_features
        if user_width != self.dim:
            raise ValueError(
                f"the user tower ends in {user_width} dimensions and the item tower in {self.dim}. The score is a dot "
                "product of the two vectors, so both need the same last width; the widths before it are free"
            )

    @property
    def dim(self) -> int:
        """Size of the vectors."""
        return self.item_tower.mlp[-1].out_features

    def logits(self, users: Tensor, items: Tensor) -> Tensor:
        """Scores ``[B, N]`` of vectors, the only place that divides by the temperature (notebook 03, "Temperature").

        ``users [B, D]`` with ``items [N, D]``: every user with every item; ``[B, N, D]``: each user with its own.
        """
        users = users / self.temperature
        return users @ items.T if items.dim() == 2 else (items @ users.unsqueeze(-1)).squeeze(-1)

    def forward(self, batch: Batch) -> Tensor:
        """Score of each (user, item) row: cosine / temperature, ``[B]``."""
        return self.logits(self.user_tower(batch), self.item_tower(batch).unsqueeze(1)).squeeze(1)


def features_of(module: nn.Module) -> dict[str, Feature]:
    """What a model, or one of its towers, reads, by name; of models side by side each has the same."""
    return {f.name: f for part in module.modules() if isinstance(part, FeatureEmbedding) for f in part.features}


def with_rows(model: DSSM, rows: Mapping[str, Sequence[int]]) -> DSSM:
    """A copy whose table of each column in ``rows`` has those rows of the model's, in that order."""
    changed = copy.deepcopy(model)
    for old, new in zip(model.modules(), changed.modules(), strict=True):
        if not isinstance(old, FeatureEmbedding):
            continue
        features = {feature.name: feature for feature in old.features}
        for name, feature in features.items():
            if (taken := rows.get(column_of(feature))) is not None:
                table = new.tables[name]  # of a shared table one and the same, which gets its rows twice
                table.weight = nn.Parameter(old.tables[name].weight.data[taken])
                table.num_embeddings = len(taken)
                features[name] = replace(feature, vocab_size=len(taken))
        new.features = tuple(features.values())
    return changed


def grown(model: DSSM, vocabularies: Mapping[str, Vocabulary]) -> DSSM:
    """A copy with a table row for each value that the ``vocabularies`` got since (notebook 15, "A table grows").

    They are extensions of those the model was built with. A new row starts as a copy of row 1, "unknown": the copy says
    of a new id what the model says of an unknown one, and of everything else the same.
    """
    rows = {}
    for feature in features_of(model).values():
        column, size = column_of(feature), feature.vocab_size
        rows[column] = [*range(size), *[UNKNOWN] * (len(vocabularies[column]) - size)]
    return with_rows(model, rows)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Dropout and gradients off inside the block; every module's mode is put back afterwards, also after an error."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        # Uncompiled: evaluation has other batch sizes, and each would be compiled anew.
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for module, training in modes:
            module.training = training
