"""Virtual environments for what cannot live beside the course: the book, Colab's packages, the peers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def virtual_environment(folder: Path, *packages: Sequence[str], interpreter: str = sys.executable) -> Path:
    """The interpreter of an environment in ``folder`` with these packages, made if there is none or another.

    Each group of ``packages`` is one call of pip, so that what comes first decides which builds the others find.
    """
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    ready, wanted = folder / ".ready", "\n".join(map(" ".join, packages))
    if not ready.exists() or ready.read_text(encoding="utf-8") != wanted:
        print(f"making the environment {folder.name}, once …", flush=True)
        subprocess.run([interpreter, "-m", "venv", "--clear", str(folder)], check=True)
        # Isolated: what PYTHONPATH leads to would count as installed.
        pip = [str(python), "-I", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        for group in packages:
            subprocess.run([*pip, *group], check=True)
        ready.write_text(wanted, encoding="utf-8")
    return python
