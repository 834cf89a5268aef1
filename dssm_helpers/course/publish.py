"""The course's address, everywhere or nowhere: ``make publish REPO=owner/name``, and ``REPO=`` to take it back.

It stands in ``[project.urls]`` of ``pyproject.toml``. Badges, the notebooks' Colab links and what their set-up cell may
install from follow it; without it nothing points anywhere.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import nbformat

from ..files import write_atomically
from .runner import fill_block

LINK = " · [Open in Colab](https://colab.research.google.com/github/{repo}/blob/main/notebooks/{name})"
BADGES = """\
[![tests](https://github.com/{repo}/actions/workflows/test.yml/badge.svg)](https://github.com/{repo}/actions)
[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/{repo}/blob/main/notebooks/00_overview.ipynb)
[![Binder](https://mybinder.org/badge_logo.svg)](https://mybinder.org/v2/gh/{repo}/main?labpath=notebooks/00_overview.ipynb)"""


def repository(root: Path) -> str:
    """``"owner/name"`` as ``pyproject.toml`` has it, empty where nothing is published."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project.get("urls", {}).get("Repository", "").removeprefix("https://github.com/")


def expected(root: Path, repo: str) -> dict[Path, str]:
    """Every file that holds the address, as it is to be when ``repo`` is the course's place."""
    texts = {
        root / name: (root / name).read_text(encoding="utf-8")
        for name in ("pyproject.toml", "README.md", "CITATION.cff")
    }
    url = f"https://github.com/{repo}"
    project, readme, citation = texts
    text = re.sub(r'\n\[project\.urls\]\nRepository = "[^"]*"\n', "", texts[project])
    if repo:
        text = text.replace(
            "\n[tool.setuptools]\n", f'\n[project.urls]\nRepository = "{url}"\n\n[tool.setuptools]\n', 1
        )
    texts[project] = text
    badges = BADGES.format(repo=repo) if repo else ""
    texts[readme] = fill_block(texts[readme], "published", badges)
    text = re.sub(r"repository-code: .*\n", "", texts[citation])
    texts[citation] = text.replace("license: ", f"repository-code: {url}\nlicense: ", 1) if repo else text
    source = f"dssm-helpers @ {url}/archive/refs/heads/main.zip" if repo else ""
    for path in sorted((root / "notebooks").glob("[0-9]*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        title, setup = notebook.cells[:2]
        title.source = re.sub(r" · \[Open in Colab\]\([^)]*\)", "", title.source)
        if repo:
            link = LINK.format(repo=repo, name=path.name)
            title.source = re.sub(r"^\*\*Before:\*\*.*$", lambda m, link=link: m[0] + link, title.source, flags=re.M)
        setup.source = re.sub(r'^ADDRESS = "[^"]*"', f'ADDRESS = "{source}"', setup.source, flags=re.M)
        texts[path] = nbformat.writes(notebook) + "\n"
    return texts


def publish(root: Path, repo: str) -> list[Path]:
    """Write the address, or with an empty ``repo`` take it out; the files that changed.

    Raises:
        ValueError: ``repo`` is no ``owner/name``.
    """
    if repo and not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise ValueError(f"expected REPO=owner/name, as in the address of the repository, got {repo!r}")
    changed = []
    for path, text in expected(root, repo).items():
        if path.read_text(encoding="utf-8") != text:
            with write_atomically(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
            changed.append(path)
    return changed
