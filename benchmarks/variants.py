"""The default model with one thing changed at a time, as ``variants.toml`` lists it, for notebook 10.

    python benchmarks/variants.py                   # everything, some three hours on one core
    python benchmarks/variants.py --only sweeps     # or ablation

A sweep trains half as long as the default and is read on validation. The ablation trains in full, with several seeds,
and is read on test; every choice in the default was made on validation. Each run is kept in
``artifacts/<dataset>/variants/``: an interrupted command goes on where it stopped, and a changed library starts anew.
"""

from __future__ import annotations

import copy
import inspect
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import machine as shared
import numpy as np
import torch

from dssm_helpers.course.workspace import Workspace, code_digest
from dssm_helpers.evaluation import TwoTowerScorer, evaluate, metrics, ndcg, paired_bootstrap, rank_targets, scoreboard
from dssm_helpers.features import BatchBuilder
from dssm_helpers.files import digest
from dssm_helpers.model import DSSM
from dssm_helpers.recipes import RECIPES, Recipe, build_model
from dssm_helpers.training import Diverged, Trainer

MEASURES = ("hit@10", "hit@100", "ndcg@10")


@dataclass(frozen=True)
class Variant:
    """The default model with something changed; ``variants.toml`` explains the fields."""

    name: str
    seeds: int
    recipe: Recipe
    change: str | None = None
    members: int = 1
    refit: bool = False

    def made_of(self, seed: int) -> dict[str, Any]:
        """Everything that decides the outcome besides data and the library's code."""
        change = self.change and inspect.getsource(CHANGES[self.change])
        recipe = replace(self.recipe, training=replace(self.recipe.training, seed=seed))
        return {"recipe": asdict(recipe), "change": change, "members": self.members, "refit": self.refit}


def dot_products(model: DSSM) -> None:
    model.user_tower.normalize = model.item_tower.normalize = False


def wide_start(model: DSSM) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            module.reset_parameters()


def own_history_table(model: DSSM) -> None:
    tables = model.user_tower.embedding.tables
    tables["history"] = copy.deepcopy(tables["history"])


def flat_user_tower(model: DSSM) -> None:
    tower = model.user_tower
    tower.mlp = torch.nn.Sequential(torch.nn.Linear(tower.embedding.width, tower.mlp[-1].out_features))


def flat_item_tower(model: DSSM) -> None:
    tower = model.item_tower
    tower.mlp = torch.nn.Sequential(torch.nn.Linear(tower.embedding.width, tower.mlp[-1].out_features))


CHANGES = {f.__name__: f for f in (dot_products, wide_start, own_history_table, flat_user_tower, flat_item_tower)}


def read_variant(line: Mapping[str, Any], seeds: int, kind: type[Variant] = Variant, **settings: Any) -> Variant:
    """A line of a list such as ``variants.toml``: fields of ``kind``, of the recipe and of its training."""
    line = {"seeds": seeds, **settings, **{name: tuple(v) if isinstance(v, list) else v for name, v in line.items()}}
    default = RECIPES["dssm"]
    own, training = ({f.name for f in fields(of)} & line.keys() for of in (kind, default.training))
    model = {name: line[name] for name in line.keys() - own - training}
    recipe = replace(default, **model, training=replace(default.training, **{name: line[name] for name in training}))
    return kind(recipe=recipe, **{name: line[name] for name in own})


LIST = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
ABLATION = [read_variant(line, seeds=3) for line in LIST["ablation"]]
SWEEPS = {
    name: (sweep["title"], [read_variant(line, seeds=1, epochs=4) for line in sweep["points"]])
    for name, sweep in LIST["sweeps"].items()
}


def run(ws: Workspace, variant: Variant, seed: int = 0) -> dict[str, Any]:
    """:func:`measure`, once. Variants of two tables with the same settings share their run."""
    made_of = [variant.made_of(seed), ws.data.fingerprint(), ws.split.fingerprint(), code_digest()]
    return shared.once(ws.folder / "variants" / f"{digest(made_of)[:12]}.json", lambda: measure(ws, variant, seed))


def measure(ws: Workspace, variant: Variant, seed: int = 0) -> dict[str, Any]:
    """Train a variant and rank every user's validation and test row (of a diverged run the worst rank there is)."""
    data, split, recipe = ws.data, ws.split, variant.recipe
    # Seen movies are masked by a batch's history, so no variant gets a shorter one than the default.
    batches = BatchBuilder(data, max(ws.batches.max_history, recipe.max_history))
    rows, validate = split.train, lambda model: evaluate(model, batches, split.validation)
    if variant.refit:  # as many epochs as before, nothing left to choose on
        rows, validate = np.sort(np.concatenate([split.train, split.validation])), None
    trainers, diverged = [], False
    for member in range(seed * variant.members, (seed + 1) * variant.members):
        model = build_model(data, recipe, member)
        if variant.change:
            CHANGES[variant.change](model)
        trainers.append(Trainer(model, batches, replace(recipe.training, seed=member)))
        try:
            trainers[-1].fit(rows, validate, progress=False)
        except Diverged:
            diverged = True

    def ranks(positions: np.ndarray) -> list[float]:
        if diverged:
            return [float(data.n_items)] * len(positions)
        scorers = [TwoTowerScorer(trainer.model, batches) for trainer in trainers]
        # The product of vectors side by side is a sum of products.
        return rank_targets(lambda p: sum(scorer(p) for scorer in scorers), data, positions).tolist()

    return {
        "settings": variant.made_of(seed),
        "threads": torch.get_num_threads(),
        "seconds": sum(trainer.train_seconds for trainer in trainers),
        "loss": [row["loss"] for trainer in trainers for row in trainer.history.to_dict("records")],
        "diverged": diverged,
        "ranks": {"validation": ranks(split.validation), "test": ranks(split.test)},
    }


def figures(ranks: np.ndarray) -> dict[str, float]:
    """Means over seeds of ranks ``[seeds, n]``, and the sample standard deviation of Hit@10 between them."""
    (row,) = scoreboard({"": ranks}).to_dict("records")
    return {**{name: row[name] for name in MEASURES}, "hit@10_std": row["±"]}


def compare(ours: np.ndarray, theirs: np.ndarray) -> dict[str, list[float]]:
    """``ours`` minus ``theirs`` (ranks ``[seeds, n]`` or ``[n]``) with its 95 % interval, users resampled."""
    measures = {"hit@10": lambda ranks: ranks <= 10, "hit@100": lambda ranks: ranks <= 100, "ndcg@10": ndcg}
    found = {name: paired_bootstrap(of(ours), of(theirs)) for name, of in measures.items()}
    return {name: [c.difference, c.low, c.high] for name, c in found.items()}


def sweeps(ws: Workspace) -> dict[str, Any]:
    """The content of ``sweeps.json``; missing runs are made."""
    layout, runs = {}, {}
    for name, (title, variants) in SWEEPS.items():
        layout[name] = {"title": title, "points": []}
        for variant in variants:
            found = [run(ws, variant, seed) for seed in range(variant.seeds)]
            layout[name]["points"].append({"label": variant.name, "keys": [of_one["key"] for of_one in found]})
            runs |= {of_one["key"]: of_one for of_one in found}
    about = {"dataset": ws.dataset, "split": "validation", "machine": shared.machines(list(runs.values()))}
    return {**about, "sweeps": layout, "points": {key: point(found) for key, found in runs.items()}}


def point(found: Mapping[str, Any]) -> dict[str, Any]:
    """A run in short. ``hits``: Hit@10 of every validation row, one bit each, in hexadecimal."""
    ranks = np.array(found["ranks"]["validation"])
    means = metrics(ranks)
    return {
        **{name: round(means[name], 5) for name in MEASURES},
        "loss": [round(loss, 4) for loss in found["loss"]],
        "seconds": round(found["seconds"], 2),
        "users": len(ranks),
        "hits": f"{int(''.join('1' if rank <= 10 else '0' for rank in ranks), 2):x}",
        "date": found["machine"]["date"],
        **{name: found[name] for name in ("diverged", "machine", "settings")},
    }


def ablation(ws: Workspace) -> dict[str, Any]:
    """The content of ``ablation.json``; ``difference`` is variant minus the course's model."""
    rows, everywhere, course = [], [], None
    for variant in ABLATION:
        runs = [run(ws, variant, seed) for seed in range(variant.seeds)]
        ranks = np.array([found["ranks"]["test"] for found in runs])
        rows.append({
            "name": variant.name,
            "seeds": variant.seeds,
            **figures(ranks),
            "train_seconds": float(np.mean([found["seconds"] for found in runs])),
            "difference": None if course is None else compare(ranks, course),
            "machine": shared.machines(runs),
        })  # fmt: skip
        course, everywhere = ranks if course is None else course, everywhere + runs
    machine = shared.machines(everywhere)
    about = {"machine": machine, "date": machine["date"], "dataset": ws.dataset}
    return {**about, "seeds": max(variant.seeds for variant in ABLATION), "rows": rows}


if __name__ == "__main__":
    tables = {table.__name__: table for table in (ablation, sweeps)}
    parser = shared.command_line(__doc__)
    parser.add_argument("--only", nargs="+", choices=tables, default=list(tables))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.only:
        shared.write_json(shared.HERE / f"{name}.json", tables[name](Workspace("ml-100k", progress=False)))
