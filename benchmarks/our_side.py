"""Our half of each comparison in peers.py, and the stages of scaling.py: one measurement per process.

``peer_rechub.py`` is the other half: the same parts, the same inputs, the same widths.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import machine as shared
import numpy as np
from task import BATCH_SIZE, DIMS, EPOCHS, MAX_HISTORY, STEPS, WIDTH, load_tables, prepare

from dssm_helpers.evaluation import evaluate as ranked
from dssm_helpers.features import DEFAULT_POOLING
from dssm_helpers.recipes import RECIPES, Recipe, build_model
from dssm_helpers.training import Trainer, TrainingConfig

# torch-rechub's example as far as ours goes, without dropout, as the peer's.
EXAMPLE = Recipe(
    pooling="mean", dim=WIDTH, dims=DIMS, max_history=MAX_HISTORY, dropout=0.0,
    training=TrainingConfig(batch_size=BATCH_SIZE),
)  # fmt: skip


def prep(tables: str) -> dict[str, Any]:
    """Seconds and peak memory of the preparation."""
    return shared.preparation(lambda: load_tables(tables), prepare)


def train(tables: str, steps: int = STEPS) -> dict[str, Any]:
    """Training examples per second: in-batch softmax with logQ and both masks, AdamW.

    The peer's widths, these with the course's poolings, the course's default; each also with compiled towers (which
    needs a C++ compiler). Notebook 12 shows all six.
    """
    data, split, batches = prepare(load_tables(tables))
    rows = split.train[: steps * BATCH_SIZE]
    course_pooling = replace(EXAMPLE, pooling=DEFAULT_POOLING)
    result = {"steps": steps}
    with tempfile.TemporaryDirectory() as empty:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = empty  # else a second run would find what the first compiled
        for name, recipe in {"": EXAMPLE, "course_pooling_": course_pooling, "default_": RECIPES["dssm"]}.items():
            for way in ("", "compiled_"):
                model = build_model(data, recipe)
                if way:
                    model.user_tower.compile()
                    model.item_tower.compile()
                history = Trainer(model, batches, replace(recipe.training, epochs=EPOCHS)).fit(rows, progress=False)
                rates = shared.rates(history["seconds"].tolist(), len(rows))
                result |= {f"{name}{way}{rate}": value for rate, value in rates.items()}
    return result


def evaluate(tables: str) -> dict[str, Any]:
    """Seconds for all item and user vectors and the exact ranking of each test movie among all candidates."""
    data, split, batches = prepare(load_tables(tables))
    model = build_model(data, EXAMPLE)
    return {"seconds": shared.median(shared.seconds_of(lambda: ranked(model, batches, split.test), 5))}


def quality(tables: str, target: dict[str, float], epochs: Sequence[float], seeds: int) -> dict[str, Any]:
    """Whole training runs of the default, longer and longer: how long until a given quality on test?

    The recipe was chosen on validation; only the length of the run is read off here, each with its own schedule. Less
    than one epoch is one pass over that share of the training rows, drawn at random.
    """
    data, split, batches = prepare(load_tables(tables))
    runs: list[dict[str, Any]] = []
    for length in epochs:
        found = []
        for seed in range(seeds):
            rows = split.train
            if length < 1:
                rows = np.random.default_rng(seed).choice(rows, int(length * len(rows)), replace=False)
            config = replace(RECIPES["dssm"].training, epochs=max(1, length), seed=seed)
            trainer, started = Trainer(build_model(data, "dssm", seed), batches, config), shared.clocks()
            trainer.fit(rows, progress=False)
            seconds, cpu_seconds = shared.clocks() - started
            metrics = ranked(trainer.model, batches, split.test)
            found.append({"seconds": seconds, "cpu_seconds": cpu_seconds, **metrics})
        run = {name: float(np.mean([f[name] for f in found])) for name in found[0]}
        reached = all(run[name] >= value for name, value in target.items())
        runs.append({**run, "epochs": length, "seeds": seeds, "reached": reached})
        print(runs[-1], flush=True)
        if reached:
            break
    return {"model": "dssm", "target": target, "runs": runs}


def stage(name: str, tables: str, steps: int) -> dict[str, Any]:
    """One stage of scaling.py, which says what they are."""
    loaded, result = load_tables(tables), {}
    seconds = min(shared.seconds_of(lambda: prepare(loaded), 3 if name == "prepare" else 1))
    data, split, batches = prepare(loaded)
    recipe = replace(RECIPES["dssm"], without=("user_id",) if name == "epoch without user id" else ())
    model = build_model(data, recipe)
    if name == "epoch, whole user table":
        model.user_tower.embedding.tables["user_id"].sparse = False
    if name == "evaluate":
        (seconds,) = shared.seconds_of(lambda: ranked(model, batches, split.test))
    if name.startswith("epoch"):
        size, total = recipe.training.batch_size, len(split.train) // recipe.training.batch_size
        rows = np.random.default_rng(0).choice(split.train, min(steps, total) * size, replace=False)
        history = Trainer(model, batches, replace(recipe.training, epochs=2)).fit(rows, progress=False)
        per_step = history["seconds"].iloc[-1] / min(steps, total)  # the first epoch warms up
        seconds, result = per_step * total, {"ms_per_step": 1e3 * per_step, "extrapolated": steps < total}
    return {"seconds": seconds, **result, "peak_gib": shared.memory() / 2**30}


if __name__ == "__main__":
    shared.answer(prep, train, evaluate, quality, stage)
