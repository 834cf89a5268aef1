"""What a notebook needs from the ones before it: found, or built on the spot.

Every artefact lies in ``artifacts/<dataset>/`` beside a ``.made-from.json`` with a hash of its recipe (data, settings,
code) and of its own content. A stale or damaged one is rebuilt, and a line says so. So any notebook runs alone, in any
order, twice, on a fresh clone.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from . import seed_everything
from .data import DATASETS, EncodedData, MovieLens, Split, encode, load_movielens, project_root, split_by_time
from .evaluation import TwoTowerScorer
from .features import DEFAULT_POOLING, BatchBuilder, default_features
from .files import sha256, write_atomically
from .model import DSSM
from .training import Trainer, TrainingConfig, load_weights, resolve_device, save_weights

T = TypeVar("T")

PROTOCOL = (
    "leave-one-out by time: each user's last rating is the test, the one before the validation; every movie the user "
    "had not rated is a candidate; ties count half; choices on validation, figures on test"
)
_CODE = ("vocabulary.py", "data.py", "features.py", "model.py", "evaluation.py", "training.py")


@dataclass(frozen=True)
class Recipe:
    """A named model of the course: what goes into the towers and how they are trained."""

    pooling: str | tuple[str, ...] = DEFAULT_POOLING
    dim: int = 64
    dims: tuple[int, ...] = (256, 64)
    dropout: float = 0.2
    temperature: float = 0.1
    max_history: int = 50
    training: TrainingConfig = field(default_factory=TrainingConfig)


RECIPES = {
    "dssm": Recipe(),
    # The textbook's pooling. Validation prefers a window of 10 movies to one of 50: a short window is a crude recency.
    "dssm_mean": Recipe(pooling="mean", max_history=10),
}


def dataset_name() -> str:
    """``DSSM_DATASET``, default ``ml-100k``."""
    name = os.environ.get("DSSM_DATASET") or "ml-100k"
    if name not in DATASETS:
        raise ValueError(f"DSSM_DATASET is {name!r}; choose one of {', '.join(DATASETS)}")
    return name


def seeds() -> list[int]:
    """Seeds to average over: 0 … ``DSSM_SEEDS`` - 1, default three. Fewer is quicker and less certain."""
    text = os.environ.get("DSSM_SEEDS") or "3"
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"DSSM_SEEDS must be a whole number from 1, got {text!r}")
    return list(range(int(text)))


def strict() -> bool:
    """True where a missing optional part is a failure (``DSSM_STRICT=1``, as in CI)."""
    return os.environ.get("DSSM_STRICT", "") not in ("", "0")


def artifacts_dir(dataset: str) -> Path:
    """``DSSM_ARTIFACTS_DIR`` or ``artifacts/`` in the repository, then the data set's name."""
    return Path(os.environ.get("DSSM_ARTIFACTS_DIR") or project_root() / "artifacts").expanduser() / dataset


def build_model(data: EncodedData, recipe: Recipe | str = "dssm", seed: int = 0) -> DSSM:
    """An untrained model after ``recipe``; the same seed gives the same weights."""
    recipe = find_recipe(recipe)
    seed_everything(seed)
    user, item = default_features(data, dim=recipe.dim, pooling=recipe.pooling, max_history=recipe.max_history)
    params = {"dims": recipe.dims, "dropout": recipe.dropout}
    return DSSM(user, item, params, params, temperature=recipe.temperature)


def find_recipe(recipe: Recipe | str) -> Recipe:
    """A recipe by name."""
    if isinstance(recipe, Recipe):
        return recipe
    if recipe not in RECIPES:
        raise ValueError(f"unknown model {recipe!r}; choose one of {', '.join(RECIPES)}")
    return RECIPES[recipe]


class Workspace:
    """One data set, its split, and the artefacts made from it.

    Args:
        dataset: default :func:`dataset_name`.
        tables: use these instead of loading (tests).
        progress: draw bars on long work.
    """

    def __init__(self, dataset: str | None = None, *, tables: MovieLens | None = None, progress: bool = True):
        self.dataset = dataset or dataset_name()
        self.progress = progress
        self.tables = tables if tables is not None else load_movielens(self.dataset, progress=progress)
        self.data: EncodedData = encode(self.tables)
        self.split: Split = split_by_time(self.data)
        self.folder = artifacts_dir(self.dataset)
        self.device = resolve_device(os.environ.get("DSSM_DEVICE") or "cpu")
        self.batches = BatchBuilder(self.data, device=self.device)

    def __repr__(self) -> str:
        return f"Workspace({self.dataset!r}: {self.split}, {self.data.n_items - 2:,} movies)"

    def cached(self, filename: str, recipe: Any, build: Callable[[Path], None], load: Callable[[Path], T]) -> T:
        """Load ``filename`` if it was made by this very recipe and is undamaged, else build it.

        Args:
            recipe: anything JSON can hold (dataclasses too) that decides the content.
            build: writes to the path it is given. load: reads from it.
        """
        path = self.folder / filename
        note_path = path.with_name(path.name + ".made-from.json")
        wanted = _digest({"data": self.data.fingerprint(), "code": _code_digest(), "recipe": recipe})
        if path.exists():
            reason = _unusable(path, note_path, wanted)
            if reason is None:
                return load(path)
            print(f"{filename} is {reason}; building it again")
        path.parent.mkdir(parents=True, exist_ok=True)
        note_path.unlink(missing_ok=True)  # an interrupted build leaves an artefact without a note: unfinished
        build(path)
        with write_atomically(note_path) as temporary:
            temporary.write_text(json.dumps({"recipe": wanted, "content": sha256(path)}), encoding="utf-8")
        return load(path)

    def trained(self, model: str = "dssm", seed: int = 0, **training: Any) -> tuple[DSSM, float]:
        """A trained model of the course and its training seconds; trains it on first use, then loads it.

        Args:
            model: a name of :data:`RECIPES`.
            training: override fields of its :class:`TrainingConfig`.
        """
        recipe = find_recipe(model)
        config = TrainingConfig(**{**asdict(recipe.training), "seed": seed, **training})
        network = build_model(self.data, recipe, seed).to(self.device)
        tag = "" if not training else "-" + _digest(training)[:8]
        filename = f"{model}-seed{seed}{tag}.safetensors"
        record = self.folder / f"{filename}.training.json"

        def build(path: Path) -> None:
            if self.progress:
                print(f"training {model} (seed {seed}) …", flush=True)
            trainer = Trainer(network, self.batches, config)
            trainer.fit(self.split.train, self.split.validation, progress=self.progress)
            with write_atomically(record) as temporary:
                temporary.write_text(trainer.history.to_json(orient="records"), encoding="utf-8")
            save_weights(network, path)

        made_from = {"model": asdict(recipe), "training": asdict(config)}
        if _read_json(record) is None:  # weights without their training history are half an artefact
            (self.folder / f"{filename}.made-from.json").unlink(missing_ok=True)
        self.cached(filename, made_from, build, lambda path: load_weights(network, path))
        return network.eval(), float(sum(row["seconds"] for row in _read_json(record)))

    def training_history(self, model: str = "dssm", seed: int = 0) -> list[dict[str, float]]:
        """Per-epoch rows of a model that :meth:`trained` has made."""
        path = self.folder / f"{model}-seed{seed}.safetensors.training.json"
        return json.loads(path.read_text(encoding="utf-8"))

    def scorer(self, model: str = "dssm", seed: int = 0) -> TwoTowerScorer:
        """A trained model ready to rank."""
        return TwoTowerScorer(self.trained(model, seed)[0], self.batches)

    def item_vectors(self, model: str = "dssm", seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """MovieLens ids ``[n]`` and unit vectors ``[n, D]`` float32 of all real movies."""
        vectors = self.scorer(model, seed).item_vectors[2:].cpu().numpy()
        return self.data.vocabularies["movie_id"].values.copy(), np.ascontiguousarray(vectors)

    # -- results ----------------------------------------------------------------------------------------------------

    @property
    def results_path(self) -> Path:
        return self.folder / "results.json"

    def results(self) -> dict[str, Any]:
        """Everything measured so far."""
        results = _read_json(self.results_path)
        if results is None and self.results_path.exists():
            print(f"{self.results_path.name} is damaged; starting it anew")
        return results or {}

    def record(self, **sections: Any) -> None:
        """Merge sections (``models=…``, ``retrieval=…``) into ``results.json``."""
        results = {"seeds": len(seeds()), **self.results(), "dataset": self.dataset, "protocol": PROTOCOL}
        for name, section in sections.items():
            merge = isinstance(section, dict) and isinstance(results.get(name), dict)
            results[name] = {**results[name], **section} if merge else section
        with write_atomically(self.results_path) as temporary:
            temporary.write_text(json.dumps(results, indent=1, default=float) + "\n", encoding="utf-8")


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _code_digest() -> str:
    digest = hashlib.sha256(torch.__version__.encode())
    for name in _CODE:
        digest.update((Path(__file__).parent / name).read_bytes())
    return digest.hexdigest()


def _read_json(path: Path) -> Any | None:
    """The content of ``path``; ``None`` if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _unusable(path: Path, note_path: Path, wanted: str) -> str | None:
    note = _read_json(note_path)
    if note is None:
        return "unfinished"
    if note.get("recipe") != wanted:
        return "stale (made from other data, settings or code)"
    return None if note.get("content") == sha256(path) else "damaged"
