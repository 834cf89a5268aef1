"""The sweeps of notebook 10: what is stored is whole, and an interrupted run goes on where it stopped."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT
from dssm_helpers.workspace import Workspace

sys.path.insert(0, str(ROOT / "benchmarks"))

import sweeps


def test_every_stored_sweep_has_all_its_points():
    stored = sweeps.read()
    keys = {key for sweep in stored["sweeps"].values() for point in sweep["points"] for key in point["keys"]}
    assert keys == set(stored["points"])
    for point in stored["points"].values():
        assert sweeps.hits(point).mean() == pytest.approx(point["hit@10"], abs=1e-5)


def test_points_with_the_same_settings_share_a_measurement():
    default = sweeps.Point("default", sweeps.CENTRE).key(0)
    shared = [name for name, sweep in sweeps.SWEEPS.items() if default in [p.key(0) for p in sweep.points]]
    assert len(shared) > 8  # the default stands in every sweep
    keys = [key for key, _, _ in sweeps.wanted()]
    assert len(keys) == len(set(keys))
    assert sweeps.Point("default", sweeps.CENTRE).key(1) != default


def test_a_point_is_trained_and_its_hits_come_back(workspace: Workspace):
    recipe = replace(sweeps.CENTRE, dim=8, dims=(16, 8), training=replace(sweeps.CENTRE.training, epochs=1))
    point = sweeps.Point("small", recipe, item_dims=(8,), leave_out=("user_id", "year"))
    result = sweeps.measure(workspace, point)
    assert result == {**sweeps.measure(workspace, point), "seconds": result["seconds"]}
    assert result["users"] == len(workspace.split.validation) == len(sweeps.hits(result))
    assert sweeps.hits(result).mean() == pytest.approx(result["hit@10"], abs=1e-5)
    names = [f.name for f in sweeps.build(workspace, point, 0).user_tower.embedding.features]
    assert "user_id" not in names
    assert "history" in names


def test_a_diverged_point_is_recorded_as_such(workspace: Workspace):
    recipe = replace(sweeps.CENTRE, training=replace(sweeps.CENTRE.training, epochs=1, learning_rate=1e12))
    result = sweeps.measure(workspace, sweeps.Point("too fast", recipe))
    assert result["diverged"]
    assert result["hit@10"] == 0.0


def test_an_interrupted_run_goes_on_and_force_repeats(workspace: Workspace, tmp_path, monkeypatch):
    measured = []

    def measure(_workspace, point, seed):
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(point.key(seed))
        return {"hit@10": 0.0, "hit@100": 0.0, "seconds": 0.0, "users": 4, "hits": "0"}

    monkeypatch.setattr(sweeps, "measure", measure)
    path = tmp_path / "sweeps.json"
    quiet = {"names": ["centre"], "log": lambda *_, **__: None}
    with pytest.raises(KeyboardInterrupt):
        sweeps.run(workspace, path, **quiet)
    assert list(json.loads(path.read_text())["points"]) == measured

    first = list(measured)
    measured.clear()
    content = sweeps.run(workspace, path, **quiet)
    assert len(measured) == 1
    assert set(content["points"]) == {*first, *measured}
    assert content["dataset"] == "synthetic"
    assert content["machine"]["cores"] >= 1

    measured.clear()
    with pytest.raises(KeyboardInterrupt):
        sweeps.run(workspace, path, **quiet, force=True)
    assert len(measured) == 2


def test_hits_keep_leading_zeros():
    assert np.array_equal(sweeps.hits({"hits": "5", "users": 6}), [0, 0, 0, 1, 0, 1])
