"""The course's address stands in one place; everything else follows it, and without it nothing points anywhere."""

from __future__ import annotations

import re
import shutil

import pytest
from conftest import ROOT

from dssm_helpers.course.publish import expected, publish, repository

HOLDERS = ("pyproject.toml", "README.md", "CITATION.cff")


@pytest.fixture
def clone(tmp_path):
    for name in HOLDERS:
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    return tmp_path


def test_the_committed_course_agrees_with_its_own_address():
    for path, text in expected(ROOT, repository(ROOT)).items():
        assert path.read_text(encoding="utf-8") == text, path.name


def test_publishing_reaches_every_file_and_taking_back_leaves_no_trace(clone):
    publish(clone, "")
    before = {path: path.read_bytes() for path in clone.rglob("*") if path.is_file()}
    changed = publish(clone, "someone/dssm")
    assert repository(clone) == "someone/dssm"
    assert {path.name for path in changed} == {*HOLDERS, *(p.name for p in clone.glob("notebooks/[0-9]*.ipynb"))}
    for path in changed:
        assert "someone/dssm" in path.read_text(encoding="utf-8"), path.name
    assert publish(clone, "someone/dssm") == []  # a second time changes nothing
    publish(clone, "other/place")
    assert not any("someone/dssm" in path.read_text(encoding="utf-8") for path in changed)
    publish(clone, "")
    assert {path: path.read_bytes() for path in clone.rglob("*") if path.is_file()} == before


def test_nothing_points_to_an_unpublished_place(clone):
    publish(clone, "")
    for path in (*clone.glob("notebooks/*.ipynb"), clone / "README.md", clone / "CITATION.cff"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"colab\.research|mybinder|badge\.svg|git\+https|archive/refs", text), path.name


def test_a_place_that_is_none_is_refused(clone):
    with pytest.raises(ValueError, match="owner/name"):
        publish(clone, "https://github.com/someone/dssm")
