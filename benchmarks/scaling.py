"""How seconds and memory grow with the number of ratings, on generated data.

    python benchmarks/scaling.py                      # 100 K, 1 M, 10 M and 32 M ratings
    python benchmarks/scaling.py --sizes 100000 1000000

Every stage runs in a process of its own and reports its peak memory. ``prepare``: three tables to the first batch, the
quickest of three runs.
``epoch``: one training epoch; beyond ``--steps`` steps the rest is extrapolated from the measured ones and marked.
Measured three ways, because the user table grows with the ratings: as the course does it (a large user table is updated
row by row), without the user id, and with the whole user table updated at every step, which shows what that costs.
``evaluate``: all vectors and the full ranking of every user's test item. The catalogue is the same at every size, so a
slope of 1 on log axes means "twice the ratings, twice the cost". Writes ``benchmarks/scaling.json``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from machine import machine, peak_memory, write_atomically

WHOLE_TABLE = "epoch, whole user table"
STAGES = ("prepare", "epoch", "epoch without user id", WHOLE_TABLE, "evaluate")
REPEATS = {"prepare": 3}
N_MOVIES = 10_000
SIZES = (100_000, 1_000_000, 10_000_000, 32_000_000)


def generate(n_ratings: int, folder: Path) -> None:
    """Write generated tables to ``folder``; not part of what is measured."""
    from dssm_helpers.data import synthetic

    tables = synthetic(n_ratings=n_ratings, n_movies=N_MOVIES)
    np.savez(folder / "ratings.npz", **{c: tables.ratings[c].to_numpy() for c in tables.ratings})
    tables.users.to_csv(folder / "users.csv", index=False)
    tables.movies.to_csv(folder / "movies.csv", index=False)


def load(folder: Path):
    """The tables that :func:`generate` wrote."""
    import pandas as pd

    from dssm_helpers.data import MovieLens

    with np.load(folder / "ratings.npz") as columns:
        ratings = pd.DataFrame({name: columns[name] for name in columns})
    users = pd.read_csv(folder / "users.csv", dtype={"zip": str}, keep_default_na=False)
    return MovieLens("synthetic", ratings, users, pd.read_csv(folder / "movies.csv"))


def stage(name: str, folder: Path, steps: int) -> dict[str, float | bool]:
    """Run one stage in this process and measure it."""
    import torch

    from dssm_helpers.data import encode, split_by_time
    from dssm_helpers.evaluation import TwoTowerScorer, metrics, rank_targets
    from dssm_helpers.features import BatchBuilder, default_features
    from dssm_helpers.model import DSSM
    from dssm_helpers.training import TrainingConfig, adamw, in_batch_loss, log_shares
    from dssm_helpers.workspace import find_recipe

    tables = load(folder)
    before = peak_gib()
    started = time.perf_counter()
    data = encode(tables)
    split = split_by_time(data)
    batches = BatchBuilder(data)
    batches(split.train[:512])
    result: dict[str, float | bool] = {
        "seconds": time.perf_counter() - started,
        "above_tables_gib": peak_gib() - before,
    }
    if name == "prepare":
        return {**result, "peak_gib": peak_gib()}
    del tables
    recipe, config = find_recipe("dssm"), TrainingConfig()
    user, item = default_features(data, dim=recipe.dim, pooling=recipe.pooling, max_history=recipe.max_history)
    if name == "epoch without user id":
        user = [feature for feature in user if feature.name != "user_id"]
    if name == WHOLE_TABLE:
        user = [replace(feature, rows_only=False) if feature.name == "user_id" else feature for feature in user]
    params = {"dims": recipe.dims, "dropout": recipe.dropout}
    model = DSSM(user, item, params, params, temperature=recipe.temperature)
    if name == "evaluate":
        started = time.perf_counter()
        figures = metrics(rank_targets(TwoTowerScorer(model, batches), data, split.test))
        return {"seconds": time.perf_counter() - started, "peak_gib": peak_gib(), "hit@100": figures["hit@100"]}
    log_q = log_shares(data.item_counts(split.train))
    optimizer = adamw(model, config)
    total = len(split.train) // config.batch_size
    started = time.perf_counter()
    done, shuffled = 0, None
    for positions in batches.epoch(split.train, config.batch_size, torch.Generator().manual_seed(0)):
        if shuffled is None:  # the order of all positions is drawn once; extrapolating it would multiply it
            shuffled = time.perf_counter() - started
        batch = batches(positions)
        logits = (model.user_tower(batch) / model.temperature) @ model.item_tower(batch).T
        loss = in_batch_loss(logits, batch["movie_id"], log_q[batch["movie_id"]], history=batch["history"])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        done += 1
        if done == steps:
            break
    seconds = shuffled + (time.perf_counter() - started - shuffled) * total / done
    return {"seconds": seconds, "peak_gib": peak_gib(), "extrapolated": done < total}


def fastest(command: list[str], repeats: int) -> dict[str, float | bool]:
    """The quickest of several runs of a stage: seconds are short, and whatever else the machine does only adds."""
    runs = [subprocess.run(command, check=True, capture_output=True, text=True) for _ in range(repeats)]
    return min((json.loads(run.stdout.splitlines()[-1]) for run in runs), key=lambda result: result["seconds"])


def peak_gib() -> float:
    """Peak resident memory of this process."""
    return peak_memory() / 2**30


def slopes(rows: list[dict]) -> dict[str, dict[str, float]]:
    """Exponent of growth between the two largest sizes of each stage; 1 is linear."""
    result = {}
    for name in STAGES:
        mine = sorted((r for r in rows if r["stage"] == name), key=lambda r: r["ratings"])
        if len(mine) >= 2:
            small, large = mine[-2], mine[-1]
            growth = np.log(large["ratings"] / small["ratings"])
            result[name] = {kind: float(np.log(large[kind] / small[kind]) / growth) for kind in ("seconds", "peak_gib")}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--steps", type=int, default=2_000, help="training steps to measure of each epoch")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        print(json.dumps(stage(options.stage, options.folder, options.steps)))
        return
    rows: list[dict] = []
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as name:
            generate(size, Path(name))
            for part in STAGES:
                command = [sys.executable, __file__, "--stage", part, "--folder", name, "--steps", str(options.steps)]
                row = {"ratings": size, "stage": part, **fastest(command, REPEATS.get(part, 1))}
                rows.append(row)
                note = " (extrapolated)" if row.get("extrapolated") else ""
                print(f"{size:>12,} {part:<25}{row['seconds']:9.1f} s{row['peak_gib']:8.2f} GiB{note}", flush=True)
        report = {
            "machine": machine(),
            "movies": N_MOVIES,
            "steps": options.steps,
            "rows": rows,
            "slopes": slopes(rows),
        }
        with write_atomically(options.out) as temporary:  # after every size, so an interrupted run leaves what it has
            temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(slopes(rows), indent=1))


if __name__ == "__main__":
    main()
