"""Shared fixtures: generated data (no network), and a reader of what the notebooks define."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import nbformat
import numpy as np
import pytest
import torch
import workers

from dssm_helpers.course.workspace import Workspace
from dssm_helpers.data import EncodedData, Split, encode, split_by_time
from dssm_helpers.features import BatchBuilder, default_features
from dssm_helpers.model import DSSM
from dssm_helpers.movielens import SCHEMA, MovieLens, synthetic
from dssm_helpers.recipes import RECIPES
from dssm_helpers.settings import strict

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(workers)  # as a plugin it sees the notebooks too, which lie outside of this folder


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    """A test whose optional part is not installed is skipped and says what to install; with DSSM_STRICT=1 it fails."""
    report = yield
    error = call.excinfo and call.excinfo.value
    package = error.name.partition(".")[0] if isinstance(error, ImportError) and error.name else "dssm_helpers"
    if package != "dssm_helpers" and PathFinder.find_spec(package) is None and not strict():
        said = str(error) if "pip install" in str(error) else f"pip install {package}"
        report.outcome, report.longrepr = "skipped", (str(item.path), item.location[1] + 1, f"Skipped: {said}")
    return report


def notebook_paths() -> list[Path]:
    return sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))


def notebook_definitions(number: str, *names: str) -> dict[str, object]:
    """What a notebook builds step by step, to compare with the helper package: of all its cells only the plain imports,
    upper-case constants and the named functions and classes are executed."""
    (path,) = NOTEBOOKS.glob(f"{number}_*.ipynb")
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    source = re.sub(r"^(\s*)[%!].*$", r"\1pass", "\n".join(cells), flags=re.M)  # a magic may be a block's only line
    namespace: dict[str, object] = {}
    for node in ast.parse(source).body:
        constant = isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        wanted = getattr(node.targets[0], "id", "").isupper() if constant else getattr(node, "name", None) in names
        if wanted or isinstance(node, (ast.Import, ast.ImportFrom)):
            exec(compile(ast.Module([node], []), str(path), "exec"), namespace)
    assert set(names) <= set(namespace), f"notebook {number} no longer defines them all: {names}"
    return namespace


def encoded(tables: MovieLens) -> EncodedData:
    return encode(tables.ratings, tables.users, tables.movies, SCHEMA, name=tables.name)


@pytest.fixture(autouse=True, scope="module")
def the_same_recipes() -> Iterator[None]:
    """A model that one file of tests adds is not there for the next."""
    before = dict(RECIPES)
    yield
    RECIPES.clear()
    RECIPES.update(before)


@pytest.fixture(scope="session")
def tables() -> MovieLens:
    return synthetic(n_ratings=1_500, n_users=60, n_movies=120, seed=1)


@pytest.fixture(scope="session")
def data(tables: MovieLens) -> EncodedData:
    return encoded(tables)


@pytest.fixture(scope="session")
def split(data: EncodedData) -> Split:
    return split_by_time(data)


@pytest.fixture(scope="session")
def batches(data: EncodedData) -> BatchBuilder:
    return BatchBuilder(data, max_history=10)


def make_model(data: EncodedData, pooling: str | tuple[str, ...] = ("mean", "recency:3"), **options: object) -> DSSM:
    """An untrained model of the default's kind, small."""
    torch.manual_seed(0)
    user, item = default_features(data, dim=16, side_dim=8, pooling=pooling, **options)
    params = {"dims": (32, 16), "dropout": 0.5}
    model = DSSM(user, item, params, params)
    with torch.no_grad():  # far from the small values it starts with, so that differences would show
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.3)
    return model.eval()


@pytest.fixture(scope="module")
def model(data: EncodedData) -> DSSM:
    return make_model(data, max_history=10)


@pytest.fixture
def workspace(tables: MovieLens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace over the generated set with its artefacts in a temporary folder."""
    monkeypatch.setenv("DSSM_ARTIFACTS_DIR", str(tmp_path / "artifacts"))
    return Workspace("synthetic", tables=tables, progress=False)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
