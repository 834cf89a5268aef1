"""What the course installs: the hashes of all files (``lock``), and what is known against it (``make audit``)."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from ..files import write_atomically
from .runner import ROOT
from .venvs import virtual_environment

LOCK = ROOT / "requirements.lock"
OF_A_BUILD = r"torch|triton|(?:cuda|nvidia)-[\w.-]+"  # names of packages that each build of torch has its own of
HEAD = """\
# Every package of requirements.txt and all that they need on Linux, macOS and Windows, Python 3.11 and later, with the
# SHA-256 of each file that PyPI has of it; `python -m dssm_helpers.course lock` writes it. To install exactly these:
#   pip install --require-hashes -r requirements.lock
#   pip install {torch}
# torch stands apart: a version has several builds (for the CPU on pytorch.org, with CUDA and its companions on PyPI),
# each with hashes of its own. Its version is pinned, and a test compares it; what it needs besides CUDA is below.
# annoy comes as source and wants a C++ compiler: the source is verified, the setuptools that builds it is not.
"""


def pin(name: str) -> str:
    return re.search(rf"^{name}==.+", (ROOT / "requirements.txt").read_text(encoding="utf-8"), re.M)[0]


def lock() -> None:
    """Resolve for all systems at once, from PyPI alone, whatever index this machine is set to."""
    python = virtual_environment(ROOT / "artifacts" / "uv", ["uv==0.13.9"])
    options = "--no-config --no-header --universal --python-version 3.11 --generate-hashes --system-certs --quiet"
    command = [python, "-m", "uv", "pip", "compile", *options.split(), "--default-index", "https://pypi.org/simple"]
    done = subprocess.run([*command, "requirements.txt"], check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    text = re.sub(rf"^({OF_A_BUILD})==.*\n( .*\n)*", "", done.stdout, flags=re.M)
    with write_atomically(LOCK) as temporary:
        temporary.write_text(HEAD.format(torch=pin("torch")) + text, encoding="utf-8")


def audit() -> int:
    """Ask PyPI's advisories about the lock and torch; :func:`report` says what the exit status means."""
    python = virtual_environment(ROOT / "artifacts" / "pip-audit", ["pip-audit==2.10.1"])
    pins = re.findall(r"^[\w.-]+==[^\\\n]+", LOCK.read_text(encoding="utf-8"), re.M)  # with markers, without hashes
    with TemporaryDirectory() as folder:
        file = Path(folder, "pins.txt")
        file.write_text("\n".join([*pins, pin("torch")]), encoding="utf-8")
        options = ["--disable-pip", "--no-deps", "--progress-spinner", "off", "--format", "json", "-r", file]
        done = subprocess.run([python, "-m", "pip_audit", *options], stdout=subprocess.PIPE, text=True)
    return report(json.loads(done.stdout or "{}").get("dependencies", []))


def report(packages: list[dict]) -> int:
    """Print what is known: 0 nothing, 1 something, 2 where not all were answered, which pip-audit takes for good."""
    answered = [package for package in packages if "vulns" in package]
    for package in (found := [package for package in answered if package["vulns"]]):
        print(f"{package['name']} {package['version']}: {', '.join(v['id'] for v in package['vulns'])}")
    if not packages or len(answered) < len(packages):
        got = f"the advisories answered for {len(answered)} of {len(packages)} packages"
        print(f"Not run: {got}. Try again where pypi.org itself can be reached and not a mirror of it.")
        return 2
    print(f"{len(packages)} packages, {len(found)} of them with known vulnerabilities")
    return 1 if found else 0
