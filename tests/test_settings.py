"""Every DSSM_* variable: its default, its values, and what it refuses."""

from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT

from dssm_helpers import seed_everything, settings
from dssm_helpers.settings import dataset_name, seeds, strict


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    """The suite itself runs with some of them."""
    for name in ("DSSM_SEEDS", "DSSM_STRICT", "DSSM_DATASET"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("function", "default", "cases"),
    [(seeds, [0, 1, 2], {"": [0, 1, 2], "1": [0], "2": [0, 1]}), (strict, False, {"": False, "0": False, "1": True})],
)
def test_numbers_from_the_environment(monkeypatch, function, default, cases):
    assert function() == default
    for text, expected in cases.items():
        monkeypatch.setenv(f"DSSM_{function.__name__.upper()}", text)
        assert function() == expected


def test_a_large_data_set_has_one_seed_unless_more_are_asked_for(monkeypatch):
    monkeypatch.setenv("DSSM_DATASET", "ml-1m")
    assert seeds() == [0]
    monkeypatch.setenv("DSSM_SEEDS", "3")
    assert seeds() == [0, 1, 2]


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "²", " "])
def test_nonsense_for_the_number_of_seeds_is_refused(monkeypatch, text):
    monkeypatch.setenv("DSSM_SEEDS", text)
    with pytest.raises(ValueError, match="DSSM_SEEDS must be a whole number"):
        seeds()


def test_dataset_name(monkeypatch):
    assert dataset_name() == "ml-100k"
    monkeypatch.setenv("DSSM_DATASET", "synthetic")
    assert dataset_name() == "synthetic"
    monkeypatch.setenv("DSSM_DATASET", "ml-10m")
    with pytest.raises(ValueError, match=r"ml-10m.*ml-100k, ml-1m, synthetic"):
        dataset_name()


def test_folders_can_be_chosen_but_not_one_for_both(monkeypatch, tmp_path):
    for name, function in (("DATA", settings.data_dir), ("ARTIFACTS", lambda: settings.artifacts_dir(""))):
        monkeypatch.setenv(f"DSSM_{name}_DIR", str(tmp_path / name))
        assert function() == tmp_path / name
        monkeypatch.delenv(f"DSSM_{name}_DIR")
        assert function().parent == settings.project_root()
    for name in ("DATA", "ARTIFACTS"):
        monkeypatch.setenv(f"DSSM_{name}_DIR", str(tmp_path))
    with pytest.raises(ValueError, match="give each a folder of its own"):
        settings.artifacts_dir("ml-100k")


@pytest.mark.parametrize(("module", "without"), [("settings", ("numpy", "torch")), ("schema", ("pandas", "torch"))])
def test_little_is_needed_for(module, without):
    code = f"import sys; sys.modules.update(dict.fromkeys({without})); import dssm_helpers.{module}"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_a_seed_decides_what_python_numpy_and_torch_draw():
    def draw(*seed):
        seed_everything(*seed)
        return random.random(), np.random.random(), torch.rand(1).item()

    assert draw() == draw(0)
    assert not set(draw(0)) & set(draw(1))
