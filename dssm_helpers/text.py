"""Search as in the DSSM paper: words as letter trigrams, two towers, a query and a document (notebook 16).

P.-S. Huang et al., CIKM 2013.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .features import SequenceFeature
from .model import DSSM, FeatureEmbedding, evaluation_mode
from .objectives import in_batch_loss, list_wise_loss
from .vocabulary import PADDING, Vocabulary

LONGEST = 100  # trigrams of a text that are read
Tokens = Callable[[str], list[str]]


def words(text: str) -> list[str]:
    """Runs of letters and digits, in lower case: ``"San José"`` → ``["san", "josé"]``."""
    return re.findall(r"[^\W_]+", text.lower())


def trigrams(word: str) -> list[str]:
    """``"web"`` → ``["#we", "web", "eb#"]`` (notebook 16, "Word hashing")."""
    marked = f"#{word}#"
    return [marked[i : i + 3] for i in range(len(marked) - 2)]


def text_trigrams(text: str) -> list[str]:
    """The letter trigrams of all words of a text, repeats included."""
    return [trigram for word in words(text) for trigram in trigrams(word)]


def fit_trigrams(texts: Sequence[str], least: int = 3, tokens: Tokens = text_trigrams) -> Vocabulary:
    """The vocabulary of what comes at least ``least`` times; what is rarer shares row 1, "unknown", and trains it."""
    counts = Counter(token for text in texts for token in tokens(text))
    return Vocabulary.fit("trigrams", [token for token, n in counts.items() if n >= least])


def hashed(
    texts: Sequence[str], vocabulary: Vocabulary, max_length: int = LONGEST, tokens: Tokens = text_trigrams
) -> Tensor:
    """Texts as trigram ids ``[N, L]``, 0 as padding and 1 for an unknown trigram; longer texts are cut."""
    rows = [tokens(text)[:max_length] for text in texts]
    ids = np.full((len(rows), max(1, *map(len, rows))), PADDING, dtype=np.int64)
    flat = vocabulary.encode(np.array([t for row in rows for t in row] or [""], dtype=object))
    ids[np.arange(ids.shape[1]) < np.array([[len(row)] for row in rows])] = flat[: sum(map(len, rows))]
    return torch.from_numpy(ids)


class WordHashing(FeatureEmbedding):
    """Counts of trigrams times the first matrix: the sum of the rows of a table; and tanh.

    In training one kernel does it, many times as fast and with the same result; ONNX gets the course's pooling.
    """

    squash = staticmethod(torch.tanh)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        (feature,) = self.features
        if not self.training:
            return self.squash(super().forward(batch))
        ids, weight = batch[feature.name][:, : feature.max_length], self.tables[feature.name].weight
        return self.squash(F.embedding_bag(ids, weight, mode="sum", padding_idx=PADDING))


class LinearTanh(nn.Linear):
    """The paper's last layer; the course's towers end linear."""

    def forward(self, vector: Tensor) -> Tensor:
        return torch.tanh(super().forward(vector))


def paper_model(vocabulary: Vocabulary, gamma: float = 10.0, dims: Sequence[int] = (300, 128)) -> DSSM:
    """The paper's towers, query and document: trigrams → 300 → 300 → 128, tanh, cosine times gamma.

    Initial weights are uniform within ±sqrt(6 / (fan in + fan out)), as in the paper; the first layer has no bias.
    """
    size, params = len(vocabulary), {"dims": list(dims), "activation": "tanh"}
    sides = [[SequenceFeature(name, size, 300, "sum", max_length=LONGEST)] for name in ("query", "document")]
    model = DSSM(*sides, params, params, temperature=1 / gamma)
    for tower, side in zip((model.user_tower, model.item_tower), sides, strict=True):
        tower.embedding = WordHashing(side)
        tower.mlp[-1] = LinearTanh(tower.mlp[-1].in_features, dims[-1])
        for weight in tower.parameters():
            nn.init.xavier_uniform_(weight) if weight.dim() == 2 else nn.init.zeros_(weight)
        tower.embedding.tables[side[0].name].weight.data[PADDING] = 0
    return model


def fit_pairs(
    model: DSSM, queries: Tensor, documents: Tensor, clicked: np.ndarray, *, epochs: int, negatives: int | None = None,
    optimizer: torch.optim.Optimizer | None = None, batch_size: int = 1024, seed: int = 0,
) -> list[float]:  # fmt: skip
    """Train on pairs and return each epoch's mean loss.

    Args:
        queries, documents: trigram ids ``[N, L]`` and ``[D, L]``; ``clicked [N]``: the row of each query's document.
        negatives: that many random documents beside the clicked one, as the paper has it; None: the batch's others.
        optimizer: default AdamW with one cycle of the learning rate.
    """
    generator, losses = torch.Generator().manual_seed(seed), []
    clicked, schedule = torch.as_tensor(clicked), None
    steps = math.ceil(len(queries) / batch_size)
    if optimizer is None:
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps * epochs)
    model.train()
    for _ in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(queries), generator=generator).split(batch_size):
            if len(rows) == 1:  # has no others in its batch
                continue
            query, target = model.user_tower({"query": queries[rows]}), clicked[rows]
            if negatives is None:
                document = model.item_tower({"document": documents[target]})
                loss = in_batch_loss(model.logits(query, document), target)
            else:
                drawn = torch.randint(len(documents), (len(rows), negatives), generator=generator)
                shown = torch.cat([target.unsqueeze(1), drawn], dim=1)  # [B, 1 + n]
                document = model.item_tower({"document": documents[shown.flatten()]})
                logits = model.logits(query, document.view(*shown.shape, -1))
                loss = list_wise_loss(logits[:, 0], logits[:, 1:], drawn == target.unsqueeze(1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if schedule:
                schedule.step()
            total += loss.item() / steps
        losses.append(total)
    return losses


def vectors(model: DSSM, ids: Tensor, side: str = "query") -> np.ndarray:
    """Unit vectors ``[N, 128]`` of hashed queries or documents."""
    tower = model.user_tower if side == "query" else model.item_tower
    with evaluation_mode(model):
        return torch.cat([tower({side: part}) for part in ids.split(2048)]).numpy()
