"""What a notebook needs from the ones before it: found, or built on the spot.

Every trained model is a folder in ``artifacts/<dataset>/`` with a manifest that holds a hash of what it was made from
(data, split, settings, code) and of its content. A stale or damaged one is rebuilt, and a line says so. So any notebook
runs alone, in any order, twice, on a fresh clone.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

import dssm_helpers

from ..data import EncodedData, encode, make_split
from ..evaluation import TwoTowerScorer, evaluate
from ..features import BatchBuilder
from ..files import Manifest, digest, read_manifest, write_folder
from ..model import DSSM
from ..movielens import SCHEMA, MovieLens, load_movielens
from ..recipes import build_model, data_of, find_recipe
from ..settings import artifacts_dir, dataset_name, device_name, seeds
from ..training import Trainer, TrainingConfig, load_weights, resolve_device, save_weights
from .scoreboard import read_results, update_results

PROTOCOL = "candidates are all items the user has not had; ties count half; choices on validation, figures on test"
KIND = "trained model"


class Workspace:
    """One data set, its split, and the artefacts made from it.

    Args:
        dataset: default :func:`~dssm_helpers.settings.dataset_name`; of your own ``data``, its name.
        tables: use these instead of loading.
        data: use this instead of tables, whatever it was encoded from.
        split: a name of :data:`~dssm_helpers.data.SPLITS`.
        progress: draw bars on long work.
    """

    def __init__(
        self,
        dataset: str | None = None,
        *,
        tables: MovieLens | None = None,
        data: EncodedData | None = None,
        split: str = "leave_last_out",
        progress: bool = True,
    ):
        self.progress = progress
        if data is None:
            self.tables = tables or load_movielens(dataset or dataset_name(), progress=progress)
            data = encode(self.tables.ratings, self.tables.users, self.tables.movies, SCHEMA, name=self.tables.name)
        self.dataset = dataset or data.name
        self.data = data
        self.split = make_split(data, split)
        self.protocol = f"{split.replace('_', ' ')}; {PROTOCOL}"
        self.folder = artifacts_dir(self.dataset if split == "leave_last_out" else f"{self.dataset}-{split}")
        self.device = resolve_device(device_name())
        self.batches = BatchBuilder(self.data, device=self.device)
        _set_old_artifacts_aside(self.folder)

    def __repr__(self) -> str:
        return f"Workspace({self.dataset!r}: {self.split}, {self.data.n_items - 2:,} items)"

    def origin(self) -> str:
        """What trained models and results rest on: a digest of data, split and code."""
        return digest([self.data.fingerprint(), self.split.fingerprint(), code_digest()])

    @staticmethod
    def glance(rows: np.ndarray, most: int = 100_000) -> np.ndarray:
        """What a training that is only compared with its like learns from: ``rows``, or ``most`` of them at random.

        So ml-100k is taken whole; where something is left out, a line says so. Rows are drawn, not users: a history is
        gathered from everything before its row, whichever rows are trained on, and nobody's id stays untrained.
        """
        if len(rows) <= most:
            return rows
        print(f"for this comparison, {most:,} of {len(rows):,} rows, drawn at random")
        return np.sort(np.random.default_rng(0).choice(rows, most, replace=False))

    # -- trained models ---------------------------------------------------------------------------------------------

    def trained(self, model: str = "dssm", seed: int = 0, **training: Any) -> tuple[DSSM, float]:
        """A trained model of the course and its training seconds; trains it on first use, then loads it.

        Args:
            model: a name of :data:`~dssm_helpers.recipes.RECIPES`.
            training: override fields of its :class:`~dssm_helpers.training.TrainingConfig`.
        """
        manifest = self._trained(model, seed, training)
        network = build_model(self.data, model, seed).to(self.device)
        with tempfile.TemporaryDirectory() as folder:
            weights = Path(folder) / "weights.safetensors"
            weights.write_bytes(manifest.files[weights.name])
            load_weights(network, weights)
        return network, float(sum(row["seconds"] for row in json.loads(manifest.files["history.json"])))

    def training_history(self, model: str = "dssm", seed: int = 0) -> list[dict[str, float]]:
        """Per-epoch rows of :meth:`trained`."""
        return json.loads(self._trained(model, seed, {}).files["history.json"])

    def _trained(self, model: str, seed: int, training: dict[str, Any]) -> Manifest:
        recipe = find_recipe(model)
        config = TrainingConfig(**{**asdict(recipe.training), "seed": seed, **training})
        path = self.folder / (f"{model}-seed{seed}" + (f"-{digest(training)[:8]}" if training else ""))
        made_from = digest({"origin": self.origin(), "recipe": asdict(recipe), "training": asdict(config)})
        try:
            manifest = read_manifest(path, KIND)
            if manifest.fields["made_from"] == made_from:
                return manifest
            print(f"{path.name} is stale (made from other data, settings or code); building it again")
        except (FileNotFoundError, ValueError) as error:
            if path.exists():
                print(f"{path.name} is unusable ({error}); building it again")
        if self.progress:
            print(f"training {model} (seed {seed}) …", flush=True)
        network = build_model(self.data, recipe, seed).to(self.device)
        batches = self.batches_of(model)
        trainer = Trainer(network, batches, config)
        trainer.fit(
            self.split.train,
            lambda m: evaluate(m, batches, self.split.validation),
            progress=self.progress,
        )
        with write_folder(path, KIND, {"made_from": made_from}) as folder:
            save_weights(network, folder / "weights.safetensors")
            (folder / "history.json").write_text(trainer.history.to_json(orient="records"), encoding="utf-8")
        return read_manifest(path, KIND)

    def scorer(self, model: str = "dssm", seed: int = 0) -> TwoTowerScorer:
        """A trained model ready to rank."""
        return TwoTowerScorer(self.trained(model, seed)[0], self.batches_of(model))

    def batches_of(self, model: str) -> BatchBuilder:
        """Batches as a model of the course reads them."""
        return BatchBuilder(data_of(self.data, model), device=self.device)

    def item_vectors(self, model: str = "dssm", seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Raw ids ``[n]`` and unit vectors ``[n, D]`` float32 of all real items."""
        vectors = self.scorer(model, seed).item_vectors[2:].cpu().numpy()
        return self.data.vocabularies["item_id"].values.copy(), np.ascontiguousarray(vectors)

    # -- results ----------------------------------------------------------------------------------------------------

    def results(self) -> dict[str, Any]:
        """Everything measured so far on this data and split, with this code."""
        return read_results(self.folder, self.origin())

    def record(self, **sections: Any) -> None:
        """Merge sections (``models=…``, ``retrieval=…``) into ``results.json``."""
        origin = self.origin()
        with update_results(self.folder, origin) as results:
            fixed = {"dataset": self.dataset, "protocol": self.protocol, "origin": origin}
            for name, section in {"seeds": results.get("seeds", len(seeds())), **fixed, **sections}.items():
                merge = isinstance(section, dict) and isinstance(results.get(name), dict)
                results[name] = {**results[name], **section} if merge else section


def code_digest() -> str:
    """SHA-256 of every module that decides what a trained model's figures are, and of torch's version."""
    package = Path(dssm_helpers.__file__).parent
    modules = dssm_helpers.MODULES[: dssm_helpers.MODULES.index("index")]
    found = hashlib.sha256(torch.__version__.encode())
    for path in (package / "__init__.py", *(package / f"{name}.py" for name in modules), Path(__file__)):
        found.update(path.read_bytes())
    return found.hexdigest()


def _set_old_artifacts_aside(folder: Path) -> None:
    """Version 1 of the course kept its artefacts in another form: nothing of them is read, and nothing is deleted."""
    if any(folder.glob("*.made-from.json")):
        aside = folder.with_name(f"{folder.name}-version-1")
        if not aside.exists():
            os.replace(folder, aside)
            print(f"artifacts of an older version were moved to {aside.name}; they are built again as needed")
