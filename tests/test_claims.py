"""Prose obeys its output: a sentence that states a measured relation is guarded by the condition that makes it true.

``tests/claims/NN.toml`` lists the sentences of notebook NN: ``[[claim]]`` with ``sentence`` and ``holds``, a condition
on the sections of the recorded results; ``[[general]]`` with ``sentence`` and ``why``, for what states no measurement.
A sentence with a word of comparison that is in neither list is red, and so is a claim whose sentence has changed.
"""

from __future__ import annotations

import json
import math
import os
import re
import tomllib
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT, notebook_paths

CLAIMS = Path(__file__).parent / "claims"
RESULTS = Path(os.environ.get("DSSM_CLAIMS_RESULTS") or ROOT / "notebooks" / "results-ml-100k.json")
COMPARES = re.compile(
    r"\b(better|worse|beats?|wins?|nearly|hardly|faster|slower|clearly|within (the )?noise|the same way|most of|"
    r"dominates?|doubles?|outperforms?)\b"
)
PATHS = [pytest.param(path, id=path.stem) for path in notebook_paths()]


def prose(path: Path) -> str:
    """Markdown outside of folded parts, tables' rows apart, white space as single blanks."""
    cells = nbformat.read(path, as_version=4).cells
    text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    text = re.sub(r"<details>.*?</details>", "", text, flags=re.S)
    return "\n".join(" ".join(part.split()) for part in re.split(r"\n\s*\n|\n(?=[-|#\d])", text))


def listed(path: Path) -> dict[str, list[dict[str, str]]]:
    return tomllib.loads((CLAIMS / f"{path.stem[:2]}.toml").read_text(encoding="utf-8"))


def claims() -> list:
    return [
        pytest.param(path, claim, id=f"{path.stem[:2]}-{claim['sentence'][:40]}")
        for path in notebook_paths()
        for claim in listed(path).get("claim", [])
    ]


@pytest.mark.parametrize(("path", "claim"), claims())
def test_a_claim_is_true_of_the_recorded_results(path, claim):
    assert " ".join(claim["sentence"].split()) in prose(path), "the sentence has changed; look at its condition too"
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert eval(claim["holds"], {"math": math, **results}) is True, claim["holds"]


@pytest.mark.parametrize("path", PATHS)
def test_no_sentence_compares_without_a_claim(path):
    text, lists = prose(path), listed(path)
    known = [" ".join(entry["sentence"].split()) for kind in ("claim", "general") for entry in lists.get(kind, [])]
    assert not [sentence for sentence in known if sentence not in text], "listed, and not in the notebook"
    assert all(entry["why"].strip() for entry in lists.get("general", []))
    for sentence in known:
        text = text.replace(sentence, "")
    loose = [sentence for sentence in re.split(r"(?<=[.!?:])\s|\n", text) if COMPARES.search(sentence)]
    assert not loose
