"""The default model with one thing changed at a time, as ``variants.toml`` lists it, for notebook 10.

    python benchmarks/variants.py                   # everything, some three hours on one core
    python benchmarks/variants.py --only sweeps     # or ablation

A sweep trains half as long as the default and is read on validation. The ablation trains in full, with several seeds,
and is read on test; every choice in the default was made on validation.

Each run is kept in ``artifacts/<dataset>/variants/`` under a hash of its settings, the data, the split and the code
that ran. So an interrupted command goes on where it stopped, and a changed library starts anew.

**Seconds** can be compared within a table: before and after each training some steps of the untouched default are timed
in the same process, and the training's seconds are divided by how much slower these were than beside the default's own
training. ``seconds_measured`` is what the clock said.
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
from dssm_helpers.training import Diverged, Trainer, TrainingConfig

MEASURES = ("hit@10", "hit@100", "ndcg@10")


@dataclass(frozen=True)
class Variant:
    """The default model with something changed.

    ``settings`` are fields of :class:`Recipe` and of :class:`TrainingConfig`; ``variants.toml`` explains the others.
    """

    name: str
    seeds: int
    settings: Mapping[str, Any]
    change: str | None = None
    members: int = 1
    refit: bool = False

    def recipe(self, seed: int) -> Recipe:
        """All settings of the model and its training."""
        default = RECIPES["dssm"]
        of_training = self.settings.keys() & vars(default.training).keys()
        training = replace(default.training, **{name: self.settings[name] for name in of_training}, seed=seed)
        model = {name: value for name, value in self.settings.items() if name not in of_training}
        return replace(default, **model, training=training)

    def made_of(self, seed: int) -> dict[str, Any]:
        """Everything that decides the outcome besides data and the library's code."""
        change = self.change and inspect.getsource(CHANGES[self.change])
        return {"recipe": asdict(self.recipe(seed)), "change": change, "members": self.members, "refit": self.refit}


def dot_products(model: DSSM) -> None:
    model.user_tower.normalize = model.item_tower.normalize = False


def wide_start(model: DSSM) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            module.reset_parameters()


def own_history_table(model: DSSM) -> None:
    tables = model.user_tower.embedding.tables
    tables["history"] = copy.deepcopy(tables["history"])


CHANGES = {change.__name__: change for change in (dot_products, wide_start, own_history_table)}


def read_variant(line: dict[str, Any], seeds: int, **settings: Any) -> Variant:
    """A line of ``variants.toml``; what is no field of :class:`Variant` is a setting."""
    own = {f.name for f in fields(Variant)} - {"settings"}
    settings |= {name: tuple(v) if isinstance(v, list) else v for name, v in line.items() if name not in own}
    return Variant(settings=settings, **{"seeds": seeds, **{name: v for name, v in line.items() if name in own}})


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
    """Train a variant and rank every user's held-out movies.

    ``ranks`` are those of every user's validation and test row: of a diverged run the worst there is; a refit has seen
    the validation rows. ``default_step_ms``: what a step of the default took just then.
    """
    split, scorers, losses, seconds, diverged = ws.split, [], [], 0.0, False
    beside = [default_step_ms(ws)]
    for member in range(seed * variant.members, (seed + 1) * variant.members):
        recipe = variant.recipe(member)
        model = build_model(ws.data, recipe, member)
        if variant.change:
            CHANGES[variant.change](model)
        # Seen movies are masked by a batch's history, so no variant gets a shorter one than the default.
        batches = BatchBuilder(ws.data, max(ws.batches.max_history, recipe.max_history))
        rows, validate = split.train, lambda m, b=batches: evaluate(m, b, split.validation)
        if variant.refit:  # as many epochs as before, nothing left to choose on
            rows, validate = np.sort(np.concatenate([split.train, split.validation])), None
        trainer = Trainer(model, batches, recipe.training)
        try:
            trainer.fit(rows, validate, progress=False)
            scorers.append(TwoTowerScorer(model, batches))
        except Diverged:
            diverged = True
        seconds += trainer.train_seconds
        losses += [row["loss"] for row in trainer.history.to_dict("records")]
    beside.append(default_step_ms(ws))

    def ranks(positions: np.ndarray) -> list[float]:
        if diverged:
            return [float(ws.data.n_items)] * len(positions)
        # The product of vectors side by side is a sum of products.
        return rank_targets(lambda p: sum(scorer(p) for scorer in scorers), ws.data, positions).tolist()

    return {
        "settings": variant.made_of(seed),
        "threads": torch.get_num_threads(),
        "seconds": seconds,
        "default_step_ms": float(np.mean(beside)),
        "loss": losses,
        "diverged": diverged,
        "ranks": {"validation": ranks(split.validation), "test": ranks(split.test)},
    }


def default_step_ms(ws: Workspace, steps: int = 40) -> float:
    """Milliseconds of one training step of the default: what this machine is worth at this moment."""
    config = TrainingConfig(epochs=2)  # the first warms up
    rows = ws.split.train[: steps * config.batch_size]
    history = Trainer(build_model(ws.data), ws.batches, config).fit(rows, progress=False)
    return 1e3 * history["seconds"].iloc[-1] / max(1, len(rows) // config.batch_size)


def comparable_seconds(found: Mapping[str, Any], default: Mapping[str, Any]) -> float:
    """Seconds of a run as if the machine had been as quick as during the ``default``'s."""
    return found["seconds"] * default["default_step_ms"] / found["default_step_ms"]


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
    """The content of ``sweeps.json``; missing runs are made.

    ``hits`` of a point: Hit@10 of every validation row, one bit each, in hexadecimal.
    """
    default, layout, runs = run(ws, SWEEPS["centre"][1][0]), {}, {}
    for name, (title, variants) in SWEEPS.items():
        layout[name] = {"title": title, "points": []}
        for variant in variants:
            found = [run(ws, variant, seed) for seed in range(variant.seeds)]
            layout[name]["points"].append({"label": variant.name, "keys": [of_one["key"] for of_one in found]})
            runs |= {of_one["key"]: of_one for of_one in found}
    points = {}
    for place, found in runs.items():
        ranks = np.array(found["ranks"]["validation"])
        means = metrics(ranks)
        points[place] = {
            **{name: round(means[name], 5) for name in MEASURES},
            "loss": [round(loss, 4) for loss in found["loss"]],
            "seconds": round(comparable_seconds(found, default), 2),
            "seconds_measured": round(found["seconds"], 2),
            "users": len(ranks),
            "hits": f"{int(''.join('1' if rank <= 10 else '0' for rank in ranks), 2):x}",
            "date": found["machine"]["date"],
            **{name: found[name] for name in ("diverged", "machine", "settings")},
        }
    about = {"dataset": ws.dataset, "split": "validation", "machine": shared.machines(list(runs.values()))}
    return {**about, "sweeps": layout, "points": points}


def ablation(ws: Workspace) -> dict[str, Any]:
    """The content of ``ablation.json``; missing runs are made.

    ``difference`` is variant minus the course's model, each user averaged over seeds first.
    """
    runs = {v.name: [run(ws, v, seed) for seed in range(v.seeds)] for v in ABLATION}
    ranks = {name: np.array([found["ranks"]["test"] for found in of_one]) for name, of_one in runs.items()}
    best = ABLATION[0].name
    rows = []
    for variant in ABLATION:
        of_one = runs[variant.name]
        seconds = [comparable_seconds(found, runs[best][0]) for found in of_one]
        rows.append({
            "name": variant.name,
            "seeds": variant.seeds,
            **figures(ranks[variant.name]),
            "train_seconds": float(np.mean(seconds)),
            "difference": None if variant.name == best else compare(ranks[variant.name], ranks[best]),
            "machine": shared.machines(of_one),
        })  # fmt: skip
    everywhere = shared.machines([found for of_one in runs.values() for found in of_one])
    about = {"machine": everywhere, "date": everywhere["date"], "dataset": ws.dataset}
    return {**about, "seeds": max(variant.seeds for variant in ABLATION), "rows": rows}


if __name__ == "__main__":
    tables = {table.__name__: table for table in (ablation, sweeps)}
    parser = shared.command_line(__doc__)
    parser.add_argument("--only", nargs="+", choices=tables, default=list(tables))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.only:
        shared.write_json(shared.HERE / f"{name}.json", tables[name](Workspace("ml-100k", progress=False)))
