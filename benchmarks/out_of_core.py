"""Interactions that do not fit into memory: the flat arrays of ``data.py``, written by DuckDB from a Parquet file.

    python benchmarks/out_of_core.py                      # 100 million generated rows; leaves out_of_core.json

Sorting by user and time is all that preparation does, and sorting more than memory holds is what databases are for.
Notebook 12 shows the same statements on its own data, and a test compares the arrays with those of ``encode``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import duckdb
import machine as shared
import numpy as np

GIB = 4  # what DuckDB may take; beyond that it writes to disk
COLUMNS = {"user": np.int32, "item": np.int32, "timestamp": np.int64}


def generate(path: Path, rows: int, users: int, items: int) -> None:
    """Rows in random order: active and idle users, popular and rare items."""
    duckdb.sql(
        f"""COPY (SELECT 7 + 3 * floor({users} * random() ** 2)::BIGINT AS user_id,
                         5 + 2 * floor({items} * random() ** 3)::BIGINT AS item_id,
                         1600000000 + floor(1e8 * random())::BIGINT AS timestamp
                  FROM range({rows})) TO '{path}'"""
    )


def flatten(parquet: Path, folder: Path, gib: float = GIB) -> None:
    """``user.npy``, ``item.npy``, ``timestamp.npy`` and ``offsets.npy`` as ``encode`` makes them."""
    base = duckdb.connect(config={"memory_limit": f"{gib}GiB", "temp_directory": str(folder / "spill"), "threads": 2})
    for side in ("user", "item"):  # real values from 2, in sorted order, as a Vocabulary numbers them
        base.sql(
            f"""CREATE TABLE {side}s AS SELECT {side}_id, (1 + row_number() OVER (ORDER BY {side}_id))::INT AS {side}
                FROM (SELECT DISTINCT {side}_id FROM read_parquet('{parquet}'))"""
        )
    [(rows,)] = base.sql(f"SELECT count(*) FROM read_parquet('{parquet}')").fetchall()
    flat = base.sql(
        f"""SELECT "user", item, timestamp FROM read_parquet('{parquet}', file_row_number = true)
            JOIN users USING (user_id) JOIN items USING (item_id) ORDER BY "user", timestamp, file_row_number"""
    ).to_arrow_reader(1_000_000)
    arrays = {n: np.lib.format.open_memmap(folder / f"{n}.npy", "w+", kind, (rows,)) for n, kind in COLUMNS.items()}
    start, counts = 0, np.zeros(2, dtype=np.int64)
    for batch in flat:
        for name, array in arrays.items():
            array[start : start + len(batch)] = batch[name].to_numpy()
        found = np.bincount(arrays["user"][start : start + len(batch)], minlength=len(counts))
        counts = np.pad(counts, (0, len(found) - len(counts))) + found
        start += len(batch)
    np.save(folder / "offsets.npy", np.concatenate([[0], np.cumsum(counts)]))


if __name__ == "__main__":
    parser = shared.command_line(__doc__)
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    rows = arguments.rows
    with tempfile.TemporaryDirectory(dir=shared.ROOT / "artifacts") as folder:
        parquet = Path(folder) / "ratings.parquet"
        generate(parquet, rows, max(1_000, rows // 100), min(1_000_000, max(1_000, rows // 500)))
        shared.reset_peak()
        (seconds,) = shared.seconds_of(lambda: flatten(parquet, Path(folder)))
        sizes = {"limit_gib": GIB, "peak_gib": shared.memory() / 2**30, "parquet_gib": parquet.stat().st_size / 2**30}
    about = {"machine": shared.machine(), "duckdb": duckdb.__version__}
    shared.write_json(arguments.out, {**about, "rows": rows, "seconds": seconds, **sizes})
    print(arguments.out.read_text(encoding="utf-8"))
