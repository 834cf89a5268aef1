"""Take a run whose recall is low and name the likely cause (notebook 10, "My recall is low").

Every check measures something on the run itself: its batches, its vectors, its scores, its curve. What was not given
is not looked at, and the report says so. Causes come before their symptoms: a misaligned batch also gives a recall at
chance, and it is the batch that has to be mended.

A new finding is a row of :data:`TEXTS` and a ``yield _found(name, what was measured)`` in one of :data:`CHECKS`.
"""

from __future__ import annotations

import copy
import html
import math
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from ..data import Split, split_by_time
from ..evaluation import Popularity, Scorer, TwoTowerScorer, candidate_scores, chance_level, evaluate, rank_targets
from ..evaluation import coverage, seen_before
from ..features import Batch, BatchBuilder
from ..model import DSSM, FeatureEmbedding, evaluation_mode
from ..objectives import TrainingConfig, in_batch_loss, loss_at_chance
from ..training import adamw
from ..vocabulary import FIRST, PADDING

SEVERITIES = ("critical", "warning", "note")

Recommend = Callable[[np.ndarray], np.ndarray]
"""Positions ``[B]`` → recommended item indices ``[B, k]``, as the user would see them."""

# fmt: off
TEXTS = {  # name: severity, section, cause, remedy
    "labels_all_alike": ("critical", '04 · Training, "Break it: only positives"',
        "there are no negatives: scoring everything high makes the loss perfect and ranks nothing",
        "draw negatives (NegativeSampler), or use the in-batch softmax, which needs no labels"),
    "padding_is_a_real_id": ("critical", '01 · Data preparation, "Ids become indices"',
        "ids were encoded from 0, so a real value shares the index that the masks hide and no gradient reaches",
        f"encode real values from {FIRST} (Vocabulary does), 0 for padding, 1 for unknown"),
    "padding_row_trained": ("warning", '02 · Features and batches, "An embedding is a row of a table"',
        "the table was made without padding_idx, so padding learns and leaks into what is not masked",
        "nn.Embedding(..., padding_idx=0), and set row 0 to zeros after any initialisation of your own"),
    "split_leaks": ("critical", '01 · Data preparation, "What a random split does"',
        "the split was drawn at random instead of by time: the model is trained on what it is tested on",
        "split_by_time: per user the last is the test, the one before the validation"),
    "rows_misaligned": ("critical", '02 · Features and batches, "Forming a batch by arithmetic"',
        "user side and item side were shuffled, sorted or filtered apart: users are paired with somebody else's item",
        "form both sides from one array of positions: batches(positions)"),
    "columns_of_another_item": ("critical", '02 · Features and batches, "Forming a batch by arithmetic"',
        "the table of a column is sorted, filtered or joined otherwise than the ids: its rows belong to other items",
        "look every column up by the item's index: batches.items(items), and all_items() with row = item index"),
    "history_empty": ("critical", '01 · Data preparation, "One flat array, and a history is a slice"',
        "histories are padding or unknown ids: cut at the wrong end, masked away, or encoded with another vocabulary",
        "compare batches.users(positions)['history'] with data.history(position) for one user"),
    "future_in_history": ("critical", '01 · Data preparation, "One flat array, and a history is a slice"',
        "the history was cut one place too late, or taken from all of the user's ratings; at serving time the future "
        "is missing and the recall with it",
        "a history ends just before its target: data.history(position), batches.users(positions)"),
    "history_reversed": ("critical", '02 · Features and batches, "Forming a batch by arithmetic"',
        "the history runs from old to new (or in no order): weights by slot, learnt or applied, meet the wrong items, "
        "and a feature with a smaller max_length keeps the oldest instead of the newest",
        "slot 0 holds the latest item, in training and in serving: data.history(position)[::-1]"),
    "diverged": ("critical", '04 · Training, "Break it, one thing at a time"',
        "the learning rate is too high (or the temperature too small) and a step overshot",
        "divide the learning rate by 10 and train from the start; a warm-up (schedule='one_cycle') helps"),
    "scorer_misaligned": ("critical", '06 · ANN retrieval, "Break it"',
        "its item vectors are in another order than the item indices, or come from another model",
        "rebuild the item vectors from this model with row = item index, or map rows to ids explicitly"),
    "not_normalized": ("critical", '03 · Two towers, "Without normalisation"',
        "without L2 normalisation the score is no cosine: long vectors win for everybody, and the temperature has no "
        "fixed meaning",
        "F.normalize(vector, dim=-1) as the last step of both towers, in training and in the index"),
    "temperature_ignored": ("critical", '03 · Two towers, "Temperature"',
        "the argument is stored and never used (or used twice): cosines between -1 and 1 go into the softmax as they "
        "are, which cannot tell one item from hundreds",
        "divide the cosine by self.temperature in exactly one place, logits(), and nowhere else"),
    "temperature_too_large": ("warning", '03 · Two towers, "Temperature"',
        "cosines span 2 at most, and divided by so much they cannot favour one item over hundreds",
        "try 0.05 to 0.2, chosen on validation"),
    "temperature_too_small": ("note", '03 · Two towers, "Temperature"',
        "the softmax is nearly a maximum: one or two negatives per row give all the gradient, and all cosines stay "
        "close together, which a rounded (int8, product-quantised) index cannot afford",
        "try 0.05 to 0.2, chosen on validation"),
    "weight_decay_too_high": ("critical", '04 · Training, "Break it, one thing at a time"',
        "each step pulls every weight towards 0, also the embeddings its batch did not look up, faster than the "
        "gradient can move them away: AdamW keeps no weight larger than 1 / weight_decay",
        "the default is 0.01; up to 1 hardly shows"),
    "learning_rate_too_high": ("critical", '04 · Training, "Break it, one thing at a time"',
        "steps are longer than the slope they follow is straight, so a step in the right direction ends higher up",
        "divide the learning rate by 10 until the loss falls in every epoch; deeper towers want smaller rates"),
    "dead_tower": ("critical", '03 · Two towers, "From a batch to a vector"',
        "the tower gives everybody the same vector or receives no gradient: zero or saturated units, a detach(), "
        "frozen weights, an input that never changes",
        "print each layer's output and gradient for two different rows; PReLU cannot die as ReLU can"),
    "loss_not_moving": ("critical", '04 · Training, "The loop"',
        "no gradient arrives (detached, frozen, a dead tower), the learning rate is far too small, or the rows do not "
        "belong together",
        "overfit a single batch first: a sound model drives its loss far below chance"),
    "initial_loss_off": ("warning", '04 · Training, "The loss before the first step"',
        "the loss is not the one you think (another reduction, labels or rows mixed up), or untrained scores are far "
        "from equal (no normalisation, a large initialisation)",
        "compute the expected value with loss_at_chance(config, counts) before the first long run"),
    "collapsed_vectors": ("critical", '03 · Two towers, "What does an untrained model know?"',
        "all vectors point the same way: the model is hardly trained, or nothing pushes them apart (no negatives)",
        "check that the loss has negatives and that it falls below chance"),
    "no_logq": ("warning", '04 · Training, "In-batch softmax"',
        "a popular item is in many batches and so is a negative more often than others: without the correction it is "
        "pushed down for being popular",
        "TrainingConfig(logq=1.0): subtract log P(item is in the batch) from its logit"),
    "accidental_hits": ("warning", '04 · Training, "In-batch softmax"',
        "the same item is positive and negative of the same row",
        "TrainingConfig(mask_accidental_hits=True)"),
    "seen_not_removed": ("critical", '05 · Evaluation, "Full ranking, step by step"',
        "history and target share an embedding table, so what was watched scores highest",
        "remove them before cutting to k: top_k(remove_seen=True), index.search(exclude=history)"),
    "only_popular": ("warning", '04 · Training, "In-batch softmax"',
        "the model has learnt popularity and little of the user: too few steps, or nothing of the user reaches it",
        "check that the history reaches the user tower, then train longer; the in-batch softmax with logQ is the "
        "objective to start from"),
    "too_unpopular": ("warning", '02 · Features and batches, "Negatives for free, and their price"',
        "popular items were punished as in-batch negatives (no logQ), or the scores are near random",
        "TrainingConfig(logq=1.0), or negatives drawn uniformly"),
    "overfitted": ("warning", '04 · Training, "The trainer"',
        "the model went on learning its training rows after validation had stopped improving",
        "fewer epochs or patience=2, more dropout, a larger weight decay"),
    "train_validation_gap": ("note", '04 · Training, "The trainer"',
        "none: a gap alone is no fault; the curve of validation says whether it is too much",
        "nothing while validation still rises"),
    "recall_at_chance": ("warning", '10 · Tuning and troubleshooting, "My recall is low"',
        "the ranking carries no information: something above, or the vectors of another model",
        "go through the findings above from the top; then overfit a single batch"),
    "below_popularity": ("warning", '05 · Evaluation, "Honest baselines"',
        "the model knows less than a list of favourites: undertrained, or popularity was trained away",
        "check logQ, the temperature and the number of steps"),
    "recall": ("note", '05 · Evaluation, "Honest baselines"',
        "none: a baseline and chance belong beside every recall", "compare with item-kNN and EASE too"),
}
# fmt: on

CAUSES = {  # a symptom is not told where its cause is
    "learning_rate_too_high": {"weight_decay_too_high"},
    "collapsed_vectors": {"dead_tower", "temperature_too_small", "weight_decay_too_high"},
}


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
            parts = {
                "measured": finding.evidence,
                "cause": finding.cause,
                "do": finding.remedy,
                "read": finding.section,
            }
            for title, text in parts.items():
                lines += textwrap.wrap(f"   {title:<9}{text}", 100, subsequent_indent=" " * 12, break_long_words=False)
        if self.unchecked:
            lines += textwrap.wrap(f"Not looked at: {'; '.join(self.unchecked)}.", 100)
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_markdown_(self) -> str:
        rows = ["| | finding | measured | likely cause | what to do | read |", "|---|---|---|---|---|---|"]
        for finding in self:
            cells = (finding.evidence, finding.cause, finding.remedy, finding.section)
            # Evidence names columns of the reader's own data.
            text = " | ".join(html.escape(" ".join(cell.split()), quote=False).replace("|", "\\|") for cell in cells)
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
        batches: what formed the training batches; its ``data`` says what they should contain.
        split: train, validation and test positions; default :func:`~dssm_helpers.data.split_by_time`.
        config: how the model was trained.
        history: ``trainer.history``, one row per epoch with at least ``loss``.
        labels: ``[n]`` what the loss was told, 1 for a positive (point-wise training only).
        scorer: what ranks the items in the evaluation; default the model's own vectors, exactly.
        recommend: what is shown to users; default nothing is checked for items they have already seen.
        initial_loss: of the very first step, before any training.
        sample: how many training and how many validation rows to look at.
        seed: for that sample.

    Returns:
        Findings, most likely cause first. A healthy run gives nothing above ``note``.
    """
    run = _Run(model, batches, split or split_by_time(batches.data), config, history, labels, scorer, recommend,
               initial_loss, sample, seed)  # fmt: skip
    found: dict[str, Finding] = {}
    for check in CHECKS:
        found |= {finding.name: finding for finding in check(run)}
        if "diverged" in found:  # nothing further can be measured
            break
    told = [finding for name, finding in found.items() if not CAUSES.get(name, set()) & found.keys()]
    told.sort(key=lambda finding: SEVERITIES.index(finding.severity))  # stable: within a severity, causes come first
    given = {"the labels (labels=)": labels, "the objective and learning rate (config=)": config,
             "the learning curve (history=)": history, "items already seen (recommend=)": recommend,
             "the loss at the start (initial_loss=)": initial_loss}  # fmt: skip
    return Diagnosis(told, [what for what, value in given.items() if value is None])


def _found(name: str, evidence: str, severity: str | None = None) -> Finding:
    usual, section, cause, remedy = TEXTS[name]
    return Finding(name, severity or usual, evidence, cause, remedy, section)


def _exact(values: Tensor) -> Tensor:
    """In double precision, on the CPU: Apple's MPS has no float64, so the order matters."""
    return values.detach().cpu().double()


# --------------------------------------------------------------------------------------------------------------------
# What is measured
# --------------------------------------------------------------------------------------------------------------------


@dataclass
class _Run:
    """What :func:`diagnose` was given and what can be measured on it, each once and only when a check asks."""

    model: DSSM
    batches: BatchBuilder
    split: Split
    config: TrainingConfig | None
    history: pd.DataFrame | Iterable[Mapping[str, float]] | None
    labels: np.ndarray | Tensor | None
    given_scorer: Scorer | None
    recommend: Recommend | None
    initial_loss: float | None
    sample: int
    seed: int

    def __post_init__(self) -> None:
        generator = np.random.default_rng(self.seed)

        def some(positions: np.ndarray) -> np.ndarray:
            if len(positions) == 0:
                raise ValueError("diagnose needs at least one training and one validation position")
            return np.sort(generator.choice(positions, min(self.sample, len(positions)), replace=False))

        self.data = self.batches.data
        self.curve = pd.DataFrame() if self.history is None else pd.DataFrame(self.history)
        self.losses = self.curve["loss"].to_numpy(dtype=float) if "loss" in self.curve else np.array([])
        self.train, self.validation = some(self.split.train), some(self.split.validation)
        self.counts = self.data.item_counts(self.split.train)
        self.scorer = self.given_scorer or TwoTowerScorer(self.model, self.batches)

    @cached_property
    def batch(self) -> Batch:
        return self.batches(self.train)

    def ages(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """History ``[n, L]``, and the place of each slot's item among the user's earlier ones.

        The larger, the later; 0 where the slot is padding, unknown, or no earlier item.
        """
        history = self.batches.users(positions)["history"].cpu().numpy()
        rows, items = seen_before(self.data, positions)
        place = np.zeros((len(positions), self.data.n_items), dtype=np.int64)
        place[rows, items] = np.arange(1, len(rows) + 1)
        return history, np.take_along_axis(place, history, axis=1) * (history >= FIRST)

    @cached_property
    def vectors(self) -> dict[str, Tensor]:
        """Of the validation rows' users ``[n, D]`` and of all items ``[I - 2, D]``."""
        with evaluation_mode(self.model):
            users = self.model.user_tower(self.batches.users(self.validation))
            return {"user": users, "item": self.model.item_tower(self.batches.all_items())[FIRST:]}

    @cached_property
    def scores(self) -> Tensor:
        """Of every validation row with every item, ``[n, I - 2]``."""
        return _exact(self.model.logits(*self.vectors.values()))

    def hits(self, scorer: Scorer, positions: np.ndarray) -> np.ndarray:
        """Hit@10 of each position."""
        return rank_targets(scorer, self.data, positions) <= 10

    @cached_property
    def validation_hits(self) -> np.ndarray:
        return self.hits(self.scorer, self.validation)

    @cached_property
    def top(self) -> np.ndarray:
        """The first 10 candidates of every validation row, ``[n, 10]``."""
        return candidate_scores(self.scorer, self.data, self.validation).topk(10, dim=1).indices.cpu().numpy()

    @cached_property
    def popularity(self) -> tuple[float, float]:
        """Typical training count of what is recommended, and of what is watched next."""
        log_count = np.log1p(self.counts)
        return tuple(float(np.expm1(log_count[i].mean())) for i in (self.top, self.data.item[self.validation]))

    @cached_property
    def chance_loss(self) -> float:
        return loss_at_chance(self.config, self.counts)

    @cached_property
    def weight_size(self) -> float:
        """Of the linear layers' weights, in units of what they are initialised with; of the layer where it is largest."""
        layers = [module for module in self.model.modules() if isinstance(module, nn.Linear)]
        return max((float(m.weight.detach().square().mean().sqrt()) * math.sqrt(3 * m.in_features) for m in layers))

    @cached_property
    def one_step(self) -> tuple[float, float, dict[str, float]]:
        """One optimizer step on one batch, on a copy: its loss before and after, and each tower's gradient."""
        model, rows = copy.deepcopy(self.model).eval(), {name: value[:512] for name, value in self.batch.items()}
        optimizer = adamw(model, self.config or TrainingConfig())
        optimizer.zero_grad()

        def loss() -> Tensor:
            return in_batch_loss(model.logits(model.user_tower(rows), model.item_tower(rows)), rows["item_id"])

        before, sizes = loss(), {}
        if before.requires_grad:
            before.backward()
        for side, tower in (("user", model.user_tower), ("item", model.item_tower)):
            gradients = [p.grad for p in getattr(tower, "mlp", tower).parameters() if p.grad is not None]
            sizes[side] = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))
        optimizer.step()
        return float(before), float(loss()), sizes


# --------------------------------------------------------------------------------------------------------------------
# Checks, causes before symptoms
# --------------------------------------------------------------------------------------------------------------------


def _labels(run: _Run) -> Iterator[Finding]:
    if run.labels is not None:
        positive = float((np.asarray(run.labels) > 0).mean())
        if positive in (0.0, 1.0):
            yield _found("labels_all_alike", f"{np.size(run.labels):,} labels, {positive:.0%} of them positive")


def _padding(run: _Run) -> Iterator[Finding]:
    data, shares = run.data, {}
    columns = {n: c[FIRST:] for n, c in {**data.user_columns, **data.item_columns}.items()}
    columns = {"the items of the interactions": data.item, "the users": data.user, **columns}
    columns["histories"] = run.batches.users(run.validation)["history"].cpu().numpy()
    for name, column in columns.items():
        if column.ndim > 1:  # an empty list is no fault, a 0 before a value is
            name, column = f"{name} with a 0 before a value", ((column[:, :-1] == 0) & (column[:, 1:] != 0)).any(axis=1)
            shares[name] = column.mean()
        else:
            shares[name] = (column == PADDING).mean()
    used = ", ".join(f"{name} ({share:.2%})" for name, share in shares.items() if share > 0)
    if used:
        yield _found("padding_is_a_real_id", f"index {PADDING} means padding and is also used by: {used}")
    tables = [t for m in run.model.modules() if isinstance(m, FeatureEmbedding) for t in m.tables.items()]
    lengths = {name: float(table.weight[PADDING].detach().norm()) for name, table in tables}
    trained = ", ".join(f"{name} ({length:.3f})" for name, length in lengths.items() if length > 0)
    if trained:
        yield _found("padding_row_trained", f"the embedding of index {PADDING} should have length 0: {trained}")


def _split(run: _Run) -> Iterator[Finding]:
    data, split = run.data, run.split
    parts = [split.train, split.validation, split.test]
    shared = sum(len(part) for part in parts) - len(np.unique(np.concatenate(parts)))
    held_out = np.full(data.n_users, np.iinfo(np.int64).max)
    np.minimum.at(held_out, data.user[split.validation], data.timestamp[split.validation])
    later = float((data.timestamp[split.train] > held_out[data.user[split.train]]).mean())
    if shared or later:
        yield _found(
            "split_leaks",
            f"{shared:,} positions are in two parts of the split; {later:.1%} of the training rows are later than "
            "their user's validation row",
        )


def _alignment(run: _Run) -> Iterator[Finding]:
    data, wrong = run.data, {}
    for side, expected in (("item", data.item), ("user", data.user)):
        wrong[side] = (run.batch[f"{side}_id"].cpu().numpy() != expected[run.train]).mean()
    shown = [f"{share:.0%} of a batch's rows hold another {side}" for side, share in wrong.items() if share]
    if shown:
        yield _found("rows_misaligned", " and ".join(shown) + " than the interaction they stand for")
    shown, own = [], run.batch["item_id"].cpu().numpy()
    for where, batch, items in (
        ("a batch", run.batch, own),
        ("all_items()", run.batches.all_items(), np.arange(data.n_items)),
    ):
        for name, column in data.item_columns.items():
            differs = batch[name].cpu().numpy() != column[items]
            share = differs.reshape(len(items), -1).any(axis=1).mean()
            shown += [f"{name} in {share:.0%} of the rows of {where}"] if share else []
    if shown:
        yield _found("columns_of_another_item", f"not the values of the row's item: {', '.join(shown)}")


def _history(run: _Run) -> Iterator[Finding]:
    empty, foreign, targets = {}, {}, {}
    for part, positions in (("training", run.train), ("validation", run.validation)):
        history, age = run.ages(positions)
        earlier = positions > run.data.offsets[run.data.user[positions]]
        empty[part] = (history[earlier] < FIRST).all(axis=1).mean() if earlier.any() else 0.0
        foreign[part] = ((history >= FIRST) & (age == 0)).any(axis=1).mean()
        targets[part] = (history == run.data.item[positions][:, None]).any(axis=1).mean()
    if max(empty.values()) > 0.9:
        yield _found("history_empty", f"of the rows whose user has earlier items, {_shares(empty)} have no history")
    if max(foreign.values()) > 0:
        yield _found(
            "future_in_history",
            f"{_shares(foreign)} of the histories hold items that are not among the user's earlier ones; "
            f"the target itself is in {_shares(targets)}",
        )


def _shares(shares: dict[str, float]) -> str:
    return " and ".join(f"{share:.0%} ({part})" for part, share in shares.items())


def _finite(run: _Run) -> Iterator[Finding]:
    bad = [name for name, value in run.model.named_parameters() if not torch.isfinite(value).all()]
    if bad or not np.isfinite(run.losses).all():
        rate = f" at a learning rate of {run.config.learning_rate:g}" if run.config else ""
        last = np.round(run.losses[-3:], 3).tolist()
        yield _found("diverged", f"{len(bad)} weight tables hold NaN or infinity{rate}; last losses {last}")


def _order(run: _Run) -> Iterator[Finding]:
    """Newest first? In the batches, and for the model: a reversed history must not serve it better."""
    _, age = run.ages(run.validation)
    pairs = (age[:, 1:] > 0) & (age[:, :-1] > 0)
    wrong = float((age[:, 1:] > age[:, :-1])[pairs].mean()) if pairs.any() else 0.0
    backwards = copy.copy(run.batches)

    def users(positions: np.ndarray) -> Batch:
        batch = run.batches.users(positions)
        history = batch["history"].flip(1)
        last = (history == PADDING).int().argsort(dim=1, stable=True)  # what is padding stays at the end
        return {**batch, "history": history.gather(1, last)}

    backwards.users = users
    given, reverse = (evaluate(run.model, batches, run.validation)["hit@10"] for batches in (run.batches, backwards))
    error = math.sqrt((given * (1 - given) + reverse * (1 - reverse)) / len(run.validation))
    if wrong > 0.25 or reverse > given + 3 * error:
        yield _found(
            "history_reversed",
            f"{wrong:.0%} of the neighbouring slots hold the older item first, expected none; validation Hit@10 "
            f"{given:.3f} with the histories as they are, {reverse:.3f} with them reversed",
        )


def _scorer(run: _Run) -> Iterator[Finding]:
    if run.given_scorer is not None:
        theirs = _exact(torch.as_tensor(run.scorer(run.validation)))[:, FIRST:]
        agreement = float(torch.corrcoef(torch.stack([run.scores.flatten(), theirs.flatten()]))[0, 1])
        if agreement < 0.9:
            yield _found(
                "scorer_misaligned",
                f"the scorer's scores correlate {agreement:+.2f} with the model's own, expected about 1",
            )


def _normalisation(run: _Run) -> Iterator[Finding]:
    shown = []
    for side, vectors in run.vectors.items():
        low, high = np.quantile(_exact(vectors.norm(dim=1)).numpy(), [0.01, 0.99])
        if max(abs(low - 1), abs(high - 1)) > 0.01 and high > 1e-6:  # zeros: the tower is dead, and _dead says so
            shown.append(f"{side} vectors have lengths from {low:.2f} to {high:.2f}")
    if shown:
        yield _found("not_normalized", f"{' and '.join(shown)}, expected 1")


def _temperature(run: _Run) -> Iterator[Finding]:
    model, stated = run.model, float(run.model.temperature)
    with evaluation_mode(model):
        users, items = model.user_tower(run.batch), model.item_tower(run.batch)
        dot = _exact((users * items).sum(dim=1))
        scores = {"forward": model(run.batch), "logits": model.logits(users, items.unsqueeze(1)).squeeze(1)}
    # Least squares through the origin: what the dot product is divided by.
    used = {where: float((dot * dot).sum() / (_exact(score) * dot).sum()) for where, score in scores.items()}
    wrong = [where for where in used if math.isfinite(used[where]) and abs(used[where] / stated - 1) > 0.05]
    if wrong:
        shown = " and ".join(f"in {where} the dot product is divided by {used[where]:.3g}" for where in wrong)
        yield _found("temperature_ignored", f"temperature={stated:g}, but {shown}")
    scale = used["logits"] if math.isfinite(used["logits"]) and used["logits"] > 0 else stated
    log_p = run.scores.log_softmax(dim=1)
    width = float((-(log_p.exp() * log_p).sum(dim=1)).exp().median())
    spread, n_items = scale * float(run.scores.std(dim=1).mean()), run.scores.shape[1]
    shown = (
        f"temperature {scale:.3g}; a user's cosines spread by ±{spread:.2f}; the softmax over all items is as wide as "
        f"an even one over {width:,.0f} of {n_items:,}"
    )
    if scale > 0.4:
        n = run.config.batch_size if run.config and run.config.objective == "in_batch" else n_items
        floor = math.log1p((n - 1) * math.exp(-2 / scale))
        limit = f"over {n:,} candidates the loss cannot fall below {floor:.2f} (chance {math.log(n):.2f})"
        yield _found("temperature_too_large", f"{shown}; {limit}")
    elif scale < 0.02:
        yield _found("temperature_too_small", shown)


def _weight_decay(run: _Run) -> Iterator[Finding]:
    if run.config and run.config.weight_decay > 1 and run.weight_size < 0.5:
        rate, decay = run.config.learning_rate, run.config.weight_decay
        yield _found(
            "weight_decay_too_high",
            f"weight decay {decay:g} at a learning rate of {rate:g}: a step takes {rate * decay:.1%} off every weight; "
            f"the layers' weights are {run.weight_size:.2g} times the size they start with",
        )


def _learning_rate(run: _Run) -> Iterator[Finding]:
    """Steps that overshoot: seen in the curve, in the size of the weights, and in one step taken on a copy."""
    if run.config is None:
        return
    rate, losses, signs = run.config.learning_rate, run.losses, []
    if len(losses) and losses.max() > 1.05 * run.chance_loss:
        signs.append(f"the loss reached {losses.max():.2f}, chance is {run.chance_loss:.2f}")
    if len(losses) and rate > 0.02 and losses[-1] > 1.05 * losses.min():
        signs.append(f"the loss rose again from {losses.min():.2f} to {losses[-1]:.2f}")
    if rate > 0.02 and run.weight_size > 5:
        signs.append(f"the layers' weights are {run.weight_size:.0f} times the size they start with")
    happened = bool(signs)  # a step on a copy says that it may, and a decaying schedule may have healed it
    before, after, _ = run.one_step
    overshoots = after > 1.02 * before and after > 0.5 * math.log(min(512, len(run.train)))
    if overshoots and float(run.model.temperature) >= 0.02:  # below, every step does: the temperature is the cause
        signs.append(f"one more step moves the loss of its own batch from {before:.2f} to {after:.2f}")
    if signs:
        severity = "critical" if happened else "warning"
        yield _found("learning_rate_too_high", f"learning rate {rate:g}: {'; '.join(signs)}", severity)


def _dead(run: _Run) -> Iterator[Finding]:
    shown = []
    for side, vectors in run.vectors.items():
        spread, gradient = float(_exact(vectors).std(dim=0, correction=0).norm()), run.one_step[2][side]
        if spread < 1e-3 or gradient < 1e-12:
            shown.append(f"{side} tower: standard deviation {spread:.2g}, gradient {gradient:.2g}")
    if shown:
        yield _found("dead_tower", "; ".join(shown))


def _learning_curve(run: _Run) -> Iterator[Finding]:
    losses = run.losses
    if len(losses) == 0:
        return
    at_chance = run.config is not None and losses[-1] > 0.98 * run.chance_loss
    if at_chance or (len(losses) > 1 and losses[-1] > 0.99 * losses[0]):
        chance = f"; chance is {run.chance_loss:.3f}" if run.config else ""
        yield _found(
            "loss_not_moving", f"loss {losses[0]:.3f} in the first epoch, {losses[-1]:.3f} in the last{chance}"
        )


def _initial_loss(run: _Run) -> Iterator[Finding]:
    if run.initial_loss is None or run.config is None:
        return
    if not abs(run.initial_loss - run.chance_loss) <= 0.1 * run.chance_loss:
        yield _found(
            "initial_loss_off",
            f"the first step's loss is {run.initial_loss:.3f}; a model that scores everything alike has "
            f"{run.chance_loss:.3f}",
        )


def _collapsed(run: _Run) -> Iterator[Finding]:
    # The length of the mean of unit vectors, squared, is the mean of the cosines of all pairs.
    means = {side: nn.functional.normalize(_exact(v), dim=1).mean(dim=0) for side, v in run.vectors.items()}
    cosines = {side: float(mean.square().sum()) for side, mean in means.items()}
    shown = [f"two {side} vectors have a cosine of {c:.3f} on average" for side, c in cosines.items() if c > 0.9]
    if shown:
        yield _found("collapsed_vectors", "; ".join(shown))


def _popularity(run: _Run) -> Iterator[Finding]:
    in_batch = run.config is not None and run.config.objective == "in_batch"
    recommended, watched = run.popularity
    counts = f"recommended items have {recommended:.0f} interactions (geometric mean), those taken next {watched:.0f}"
    if in_batch and run.config.logq == 0:
        yield _found("no_logq", f"logq=0; {counts}")
    if in_batch and not run.config.mask_accidental_hits:
        rows = np.random.default_rng(run.seed).choice(run.split.train, run.config.batch_size)
        items = run.data.item[rows]
        share = (np.bincount(items)[items] > 1).mean()
        shown = f"{share:.0%} of a batch's rows meet their own item among the negatives"
        yield _found("accidental_hits", f"mask_accidental_hits=False; {shown}")
    covered = coverage(run.top, run.data.n_items - FIRST)
    shown = f"{counts}; the top 10 lists cover {covered:.0%} of the catalogue"
    share = np.isin(run.top, np.argsort(-run.counts, kind="stable")[:20]).mean()
    if share > 0.6:
        yield _found("only_popular", f"{shown}; {share:.0%} of the places go to the 20 most popular items")
    elif recommended < 0.5 * watched:
        corrected = run.config is not None and (run.config.logq > 0 or not in_batch)
        yield _found("too_unpopular", shown, "note" if corrected else "warning")


def _seen(run: _Run) -> Iterator[Finding]:
    if run.recommend is None:
        return
    shown = np.asarray(run.recommend(run.validation))
    if shown.ndim != 2 or len(shown) != len(run.validation):
        raise ValueError(f"recommend returned shape {shown.shape}, expected ({len(run.validation)}, k) item indices")
    rows, items = seen_before(run.data, run.validation)
    seen = np.zeros((len(shown), run.data.n_items), dtype=bool)
    seen[rows, items] = True
    share = float(np.take_along_axis(seen, shown, axis=1).mean())
    hit = float((shown == run.data.item[run.validation][:, None]).any(axis=1).mean())
    if share > 0:
        yield _found(
            "seen_not_removed",
            f"{share:.0%} of the recommended places are items the user had before; Hit@{shown.shape[1]} is {hit:.3f} "
            f"as shown and {run.validation_hits.mean():.3f} (Hit@10) with them removed",
        )


def _gap(run: _Run) -> Iterator[Finding]:
    train, validation = run.hits(run.scorer, run.train).mean(), run.validation_hits.mean()
    shown, name = f"Hit@10 {train:.3f} on training rows, {validation:.3f} on validation", "train_validation_gap"
    if "hit@10" in run.curve and len(run.curve) > 2:
        curve = run.curve["hit@10"].to_numpy(dtype=float)
        best = int(curve.argmax())
        error = math.sqrt(max(curve[best] * (1 - curve[best]), 1e-9) / len(run.split.validation))
        shown += f"; best epoch {best + 1} of {len(curve)} with {curve[best]:.3f}, the last {curve[-1]:.3f}"
        if curve[best] - curve[-1] > 2 * error:
            name = "overfitted"
    yield _found(name, shown)


def _outcome(run: _Run) -> Iterator[Finding]:
    n, seen = len(run.validation), len(seen_before(run.data, run.validation)[0])
    chance = chance_level(max(1, run.data.n_items - FIRST - seen / n), (10,))["hit@10"]
    popularity_hits = run.hits(Popularity(run.data, run.split.train), run.validation)
    ours, popular = run.validation_hits.mean(), popularity_hits.mean()
    error = np.std(run.validation_hits.astype(float) - popularity_hits) / math.sqrt(n)
    name = "recall"
    if ours < chance + 2 * math.sqrt(chance * (1 - chance) / n):
        name = "recall_at_chance"
    elif ours < popular - 2 * error:
        name = "below_popularity"
    yield _found(name, f"validation Hit@10 {ours:.3f}, popularity {popular:.3f}, chance {chance:.3f} ({n:,} users)")


CHECKS = (
    _labels, _padding, _split, _alignment, _history, _finite, _order, _scorer, _normalisation, _temperature,
    _weight_decay, _learning_rate, _dead, _learning_curve, _initial_loss, _collapsed, _popularity, _seen, _gap, _outcome,
)  # fmt: skip
