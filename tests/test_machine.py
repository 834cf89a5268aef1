"""The check of a machine names what is there and estimates from what it has just measured."""

from __future__ import annotations

import json
import re

import pytest

from dssm_helpers.course import machine


@pytest.mark.slow
def test_estimates_follow_from_a_training_on_this_machine(tmp_path, monkeypatch, capsys):
    published = {"epoch_seconds": 0.5, "notebook_seconds": {"00_overview": 40.0, "05_evaluation": 200.0}}
    file = tmp_path / "results.json"
    file.write_text(json.dumps(published))
    monkeypatch.setattr(machine, "PUBLISHED", file)
    monkeypatch.setattr(machine, "epoch_seconds", lambda: 1.0)
    monkeypatch.delenv("DSSM_STRICT", raising=False)
    monkeypatch.setenv("DSSM_DATA_DIR", str(tmp_path))
    (tmp_path / "ml-1m.zip").touch()
    machine.check_machine()
    said = capsys.readouterr().out
    assert "ml-1m.zip" in said
    assert re.search(r"00_overview +80 s", said)
    assert re.search(r"05_evaluation +400 s", said)
    assert "2.0 times" in said


@pytest.mark.slow
def test_the_yardstick_is_a_real_training():
    assert 0.001 < machine.epoch_seconds(runs=2) < 60
