"""The book: a static site of the open notebooks, readable without a network (``make book``).

jupyter-book needs older versions than JupyterLab, so it lives in an environment of its own, made on first use.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import nbformat

from .runner import NOTEBOOKS, ROOT, notebook_paths
from .venvs import virtual_environment

ENVIRONMENT = ROOT / "artifacts" / "book-environment"
SOURCE = ROOT / "book"  # settings and requirements


def build_book(target: Path = ROOT / "artifacts" / "book") -> Path:
    """Build the site; the folder with its ``index.html``.

    Raises:
        RuntimeError: jupyter-book failed, or warned, as of a link to nowhere; the message holds its last lines.
    """
    lines = (SOURCE / "requirements.txt").read_text(encoding="utf-8").splitlines()
    python = virtual_environment(ENVIRONMENT, [line for line in lines if line and not line.startswith("#")])
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(NOTEBOOKS / "images", target / "images")
    shutil.copy(NOTEBOOKS / "glossary.md", target)
    for name in ("_config.yml", "anchors.py"):
        shutil.copy(SOURCE / name, target)
    paths = notebook_paths()
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
            if "text/markdown" in output.get("data", {}):  # the book translates links of prose, not those of outputs
                said = output.data["text/markdown"]
                output.data["text/markdown"] = re.sub(r"(\]\(\w+)\.ipynb", r"\1.html", said)
        nbformat.write(notebook, target / path.name)
    chapters = "".join(f"  - file: {name}\n" for name in [*(path.stem for path in paths[1:]), "glossary"])
    toc = f"format: jb-book\nroot: {paths[0].stem}\nchapters:\n{chapters}"
    (target / "_toc.yml").write_text(toc, encoding="utf-8")
    command = [str(python.parent / "jupyter-book"), "build", "--warningiserror", "--keep-going", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace")
    if done.returncode:
        raise RuntimeError(f"jupyter-book did not build the site:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return target / "_build" / "html"
