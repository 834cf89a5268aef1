"""What both sides of a comparison are given: the same tables, widths and sizes. Runs in the peers' environments too."""

from __future__ import annotations

from pathlib import Path

import machine as shared
import numpy as np
import pandas as pd

from dssm_helpers.data import EncodedData, Split, encode, split_by_time
from dssm_helpers.features import BatchBuilder
from dssm_helpers.movielens import SCHEMA, MovieLens, load_movielens, synthetic

# The widths of torch-rechub's own example (its embeddings must all have one width).
BATCH_SIZE, MAX_HISTORY, WIDTH, DIMS = 256, 50, 16, (256, 128, 64)
STEPS, EPOCHS = 150, 4  # of timed training; the first epoch warms up


def prepare(tables: MovieLens) -> tuple[EncodedData, Split, BatchBuilder]:
    """Tables → encoded data, split and a batch builder: all there is before the first training step."""
    data = encode(tables.ratings, tables.users, tables.movies, SCHEMA, name=tables.name)
    return data, split_by_time(data), BatchBuilder(data, max_history=MAX_HISTORY)


def tables(n_ratings: int = 0, n_items: int = 0) -> Path:
    """A file with ml-100k, or with generated ratings, made once: plain arrays, readable from any environment."""
    path = shared.PEERS / "inputs" / (f"synthetic-{n_ratings}-{n_items}.npz" if n_ratings else "ml-100k.npz")
    if not path.exists():
        save_tables(synthetic(n_ratings, n_movies=n_items or None) if n_ratings else load_movielens("ml-100k"), path)
    return path


def save_tables(tables: MovieLens, path: Path) -> None:
    arrays = {"name": np.asarray(tables.name)}
    for table in ("ratings", "users", "movies"):
        for column, values in getattr(tables, table).items():
            array = values.to_numpy()
            arrays[f"{table}.{column}"] = array if array.dtype.kind in "iuf" else array.astype(str)
    with shared.write_atomically(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def load_tables(path: str | Path) -> MovieLens:
    """What :func:`save_tables` wrote."""
    tables = {"ratings": {}, "users": {}, "movies": {}}
    with np.load(path) as stored:
        for table, column in (key.split(".") for key in stored if "." in key):
            tables[table][column] = stored[f"{table}.{column}"]
        return MovieLens(str(stored["name"]), **{table: pd.DataFrame(columns) for table, columns in tables.items()})
