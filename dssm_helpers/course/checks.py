"""Checks for the exercises: what is wrong, and a hint how to go on, instead of a traceback.

A check prints ``✓`` or ``✗`` with a hint and returns whether it passed. With ``DSSM_STRICT=1`` (CI, where the
solutions run) a failed check raises, so a wrong solution cannot look green.

A new exercise: a cell of the notebook with ``### BEGIN SOLUTION`` … ``### END SOLUTION``, below it a call of its check,
which is a function here with :func:`exercise` above it.
"""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch

from ..data import EncodedData, encode
from ..features import Batch, BatchBuilder
from ..model import DSSM
from ..movielens import SCHEMA, synthetic
from ..objectives import TrainingConfig, loss_at_chance
from ..recipes import RECIPES, build_model
from ..retrieval import build_index
from ..settings import strict
from ..training import Trainer
from ..vocabulary import Vocabulary
from .workspace import Workspace


class Hint(Exception):
    """What is wrong with an answer and how to go on."""


class Verdict(int):
    """1 if the answer passed, else 0. Shows nothing at the end of a cell, where all has been said."""

    def _ipython_display_(self) -> None:
        pass


def exercise(title: str, tolerance: float = 1e-5) -> Callable[[Callable], Callable[..., Verdict]]:
    """Turn a function that raises :class:`Hint` on a wrong answer, or a generator of cases, into a check that reports.

    A case is ``arguments, expected`` of the learner's function, compared by :func:`close`. The generator's docstring is
    the hint. A text in a case stands before it; a pair is a well-known wrong answer and the hint to give instead.
    """

    def decorate(check: Callable) -> Callable[..., Verdict]:
        @functools.wraps(check)
        def report(*answer: object) -> Verdict:
            problem, unanswered = None, False
            try:
                if inspect.isgeneratorfunction(check):
                    _compare(*answer, check(), check.__doc__ or "", tolerance)
                else:
                    check(*answer)
            except Hint as hint:
                problem = str(hint)
            except NotImplementedError as stub:
                problem, unanswered = f"still open. {stub}".strip(), True
            except Exception as error:
                # Whatever a learner's code raises is an answer to comment on, not a failure of the check.
                problem = f"your code raised {type(error).__name__}: {error}"
            print(f"✓ {title}" if problem is None else f"{'○' if unanswered else '✗'} {title}: {problem}")
            if problem is not None and not unanswered and strict():
                raise AssertionError(f"{title}: {problem}")
            return Verdict(problem is None)

        return report

    return decorate


def _compare(function: Callable, cases: Iterator[tuple], hint: str, tolerance: float) -> None:
    for arguments, expected, *said in cases:
        answer = function(*copy.deepcopy(arguments))  # which may write into what it is given
        shown = ", ".join(_one_line(argument) for argument in arguments)
        reasons = [text for text in said if isinstance(text, str)]
        mistakes = [pair for pair in said if isinstance(pair, tuple)]
        why = " ".join([*reasons, *hint.split()])
        close(answer, expected, f"the answer for {shown}", why, *mistakes, tolerance=tolerance)


def close(answer: object, expected: object, what: str, hint: str, *mistakes: tuple, tolerance: float = 1e-5) -> None:
    """Raise a :class:`Hint` unless ``answer`` equals ``expected`` in shape and, within ``tolerance``, in value.

    Args:
        what: names the answer in the message.
        mistakes: well-known wrong answers, each with the hint to give instead of ``hint``.
    """
    if answer is None:
        raise Hint(f"{what} is None; did you forget to return it?")
    got, wanted = _array(answer), _array(expected)
    if got.dtype.kind not in "biuf":
        raise Hint(f"{what} is {answer!r}, expected {wanted}. {hint}")

    def same(other: np.ndarray) -> bool:
        return got.shape == other.shape and np.allclose(got, other, tolerance, tolerance, equal_nan=True)

    if same(wanted):
        return
    hint = next((why for wrong, why in mistakes if same(_array(wrong))), hint)
    if got.shape != wanted.shape:
        raise Hint(f"{what} has shape {got.shape}, expected {wanted.shape}. {hint}")
    raise Hint(f"{what} is {_one_line(got)}, expected {_one_line(wanted)}. {hint}")


def _array(value: object) -> np.ndarray:
    return np.asarray(value.detach() if isinstance(value, torch.Tensor) else value)


def _one_line(value: object) -> str:
    if isinstance(value, (np.ndarray, torch.Tensor)):
        value = _array(value)
        value = np.round(value, 4) if value.dtype.kind == "f" else value
    return " ".join(str(value).split())


# notebook 00
@exercise("a history of your own")
def check_my_history(my_history: Callable[[], list[int]], n_items: int) -> None:
    history = my_history()
    if history is None:
        raise Hint("the function returns nothing; end it with `return find([...])`")
    if any(isinstance(item, str) for item in history):
        raise Hint("these are titles; the model wants indices: pass the titles to find([...])")
    if len(set(history)) < max(3, len(history)):
        raise Hint(f"{history} are not three or more different movies; does each beginning match a title of its own?")
    if not all(2 <= item < n_items for item in history):
        raise Hint(f"movie indices go from 2 to {n_items - 1}, 0 is padding and 1 is unknown; got {history}")


@exercise("overlap of two lists")
def check_overlap() -> Iterator[tuple]:
    """Count the entries of the first that the second has too; divide by the first's length."""
    yield ([1, 2, 3, 4], [4, 3, 9, 8]), 0.5
    yield ([1, 2], [2, 1]), 1.0, "The order of a list does not matter here."
    yield (["a"], ["b"]), 0.0


# notebook 01
@exercise("Exercise 1: how much is unknown?")
def check_unseen_share() -> Iterator[tuple]:
    """Encode the values; UNKNOWN (index 1) marks those never seen."""
    vocabulary = Vocabulary.fit("colour", ["blue", "green", "red"])
    for values, share in (("red pink", 0.5), ("blue green", 0.0), ("grey", 1.0), ("red red red pink", 0.25)):
        yield (vocabulary, np.array(values.split())), share


def _small_data() -> EncodedData:
    tables = synthetic(n_ratings=600, n_users=20, n_movies=200, seed=3)
    return encode(tables.ratings, tables.users, tables.movies, SCHEMA)


@exercise("Exercise 2: the newest movies first")
def check_history_of() -> Iterator[tuple]:
    """It holds the user's movies before the position; reverse them, then keep the first `length`."""
    data = _small_data()
    for user, length, place in itertools.product((2, 5, 9), (1, 3, 1_000), (0, 1, -1)):
        start, end = data.offsets[user : user + 2].tolist()
        position = range(start, end)[place]
        past, anybodys = data.item[start:position], data.item[max(0, position - length) : position]
        yield (
            (data, position, length),
            past[::-1][:length],
            (past[:length][::-1], "Those are the user's oldest movies; keep the newest."),
            (past[-length:], "The right movies in the wrong order: the newest comes first."),
            (anybodys[::-1], "Those are movies of the user before: a history starts at data.offsets[user]."),
        )


@exercise("Exercise 3: one moment for everybody")
def check_split_at(split_at: Callable[[EncodedData, int], tuple[np.ndarray, np.ndarray]]) -> None:
    data = _small_data()
    for moment in (int(data.timestamp[data.offsets[2] + 1]), int(np.quantile(data.timestamp, 0.6)), 0):
        answer = split_at(data, moment)
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise Hint("return two arrays of positions: training and test")
        before = data.timestamp < moment
        expected = []
        for start, end in itertools.pairwise(data.offsets.tolist()):
            first = start + int(before[start:end].sum())
            expected += [first] if start < first < end else []
        close(answer[0], np.flatnonzero(before), "train", "It is every position with a timestamp before the moment.")
        hint = "It is the first position of a user at or after the moment, sorted."
        if set(np.asarray(answer[1]).tolist()) > set(expected):
            raise Hint(f"the test holds too much. {hint} Only users with a rating before the moment have one")
        close(answer[1], expected, "test", hint)


# notebook 02
@exercise("Exercise 1: the last few movies")
def check_mean_of_newest() -> Iterator[tuple]:
    """Place 0 is the newest: cut embedded and mask to the first k places, then take the masked mean."""
    lengths = [5, 2, 1, 0]
    mask = torch.arange(5) < torch.tensor(lengths).unsqueeze(1)
    embedded = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0))
    embedded = torch.where(mask.unsqueeze(-1), embedded, torch.tensor(9.0))  # whoever forgets the mask sees it at once
    for k in (1, 3, 10):
        means = torch.stack(
            [embedded[row, : min(k, n)].mean(dim=0) for row, n in enumerate(lengths)]
        )  # NaN without any
        unclamped = "An empty history gives NaN (0 / 0): clamp the number of movies to at least 1."
        yield (embedded, mask, k), means.nan_to_num(), (means, unclamped)


@exercise("Exercise 2: your own sampler")
def check_power_probabilities() -> Iterator[tuple]:
    """Raise each count to the power first."""
    counts = np.array([7, 7, 100, 10, 1, 0])
    not_one = "These do not sum to 1: divide the weights by their sum, once rows 0 and 1 are out."
    for power in (0.0, 0.5, 1.0):
        everything = counts.astype(float) ** power
        weight = everything * (np.arange(6) >= 2)
        yield (
            (counts, power),
            weight / weight.sum(),
            (everything / everything.sum(), "Rows 0 and 1 are padding and unknown, no movies: they are never drawn."),
            (weight, not_one),
            (weight / everything.sum(), not_one),
        )


@exercise("Exercise 3: accidental hits")
def check_accidental_hits() -> Iterator[tuple]:
    """Entry [i, j] is true where items i and j are the same movie, i ≠ j."""
    items = torch.tensor([4, 7, 4, 9, 7, 4])
    same = items.unsqueeze(1) == items
    expected = same & ~torch.eye(6, dtype=torch.bool)
    yield (items,), expected, (same, "A row's own movie is its positive: the diagonal must be False.")


# notebook 03
@exercise("Exercise 1: all cosines at once")
def check_cosine_matrix() -> Iterator[tuple]:
    """Divide every row by its length; then one product, users @ movies.T."""
    users = torch.tensor([[3.0, 4.0], [0.0, -2.0]])
    items = torch.tensor([[6.0, 8.0], [1.0, 0.0], [0.5, -0.5]])
    expected = [[1.0, 0.6, -0.141421], [-0.8, 0.0, 0.707107]]
    yield (users, items), expected, (users @ items.T, "Dot products: long vectors win; bring both to length one.")


def _temperature(loss: float, n: int) -> tuple[float, str, tuple[float, str]]:
    expected = 2 / math.log((n - 1) / math.expm1(loss))
    solve = "Solve loss = ln(1 + (n - 1) e^(-2/T)) for T: take exp on both sides, subtract 1, divide, take the log."
    return (
        expected,
        solve,
        (-expected, "A temperature is positive: mind the sign of the logarithm of a number below 1."),
    )


@exercise("Exercise 2: the highest temperature that will do")
def check_highest_temperature() -> Iterator[tuple]:
    for n, loss in ((512, 1.0), (2_000, 0.1), (1_000_000, 0.01)):
        yield (n, loss), *_temperature(loss, n)


@exercise("Exercise 3: count before you train")
def check_tower_parameters() -> Iterator[tuple]:
    """A linear layer from i to o columns has i × o weights and o shifts; a PReLU has one slope."""
    for width, dims in ((10, [4]), (10, [4, 3]), (96, [256, 64]), (7, [5, 4, 3])):
        weights = sum(i * o for i, o in itertools.pairwise([width, *dims]))
        linear = weights + sum(dims)
        yield (
            (width, dims),
            linear + len(dims) - 1,
            (weights, "Those are the matrices alone: each layer also adds a shift per output."),
            (linear, "The linear layers are right. One slope for each PReLU is missing (none after the last layer)."),
        )


# notebook 04
@exercise("Exercise 1: a corrected list-wise loss")
def check_corrected_list_wise() -> Iterator[tuple]:
    """Subtract each score's own log q, put the positive in column 0, take the softmax over all columns."""
    scores = torch.randn(3, 5, generator=torch.Generator().manual_seed(5))  # column 0: the positive
    log_q = -5 * torch.rand(3, 5, generator=torch.Generator().manual_seed(6))
    others_only = torch.cat([torch.zeros(3, 1), log_q[:, 1:]], dim=1)

    def loss(logits: torch.Tensor) -> torch.Tensor:
        return -logits.log_softmax(dim=1)[:, 0].mean()

    yield (
        (scores[:, 0], scores[:, 1:], log_q[:, 0], log_q[:, 1:]),
        loss(scores - log_q),
        (loss(scores), "That is the loss without any correction."),
        (loss(scores + log_q), "The sign is the wrong way: subtract log q."),
        (loss(scores - others_only), "The positive stands among the candidates too: correct it like the others."),
    )


@exercise("Exercise 2: the loss at chance")
def check_chance_loss() -> Iterator[tuple]:
    """ln B + Σ q ln(n q): q are the shares of the movies with at least one rating, n how many those are."""
    for size, counts in ((512, np.array([10, 10, 10, 10])), (64, np.array([0, 0, 6, 3, 1])), (2, np.array([1]))):
        reason = "" if counts.all() else "Leave movies without ratings out, or the logarithm of 0 gets in."
        yield (size, counts), loss_at_chance(TrainingConfig(batch_size=size), counts), reason


@exercise("Exercise 3: when to stop")
def check_should_stop(should_stop: Callable[[list[float], int], bool]) -> None:
    for scores, patience, expected, why in (
        ([], 2, False, "No epoch has been run yet."),
        ([0.1, 0.2, 0.3], 2, False, "Every epoch was better than the one before."),
        ([0.1, 0.3, 0.2], 2, False, "Only one epoch has passed since the best."),
        ([0.1, 0.3, 0.2, 0.25], 2, True, "Two have passed since the best, though the last went up a little."),
        ([0.3, 0.3, 0.3], 2, True, "A tie is no improvement."),
        ([0.3, 0.2, 0.31, 0.2], 2, False, "The third epoch set a new best; count from there."),
        ([0.3, 0.2], 1, True, "With patience 1 the first epoch without a new best is the last."),
    ):
        answer = should_stop(list(scores), patience)
        close(None if answer is None else bool(answer), expected, f"should_stop({scores}, {patience})", why)


# notebook 05
@exercise("mean reciprocal rank")
def check_mean_reciprocal_rank() -> Iterator[tuple]:
    """Divide 1 by each rank, so that a first place is worth 1; then average over users."""
    inverted = "You inverted the mean rank; average the inverses, so that one bad rank cannot ruin everything."
    for ranks in (np.array([1.0]), np.array([1.0, 2.0, 4.0])):
        yield (ranks,), np.mean(1 / ranks), (1 / np.mean(ranks), inverted)


@exercise("expected Hit@k with shuffled ties")
def check_expected_hit() -> Iterator[tuple]:
    """With a above and t others tied the target takes one of t + 1 places, a + 1 to a + t + 1;
    k - a of them are good, but never fewer than 0 nor more than t + 1.
    """
    scores = torch.tensor([[0.9, 0.5, 0.5, 0.5, 0.1], [0.9, 0.8, 0.7, 0.6, 0.5], [0.2, 0.2, 0.2, 0.2, 0.2]])
    for k, expected in ((1, [0, 0, 0.2]), (2, [1 / 3, 0, 0.4]), (3, [2 / 3, 1, 0.6]), (5, [1, 1, 1])):
        yield (scores, torch.tensor([1, 2, 4]), k), expected


@exercise("popular movies of the genre watched last")
def check_recent_genre() -> Iterator[tuple]:
    """genres[newest] @ genres.T counts the genres two movies share; with one or more a movie keeps its count."""
    genres = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1]])
    expected = [[0, 5, 3, 0, 0], [0, 5, 3, 8, 0], [0, 0, 0, 0, 7]]
    yield (torch.tensor([1, 2, 4]), genres, torch.tensor([9.0, 5, 3, 8, 7])), expected


# notebook 06
@exercise("search without the seen")
def check_search_unseen(answer: Callable) -> None:
    vectors = np.random.default_rng(0).normal(size=(40, 4))
    index = build_index(vectors, 100 + 3 * np.arange(40))
    for query in vectors[:5]:
        order = index.search(query, 40)[0][0]
        for what, seen, expected in (
            ("with nothing seen", [], order[:5]),
            ("when the best 8 are all seen", order[:8], order[8:13]),
            ("when 38 of 40 are seen, so only 2 are left", order[:38], order[38:]),
            ("when a seen id is not in the index", [*order[:2].tolist(), 5], order[2:7]),
        ):
            got = np.asarray(answer(index, query, np.asarray(seen, dtype=np.int64), 5))
            if got.ndim != 1:
                raise Hint(f"expected one array of ids [k], got shape {got.shape}; search returns [1, n], take row 0")
            if np.isin(got, seen).any():
                raise Hint(f"{what}, seen ids came back; np.isin(ids, seen_ids) marks them")
            if len(got) != len(expected):
                raise Hint(f"{what}, {len(got)} ids came back, expected {len(expected)}; fetch k + len(seen_ids)")
            close(got, expected, f"{what}, the answer", "Keep the order of the search, best first.")


class _Dial:
    """Looks like an index; with nprobe cells searched it finds the first nprobe of ten neighbours."""

    def tune(self, nprobe: int) -> _Dial:
        self.nprobe = nprobe
        return self

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        found = np.where(np.arange(k) < self.nprobe, np.arange(k), 1000 + np.arange(k))
        return np.tile(found, (len(queries), 1)), np.zeros((len(queries), k), dtype=np.float32)


@exercise("the cheapest nprobe")
def check_cheapest_nprobe(answer: Callable) -> None:
    queries, exact = np.zeros((3, 4), dtype=np.float32), np.tile(np.arange(10), (3, 1))
    for target, choices, expected in ((0.5, (1, 2, 5, 10), 5), (0.55, (10, 6, 5, 1), 6), (0.0, (4, 2), 2)):
        got = answer(_Dial(), queries, exact, target, choices)
        if got != expected:
            hint = "Sort the choices, and return the first with recall ≥ target (a recall equal to it is enough)."
            raise Hint(f"target {target}, choices {choices}: the answer is {got}, expected {expected}. {hint}")
    if (got := answer(_Dial(), queries, exact, 1.0, (1, 9))) is not None:
        raise Hint(f"no choice of (1, 9) reaches the target 1.0: expected None, which says so, the answer is {got}")


@exercise("megabytes of an index")
def check_index_megabytes() -> Iterator[tuple]:
    """A megabyte is 10⁶ bytes."""
    yield (1_000_000, 64, "float32"), 256.0, "4 bytes for each of n · dim numbers."
    yield (1_000_000, 64, "sq8"), 64.0, "One byte a number."
    for arguments, expected in (((1_000_000, 64, "pq"), 16.0), ((10**9, 128, "pq", 32), 32_000.0)):
        yield arguments, expected, "m bytes a vector, whatever dim is."


# notebook 07
@exercise("a share of mutual neighbours")
def check_mutual_share() -> Iterator[tuple]:
    """Count relations, not pairs of movies."""
    yield (np.array([[1], [0], [0]]),), 2 / 3, "0 and 1 name each other; 2 names 0, who does not name 2."
    ring = (np.arange(6)[:, None] + [-1, 1]) % 6
    yield (ring,), 1.0, "In a ring everybody names both sides, so all is mutual."


@exercise("neighbours kept on the map")
def check_kept_on_the_map() -> Iterator[tuple]:
    """Look in the same row of both arrays, and divide by the number of true neighbours, n times k."""
    vectors = np.array([[1, 2], [0, 3], [3, 0], [2, 1]])
    yield (vectors, vectors[:, ::-1]), 1.0, "The same lists in another order: compare them as sets, row by row."
    yield (vectors, np.array([[1, 3], [2, 3], [1, 2], [3, 0]])), 2 / 8


@exercise("places that hold half of the weight")
def check_places_for_half() -> Iterator[tuple]:
    """Add up the weights from the newest on (np.cumsum) and count places until half of the total is reached."""
    yield (np.array([0.2, 0.2, 0.2, 0.4]),), 3
    yield (np.array([0.5, 0.25, 0.25]),), 1, "Half is enough."
    yield (np.array([1.0, 1.0, 4.0, 2.0]),), 3, "The weights need not sum to 1: compare with half of their sum."


# notebook 08
@exercise("guard")
def check_guard(guard: Callable[[str, np.ndarray, int], None]) -> None:
    for ids, bad in (([0, 1, 9], None), ([[0, 9]], None), ([[], []], None), ([3, -1], -1), ([[0, 10], [2, 3]], 10)):
        try:
            guard("age", np.array(ids, dtype=np.int64), 10)
        except ValueError as error:
            if bad is None:
                raise Hint(f"{ids} are valid ids of a vocabulary of 10, but it raised: {error}") from error
            for part, what in (("age", "the input's name"), (str(bad), "the bad id"), ("9", "the largest valid id")):
                if part not in str(error):
                    raise Hint(f"the message {str(error)!r} does not contain {what}, {part}") from error
        else:
            if bad is not None:
                raise Hint(f"{ids} passed, although {bad} is outside 0 … 9; check both ends")


def _uneven_table(*sizes: float) -> np.ndarray:
    """Float32 ``[n, 8]``, rows of very different sizes."""
    table = np.random.default_rng(0).normal(size=(len(sizes), 8)) * np.array(sizes)[:, None]
    return table.astype(np.float32)


@exercise("quantise_rows")
def check_quantise_rows(quantise_rows: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]) -> None:
    table = _uneven_table(0, 0.01, 1, 1, 100)
    largest = np.abs(table).max(axis=1)
    with np.errstate(all="ignore"):
        codes, scales = quantise_rows(table.copy())
    if np.asarray(codes).dtype != np.int8:
        raise Hint(f"codes are {np.asarray(codes).dtype}, expected int8: use .astype(np.int8) after rounding")
    close(scales, largest / 127, "scales", "One per row: the largest |w| along axis 1, divided by 127.")
    if np.any(codes[0]):
        raise Hint("the padding row is all zeros and its scale is 0: do not divide by it")
    off = np.abs(codes * np.asarray(scales)[:, None] - table).max(axis=1)
    if (off > 1.01 * largest / 254 + 1e-9).any():
        row = int(np.argmax(off - largest / 254))
        found = f"row {row} is off by up to {off[row]:.4g}, half a scale is {largest[row] / 254:.4g}"
        raise Hint(f"{found}. The largest |w| of a row should become 127; round before .astype, which cuts off")


@exercise("mean_errors")
def check_mean_errors() -> Iterator[tuple]:
    """Give back codes × scale and average |difference| over all: (one scale, one per row)."""
    table = _uneven_table(0.01, 0.1, 1, 1, 2, 9)
    scales = [np.abs(table).max(axis=axis, keepdims=True) / 127 for axis in (None, 1)]
    yield (table,), [np.abs(np.round(table / scale) * scale - table).mean() for scale in scales]


# notebook 09
@exercise("keep_unseen")
def check_keep_unseen(keep_unseen: Callable[..., tuple[list[int], list[float]]]) -> None:
    ids, scores = [7, 3, 9, 1, 4], [0.9, 0.8, 0.7, 0.6, 0.5]
    for seen, k, wanted in (({3, 1}, 2, [7, 9]), (set(), 3, [7, 3, 9]), ({7, 3, 9, 1}, 2, [4]), (set(ids), 2, [])):
        answer = keep_unseen(ids, scores, seen, k)
        if answer is None or len(answer) != 2:
            raise Hint("return two things: the ids and their scores")
        close(answer[0], wanted, f"with seen={seen or '{}'} and k={k} the list of ids", "Remove first, then cut.")
        close(answer[1], [scores[ids.index(i)] for i in wanted], "the list of scores", "Keep the two lists in step.")


@exercise("swap_bundle")
def check_swap(swap: Callable[..., bool]) -> None:
    def fails(*_: object) -> bool:
        raise ValueError("altered file")

    for what, load, try_out, wanted in (
        ("all is well", lambda: "new", lambda new: new == "new", "new"),
        ("load() raises", fails, lambda new: True, "old"),
        ("try_out() returns False", lambda: "new", lambda new: False, "old"),
        ("try_out() raises", lambda: "new", fails, "old"),
    ):
        live = {"now": "old"}

        def watched(new: str, live: dict = live, try_out: Callable = try_out) -> bool:
            if live["now"] != "old":
                raise Hint("the new one went live before it was tried out; assign after try_out")
            return try_out(new)

        try:
            replaced = swap(live, load, watched)
        except ValueError as error:
            raise Hint(f"when {what}, the error ({error}) reached the caller; the old one should go on") from error
        if (live["now"], replaced) != (wanted, wanted == "new"):
            found = f"when {what}, {live['now']!r} is live and it returned {replaced!r}"
            raise Hint(f"{found}; expected {wanted!r} and {wanted == 'new'}")


@exercise("shards_needed")
def check_shards_needed() -> Iterator[tuple]:
    """A GiB is 2**30 bytes; round one copy up to whole machines, then multiply by the replicas."""
    for movies, gib, replicas, machines in ((10**9, 32, 1, 8), (10**9, 32, 3, 24), (10**9, 60, 2, 8), (1682, 32, 2, 2)):
        yield (movies, 256, gib, replicas), machines


# notebook 10
@exercise("Exercise 1: how many users a difference needs", tolerance=1e-3)
def check_users_needed() -> Iterator[tuple]:
    """Set the difference equal to 2 · √(2 p (1 - p) / n) and solve for n."""
    for p, difference in ((0.25, 0.01), (0.5, 0.02), (0.1, 0.05)):
        expected = 8 * p * (1 - p) / difference**2
        yield (
            (p, difference),
            expected,
            (expected / 2, "Both settings are measured, so the variances of two means add up."),
            (expected / 4, "That is one standard error; clearly different means two."),
        )


@exercise("Exercise 2: the largest temperature")
def check_largest_temperature() -> Iterator[tuple]:
    for loss, n in ((0.01, 512), (1.0, 512), (2.5, 64)):
        yield (loss, n), *_temperature(loss, n)


def mystery_run(workspace: Workspace) -> tuple[DSSM, BatchBuilder, TrainingConfig]:
    """A model that somebody trained, the batches they trained it on, and how (notebook 10, "A mystery")."""
    batches = _FromAColleague(workspace.data, device=workspace.device)
    config = replace(RECIPES["dssm"].training, epochs=2)
    model = build_model(workspace.data, "dssm", seed=1).to(workspace.device)
    rows = np.random.default_rng(1).permutation(workspace.split.train)[:30_000]
    Trainer(model, batches, config).fit(rows, progress=False)
    return model, batches, config


class _FromAColleague(BatchBuilder):
    def users(self, positions: torch.Tensor | np.ndarray) -> Batch:
        positions = torch.as_tensor(positions, device=self.device)
        end = self.offsets[self.user[positions].long() + 1]
        return super().users(torch.minimum(positions + 1, end - 1))


@exercise("Exercise 3: a mystery")
def check_diagnosis(
    solve: Callable[..., tuple[str, BatchBuilder]], model: DSSM, batches: BatchBuilder, config: TrainingConfig
) -> None:
    cause, mended = solve(model, batches, config)
    if cause != "future_in_history":
        raise Hint(f"{cause!r} is not it. diagnose puts the most likely cause first; its name is diagnosis[0].name")
    positions = np.arange(0, len(batches.data), 7)
    wanted = BatchBuilder(batches.data, batches.max_history, batches.device).users(positions)["history"]
    if not torch.equal(mended.users(positions)["history"], wanted):
        raise Hint("the cause is right, but these batches have it still: a plain BatchBuilder ends histories in time")
