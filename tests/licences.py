"""``docs/licences.md``, the licences of all that the course installs: ``python tests/licences.py`` writes it again."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

from dssm_helpers.course.supply import LOCK, pin
from dssm_helpers.files import write_atomically

PAGE = Path(__file__).resolve().parent.parent / "docs" / "licences.md"
HEAD = """\
# Licences of what the course installs

Every package of `requirements.lock`, and torch, with the licence that its own metadata names. `make licences` writes
the page; a test compares it with what is installed. Nothing of these packages is in this repository. A wheel may bundle
libraries under further licences: they lie in its folder `*.dist-info`. On Linux, torch from PyPI brings NVIDIA's CUDA
libraries, which cost nothing but are not open source; the CPU build brings none.

| package | version | licence | used by code under MIT |
|---|---|---|---|
"""
FREE = (  # how the names begin
    "0BSD", "3-Clause BSD", "Apache", "BSD", "BSL-1.0", "CC0", "CMU License", "ISC", "MIT", "PSF",
    "Python Software Foundation", "Zlib",
)  # fmt: skip
NOTES = {
    "MPL": "yes; a changed file of it is passed on only with its source",
    "Mozilla": "yes; a changed file of it is passed on only with its source",
    "EPL": "yes; a change of it is passed on only with its source",
    "OFL": "its fonts are not sold alone",
}

Package = tuple[str, str]  # name as in the lock, version


def locked() -> list[Package]:
    """The entries of the lock, and torch. A package may have one version for each Python."""
    return re.findall(r"^([\w.-]+)==([^ \n]+)", f"{LOCK.read_text(encoding='utf-8')}{pin('torch')}", re.M)


def licence(about: dict) -> str:
    """As the metadata of a package names it: an expression, else its classifiers, else a line of text."""
    named = [line.rpartition(" :: ")[2] for line in about.get("classifier", []) if line.startswith("License ::")]
    return about.get("license_expression") or " AND ".join(named) or about.get("license", "").strip().partition("\n")[0]


def verdict(licence: str) -> str:
    """An empty text where nobody has looked at such a licence yet."""
    parts = [part.strip("()") for part in re.split(" AND | OR ", licence)]
    if not all(part.startswith((*FREE, *NOTES)) for part in parts):
        return ""
    return "; ".join(note for name, note in NOTES.items() if any(part.startswith(name) for part in parts)) or "yes"


def installed(**where: list[str]) -> dict[Package, str]:
    """Licences by package, of this environment or of the folders of ``path``."""
    about = [distribution.metadata.json for distribution in metadata.distributions(**where)]
    return {(re.sub("[-_.]+", "-", a["name"]).lower(), a["version"].partition("+")[0]): licence(a) for a in about}


def row(package: Package, licence: str) -> str:
    return f"| {' | '.join((*package, licence, verdict(licence)))} |\n"


def page() -> str:
    """Packages that only other systems and Pythons take are fetched to read what they say."""
    found = installed()
    with TemporaryDirectory() as folder:
        options = "--quiet --no-deps --no-compile --only-binary=:all: --ignore-requires-python --python-version 3.12"
        systems = "--platform win_amd64 --platform macosx_11_0_arm64 --platform any"
        command = [sys.executable, "-m", "pip", "install", *options.split(), *systems.split(), "--target", folder]
        missing = [f"{name}=={version}" for name, version in locked() if (name, version) not in found]
        subprocess.run([*command, *missing], check=True)
        found |= installed(path=[folder])
    return HEAD + "".join(sorted(row(package, found[package]) for package in locked()))


if __name__ == "__main__":
    written = page()
    with write_atomically(PAGE) as temporary:
        temporary.write_text(written, encoding="utf-8")
