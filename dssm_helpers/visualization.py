"""Pictures of the model and of what it has learned (notebook 07).

Drawing the network needs ``torchview`` and ``graphviz`` from pip, and a renderer: Graphviz' own ``dot``, or the
pip-installed ``graphviz-pure``. Everything else is matplotlib.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from .features import Batch, Pooling, SequenceFeature
from .files import write_atomically
from .model import DSSM, FeatureEmbedding

if TYPE_CHECKING:
    import graphviz
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")  # Okabe and Ito, colour-blind-safe
GREY = "#BBBBBB"
FORMATS = ("svg", "png", "pdf")
METHODS = ("pca", "tsne")
FUNCTIONS = {"__getitem__": "first places", "ne": "is no padding", "cat": "concatenate", "mul": "multiply"}
FUNCTIONS |= {"div": "divide", "normalize": "L2-normalise"}  # torch's names, said plainly
INSTALL = """  Debian, Ubuntu   sudo apt-get install graphviz
  macOS            brew install graphviz
  Windows          winget install graphviz
  conda            conda install -c conda-forge graphviz"""

# --------------------------------------------------------------------------------------------------------------------
# The network, traced by torchview
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawing:
    """A drawn network; the last value of a cell shows itself. ``files`` maps a format to what was written."""

    graph: graphviz.Digraph = field(repr=False)
    svg: str = field(repr=False)
    files: dict[str, Path]

    def _repr_svg_(self) -> str:
        return self.svg


def find_renderer() -> Path:
    """``dot`` of the system, else ``graphviz-pure`` (on the PATH or beside the running Python).

    Raises:
        RuntimeError: neither is there; the message has the command for each system.
    """
    beside = str(Path(sys.executable).parent)  # a kernel of an environment that is not activated has no PATH to it
    found = shutil.which("dot") or shutil.which("graphviz-pure") or shutil.which("graphviz-pure", path=beside)
    if found is None:
        raise RuntimeError(
            "drawing a network needs Graphviz, but neither `dot` nor `graphviz-pure` is here. One command is enough:\n"
            f"  any system       pip install graphviz-pure    (SVG and PNG, no PDF)\n{INSTALL}"
        )
    return Path(found)


@contextmanager
def _rendering_with(renderer: Path) -> Iterator[None]:
    """Let the ``graphviz`` package call ``renderer`` instead of ``dot``, for the time being."""
    from graphviz.backend import dot_command

    before, dot_command.DOT_BINARY = dot_command.DOT_BINARY, renderer
    try:
        yield
    finally:
        dot_command.DOT_BINARY = before


def visualize_model(
    model: nn.Module,
    batch: Batch | None = None,
    *,
    save_dir: str | Path | None = None,
    name: str = "model",
    depth: int = 2,
    formats: Sequence[str] = ("svg", "png"),
) -> Drawing:
    """Draw the network in one call: trace a batch through it, show it inline, write the files (notebook 07).

    Args:
        model: a :class:`DSSM`, one of its towers, or any module whose ``forward`` takes ``batch``.
        batch: whatever the model takes; default two rows of padding. Only its shapes are drawn.
        save_dir: folder for ``<name>.<format>``; without it nothing is written.
        depth: levels of nesting to open: 1 shows the towers, 2 their parts, 3 every layer.
        formats: of ``svg``, ``png``, ``pdf``. PDF needs Graphviz' own ``dot``.

    Raises:
        ValueError: an unknown format, a depth under 1, or PDF where the renderer cannot write it.
        RuntimeError: no renderer; see :func:`find_renderer`.
        ImportError: torchview or graphviz (the Python packages) are missing.
    """
    unknown = [f for f in formats if f not in FORMATS]
    if unknown:
        raise ValueError(f"unknown format {unknown[0]!r}; choose from {', '.join(FORMATS)}")
    if depth < 1:
        raise ValueError(f"depth must be at least 1, got {depth}")
    renderer = find_renderer()
    if "pdf" in formats and renderer.stem == "graphviz-pure":
        raise ValueError(f"PDF needs Graphviz' own `dot`; graphviz-pure writes SVG and PNG. To install dot:\n{INSTALL}")
    graph = _trace(model, padding_batch(model) if batch is None else batch, name, depth)
    sharp = graph.copy()
    sharp.graph_attr["dpi"] = "144"
    with _rendering_with(renderer):
        pictures = {f: (sharp if f == "png" else graph).pipe(format=f) for f in {"svg", *formats}}
    files = {}
    for extension in formats if save_dir is not None else ():
        files[extension] = Path(save_dir) / f"{name}.{extension}"
        with write_atomically(files[extension]) as temporary:
            temporary.write_bytes(pictures[extension])
    svg = re.sub(r"<!--.*?-->\n?", "", pictures["svg"].decode(), flags=re.S)
    svg = svg[svg.index("<svg") :].replace("<svg ", '<svg style="max-width:100%;height:auto" ', 1)
    return Drawing(graph, svg, files)


def padding_batch(model: nn.Module, rows: int = 2) -> Batch:
    """Zeros of the shapes that ``model``'s features declare: enough to trace a drawing."""
    features = [f for part in model.modules() if isinstance(part, FeatureEmbedding) for f in part.features]
    if not features:
        raise ValueError(f"{type(model).__name__} declares no features; pass batch= with what its forward takes")
    device = next(model.parameters()).device
    shapes = {f.name: (rows, f.max_length) if isinstance(f, SequenceFeature) else (rows,) for f in features}
    return {name: torch.zeros(shape, dtype=torch.long, device=device) for name, shape in shapes.items()}


def _trace(model: nn.Module, batch: Batch, name: str, depth: int) -> graphviz.Digraph:
    try:
        from torchview import draw_graph
    except ImportError as error:
        raise ImportError("drawing a network needs: pip install torchview graphviz graphviz-pure") from error
    device = next((p.device for p in model.parameters()), "cpu")  # else torchview moves the model to a GPU
    traced = draw_graph(
        model, input_data={"batch": batch}, graph_name=name, depth=depth, expand_nested=True, device=device
    )
    _render_again(traced, model, batch)
    graph = traced.visual_graph
    # Titles of the frames: below their content, on the side where no arrow leaves.
    right = re.compile(r"(label=(?!UserTower)\w+ labeljust)=l")
    graph.body[:] = [right.sub(r"\1=r", line).replace("label=Sequential", 'label=""') for line in graph.body]
    graph.node_attr.update(shape="box", style="filled,rounded", color="#666666", fontname="Helvetica", margin=".1,.06")
    graph.graph_attr.update(fontname="Helvetica", nodesep="0.15", ranksep="0.3", labelloc="b", bgcolor="white")
    graph.edge_attr.update(color="#666666", arrowsize="0.6")
    return graph


def _render_again(traced: Any, model: nn.Module, batch: Batch) -> None:
    """Name what torchview leaves anonymous, and drop arrows for columns a tower is handed but does not read."""
    reads, titles = {}, {}
    for part in model.modules():
        embeddings = [inner for inner in part.modules() if isinstance(inner, FeatureEmbedding)]
        if embeddings:
            reads[id(part)] = {feature.name for inner in embeddings for feature in inner.features}
        for inner in embeddings:
            for table_name, table in inner.tables.items():
                titles.setdefault(id(table), f"Embedding: {table_name}")  # the first owner names a shared table
        if isinstance(part, Pooling):
            titles[id(part)] = f"Pooling: {', '.join(part.poolings)}"
    columns = dict(zip(traced.root_container, batch, strict=True))
    functions = FUNCTIONS | ({"div": f"divide by {model.temperature:g}"} if isinstance(model, DSSM) else {})

    def label(node: Any) -> str:
        if hasattr(node, "tensor_shape"):
            return f"{columns.get(node, 'output')}\n{node.tensor_shape}"
        title = titles.get(node.compute_unit_id) or functions.get(node.name, node.name)
        return f"{title}\n{', '.join(map(str, node.output_shape))}"

    traced.get_node_label = label
    for seen in (traced.visual_graph.body, traced.edge_list, traced.node_set):
        seen.clear()
    traced.render_nodes()
    traced.edge_list = [
        (tail, head)
        for tail, head in traced.edge_list
        if columns.get(getattr(tail, "main_node", tail), "")
        in ("", *reads.get(getattr(head, "compute_unit_id", None), columns.values()))
    ]
    traced.render_edges()


# --------------------------------------------------------------------------------------------------------------------
# The two towers, by hand
# --------------------------------------------------------------------------------------------------------------------


def draw_towers(model: DSSM, ax: Axes | None = None) -> Axes:
    """The two towers: boxes are vectors, as wide as they have dimensions; arrows are operations (notebook 07)."""
    import matplotlib.pyplot as plt

    if ax is None:
        ax = plt.figure(figsize=(9, 6.6)).add_axes((0, 0, 1, 1))
    towers = ((model.user_tower, "user tower", 2.45, COLOURS[0]), (model.item_tower, "item tower", 7.55, COLOURS[3]))
    scale = 4.4 / max(tower.embedding.width for tower, *_ in towers)  # of a box per dimension

    def box(x: float, y: float, width: float, text: str, colour: str, alpha: float = 0.25, height: float = 0.5) -> None:
        ax.add_patch(plt.Rectangle((x - width / 2, y), width, height, facecolor=(colour, alpha), edgecolor=colour))
        ax.text(x, y + height / 2, text, ha="center", va="center", fontsize=10)

    def arrow(start: tuple[float, float], end: tuple[float, float], text: str = "") -> None:
        ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "#555555", "shrinkA": 0, "shrinkB": 1})
        ax.text(start[0] + 0.12, (start[1] + end[1]) / 2, text, va="center", fontsize=9.5, color="#444444")

    tops = []
    for tower, title, x, colour in towers:
        features, y = tower.embedding.features, 1.6
        step = 4.7 / max(len(features), 4)
        for place, feature in enumerate(features):
            centre = x + (place - (len(features) - 1) / 2) * step
            box(centre, 0.4, step * 0.9, str(feature.width), colour, alpha=0.1, height=0.4)
            pooled = feature.poolings if isinstance(feature, SequenceFeature) else ()
            ax.text(centre, 0.28, feature.name, ha="center", va="top", fontsize=9.5)
            ax.text(centre, 0.03, "\n".join(pooled), ha="center", va="top", fontsize=8, color="#555555")
            arrow((centre, 0.8), (x + (centre - x) * min(1, 0.8 * scale * tower.embedding.width / 4.4), y))
        ax.text(x, -0.75, title, ha="center", va="top", fontsize=14, color=colour, weight="bold")
        box(x, y, scale * tower.embedding.width, f"{tower.embedding.width}", colour)
        steps: list[tuple[str, int]] = []
        for layer in tower.mlp:
            if isinstance(layer, nn.Linear):
                steps.append(("linear", layer.out_features))
            else:
                steps[-1] = (f"{steps[-1][0]}, {type(layer).__name__}", steps[-1][1])
        for operation, width in (*steps, ("divide by length", model.dim)):
            arrow((x, y + 0.5), (x, y + 1.0), operation)
            y += 1.0
            box(x, y, scale * width, str(width), colour, alpha=0.5 if operation.startswith("divide") else 0.25)
        tops.append((x, y + 0.5))
    top = max(y for _, y in tops) + 0.7
    for x, y in tops:
        arrow((x, y), (5 + (x - 5) * 0.4, top))
    box(5, top, 3.4, f"dot product ÷ temperature {model.temperature:g}", COLOURS[2])
    arrow((5, top + 0.5), (5, top + 0.9))
    ax.text(5, top + 0.95, "score", ha="center", va="bottom", fontsize=12, weight="bold")
    ax.set(xlim=(0, 10), ylim=(-1.25, top + 1.4))
    ax.axis("off")
    return ax


# --------------------------------------------------------------------------------------------------------------------
# Maps of vectors
# --------------------------------------------------------------------------------------------------------------------


def embedding_map(vectors: np.ndarray, method: str = "pca", seed: int = 0, perplexity: float = 30.0) -> np.ndarray:
    """Two coordinates for each vector: ``[n, D]`` → ``[n, 2]`` (notebook 07, "A map of the movies").

    Args:
        method: ``"pca"``: the two directions of greatest spread, linear, distances shrink but do not lie. ``"tsne"``:
            keeps near neighbours near (by cosine) and gives up the rest. L. van der Maaten, G. Hinton, JMLR 2008.
        seed: the same seed gives the same map.
        perplexity: t-SNE's idea of how many neighbours count; lowered where there are too few vectors.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; choose from {', '.join(METHODS)}")
    vectors = np.asarray(vectors, dtype=np.float32)
    if vectors.ndim != 2 or len(vectors) < 4 or vectors.shape[1] < 2 or not np.isfinite(vectors).all():
        raise ValueError(f"expected at least 4 finite vectors [n, D] with D from 2, got shape {vectors.shape}")
    if method == "pca":
        from sklearn.decomposition import PCA

        return PCA(2, svd_solver="full", random_state=seed).fit_transform(vectors)
    from sklearn.manifold import TSNE

    perplexity = min(perplexity, (len(vectors) - 1) / 3)
    return TSNE(2, perplexity=perplexity, metric="cosine", init="pca", random_state=seed).fit_transform(vectors)


def draw_map(
    ax: Axes,
    coordinates: np.ndarray,
    colour_by: Sequence[str] | np.ndarray,
    labels: Mapping[int, str] | None = None,
    title: str = "",
    size: float | np.ndarray = 12,
) -> Axes:
    """Scatter ``coordinates [n, 2]``, coloured by a number or by up to six names (``""`` is grey).

    Args:
        labels: row → text, the most important first. About a dozen are written: the first that are apart from
            each other and find a free spot.
        size: marker area, one or ``[n]``.
    """
    x, y = np.asarray(coordinates).T
    size = np.broadcast_to(np.asarray(size, dtype=float), x.shape)
    values = np.asarray(colour_by)
    if values.dtype.kind in "US":
        names = [n for n in dict.fromkeys(sorted(values.tolist())) if n]
        if len(names) > len(COLOURS):
            raise ValueError(f"{len(names)} names, but only {len(COLOURS)} colours can be told apart: group some as ''")
        for name, colour in (("", GREY), *zip(names, COLOURS, strict=False)):
            rows = values == name
            ax.scatter(x[rows], y[rows], s=size[rows], c=colour, alpha=0.8 if name else 0.45, lw=0)
            if name:
                ax.scatter([], [], s=40, c=colour, label=name)  # the legend's dots are all of one size
    else:
        ax.scatter(x, y, s=size, c=values.astype(float), cmap="viridis", alpha=0.85, lw=0)
    ax.set_title(title, fontsize=11)
    ax.set(xticks=[], yticks=[])
    ax.margins(0.06)
    ax.set_aspect("equal", adjustable="datalim")  # a stretched axis would stretch distances
    _place_labels(ax, coordinates, labels or {})
    return ax


def _place_labels(ax: Axes, coordinates: np.ndarray, labels: Mapping[int, str], most: int = 12) -> None:
    """Write each label at the first free spot around its point, up to ``most``."""
    from matplotlib.patheffects import withStroke

    ax.figure.draw_without_rendering()  # settles the layout, so that text extents are final
    taken, frame = [], ax.get_window_extent()
    directions = ((1, 1), (-1, 1), (1, -1), (-1, -1), (0, 1.4), (0, -1.4))
    offsets = [(dx * r, dy * r) for r in (8, 20, 34, 50) for dx, dy in directions]
    pixels, placed = ax.transData.transform(coordinates), []
    for row, text in labels.items():
        if len(placed) == most or any(np.hypot(*(pixels[row] - pixels[other])) < 20 for other in placed):
            continue
        for dx, dy in offsets:
            written = ax.annotate(
                text, coordinates[row], (dx, dy), textcoords="offset points", fontsize=8.5, zorder=5,
                ha={1: "left", -1: "right", 0: "center"}[int(np.sign(dx))], va="center",
                arrowprops={"arrowstyle": "-", "lw": 0.8, "color": "#333333", "shrinkA": 0, "shrinkB": 0},
                path_effects=[withStroke(linewidth=2.5, foreground="white")],
            )  # fmt: skip
            extent = written.get_window_extent().padded(2)
            inside = frame.x0 <= extent.x0 and extent.x1 <= frame.x1 and frame.y0 <= extent.y0 and extent.y1 <= frame.y1
            if inside and not any(extent.overlaps(other) for other in taken):
                taken.append(extent)
                placed.append(row)
                ax.plot(*coordinates[row], "o", ms=4, mfc="white", mec="#333333", zorder=4)
                break
            written.remove()


def short_title(title: str) -> str:
    """``"Empire Strikes Back, The (1980)"`` → ``"The Empire Strikes Back"``: for labels."""
    title = re.sub(r"\s*\(.*?\)", "", title).strip() or title
    return re.sub(r"^(.*), (The|A|An|Il|La|Le|Les|Das)$", r"\2 \1", title)


# --------------------------------------------------------------------------------------------------------------------
# The result, for the README
# --------------------------------------------------------------------------------------------------------------------

MODEL_NAMES = {
    "dssm": "two-tower of this course",
    "dssm_mean": "textbook two-tower (mean pooling)",
    "item_knn": "item-kNN on the last 3 movies",
    "ease": "EASE",
    "ials": "iALS",
    "popularity": "popularity",
}
DATASET_NAMES = {"ml-100k": "MovieLens-100K", "ml-1m": "MovieLens-1M", "synthetic": "generated data"}


def draw_scoreboard(results: Mapping[str, Any], path: str | Path) -> Figure:
    """Hit@10 of all models as bars, 900 × 420 pixels, written to ``path`` as PNG.

    Args:
        results: what ``results.json`` holds, or its ``"models"`` alone. Models that are missing are left out.
    """
    from matplotlib.figure import Figure

    models = results.get("models", results)
    scores = {name: row["hit@10"] for name, row in models.items() if isinstance(row, Mapping) and "hit@10" in row}
    chance = scores.pop("chance", None)
    if not scores:
        raise ValueError("no model has a 'hit@10'; expected results['models'] like {'dssm': {'hit@10': 0.2}}")
    names = sorted(scores, key=scores.__getitem__)
    on = f" on {DATASET_NAMES.get(results['dataset'], results['dataset'])}" if "dataset" in results else ""
    figure = Figure(figsize=(9, 4.2), dpi=100, facecolor="white", layout="constrained")
    ax = figure.add_subplot(facecolor="white")
    colours = [COLOURS[0] if name == "dssm" else "#A9B4BD" for name in names]
    bars = ax.barh([MODEL_NAMES.get(n, n) for n in names], [scores[n] for n in names], color=colours, height=0.68)
    ax.bar_label(bars, fmt="%.3f", padding=5, fontsize=12)
    for label, name in zip(ax.get_yticklabels(), names, strict=True):
        label.set(fontsize=11.5, color=COLOURS[0] if name == "dssm" else "#222222")
        label.set_weight("bold" if name == "dssm" else "normal")
    if chance is not None:
        ax.axvline(chance, color=COLOURS[3], ls="--", lw=1.5)
        ax.text(chance, 1.0, f" chance {chance:.3f}", transform=ax.get_xaxis_transform(), color=COLOURS[3], va="bottom")
    ax.set_xlim(0, max(scores.values()) * 1.12)
    ax.set_xlabel("Hit@10: share of users whose next movie is among the first ten", fontsize=11)
    figure.suptitle(f"Finding a user's next movie in the whole catalogue{on}", fontsize=15, x=0.01, ha="left")
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    with write_atomically(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
    return figure
