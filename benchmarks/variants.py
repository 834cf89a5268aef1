"""The default model with one thing changed at a time: the sweeps and the ablation of notebook 10.

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
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
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

    Args:
        settings: fields of :class:`Recipe` and of :class:`TrainingConfig` that differ.
        change: does to the built model what no recipe says.
        members: so many models, trained apart, their vectors laid side by side.
        refit: train on the validation rows as well.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    seeds: int = 3
    change: Callable[[DSSM], None] | None = None
    members: int = 1
    refit: bool = False

    def recipe(self, seed: int) -> Recipe:
        """All settings of the model and its training."""
        of_training = {f.name for f in fields(TrainingConfig)} & set(self.settings)
        training = {name: self.settings[name] for name in of_training}
        model = {name: value for name, value in self.settings.items() if name not in of_training}
        default = RECIPES["dssm"]
        return replace(default, **model, training=replace(default.training, **training, seed=seed))

    def made_of(self, seed: int) -> dict[str, Any]:
        """Everything that decides the outcome besides data and the library's code."""
        change = self.change and inspect.getsource(self.change)
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


# -- The list ----------------------------------------------------------------------------------------------------------

EPOCHS = 4  # of a sweep's points, half of the default's: most of its recall, and the differences are the same kind
DEMOGRAPHICS = ("gender", "age", "occupation", "zip")
DEPTHS = {"64": (64,), "128-64": (128, 64), "256-64": (256, 64), "512-256-64": (512, 256, 64)}


def full(name: str, seeds: int = 3, **settings: Any) -> Variant:
    return Variant(name, settings, seeds)


def point(name: object, seeds: int = 1, **settings: Any) -> Variant:
    """A variant with half the epochs."""
    return full(str(name), seeds, **{"epochs": EPOCHS, **settings})


def along(setting: str, *values: Any) -> list[Variant]:
    return [point(value, **{setting: value}) for value in values]


def pooled(*poolings: str) -> Variant:
    return point(" + ".join(poolings), pooling=poolings if len(poolings) > 1 else poolings[0])


def sampled(n: int, sampler: str) -> Variant:
    name = sampler.replace("_", "-" if sampler == "log_uniform" else " ")
    return point(f"{n} {name}", objective="list_wise", sampler=sampler, n_negatives=n)


SWEEPS: dict[str, tuple[str, list[Variant]]] = {
    "centre": ("The default model, four epochs", [point("default", seeds=3)]),
    "epochs": ("Epochs, one cycle each", along("epochs", 2, 4, 8, 16)),
    "temperature": ("Temperature", along("temperature", 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)),
    "switches": ("Switched off in the loss", [
        point("nothing"),
        point("logQ", seeds=2, logq=0.0),
        point("seen movies masked", mask_seen=False),
        point("accidental hits masked", mask_accidental_hits=False),
    ]),
    "pooling": ("Pooling of the history", [
        *map(pooled, ("mean", "sum", "max", "recency:1", "recency:3", "recency:10")),
        pooled("mean", "recency:10"),
        pooled("mean", "recency:1", "recency:10"),
    ]),
    "history": ("How many movies the history holds", along("max_history", 1, 5, 10, 50, 100)),
    "batch_size": ("Batch size, learning rate fixed", along("batch_size", 64, 128, 256, 512, 1024, 2048)),
    "dimension": ("Size of the vectors", [point(d, dims=(256, d)) for d in (16, 32, 64, 128)]),
    "towers": ("Depth and balance of the towers", [
        *(point(f"{depth} | {depth}", dims=dims) for depth, dims in DEPTHS.items()),
        point("256-64 | 64", dims=(256, 64), item_dims=(64,)),
        point("64 | 256-64", dims=(64,), item_dims=(256, 64)),
    ]),
    "features": ("Features left out", [
        point("nothing"),
        point("user id", without=("user_id",)),
        point("demographics", without=DEMOGRAPHICS),
        point("year and genres", without=("year", "genres")),
        point("all but history and movie id", without=("user_id", *DEMOGRAPHICS, "year", "genres")),
        point("history", without=("history",)),
    ]),
    "dropout": ("Dropout of the embeddings", along("dropout", 0.0, 0.1, 0.2, 0.35, 0.5)),
    "negatives": ("Sampled negatives, softmax over 1 + n", [
        *(sampled(n, "uniform") for n in (4, 32, 128)),
        *(sampled(32, sampler) for sampler in ("count^0.75", "log_count", "log_uniform")),
        point("in-batch, logQ"),
    ]),
    "learning_rate": ("Learning rate against depth", [
        point(f"{depth} × {rate:g}", dims=DEPTHS[depth], learning_rate=rate)
        for depth in ("64", "256-64", "512-256-64") for rate in (5e-4, 2e-3, 8e-3, 3e-2)
    ]),
}  # fmt: skip

ABLATION = [
    full("the course's model", seeds=5),
    full("mean pooling over 10 movies", seeds=5, pooling="mean", max_history=10),  # the textbook's: `dssm_mean`
    full("mean pooling over 50 movies", pooling="mean"),
    full("one recency pooling", pooling="recency:3"),
    full("no logQ correction", logq=0.0),
    full("no accidental-hit mask", mask_accidental_hits=False),
    full("no seen-movie mask", mask_seen=False),
    full("no dropout", dropout=0.0),
    full("temperature 1.0", temperature=1.0),
    full("temperature 0.02", temperature=0.02),
    Variant("no normalisation", {"temperature": 1.0}, change=dot_products),
    Variant("embeddings start at N(0, 1)", change=wide_start),  # torch's default instead of N(0, 0.02²)
    Variant("a history table of its own", change=own_history_table),  # not shared with the item tower
    full("no user id", without=("user_id",)),
    full("no demographics", without=DEMOGRAPHICS),
    full("no genres, no year", without=("genres", "year")),
    full("four recency poolings", pooling=("recency:0.5", "recency:2", "recency:8", "recency:30")),
    full("128 dimensions", dim=128, dims=(256, 128)),
    full("16 epochs", epochs=16),
    Variant("three models side by side", members=3, seeds=5),  # 192 dimensions, three times the seconds
    Variant("refit on train + validation", refit=True),  # what production would do once the choices are made
    full("label smoothing 0.1", label_smoothing=0.1),
    full("list-wise, 128 uniform negatives", objective="list_wise", n_negatives=128),  # the paper's objective
]


# -- One run -----------------------------------------------------------------------------------------------------------


def key(ws: Workspace, variant: Variant, seed: int) -> str:
    """Variants of two tables with the same settings share their run."""
    return digest([variant.made_of(seed), ws.data.fingerprint(), ws.split.fingerprint(), code_digest()])[:12]


def run(ws: Workspace, variant: Variant, seed: int = 0) -> dict[str, Any]:
    """:func:`measure`, once."""
    path = ws.folder / "variants" / f"{key(ws, variant, seed)}.json"
    return shared.once(path, lambda: measure(ws, variant, seed))


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
            variant.change(model)
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


# -- Two tables --------------------------------------------------------------------------------------------------------


def figures(ranks: np.ndarray) -> dict[str, float]:
    """Means over seeds of ranks ``[seeds, n]``, and the sample standard deviation of Hit@10 between them."""
    (row,) = scoreboard({"": ranks}).to_dict("records")
    return {**{name: row[name] for name in MEASURES}, "hit@10_std": row["±"]}


def compare(ours: np.ndarray, theirs: np.ndarray) -> dict[str, list[float]]:
    """``ours`` minus ``theirs`` (ranks ``[seeds, n]`` or ``[n]``) with its 95 % interval, users resampled."""
    pairs = {
        "hit@10": (ours <= 10, theirs <= 10),
        "hit@100": (ours <= 100, theirs <= 100),
        "ndcg@10": (ndcg(ours), ndcg(theirs)),
    }
    found = {name: paired_bootstrap(*pair) for name, pair in pairs.items()}
    return {name: [c.difference, c.low, c.high] for name, c in found.items()}


def sweeps(ws: Workspace) -> dict[str, Any]:
    """The content of ``sweeps.json``; missing runs are made.

    ``hits`` of a point: Hit@10 of every validation row, one bit each, in hexadecimal.
    """
    default, layout, runs = run(ws, SWEEPS["centre"][1][0]), {}, {}
    for name, (title, variants) in SWEEPS.items():
        layout[name] = {"title": title, "points": []}
        for variant in variants:
            keys = {key(ws, variant, seed): run(ws, variant, seed) for seed in range(variant.seeds)}
            layout[name]["points"].append({"label": variant.name, "keys": list(keys)})
            runs |= keys
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


def main() -> None:
    tables = {table.__name__: table for table in (ablation, sweeps)}
    parser = shared.command_line(__doc__)
    parser.add_argument("--only", nargs="+", choices=tables, default=list(tables))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.only:
        shared.write_json(shared.HERE / f"{name}.json", tables[name](Workspace("ml-100k", progress=False)))


if __name__ == "__main__":
    main()
