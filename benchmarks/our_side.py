"""Our half of each comparison in peers.py, and the stages of scaling.py: one measurement per process.

``peer_rechub.py`` is the other half: the same parts, the same inputs, the same widths.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import machine as shared
import numpy as np
import torch
from task import BATCH_SIZE, DIMS, EPOCHS_TIMED, MAX_HISTORY, WIDTH, load_tables, prepare
from torch.profiler import ProfilerActivity
from torch.utils.flop_counter import FlopCounterMode

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
    """Seconds and peak memory of the preparation, in a process that has done nothing else."""
    imports, loaded = shared.memory("VmRSS"), load_tables(tables)
    shared.reset_peak()
    (seconds,) = shared.seconds_of(lambda: prepare(loaded), 1)
    above = (shared.memory() - imports) / 2**20
    _, split, batches = prepare(loaded)
    (forming,) = shared.seconds_of(lambda: [batches(p) for p in batches.epoch(split.train, 4096)], 1)
    return {"seconds": seconds, "mib_above_imports": above, "seconds_forming_every_batch": forming}


def train(tables: str, steps: int = 150) -> dict[str, Any]:
    """Training examples per second: in-batch softmax with logQ and both masks, AdamW.

    Of the peer's widths, of these with the course's poolings, and of the course's default model; each as the course
    trains and with compiled towers, where there is a compiler.
    """
    data, split, batches = prepare(load_tables(tables))
    rows = split.train[: steps * BATCH_SIZE]
    course_pooling = replace(EXAMPLE, pooling=DEFAULT_POOLING)
    recipes = {"": EXAMPLE, "course_pooling_": course_pooling, "default_": RECIPES["dssm"]}
    result = {"steps": steps}
    with tempfile.TemporaryDirectory() as empty:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = empty  # else a second run would find what the first compiled
        for name, recipe in recipes.items():
            for way in ("", "compiled_") if shutil.which(os.environ.get("CXX", "g++")) else ("",):
                model = build_model(data, recipe)
                for tower in (model.user_tower, model.item_tower) if way else ():
                    tower.compile()
                trainer = Trainer(model, batches, replace(recipe.training, epochs=1 + EPOCHS_TIMED))
                at = [shared.clocks()]
                trainer.fit(rows, progress=False, on_epoch=lambda _, at=at: at.append(shared.clocks()))
                result |= {f"{name}{way}{rate}": value for rate, value in shared.rates(at, len(rows)).items()}
    return result


def evaluate(tables: str, repeats: int = 5) -> dict[str, Any]:
    """Seconds for all item and user vectors and the exact ranking of each test movie among all candidates."""
    data, split, batches = prepare(load_tables(tables))
    model = build_model(data, EXAMPLE)
    return {"seconds": shared.median(shared.seconds_of(lambda: ranked(model, batches, split.test), repeats))}


def quality(
    tables: str, target: dict[str, float], epochs: Sequence[float] = (0.25, 0.5, 1, 2, 4, 8), seeds: int = 1
) -> dict[str, Any]:
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
            model = build_model(data, "dssm", seed)
            config = replace(RECIPES["dssm"].training, epochs=max(1, length), seed=seed)
            trainer = Trainer(model, batches, config)
            started = shared.clocks()
            trainer.fit(rows, progress=False)
            seconds, cpu_seconds = np.subtract(shared.clocks(), started)
            found.append({"seconds": seconds, "cpu_seconds": cpu_seconds, **ranked(model, batches, split.test)})
        run = {name: float(np.mean([f[name] for f in found])) for name in found[0]}
        run |= {"epochs": length, "seeds": seeds, "reached": all(run[n] >= value for n, value in target.items())}
        runs.append(run)
        print(run, flush=True)
        if run["reached"]:
            break
    return {"model": "dssm", "target": target, "runs": runs}


def profile(tables: str, steps: int = 60) -> dict[str, Any]:
    """FLOPs of one training step against the processor's matrix-multiply peak, and where the step's time goes."""
    data, split, batches = prepare(load_tables(tables))
    config = replace(RECIPES["dssm"].training, epochs=2)

    def seconds_per_step(steps: int) -> float:  # of the second epoch: the first warms up
        rows = split.train[: steps * config.batch_size]
        return Trainer(build_model(data), batches, config).fit(rows, progress=False)["seconds"].iloc[-1] / steps

    seconds = seconds_per_step(steps)
    with FlopCounterMode(display=False) as counter:
        seconds_per_step(1)
    big = torch.rand(2048, 2048)
    peak = 2 * 2048**3 / min(shared.seconds_of(lambda: big @ big, 8))
    with torch.profiler.profile(activities=[ProfilerActivity.CPU]) as recorded:
        seconds_per_step(20)
    events = sorted(recorded.key_averages(), key=lambda e: -e.self_cpu_time_total)
    total, flops = sum(event.self_cpu_time_total for event in events), counter.get_total_flops() / 2  # two epochs
    shares = [{"operator": e.key, "share of the step": f"{e.self_cpu_time_total / total:.1%}"} for e in events[:12]]
    return {
        "step_milliseconds": seconds * 1e3,
        "megaflop_per_step": flops / 1e6,
        "share_of_peak": flops / seconds / peak,
        "operators": shares,
    }


def stage(name: str, tables: str, steps: int) -> dict[str, Any]:
    """One stage of scaling.py, which says what they are."""
    loaded, before = load_tables(tables), shared.memory()
    seconds = min(shared.seconds_of(lambda: prepare(loaded), 3 if name == "prepare" else 1))
    result = {"above_tables_gib": (shared.memory() - before) / 2**30}
    data, split, batches = prepare(loaded)
    recipe = replace(RECIPES["dssm"], without=("user_id",) if name == "epoch without user id" else ())
    model = build_model(data, recipe)
    if name == "epoch, whole user table":
        model.user_tower.embedding.tables["user_id"].sparse = False
    if name == "evaluate":
        (seconds,) = shared.seconds_of(lambda: ranked(model, batches, split.test), 1)
    if name.startswith("epoch"):
        size, total = recipe.training.batch_size, len(split.train) // recipe.training.batch_size
        rows = np.random.default_rng(0).choice(split.train, min(steps, total) * size, replace=False)
        history = Trainer(model, batches, replace(recipe.training, epochs=2)).fit(rows, progress=False)
        per_step = history["seconds"].iloc[-1] / min(steps, total)  # the first epoch warms up
        seconds = per_step * total
        result = {"ms_per_step": 1e3 * per_step, "extrapolated": steps < total}
    return {"seconds": seconds, **result, "peak_gib": shared.memory() / 2**30}


if __name__ == "__main__":
    shared.answer(prep, train, evaluate, quality, profile, stage)
