"""Take a run whose recall is low and name the likely cause (notebook 10, "My recall is low").

Every check measures something on the run itself: its batches, its vectors, its scores, its curve. What was not given
is not looked at, and the report says so. Causes come before their symptoms: a misaligned batch also gives a recall at
chance, and it is the batch that has to be mended.
"""

from __future__ import annotations

import copy
import math
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .data import Split, split_by_time
from .evaluation import (
    Popularity,
    Scorer,
    TwoTowerScorer,
    candidate_scores,
    chance_level,
    rank_targets,
    seen_before,
)
from .features import Batch, BatchBuilder
from .model import DSSM
from .training import TrainingConfig, in_batch_loss, loss_at_chance
from .vocabulary import FIRST, PADDING

SEVERITIES = ("critical", "warning", "note")

Recommend = Callable[[np.ndarray], np.ndarray]
"""Positions ``[B]`` → recommended movie indices ``[B, k]``, as the user would see them."""


@dataclass(frozen=True)
class Finding:
    """One thing that is, or may be, wrong.

    Attributes:
        name: short and fixed, for programs: ``"no_logq"``.
        severity: ``critical``: the figures mean nothing until it is mended. ``warning``: it costs recall. ``note``:
            worth knowing.
        evidence: what was measured, in a sentence with the numbers.
        cause: the likely cause. remedy: what to do. section: where the course explains it.
    """

    name: str
    severity: str
    evidence: str
    cause: str
    remedy: str
    section: str


class Diagnosis(list[Finding]):
    """Findings, the most likely cause first. ``print`` it, or leave it as a notebook cell's last line.

    Attributes:
        unchecked: what could not be looked at, and the argument that would allow it.
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
            parts = (("measured", finding.evidence), ("cause", finding.cause), ("do", finding.remedy))
            for title, text in (*parts, ("read", finding.section)):
                lines += textwrap.wrap(
                    text, 100, initial_indent=f"   {title:<9}", subsequent_indent=" " * 12, break_long_words=False
                )
        if self.unchecked:
            lines += textwrap.wrap(f"Not looked at: {'; '.join(self.unchecked)}.", 100)
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_markdown_(self) -> str:
        rows = ["| | finding | measured | likely cause | what to do | read |", "|---|---|---|---|---|---|"]
        for finding in self:
            cells = (finding.evidence, finding.cause, finding.remedy, finding.section)
            text = " | ".join(cell.replace("|", "\\|") for cell in cells)
            rows.append(f"| {finding.severity} | **{finding.name}** | {text} |")
        head = "**Nothing above a note.**\n\n" if self.healthy else ""
        tail = f"\n\nNot looked at: {'; '.join(self.unchecked)}." if self.unchecked else ""
        return head + "\n".join(rows) + tail


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
    """Look over a run and say what is likely wrong with it (notebook 10, "My recall is low").

    Only the model and the batches are needed; everything else lets more be looked at. Nothing is changed: the model
    keeps its weights, its gradients and its mode.

    Args:
        model: anything with ``user_tower(batch)``, ``item_tower(batch)``, ``temperature`` and ``forward(batch)``.
        batches: what formed the training batches; its ``data`` says what they should contain.
        split: train, validation and test positions; default :func:`~dssm_helpers.data.split_by_time`.
        config: how the model was trained.
        history: ``trainer.history``, one row per epoch with at least ``loss``.
        labels: ``[n]`` what the loss was told, 1 for a positive (point-wise training only).
        scorer: what ranks the movies in the evaluation; default the model's own vectors, exactly.
        recommend: what is shown to users; default nothing is checked for movies they have already seen.
        initial_loss: of the very first step, before any training.
        sample: how many training and how many validation rows to look at.
        seed: for that sample.

    Returns:
        Findings, most likely cause first. A healthy run gives nothing above ``note``.
    """
    frame = None if history is None else pd.DataFrame(history)
    run = _Run(model, batches, split or split_by_time(batches.data), config, frame, labels, scorer, recommend,
               initial_loss, sample, seed)  # fmt: skip
    found: list[Finding] = []
    for check in CHECKS:
        found += check(run)
        if run.broken:
            break
    if {"dead_tower", "temperature_too_small"} & {finding.name for finding in found}:  # the cause is named already
        found = [finding for finding in found if finding.name != "collapsed_vectors"]
    found.sort(key=lambda finding: SEVERITIES.index(finding.severity))  # stable: within a severity, causes come first
    return Diagnosis(found, run.unchecked())


# --------------------------------------------------------------------------------------------------------------------
# What is measured
# --------------------------------------------------------------------------------------------------------------------


@dataclass
class _Run:
    """A run and what can be measured on it, each measurement made once and only when a check asks."""

    model: DSSM
    batches: BatchBuilder
    split: Split
    config: TrainingConfig | None
    history: pd.DataFrame | None
    labels: np.ndarray | Tensor | None
    given_scorer: Scorer | None
    recommend: Recommend | None
    initial_loss: float | None
    sample: int
    seed: int
    broken: bool = field(default=False, init=False)  # not finite: nothing further can be measured

    def __post_init__(self) -> None:
        generator = np.random.default_rng(self.seed)

        def some(positions: np.ndarray) -> np.ndarray:
            if len(positions) == 0:
                raise ValueError("diagnose needs at least one training and one validation position")
            return np.sort(generator.choice(positions, min(self.sample, len(positions)), replace=False))

        self.data = self.batches.data
        self.train, self.validation = some(self.split.train), some(self.split.validation)
        self.counts = self.data.item_counts(self.split.train)

    def unchecked(self) -> list[str]:
        given = {"the labels (labels=)": self.labels, "the objective and learning rate (config=)": self.config,
                 "the learning curve (history=)": self.history, "movies already seen (recommend=)": self.recommend,
                 "the loss at the start (initial_loss=)": self.initial_loss}  # fmt: skip
        return [what for what, value in given.items() if value is None]

    def of(self, tower: torch.nn.Module, batch: Batch) -> Tensor:
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                return tower(batch)
        finally:
            self.model.train(was_training)

    @cached_property
    def batch(self) -> Batch:
        return self.batches(self.train)

    @cached_property
    def held_out(self) -> Batch:
        return self.batches(self.validation)

    @cached_property
    def items(self) -> Tensor:
        return self.of(self.model.item_tower, self.batches.all_items())[FIRST:]  # [I - 2, D]

    @cached_property
    def users(self) -> Tensor:
        return self.of(self.model.user_tower, self.batches.users(self.validation))  # [n, D]

    @cached_property
    def scorer(self) -> Scorer:
        return self.given_scorer or TwoTowerScorer(self.model, self.batches)

    @cached_property
    def hits(self) -> np.ndarray:
        """Hit@10 of every validation row."""
        return rank_targets(self.scorer, self.data, self.validation) <= 10

    @cached_property
    def train_hits(self) -> np.ndarray:
        return rank_targets(self.scorer, self.data, self.train) <= 10

    @cached_property
    def popularity_hits(self) -> np.ndarray:
        return rank_targets(Popularity(self.data, self.split.train), self.data, self.validation) <= 10

    @cached_property
    def top(self) -> np.ndarray:
        """The first 10 candidates of every validation row, ``[n, 10]``."""
        return candidate_scores(self.scorer, self.data, self.validation).topk(10, dim=1).indices.cpu().numpy()

    @cached_property
    def chance_loss(self) -> float:
        return loss_at_chance(self.config, self.counts)

    @cached_property
    def losses(self) -> np.ndarray:
        """Per epoch; empty where there is no history, or training ended before its first epoch did."""
        known = self.history is not None and "loss" in self.history
        return self.history["loss"].to_numpy(dtype=float) if known else np.array([])

    @cached_property
    def one_step(self) -> tuple[float, float]:
        """Loss of one batch before and after a single AdamW step on that very batch, on a copy of the model."""
        model, rows = copy.deepcopy(self.model).eval(), {name: value[:512] for name, value in self.batch.items()}
        optimizer = torch.optim.AdamW(model.parameters(), lr=self.config.learning_rate)
        losses = []
        for _ in range(2):
            logits = model.user_tower(rows) @ model.item_tower(rows).T / model.temperature
            loss = in_batch_loss(logits, rows["movie_id"])
            losses.append(float(loss.detach()))
            if loss.requires_grad and len(losses) == 1:
                loss.backward()
                optimizer.step()
        return losses[0], losses[1]


# --------------------------------------------------------------------------------------------------------------------
# Checks, causes before symptoms
# --------------------------------------------------------------------------------------------------------------------


def _labels(run: _Run) -> Iterator[Finding]:
    if run.labels is None:
        return
    labels = np.asarray(run.labels).ravel()
    positive = float((labels > 0).mean())
    if positive in (0.0, 1.0):
        yield Finding(
            "labels_all_alike", "critical",
            f"{len(labels):,} labels, {positive:.0%} of them positive",
            "there are no negatives: scoring everything high makes the loss perfect and ranks nothing",
            "draw negatives (NegativeSampler), or use the in-batch softmax, which needs no labels",
            '04 · Training, "Break it: only positives"',
        )  # fmt: skip


def _padding(run: _Run) -> Iterator[Finding]:
    data = run.data
    used = {"the movies of the ratings": (data.item == PADDING).mean(), "the users": (data.user == PADDING).mean()}
    columns = {**data.user_columns, **data.item_columns}
    for name, column in columns.items():
        first = column[FIRST:, 0] if column.ndim > 1 else column[FIRST:]
        used[name] = (first == PADDING).mean()
    shares = {name: float(share) for name, share in used.items() if share > 0}
    history = run.held_out["history"]
    holes = float(((history[:, :-1] == PADDING) & (history[:, 1:] != PADDING)).any(dim=1).float().mean())
    if holes:
        shares["histories with a 0 before a movie"] = holes
    if shares:
        yield Finding(
            "padding_is_a_real_id", "critical",
            f"index {PADDING} means padding and is also used by: "
            + ", ".join(f"{name} ({share:.2%})" for name, share in shares.items()),
            "ids were encoded from 0, so a real value shares the index that the masks hide and no gradient reaches",
            f"encode real values from {FIRST} (Vocabulary does), 0 for padding, 1 for unknown",
            '01 · Data preparation, "Ids become indices"',
        )  # fmt: skip
    embedding = getattr(run.model.item_tower, "embedding", None)
    table = embedding.tables["movie_id"].weight if embedding and "movie_id" in embedding.tables else None
    size = 0.0 if table is None else float(table[PADDING].detach().norm())
    if size > 0:
        yield Finding(
            "padding_row_trained", "warning",
            f"the embedding of index {PADDING} has length {size:.3f}, expected 0",
            "the table was made without padding_idx, so padding learns and leaks into what is not masked",
            "nn.Embedding(..., padding_idx=0), and set row 0 to zeros after any initialisation of your own",
            '02 · Features and batches, "An embedding is a row of a table"',
        )  # fmt: skip


def _split(run: _Run) -> Iterator[Finding]:
    data, split = run.data, run.split
    parts = [split.train, split.validation, split.test]
    shared = sum(len(part) for part in parts) - len(np.unique(np.concatenate(parts)))
    held_out = np.full(data.n_users, np.iinfo(np.int64).max)
    np.minimum.at(held_out, data.user[split.validation], data.timestamp[split.validation])
    later = float((data.timestamp[split.train] > held_out[data.user[split.train]]).mean())
    if shared or later:
        yield Finding(
            "split_leaks", "critical",
            f"{shared:,} positions are in two parts of the split; {later:.1%} of the training rows are later than "
            "their user's validation row",
            "the split was drawn at random instead of by time: the model is trained on what it is tested on",
            "split_by_time: per user the last is the test, the one before the validation",
            '01 · Data preparation, "What a random split does"',
        )  # fmt: skip


def _alignment(run: _Run) -> Iterator[Finding]:
    data, positions = run.data, run.train
    item = torch.from_numpy(data.item[positions].astype(np.int64))
    user = torch.from_numpy(data.user[positions].astype(np.int64))
    wrong = {}
    # The vocabulary index of a movie is its row, so these columns name the row they came from.
    if "movie_id" in run.batch:
        wrong["movie"] = float((run.batch["movie_id"].cpu() != item).float().mean())
    if "user_id" in run.batch:
        wrong["user"] = float((run.batch["user_id"].cpu() != user).float().mean())
    wrong = {side: share for side, share in wrong.items() if share}
    if wrong:
        yield Finding(
            "rows_misaligned", "critical",
            " and ".join(f"{share:.0%} of a batch's rows hold another {side}" for side, share in wrong.items())
            + " than the rating they stand for",
            "the user side and the item side were shuffled, sorted or filtered separately, so users are paired with "
            "somebody else's movie",
            "form both sides from one array of positions: batches(positions)",
            '02 · Features and batches, "Forming a batch by arithmetic"',
        )  # fmt: skip
    if run.given_scorer is None or not torch.isfinite(run.items).all():
        return
    ours = run.users @ run.items.T
    theirs = torch.as_tensor(run.scorer(run.validation)).to(ours.device)[:, FIRST:].float()
    agreement = _correlation(ours, theirs)
    if agreement < 0.9:
        yield Finding(
            "scorer_misaligned", "critical",
            f"the scorer's scores correlate {agreement:+.2f} with the model's own, expected about 1",
            "its item vectors are in another order than the movie indices, or come from another model",
            "rebuild the item vectors from this model with row = movie index, or map rows to ids explicitly",
            '06 · ANN retrieval, "Break it"',
        )  # fmt: skip


def _correlation(a: Tensor, b: Tensor) -> float:
    a, b = a.double() - a.double().mean(), b.double() - b.double().mean()
    return float((a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-12))


def _history_leak(run: _Run) -> Iterator[Finding]:
    data = run.data
    leaks, targets = [], []
    for positions in (run.train, run.validation):
        history = run.batches.users(positions)["history"].cpu().numpy()  # [n, L]
        rows, items = seen_before(data, positions)
        earlier = np.zeros((len(positions), data.n_items), dtype=bool)
        earlier[rows, items] = True
        foreign = (history != PADDING) & ~np.take_along_axis(earlier, history, axis=1)
        leaks.append(foreign.any(axis=1).mean())
        targets.append((history == data.item[positions][:, None]).any(axis=1).mean())
    if max(leaks) > 0:
        yield Finding(
            "future_in_history", "critical",
            f"{leaks[0]:.0%} of the training and {leaks[1]:.0%} of the validation histories hold movies rated at or "
            f"after the target; the target itself is in {targets[0]:.0%} and {targets[1]:.0%}",
            "the history was cut one place too late, or taken from all of the user's ratings; at serving time the "
            "future is missing and the recall with it",
            "a history ends just before its target: data.history(position), batches.users(positions)",
            '01 · Data preparation, "One flat array, and a history is a slice"',
        )  # fmt: skip


def _finite(run: _Run) -> Iterator[Finding]:
    bad = [name for name, value in run.model.named_parameters() if not torch.isfinite(value).all()]
    nan_loss = len(run.losses) > 0 and not np.isfinite(run.losses).all()
    if not bad and not nan_loss:
        return
    rate = f" at a learning rate of {run.config.learning_rate:g}" if run.config else ""
    yield Finding(
        "diverged", "critical",
        f"{len(bad)} weight tables hold NaN or infinity{rate}; last losses {np.round(run.losses[-3:], 3).tolist()}",
        "the learning rate is too high (or the temperature too small) and a step overshot",
        "divide the learning rate by 10 and train from the start; a warm-up (schedule='one_cycle') helps",
        '04 · Training, "Break it, one thing at a time"',
    )  # fmt: skip
    run.broken = bool(bad)


def _normalisation(run: _Run) -> Iterator[Finding]:
    for side, vectors in (("user", run.users), ("item", run.items)):
        norm = vectors.norm(dim=1)
        if float(norm.max()) < 1e-6:  # zeros: the tower is dead, and _dead says so
            continue
        low, high = (
            float(q) for q in torch.quantile(norm.double(), torch.tensor([0.01, 0.99]).double().to(norm.device))
        )
        if max(abs(low - 1), abs(high - 1)) > 0.01:
            yield Finding(
                "not_normalized", "critical",
                f"{side} vectors have lengths from {low:.2f} to {high:.2f}, expected 1",
                "without L2 normalisation the score is no cosine: long vectors win for everybody, and the temperature "
                "has no fixed meaning",
                "F.normalize(vector, dim=-1) as the last step of both towers, in training and in the index",
                '03 · Two towers, "Without normalisation"',
            )  # fmt: skip


def _temperature(run: _Run) -> Iterator[Finding]:
    stated = float(run.model.temperature)
    cosine = (run.of(run.model.user_tower, run.batch) * run.of(run.model.item_tower, run.batch)).sum(dim=-1).double()
    score = run.of(run.model, run.batch).double()
    used = float((cosine * cosine).sum() / (score * cosine).sum())  # least squares through the origin
    if math.isfinite(used) and abs(used / stated - 1) > 0.05:
        yield Finding(
            "temperature_ignored", "critical",
            f"temperature={stated:g}, but scores are the dot product divided by {used:.3g}",
            "the argument is stored and never used (or used twice): cosines between -1 and 1 go into the softmax as "
            "they are, which cannot tell one movie from hundreds",
            "divide the cosine by self.temperature in exactly one place, in the loss and nowhere else",
            '03 · Two towers, "Temperature"',
        )  # fmt: skip
    scale = used if math.isfinite(used) and used > 0 else stated
    candidates = run.users @ run.items.T / scale  # [n, I - 2]
    log_p = candidates.double().log_softmax(dim=1)
    effective = float((-(log_p.exp() * log_p).sum(dim=1)).exp().median())
    spread = float((candidates * scale).std(dim=1).mean())
    shown = (
        f"temperature {scale:.3g}; a user's cosines spread by ±{spread:.2f}; the softmax over all movies is as wide as "
        f"an even one over {effective:,.0f} of {candidates.shape[1]:,}"
    )
    if scale > 0.4:
        n = run.config.batch_size if run.config and run.config.objective == "in_batch" else candidates.shape[1]
        floor = math.log1p((n - 1) * math.exp(-2 / scale))
        yield Finding(
            "temperature_too_large", "warning",
            f"{shown}; over {n:,} candidates the loss cannot fall below {floor:.2f} (chance {math.log(n):.2f})",
            "cosines span 2 at most, and divided by so much they cannot favour one movie over hundreds",
            "try 0.05 to 0.2, chosen on validation",
            '03 · Two towers, "Temperature"',
        )  # fmt: skip
    elif scale < 0.02:
        yield Finding(
            "temperature_too_small", "note", shown,
            "the softmax is nearly a maximum: one or two negatives per row give all the gradient, and all cosines stay "
            "close together, which a rounded (int8, product-quantised) index cannot afford",
            "try 0.05 to 0.2, chosen on validation",
            '03 · Two towers, "Temperature"',
        )  # fmt: skip


def _learning_rate(run: _Run) -> Iterator[Finding]:
    """Steps that overshoot: seen in the curve, in the size of the weights, and in one step taken on a copy."""
    if run.config is None:
        return
    rate, losses, signs = run.config.learning_rate, run.losses, []
    severity = "warning"
    if len(losses) and losses.max() > 1.05 * run.chance_loss:
        signs.append(f"the loss reached {losses.max():.2f}, chance is {run.chance_loss:.2f}")
    if len(losses) and rate > 0.02 and losses[-1] > 1.05 * losses.min():
        signs.append(f"the loss rose again from {losses.min():.2f} to {losses[-1]:.2f}")
    growth = _weight_growth(run.model)
    if rate > 0.02 and growth > 5:
        signs.append(f"the layers' weights are {growth:.0f} times the size they start with")
    if signs:
        severity = (
            "critical"  # it has happened; what follows says that it may, and a decaying schedule may have healed it
        )
    if run.model.temperature >= 0.02:  # below, every step overshoots, and the temperature is the cause
        before, after = run.one_step
        if after > 1.02 * before and after > 0.5 * math.log(min(512, len(run.train))):
            signs.append(f"one more step moves the loss of its own batch from {before:.2f} to {after:.2f}")
    if signs:
        yield Finding(
            "learning_rate_too_high", severity,
            f"learning rate {rate:g}: {'; '.join(signs)}",
            "steps are longer than the slope they follow is straight, so a step in the right direction ends higher up",
            "divide the learning rate by 10 until the loss falls in every epoch; deeper towers want smaller rates",
            '04 · Training, "Break it, one thing at a time"',
        )  # fmt: skip


def _weight_growth(model: torch.nn.Module) -> float:
    """Largest size of a linear layer's weights, in units of what they are initialised with."""
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    return max(
        (float(m.weight.detach().pow(2).mean().sqrt()) * math.sqrt(3 * m.in_features) for m in layers), default=0
    )


def _learning_curve(run: _Run) -> Iterator[Finding]:
    losses = run.losses
    if len(losses) == 0 or not np.isfinite(losses).all():
        return
    at_chance = run.config is not None and losses[-1] > 0.98 * run.chance_loss
    if at_chance or (len(losses) > 1 and losses[-1] > 0.99 * losses[0]):
        chance = f"; chance is {run.chance_loss:.3f}" if run.config else ""
        yield Finding(
            "loss_not_moving", "critical",
            f"loss {losses[0]:.3f} in the first epoch, {losses[-1]:.3f} in the last{chance}",
            "no gradient arrives (detached, frozen, a dead tower), the learning rate is far too small, or the rows "
            "do not belong together",
            "overfit a single batch first: a sound model drives its loss far below chance",
            '04 · Training, "The loop"',
        )  # fmt: skip


def _initial_loss(run: _Run) -> Iterator[Finding]:
    if run.initial_loss is None or run.config is None:
        return
    if not abs(run.initial_loss - run.chance_loss) <= 0.1 * run.chance_loss:
        yield Finding(
            "initial_loss_off", "warning",
            f"the first step's loss is {run.initial_loss:.3f}; a model that scores everything alike has "
            f"{run.chance_loss:.3f}",
            "the loss is not the one you think (another reduction, labels or rows mixed up), or untrained scores are "
            "far from equal (no normalisation, a large initialisation)",
            "compute the expected value with loss_at_chance(config, counts) before the first long run",
            '04 · Training, "The loss before the first step"',
        )  # fmt: skip


def _dead(run: _Run) -> Iterator[Finding]:
    gradients, shown = _tower_gradients(run), []
    for side, vectors in (("user", run.users), ("item", run.items)):
        spread = float(vectors.double().std(dim=0, correction=0).norm())
        if spread < 1e-3 or gradients[side] < 1e-12:
            shown.append(f"{side} tower: standard deviation {spread:.2g}, gradient {gradients[side]:.2g}")
    if shown:
        yield Finding(
            "dead_tower", "critical",
            "; ".join(shown),
            "the tower gives everybody the same vector or receives no gradient: zero or saturated units, a detach(), "
            "frozen weights, an input that never changes",
            "print each layer's output and gradient for two different rows; PReLU cannot die as ReLU can",
            '03 · Two towers, "From a batch to a vector"',
        )  # fmt: skip


def _tower_gradients(run: _Run) -> dict[str, float]:
    """Length of the gradient each tower's own layers get from one batch of the in-batch loss."""
    model = copy.deepcopy(run.model).eval()
    rows = {name: value[:256] for name, value in run.batch.items()}
    users, items = model.user_tower(rows), model.item_tower(rows)
    if len(users) < 2 or not (users.requires_grad or items.requires_grad):
        return {"user": 0.0, "item": 0.0} if len(users) > 1 else {"user": math.inf, "item": math.inf}
    model.zero_grad(set_to_none=True)
    in_batch_loss(users @ items.T / model.temperature, rows["movie_id"]).backward()
    sizes = {}
    for side, tower in (("user", model.user_tower), ("item", model.item_tower)):
        layers = getattr(tower, "mlp", tower)
        sizes[side] = math.sqrt(sum(float(p.grad.pow(2).sum()) for p in layers.parameters() if p.grad is not None))
    return sizes


def _collapsed(run: _Run) -> Iterator[Finding]:
    shown = []
    for side, vectors in (("user", run.users), ("item", run.items)):
        unit = torch.nn.functional.normalize(vectors.double(), dim=1)
        cosine = float(unit.mean(dim=0).pow(2).sum())  # the mean over all pairs
        if cosine > 0.9:
            shown.append(f"two {side} vectors have a cosine of {cosine:.3f} on average")
    if shown:
        yield Finding(
            "collapsed_vectors", "critical",
            "; ".join(shown),
            "all vectors point the same way: the model is hardly trained, or nothing pushes them apart (no negatives)",
            "check that the loss has negatives and that it falls below chance",
            '03 · Two towers, "What does an untrained model know?"',
        )  # fmt: skip


def _objective(run: _Run) -> Iterator[Finding]:
    if run.config is None or run.config.objective != "in_batch":
        return
    recommended, watched = _popularity_of(run)
    if not run.config.logq:
        yield Finding(
            "no_logq", "warning",
            f"logq=False; recommended movies have {recommended:.0f} ratings (geometric mean), those watched next "
            f"{watched:.0f}",
            "a popular movie is in many batches and so is a negative more often than others: without the correction "
            "it is pushed down for being popular",
            "TrainingConfig(logq=True): subtract log P(movie is in the batch) from its logit",
            '04 · Training, "In-batch softmax"',
        )  # fmt: skip
    if not run.config.mask_accidental_hits:
        rows = torch.from_numpy(np.random.default_rng(run.seed).choice(run.split.train, run.config.batch_size))
        items = run.data.item[rows.numpy()]
        share = float((np.bincount(items)[items] > 1).mean())
        yield Finding(
            "accidental_hits", "warning",
            f"mask_accidental_hits=False; {share:.0%} of a batch's rows meet their own movie among the negatives",
            "the same movie is positive and negative of the same row",
            "TrainingConfig(mask_accidental_hits=True)",
            '04 · Training, "In-batch softmax"',
        )  # fmt: skip


def _popularity_of(run: _Run) -> tuple[float, float]:
    """Typical training count of what is recommended and of what is watched next."""
    log_count = np.log1p(run.counts)
    watched = log_count[run.data.item[run.validation]].mean()
    return float(np.expm1(log_count[run.top].mean())), float(np.expm1(watched))


def _seen(run: _Run) -> Iterator[Finding]:
    if run.recommend is None:
        return
    shown = np.asarray(run.recommend(run.validation))
    if shown.ndim != 2 or len(shown) != len(run.validation):
        raise ValueError(f"recommend returned shape {shown.shape}, expected ({len(run.validation)}, k) movie indices")
    rows, items = seen_before(run.data, run.validation)
    seen = np.zeros((len(shown), run.data.n_items), dtype=bool)
    seen[rows, items] = True
    share = float(np.take_along_axis(seen, shown, axis=1).mean())
    hit = float((shown == run.data.item[run.validation][:, None]).any(axis=1).mean())
    if share > 0:
        yield Finding(
            "seen_not_removed", "critical",
            f"{share:.0%} of the recommended places are movies the user had rated; Hit@{shown.shape[1]} is {hit:.3f} "
            f"as shown and {run.hits.mean():.3f} (Hit@10) with them removed",
            "history and target share an embedding table, so what was watched scores highest",
            "remove them before cutting to k: top_k(remove_seen=True), index.search(exclude=history)",
            '05 · Evaluation, "Full ranking, step by step"',
        )  # fmt: skip


def _popularity_bias(run: _Run) -> Iterator[Finding]:
    recommended, watched = _popularity_of(run)
    covered = len(np.unique(run.top)) / (run.data.n_items - FIRST)
    shown = (
        f"recommended movies have {recommended:.0f} ratings (geometric mean), those watched next {watched:.0f}; the "
        f"top 10 lists cover {covered:.0%} of the catalogue"
    )
    most_popular = np.argsort(-run.counts, kind="stable")[:20]
    share = float(np.isin(run.top, most_popular).mean())
    if share > 0.6:
        yield Finding(
            "only_popular", "warning", f"{shown}; {share:.0%} of the places go to the 20 most rated movies",
            "the model has learnt popularity and little of the user: uniform negatives, too few steps, or no history",
            "negatives by popularity or in-batch with logQ; check that the history reaches the user tower",
            '02 · Features and batches, "Where negatives come from"',
        )  # fmt: skip
    elif recommended < 0.5 * watched:
        known = run.config is not None and (run.config.logq or run.config.objective != "in_batch")
        yield Finding(
            "too_unpopular", "note" if known else "warning", shown,
            "popular movies were punished as in-batch negatives (no logQ), or the scores are near random",
            "TrainingConfig(logq=True), or negatives drawn uniformly",
            '02 · Features and batches, "Negatives for free, and their price"',
        )  # fmt: skip


def _gap(run: _Run) -> Iterator[Finding]:
    train, validation = float(run.train_hits.mean()), float(run.hits.mean())
    shown = f"Hit@10 {train:.3f} on training rows, {validation:.3f} on validation"
    if run.history is not None and "hit@10" in run.history and len(run.history) > 2:
        curve = run.history["hit@10"].to_numpy(dtype=float)
        best = int(curve.argmax())
        error = math.sqrt(max(curve[best] * (1 - curve[best]), 1e-9) / len(run.split.validation))
        shown += f"; best epoch {best + 1} of {len(curve)} with {curve[best]:.3f}, the last {curve[-1]:.3f}"
        if curve[best] - curve[-1] > 2 * error:
            yield Finding(
                "overfitted", "warning", shown,
                "the model went on learning its training rows after validation had stopped improving",
                "fewer epochs or patience=2, more dropout, a larger weight decay",
                '04 · Training, "The trainer"',
            )  # fmt: skip
            return
    yield Finding(
        "train_validation_gap", "note", shown,
        "none: a gap alone is no fault; the curve of validation says whether it is too much",
        "nothing while validation still rises",
        '04 · Training, "The trainer"',
    )  # fmt: skip


def _outcome(run: _Run) -> Iterator[Finding]:
    seen = seen_before(run.data, run.validation)[0]
    candidates = run.data.n_items - FIRST - len(seen) / len(run.validation)
    chance = chance_level(max(1, candidates), (10,))["hit@10"]
    ours, popular, n = float(run.hits.mean()), float(run.popularity_hits.mean()), len(run.hits)
    error = float(np.std(run.hits.astype(float) - run.popularity_hits)) / math.sqrt(n)
    shown = f"validation Hit@10 {ours:.3f}, popularity {popular:.3f}, chance {chance:.3f} ({n:,} users)"
    if ours < chance + 2 * math.sqrt(chance * (1 - chance) / n):
        yield Finding(
            "recall_at_chance", "warning", shown,
            "the ranking carries no information: something above, or the vectors of another model",
            "go through the findings above from the top; then overfit a single batch",
            '10 · Tuning and troubleshooting, "My recall is low"',
        )  # fmt: skip
    elif ours < popular - 2 * error:
        yield Finding(
            "below_popularity", "warning", shown,
            "the model knows less than a list of favourites: undertrained, or popularity was trained away",
            "check logQ, the temperature and the number of steps",
            '05 · Evaluation, "Honest baselines"',
        )  # fmt: skip
    else:
        yield Finding(
            "recall", "note", shown, "none: a baseline and chance belong beside every recall",
            "compare with item-kNN and EASE too", '05 · Evaluation, "Honest baselines"',
        )  # fmt: skip


CHECKS = (
    _labels, _padding, _split, _alignment, _history_leak, _finite, _normalisation, _temperature, _learning_rate,
    _dead, _learning_curve, _initial_loss, _collapsed, _objective, _seen, _popularity_bias, _gap, _outcome,
)  # fmt: skip
