"""Tuning sweeps: one thing of the default model changed at a time, measured on validation (notebook 10).

Every point trains half as long as the default model, except where the number of epochs is the question.

    python benchmarks/sweeps.py              # what is missing in benchmarks/sweeps.json, about twenty minutes
    python benchmarks/sweeps.py --list       # the points and which are there
    python benchmarks/sweeps.py --only temperature pooling --force

Every finished point is written at once, so the run can be interrupted and continued. A point is kept as long as its
settings are the wanted ones; `--force` measures again. Test rows are never looked at.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine

from dssm_helpers import seed_everything
from dssm_helpers.evaluation import TwoTowerScorer, metrics, rank_targets
from dssm_helpers.features import BatchBuilder, default_features
from dssm_helpers.files import write_atomically
from dssm_helpers.model import DSSM
from dssm_helpers.training import Diverged, Trainer
from dssm_helpers.workspace import RECIPES, Recipe, Workspace

STORED = Path(__file__).resolve().with_suffix(".json")
KEPT = ("hit@10", "hit@100", "ndcg@10")


@dataclass(frozen=True)
class Point:
    """One setting of a sweep.

    Args:
        label: what stands at the axis.
        recipe: the model and its training.
        item_dims: layers of the item tower where they differ from the user tower's.
        leave_out: features the towers do not get.
        seeds: how many seeds it is worth.
    """

    label: str
    recipe: Recipe
    item_dims: tuple[int, ...] | None = None
    leave_out: tuple[str, ...] = ()
    seeds: int = 1

    def settings(self, seed: int) -> dict[str, Any]:
        """Everything that decides the outcome besides data and code."""
        wanted = {"recipe": asdict(replace(self.recipe, training=replace(self.recipe.training, seed=seed)))}
        return json.loads(json.dumps({**wanted, "item_dims": self.item_dims, "leave_out": self.leave_out}))

    def key(self, seed: int) -> str:
        """Points of two sweeps with the same settings share their measurement."""
        return hashlib.sha256(json.dumps(self.settings(seed), sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Sweep:
    """A question to the default model: ``axis`` is what changes."""

    title: str
    axis: str
    points: list[Point] = field(default_factory=list)


EPOCHS = 4  # half of the default's: most of its recall in half the time, and the differences are the same kind
CENTRE = replace(RECIPES["dssm"], training=replace(RECIPES["dssm"].training, epochs=EPOCHS))


def _model(label: Any, **changes: Any) -> Point:
    return Point(str(label), replace(CENTRE, **changes))


def _training(label: Any, recipe: Recipe = CENTRE, seeds: int = 1, **changes: Any) -> Point:
    return Point(str(label), replace(recipe, training=replace(CENTRE.training, **changes)), seeds=seeds)


def _pooling(*poolings: str, seeds: int = 1) -> Point:
    pooling = poolings if len(poolings) > 1 else poolings[0]
    return Point(" + ".join(poolings), replace(CENTRE, pooling=pooling), seeds=seeds)


def _towers(label: str, user: tuple[int, ...], item: tuple[int, ...]) -> Point:
    return Point(label, replace(CENTRE, dims=user), item_dims=None if user == item else item)


def _sampled(label: str, sampler: str, n_negatives: int) -> Point:
    return _training(label, objective="list_wise", sampler=sampler, n_negatives=n_negatives)


DEMOGRAPHICS = ("gender", "age", "occupation", "zip")
DEPTHS = {"64": (64,), "256-64": (256, 64), "512-256-64": (512, 256, 64)}

SWEEPS: dict[str, Sweep] = {
    "centre": Sweep("The default model, four epochs", "seed", [Point("default", CENTRE, seeds=3)]),
    "epochs": Sweep("Epochs, one cycle each", "epochs", [_training(n, epochs=n) for n in (2, 4, 8, 16)]),
    "temperature": Sweep(
        "Temperature", "temperature",
        [_model(t, temperature=t) for t in (0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)],
    ),
    "switches": Sweep(
        "Switched off in the loss", "switched off",
        [
            Point("nothing", CENTRE),
            _training("logQ", logq=False, seeds=2),
            _training("seen movies masked", mask_seen=False),
            _training("accidental hits masked", mask_accidental_hits=False),
        ],
    ),
    "pooling": Sweep(
        "Pooling of the history", "pooling",
        [
            _pooling("mean"), _pooling("sum"), _pooling("max"),
            _pooling("recency:1"), _pooling("recency:3"), _pooling("recency:10"),
            _pooling("mean", "recency:10"), _pooling("mean", "recency:1", "recency:10"),
        ],
    ),
    "history": Sweep(
        "How many movies the history holds", "history length",
        [_model(n, max_history=n) for n in (1, 5, 10, 50, 100)],
    ),
    "batch_size": Sweep(
        "Batch size, learning rate fixed", "batch size",
        [_training(n, batch_size=n) for n in (64, 128, 256, 512, 1024, 2048)],
    ),
    "dimension": Sweep(
        "Size of the vectors", "last width of both towers",
        [_model(d, dims=(256, d)) for d in (16, 32, 64, 128)],
    ),
    "towers": Sweep(
        "Depth and balance of the towers", "user tower | item tower",
        [
            _towers("64 | 64", (64,), (64,)),
            _towers("128-64 | 128-64", (128, 64), (128, 64)),
            _towers("256-64 | 256-64", (256, 64), (256, 64)),
            _towers("512-256-64 | 512-256-64", (512, 256, 64), (512, 256, 64)),
            _towers("256-64 | 64", (256, 64), (64,)),
            _towers("64 | 256-64", (64,), (256, 64)),
        ],
    ),
    "features": Sweep(
        "Features left out", "without",
        [
            Point("nothing", CENTRE),
            Point("user id", CENTRE, leave_out=("user_id",)),
            Point("demographics", CENTRE, leave_out=DEMOGRAPHICS),
            Point("year and genres", CENTRE, leave_out=("year", "genres")),
            Point("all but history and movie id", CENTRE, leave_out=("user_id", *DEMOGRAPHICS, "year", "genres")),
            Point("history", CENTRE, leave_out=("history",)),
        ],
    ),
    "dropout": Sweep(
        "Dropout of the embeddings", "share of inputs dropped",
        [_model(p, dropout=p) for p in (0.0, 0.1, 0.2, 0.35, 0.5)],
    ),
    "negatives": Sweep(
        "Sampled negatives, softmax over 1 + n", "negatives",
        [
            _sampled("4 uniform", "uniform", 4),
            _sampled("32 uniform", "uniform", 32),
            _sampled("128 uniform", "uniform", 128),
            _sampled("32 count^0.75", "count^0.75", 32),
            _sampled("32 log count", "log_count", 32),
            _sampled("32 log-uniform", "log_uniform", 32),
            Point("in-batch, logQ", CENTRE),
        ],
    ),
    "learning_rate": Sweep(
        "Learning rate against depth", "layers of both towers × learning rate",
        [
            _training(f"{name} × {rate:g}", replace(CENTRE, dims=dims), learning_rate=rate)
            for name, dims in DEPTHS.items() for rate in (5e-4, 2e-3, 8e-3, 3e-2)
        ],
    ),
}  # fmt: skip


def build(workspace: Workspace, point: Point, seed: int) -> DSSM:
    """The untrained model of a point."""
    recipe = point.recipe
    seed_everything(seed)
    user, item = default_features(
        workspace.data, dim=recipe.dim, pooling=recipe.pooling, max_history=recipe.max_history
    )
    user, item = ([f for f in features if f.name not in point.leave_out] for features in (user, item))
    sides = [{"dims": dims, "dropout": recipe.dropout} for dims in (recipe.dims, point.item_dims or recipe.dims)]
    return DSSM(user, item, *sides, temperature=recipe.temperature)


def measure(workspace: Workspace, point: Point, seed: int = 0, *, progress: bool = False) -> dict[str, Any]:
    """Train a point and evaluate it on validation.

    Returns:
        Hit@10, Hit@100, NDCG@10, the losses, training seconds, whether it diverged, and who was hit: one bit per
        validation row in hexadecimal (see :func:`hits`), so that points can be compared user by user.
    """
    batches = BatchBuilder(workspace.data, max_history=point.recipe.max_history, device=workspace.device)
    validation = workspace.split.validation
    model = build(workspace, point, seed).to(workspace.device)
    trainer = Trainer(model, batches, replace(point.recipe.training, seed=seed))
    try:
        trainer.fit(workspace.split.train, validation, progress=progress)
        ranks = rank_targets(TwoTowerScorer(model, batches), workspace.data, validation)
    except Diverged:
        ranks = np.full(len(validation), np.inf)
    bits = "".join("1" if rank <= 10 else "0" for rank in ranks)
    return {
        **{name: round(metrics(ranks)[name], 5) for name in KEPT},
        "loss": [round(row["loss"], 4) for row in trainer.history.to_dict("records")],
        "seconds": round(trainer.train_seconds, 2),
        "diverged": bool(np.isinf(ranks).any()),
        "users": len(validation),
        "hits": f"{int(bits, 2):x}",
    }


def hits(point: dict[str, Any]) -> np.ndarray:
    """Hit@10 of every validation row of a stored point, ``[users]`` of 0 and 1."""
    return np.array([int(bit) for bit in f"{int(point['hits'], 16):0{point['users']}b}"])


def wanted(names: list[str] | None = None) -> Iterator[tuple[str, Point, int]]:
    """``(key, point, seed)`` of the named sweeps, every measurement once."""
    done = set()
    for name in names or SWEEPS:
        for point in SWEEPS[name].points:
            for seed in range(point.seeds):
                if (key := point.key(seed)) not in done:
                    done.add(key)
                    yield key, point, seed


def read(path: Path = STORED) -> dict[str, Any]:
    """The stored file; an empty one where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"points": {}}


def store(path: Path, key: str, point: Point, seed: int, result: dict[str, Any], dataset: str) -> None:
    """Merge one point into the file, whatever else was written to it meanwhile."""
    today = datetime.date.today().isoformat()
    layout = {
        name: {
            "title": sweep.title,
            "axis": sweep.axis,
            "points": [{"label": p.label, "keys": [p.key(s) for s in range(p.seeds)]} for p in sweep.points],
        }
        for name, sweep in SWEEPS.items()
    }
    points = {**read(path)["points"], key: {**result, "date": today, "settings": point.settings(seed)}}
    points = {key: points[key] for key, _, _ in wanted() if key in points}  # settings nobody asks for any more go
    content = {"dataset": dataset, "split": "validation", "machine": machine(), "sweeps": layout, "points": points}
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def run(
    workspace: Workspace, path: Path = STORED, names: list[str] | None = None, *, force: bool = False, log: Any = print
) -> dict[str, Any]:
    """Measure what is missing of the named sweeps (all by default) and return the file's content."""
    there = {} if force else read(path)["points"]
    todo = [entry for entry in wanted(names) if entry[0] not in there]
    for number, (key, point, seed) in enumerate(todo, 1):
        result = measure(workspace, point, seed)
        store(path, key, point, seed, result, workspace.dataset)
        log(
            f"[{number}/{len(todo)}] {point.label:<32} seed {seed}  Hit@10 {result['hit@10']:.3f}  "
            f"Hit@100 {result['hit@100']:.3f}  {result['seconds']:6.1f} s",
            flush=True,
        )
    return read(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="SWEEP", choices=SWEEPS, help=f"of {', '.join(SWEEPS)}")
    parser.add_argument("--force", action="store_true", help="measure again what is there")
    parser.add_argument("--list", action="store_true", help="show the points and stop")
    parser.add_argument("--output", type=Path, default=STORED, help="file to merge into (default: beside this script)")
    arguments = parser.parse_args()
    if arguments.list:
        there = read(arguments.output)["points"]
        for key, point, seed in wanted(arguments.only):
            print(f"{'there  ' if key in there else 'missing'}  {key}  seed {seed}  {point.label}")
        return
    run(Workspace("ml-100k"), arguments.output, arguments.only, force=arguments.force)


if __name__ == "__main__":
    main()
