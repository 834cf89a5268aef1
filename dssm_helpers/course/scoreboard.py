"""The results file of a data set, and its scoreboard: as text for the terminal, as table and picture for the README.

``results.json`` is ``{"dataset": …, "seeds": …, "models": {name: {"hit@10": …, "train_seconds": …}}, …}``, with the
origin that all of it was measured on (data, split and code), and its own digest.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import digest, locked, write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = {"hit@10": "Hit@10", "hit@100": "Hit@100", "ndcg@10": "NDCG@10", "mrr": "MRR"}
MODELS = {
    "dssm": "**two-tower of this course** (`dssm`)",
    "best": "the same, told the time of the request (`best`)",
    "dssm_mean": "mean pooling, last 10 (`dssm_mean`)",
    "dssm_mean_50": "mean pooling, whole history (`dssm_mean_50`)",
    "fifty_lines": "two towers in fifty lines (notebook 00)",
    "item_knn": "item-kNN on the last 3 movies",
    "ease": "EASE",
    "ials": "iALS (`implicit`)",
    "popularity": "popularity",
    "chance": "chance",
}
DATASETS = {"ml-100k": "MovieLens-100K", "ml-1m": "MovieLens-1M", "synthetic": "generated data"}
BLUE, RED, GREY, BLACK = "#0072B2", "#D55E00", "#A9B4BD", "#222222"


def read_results(folder: Path, origin: str | None = None) -> dict[str, Any]:
    """``results.json`` in ``folder``, if it is of this ``origin``; else, or if it is damaged, empty, with a word."""
    path = folder / "results.json"
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        if results.pop("digest") != digest(results):
            raise ValueError("its digest is another one")
        if origin in (None, results.get("origin")):
            return results
        reason = "is of other data, another split or other code"
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as damage:
        reason = f"is damaged ({damage!r})"
    print(f"{path} {reason}: nothing of it counts, and what is measured next starts a new one")
    return {}


@contextmanager
def update_results(folder: Path, origin: str | None = None) -> Iterator[dict[str, Any]]:
    """:func:`read_results`, to be changed in the block by one process at a time. What does not count is kept aside."""
    path = folder / "results.json"
    with locked(folder / ".results.lock"):
        results = read_results(folder, origin)
        if not results and path.exists():
            shutil.copyfile(path, f"{path}.aside")  # a copy: killed here, the old one is still in its place
        yield results
        note = json.loads(json.dumps(results, default=float))  # as it will be read, and compared with its digest
        with write_atomically(path) as temporary:
            temporary.write_text(json.dumps({**note, "digest": digest(note)}, indent=1) + "\n", encoding="utf-8")


def ranked_models(results: Mapping[str, Any], by: str = "ndcg@10") -> list[tuple[str, Mapping[str, Any]]]:
    """Models of a results file with their figures, the best first."""
    return sorted(results.get("models", {}).items(), key=lambda item: -item[1][by])


def plain_scoreboard(results: Mapping[str, Any]) -> str:
    """As text for a terminal."""
    seeds = "one seed" if results["seeds"] == 1 else f"mean of {results['seeds']} seeds"
    lines = [f"Scoreboard, {results['dataset']} (test, {seeds} for trained models)"]
    lines.append(f"{'model':<14}" + "".join(f"{title:>10}" for title in COLUMNS.values()) + f"{'train':>9}")
    for name, row in ranked_models(results):
        figures = "".join(f"{row[column]:>10.3f}" for column in COLUMNS)
        lines.append(f"{name:<14}{figures}{row['train_seconds']:>7.1f} s")
    return "\n".join(lines)


def scoreboard_markdown(results: Mapping[str, Any]) -> str:
    """As a Markdown table."""
    lines = [f"| model | {' | '.join(COLUMNS.values())} | training |", "|---|" + "---:|" * (len(COLUMNS) + 1)]
    for name, row in ranked_models(results):
        figures = " | ".join(f"{row[column]:.3f}" for column in COLUMNS)
        seconds = f"{row['train_seconds']:.0f} s" if row["train_seconds"] >= 0.5 else "–"
        lines.append(f"| {MODELS.get(name, name)} | {figures} | {seconds} |")
    return "\n".join(lines)


def draw_scoreboard(results: Mapping[str, Any], path: str | Path) -> Figure:
    """Hit@10 of all models as bars, 900 × 420 pixels, written to ``path`` as PNG."""
    from matplotlib.figure import Figure

    scores = {name: row["hit@10"] for name, row in reversed(ranked_models(results, by="hit@10"))}
    chance = scores.pop("chance", None)
    if not scores:
        raise ValueError("these results have no model with a Hit@10; run the notebooks first: make run")
    figure = Figure(figsize=(9, 4.2), dpi=100, layout="constrained")
    ax = figure.add_subplot()
    titles = [re.sub(r" \(`.*`\)|\*", "", MODELS.get(name, name)) for name in scores]  # without the marks of Markdown
    colours = [BLUE if name == "dssm" else GREY for name in scores]
    bars = ax.barh(titles, scores.values(), height=0.68, color=colours)
    ax.bar_label(bars, fmt="%.3f", padding=5, fontsize=12)
    for label, name in zip(ax.get_yticklabels(), scores, strict=True):
        ours = name == "dssm"
        label.set(fontsize=11.5, color=BLUE if ours else BLACK, weight="bold" if ours else "normal")
    if chance is not None:
        ax.axvline(chance, color=RED, ls="--", lw=1.5)
        ax.text(chance, 1, f" chance {chance:.3f}", transform=ax.get_xaxis_transform(), color=RED, va="bottom")
    ax.set_xlim(0, max(scores.values()) * 1.12)
    ax.set_xlabel("Hit@10: share of users whose next movie is among the first ten", fontsize=11)
    dataset = DATASETS.get(results["dataset"], results["dataset"])
    figure.suptitle(f"Finding a user's next movie in the whole catalogue on {dataset}", fontsize=15, x=0.01, ha="left")
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    with write_atomically(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
    return figure
