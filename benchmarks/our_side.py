"""Our half of each comparison in peers.py, and the stages of scaling.py: one measurement per process.

``peer_rechub.py`` is the other half: the same parts, the same inputs, the same widths.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import machine as shared

# What both sides are given: the widths of torch-rechub's own example (its embeddings must all have one width).
BATCH_SIZE, MAX_HISTORY, WIDTH, DIMS = 256, 50, 16, (256, 128, 64)
EPOCHS_TIMED = 3  # of training; the one before them warms up
USER_COLUMNS = ("gender", "age", "occupation", "zip")


def prepare(tables):
    """Tables → encoded data, split and a batch builder: all there is before the first training step."""
    from dssm_helpers.data import encode, split_by_time
    from dssm_helpers.features import BatchBuilder
    from dssm_helpers.movielens import SCHEMA

    data = encode(tables.ratings, tables.users, tables.movies, SCHEMA, name=tables.name)
    return data, split_by_time(data), BatchBuilder(data, max_history=MAX_HISTORY)


def prep(tables: str) -> dict[str, Any]:
    """Seconds and peak memory of the preparation, in a process that has done nothing else."""
    import torch  # noqa: F401  (the imports are not part of the measurement)

    imports, loaded = shared.memory("VmRSS"), shared.load_tables(tables)
    shared.reset_peak()
    (seconds,) = shared.seconds_of(lambda: prepare(loaded), 1)
    peak = shared.memory()
    data, split, batches = prepare(loaded)
    (forming,) = shared.seconds_of(lambda: [batches(p) for p in batches.epoch(split.train, 4096)], 1)
    above = (peak - imports) / 2**20
    return {
        "seconds": seconds,
        "mib_above_imports": above,
        "rows": len(data),
        "seconds_forming_every_batch": forming,
    }


def example_recipe(**changes: Any):
    """The model of torch-rechub's example as far as ours goes, without dropout, as the peer's."""
    from dssm_helpers.recipes import Recipe
    from dssm_helpers.training import TrainingConfig

    training = TrainingConfig(batch_size=BATCH_SIZE)
    settings = {"pooling": "mean", "dim": WIDTH, "dims": DIMS, "max_history": MAX_HISTORY, "dropout": 0.0}
    return Recipe(**{**settings, "training": training, **changes})


def train(tables: str, steps: int = 150) -> dict[str, Any]:
    """Training examples per second: in-batch softmax with logQ and both masks, AdamW.

    Of the peer's widths, of these with the course's poolings, and of the course's default model; each as the course
    trains and with compiled towers, where there is a compiler.
    """
    from dssm_helpers.features import DEFAULT_POOLING
    from dssm_helpers.recipes import RECIPES, build_model
    from dssm_helpers.training import Trainer

    data, split, batches = prepare(shared.load_tables(tables))
    rows = split.train[: steps * BATCH_SIZE]
    recipes = {
        "": example_recipe(),
        "course_pooling_": example_recipe(pooling=DEFAULT_POOLING),
        "default_": RECIPES["dssm"],
    }
    result = {"steps": steps}
    with tempfile.TemporaryDirectory() as empty:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = empty  # else a second run would find what the first compiled
        for name, recipe in recipes.items():
            for way in ("", "compiled_") if shutil.which(os.environ.get("CXX", "g++")) else ("",):
                config = replace(recipe.training, epochs=1 + EPOCHS_TIMED)
                model = build_model(data, recipe)
                for tower in (model.user_tower, model.item_tower) if way else ():
                    tower.compile()
                trainer = Trainer(model, batches, config)
                at = [shared.clocks()]
                trainer.fit(rows, progress=False, on_epoch=lambda _, at=at: at.append(shared.clocks()))
                result |= {f"{name}{way}{rate}": value for rate, value in shared.rates(at, len(rows)).items()}
    return result


def evaluate(tables: str, repeats: int = 5) -> dict[str, Any]:
    """Seconds for all item and user vectors and the exact ranking of each test movie among all candidates."""
    from dssm_helpers.evaluation import evaluate as ranked
    from dssm_helpers.recipes import build_model

    data, split, batches = prepare(shared.load_tables(tables))
    model = build_model(data, example_recipe())
    seconds = shared.seconds_of(lambda: ranked(model, batches, split.test), repeats)
    return {"seconds": shared.median(seconds), "users": len(split.test), "items": data.n_items - 2}


def quality(
    tables: str, target: dict[str, float], epochs: Sequence[float] = (0.25, 0.5, 1, 2, 4, 8), seeds: int = 1
) -> dict[str, Any]:
    """Whole training runs of the default, longer and longer: how long until a given quality on test?

    The recipe was chosen on validation; only the length of the run is read off here, each with its own schedule. Less
    than one epoch is one pass over that share of the training rows, drawn at random.
    """
    import numpy as np

    from dssm_helpers.evaluation import evaluate as ranked
    from dssm_helpers.recipes import RECIPES, build_model
    from dssm_helpers.training import Trainer

    data, split, batches = prepare(shared.load_tables(tables))
    runs: list[dict[str, Any]] = []
    for length in epochs:
        found = []
        for seed in range(seeds):
            rows = split.train
            if length < 1:
                rows = np.random.default_rng(seed).choice(rows, int(length * len(rows)), replace=False)
            config = replace(RECIPES["dssm"].training, epochs=max(1, round(length)), seed=seed)
            model = build_model(data, "dssm", seed)
            trainer = Trainer(model, batches, config)
            trainer.fit(rows, progress=False)
            found.append({"seconds": trainer.train_seconds, **ranked(model, batches, split.test)})
        run = {n: float(np.mean([f[n] for f in found])) for n in ("seconds", "hit@10", "hit@100", "ndcg@10")}
        run |= {"epochs": length, "seeds": seeds, "reached": all(run[n] >= value for n, value in target.items())}
        runs.append(run)
        print(run, flush=True)
        if run["reached"]:
            break
    return {"model": "dssm", "target": target, "runs": runs}


def serve(bundle: str, requests: str, repeats: int = 2000) -> dict[str, Any]:
    """Raw ids → titles through ``Recommender`` in a process that cannot import torch, on one core."""
    sys.modules["torch"] = None  # an import of torch fails from here on
    from dssm_helpers.serving import Recommender

    server = Recommender.load(bundle)
    return shared.latency(lambda r: server.recommend(user=r["user_id"], history=r["history"], k=10), requests, repeats)


def profile(tables: str, steps: int = 60) -> dict[str, Any]:
    """FLOPs of one training step against the processor's matrix-multiply peak, and where the step's time goes."""
    import torch
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as torch_profile
    from torch.utils.flop_counter import FlopCounterMode

    from dssm_helpers.recipes import RECIPES, build_model
    from dssm_helpers.training import Trainer, log_shares

    data, split, batches = prepare(shared.load_tables(tables))
    config = replace(RECIPES["dssm"].training, epochs=2)
    trainer = Trainer(build_model(data), batches, config)
    rows = split.train[: steps * config.batch_size]
    seconds = trainer.fit(rows, progress=False)["seconds"].iloc[-1] / steps
    positions, log_q = torch.from_numpy(rows[: config.batch_size]), log_shares(data.item_counts(split.train))

    def step() -> None:
        trainer.optimizer.zero_grad(set_to_none=True)
        trainer._loss(positions, log_q, None, None).backward()
        trainer.optimizer.step()

    trainer.model.train()
    with FlopCounterMode(display=False) as counter:
        step()
    big = torch.rand(2048, 2048)
    peak = 2 * 2048**3 / min(shared.seconds_of(lambda: big @ big, 8))
    with torch_profile(activities=[ProfilerActivity.CPU]) as recorded:
        shared.seconds_of(step, 20)
    events = sorted(recorded.key_averages(), key=lambda e: -e.self_cpu_time_total)
    total, flops = sum(event.self_cpu_time_total for event in events), counter.get_total_flops()
    return {
        "batch_size": config.batch_size,
        "step_milliseconds": seconds * 1e3,
        "megaflop_per_step": flops / 1e6,
        "gflops_achieved": flops / seconds / 1e9,
        "gflops_peak": peak / 1e9,
        "share_of_peak": flops / seconds / peak,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "threads": torch.get_num_threads(),
        "operators": [
            {
                "operator": event.key,
                "share of the step": f"{event.self_cpu_time_total / total:.1%}",
                "calls per step": event.count / 20,
            }
            for event in events[:12]
        ],
    }


def stage(name: str, tables: str, steps: int) -> dict[str, Any]:
    """One stage of scaling.py, which says what they are."""
    import numpy as np

    from dssm_helpers.evaluation import evaluate as ranked
    from dssm_helpers.recipes import RECIPES, build_model
    from dssm_helpers.training import Trainer

    loaded, before = shared.load_tables(tables), shared.memory()
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
    shared.answer(prep, train, evaluate, quality, serve, profile, stage)
