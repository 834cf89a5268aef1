"""The book: every notebook and the glossary, linked, and nothing of it asks the network."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest
from conftest import notebook_paths
from test_browser import browser, unfold_solution  # noqa: F401  the first is a fixture

from dssm_helpers.course.book import build_book

pytestmark = [pytest.mark.book, pytest.mark.slow, pytest.mark.network]  # jupyter-book is installed on first use
LOADED = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?(https?:|//)|<link\b[^>]*\bhref=["']?(https?:|//)"""
    r"""|url\(\s*["']?(https?:|//)|@import\s+["'](https?:|//)""",
)


@pytest.fixture(scope="module")
def site() -> Path:
    return build_book()  # a link to nowhere, or any other warning, is an error


def test_no_page_loads_anything_from_the_network(site):
    pages = [*site.glob("*.html"), *site.rglob("_static/**/*.css")]
    assert len(pages) > len(notebook_paths())
    assert not [(page.name, found[0]) for page in pages if (found := LOADED.search(page.read_text(encoding="utf-8")))]
    assert LOADED.search('<script async="async" src="https://cdn.example.org/mathjax.js"></script>')


def test_every_link_inside_the_book_leads_somewhere(site):
    broken = []
    for page in site.glob("*.html"):
        for target in re.findall(r'href="([^"#?:]+)(?:#[^"]*)?"', page.read_text(encoding="utf-8")):
            if not (site / target).exists():
                broken.append((page.name, target))
    assert not broken


def test_pages_follow_each_other(site):
    for path, after in pairwise([*(path.stem for path in notebook_paths()), "glossary"]):
        page = (site / f"{path}.html").read_text(encoding="utf-8")
        assert re.search(rf'class="right-next"\s+href="{after}.html"', page), path


@pytest.mark.parametrize("path", notebook_paths(), ids=lambda path: path.stem)
def test_a_page_shows_what_its_notebook_shows(site, path):
    cells = nbformat.read(path, as_version=4).cells
    page = (site / f"{path.stem}.html").read_text(encoding="utf-8")
    pictures = [o for c in cells for o in c.get("outputs", []) if "image/png" in o.get("data", {})]
    folded = [c for c in cells if "<summary>Solution</summary>" in c.source]
    assert page.count("<img ") >= len(pictures)
    assert page.count("<summary>Solution</summary>") == len(folded) > 0


@pytest.mark.browser
def test_formulas_search_and_folded_solutions_work_from_files_without_a_network(site, browser):  # noqa: F811
    context = browser.new_context(offline=True)
    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto((site / "04_training.html").as_uri())
    page.wait_for_selector("mjx-container mjx-math")
    unfold_solution(page)
    page.goto((site / "search.html").as_uri() + "?q=temperature")
    page.wait_for_selector("ul.search li a")
    assert page.locator("ul.search li").count() > 3
    assert not [url for url in asked if not url.startswith(("file:", "data:", "blob:"))]
    context.close()
