"""The scoreboard as text, as the README's table and as its picture."""

from __future__ import annotations

import pytest
from PIL import Image

from dssm_helpers.course.scoreboard import COLUMNS, MODELS, draw_scoreboard, plain_scoreboard, scoreboard_markdown
from dssm_helpers.recipes import RECIPES

SCORES = {"popularity": 0.09, "dssm": 0.22, "strange": 0.002, "chance": 0.006, "dssm_mean": 0.19, "ease": 0.15}


def results(*missing):
    figures = dict.fromkeys(COLUMNS, 0.5)
    models = {n: {**figures, "hit@10": s, "ndcg@10": s / 2, "train_seconds": 100 * s} for n, s in SCORES.items()}
    return {"dataset": "ml-100k", "seeds": 2, "models": {n: row for n, row in models.items() if n not in missing}}


def test_tables_have_the_best_first_and_what_training_took():
    rows = scoreboard_markdown(results()).splitlines()
    assert rows[2] == "| **two-tower of this course** (`dssm`) | 0.220 | 0.500 | 0.110 | 0.500 | 22 s |"
    assert rows[-1] == "| strange | 0.002 | 0.500 | 0.001 | 0.500 | – |", "no time, and its own name"
    assert len({row.count("|") for row in rows}) == 1
    plain = [line.split() for line in plain_scoreboard(results()).splitlines()[2:]]
    assert [line[0] for line in plain] == ["dssm", "dssm_mean", "ease", "popularity", "chance", "strange"]
    assert plain[0][1:] == ["0.220", "0.500", "0.110", "0.500", "22.0", "s"]
    assert set(RECIPES) <= set(MODELS)
    captions = [plain_scoreboard({**results(), "seeds": n}).splitlines()[0] for n in (1, 2)]
    assert ["one seed for" in captions[0], "mean of 2 seeds for" in captions[1]] == [True, True]


@pytest.mark.parametrize("missing", [(), ("dssm_mean", "ease", "chance"), ("dssm",)])
def test_picture_draws_what_is_there_best_on_top(tmp_path, missing):
    (ax,) = draw_scoreboard(results(*missing), tmp_path / "images" / "scoreboard.png").axes
    shown = sorted(score for name, score in SCORES.items() if name not in ("chance", *missing))
    assert [bar.get_width() for bar in ax.patches] == shown
    assert any("chance" in text.get_text() for text in ax.texts) is ("chance" not in missing)
    titles = [label.get_text() for label in ax.get_yticklabels()]
    assert ("two-tower of this course" in titles) is ("dssm" not in missing)


def test_picture_is_an_opaque_reproducible_png_of_the_agreed_size(tmp_path):
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    draw_scoreboard(results(), first)
    draw_scoreboard(results(), second)
    assert first.read_bytes() == second.read_bytes()
    picture = Image.open(first)
    assert picture.size == (900, 420)
    assert picture.convert("RGBA").getpixel((0, 0)) == (255, 255, 255, 255)


def test_picture_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"Hit@10.*make run"):
        draw_scoreboard({"dataset": "ml-100k", "models": {}}, tmp_path / "x.png")
