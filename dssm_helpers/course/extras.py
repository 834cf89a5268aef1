"""The optional packages of a notebook, where the course came as a wheel (Colab, a classroom's server)."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from ..retrieval import ANNOY_FLAGS
from ..settings import project_root, strict
from .environment import PACKAGES, installed


def missing(*extras: str) -> list[str]:
    """Requirements of these extras (as in ``pyproject.toml``) of which no version is installed."""
    found = []
    for requirement in importlib.metadata.requires("dssm-helpers") or []:
        wanted, _, marker = requirement.partition(";")
        if any(f'"{extra}"' in marker for extra in extras) and installed(_name(wanted)) is None:
            found.append(wanted.strip())
    return found


def needs(*extras: str) -> None:
    """Install what is missing of these extras. In a clone ``make`` has done it: what is missing is only named.

    Whatever the machine brought keeps its version, torch and pandas above all: pip looks for versions that fit it.
    Where that fails, the notebook goes on and says at each part what it lacks; with ``DSSM_STRICT=1`` it stops.
    """
    if (project_root() / "pyproject.toml").exists():
        if absent := [name for extra in extras for name in PACKAGES[extra] if not installed(name)]:
            print(f"Not installed: {', '.join(absent)}. What needs them cannot run: pip install {' '.join(absent)}")
        return
    if not (wanted := missing(*extras)):
        return
    print(f"Installing {', '.join(map(_name, wanted))}, once …", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder, "kept.txt")
        present = {found.name: found.version for found in importlib.metadata.distributions() if found.name}
        kept.write_text("".join(f"{name}=={version}\n" for name, version in present.items()), encoding="utf-8")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted]
        done = subprocess.run(
            [*command, "-c", str(kept)], capture_output=True, text=True, env={**ANNOY_FLAGS, **os.environ}
        )
    importlib.invalidate_caches()
    if done.returncode:
        problem = f"could not install them: {(done.stderr.strip().splitlines() or ['pip said nothing'])[-1]}"
        if strict():
            raise RuntimeError(problem)
        print(problem)


def _name(requirement: str) -> str:
    """``"Faiss_CPU>=1.8"`` → ``"faiss-cpu"``."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()
