"""DSSM: two towers, cosine, temperature (notebook 03).

P.-S. Huang et al., "Learning Deep Structured Semantic Models for Web Search using Clickthrough Data", CIKM 2013.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .features import Batch, Feature, Pooling, SequenceFeature, SparseFeature
from .vocabulary import PADDING


class Table(nn.Embedding):
    """``nn.Embedding`` with a faster gradient for sequences on a CPU."""

    def forward(self, index: Tensor) -> Tensor:
        """Indices of any shape ``[...]`` → ``[..., D]``. In a sequence, padded places must be masked afterwards."""
        if not self.training or index.dim() < 2 or index.device.type != "cpu" or self.sparse:
            return super().forward(index)
        # The same lookup. Its gradient is summed several times as fast (and, unlike that of plain indexing, in an order
        # that does not depend on the threads); padded places send none, because pooling masks them.
        return self.weight.index_select(0, index.flatten()).unflatten(0, index.shape)


class PReLU(nn.PReLU):
    """``nn.PReLU``, in training written so that its gradient is vectorised on a CPU: half the time, same values."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.lerp(x.relu(), x, self.weight) if self.training else super().forward(x)


ACTIVATIONS = {"prelu": PReLU, "relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}


class FeatureEmbedding(nn.Module):
    """Look up every feature and lay the results side by side (notebook 03, "From a batch to a vector").

    Args:
        features: what to look up.
        shared: embedding tables by feature name, for sequences declared with ``shared_with``.
        dropout: share of the concatenated inputs set to zero in training.
    """

    def __init__(
        self, features: Sequence[Feature], shared: Mapping[str, nn.Embedding] | None = None, dropout: float = 0.0
    ):
        super().__init__()
        names = [feature.name for feature in features]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"a tower needs at least one feature, each with its own name; got {names}")
        self.features = tuple(features)
        self.tables = nn.ModuleDict()
        self.poolings = nn.ModuleDict()
        self.dropout = nn.Dropout(dropout)
        self.width = sum(feature.width for feature in features)
        for feature in features:
            self.tables[feature.name] = self._table(feature, shared or {})
            if isinstance(feature, SequenceFeature):
                self.poolings[feature.name] = Pooling(feature.poolings, feature.max_length)

    @staticmethod
    def _table(feature: Feature, shared: Mapping[str, nn.Embedding]) -> nn.Embedding:
        source = feature.shared_with if isinstance(feature, SequenceFeature) else None
        if source is None:
            rows_only = isinstance(feature, SparseFeature) and feature.rows_only
            table = Table(feature.vocab_size, feature.embed_dim, padding_idx=PADDING, sparse=rows_only)
            # Small, so that early cosines come from all features alike and not from the widest table.
            nn.init.normal_(table.weight, std=0.02)
            with torch.no_grad():
                table.weight[PADDING].zero_()
            return table
        if source not in shared:
            raise ValueError(f"feature {feature.name!r} shares with {source!r}, which is not among {sorted(shared)}")
        expected = (shared[source].num_embeddings, shared[source].embedding_dim)
        if (feature.vocab_size, feature.embed_dim) != expected:
            raise ValueError(
                f"feature {feature.name!r} is {feature.vocab_size} × {feature.embed_dim}, but the table of {source!r} "
                f"it shares is {expected[0]} × {expected[1]}; give both the same vocab_size and embed_dim"
            )
        return shared[source]

    def forward(self, batch: Batch) -> Tensor:
        """Batch of indices → ``[B, width]``."""
        parts = []
        for feature in self.features:
            if feature.name not in batch:
                raise KeyError(f"the batch has no {feature.name!r}; it has {', '.join(sorted(batch))}")
            index = batch[feature.name]
            if isinstance(feature, SparseFeature):
                parts.append(self.tables[feature.name](index))
                continue
            index = index[..., : feature.max_length]  # [B, L]
            embedded = self.tables[feature.name](index)  # [B, L, D]
            parts.append(self.poolings[feature.name](embedded, index != PADDING))
        return self.dropout(torch.cat(parts, dim=-1))


def _mlp(width: int, dims: Sequence[int], activation: str) -> nn.Sequential:
    """Linear layers with an activation between them; the last is linear, so that cosines can be negative."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}; choose from {', '.join(ACTIVATIONS)}")
    layers: list[nn.Module] = []
    for size in dims[:-1]:
        layers += [nn.Linear(width, size), ACTIVATIONS[activation]()]
        width = size
    return nn.Sequential(*layers, nn.Linear(width, dims[-1]))


class ItemTower(nn.Module):
    """Item columns → unit vectors ``[B, D]``. ``normalize=False`` leaves their length (a break-it switch)."""

    def __init__(self, features: Sequence[Feature], dims: Sequence[int], activation: str, dropout: float = 0.0):
        super().__init__()
        self.embedding = FeatureEmbedding(features, dropout=dropout)
        self.mlp = _mlp(self.embedding.width, dims, activation)
        self.normalize = True

    def forward(self, batch: Batch) -> Tensor:
        vector = self.mlp(self.embedding(batch))
        return F.normalize(vector, dim=-1) if self.normalize else vector


class UserTower(nn.Module):
    """User columns and history → unit vectors ``[B, D]``. A class of its own: drawings show class names."""

    def __init__(
        self,
        features: Sequence[Feature],
        dims: Sequence[int],
        activation: str,
        shared: Mapping[str, nn.Embedding],
        dropout: float = 0.0,
    ):
        super().__init__()
        self.embedding = FeatureEmbedding(features, shared, dropout)
        self.mlp = _mlp(self.embedding.width, dims, activation)
        self.normalize = True

    def forward(self, batch: Batch) -> Tensor:
        vector = self.mlp(self.embedding(batch))
        return F.normalize(vector, dim=-1) if self.normalize else vector


class DSSM(nn.Module):
    """Two towers whose only contact is a dot product (notebook 03).

    Args:
        user_features, item_features: what each tower sees.
        user_params, item_params: ``{"dims": [...], "activation": "prelu", "dropout": 0.0}``. The last dim is the
            size of the vectors and must be the same in both.
        temperature: divides the cosine. Cosines live in [-1, 1]; a softmax over thousands of candidates needs a
            wider range to say "this one".

    Raises:
        ValueError: towers of unequal width, a temperature that is not positive, unknown names.
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
        default = {"dims": [256, 64], "activation": "prelu", "dropout": 0.0}
        for side, params in (("user", user_params), ("item", item_params)):
            unknown = sorted(set(params or {}) - set(default))
            if unknown:  # a parameter nobody reads is worse than an error
                raise ValueError(f"unknown {side}_params {', '.join(unknown)}; choose from {', '.join(default)}")
        user_params, item_params = {**default, **(user_params or {})}, {**default, **(item_params or {})}
        user_dims, item_dims = list(user_params["dims"]), list(item_params["dims"])
        if not user_dims or not item_dims:
            raise ValueError("a tower needs at least one layer: dims must not be empty")
        if user_dims[-1] != item_dims[-1]:
            raise ValueError(
                f"the user tower ends in {user_dims[-1]} dimensions and the item tower in {item_dims[-1]}. "
                "The score is a dot product of the two vectors, so both need the same last width; "
                "the widths before it are free"
            )
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        self.temperature = float(temperature)
        self.item_tower = ItemTower(item_features, item_dims, item_params["activation"], item_params["dropout"])
        self.user_tower = UserTower(
            user_features,
            user_dims,
            user_params["activation"],
            dict(self.item_tower.embedding.tables),
            user_params["dropout"],
        )

    @property
    def dim(self) -> int:
        """Size of the vectors."""
        return self.item_tower.mlp[-1].out_features

    def forward(self, batch: Batch) -> Tensor:
        """Score of each (user, movie) row: cosine / temperature, ``[B]``."""
        return (self.user_tower(batch) * self.item_tower(batch)).sum(dim=-1) / self.temperature
