"""What each ingredient of the course's model is worth: take one out, train again, compare user by user.

    python benchmarks/ablation.py                 # all rows; finished runs are kept and not repeated
    python benchmarks/ablation.py --rows "no logQ correction" --seeds 2

Figures are test figures of ml-100k under the course's protocol; every choice in ``RECIPES["dssm"]`` was made on
validation. ``difference`` is variant minus best with a paired bootstrap over users, each user averaged over seeds
first. Writes ``benchmarks/ablation.json`` after every row; per-user ranks lie in ``artifacts/ablation/``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import HERE, ROOT, machine, write_atomically

from dssm_helpers import seed_everything
from dssm_helpers.evaluation import EASE, ItemKNN, Scorer, TwoTowerScorer, metrics, ndcg, paired_bootstrap, rank_targets
from dssm_helpers.features import SequenceFeature, default_features
from dssm_helpers.model import DSSM
from dssm_helpers.training import Trainer
from dssm_helpers.workspace import RECIPES, Recipe, Workspace

BEST = "the course's model"
MEAN = "mean pooling over 10 movies"
SIDE_BY_SIDE = "three models side by side"
CACHE = ROOT / "artifacts" / "ablation"


@dataclass(frozen=True)
class Variant:
    """The best recipe with one thing changed."""

    what: str
    recipe: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    shared: bool = True
    unnormalised: bool = False
    embedding_std: float | None = None
    refit: bool = False
    members: int = 1


VARIANTS = {
    BEST: Variant("mean + two recency poolings, logQ, masks, dropout, temperature 0.1"),
    MEAN: Variant(
        "the textbook DSSM with everything else kept (`dssm_mean`)", {"pooling": "mean", "max_history": 10}
    ),
    "mean pooling over 50 movies": Variant("the same without a short window", {"pooling": "mean"}),
    "one recency pooling": Variant("recency:3 alone", {"pooling": "recency:3"}),
    "no logQ correction": Variant("popular movies are punished as negatives", training={"logq": False}),
    "no accidental-hit mask": Variant(
        "the target also counts as a negative", training={"mask_accidental_hits": False, "mask_seen": True}
    ),
    "no seen-movie mask": Variant("watched movies count as negatives", training={"mask_seen": False}),
    "no dropout": Variant("", {"dropout": 0.0}),
    "temperature 1.0": Variant("cosines too close together for a softmax", {"temperature": 1.0}),
    "temperature 0.02": Variant("only the hardest negatives count", {"temperature": 0.02}),
    "no normalisation": Variant(
        "dot products instead of cosines, temperature 1", {"temperature": 1.0}, unnormalised=True
    ),
    "embeddings start at N(0, 1)": Variant("torch's default instead of N(0, 0.02²)", embedding_std=1.0),
    "a history table of its own": Variant("not shared with the item tower", shared=False),
    "no user id": Variant("the history alone tells who it is", without=("user_id",)),
    "no demographics": Variant("", without=("gender", "age", "occupation", "zip")),
    "no genres, no year": Variant("", without=("genres", "year")),
    "four recency poolings": Variant(
        "tried: half-lives 0.5, 2, 8, 30", {"pooling": ("recency:0.5", "recency:2", "recency:8", "recency:30")}
    ),
    "128 dimensions": Variant("tried: slower", {"dim": 128, "dims": (256, 128)}),
    "16 epochs": Variant("tried: twice the seconds", training={"epochs": 16}),
    SIDE_BY_SIDE: Variant(
        "tried: vectors of three trainings laid side by side, 192 dimensions, three times the seconds", members=3
    ),
    "refit on train + validation": Variant(
        "what production would do once the choices are made; no comparison uses it", refit=True
    ),
    "label smoothing 0.1": Variant("tried", training={"label_smoothing": 0.1}),
    "list-wise, 128 uniform negatives": Variant(
        "the paper's objective", training={"objective": "list_wise", "n_negatives": 128}
    ),
}  # fmt: skip


def build(ws: Workspace, variant: Variant, recipe: Recipe, seed: int) -> DSSM:
    """The variant's untrained model."""
    seed_everything(seed)
    user, item = default_features(ws.data, dim=recipe.dim, pooling=recipe.pooling, max_history=recipe.max_history)
    user, item = ([f for f in side if f.name not in variant.without] for side in (user, item))
    if not variant.shared:
        user = [replace(f, shared_with=None) if isinstance(f, SequenceFeature) else f for f in user]
    params = {"dims": recipe.dims, "dropout": recipe.dropout}
    model = DSSM(user, item, params, params, temperature=recipe.temperature)
    model.user_tower.normalize = model.item_tower.normalize = not variant.unnormalised
    if variant.embedding_std is not None:
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding):
                torch.nn.init.normal_(module.weight, std=variant.embedding_std)
                with torch.no_grad():
                    module.weight[0].zero_()
    return model


def run(ws: Workspace, name: str, seed: int) -> tuple[np.ndarray, float]:
    """Test ranks of one trained variant and its training seconds; from the cache where it is already there."""
    variant = VARIANTS[name]
    base = RECIPES["dssm"]
    training = replace(base.training, seed=seed, **variant.training)
    recipe = replace(base, training=training, **variant.recipe)
    code = b"".join(
        (ROOT / "dssm_helpers" / f"{module}.py").read_bytes()
        for module in ("data", "features", "model", "evaluation", "training")
    )
    key = json.dumps([asdict(variant), asdict(recipe), ws.data.fingerprint()], sort_keys=True).encode() + code
    path = CACHE / f"{hashlib.sha256(key).hexdigest()[:20]}.npz"
    if not path.exists():
        scorers, seconds = [], 0.0
        for member in range(seed * variant.members, (seed + 1) * variant.members):
            model = build(ws, variant, recipe, member)
            trainer = Trainer(model, ws.batches, replace(training, seed=member))
            if variant.refit:  # as many epochs as before, nothing left to choose on
                trainer.fit(np.sort(np.concatenate([ws.split.train, ws.split.validation])), progress=False)
            else:
                trainer.fit(ws.split.train, ws.split.validation, progress=False)
            scorers.append(TwoTowerScorer(model, ws.batches))
            seconds += trainer.train_seconds

        def scores(positions: np.ndarray) -> torch.Tensor:  # the product of vectors side by side: a sum of products
            return sum(scorer(positions) for scorer in scorers)

        ranks = rank_targets(scores, ws.data, ws.split.test)
        with write_atomically(path) as temporary, temporary.open("wb") as file:
            np.savez(file, ranks=ranks, seconds=seconds)
    with np.load(path) as stored:
        return stored["ranks"], float(stored["seconds"])


MEASURES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "hit@10": lambda ranks: ranks <= 10,
    "hit@100": lambda ranks: ranks <= 100,
    "ndcg@10": lambda ranks: ndcg(ranks, 10),
}


def compare(ours: np.ndarray, theirs: np.ndarray) -> dict[str, list[float]]:
    """``ours`` minus ``theirs`` (ranks ``[seeds, n]`` or ``[n]``) with its 95 % interval, for each measure."""
    result = {}
    for name, measure in MEASURES.items():
        found = paired_bootstrap(measure(ours), measure(theirs))
        result[name] = [found.difference, found.low, found.high]
    return result


def figures(ranks: np.ndarray) -> dict[str, float]:
    """Mean of each measure over seeds, and the spread of Hit@10 between them."""
    per_seed = [metrics(r) for r in np.atleast_2d(ranks)]
    row = {name: float(np.mean([m[name] for m in per_seed])) for name in MEASURES}
    return {**row, "hit@10_std": float(np.std([m["hit@10"] for m in per_seed]))}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="of the course's two models and of the best one tried")
    parser.add_argument("--row-seeds", type=int, default=3, help="of every other row")
    parser.add_argument("--rows", nargs="*", choices=list(VARIANTS), metavar="NAME", help="some rows only")
    parser.add_argument("--out", type=Path, default=HERE / "ablation.json")
    options = parser.parse_args()
    ws = Workspace("ml-100k", progress=False)
    names = [name for name in VARIANTS if name == BEST or not options.rows or name in options.rows]
    rows, best = [], None
    for name in names:
        n_seeds = options.seeds if name in (BEST, MEAN, SIDE_BY_SIDE) else min(options.seeds, options.row_seeds)
        runs = [run(ws, name, seed) for seed in range(n_seeds)]
        ranks = np.stack([r for r, _ in runs])
        best = ranks if name == BEST else best
        row = {"name": name, "what": VARIANTS[name].what, "seeds": n_seeds, **figures(ranks)}
        row["train_seconds"] = float(np.mean([seconds for _, seconds in runs]))
        row["difference"] = None if name == BEST else compare(ranks, best)
        rows.append(row)
        report = {
            "machine": machine(),
            "date": machine()["date"],
            "dataset": "ml-100k",
            "seeds": options.seeds,
            "rows": rows,
            "against": against(ws, best),
        }
        with write_atomically(options.out) as temporary:
            temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        print(f"{name:<34}" + "  ".join(f"{m} {row[m]:.3f}" for m in MEASURES), flush=True)
    return 0


def against(ws: Workspace, best: np.ndarray) -> list[dict[str, Any]]:
    """The best model against baselines, and against RecBole's SASRec where ``peers.py`` has stored its ranks."""
    baselines: dict[str, Scorer] = {"EASE": EASE(ws.data, ws.split.train), "item-kNN": ItemKNN(ws.data, ws.split.train)}
    ranks = {name: rank_targets(scorer, ws.data, ws.split.test) for name, scorer in baselines.items()}
    path = HERE / "sasrec_ranks.json"
    if path.exists():
        stored = json.loads(path.read_text(encoding="utf-8"))
        ranks[stored["model"]] = np.asarray(stored["test"], dtype=np.float64)
    return [{"name": name, **figures(r), "difference": compare(best, r)} for name, r in ranks.items()]


if __name__ == "__main__":
    sys.exit(main())
