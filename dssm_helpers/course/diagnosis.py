"""Take a run whose recall is low and name the likely cause (notebook 11, "My recall is low").

Every check measures something on the run itself and yields names of ``findings.toml``, which has the words to each,
with what it measured. Causes come before their symptoms: a misaligned batch also gives a recall at chance, and it is
the batch that has to be mended.
"""

from __future__ import annotations

import copy
import html
import math
import textwrap
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from ..data import EncodedData, Split, split_by_time
from ..evaluation import Popularity, Scorer, TwoTowerScorer, candidate_scores, rank_targets, seen_before
from ..features import Batch, BatchBuilder
from ..model import DSSM, FeatureEmbedding, evaluation_mode
from ..objectives import TrainingConfig, in_batch_loss, loss_at_chance
from ..training import adamw
from ..vocabulary import FIRST, PADDING

SEVERITIES = ("critical", "warning", "note")
Recommend = Callable[[np.ndarray], np.ndarray]

FINDINGS = tomllib.loads(Path(__file__).with_name("findings.toml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Finding:
    """One thing that is, or may be, wrong."""

    name: str  # short and fixed, for programs: "no_logq"
    severity: str  # critical: the figures mean nothing until it is mended; warning: it costs recall; note
    evidence: str  # what was measured
    cause: str
    remedy: str
    section: str  # where the course explains it


class Diagnosis(list[Finding]):
    """Findings, the most likely cause first. ``print`` it, or leave it as a notebook cell's last line.

    ``unchecked`` says what could not be looked at, and the argument that would allow it.
    """

    def __init__(self, findings: Iterable[Finding] = (), unchecked: Iterable[str] = ()):
        super().__init__(findings)
        self.unchecked = list(unchecked)

    @property
    def healthy(self) -> bool:
        """True when nothing is worse than a note."""
        return all(finding.severity == "note" for finding in self)

    def __str__(self) -> str:
        lines = ["Nothing above a note."] if self.healthy else []
        for place, finding in enumerate(self, 1):
            lines.append(f"{place}. {finding.severity.upper():<9}{finding.name}")
            texts = {
                "measured": finding.evidence,
                "cause": finding.cause,
                "do": finding.remedy,
                "read": finding.section,
            }
            for title, text in texts.items():
                lines += textwrap.wrap(f"   {title:<9}{text}", 100, subsequent_indent=" " * 12, break_long_words=False)
        return "\n".join(lines + textwrap.wrap(self._not_looked_at(), 100))

    __repr__ = __str__

    def _repr_markdown_(self) -> str:
        rows = ["| | finding | measured | likely cause | what to do | read |", "|---|---|---|---|---|---|"]
        for finding in self:
            cells = (finding.evidence, finding.cause, finding.remedy, finding.section)
            # Evidence names columns of the reader's own data, so their markup must not reach the page.
            text = " | ".join(html.escape(" ".join(cell.split()), quote=False).replace("|", "\\|") for cell in cells)
            rows.append(f"| {finding.severity} | **{finding.name}** | {text} |")
        head = ["**Nothing above a note.**", ""] if self.healthy else []
        return "\n".join([*head, *rows, "", self._not_looked_at()])

    def _not_looked_at(self) -> str:
        return f"Not looked at: {'; '.join(self.unchecked)}." if self.unchecked else ""


def diagnose(
    model: DSSM,
    batches: BatchBuilder,
    split: Split | None = None,
    config: TrainingConfig | None = None,
    history: pd.DataFrame | Iterable[Mapping[str, float]] | None = None,
    labels: np.ndarray | Tensor | None = None,
    scorer: Scorer | None = None,
    *,
    recommend: Recommend | None = None,
    initial_loss: float | None = None,
    sample: int = 1000,
    seed: int = 0,
) -> Diagnosis:
    """Look over a run and say what is likely wrong with it (notebook 11, "My recall is low").

    Only the model and the batches are needed; everything else lets more be looked at. The model is not changed.

    Args:
        batches: what formed the training batches; its ``data`` says what they should contain.
        split: train, validation and test positions; default :func:`~dssm_helpers.data.split_by_time`.
        config: how the model was trained.
        history: ``trainer.history``, one row per epoch with at least ``loss``.
        labels: ``[n]`` what the loss was told, 1 for a positive (point-wise training only).
        scorer: what ranks the items in the evaluation; default the model's own vectors, exactly.
        recommend: positions ``[B]`` → item indices ``[B, k]`` as users see them; looked over for items seen before.
        initial_loss: of the very first step, before any training.
        sample: how many training and how many validation rows to look at. seed: for that sample.
    """
    data, split, generator = batches.data, split or split_by_time(batches.data), np.random.default_rng(seed)
    parts = split.train, split.validation
    train, validation = (np.sort(generator.choice(p, min(sample, len(p)), replace=False)) for p in parts)
    curve = pd.DataFrame(history)
    losses = curve.get("loss", pd.Series(dtype=float))  # there is none where training ended in its first epoch
    counts = data.item_counts(split.train)
    chance = config and loss_at_chance(config, counts)
    found = [*_data(data, split, labels), *_rows(batches, train), *_weights(model, losses)]
    if "diverged" not in dict(found):  # else nothing further can be measured
        with evaluation_mode(model):
            vectors = {"user": model.user_tower(batches.users(validation))}  # [n, D]
            vectors["item"] = model.item_tower(batches.all_items())[FIRST:]  # [I - 2, D]
        found += _histories(model, batches, {"training": train, "validation": validation})
        found += _vectors(model, vectors, scorer and torch.as_tensor(scorer(validation)))
        found += _temperature(model, vectors, batches(train), config)
        *step, gradients = _one_step(model, batches(train), config or TrainingConfig())
        found += _steps(model, step, config, losses, chance) if config else []
        found += [*_towers(model, vectors, gradients), *_losses(losses, initial_loss, chance)]
        scorer = scorer or TwoTowerScorer(model, batches)
        top = candidate_scores(scorer, data, validation).topk(10, dim=1).indices.cpu().numpy()
        found += [*_popularity(counts, top, data.item[validation], config), *_seen(data, validation, recommend)]
        found += _outcome(data, split, train, validation, scorer, curve)
    findings = [Finding(name=name, evidence=evidence, **FINDINGS[name]) for name, evidence in found]
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))  # stable: causes stay before symptoms
    given = {"the labels (labels=)": labels, "the objective and learning rate (config=)": config,
             "the learning curve (history=)": history, "items already seen (recommend=)": recommend,
             "the loss at the start (initial_loss=)": initial_loss}  # fmt: skip
    return Diagnosis(findings, [what for what, value in given.items() if value is None])


# -- Checks: each yields the names of findings and what was measured ---------------------------------------------------

Measured = Iterator[tuple[str, str]]


def _exact(values: Tensor) -> Tensor:
    """In double precision, and on the CPU before that: Apple's MPS has no float64."""
    return values.detach().cpu().double()


def _data(data: EncodedData, split: Split, labels: np.ndarray | Tensor | None) -> Measured:
    if labels is not None:
        positive = float((torch.as_tensor(labels) > 0).float().mean())
        if positive in (0.0, 1.0):
            yield "labels_all_alike", f"{len(labels):,} labels, {positive:.0%} of them positive"
    clash = {"the items of the interactions": data.item == PADDING, "the users": data.user == PADDING}
    for name, column in {**data.user_columns, **data.item_columns}.items():
        if column.ndim == 1:
            clash[name] = column[FIRST:] == PADDING
        else:  # a list may be empty or end in padding, but none stands before a value
            clash[name] = ((column[:, :-1] == PADDING) & (column[:, 1:] != PADDING)).any(axis=1)
    shown = ", ".join(f"{name} ({rows.mean():.2%})" for name, rows in clash.items() if rows.any())
    if shown:
        yield "padding_is_a_real_id", f"index {PADDING} means padding and is also used by: {shown}"
    one_user = data.user[1:] == data.user[:-1]  # of two neighbouring rows
    compared = data.timestamp[1:] == data.timestamp[:-1], data.item[1:] > data.item[:-1]
    same_time, rising = (rows[one_user].mean() for rows in compared)
    if max(same_time, rising) > 0.9:
        yield "no_order", f"a user's neighbouring rows: {same_time:.0%} share a time, {rising:.0%} rise in item index"
    again = len(split.train) - len(np.unique(split.train))
    shown = [f"{again:,} of {len(split.train):,} training rows are repetitions"] if again else []
    for (one, rows), (other, others) in combinations(vars(split).items(), 2):
        shown += [f"{n:,} positions are in {one} and in {other}"] if (n := len(np.intersect1d(rows, others))) else []
    held_out = np.full(data.n_users, np.iinfo(np.int64).max)
    np.minimum.at(held_out, data.user[split.validation], data.timestamp[split.validation])
    later = (data.timestamp[split.train] > held_out[data.user[split.train]]).mean()
    shown += [f"{later:.1%} of the training rows are later than their user's validation row"] if later else []
    if shown:
        yield "split_leaks", "; ".join(shown)


def _rows(batches: BatchBuilder, train: np.ndarray) -> Measured:
    data, batch, shown = batches.data, batches(train), []
    for side, wanted in (("item", data.item[train]), ("user", data.user[train])):
        share = (batch[f"{side}_id"].cpu().numpy() != wanted).mean()
        shown += [f"{share:.0%} of a batch's rows hold another {side}"] if share else []
    if shown:
        yield "rows_misaligned", f"{' and '.join(shown)} than the interaction they stand for"
    items, shown = batch["item_id"].cpu().numpy(), []
    for name, column in data.item_columns.items():
        for where, side, right in (("a batch", batch, column[items]), ("all_items()", batches.all_items(), column)):
            share = (side[name].cpu().numpy() != right).reshape(len(right), -1).any(axis=1).mean()
            shown += [f"{name} in {share:.0%} of the rows of {where}"] if share else []
    if shown:
        yield "columns_of_another_item", f"not the values of the row's item: {', '.join(shown)}"


def _weights(model: DSSM, losses: pd.Series) -> Measured:
    tables = {n: t for part in model.modules() if isinstance(part, FeatureEmbedding) for n, t in part.tables.items()}
    lengths = {name: float(table.weight[PADDING].detach().norm()) for name, table in tables.items()}
    shown = ", ".join(f"{name} ({length:.3f})" for name, length in lengths.items() if length > 0)
    if shown:
        yield "padding_row_trained", f"the embedding of index {PADDING} should have length 0: {shown}"
    bad, last = sum(not torch.isfinite(p).all() for p in model.parameters()), losses.round(3).tolist()[-3:]
    if bad or not np.isfinite(losses).all():
        yield "diverged", f"{bad} weight tables hold NaN or infinity; the last losses are {last}"


def _histories(model: DSSM, batches: BatchBuilder, parts: dict[str, np.ndarray]) -> Measured:
    data, empty, foreign, target, backwards = batches.data, {}, {}, {}, {}
    for part, positions in parts.items():
        history = batches.users(positions)["history"].cpu().numpy()  # [n, L]
        rows, items = seen_before(data, positions)
        order = np.zeros((len(positions), data.n_items), dtype=np.int64)  # 0: not among the user's earlier items
        order[rows, items] = np.arange(1, len(rows) + 1)
        order, real = np.take_along_axis(order, history, axis=1), history >= FIRST
        pairs = (real & (order > 0))[:, 1:] & (real & (order > 0))[:, :-1]
        due = positions > data.offsets[data.user[positions]]  # rows whose user has earlier items
        empty[part] = (due & ~real.any(axis=1)).sum() / max(1, due.sum())
        foreign[part] = (real & (order == 0)).any(axis=1).mean()
        target[part] = (history == data.item[positions][:, None]).any(axis=1).mean()
        backwards[part] = (pairs & (np.diff(order, axis=1) > 0)).sum() / max(1, pairs.sum())

    def shown(shares: dict[str, float]) -> str:
        return " and ".join(f"{share:.0%} of the {part} rows" for part, share in shares.items())

    if max(empty.values()) > 0.9:
        yield "history_empty", f"no history where the user has earlier items: {shown(empty)}"
    if max(foreign.values()) > 0:
        evidence = f"items that are not the user's earlier ones are in the history of {shown(foreign)}"
        yield "future_in_history", f"{evidence}; the target itself is in {shown(target)}"
    reverse = copy.copy(batches)
    reverse.users = lambda positions: _reversed(batches.users(positions))
    scorers = (TwoTowerScorer(model, builder) for builder in (batches, reverse))
    given, turned = (rank_targets(scorer, data, parts["validation"]) for scorer in scorers)
    gain = np.log(given / turned)
    if max(backwards.values()) > 0.25 or gain.mean() > 3 * gain.std() / math.sqrt(len(gain)) + 0.05:
        evidence = f"in {max(backwards.values()):.0%} of two neighbouring slots the older item comes first"
        hits = f"{(given <= 10).mean():.3f}, with the histories reversed {(turned <= 10).mean():.3f}"
        yield "history_reversed", f"{evidence}, expected none; validation Hit@10 {hits}"


def _reversed(batch: Batch) -> Batch:
    history = batch["history"].flip(1)
    padding_last = (history == PADDING).int().argsort(dim=1, stable=True)
    return {**batch, "history": history.gather(1, padding_last)}


def _vectors(model: DSSM, vectors: dict[str, Tensor], given_scores: Tensor | None) -> Measured:
    if given_scores is not None:
        own, given = (_exact(scores) for scores in (model.logits(*vectors.values()), given_scores[:, FIRST:]))
        scored = given.isfinite()
        agreement = float(torch.stack([own[scored], given[scored]]).corrcoef()[0, 1])
        if not (agreement >= 0.9 and scored.any(dim=0).all()):
            # Users · items: scores made of the model's item vectors lie in the space these span, whatever the users.
            rows, items = given.where(scored, 0), _exact(vectors["item"])
            rows, space = rows - rows.mean(dim=1, keepdim=True), torch.linalg.qr(items - items.mean(dim=0)).Q
            explained = float((rows @ space).square().sum() / rows.square().sum())
            shown = f"{scored.any(dim=0).sum()} of {len(own.T)} items have scores; these correlate {agreement:+.2f}"
            yield "scorer_misaligned", f"{shown} with the model's own; its item vectors explain {explained:.0%} of them"
    shown = []
    for side, rows in vectors.items():
        low, high = np.quantile(_exact(rows.norm(dim=1)).numpy(), [0.01, 0.99])
        if max(abs(low - 1), abs(high - 1)) > 0.01 and high > 1e-6:  # zeros: the tower is dead
            shown.append(f"{side} vectors have lengths from {low:.2f} to {high:.2f}")
    if shown:
        yield "not_normalized", f"{' and '.join(shown)}, expected 1"


def _temperature(model: DSSM, vectors: dict[str, Tensor], batch: Batch, config: TrainingConfig | None) -> Measured:
    stated = float(model.temperature)
    with evaluation_mode(model):
        users, items = model.user_tower(batch), model.item_tower(batch)
        scores = {"forward": model(batch), "logits": model.logits(users, items.unsqueeze(1)).squeeze(1)}
        logits = _exact(model.logits(*vectors.values()))  # [n, I - 2]
    dot = _exact((users * items).sum(dim=1))
    # Least squares through the origin: what the dot product is divided by.
    used = {where: float(dot.square().sum() / (_exact(score) * dot).sum()) for where, score in scores.items()}
    wrong = [where for where, by in used.items() if math.isfinite(by) and abs(by / stated - 1) > 0.05]
    if wrong:
        shown = " and ".join(f"in {where} the dot product is divided by {used[where]:.3g}" for where in wrong)
        yield "temperature_ignored", f"temperature={stated:g}, but {shown}"
    scale = used["logits"] if math.isfinite(used["logits"]) and used["logits"] > 0 else stated
    log_p = logits.log_softmax(dim=1)
    width, n_items = float((-(log_p.exp() * log_p).sum(dim=1)).exp().median()), logits.shape[1]
    shown = (
        f"temperature {scale:.3g}; a user's cosines spread by ±{scale * float(logits.std(dim=1).mean()):.2f}; the "
        f"softmax over all items is as wide as an even one over {width:,.0f} of {n_items:,}"
    )
    if scale > 0.4:
        n = config.batch_size if config and config.objective == "in_batch" else n_items
        floor = math.log1p((n - 1) * math.exp(-2 / scale))
        limit = f"over {n:,} candidates the loss cannot fall below {floor:.2f} (chance {math.log(n):.2f})"
        yield "temperature_too_large", f"{shown}; {limit}"
    elif scale < 0.02:
        yield "temperature_too_small", shown


def _one_step(model: DSSM, batch: Batch, config: TrainingConfig) -> tuple[float, float, dict[str, float]]:
    """One optimizer step on a copy: loss of the batch before and after (1: chance), gradient of each tower's layers."""
    model, rows = copy.deepcopy(model).eval(), {name: value[:512] for name, value in batch.items()}

    def loss() -> Tensor:
        logits = model.logits(model.user_tower(rows), model.item_tower(rows))
        return in_batch_loss(logits, rows["item_id"]) / math.log(len(logits))

    optimizer, before = adamw(model, config), loss()
    optimizer.zero_grad()
    if before.requires_grad:
        before.backward()
    layers = {"user": model.user_tower.mlp, "item": model.item_tower.mlp}
    # Clipping at infinity clips nothing, and returns the length.
    gradients = {s: float(nn.utils.clip_grad_norm_(mlp.parameters(), math.inf)) for s, mlp in layers.items()}
    optimizer.step()
    return before.item(), loss().item(), gradients


def _steps(model: DSSM, step: list[float], config: TrainingConfig, losses: pd.Series, chance: float) -> Measured:
    """Steps that overshoot: seen in the curve, in the size of the weights, and in one step taken on a copy."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    size = max(float(m.weight.detach().square().mean().sqrt()) * math.sqrt(3 * m.in_features) for m in layers)
    weights = f"the layers' weights are {size:.2g} times the size they start with"
    rate, decay, (before, after), signs = config.learning_rate, config.weight_decay, step, []
    if decay > 1 and size < 0.5:
        yield "weight_decay_too_high", f"weight decay {decay:g} takes {rate * decay:.1%} off each step; {weights}"
        return  # and its steps overshoot, because the weights are small
    if losses.max() > 1.05 * chance:
        signs.append(f"the loss reached {losses.max():.2f}, chance is {chance:.2f}")
    if rate > 0.02 and len(losses) and losses.iloc[-1] > 1.05 * losses.min():
        signs.append(f"the loss rose again from {losses.min():.2f} to {losses.iloc[-1]:.2f}")
    if rate > 0.02 and size > 5:
        signs.append(weights)
    # At a very small temperature every step overshoots, and the temperature is the cause.
    if after > max(0.5, 1.02 * before) and model.temperature >= 0.02:
        signs.append(f"one more step moves the loss of its own batch from {before:.0%} to {after:.0%} of chance")
    if signs:
        yield "learning_rate_too_high", f"learning rate {rate:g}: {'; '.join(signs)}"


def _towers(model: DSSM, vectors: dict[str, Tensor], gradients: dict[str, float]) -> Measured:
    spread = {side: float(_exact(rows).std(dim=0, correction=0).norm()) for side, rows in vectors.items()}
    dead = [side for side in vectors if spread[side] < 1e-3 or gradients[side] < 1e-12]
    if dead:
        shown = [
            f"{side} tower: standard deviation {spread[side]:.2g}, gradient {gradients[side]:.2g}" for side in dead
        ]
        yield "dead_tower", "; ".join(shown)
    elif model.temperature >= 0.02:  # a smaller one keeps cosines close together, and is named already
        # The length of the mean of unit vectors, squared, is the mean of the cosines of all pairs.
        means = {side: nn.functional.normalize(_exact(rows), dim=1).mean(dim=0) for side, rows in vectors.items()}
        cosines = {side: float(mean.square().sum()) for side, mean in means.items()}
        shown = [f"two {side} vectors have a cosine of {c:.3f} on average" for side, c in cosines.items() if c > 0.9]
        if shown:
            yield "collapsed_vectors", "; ".join(shown)
    if not dead and (lowest := min(float(rows.min()) for rows in vectors.values())) >= 0:
        yield "never_negative", f"the smallest number in any vector is {lowest:g}"


def _losses(losses: pd.Series, initial_loss: float | None, chance: float | None) -> Measured:
    if len(losses):
        first, last = losses.iloc[0], losses.iloc[-1]
        if (len(losses) > 1 and last > 0.99 * first) or (chance is not None and last > 0.98 * chance):
            level = "" if chance is None else f"; chance is {chance:.3f}"
            yield "loss_not_moving", f"loss {first:.3f} in the first epoch, {last:.3f} in the last{level}"
    if initial_loss is not None and chance is not None and not abs(initial_loss - chance) <= 0.1 * chance:
        alike = f"a model that scores everything alike has {chance:.3f}"
        yield "initial_loss_off", f"the first step's loss is {initial_loss:.3f}; {alike}"


def _popularity(counts: np.ndarray, top: np.ndarray, taken: np.ndarray, config: TrainingConfig | None) -> Measured:
    recommended, watched = (np.expm1(np.log1p(counts[items]).mean()) for items in (top, taken))
    shown = f"recommended items have {recommended:.0f} interactions (geometric mean), those taken next {watched:.0f}"
    in_batch = config is not None and config.objective == "in_batch"
    if in_batch and not config.logq:
        yield "no_logq", f"logq=0; {shown}"
    if in_batch and not config.mask_accidental_hits:
        p = counts / counts.sum()
        share = p @ (1 - (1 - p) ** (config.batch_size - 1))
        yield "accidental_hits", f"{share:.0%} of a batch's rows meet their own item among the negatives"
    shown += f"; the top 10 lists cover {len(np.unique(top)) / (len(counts) - FIRST):.0%} of the catalogue"
    popular = np.isin(top, np.argsort(-counts, kind="stable")[:20]).mean()
    punished = config is None or (not config.logq if in_batch else config.sampler != "uniform")
    if popular > 0.6:
        yield "only_popular", f"{shown}; {popular:.0%} of the places go to the 20 most popular items"
    elif recommended < 0.5 * watched and punished:
        yield "too_unpopular", shown


def _seen(data: EncodedData, validation: np.ndarray, recommend: Recommend | None) -> Measured:
    if recommend is None:
        return
    items = np.asarray(recommend(validation))
    if items.ndim != 2 or len(items) != len(validation):
        raise ValueError(f"recommend returned shape {items.shape}, expected ({len(validation)}, k) item indices")
    seen = np.zeros((len(items), data.n_items), dtype=bool)
    seen[seen_before(data, validation)] = True
    share = np.take_along_axis(seen, items, axis=1).mean()
    if share > 0:
        hit = (items == data.item[validation][:, None]).any(axis=1).mean()
        places = f"{share:.0%} of the recommended places are items the user had before"
        yield "seen_not_removed", f"{places}; Hit@{items.shape[1]} as shown {hit:.3f}"


def _outcome(
    data: EncodedData, split: Split, train: np.ndarray, validation: np.ndarray, scorer: Scorer, curve: pd.DataFrame
) -> Measured:
    scorers = ((scorer, train), (scorer, validation), (Popularity(data, split.train), validation))
    known, hits, popular = (rank_targets(by, data, positions) <= 10 for by, positions in scorers)
    shown, name = f"Hit@10 {known.mean():.3f} on training rows, {hits.mean():.3f} on validation", "train_validation_gap"
    if "hit@10" in curve and len(curve) > 2:
        best, last = curve["hit@10"].max(), curve["hit@10"].iloc[-1]
        shown += f"; best epoch {curve['hit@10'].argmax() + 1} of {len(curve)} with {best:.3f}, the last {last:.3f}"
        if best - last > 2 * math.sqrt(best * (1 - best) / len(split.validation)):
            name = "overfitted"
    yield name, shown
    if "hit@10" in curve:  # the model is that of the best epoch or of the last
        told = min(curve["hit@10"].max(), curve["hit@10"].iloc[-1], key=lambda figure: abs(figure - hits.mean()))
        left = 1 - len(hits) / len(split.validation)  # of nothing, the two are one figure
        if abs(told - hits.mean()) > 3 * math.sqrt(left * told * (1 - told) / len(hits)) + 0.02:
            yield "figure_differs", f"validation Hit@10 {hits.mean():.3f}; the learning curve says {told:.3f}"
    chance = 10 / (data.n_items - FIRST - len(seen_before(data, validation)[0]) / len(hits))
    shown = f"validation Hit@10 {hits.mean():.3f}, popularity {popular.mean():.3f}, chance {chance:.3f}"
    name = "recall"
    if hits.mean() < chance + 2 * math.sqrt(chance * (1 - chance) / len(hits)):
        name = "recall_at_chance"
    elif hits.mean() < popular.mean() - 2 * np.std(hits.astype(float) - popular) / math.sqrt(len(hits)):
        name = "below_popularity"
    yield name, f"{shown} ({len(hits):,} users)"
