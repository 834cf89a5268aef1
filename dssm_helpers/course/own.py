"""From files of your own to a served recommender: ``python -m dssm_helpers.course own --help`` (notebook 17)."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..data import SPLITS, EncodedData, encode
from ..evaluation import ItemKNN, Popularity, TwoTowerScorer, chance_level, metrics, paired_bootstrap, rank_targets
from ..schema import Schema
from ..serving import Recommender, export_bundle
from ..tables import describe_interactions, mend, read_tables, side_table
from .scoreboard import plain_scoreboard
from .workspace import Workspace

FEWEST_USERS = 30  # with fewer in the test, one hit more or less moves Hit@10 by more than .03
MOST_ITEMS = 20_000  # for item-kNN, whose table has a number for each pair of items
LINE = "line of the file"  # the time where there is no other
RESERVED = ("user_id", "item_id", "history")


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line; ``--help`` lists it."""
    parser = argparse.ArgumentParser(prog="python -m dssm_helpers.course own", description=__doc__)
    add = parser.add_argument
    add("--interactions", nargs="+", required=True, metavar="FILE", help="CSV or Parquet, one file or several")
    add("--user", required=True, metavar="COLUMN", help="whose interaction it is")
    add("--item", required=True, metavar="COLUMN", help="with what")
    add("--time", metavar="COLUMN", help="when; without it, a lower line of the file counts as later")
    add("--users", metavar="FILE", help="a row per user: the same user column, and any others")
    add("--items", metavar="FILE", help="a row per item: the same item column, and any others")
    add("--title", metavar="COLUMN", help="of the items' file: a name to show")
    add("--out", required=True, metavar="FOLDER", help="for the trained model, results.json and the bundle")
    text = "run the lines that the check prints; name those that are yours to choose: --mend repeats bots"
    add("--mend", nargs="*", metavar="CHECK", help=text)
    add("--repeats", action="store_true", help="users have an item again: what was had stays a candidate")
    add("--split", choices=SPLITS, default="leave_last_out", help="default: %(default)s")
    add("--seeds", type=int, default=1, help="trainings to average over (default 1; three to decide by)")
    add("--epochs", type=int, help="default: the course's")
    add("--k", type=int, default=10, help="items in the answer shown at the end (default 10)")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """The exit status: 0, or 2 after a sentence about what is in the way and what to do."""
    options = parse(arguments)
    try:
        run(options)
    except (ValueError, OSError, ImportError) as error:
        print(f"\nNot done: {error}", file=sys.stderr)
        return 2
    return 0


def run(options: argparse.Namespace) -> None:
    out = Path(options.out)
    _refuse_foreign(out)
    frame = read_tables(*options.interactions)
    if options.time is None:
        frame[LINE] = np.arange(len(frame))
        print("No --time: a lower line of the file counts as later.")
    keys = {"user": options.user, "item": options.item, "time": options.time or LINE}
    frame = _checked(frame, Schema(**keys, repeats=options.repeats), options.mend)
    users, items = (_side(options, side) for side in ("user", "item"))
    columns = (*users[1], *items[1])
    names = [column.name for column in columns]
    if taken := {name for name in names if names.count(name) > 1 or name in RESERVED}:
        raise ValueError(f"the columns of both tables need names of their own; rename {', '.join(sorted(taken))}")
    schema = Schema(**keys, title=options.title, columns=columns, repeats=options.repeats)
    data = encode(frame, users[0], items[0], schema, name=out.name)
    if not 1 <= options.k <= data.n_items - 2:
        raise ValueError(f"--k is {options.k}; choose from 1 to {data.n_items - 2}, the number of items")
    workspace = Workspace(data=data, split=options.split)
    workspace.folder = out
    test = workspace.split.test
    print(f"{data}\n{workspace.split}", flush=True)
    if len(test) < FEWEST_USERS:
        few = f"only {len(test)} users can be tested, and {FEWEST_USERS} are the least"
        why = f"one hit more would move Hit@10 by {1 / max(1, len(test)):.2f}"
        raise ValueError(f"{few}: {why}. Until there are more, show what most had: {_most_had(data, options.k)}")
    training = {"epochs": options.epochs} if options.epochs else {}
    training |= {"mask_seen": False} if options.repeats else {}  # what was had is a rival like any other
    if absent := [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]:
        raise ImportError(f"a bundle needs {', '.join(absent)}: pip install {' '.join(absent)}")
    _compare(workspace, training, max(1, options.seeds))
    model = workspace.trained("dssm", 0, **training)[0]
    bundle = export_bundle(out / "bundle", model, data, workspace.split.train)
    position = test[0]
    user = data.vocabularies["user_id"].decode([data.user[position]])[0]
    history = data.vocabularies["item_id"].decode(data.history(position))
    print(f"\nUser {user!r}:\n{Recommender.load(bundle).recommend(user, history, options.k)}")
    print("\nAsk it yourself, where torch need not be installed:\n  from dssm_helpers.serving import Recommender")
    print(f"  recommender = Recommender.load({str(bundle)!r})")
    print("  print(recommender.recommend(user=…, history=[…, …]))  # ids, the oldest first")


def _refuse_foreign(out: Path) -> None:
    ours = ["dssm-seed", "bundle", "."]
    with suppress(OSError, ValueError, TypeError):  # there is none, or it is somebody else's
        ours += ["results.json"] * ("own" in json.loads((out / "results.json").read_bytes()))
    names = sorted(path.name for path in out.iterdir()) if out.is_dir() else [out.name] * out.exists()
    if foreign := [name for name in names if not out.is_dir() or not name.startswith(tuple(ours))]:
        raise FileExistsError(f"{out} holds other files ({', '.join(foreign[:3])}); choose a folder of its own")


def _checked(frame: pd.DataFrame, schema: Schema, mended: list[str] | None) -> pd.DataFrame:
    """The table as it may be encoded; every line that changes it is printed with the rows before and after."""
    report = describe_interactions(frame, schema)
    found = report[report["found"] > 0]
    for name, row in found.iterrows():
        print(f"  {row['level']:<7}{name:<26}{row['found']:>12,} {row['of']:<9} {row['what it does']}")
    decided = {*(mended or ()), "bots", *(["repeats"] if schema.repeats else [])}  # bots may train
    waits = {"stops": mended is None, "harms": mended is None, "choose": True}
    if left := [name for name, level in found["level"].items() if waits.get(level) and name not in decided]:
        print("\nLines that mend:\n  " + "\n  ".join(found.loc[left, "mend"]))
        how = " ".join(["--mend", *(name for name in left if found["level"][name] == "choose")])
        how += " (or --repeats)" * ("repeats" in left)
        raise ValueError(f"first mend {', '.join(left)}: in your file, or with {how}, which runs the lines above")
    if mended is not None:
        frame, log = mend(frame, report, mended)
        for name, row in log.iterrows():
            print(f"  mended {name}: {row['rows before']:,} rows before, {row['after']:,} after")
    if frame[schema.user].nunique() < 2:
        raise ValueError(f"there is one user only in {schema.user!r}; nothing can be learnt from others")
    return frame


def _side(options: argparse.Namespace, side: str) -> tuple[pd.DataFrame | None, list]:
    file, key = (options.users, options.user) if side == "user" else (options.items, options.item)
    if file is None:
        return None, []
    table = read_tables(file)
    title = options.title if side == "item" else None
    if absent := [name for name in (key, title) if name and name not in table]:
        raise ValueError(f"{file} has no column {absent[0]!r}; found {', '.join(map(repr, table))}")
    filled, columns = side_table(table, key, side, title)
    print(f"{side}s: {', '.join(f'{c.name} ({c.kind})' for c in columns) or 'no columns'}", end="")
    left = [name for name in table if name not in (key, title, *(c.name for c in columns))]
    gaps = int(table.drop(columns=left).isna().sum().sum())
    print(f"; left out, a value per row: {', '.join(left)}" * bool(left) + f"; {gaps:,} gaps filled" * bool(gaps))
    return filled, columns


def _compare(workspace: Workspace, training: dict[str, Any], seeds: int) -> None:
    """Train, rank the test beside the baselines, record and print."""
    data, split = workspace.data, workspace.split
    scorers = {"popularity": Popularity(data, split.train)}
    if data.n_items <= MOST_ITEMS:
        scorers["item_knn"] = ItemKNN(data, split.train)
    else:
        print(f"item-kNN is left out: its table would hold {data.n_items:,} × {data.n_items:,} numbers")
    ranks = {name: rank_targets(scorer, data, split.test) for name, scorer in scorers.items()}
    models = [workspace.trained("dssm", seed, **training) for seed in range(seeds)]
    runs = [rank_targets(TwoTowerScorer(model, workspace.batches), data, split.test) for model, _ in models]
    had = 0 if data.schema.repeats else (split.test - data.offsets[data.user[split.test]]).mean()
    per_seed = pd.DataFrame(map(metrics, runs))
    rows = {"dssm": per_seed.mean().to_dict(), **{name: metrics(values) for name, values in ranks.items()}}
    rows["chance"] = chance_level(max(1, data.n_items - 2 - had))
    rows = {name: {**row, "train_seconds": 0.0} for name, row in rows.items()}
    rows["dssm"]["train_seconds"] = float(np.mean([seconds for _, seconds in models]))
    best = max(ranks, key=lambda name: rows[name]["hit@10"])
    gain = paired_bootstrap(np.array(runs) <= 10, ranks[best] <= 10)
    spread = float(np.ptp(per_seed["hit@10"]))
    counts = seeds >= 3 and (gain.low > 0 or gain.high < 0) and abs(gain.difference) > spread
    verdict = {"gain": str(gain), "over": best, "spread": spread, "counts": bool(counts)}
    workspace.record(seeds=seeds, models=rows, own=verdict)
    verdict = "a difference that counts" if counts else "no difference that counts"
    verdict = verdict if seeds >= 3 else "fewer than three seeds only indicate: --seeds 3"
    print(f"\n{plain_scoreboard(workspace.results())}\nHit@10 of dssm over {best}, paired, 95 %: {gain}; {verdict}")


def _most_had(data: EncodedData, k: int) -> str:
    counts = data.item_counts(np.arange(len(data)))
    return ", ".join(data.titles[item] for item in np.argsort(-counts, kind="stable")[:k])
