"""`make lab` opens JupyterLab at notebook 00: the real server, asked over HTTP."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from conftest import NOTEBOOKS, ROOT


def get(url: str) -> bytes:
    request = urllib.request.Request(url, headers={"Authorization": "token course"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.read()


@pytest.fixture
def lab(tmp_path):
    """A running JupyterLab over the repository: its address, once it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root", f"--port={port}"]
    command += ["--ip=127.0.0.1", "--IdentityProvider.token=course", f"--ServerApp.root_dir={ROOT}"]
    address, log = f"http://127.0.0.1:{port}", tmp_path / "lab.log"
    with log.open("w") as file, subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file) as server:
        for _ in range(120):
            assert server.poll() is None, log.read_text()
            try:
                get(f"{address}/api/status")
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.5)
        yield address
        server.terminate()


@pytest.mark.slow
def test_lab_serves_every_notebook_and_has_the_kernel_they_name(lab):
    listed = {entry["name"] for entry in json.loads(get(f"{lab}/api/contents/notebooks"))["content"]}
    assert {p.name for p in NOTEBOOKS.glob("*.ipynb")} <= listed
    assert b"JupyterLab" in get(f"{lab}/lab/tree/notebooks/00_overview.ipynb")
    opened = json.loads(get(f"{lab}/api/contents/notebooks/00_overview.ipynb"))["content"]
    kernels = json.loads(get(f"{lab}/api/kernelspecs"))["kernelspecs"]
    assert opened["metadata"]["kernelspec"]["name"] in kernels


def test_make_lab_names_the_first_notebook():
    assert "jupyter lab notebooks/00_overview.ipynb" in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert (NOTEBOOKS / "00_overview.ipynb").exists()
