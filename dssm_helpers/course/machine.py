"""Is this machine ready for a lesson, and how long will each notebook take on it (``make check-machine``)?"""

from __future__ import annotations

import json
import time
from statistics import median

from ..data import encode, split_by_time
from ..features import BatchBuilder
from ..movielens import SCHEMA, TABLES_DIGESTS, WHEEL, load_movielens
from ..recipes import RECIPES, build_model
from ..settings import DATASETS, artifacts_dir, data_dir
from ..training import Trainer
from .environment import check_environment
from .runner import PUBLISHED
from .scoreboard import update_results


def epoch_seconds(runs: int = 5) -> float:
    """Median seconds of an epoch of the default model over 20,000 generated ratings: the yardstick of a machine."""
    tables = load_movielens("synthetic")
    data = encode(tables.ratings, tables.users, tables.movies, SCHEMA, name=tables.name)
    trainer = Trainer(build_model(data, "dssm"), BatchBuilder(data), RECIPES["dssm"].training)
    trainer.fit(split_by_time(data).train, progress=False)
    return median(trainer.history["seconds"].tail(runs))


def record_yardstick() -> None:
    """Put this machine's :func:`epoch_seconds` beside the times of the notebooks that it has just run."""
    measured = epoch_seconds()
    with update_results(artifacts_dir("ml-100k")) as results:
        results["epoch_seconds"] = measured


def check_machine() -> int:
    """Print what is here, what is missing, and an estimate for each notebook; 1 if something has to be mended."""
    report = check_environment()
    print(report)
    names = [*TABLES_DIGESTS, *(f"{name}.zip" for name in DATASETS), WHEEL]
    there = [name for name in names if (data_dir() / name).exists()]
    print(f"\nData in {data_dir()}: {', '.join(there) or 'none yet; the first notebook fetches ml-100k (2 MB)'}")
    started = time.perf_counter()
    measured = epoch_seconds()
    print(f"A short training: {time.perf_counter() - started:.1f} s, {measured:.2f} s an epoch")
    published = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    slower = measured / published["epoch_seconds"]
    print(
        f"That is {slower:.1f} times the time of the machine whose figures the README shows. Expect, alone on this one:"
    )
    for name, seconds in published["notebook_seconds"].items():
        print(f"  {name:<24}{slower * seconds:7.0f} s")
    return int(any(row.fix for row in report))
