"""What the course installs: the lock and the licences are those of requirements.txt, and nothing calls home."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec

import licences
import nbformat
import pytest
from conftest import ROOT, notebook_paths
from licences import PAGE, installed, locked, row, verdict
from packaging.requirements import Requirement
from test_repository import README, pinned

from dssm_helpers.course.supply import LOCK, OF_A_BUILD, pin, report
from dssm_helpers.onnx_export import open_session

TEXT = LOCK.read_text(encoding="utf-8")
HASHES = r"(?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+"
ENTRIES = re.findall(rf"^([\w.-]+)==([^ ]+)(?: ; ([^\\]+))? \\\n{HASHES}", TEXT, re.M)


def test_the_lock_has_every_pin_with_hashes_and_nothing_of_this_machine():
    versions = {name: version for name, version, marker in ENTRIES if not marker}
    assert {**versions, "torch": pinned()["torch"]}.items() >= pinned().items(), "python -m dssm_helpers.course lock"
    assert [(name, version) for name, version, _ in ENTRIES] == locked()[:-1], "an entry without hashes"
    assert pin("torch") in TEXT.partition("\nannoy==")[0]
    assert not re.findall(r"^-.*|\w+:/\S+|@ \S+", TEXT, re.M), "an option or an address"


def test_the_lock_is_closed():
    """Whatever a locked package needs is locked too, as far as it is installed here in that very version."""
    names = {name for name, _ in locked()}
    for name, _ in set(locked()) & installed().keys():
        for line in metadata.requires(name) or []:
            need = Requirement(line)
            of_a_build = name == "torch" and re.fullmatch(OF_A_BUILD, need.name)
            if not of_a_build and (need.marker is None or need.marker.evaluate({"extra": ""})):
                assert re.sub("[-_.]+", "-", need.name).lower() in names, f"{name} needs {line}: lock again"


def test_every_package_has_a_licence_that_fits():
    page, here = PAGE.read_text(encoding="utf-8"), installed()
    rows = re.findall(r"^\| ([\w.-]+) \| (\d\S*) \| (.+) \| (.+) \|$", page, re.M)
    assert sorted(rows) == sorted((*package, text, verdict(text)) for *package, text, _ in rows)
    assert sorted((name, version) for name, version, *_ in rows) == sorted(locked()), "make licences"
    names = {name for name, _ in locked()}
    found = {package: text for package, text in here.items() if package[0] in names}
    assert len(found) > (100 if find_spec("onnxruntime") else 50)  # as many without the optional parts
    assert not [package for package, text in found.items() if not verdict(text)], "whatever its version"
    same = set(locked()) & here.keys()
    assert not [package for package in same if row(package, here[package]) not in page], "make licences"


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("MIT", "yes"),
        ("MPL-2.0 AND (Apache-2.0 OR MIT)", licences.NOTES["MPL"]),
        ("GPL-3.0-only", ""),
        ("MIT AND AGPL-3.0-or-later", ""),
        ("BSL-1.1", ""),
        ("", ""),
    ],
)
def test_a_licence_that_nobody_looked_at_is_not_taken_for_a_free_one(licence, expected):
    assert verdict(licence) == expected


SOUND, HURT = {"name": "a", "version": "1", "vulns": []}, {"name": "b", "version": "2", "vulns": [{"id": "PYSEC-1"}]}
SKIPPED = {"name": "c", "skip_reason": "Dependency not found on PyPI"}


@pytest.mark.parametrize(
    ("packages", "status", "says"),
    [
        ([SOUND], 0, "1 packages, 0 of them with known"),
        ([SOUND, HURT], 1, "b 2: PYSEC-1"),
        ([SOUND, SKIPPED], 2, "Not run: the advisories answered for 1 of 2"),
        ([HURT, SKIPPED], 2, "b 2: PYSEC-1"),
        ([], 2, "Not run: the advisories answered for 0 of 0"),
    ],
)
def test_an_audit_without_answers_is_no_clean_bill(capsys, packages, status, says):
    assert report(packages) == status
    out = capsys.readouterr().out
    assert says in out
    assert status != 2 or "with known" not in out


WATCHED = """
import json, os, sys
asked = []
EVENTS = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "urllib.Request")
sys.addaudithook(lambda event, arguments: event in EVENTS and (asked.append((event, str(arguments))), 1 / 0))
for line in json.loads(sys.argv[1]):
    exec(line)
sys.exit("; ".join(map(str, asked)) or 0)  # an attempt whose error was swallowed counts too
"""


def watched(*lines: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", WATCHED, json.dumps(lines)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_no_import_asks_the_network():
    scripts = ("__main__", "install_kit")  # which do something when imported
    files = [file.relative_to(ROOT).with_suffix("") for file in (ROOT / "dssm_helpers").rglob("*.py")]
    lines = {f"import {'.'.join(file.parts).removesuffix('.__init__')}" for file in files if file.name not in scripts}
    for path in notebook_paths():
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "code":
                source = re.sub(r"^(\s*)[%!].*$", r"\1pass", cell.source, flags=re.M)
                nodes = ast.walk(ast.parse(source))
                lines |= {ast.unparse(node) for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom))}
    assert {"import dssm_helpers.serving", "import dssm_helpers.course.kit", "import torch"} <= lines
    done = watched(*sorted(lines))
    assert done.returncode == 0, done.stderr


def test_an_import_that_asks_the_network_would_be_seen():
    hidden = "try: socket.create_connection(('example.invalid', 443))\nexcept Exception: pass"
    assert "socket.getaddrinfo" in watched("import socket", hidden).stderr


def test_onnxruntime_is_told_to_send_no_events(monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime", reason="pip install onnxruntime")
    told = []
    monkeypatch.setattr(onnxruntime, "disable_telemetry_events", lambda: told.append(True))
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidProtobuf):
        open_session(b"no model")
    assert told


def test_jupyterlab_calls_nobody():
    """Its news and its question for a newer version of itself are off, where it starts by hand as well."""
    flags = "--LabApp.news_url=None --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"
    assert f"jupyter lab notebooks/00_overview.ipynb {flags}" in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"`jupyter lab notebooks {flags}`" in README
