"""Drawings of the network, maps of vectors, and the README's picture."""

from __future__ import annotations

import os
import re
import stat
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from conftest import notebook_definitions

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from dssm_helpers import visualization
from dssm_helpers.checks import check_kept_on_the_map, check_mutual_share, check_places_for_half
from dssm_helpers.visualization import (
    draw_map,
    draw_scoreboard,
    draw_towers,
    embedding_map,
    find_renderer,
    short_title,
    visualize_model,
)
from dssm_helpers.workspace import build_model

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def model(data):
    return build_model(data, "dssm", seed=0)


@pytest.fixture
def only_pure(monkeypatch, tmp_path):
    """A machine with graphviz-pure beside Python and no ``dot`` on the PATH."""
    pytest.importorskip("torchview")
    monkeypatch.setenv("PATH", str(tmp_path))
    if find_renderer().stem != "graphviz-pure":
        pytest.fail("graphviz-pure is part of requirements.txt and must be installed")


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


# -- drawing the network ----------------------------------------------------------------------------------------------


def test_one_call_draws_and_writes_valid_files(model, batches, split, only_pure, tmp_path):
    drawing = visualize_model(model, batches(split.train[:3]), save_dir=tmp_path / "new", name="towers")
    assert set(drawing.files) == {"svg", "png"}
    assert ElementTree.parse(tmp_path / "new" / "towers.svg").getroot().tag.endswith("svg")
    assert (tmp_path / "new" / "towers.png").read_bytes().startswith(PNG)
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["towers.png", "towers.svg"]
    assert drawing._repr_svg_().startswith("<svg ")


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_drawing_shows_towers_features_and_shapes(model, batches, split, only_pure, depth):
    svg = visualize_model(model, batches(split.train[:3]), depth=depth).svg
    for text in ("UserTower", "ItemTower", "user_id", "history", "genres", "(3, 10)", "(3, 64)"):
        assert text in svg, f"{text} is missing at depth {depth}"
    assert "input-tensor" not in svg


def test_deepest_drawing_names_tables_and_poolings(model, only_pure):
    svg = visualize_model(model, depth=3).svg
    assert svg.count("Embedding: movie_id") == 2  # the shared table stands in both towers
    assert "Pooling: mean, recency:1, recency:10" in svg


def test_a_tower_gets_arrows_from_its_own_features_only(model, batches, split, only_pure):
    source = visualize_model(model, batches(split.train[:2]), depth=1).graph.source
    number = {name: node for node, name in re.findall(r'(\d+) \[label="(\w+)', source)}
    edges = set(re.findall(r"(\d+) -> (\d+)", source))
    assert (number["history"], number["UserTower"]) in edges
    assert (number["year"], number["ItemTower"]) in edges
    assert (number["history"], number["ItemTower"]) not in edges
    assert (number["year"], number["UserTower"]) not in edges


@pytest.mark.parametrize("training", [True, False])
def test_drawing_leaves_the_model_as_it_was(model, only_pure, training):
    model.train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    visualize_model(model)
    assert all(module.training is training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_drawings_are_reproducible_and_a_tower_can_be_drawn_alone(model, only_pure):
    first, second = (visualize_model(model.user_tower, depth=2).svg for _ in range(2))
    assert first == second
    assert "history" in first
    assert "year" not in first


def test_any_module_can_be_drawn_from_a_batch(only_pure):
    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(3, 2)

        def forward(self, batch):
            return self.layer(batch["x"])

    assert "Linear" in visualize_model(Plain(), {"x": torch.zeros(5, 3)}).svg
    with pytest.raises(ValueError, match="pass batch="):
        visualize_model(Plain())


def test_dot_of_the_system_comes_first_and_gets_the_pdf(model, monkeypatch, tmp_path):
    """A stand-in for ``dot`` that answers every format: what counts is that it is the one called."""
    pytest.importorskip("torchview")
    script = tmp_path / "dot"
    script.write_text(f"#!{sys.executable}\nimport sys\nsys.stdin.read()\nprint('<svg from dot', *sys.argv[1:], '>')\n")
    script.chmod(script.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    drawing = visualize_model(model, save_dir=tmp_path / "out", formats=("pdf",))
    assert drawing.svg.startswith("<svg ")
    assert "from dot" in drawing.svg
    assert "-Tpdf" in drawing.files["pdf"].read_text()


def test_pdf_without_dot_says_what_is_needed_and_writes_nothing(model, only_pure, tmp_path):
    with pytest.raises(ValueError, match=r"PDF needs Graphviz' own `dot`[\s\S]*apt-get install graphviz"):
        visualize_model(model, save_dir=tmp_path / "out", formats=("svg", "pdf"))
    assert not (tmp_path / "out").exists()


def test_without_any_renderer_the_error_has_the_command_for_each_system(model, monkeypatch):
    monkeypatch.setattr(visualization.shutil, "which", lambda *_, **__: None)
    with pytest.raises(RuntimeError) as caught:
        visualize_model(model)
    for command in ("pip install graphviz-pure", "apt-get install graphviz", "brew install", "winget install"):
        assert command in str(caught.value)


def test_without_torchview_the_error_says_what_to_install(model, only_pure, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchview", None)
    with pytest.raises(ImportError, match="pip install torchview graphviz"):
        visualize_model(model)


@pytest.mark.parametrize(
    ("arguments", "message"), [({"formats": ("gif",)}, "svg, png, pdf"), ({"depth": 0}, "at least 1")]
)
def test_bad_arguments_are_named(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        visualize_model(model, **arguments)


def test_towers_by_hand_show_every_feature_and_width(model):
    texts = {text.get_text() for text in draw_towers(model).texts}
    widths = {str(model.user_tower.embedding.width), str(model.item_tower.embedding.width), "256", str(model.dim)}
    assert {"user tower", "item tower", "user_id", "history", "genres", "linear, PReLU", *widths} <= texts
    assert "dot product ÷ temperature 0.1" in texts


# -- maps -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def blobs():
    """Three tight groups of 20 in 8 dimensions."""
    generator = np.random.default_rng(0)
    return np.repeat(5 * np.eye(3, 8), 20, axis=0) + 0.1 * generator.standard_normal((60, 8))


@pytest.mark.parametrize("method", visualization.METHODS)
def test_maps_repeat_with_the_seed_and_keep_groups_together(blobs, method):
    first, second = (embedding_map(blobs, method, seed=1) for _ in range(2))
    assert first.shape == (60, 2)
    np.testing.assert_array_equal(first, second)
    distance = np.linalg.norm(first[:, None] - first, axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (distance.argmin(axis=1) // 20 == np.arange(60) // 20).all()


def test_pca_is_the_projection_of_greatest_variance(blobs):
    values = np.linalg.svd(blobs - blobs.mean(axis=0), compute_uv=False)
    np.testing.assert_allclose(np.linalg.norm(embedding_map(blobs, "pca"), axis=0), values[:2], rtol=1e-4)


@pytest.mark.parametrize(
    ("vectors", "method", "message"),
    [
        (np.ones((9, 3)), "umap", "pca, tsne"),
        (np.ones((2, 3)), "pca", "at least 4"),
        (np.full((9, 3), np.nan), "tsne", "finite"),
    ],
)
def test_maps_refuse_what_they_cannot_draw(vectors, method, message):
    with pytest.raises(ValueError, match=message):
        embedding_map(vectors, method)


def test_labels_do_not_cover_each_other(rng):
    ax = plt.subplots()[1]
    points = rng.random((200, 2))
    draw_map(ax, points, np.full(200, ""), {row: f"Film number {row}" for row in range(200)})
    boxes = [text.get_window_extent() for text in ax.texts]
    assert len(boxes) == 12
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert all(ax.get_window_extent().padded(1).contains(*corner) for box in boxes for corner in (box.min, box.max))


def test_a_map_has_one_colour_per_name_and_refuses_too_many(blobs):
    points = embedding_map(blobs)
    ax = draw_map(plt.subplots()[1], points, ["war", "", "noir"] * 20)
    assert ax.get_legend_handles_labels()[1] == ["noir", "war"]
    with pytest.raises(ValueError, match="told apart"):
        draw_map(plt.subplots()[1], points, [f"genre {i % 7}" for i in range(60)])


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("Empire Strikes Back, The (1980)", "The Empire Strikes Back"),
        ("Seven (Se7en) (1995)", "Seven"),
        ("Generated film 7 (1960)", "Generated film 7"),
        ("unknown", "unknown"),
    ],
)
def test_short_titles(title, expected):
    assert short_title(title) == expected


# -- the README's picture ---------------------------------------------------------------------------------------------

SCORES = {"dssm": 0.22, "dssm_mean": 0.19, "item_knn": 0.17, "ease": 0.15, "ials": 0.14, "popularity": 0.09}


@pytest.mark.parametrize("missing", [(), ("ials",), ("dssm_mean", "ease", "chance"), ("dssm",)])
def test_scoreboard_draws_what_is_there_best_on_top(tmp_path, missing):
    models = {name: {"hit@10": score, "train_seconds": 1.0} for name, score in {**SCORES, "chance": 0.006}.items()}
    models = {name: row for name, row in models.items() if name not in missing}
    figure = draw_scoreboard({"dataset": "ml-100k", "models": models}, tmp_path / "images" / "scoreboard.png")
    (ax,) = figure.axes
    widths = [bar.get_width() for bar in ax.patches]
    assert widths == sorted(score for name, score in SCORES.items() if name not in missing)
    assert any("chance" in text.get_text() for text in ax.texts) is ("chance" not in missing)
    assert any("course" in label.get_text() for label in ax.get_yticklabels()) is ("dssm" not in missing)


def test_scoreboard_is_an_opaque_reproducible_png_of_the_agreed_size(tmp_path):
    from PIL import Image

    models = {name: {"hit@10": score} for name, score in SCORES.items()}
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    draw_scoreboard(models, first)
    draw_scoreboard(models, second)
    assert first.read_bytes() == second.read_bytes()
    picture = Image.open(first)
    assert picture.size == (900, 420)
    assert picture.convert("RGBA").getpixel((0, 0)) == (255, 255, 255, 255)
    assert set(picture.info) <= {"dpi"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_scoreboard_refuses_empty_results(tmp_path):
    with pytest.raises(ValueError, match="hit@10"):
        draw_scoreboard({"models": {}}, tmp_path / "x.png")
    assert not Path(tmp_path / "x.png").exists()


# -- notebook 07 ------------------------------------------------------------------------------------------------------


def test_notebook_solutions_pass_and_wrong_answers_get_a_hint(capsys, monkeypatch):
    monkeypatch.delenv("DSSM_STRICT", raising=False)
    solutions = notebook_definitions("07", "mutual_share", "kept_on_the_map", "places_for_half")
    assert check_mutual_share(solutions["mutual_share"])
    assert check_kept_on_the_map(solutions["kept_on_the_map"])
    assert check_places_for_half(solutions["places_for_half"])
    assert not check_mutual_share(lambda rows: 1.0)
    assert not check_kept_on_the_map(lambda vectors, on_map: float((vectors == on_map).mean()))  # compares places
    assert not check_places_for_half(lambda weight: int((np.cumsum(weight) < 0.5).sum()) + 1)  # no normalisation
    assert capsys.readouterr().out.count("✗") == 3


def test_notebook_neighbours_are_the_exact_ones():
    nearest = notebook_definitions("07", "nearest")["nearest"]
    angles = np.deg2rad([0, 10, 25, 90])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    np.testing.assert_array_equal(nearest(vectors, 2), [[1, 2], [0, 2], [1, 0], [2, 1]])
