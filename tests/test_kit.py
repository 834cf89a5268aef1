"""The wheel holds what notebooks read; the kit installs where no index can be reached."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT

from dssm_helpers.course import kit

NO_NETWORK = {
    "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
    "PIP_NO_CACHE_DIR": "1",
    "HTTP_PROXY": "http://127.0.0.1:9",
    "HTTPS_PROXY": "http://127.0.0.1:9",
}


@pytest.mark.slow
def test_the_wheel_carries_the_library_the_school_and_the_stored_tables(tmp_path):
    before = sorted(path for path in (ROOT / "dssm_helpers").rglob("*") if "__pycache__" not in path.parts)
    names = set(zipfile.ZipFile(kit.build_wheel(tmp_path)).namelist())
    stored = {f"dssm_helpers/course/stored/{path.name}" for path in (ROOT / "benchmarks").glob("*.json")}
    assert stored <= names
    assert {"dssm_helpers/serving.py", "dssm_helpers/course/findings.toml"} <= names
    assert {f"dssm_helpers/course/checks/{p.name}" for p in (ROOT / "dssm_helpers/course/checks").glob("*.py")} <= names
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "notebooks"))]
    after = sorted(path for path in (ROOT / "dssm_helpers").rglob("*") if "__pycache__" not in path.parts)
    assert after == before, "building leaves nothing behind in the clone"


@pytest.mark.release
def test_the_kit_installs_and_a_notebook_runs_without_any_network(tmp_path):
    folder = kit.offline_kit(tmp_path / "kit")
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment |= NO_NETWORK | {"DSSM_DATASET": "synthetic", "DSSM_SEEDS": "1"}
    done = subprocess.run([sys.executable, "install.py"], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "lab" in done.stdout
    python = folder / ".venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    command = [str(python), "-m", "pytest", "--nbmake", "-q", "00_overview.ipynb", "06_ann_retrieval.ipynb"]
    done = subprocess.run(command, cwd=folder / "notebooks", env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
