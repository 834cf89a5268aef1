"""Pictures of the model and of what it has learned (notebook 07).

Drawing the network needs ``torchview`` and a renderer: Graphviz' own ``dot``, or ``graphviz-pure`` from pip.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from .features import Batch, Pooling
from .files import write_atomically
from .model import DSSM, evaluation_mode

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")  # Okabe and Ito, colour-blind-safe
GREY = "#BBBBBB"
FORMATS = ("svg", "png", "pdf")
FUNCTIONS = {"__getitem__": "first slots", "ne": "is no padding", "cat": "concatenate", "normalize": "L2-normalise"}
FUNCTIONS |= {"matmul": "matrix product", "output-tensor": "output", "squeeze": "empty-pass", "unsqueeze": "empty-pass"}
"""torch's names, said plainly. For an ``empty-pass`` torchview draws no box, and lets arrows through."""
INSTALL = """  any system       pip install graphviz-pure    (SVG and PNG, no PDF)
  Debian, Ubuntu   sudo apt-get install graphviz
  macOS            brew install graphviz
  Windows          winget install graphviz
  conda            conda install -c conda-forge graphviz"""


@dataclass(frozen=True)
class Drawing:
    """A drawn network; the last value of a cell shows itself. ``files`` maps a format to what was written."""

    svg: str = field(repr=False)
    files: dict[str, Path]
    alt: str = "a drawn network"

    def _repr_svg_(self) -> tuple[str, dict[str, str]]:
        return self.svg, {"alt": self.alt}


def find_renderer() -> Path:
    """``dot`` of the system, else ``graphviz-pure``; without either a RuntimeError with the command for each system."""
    beside = str(Path(sys.executable).parent)  # a kernel of an environment that is not activated has no PATH to it
    found = shutil.which("dot") or shutil.which("graphviz-pure") or shutil.which("graphviz-pure", path=beside)
    if found is None:
        raise RuntimeError(f"drawing a network needs Graphviz. One command is enough:\n{INSTALL}")
    return Path(found)


def visualize_model(
    model: nn.Module,
    batch: Batch,
    *,
    save_dir: str | Path | None = None,
    name: str = "model",
    depth: int = 2,
    formats: Sequence[str] = ("svg", "png"),
) -> Drawing:
    """Draw the network in one call: trace a batch through it, show it inline, write the files (notebook 07).

    Args:
        model: a :class:`DSSM`, one of its towers, or any module whose ``forward`` takes ``batch``.
        save_dir: folder for ``<name>.<format>``; without it nothing is written.
        depth: levels of nesting to open: 1 shows the towers, 2 their parts, 3 every layer.
        formats: of ``svg``, ``png``, ``pdf``. PDF needs Graphviz' own ``dot``; without it a ValueError says so.
    """
    if depth < 1 or not set(formats) <= set(FORMATS):
        raise ValueError(f"depth must be at least 1, formats of {', '.join(FORMATS)}; got {depth} and {formats}")
    renderer = find_renderer()
    if "pdf" in formats and renderer.stem == "graphviz-pure":
        raise ValueError(f"PDF needs Graphviz' own `dot`, not graphviz-pure:\n{INSTALL}")
    source = _trace(model, batch, name, depth)
    pictures, files = {}, {}
    for kind in dict.fromkeys(["svg", *formats]):
        command = [renderer, f"-T{kind}", f"-Gdpi={144 if kind == 'png' else 72}"]
        pictures[kind] = subprocess.run(command, input=source.encode(), stdout=subprocess.PIPE, check=True).stdout
        if save_dir is not None and kind in formats:
            files[kind] = Path(save_dir) / f"{name}.{kind}"
            with write_atomically(files[kind]) as temporary:
                temporary.write_bytes(pictures[kind])
    svg = pictures["svg"].decode().partition("<svg ")[2]
    alt = f"{type(model).__name__} with {', '.join(batch)} as its inputs, opened {depth} deep, from inputs to output"
    return Drawing(f'<svg style="max-width:100%;height:auto" {svg}', files, alt)


def _trace(model: nn.Module, batch: Batch, name: str, depth: int) -> str:
    """What torchview records, as Graphviz' source: in plain words, and with an arrow only where a column is read."""
    from torchview import draw_graph

    device = next((p.device for p in model.parameters()), "cpu")  # else torchview moves the model to a GPU
    with evaluation_mode(model):
        traced = draw_graph(model, {"batch": batch}, graph_name=name, depth=depth, expand_nested=True, device=device)
    columns = dict(zip(traced.root_container, batch, strict=True))
    titles = {id(m): f"Pooling: {', '.join(m.poolings)}" for m in model.modules() if isinstance(m, Pooling)}
    for path, module in model.named_modules():  # names a table that two towers share once
        if isinstance(module, nn.Embedding):
            titles[id(module)] = f"Embedding: {path.rpartition('.')[2]}"
    own = {"div": f"divide by {float(model.temperature):g}", "matmul": "dot product"} if isinstance(model, DSSM) else {}
    for tail, head in reversed(traced.edge_list):
        if head.name == "squeeze":
            tail.output_shape = head.output_shape  # a box shows the shape that reaches the next one
        functions = FUNCTIONS | own if head.depth == 1 else FUNCTIONS
        head.name = titles.get(getattr(head, "compute_unit_id", None)) or functions.get(head.name, head.name)
    for node, column in columns.items():
        node.name = column

    def label(node: Any) -> str:
        shapes = [node.tensor_shape] if hasattr(node, "tensor_shape") else node.output_shape
        return f"{node.name}\n{', '.join(map(str, shapes))}"

    traced.get_node_label = label
    graph = traced.visual_graph
    for drawn in (graph.body, traced.edge_list, traced.node_set):
        drawn.clear()
    traced.render_nodes()
    edges = [(getattr(tail, "main_node", tail), head) for tail, head in traced.edge_list]
    traced.edge_list = [(tail, head) for tail, head in edges if tail not in columns or _reads(head, tail)]
    traced.render_edges()
    # Frames have their titles on the side where no arrow leaves; that of the layers is too narrow for one.
    right = [line if "UserTower" in line else line.replace("labeljust=l", "labeljust=r") for line in graph.body]
    graph.body[:] = [line.replace("label=Sequential", 'label=""') for line in right]
    with graph.subgraph(graph_attr={"rank": "same"}, edge_attr={"style": "invis"}) as row:  # columns as in the batch
        row.edges(pairwise(str(traced.id_dict[column.node_id]) for column in columns))
    font, grey = {"fontname": "Helvetica"}, {"color": "#666666"}
    graph.graph_attr = font | {"nodesep": "0.15", "ranksep": "0.3", "labelloc": "b", "bgcolor": "white"}
    graph.node_attr = font | grey | {"fontsize": "10", "shape": "box", "style": "filled,rounded", "margin": ".1,.06"}
    graph.edge_attr = grey | {"arrowsize": "0.6"}
    return graph.source


def _reads(node: Any, column: Any) -> bool:
    """Whether something inside ``node`` takes ``column``: a tower is handed the whole batch."""
    passed = [] if node.is_container else [tensor for tensor in node.children if tensor.main_node is column]
    return node.is_container or any(_reads(inside, column) for tensor in passed for inside in tensor.children)


def draw_towers(model: DSSM, ax: Axes) -> Axes:
    """The two towers by hand: boxes are vectors, as wide as they have dimensions; arrows are operations."""
    towers = {"user tower": (model.user_tower, 2.5, COLOURS[0]), "item tower": (model.item_tower, 7.5, COLOURS[3])}
    scale = 4.4 / max(tower.embedding.width for tower, *_ in towers.values())  # of a box per dimension
    top = 3 + max(len(tower.mlp) for tower, *_ in towers.values()) // 2
    arrow = {"arrowstyle": "-|>", "color": "#555555", "shrinkA": 0, "shrinkB": 1}
    for title, (tower, x, colour) in towers.items():
        features = tower.embedding.features
        vectors = [[f.width for f in features], *([layer.out_features] for layer in tower.mlp[::2]), [model.dim]]
        operations = [*(f"linear, {type(layer).__name__}" for layer in tower.mlp[1::2]), "linear", "divide by length"]
        for y, (dims, operation) in enumerate(zip(vectors, [*operations, ""], strict=True)):
            widths = scale * np.array(dims)  # of vectors that lie side by side
            left = x + widths.cumsum() - widths - widths.sum() / 2
            bars = ax.barh(np.full(len(dims), y), widths, 0.5, left, color=(colour, 0.25), edgecolor=colour)
            ax.bar_label(bars, dims, label_type="center", fontsize=9)
            for feature, middle in zip(features, left + widths / 2, strict=True) if y == 0 else ():
                poolings = getattr(feature, "poolings", ())
                name = "\n".join([feature.name, *(poolings if len(poolings) > 1 else ())])
                ax.text(middle, -0.35, name, rotation=90, ha="center", va="top", fontsize=9, parse_math=False)
            end = (x, y + 0.75) if operation else (5 + (x - 5) * 0.4, top)
            ax.annotate("", end, (x, y + 0.25), arrowprops=arrow)
            ax.text(x + 0.12, y + 0.5, operation, va="center", fontsize=9.5, color="#444444")
        ax.text(x, -2, title, ha="center", va="top", fontsize=14, color=colour, weight="bold")
    frame = {"facecolor": (COLOURS[2], 0.25), "edgecolor": COLOURS[2], "pad": 8}
    score = f"score = dot product ÷ temperature {float(model.temperature):g}"
    ax.text(5, top + 0.25, score, ha="center", va="center", fontsize=12, bbox=frame)
    ax.set(xlim=(0, 10), ylim=(-2.5, top + 0.8))
    ax.axis("off")
    return ax


def embedding_map(vectors: np.ndarray, method: str = "pca", seed: int = 0, perplexity: float = 30.0) -> np.ndarray:
    """Two coordinates for each vector: ``[n, D]`` → ``[n, 2]`` (notebook 07, "A map of the movies").

    ``"pca"``: the two directions of greatest spread. ``"tsne"`` (L. van der Maaten and G. Hinton, JMLR 2008) keeps near
    neighbours near, by cosine, and gives up the rest; ``perplexity`` is how many count, at most a third of the vectors.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    vectors = np.asarray(vectors, dtype=np.float32)
    if method == "pca":
        return PCA(2, svd_solver="full").fit_transform(vectors)
    if method == "tsne":
        perplexity = min(perplexity, (len(vectors) - 1) / 3)
        return TSNE(2, perplexity=perplexity, metric="cosine", init="pca", random_state=seed).fit_transform(vectors)
    raise ValueError(f"unknown method {method!r}; choose from pca, tsne")


def draw_map(
    ax: Axes,
    coordinates: np.ndarray,
    colour_by: Sequence[str],
    labels: Mapping[int, str] | None = None,
    title: str = "",
    size: float | np.ndarray = 12,
) -> Axes:
    """Scatter ``coordinates [n, 2]``, coloured by up to six names (``""`` is grey).

    ``labels``: row → text, the most important first. A dozen are written: the first that find room beside their point.
    """
    from matplotlib.patheffects import withStroke

    x, y = np.asarray(coordinates).T
    size, values = np.broadcast_to(size, x.shape), np.asarray(colour_by)
    names = sorted(set(values.tolist()) - {""})
    if len(names) > len(COLOURS):
        raise ValueError(f"{len(names)} names, but only {len(COLOURS)} colours can be told apart: group some as ''")
    for name, colour in zip(["", *names], [GREY, *COLOURS], strict=False):
        rows = values == name
        ax.scatter(x[rows], y[rows], size[rows], colour, alpha=0.8 if name else 0.45, lw=0)
        if name:  # the legend has dots of one size, and would take what stands between two $ for a formula
            ax.scatter([], [], 40, colour, label=name.replace("$", r"\$"))
    ax.set_title(title, fontsize=11)
    ax.set(xticks=[], yticks=[])
    ax.margins(0.06)
    ax.set_aspect("equal", adjustable="datalim")  # a stretched axis would stretch distances
    ax.figure.draw_without_rendering()  # settles the layout, so that text extents are final
    taken, halo = [], [withStroke(linewidth=2.5, foreground="white")]
    for row, text in (labels or {}).items():
        side, dx = ("left", 6) if x[row] < np.mean(ax.get_xlim()) else ("right", -6)  # towards the middle
        written = ax.annotate(
            text, (x[row], y[row]), (dx, 0), textcoords="offset points", ha=side, va="center", fontsize=8.5,
            path_effects=halo, parse_math=False,
        )  # fmt: skip
        extent = written.get_window_extent().padded(2)
        if len(taken) == 12 or extent.count_overlaps(taken):
            written.remove()
        else:
            taken.append(extent)
            ax.plot(x[row], y[row], "o", ms=4, mfc="white", mec="#333333")
    return ax


def short_title(title: str) -> str:
    """``"Empire Strikes Back, The (1980)"`` → ``"The Empire Strikes Back"``: for labels."""
    title = re.sub(r"\s*\(.*?\)", "", title).strip() or title
    return re.sub(r"^(.*), (The|A|An|Il|La|Le|Les|Das)$", r"\2 \1", title)
