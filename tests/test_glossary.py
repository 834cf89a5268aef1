"""The glossary: enough terms, in order, each linked to the heading under which a notebook introduces it."""

from __future__ import annotations

import re

import nbformat
from conftest import NOTEBOOKS

ENTRY = re.compile(r"^\*\*(.+?)\*\* — (.+?) · \[(\d\d)\]\((.+?)#(.+?)\)$")


def anchors(name: str) -> set[str]:
    """Of a notebook's headings, as Jupyter makes them."""
    cells = nbformat.read(NOTEBOOKS / name, as_version=4).cells
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    return {heading.strip().replace(" ", "-") for heading in re.findall(r"^#+\s+(.+)$", prose, re.M)}


def test_every_term_is_linked_to_where_it_is_introduced():
    lines = (NOTEBOOKS / "glossary.md").read_text(encoding="utf-8").splitlines()
    entries = [ENTRY.match(line) for line in lines if line.startswith("**")]
    assert all(entries), [line for line in lines if line.startswith("**") and not ENTRY.match(line)]
    terms = [entry[1] for entry in entries]
    assert len(terms) >= 60
    assert terms == sorted(set(terms), key=str.casefold), "in alphabetical order, each once"
    lost = [f"{e[1]}: {e[4]}#{e[5]}" for e in entries if e[3] != e[4][:2] or e[5] not in anchors(e[4])]
    assert not lost
