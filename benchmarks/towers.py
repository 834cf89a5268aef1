"""Which changes give a better pair of towers, one vector a side: for notebook 13, as ``towers.toml`` lists them.

    python benchmarks/towers.py                      # everything, some three hours on one core
    python benchmarks/towers.py --only arms

Every arm is the default with one thing changed, read on validation. Each run is kept in
``artifacts/<dataset>/towers/``: an interrupted command goes on where it stopped. ``towers.json`` is written after each.
"""

from __future__ import annotations

import inspect
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import machine as shared
import numpy as np
import torch
import tower_parts
from torch import Tensor
from tower_parts import LIKED, Cold, Setting, neighbours, stars
from variants import MEASURES, Variant, compare, figures, read_variant

from dssm_helpers.course.workspace import Workspace, code_digest
from dssm_helpers.evaluation import TwoTowerScorer, chance_level, coverage, metrics, rank_targets, top_k
from dssm_helpers.files import digest
from dssm_helpers.folding import fold
from dssm_helpers.model import DSSM
from dssm_helpers.objectives import log_shares
from dssm_helpers.training import Trainer
from dssm_helpers.vocabulary import FIRST

FILE = Path(__file__).with_suffix(".json")


# -- runs -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Arm(Variant):
    """A line of ``towers.toml``, which explains the fields."""

    row: str = ""
    what: str = ""
    parts: tuple[str, ...] = ()
    trainer: str = "Trainer"
    options: Mapping[str, Any] = field(default_factory=dict)

    def setting(self, ws: Workspace) -> Setting:
        parts = [getattr(tower_parts, name) for name in self.parts]
        return type(self.name, (*parts, Setting), {})(ws, self.recipe, self.options)

    def made_of(self, seed: int) -> dict[str, Any]:
        """Everything that decides the outcome besides data and the library's code."""
        recipe = asdict(replace(self.recipe, training=replace(self.recipe.training, seed=seed)))
        names = [*self.parts, self.trainer, *(["AttentionPooling"] if "attention" in self.recipe.pooling else [])]
        return {"recipe": recipe, "options": dict(self.options), "parts": names, "code": code_of(names)}


def code_of(names: Sequence[str]) -> str:
    """A hash of these classes of ``tower_parts.py``, and of those they name."""
    found, wanted = {}, list(names)
    while wanted:
        name = wanted.pop()
        if name not in found and inspect.getmodule(getattr(tower_parts, name, None)) is tower_parts:
            found[name] = inspect.getsource(getattr(tower_parts, name))
            wanted += re.findall(r"\b[A-Z]\w+", found[name])
    return digest(dict(sorted(found.items())))


def train(arm: Arm, setting: Setting, seed: int) -> Trainer:
    config = replace(arm.recipe.training, seed=seed)
    trainer = getattr(tower_parts, arm.trainer)(setting.model(seed), setting.batches, config)
    trainer.options, trainer.setting = arm.options, setting

    def validate(model: DSSM) -> dict[str, float]:
        return metrics(rank_targets(setting.scorer(model, setting.batches), setting.data, setting.validation()))

    trainer.fit(setting.rows(), validate, progress=False)
    return trainer


def path_of(ws: Workspace, kind: str, arm: Arm, seed: int) -> Path:
    made_of = [kind, arm.made_of(seed), ws.data.fingerprint(), ws.split.fingerprint(), code_digest()]
    return ws.folder / "towers" / f"{digest(made_of)[:12]}.json"


def measure(ws: Workspace, arm: Arm, seed: int) -> dict[str, Any]:
    """Train an arm and rank every user's validation and test row."""
    setting = arm.setting(ws)
    if arm.name == "default":  # other parts need its weights
        model, seconds = ws.trained("dssm", seed)
    else:
        trainer = train(arm, setting, seed)
        model, seconds = trainer.model, trainer.train_seconds
    scorer = setting.scorer(model, setting.batches)
    parts = {part: getattr(ws.split, part) for part in ("validation", "test")}
    ranks = {part: rank_targets(scorer, setting.data, positions).tolist() for part, positions in parts.items()}
    covered = coverage(top_k(scorer, setting.data, ws.split.validation)[0], ws.data.n_items - FIRST)
    return {"settings": arm.made_of(seed), "seconds": seconds, "coverage": covered, "ranks": ranks}


def measure_cold(arm: Arm, setting: Cold, seed: int) -> dict[str, Any]:
    """Ranks of cold and of warm targets; the cold ids are unknown, as they were drawn, or the mean of neighbours."""
    trainer, asked, batches = train(arm, setting, seed), setting.asked, setting.batches
    table = trainer.model.item_tower.embedding.tables["item_id"].weight.data

    def ranks(positions: np.ndarray) -> list[float]:
        return rank_targets(TwoTowerScorer(trainer.model, batches), setting.data, positions).tolist()

    found = {"warm": ranks(setting.validation()), "unknown": ranks(asked)}
    batches.item_columns["item_id"] = torch.from_numpy(setting.data.item_columns["item_id"])
    found["as drawn"] = ranks(asked)
    table[setting.cold] = table[neighbours(setting)].mean(dim=1)
    return {"seconds": trainer.train_seconds, "ranks": found | {"neighbours": ranks(asked)}}


LIST = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
ARMS = [read_variant(line, seeds=5, kind=Arm) for line in LIST["arms"]]
COLD = [read_variant(line, seeds=3, kind=Arm) for line in LIST["cold"]]  # of each draw one


# -- tables -----------------------------------------------------------------------------------------------------------


def ranges(ranks: np.ndarray) -> dict[str, float]:
    """Between the best and the worst seed of ranks ``[seeds, n]``."""
    per_seed = [figures(one[None]) for one in ranks]
    return {name: float(np.ptp([found[name] for found in per_seed])) for name in MEASURES}


def passes(difference: Mapping[str, Sequence[float]], spread: Mapping[str, float]) -> bool:
    """Above noise (interval above zero, further than the default's seeds apart) on Hit@10 or NDCG@10, below on none."""
    above = any(difference[m][1] > 0 and difference[m][0] > spread[m] for m in ("hit@10", "ndcg@10"))
    return above and not any(high < 0 for _, _, high in difference.values())


def arms(ws: Workspace, most: int = 5) -> None:
    """Make the runs of all arms, at most so many seeds of each, and the table."""
    for arm in ARMS:
        for seed in range(min(arm.seeds, most)):
            shared.once(path_of(ws, "arm", arm, seed), partial(measure, ws, arm, seed))
    table(ws)


def table(ws: Workspace) -> None:
    """The sections ``arms``, ``default_range`` and ``stars``, of the runs there are."""
    rows, liked, default = [], [], None
    for arm in ARMS:
        paths = [path_of(ws, "arm", arm, seed) for seed in range(arm.seeds)]
        runs = [shared.read_json(path) for path in paths if path.exists()]
        if not runs:
            continue
        ranks = np.array([found["ranks"]["validation"] for found in runs])
        default = ranks if default is None else default
        row = {"row": arm.row, "name": arm.name, "what": arm.what, "seeds": len(runs), **figures(ranks)}
        row["coverage"] = float(np.mean([found["coverage"] for found in runs]))
        row["seconds"] = min(found["seconds"] for found in runs)  # of the quickest: others may have run beside it
        row["hit@10_std"] = row["hit@10_std"] if len(runs) > 1 else None
        row["difference"] = compare(ranks, default[: len(ranks)])
        row["passes"] = len(runs) >= 3 and passes(row["difference"], ranges(default))
        rows.append(row)
        if arm.row in ("default", "positives"):
            liked.append(judged(ws, arm.name, ranks, default[: len(ranks)]))
        gaps = (f"{name} {row[name]:.4f} {row['difference'][name][0]:+.4f}" for name in MEASURES)
        print(f"{arm.name:32s}", len(runs), *gaps, f"{row['seconds']:.0f} s", row["passes"], flush=True)
    keep(ws, runs, arms=rows, default_range=ranges(default), stars=liked)


def dial(ws: Workspace) -> None:
    """The section ``dial``: scores of the default plus lambda · log q (cosines, so times the temperature)."""
    log_q = log_shares(ws.data.item_counts(ws.split.train))
    curve = []
    for strength in np.linspace(-0.6, 0.4, 21).round(2).tolist():
        found = []
        for seed in range(3):
            scorer = ws.scorer("dssm", seed)

            def shifted(positions, scorer=scorer, offset=strength * scorer.model.temperature * log_q):
                return scorer(positions) + offset

            hits = metrics(rank_targets(shifted, ws.data, ws.split.validation))["hit@10"]
            shown = top_k(shifted, ws.data, ws.split.validation)[0]
            found.append([hits, coverage(shown, ws.data.n_items - FIRST)])
        curve.append({"lambda": strength, **dict(zip(("hit@10", "coverage"), np.mean(found, axis=0), strict=True))})
    keep(ws, [], dial=curve)


def cold(ws: Workspace) -> None:
    """The section ``cold``: three draws of cold items, one seed each, the users' cold and warm targets."""
    arms, places, default = [], [], None
    for arm in COLD:
        runs = []
        for draw in range(arm.seeds):
            one = replace(arm, options={**arm.options, "draw": draw})
            setting = one.setting(ws)
            path = path_of(ws, "cold", one, draw)
            runs.append(shared.once(path, lambda: measure_cold(one, setting, draw)))  # noqa: B023
            if arm is COLD[0]:
                places.append(by_genre(setting))
        ranks = {name: np.concatenate([found["ranks"][name] for found in runs]) for name in runs[0]["ranks"]}
        default = default or ranks
        seconds = float(np.mean([found["seconds"] for found in runs]))
        arms.append({"name": arm.name, "what": arm.what, "draws": arm.seeds, "seconds": seconds})
        for name, found in ranks.items():
            arms[-1][name] = {**short(metrics(found)), "difference": compare(found, default[name])}
        sizes = {"cold_rows": len(ranks["unknown"]), "warm_rows": len(ranks["warm"])}
        levels = {"chance": chance_level(ws.data.n_items - FIRST), "by genre": metrics(np.concatenate(places))}
        baselines = {name: short(found) for name, found in levels.items()}
        keep(ws, runs, cold={**sizes, "baselines": baselines, "arms": arms})
        print(arms[-1], flush=True)


def short(found: Mapping[str, float]) -> dict[str, float]:
    return {name: found[name] for name in MEASURES}


def by_genre(setting: Cold) -> np.ndarray:
    """Ranks of cold targets by the share of their genres in the history times popularity; a cold item has the mean
    count of its genres' items."""
    data, genres = setting.data, torch.from_numpy(setting.data.multi_hot("genres")).float()
    counts = torch.from_numpy(data.item_counts(setting.rows())).float()
    warm = genres * ~setting.cold.unsqueeze(1)
    typical = genres @ (warm.T @ counts / warm.sum(dim=0).clamp(min=1)) / genres.sum(dim=1).clamp(min=1)
    counts = torch.where(setting.cold, typical, counts)

    def scorer(positions: np.ndarray) -> Tensor:
        taste = genres[setting.batches.users(positions)["history"]].mean(dim=1)  # [B, G]
        return taste @ genres.T / genres.sum(dim=1).clamp(min=1) * counts

    return rank_targets(scorer, data, setting.asked)


SIZES, CHOSEN = (1, 2, 3, 5, 7), 3  # models told the time that are folded into one: those tried, the fewest that pass


def folded(ws: Workspace, models: Sequence[DSSM], size: int) -> list[TwoTowerScorer]:
    """The models told the time, ``size`` at a time, as ones no wider than the default."""
    batches = ws.batches_of("best")
    rows = np.random.default_rng(0).choice(ws.split.train, min(len(ws.split.train), 8192), replace=False)
    groups = [models[start : start + size] for start in range(0, len(models) - size + 1, size)]
    return [TwoTowerScorer(fold(group, batches, rows), batches) for group in groups]


def final(ws: Workspace, part: str, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Models folded of so many, by name, on one part of the split, beside the default."""
    positions, models = getattr(ws.split, part), [ws.trained("best", seed)[0] for seed in range(15)]
    found = {"default": [ws.scorer("dssm", seed) for seed in range(5)]}
    found |= {name: folded(ws, models, size) for name, size in sizes.items()}
    ranks = {
        name: np.array([rank_targets(scorer, scorer.batches.data, positions) for scorer in scorers])
        for name, scorers in found.items()
    }
    if part == "test":
        ranks["sasrec"] = np.array(list(shared.read_json(shared.HERE / "sasrec_ranks.json")["test"].values()))
    spread = ranges(ranks["default"])
    section: dict[str, Any] = {"default_range": spread}
    for name, of in ranks.items():
        section[name] = {"seeds": len(of), **figures(of), "difference": compare(of, ranks["default"])}
        section[name]["passes"] = passes(section[name]["difference"], spread)
    return section


def test(ws: Workspace) -> None:
    """The sections ``chosen`` (validation: how many are folded) and ``test``: those chosen, and no others."""
    chosen = final(ws, "validation", {f"{size} folded": size for size in SIZES})
    keep(ws, [], chosen=chosen, test=final(ws, "test", {"best": CHOSEN}))


def judged(ws: Workspace, name: str, ranks: np.ndarray, default: np.ndarray) -> dict[str, Any]:
    """An arm on every user's validation row, and on those of them with at least four stars."""
    liked = stars(ws)[ws.split.validation] >= LIKED
    section: dict[str, Any] = {"name": name}
    for target, of in {"any": np.ones_like(liked), "liked": liked}.items():
        difference = compare(ranks[:, of], default[:, of])
        section[target] = {"users": int(of.sum()), **figures(ranks[:, of]), "difference": difference}
    return section


def keep(ws: Workspace, runs: Sequence[Mapping[str, Any]], **sections: Any) -> None:
    """Write sections of ``towers.json``, the others as they are."""
    about = {"dataset": ws.dataset, "split": "validation"}
    if runs:
        about |= {"machine": (machine := shared.machines(list(runs))), "date": machine["date"]}
    shared.write_json(FILE, {**shared.read_json(FILE), **about, **sections})


if __name__ == "__main__":
    tables = {part.__name__: part for part in (arms, table, dial, cold, test)}
    parser = shared.command_line(__doc__)
    parser.add_argument("--only", nargs="+", choices=tables, default=list(tables))
    parser.add_argument("--seeds", type=int, default=5, help="of an arm at most")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tables["arms"] = partial(arms, most=arguments.seeds)
    for name in arguments.only:
        tables[name](Workspace("ml-100k", progress=False))
