"""How seconds and memory grow with the number of ratings, and with the catalogue, on generated data.

    python benchmarks/scaling.py                              # up to 32 M ratings and a million items
    python benchmarks/scaling.py --sizes 100000 --items 1000

Every stage runs in a process of its own and reports its peak memory. ``prepare``: three tables to the first batch, the
quickest of three. ``epoch``: one of training; of more than ``--steps`` steps the rest is extrapolated, and marked.
Measured three ways, because the user table grows with the ratings: as the course does it (a large user table is updated
row by row), without the user id, and with the whole user table updated at every step, which shows what that costs.
``evaluate``: all vectors and the full ranking of every user's test item.

``rows`` have the same catalogue at every size, so a slope of 1 on log axes means "twice the ratings, twice the cost".
``catalogue`` has the same ratings with ever more items, where a table of the catalogue's size in every step shows.
Writes ``benchmarks/scaling.json``.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import machine as shared

from dssm_helpers.movielens import synthetic

STAGES = ("prepare", "epoch", "epoch without user id", "epoch, whole user table", "evaluate")
SIZES, N_MOVIES = (100_000, 1_000_000, 10_000_000, 32_000_000), 10_000
CATALOGUES, N_RATINGS = (1_000, 10_000, 100_000, 1_000_000), 1_000_000


def measure(n_ratings: int, n_movies: int, stages: tuple[str, ...], steps: int) -> list[dict[str, Any]]:
    """A row for each stage on generated tables; generating them is not part of what is measured."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = shared.save_tables(synthetic(n_ratings, n_movies=n_movies), Path(folder) / "tables.npz")
        for name in stages:
            options = {"name": name, "tables": path, "steps": steps, "threads": os.cpu_count()}
            found = shared.ask(sys.executable, "our_side.py", "stage", **options)
            rows.append({"ratings": n_ratings, "items": n_movies, "stage": name, **found})
            print(
                f"{n_ratings:>12,} ratings{n_movies:>11,} items  {name:<25}{found['seconds']:9.1f} s"
                f"{found['peak_gib']:8.2f} GiB{' (extrapolated)' if found.get('extrapolated') else ''}",
                flush=True,
            )
    return rows


def slopes(rows: list[dict[str, Any]], by: str = "ratings") -> dict[str, dict[str, float]]:
    """Exponent of growth between the two largest sizes of each stage; 1 is linear."""
    result = {}
    for name in dict.fromkeys(row["stage"] for row in rows):
        *_, small, large = [{by: 1}, *sorted((r for r in rows if r["stage"] == name), key=lambda r: r[by])]
        if small[by] > 1:
            growth = math.log(large[by] / small[by])
            result[name] = {kind: math.log(large[kind] / small[kind]) / growth for kind in ("seconds", "peak_gib")}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help=f"ratings, with {N_MOVIES:,} items")
    parser.add_argument("--items", type=int, nargs="+", default=CATALOGUES, help=f"with {N_RATINGS:,} ratings")
    parser.add_argument("--steps", type=int, default=150, help="training steps to measure of each epoch")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    rows = [row for size in options.sizes for row in measure(size, N_MOVIES, STAGES, options.steps)]
    catalogue = [row for n in options.items for row in measure(N_RATINGS, n, ("epoch",), options.steps)]
    report = {"machine": shared.machine(), "movies": N_MOVIES, "steps": options.steps, "threads": os.cpu_count()}
    report |= {"rows": rows, "slopes": slopes(rows)}
    report |= {"catalogue": catalogue, "catalogue_slopes": slopes(catalogue, by="items")}
    shared.write_json(options.out, report)


if __name__ == "__main__":
    main()
