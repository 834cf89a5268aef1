"""The same seed on the same machine gives the same bytes, in whichever process; elsewhere nearly the same figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, encoded
from safetensors.numpy import load_file

from dssm_helpers.data import split_by_time
from dssm_helpers.evaluation import TwoTowerScorer, evaluate
from dssm_helpers.features import BatchBuilder
from dssm_helpers.files import file_digest
from dssm_helpers.movielens import load_movielens
from dssm_helpers.recipes import RECIPES, build_model
from dssm_helpers.retrieval import build_index
from dssm_helpers.serving import export_bundle
from dssm_helpers.training import Trainer, save_weights

# After one epoch on ml-100k, two threads instead of one moved nothing at all; sums in another order, as a processor
# without vector instructions takes them, moved a weight by .024, a number of an item vector by .011 and a metric by
# .0011, which is one user of 943. Twice that is allowed.
TOLERANCE = {"weights": 0.05, "vectors": 0.022, "metrics": 0.0022}
HERE = {"OMP_NUM_THREADS": "1"}
ELSEWHERE = {
    "two threads": {"OMP_NUM_THREADS": "2"},
    "another processor": {**HERE, "ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE"},
}
INDEXES = {
    "exact": {"backend": "exact"},
    "annoy": {"backend": "annoy"},
    "hnsw": {"backend": "faiss", "kind": "hnsw"},
    "ivf": {"backend": "faiss", "kind": "ivf"},
}


def make(folder: Path, everything: bool) -> None:
    """Train one epoch on real data, and leave weights, item vectors and metrics; with ``everything``, what is built
    from them too: indexes and a bundle, which holds the towers as ONNX."""
    data, recipe = encoded(load_movielens("ml-100k", progress=False)), RECIPES["dssm"]
    split, batches, model = split_by_time(data), BatchBuilder(data), build_model(data, recipe, seed=0)
    trainer = Trainer(model, batches, replace(recipe.training, epochs=1))
    trainer.fit(split.train, lambda m: evaluate(m, batches, split.validation), progress=False)
    save_weights(model, folder / "weights.safetensors")
    np.save(folder / "vectors.npy", vectors := TwoTowerScorer(model, batches).item_vectors.numpy())
    metrics = evaluate(model, batches, split.test)
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    if everything:
        for name, options in INDEXES.items():
            build_index(vectors[2:], **options).save(folder / name)
        export_bundle(folder / "bundle", model, data, split.train)


def in_a_process(folder: Path, everything: bool, **variables: str) -> Path:
    folder.mkdir()
    command = [sys.executable, __file__, str(folder), *["everything"] * everything]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT), **variables}, check=True)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return in_a_process(tmp_path_factory.mktemp("here") / "first", True, PYTHONHASHSEED="1", **HERE)


def read(folder: Path) -> dict[str, dict[str, np.ndarray | float]]:
    return {
        "weights": load_file(folder / "weights.safetensors"),
        "vectors": {"items": np.load(folder / "vectors.npy")},
        "metrics": json.loads((folder / "metrics.json").read_text(encoding="utf-8")),
    }


@pytest.mark.slow
def test_two_processes_leave_the_same_bytes(made, tmp_path):
    again = in_a_process(tmp_path / "again", True, PYTHONHASHSEED="2", **HERE)
    first, second = (
        {path.relative_to(folder).as_posix(): file_digest(path) for path in folder.rglob("*") if path.is_file()}
        for folder in (made, again)
    )
    assert {"metrics.json", "bundle/user_tower.onnx", *(f"{name}/items.npz" for name in INDEXES)} <= first.keys()
    assert first == second


@pytest.mark.slow
@pytest.mark.parametrize("where", ELSEWHERE)
def test_threads_and_processors_move_figures_only_so_far(made, tmp_path, where):
    other = in_a_process(tmp_path / "other", False, PYTHONHASHSEED="3", **ELSEWHERE[where])
    ours, theirs = read(made), read(other)
    for kind, tolerance in TOLERANCE.items():
        assert ours[kind].keys() == theirs[kind].keys()
        moved = {
            name: float(np.abs(np.subtract(value, theirs[kind][name])).max()) for name, value in ours[kind].items()
        }
        assert max(moved.values()) <= tolerance, (kind, moved)


if __name__ == "__main__":
    make(Path(sys.argv[1]), "everything" in sys.argv)
