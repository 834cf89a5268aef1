"""Notebooks in a real JupyterLab in a real Chromium, as a learner has them; pictures are in ``artifacts/browser/``."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import nbformat
import pytest
from conftest import NOTEBOOKS, ROOT, notebook_paths

from dssm_helpers.settings import strict

pytestmark = [pytest.mark.browser, pytest.mark.slow]

FOLDER = ROOT / "artifacts" / "browser"
SHOWN = [number for number in ("00", "04", "06", "07", "09", "16") if any(NOTEBOOKS.glob(f"{number}_*.ipynb"))]
TOKEN = "course"
# As root there is no sandbox; the rest keeps Chromium from calling its maker.
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
INSTALL = "apt-get install -y chromium (Debian, Ubuntu), brew install chromium (macOS)"


def find_chromium() -> str:
    """Where Chromium is. On Debian as root, as in CI, it is installed; elsewhere the test says how to."""
    names = ("chromium", "chromium-browser", "google-chrome")
    if not any(map(shutil.which, names)) and strict() and shutil.which("apt-get") and os.geteuid() == 0:
        subprocess.run(["apt-get", "update", "-q"], check=True, capture_output=True)
        subprocess.run(["apt-get", "install", "-y", "-q", "chromium"], check=True, capture_output=True)
    found = next((path for path in map(shutil.which, names) if path), None)
    if found is None:
        (pytest.fail if strict() else pytest.skip)(f"there is no Chromium here; install it: {INSTALL}")
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator:
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with playwright.sync_playwright() as p:
        found = p.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        yield found
        found.close()


def ask(address: str, path: str, content: object = None) -> object:
    data = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(
        address + path, data, {"Authorization": f"token {TOKEN}"}, method="PUT" if data else "GET"
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        body = answer.read()
    return json.loads(body) if body else None


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Iterator[str]:
    """JupyterLab as `make lab` starts it, over copies of the notebooks: its address, once it answers."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    (FOLDER / "notebooks").mkdir(parents=True)
    for path in notebook_paths():  # without outputs, so that what is seen later was made here
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        nbformat.write(notebook, FOLDER / "notebooks" / path.name)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = f"--no-browser --allow-root --ip=127.0.0.1 --port={port} --IdentityProvider.token={TOKEN}"
    recipe = subprocess.run(
        ["make", "-s", "-n", "-o", ".venv/.ready", "lab", f"FLAGS={flags}"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.strip().splitlines()[-1]  # fmt: skip
    python, *command = recipe.split()
    assert python.endswith("python")
    settings = {**os.environ, "DSSM_DATASET": "synthetic", "DSSM_SEEDS": "1"}
    settings.pop("DSSM_STRICT", None)  # exercises stand open, and one to debug is wrong as it stands
    settings["JUPYTERLAB_SETTINGS_DIR"] = str(tmp_path_factory.mktemp("settings"))
    address, log = f"http://127.0.0.1:{port}", FOLDER / "lab.log"
    with log.open("w") as file, subprocess.Popen(
        [sys.executable, *command], cwd=FOLDER, env=settings, stdout=file, stderr=file
    ) as server:  # fmt: skip
        for _ in range(240):
            assert server.poll() is None, log.read_text()
            try:
                ask(address, "/api/status")
                break
            except OSError:
                time.sleep(0.5)
        # Else cells outside the window are not in the page, and cannot be looked at.
        tracker = "/lab/api/settings/@jupyterlab/notebook-extension:tracker"
        ask(address, tracker, {"raw": json.dumps({"windowingMode": "none"})})
        yield address
        server.terminate()


def open_and_run(page, address: str, name: str) -> nbformat.NotebookNode:
    """Open a notebook, run it by the menu, wait for the last cell, save by the menu: what was saved."""
    page.goto(f"{address}/lab/tree/{name}?token={TOKEN}&reset")
    page.wait_for_selector(".jp-NotebookPanel .jp-CodeCell", timeout=120_000)
    until(lambda: any(s["path"].endswith(name) and s["kernel"]["connections"] for s in ask(address, "/api/sessions")))
    choose(page, "Run", "runmenu:run-all")
    path = FOLDER / "notebooks" / name

    def finished() -> nbformat.NotebookNode | None:
        """The page tells nothing of folded cells, so the saved file is asked: once, as the next save may be at work."""
        choose(page, "File", "docmanager:save")
        try:
            saved = nbformat.read(path, as_version=4)
        except nbformat.reader.NotJSONError:  # it is being written
            return None
        code = [c for c in saved.cells if c.cell_type == "code"]
        failed = any(output.output_type == "error" for c in code for output in c.outputs)
        return saved if failed or all(c.execution_count for c in code) else None

    return until(finished, seconds=600, pause=2)


def unfold_solution(page):
    """The page's first solution, which was folded."""
    solution = page.locator("details", has_text="Solution").first
    assert not solution.locator("pre").first.is_visible()
    solution.locator("summary").click()
    assert solution.locator("pre").first.is_visible()
    return solution


def choose(page, menu: str, command: str) -> None:
    page.click(f".lm-MenuBar-itemLabel:text-is('{menu}')")
    page.click(f".lm-Menu-item[data-command='{command}']")


def until(condition: Callable[[], Any], seconds: float = 120, pause: float = 0.5) -> Any:
    """What the condition returns when it is true of something."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(pause)
    return found


@pytest.mark.parametrize("number", SHOWN)
def test_a_notebook_in_jupyterlab(browser, lab, number):
    (name,) = (path.name for path in NOTEBOOKS.glob(f"{number}_*.ipynb"))
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    saved = open_and_run(page, lab, name)
    errors = [o.evalue for c in saved.cells for o in c.get("outputs", []) if o.output_type == "error"]
    assert not errors
    pictures = sum("image/png" in o.get("data", {}) or "image/svg+xml" in o.get("data", {})
                   for c in saved.cells for o in c.get("outputs", []))  # fmt: skip
    sizes = page.evaluate(
        """() => [...document.querySelectorAll('.jp-OutputArea-output img, .jp-RenderedSVG svg, .jp-RenderedSVG img')]
                 .map(e => { const box = e.getBoundingClientRect(); return [box.width, box.height] })"""
    )
    assert len(sizes) >= pictures
    assert all(width > 50 and height > 30 for width, height in sizes), sizes

    wide = page.evaluate(
        """() => [...document.querySelectorAll('.jp-CodeCell:not(.jp-mod-noEditor) .cm-scroller')]
                 .filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.innerText.slice(0, 200))"""
    )
    assert not wide, "code is cut off at 1,280 pixels"

    unfold_solution(page).scroll_into_view_if_needed()
    page.screenshot(path=FOLDER / f"{number}-solution.png")

    form = page.locator(".jp-OutputArea-output .widget-interact, .jp-OutputArea-output .widget-box").first
    if form.count():
        form.scroll_into_view_if_needed()
        before = form.inner_text()
        react(page, form)
        page.wait_for_function("([e, t]) => e.innerText !== t", arg=[form.element_handle(), before])
        page.screenshot(path=FOLDER / f"{number}-form.png")
    page.close()


def react(page, form) -> None:
    """Choose, type or press: whatever this form is made of."""
    if form.locator("select").count():
        form.locator("select option").nth(5).click()
    elif form.locator("input[type=text]").count():
        form.locator("input[type=text]").first.fill("cubic spline interpolation")
        page.keyboard.press("Enter")
    else:
        form.locator("button").first.click()


def test_the_notebooks_with_a_form_show_it(browser, lab):
    """09 shows a form only where somebody can click it; so here, and not when it runs without a page."""
    saved = nbformat.read(FOLDER / "notebooks" / next(NOTEBOOKS.glob("09_*.ipynb")).name, as_version=4)
    assert any(
        "application/vnd.jupyter.widget-view+json" in o.get("data", {})
        for c in saved.cells
        for o in c.get("outputs", [])
    )
