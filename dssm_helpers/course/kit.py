"""The course as a wheel (``make wheel``), and a folder to install it from without a network (``make offline-kit``)."""

from __future__ import annotations

import importlib.resources
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from ..movielens import WHEEL
from ..settings import DATASETS, data_dir
from .runner import NOTEBOOKS, ROOT, notebook_paths

PIP = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]


def build_wheel(target: Path = ROOT / "dist") -> Path:
    """The course's wheel; the tables of ``benchmarks/`` that notebooks show travel inside."""
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "course")
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "dssm_helpers", source / "dssm_helpers", ignore=ignore)
        stored = source / "dssm_helpers" / "course" / "stored"
        stored.mkdir()
        for path in (
            *(ROOT / "benchmarks").glob("*.json"),
            ROOT / "pyproject.toml",
            ROOT / "README.md",
            ROOT / "LICENSE",
        ):
            shutil.copy(path, stored if path.suffix == ".json" else source)
        subprocess.run([*PIP, "--no-deps", "--wheel-dir", folder, str(source)], check=True)
        (wheel,) = Path(folder).glob("dssm_helpers-*.whl")
        return Path(shutil.copy(wheel, target))


def offline_kit(
    target: Path = ROOT / "artifacts" / "offline-kit", requirements: Path = ROOT / "requirements.txt"
) -> Path:
    """A folder with everything: wheels for this Python and system, the notebooks, the data that was fetched here.

    ``python install.py`` in it makes an environment without asking any network.
    """
    shutil.rmtree(target, ignore_errors=True)
    wheels = target / "wheels"
    wheels.mkdir(parents=True)
    print("Collecting wheels of everything that is pinned, about 1 GB …", flush=True)
    subprocess.run([*PIP, "--wheel-dir", str(wheels), "-r", str(requirements)], check=True)
    build_wheel(wheels)
    (target / "notebooks" / "data").mkdir(parents=True)
    for path in (*notebook_paths(), NOTEBOOKS / "glossary.md"):
        shutil.copy(path, target / "notebooks")
    names = [*(f"{name}.zip" for name in DATASETS), WHEEL]
    found = [data_dir() / name for name in names if (data_dir() / name).exists()]
    for path in found:
        shutil.copy(path, target / "notebooks" / "data")
    shutil.copy(requirements, target / "requirements.txt")
    script = importlib.resources.files("dssm_helpers.course").joinpath("install_kit.py")
    (target / "install.py").write_text(script.read_text(encoding="utf-8"), encoding="utf-8")
    data = ", ".join(path.name for path in found) or "none: fetch ml-100k first, or use DSSM_DATASET=synthetic"
    print(f"{target}: copy it to each machine with Python {sys.version_info[0]}.{sys.version_info[1]} and this system,")
    print(f"then `python install.py` there. Data in it (MovieLens' licence binds everybody who gets it): {data}")
    return target
