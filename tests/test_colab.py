"""Every notebook as on Colab: alone in an empty folder with the wheel, beside the packages that Colab brings.

In CI the notebooks run on generated data and share one environment and one artefact folder, so extras are installed and
models trained once. With ``DSSM_COLAB_ALONE=1`` (``make colab-check``) each starts from nothing, on MovieLens.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT, notebook_paths

from dssm_helpers.course.kit import build_wheel
from dssm_helpers.course.venvs import virtual_environment
from dssm_helpers.settings import data_dir

# As Colab had them in 2025; torch is the pinned one, so that no second build of it has to be fetched.
COLAB = (
    "pandas==2.2.2", "numpy==2.0.2", "scipy==1.16.3", "scikit-learn==1.6.1", "matplotlib==3.10.0", "tqdm==4.67.1",
    "requests==2.32.4", "ipywidgets==7.7.1", "protobuf==5.29.5", "pyarrow==18.1.0", "ipykernel==6.17.1",
    "nbclient==0.10.2", "pillow==11.3.0",
)  # fmt: skip
KEPT = ("torch", "numpy", "pandas", "scipy", "protobuf")
ALONE = os.environ.get("DSSM_COLAB_ALONE", "") not in ("", "0")
EXECUTE = """
import sys, nbformat, nbclient
notebook = nbformat.read(sys.argv[1], as_version=4)
nbclient.NotebookClient(notebook, timeout=1800, kernel_name="python3").execute()
nbformat.write(notebook, sys.argv[1])
"""
VERSIONS = "import importlib.metadata as m, sys; print(*(m.version(name) for name in sys.argv[1:]))"

pytestmark = [pytest.mark.colab, pytest.mark.slow, pytest.mark.network]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="function" if ALONE else "session")
def room(tmp_path_factory) -> tuple[Path, Path]:
    """An interpreter and a folder for artefacts."""
    folder = tmp_path_factory.mktemp("colab")
    torch = importlib.metadata.version("torch").partition("+")[0]
    return virtual_environment(folder / "environment", [f"torch=={torch}"], COLAB), folder / "artifacts"


@pytest.mark.parametrize("path", notebook_paths(), ids=lambda path: path.stem)
def test_a_notebook_runs_with_nothing_but_itself_and_the_wheel(path, wheel, room, tmp_path):
    python, artifacts = room
    shutil.copy(path, tmp_path)
    shutil.copy(wheel, tmp_path)
    leave_out = ("PYTHONPATH", "DSSM_STRICT", "VIRTUAL_ENV", "JUPYTER_PATH")
    environment = {name: value for name, value in os.environ.items() if name not in leave_out}
    environment |= {"DSSM_SEEDS": "1", "DSSM_ARTIFACTS_DIR": str(artifacts), "DSSM_DATA_DIR": str(data_dir())}
    if not ALONE:
        environment["DSSM_DATASET"] = "synthetic"
    versions = [str(python), "-c", VERSIONS, *KEPT]
    before = subprocess.check_output(versions, text=True)
    command = [str(python), "-c", EXECUTE, path.name]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert subprocess.check_output(versions, text=True) == before, "something of Colab's was replaced"
    said = "".join(
        output.get("text", "")
        for cell in nbformat.read(tmp_path / path.name, as_version=4).cells
        for output in cell.get("outputs", [])
    )
    for complaint in ("could not install", "is not here", "pip install"):
        assert complaint not in said or path.stem.startswith(("00", "05")), said
    assert not (tmp_path / "dssm_helpers").exists()
    assert str(ROOT) not in said
