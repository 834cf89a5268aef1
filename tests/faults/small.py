"""A course small enough to be broken a hundred times: two variants, a and b, of everything that it leaves on disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from dssm_helpers import recipes
from dssm_helpers.course.scoreboard import read_results
from dssm_helpers.course.workspace import KIND, Workspace
from dssm_helpers.files import read_manifest
from dssm_helpers.model import DSSM
from dssm_helpers.movielens import synthetic
from dssm_helpers.objectives import TrainingConfig
from dssm_helpers.onnx_export import export_onnx
from dssm_helpers.recipes import Recipe, build_model
from dssm_helpers.retrieval import build_index
from dssm_helpers.serving import export_bundle

RECIPE = Recipe(dim=8, dims=(8,), max_history=5, training=TrainingConfig(epochs=1, batch_size=256))
SEEDS = {"a": 1, "b": 2}
TABLES = {variant: synthetic(700, 30, 100, seed=seed) for variant, seed in SEEDS.items()}
VECTORS = {variant: np.random.default_rng(seed).normal(size=(300, 8)) for variant, seed in SEEDS.items()}


def workspace(folder: Path, variant: str) -> Workspace:
    """Both variants share the folder, so that the models and figures of the one are stale for the other."""
    recipes.RECIPES["small"] = RECIPE
    with mock.patch.dict(os.environ, {"DSSM_ARTIFACTS_DIR": str(folder), "DSSM_DEVICE": "cpu"}):
        return Workspace("synthetic", tables=TABLES[variant], progress=False)


@cache
def untrained(variant: str) -> DSSM:
    return build_model(workspace(Path("nowhere"), variant).data, RECIPE, SEEDS[variant]).eval()


@contextmanager
def converted_once() -> Iterator[None]:
    """The exporter takes seconds and touches no disk, so its result is kept; the writing happens each time."""

    def export(module: torch.nn.Module, **options: object) -> object:
        if module not in _converted:
            _converted[module] = _export(module, **options)
        return _converted[module]

    with mock.patch.object(torch.onnx, "export", export):
        yield


_converted: dict[torch.nn.Module, object] = {}
_export = torch.onnx.export


def train(folder: Path, variant: str) -> None:
    workspace(folder, variant).trained("small")


def save_index(folder: Path, variant: str) -> None:
    build_index(VECTORS[variant], backend="exact").save(folder / "index")


def save_onnx(folder: Path, variant: str) -> None:
    with converted_once():
        export_onnx(untrained(variant), folder / "user.onnx", "user")


def save_bundle(folder: Path, variant: str) -> None:
    ws = workspace(folder, variant)
    with converted_once():
        export_bundle(folder / "bundle", untrained(variant), ws.data, ws.split.train)


def record(folder: Path, variant: str) -> None:
    workspace(folder, variant).record(models={variant: {"hit@10": SEEDS[variant]}}, variant=variant)


JOBS: dict[str, Callable[[Path, str], None]] = {
    "a trained model": train,
    "an index": save_index,
    "an ONNX file": save_onnx, "a bundle": save_bundle, "results": record,
}  # fmt: skip


def read_model(folder: Path) -> bytes:
    """The weights of whichever variant is there, as any reader gets them; nothing is trained."""
    manifest = read_manifest(folder / "synthetic" / "small-seed0", KIND)
    return manifest.files["weights.safetensors"]


def read_record(folder: Path) -> dict:
    if not (folder / "synthetic" / "results.json").exists():
        raise FileNotFoundError
    results = read_results(folder / "synthetic")
    return {name: results.get(name) for name in ("models", "variant", "origin")}


def user_batch() -> dict[str, np.ndarray]:
    features = untrained("a").user_tower.embedding.features
    return {f.name: np.ones((2, 3) if hasattr(f, "poolings") else 2, dtype=np.int64) for f in features}
