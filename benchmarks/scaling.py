"""How seconds and memory grow with the number of ratings, and with the catalogue, on generated data.

    python benchmarks/scaling.py                              # up to 32 M ratings and a million items
    python benchmarks/scaling.py --sizes 100000 --items 1000

Every stage is a process of its own and reports its peak memory. ``prepare``: tables to the first batch, the quickest of
three. ``epoch``: of training, as the course does it, without the user id, and with the whole user table updated at each
step; of more than 150 steps the rest is extrapolated, and marked. ``evaluate``: the ranking of every user's test item.
``rows`` have one catalogue at every size: a slope of 1 on log axes means "twice the ratings, twice the cost".
``catalogue`` has the same ratings with ever more items. An interrupted run goes on where it stopped.
"""

from __future__ import annotations

import math
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import machine as shared
from task import STEPS, tables

STAGES = ("prepare", "epoch", "epoch without user id", "epoch, whole user table", "evaluate")
SIZES, N_MOVIES = (100_000, 1_000_000, 10_000_000, 32_000_000), 10_000
CATALOGUES, N_RATINGS = (1_000, 10_000, 100_000, 1_000_000), 1_000_000


def measure(ratings: int, items: int, stage: str) -> dict[str, Any]:
    """A row: one stage on generated tables, in a process of its own, once."""
    size = {"ratings": ratings, "items": items, "stage": stage}
    options = {"tables": tables(ratings, items), "name": stage, "steps": STEPS, "threads": os.cpu_count()}
    in_a_process = partial(shared.ask, sys.executable, "our_side.py", "stage", **options)
    return {**size, **shared.once(shared.point("scaling", **size), in_a_process)}


def slopes(rows: list[dict[str, Any]], by: str = "ratings") -> dict[str, dict[str, float]]:
    """Exponent of growth between the two largest sizes of each stage that has two; 1 is linear."""
    result = {}
    for stage in dict.fromkeys(row["stage"] for row in rows):
        largest = sorted((row for row in rows if row["stage"] == stage), key=lambda row: row[by])[-2:]
        if len(largest) == 2:
            growth = {kind: math.log(largest[1][kind] / largest[0][kind]) for kind in (by, "seconds", "peak_gib")}
            result[stage] = {kind: growth[kind] / growth[by] for kind in ("seconds", "peak_gib")}
    return result


if __name__ == "__main__":
    parser = shared.command_line(__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help=f"ratings, with {N_MOVIES:,} items")
    parser.add_argument("--items", type=int, nargs="+", default=CATALOGUES, help=f"with {N_RATINGS:,} ratings")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    rows = [measure(size, N_MOVIES, stage) for size in options.sizes for stage in STAGES]
    catalogue = [measure(N_RATINGS, n, "epoch") for n in options.items]
    report = {"machine": shared.machines(rows + catalogue), "movies": N_MOVIES, "steps": STEPS}
    report |= {"threads": os.cpu_count(), "rows": rows, "slopes": slopes(rows)}
    shared.write_json(options.out, {**report, "catalogue": catalogue, "catalogue_slopes": slopes(catalogue, "items")})
