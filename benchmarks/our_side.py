"""Our half of each comparison in peers.py, one measurement per process. Prints one line of JSON.

``peer_rechub.py`` is the other half: the same subcommands, the same inputs, the same widths.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import machine as shared
import numpy as np

# What both sides are given: the widths of torch-rechub's own example (its embeddings must all have one width).
BATCH_SIZE = 256
MAX_HISTORY = 50
WIDTH, DIMS = 16, (256, 128, 64)
EPOCHS_TIMED = 3  # of training; the one before them warms up
USER_COLUMNS = ("gender", "age", "occupation", "zip")


def save_tables(tables, path: Path) -> None:
    """The three tables as plain arrays, readable from any environment without pickle."""
    frames = {"ratings": tables.ratings, "users": tables.users, "movies": tables.movies}
    columns = {f"{f}.{c}": frame[c].to_numpy() for f, frame in frames.items() for c in frame}
    columns = {n: v.astype(str) if v.dtype.kind not in "iuf" else v for n, v in columns.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        np.savez(file, name=np.asarray(tables.name), **columns)


def load_tables(path: Path):
    """What :func:`save_tables` wrote."""
    import pandas as pd

    from dssm_helpers.data import MovieLens

    with np.load(path) as stored:
        frames: dict[str, dict[str, np.ndarray]] = {}
        for key in stored.files:
            if key != "name":
                frame, _, column = key.partition(".")
                frames.setdefault(frame, {})[column] = stored[key]
        return MovieLens(str(stored["name"]), **{f: pd.DataFrame(columns) for f, columns in frames.items()})


def prepare(tables):
    """Tables → encoded data, split and a batch builder: all there is before the first training step."""
    from dssm_helpers.data import encode, split_by_time
    from dssm_helpers.features import BatchBuilder

    data = encode(tables)
    return data, split_by_time(data), BatchBuilder(data, max_history=MAX_HISTORY)


def prep(arguments: argparse.Namespace) -> dict:
    """Seconds and peak memory of the preparation, in a process that has done nothing else."""
    import torch  # noqa: F401  (the import is not part of the measurement)

    import dssm_helpers.features  # noqa: F401

    imports = shared.resident_memory()
    tables = load_tables(arguments.tables)
    shared.reset_peak()
    started = time.perf_counter()
    data, split, batches = prepare(tables)
    seconds, peak = time.perf_counter() - started, shared.peak_memory()
    started = time.perf_counter()
    for positions in batches.epoch(split.train, 4096):
        batches(positions)
    return {
        "seconds": seconds,
        "mib_above_imports": (peak - imports) / 2**20,
        "rows": len(data),
        "seconds_forming_every_batch": time.perf_counter() - started,
    }


def _model(data, pooling="mean"):
    from dssm_helpers import workspace

    # No dropout: the peer has none by default either.
    recipe = workspace.Recipe(pooling=pooling, dim=WIDTH, dims=DIMS, max_history=MAX_HISTORY, dropout=0.0)
    return workspace.build_model(data, recipe, seed=0)


def train(arguments: argparse.Namespace) -> dict:
    """Training examples per second: in-batch softmax with logQ and both masks, AdamW.

    Of the peer's widths, of these with the course's poolings, and of the course's default model; each as the course
    trains and with compiled towers, where there is a compiler.
    """
    from dssm_helpers.features import DEFAULT_POOLING
    from dssm_helpers.training import Trainer, TrainingConfig, missing_compiler
    from dssm_helpers.workspace import build_model, find_recipe

    data, split, batches = prepare(load_tables(arguments.tables))
    rows = split.train[: arguments.steps * BATCH_SIZE]
    contenders = {
        "": (lambda: _model(data), BATCH_SIZE),
        "course_pooling_": (lambda: _model(data, DEFAULT_POOLING), BATCH_SIZE),
        "default_": (lambda: build_model(data, "dssm"), find_recipe("dssm").training.batch_size),
    }
    ways = {"": False} if missing_compiler() else {"": False, "compiled_": True}
    result = {"steps": arguments.steps}
    with tempfile.TemporaryDirectory() as empty:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = empty  # else a second run would find what the first compiled
        for name, (model, batch_size) in contenders.items():
            for way, compiled in ways.items():
                config = TrainingConfig(epochs=1 + EPOCHS_TIMED, batch_size=batch_size)
                trainer = Trainer(model(), batches, config, compile=compiled)
                at = [shared.both_clocks()]
                trainer.fit(rows, progress=False, on_epoch=lambda _, at=at: at.append(shared.both_clocks()))
                rates = shared.rates(at, len(rows))
                result |= {f"{name}{way}{rate}": value for rate, value in rates.items()}
    return result


def evaluate(arguments: argparse.Namespace) -> dict:
    """Seconds for all item and user vectors and the exact ranking of each test movie among all candidates."""
    from dssm_helpers.evaluation import TwoTowerScorer, metrics, rank_targets

    data, split, batches = prepare(load_tables(arguments.tables))
    model = _model(data)
    return {
        "seconds": shared.best_of(
            lambda: metrics(rank_targets(TwoTowerScorer(model, batches), data, split.test)), arguments.repeats
        )["median"],
        "users": len(split.test),
        "items": data.n_items - 2,
    }


def quality(arguments: argparse.Namespace) -> dict:
    """Whole training runs of 1, 2, 3, … epochs, each with its own schedule: how long until a given quality on test?

    The settings of the recipe were chosen on validation; only the length of the run is read off here. Less than one
    epoch is one pass over that share of the training rows, drawn at random.
    """
    from dssm_helpers.evaluation import TwoTowerScorer, metrics, rank_targets
    from dssm_helpers.training import Trainer, TrainingConfig
    from dssm_helpers.workspace import asdict, build_model, find_recipe

    data, split, batches = prepare(load_tables(arguments.tables))
    recipe = find_recipe(arguments.model)
    target = json.loads(arguments.target)
    runs = []
    for epochs in arguments.epochs:
        started, seconds, results = time.perf_counter(), [], []
        for seed in range(arguments.seeds):
            rows = split.train
            if epochs < 1:
                rows = np.random.default_rng(seed).choice(rows, int(epochs * len(rows)), replace=False)
            settings = {**asdict(recipe.training), "epochs": max(1, round(epochs)), "seed": seed, "patience": None}
            config = TrainingConfig(**settings)
            model = build_model(data, recipe, seed)
            trainer = Trainer(model, batches, config)
            trainer.fit(rows, progress=False)
            seconds.append(trainer.train_seconds)
            results.append(metrics(rank_targets(TwoTowerScorer(model, batches), data, split.test)))
        run = {"epochs": epochs, "seeds": arguments.seeds, "seconds": float(np.mean(seconds))}
        run |= {name: float(np.mean([r[name] for r in results])) for name in ("hit@10", "hit@100", "ndcg@10")}
        run["reached"] = all(run[name] >= value for name, value in target.items())
        runs.append(run)
        print(f"{epochs} epochs, {time.perf_counter() - started:.0f} s: {run}", file=sys.stderr, flush=True)
        if run["reached"]:
            break
    return {"model": arguments.model, "target": target, "runs": runs}


def serve(arguments: argparse.Namespace) -> dict:
    """Raw ids → titles through ``Recommender`` in a process that cannot import torch, on one core."""
    sys.modules["torch"] = None  # an import of torch fails from here on
    from dssm_helpers.serving import Recommender

    shared.pin_to_one_core()
    server = Recommender.load(arguments.bundle)
    requests = json.loads(arguments.requests.read_text(encoding="utf-8"))
    for request in requests[:50]:
        server.recommend(user=request["user_id"], history=request["history"], k=10)
    seconds = []
    for i in range(arguments.repeats):
        request = requests[i % len(requests)]
        started = time.perf_counter()
        answer = server.recommend(user=request["user_id"], history=request["history"], k=10)
        seconds.append(time.perf_counter() - started)
    assert len(answer) == 10
    return shared.latency(seconds) | {"torch_loaded": sys.modules.get("torch") is not None}


def profile(arguments: argparse.Namespace) -> dict:
    """FLOPs of one training step against the processor's matrix-multiply peak, and where the step's time goes."""
    import torch
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as torch_profile
    from torch.utils.flop_counter import FlopCounterMode

    from dssm_helpers.training import Trainer, TrainingConfig
    from dssm_helpers.workspace import build_model, find_recipe

    data, split, batches = prepare(load_tables(arguments.tables))
    config = find_recipe("dssm").training
    model = build_model(data, "dssm")
    trainer = Trainer(model, batches, TrainingConfig(epochs=2, batch_size=config.batch_size))
    rows = split.train[: 60 * config.batch_size]
    step_seconds = float(trainer.fit(rows, progress=False)["seconds"].iloc[-1]) / 60

    counts = torch.from_numpy(data.item_counts(split.train)).clamp(min=1).float()
    log_q = (counts / counts.sum()).log()

    def step(positions: torch.Tensor) -> None:
        loss = trainer._loss(positions, log_q, None, None)
        trainer.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        trainer.optimizer.step()

    model.train()
    positions = torch.from_numpy(rows[: config.batch_size])
    with FlopCounterMode(display=False) as counter:
        step(positions)
    big = torch.rand(2048, 2048)
    peak = 2 * 2048**3 / shared.best_of(lambda: big @ big, 8)["best"]
    with torch_profile(activities=[ProfilerActivity.CPU]) as recorded:
        for _ in range(20):
            step(positions)
    events = sorted(recorded.key_averages(), key=lambda e: -e.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    flops = counter.get_total_flops()
    return {
        "batch_size": config.batch_size,
        "step_milliseconds": step_seconds * 1e3,
        "megaflop_per_step": flops / 1e6,
        "gflops_achieved": flops / step_seconds / 1e9,
        "gflops_peak": peak / 1e9,
        "share_of_peak": flops / step_seconds / peak,
        "parameters": sum(p.numel() for p in model.parameters()),
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


PARTS = {f.__name__: f for f in (prep, train, evaluate, quality, serve, profile)}


def parse_arguments(description: str, parts: dict) -> argparse.Namespace:
    """The command line both sides understand."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=parts)
    parser.add_argument("--tables", type=Path, help="the tables that peers.py saved")
    parser.add_argument("--folder", type=Path, help="where to leave files")
    parser.add_argument("--steps", type=int, default=150, help="training steps to time")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=120, help="limit of the peer's training")
    parser.add_argument("--neg-ratio", type=int, default=0, help="the peer's sampled negatives per positive")
    parser.add_argument("--model", default="dssm", help="recipe of ours")
    parser.add_argument("--epochs", type=float, nargs="+", default=[0.25, 0.5, 1, 2, 4, 8])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--target", default="{}", help='JSON: metrics to reach, {"hit@100": 0.387}')
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--requests", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    arguments = parse_arguments(__doc__, PARTS)
    print(json.dumps(PARTS[arguments.part](arguments), default=float))
