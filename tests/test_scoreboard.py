"""The scoreboard as text, as the README's table and as its picture."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import ROOT

from dssm_helpers.course.scoreboard import COLUMNS, MODELS, draw_scoreboard, plain_scoreboard, scoreboard_markdown
from dssm_helpers.recipes import RECIPES

SCORES = {"popularity": 0.09, "dssm": 0.22, "chance": 0.006, "ials": 0.14, "dssm_mean": 0.19, "ease": 0.15}


def results(*missing):
    figures = dict.fromkeys(COLUMNS, 0.5)
    models = {n: {**figures, "hit@10": s, "ndcg@10": s / 2, "train_seconds": 100 * s} for n, s in SCORES.items()}
    return {"dataset": "ml-100k", "seeds": 2, "models": {n: row for n, row in models.items() if n not in missing}}


def test_tables_have_the_best_first_and_what_training_took():
    rows = scoreboard_markdown(results()).splitlines()
    assert len({row.count("|") for row in rows}) == 1
    assert rows[2] == "| **two-tower of this course** (`dssm`) | 0.220 | 0.500 | 0.110 | 0.500 | 22 s |"
    plain = plain_scoreboard(results()).splitlines()
    assert [line.split()[0] for line in plain[2:]] == ["dssm", "dssm_mean", "ease", "ials", "popularity", "chance"]
    assert plain[2].split()[1:] == ["0.220", "0.500", "0.110", "0.500", "22.0", "s"]


def test_a_model_trained_in_no_time_has_a_dash_and_a_strange_one_its_own_name():
    models = {"strange": {**dict.fromkeys(COLUMNS, 0.1), "train_seconds": 0.4}}
    assert scoreboard_markdown({"models": models}).endswith("| strange | 0.100 | 0.100 | 0.100 | 0.100 | – |")
    assert set(RECIPES) <= set(MODELS)


@pytest.mark.parametrize("missing", [(), ("ials",), ("dssm_mean", "ease", "chance"), ("dssm",)])
def test_picture_draws_what_is_there_best_on_top(tmp_path, missing):
    (ax,) = draw_scoreboard(results(*missing), tmp_path / "images" / "scoreboard.png").axes
    shown = sorted(score for name, score in SCORES.items() if name not in ("chance", *missing))
    assert [bar.get_width() for bar in ax.patches] == shown
    assert any("chance" in text.get_text() for text in ax.texts) is ("chance" not in missing)
    titles = [label.get_text() for label in ax.get_yticklabels()]
    assert ("two-tower of this course" in titles) is ("dssm" not in missing)
    assert not set("*`") & set("".join(titles))


def test_picture_is_an_opaque_reproducible_png_of_the_agreed_size(tmp_path):
    from PIL import Image

    first, second = tmp_path / "a.png", tmp_path / "b.png"
    draw_scoreboard(results(), first)
    draw_scoreboard(results(), second)
    assert first.read_bytes() == second.read_bytes()
    picture = Image.open(first)
    assert picture.size == (900, 420)
    assert picture.convert("RGBA").getpixel((0, 0)) == (255, 255, 255, 255)
    assert set(picture.info) <= {"dpi"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_picture_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"Hit@10.*make run"):
        draw_scoreboard({"dataset": "ml-100k", "models": {}}, tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


def test_needs_no_torch():
    code = "import sys; sys.modules['torch'] = None; import dssm_helpers.course.scoreboard; print('imported')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "imported\n"
