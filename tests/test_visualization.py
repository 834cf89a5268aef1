"""Drawings of the network and maps of vectors."""

from __future__ import annotations

import copy
import re
import sys
import xml.etree.ElementTree as ElementTree

import matplotlib
import numpy as np
import pytest
import torch
from conftest import notebook_definitions

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from dssm_helpers import visualization
from dssm_helpers.features import BatchBuilder
from dssm_helpers.recipes import build_model
from dssm_helpers.visualization import draw_map, draw_towers, embedding_map, find_renderer, short_title, visualize_model


@pytest.fixture
def model(data):
    return build_model(data, "dssm", seed=0)


@pytest.fixture
def batch(data):
    return BatchBuilder(data, max_history=50)(np.arange(2))


@pytest.fixture
def only_pure(monkeypatch, tmp_path):
    """A machine with graphviz-pure beside Python and no ``dot`` on the PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    pytest.importorskip("torchview", reason="pip install torchview graphviz graphviz-pure")
    assert find_renderer().stem == "graphviz-pure", "graphviz-pure is part of requirements.txt and must be installed"


def parse(svg):
    """Of a drawing: the boxes as (text, x, y), and the arrows as pairs of texts."""
    box, arrows = {}, set()
    for group in ElementTree.fromstring(svg).iterfind(".//{*}g"):
        texts = group.findall("{*}text")
        if group.get("class") == "node":
            where = float(texts[0].get("x")), float(texts[0].get("y"))
            box[group.findtext("{*}title")] = (" ".join(t.text for t in texts), *where)
        elif group.get("class") == "edge":
            arrows.add(tuple(group.findtext("{*}title").split("->")))
    return list(box.values()), {(box[tail][0], box[head][0]) for tail, head in arrows}


def columns_of(tower, batch):
    return [f"{f.name} {tuple(batch[f.name].shape)}" for f in tower.embedding.features]


def test_one_call_draws_and_writes_valid_files(model, batch, only_pure, tmp_path):
    drawing = visualize_model(model, batch, save_dir=tmp_path / "new", name="towers")
    assert set(drawing.files.values()) == set((tmp_path / "new").iterdir())
    assert ElementTree.parse(tmp_path / "new" / "towers.svg").getroot().tag.endswith("svg")
    assert (tmp_path / "new" / "towers.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    svg, described = drawing._repr_svg_()
    assert svg.startswith("<svg ")
    assert "user_id" in described["alt"]


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_drawing_shows_towers_and_shapes_below_one_row_of_columns(model, batch, only_pure, depth):
    svg = visualize_model(model, batch, depth=depth).svg
    assert all(text in svg for text in ("UserTower", "ItemTower", "(2, 64)"))
    assert svg.count("divide by 0.1") == svg.count("dot product") == 1  # poolings divide and multiply too, at depth 4
    assert not re.search("input-tensor|output-tensor|hidden-tensor|squeeze|matmul|empty-pass", svg)
    boxes, _ = parse(svg)
    columns = columns_of(model.user_tower, batch) + columns_of(model.item_tower, batch)
    assert [text for text, _, y in sorted(boxes, key=lambda box: box[1]) if y == min(y for *_, y in boxes)] == columns


def test_arrows_are_those_of_the_model(model, batch, only_pure):
    _, arrows = parse(visualize_model(model, batch, depth=1).svg)
    user, item, scaled, score = "UserTower (2, 64)", "ItemTower (2, 64)", "divide by 0.1 (2, 64)", "dot product (2,)"
    expected = {(column, user) for column in columns_of(model.user_tower, batch)}
    expected |= {(column, item) for column in columns_of(model.item_tower, batch)}
    assert arrows == expected | {(user, scaled), (scaled, score), (item, score), (score, "output (2,)")}
    _, arrows = parse(visualize_model(model, batch, depth=3).svg)
    pooling = "Pooling: mean, recency:1, recency:10 (2, 192)"
    assert {("Embedding: item_id (2, 50, 64)", pooling), ("is no padding (2, 50)", pooling)} <= arrows
    assert {(pooling, "concatenate (2, 320)"), ("item_id (2,)", "Embedding: item_id (2, 64)")} <= arrows


def test_drawings_are_reproducible_and_leave_the_model_as_it_was(model, batch, only_pure):
    tower = model.train().user_tower
    tower.mlp.eval()  # a part of it is frozen
    modes, weights = [module.training for module in model.modules()], copy.deepcopy(model.state_dict())
    own = {feature.name: batch[feature.name] for feature in tower.embedding.features}
    assert len({visualize_model(tower, own).svg for _ in range(2)}) == 1  # a tower can be drawn alone
    assert [module.training for module in model.modules()] == modes
    torch.testing.assert_close(model.state_dict(), weights, rtol=0, atol=0)


def test_dot_of_the_system_comes_first_and_gets_the_pdf(model, batch, only_pure, tmp_path):
    script = tmp_path / "dot"  # it answers every format: what counts is that it is the one called
    script.write_text(f"#!{sys.executable}\nimport sys\nsys.stdin.read()\nprint('<svg from dot', *sys.argv[1:], '>')\n")
    script.chmod(0o700)
    drawing = visualize_model(model, batch, save_dir=tmp_path / "out", formats=("pdf",))
    assert "from dot" in drawing.svg
    assert "-Tpdf" in drawing.files["pdf"].read_text()


@pytest.mark.parametrize("arguments", [{"formats": ("svg", "pdf")}, {"formats": ("gif",)}, {"depth": 0}], ids=str)
def test_what_cannot_be_drawn_is_refused_and_nothing_is_written(model, batch, only_pure, tmp_path, arguments):
    with pytest.raises(ValueError, match=r"PDF needs|depth must be"):
        visualize_model(model, batch, save_dir=tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_without_any_renderer_the_error_has_the_command(monkeypatch):
    monkeypatch.setattr(visualization.shutil, "which", lambda *_, **__: None)
    with pytest.raises(RuntimeError, match="pip install graphviz-pure"):
        find_renderer()


def test_towers_by_hand_show_every_feature_and_are_drawn_to_scale(model):
    ax = draw_towers(model, plt.subplots()[1])
    texts = {text.get_text() for text in ax.texts}
    assert {"user tower", "item tower", "user_id", "history\nmean\nrecency:1\nrecency:10", "genres"} <= texts
    assert {"linear, PReLU", "linear", "divide by length", "score = dot product ÷ temperature 0.1"} <= texts
    boxes = [bar for container in ax.containers for bar in container]
    dims = [float(text.get_text()) for text in ax.texts if text.get_text().isdigit()]
    assert sum(dims) == sum(t.embedding.width for t in (model.user_tower, model.item_tower)) + 2 * (256 + 64 + 64)
    np.testing.assert_allclose([box.get_width() for box in boxes], np.array(dims) * boxes[0].get_width() / dims[0])


def test_tsne_repeats_and_keeps_groups_together_and_pca_the_greatest_variance(rng):
    groups = np.repeat(5 * np.eye(3, 8), 20, axis=0) + 0.1 * rng.standard_normal((60, 8))
    first, second = (embedding_map(groups, "tsne", seed=1) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    distance = np.linalg.norm(first[:, None] - first, axis=2) + np.diag(np.full(60, np.inf))
    assert (distance.argmin(axis=1) // 20 == np.arange(60) // 20).all()
    values = np.linalg.svd(groups - groups.mean(axis=0), compute_uv=False)
    np.testing.assert_allclose(np.linalg.norm(embedding_map(groups, "pca"), axis=0), values[:2], rtol=1e-4)
    assert embedding_map(groups[:10], "tsne").shape == (10, 2)  # of so few, 30 neighbours are too many
    with pytest.raises(ValueError, match="umap"):
        embedding_map(groups, "umap")


def test_labels_do_not_cover_each_other(rng):
    labels = {row: f"Film number {row}" for row in range(200)}
    ax = draw_map(plt.subplots()[1], rng.random((200, 2)), np.full(200, ""), labels)
    boxes = [text.get_window_extent() for text in ax.texts]
    assert len(boxes) == 12
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert all(ax.get_window_extent().padded(1).contains(*corner) for box in boxes for corner in (box.min, box.max))


def test_a_map_has_a_colour_per_name_and_a_dollar_is_a_dollar(rng):
    text = "No $_{ for $5"  # between two of them matplotlib looks for a formula, and here finds a broken one
    ax = draw_map(plt.subplots()[1], rng.random((3, 2)), [text, "", "war"], {0: text})
    in_legend, _ = ax.legend(prop={"size": 8.5}).texts  # an entry for each name, none for ""
    texts = [ax.texts[0], in_legend, ax.text(0, 0, text, parse_math=False, fontsize=8.5)]
    ax.figure.draw_without_rendering()
    assert np.ptp([text.get_window_extent().width for text in texts]) < 0.1
    with pytest.raises(ValueError, match="7 names"):
        draw_map(plt.subplots()[1], rng.random((7, 2)), list("abcdefg"))


def test_short_titles():
    titles = ["Empire Strikes Back, The (1980)", "Seven (Se7en) (1995)", "(x)"]
    assert list(map(short_title, titles)) == ["The Empire Strikes Back", "Seven", "(x)"]


def test_notebook_neighbours_are_the_exact_ones():
    nearest = notebook_definitions("07", "nearest")["nearest"]
    angles = np.deg2rad([0, 10, 25, 90])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    np.testing.assert_array_equal(nearest(vectors, 2), [[1, 2], [0, 2], [1, 0], [2, 1]])
