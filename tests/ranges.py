"""``ranges.toml`` from the committed results, after the rule in its head: ``python tests/ranges.py`` writes it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from dssm_helpers.course.runner import PUBLISHED

HERE = Path(__file__).resolve().parent
FILE = HERE / "ranges.toml"
HEAD = """\
# What the notebooks record on ml-100k lies in these ranges, [low, high]: in a run with one seed, and in the committed
# results of three. tests/test_ranges.py compares; `python tests/ranges.py` writes them again, around the committed
# figures. Do so when a figure is meant to move: a low end that goes down is a floor that was given up.
#
# counted  nothing is learned: the stored figure to six digits.
# solved   counts and linear algebra: one user more or less, where the last bit of a score decides about a tie.
# trained  another seed or processor: three standard errors of a share p over the n users, 3 √(p (1 - p) / n), or .01.
#
# NDCG scatters less than a share, so the same widths hold it. Not held: times, and what a second of them is enough for
# (12 records nothing else); figures that benchmarks have stored (so all of 10); what 16 and 17 learn from the packages
# that are installed, which is another on each machine.
"""
# Notebook, rule, users n, and patterns of what it records.
SELECTED = (
    ("00", "solved", 943, ["overview/popularity/*"]),
    ("00", "trained", 943, ["overview/fifty_lines/*", "overview/course/*"]),
    ("01", "counted", 943, ["data/*"]),
    ("02", "counted", 943, ["features/shared_table_saves", "features/short_histories", "features/share_a_genre/*"]),
    ("03", "counted", 943, ["model/parameters", "model/in_layers", "model/lists_changed_by_temperature"]),
    ("04", "solved", 943, ["training/short/popularity/hit"]),
    ("04", "trained", 943, ["training/short/[!lop]*/hit", "training/short/logQ/hit", "training/short/old counts/hit"]),
    ("05", "counted", 943, ["models/chance/*@*0"]),
    ("05", "solved", 943, [f"models/{name}/*@*0" for name in ("popularity", "item_knn", "ease")]),
    ("05", "trained", 943, ["models/dssm*/*@*0", "models/ials/*@*0"]),
    ("05", "solved", 943, ["evaluation/last_movie/[!dmi]*/validation", "evaluation/last_movie/item-kNN/validation"]),
    ("05", "trained", 943, ["evaluation/last_movie/[dm]*/validation", "evaluation/last_movie/iALS/validation"]),
    ("05", "solved", 109, ["evaluation/moment/[!dmi]*", "evaluation/moment/item-kNN"]),
    ("05", "trained", 109, ["evaluation/moment/[dm]*", "evaluation/moment/iALS"]),
    ("06", "counted", 943, ["retrieval/items", "retrieval/indexes/exact/recall@10"]),
    ("06", "trained", 943, ["retrieval/indexes/[!M]*/hit@10", "retrieval/indexes/Faiss*/recall@10"]),
    ("06", "trained", 943, ["retrieval/by_hand/*/recall@10", "retrieval/stale/hit@10"]),
    ("07", "trained", 943, ["visualization/evidence/after training/holds the next"]),
    ("08", "trained", 943, ["onnx/hit@10/*"]),
    ("09", "solved", 943, ["serving/hit@10_cold_users/nothing, popularity"]),
    (
        "09",
        "trained",
        943,
        ["serving/hit@10_[sr]*", "serving/hit@10_cold_users/[!n]*", "serving/hit@10_cold_users/*tower"],
    ),
    ("11", "solved", 943, ["troubleshooting/popularity"]),
    ("11", "trained", 943, ["troubleshooting/planted/[!l]*/Hit@10", "troubleshooting/mystery/*"]),
    ("13", "trained", 943, ["better_towers/default", "better_towers/attention", "better_towers/hidden"]),
    ("13", "trained", 943, ["better_towers/dial/Hit@10/*"]),
    ("14", "trained", 943, ["second_stage/ceiling", "second_stage/ndcg@10_*"]),
    ("14", "trained", 500, ["second_stage/recall_where_trained"]),
    ("15", "trained", 180, ["every_day/new_rows/*/all rows, Hit@10"]),
    ("17", "solved", 943, ["own/films/popularity", "own/films/item-kNN", "own/broken/*/popularity"]),
    ("17", "solved", 943, ["own/broken/*/item-kNN"]),
    ("17", "trained", 943, ["own/films/two-tower"]),
)


def width(rule: str, users: int, figure: float) -> float:
    """How far a figure may lie from ``figure``."""
    if rule == "trained":
        return max(0.01, 3 * math.sqrt(figure * (1 - figure) / users))  # of a recall near 1 the errors are no share's
    return {"counted": 1e-6, "solved": 1 / users}[rule]


def flat(results: Mapping[str, Any], start: str = "") -> dict[str, float]:
    """Every number of nested results, by its path: ``models/dssm/hit@10``."""
    found: dict[str, float] = {}
    for name, value in results.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{start}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found[start + name] = float(value)
    return found


def around(results: Mapping[str, Any]) -> dict[str, dict[str, list[float]]]:
    """By notebook and path, ``[low, high]`` around everything that is selected, rounded outward to six digits."""
    figures, ranges = flat(results), {}
    for notebook, rule, users, patterns in SELECTED:
        for pattern in patterns:
            paths = [path for path in figures if fnmatchcase(path, pattern)]
            if not paths:
                raise ValueError(f"{PUBLISHED.name} has nothing like {pattern!r}, which SELECTED asks for")
            for path in paths:
                gap = width(rule, users, figures[path])
                low, high = math.floor((figures[path] - gap) * 1e6) / 1e6, math.ceil((figures[path] + gap) * 1e6) / 1e6
                ranges.setdefault(notebook, {})[path] = [low, high]
    return ranges


def outside(results: Mapping[str, Any], ranges: Mapping[str, list[float]]) -> list[str]:
    """What lies outside of its range, in words; a figure that is not there is not looked at."""
    figures = flat(results)
    return [
        f"{path} is {figures[path]:.6g}, which is not in {low} … {high}"
        for path, (low, high) in ranges.items()
        if path in figures and not low <= figures[path] <= high
    ]


def page(results: Mapping[str, Any]) -> str:
    parts = [HEAD]
    for notebook, ranges in around(results).items():
        parts.append(f"\n[{notebook}]\n" + "".join(f"{json.dumps(path)} = {ends}\n" for path, ends in ranges.items()))
    return "".join(parts)


if __name__ == "__main__":
    FILE.write_text(page(json.loads(PUBLISHED.read_text(encoding="utf-8"))), encoding="utf-8")
