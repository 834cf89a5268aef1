"""Checks for the exercises: what is wrong, and a hint how to go on, instead of a traceback.

A check prints ``✓`` or ``✗`` with a hint and returns whether it passed. With ``DSSM_STRICT=1`` (CI, where the
solutions run) a failed check raises, so a wrong solution cannot look green.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from .data import EncodedData, encode, synthetic
from .features import Batch, BatchBuilder
from .model import DSSM
from .retrieval import build_index
from .training import Trainer, TrainingConfig, loss_at_chance
from .vocabulary import Vocabulary
from .workspace import RECIPES, Workspace, build_model, strict


class Hint(Exception):
    """What is wrong with an answer and how to go on."""


@dataclass(frozen=True)
class Verdict:
    """What a check returns: true if the answer passed. Shows nothing at the end of a cell, where all has been said."""

    passed: bool

    def __bool__(self) -> bool:
        return self.passed

    def _ipython_display_(self) -> None:
        pass


def exercise(title: str) -> Callable[[Callable[..., None]], Callable[..., Verdict]]:
    """Turn a function that raises :class:`Hint` on a wrong answer into a check that reports."""

    def decorate(check: Callable[..., None]) -> Callable[..., Verdict]:
        @functools.wraps(check)
        def report(*answer: object) -> Verdict:
            problem = None
            try:
                check(*answer)
            except Hint as hint:
                problem = str(hint)
            except NotImplementedError:
                problem = "nothing here yet: replace the `raise NotImplementedError` line with your code"
            except Exception as error:
                # Whatever a learner's code raises is an answer to comment on, not a failure of the check.
                problem = f"your code raised {type(error).__name__}: {error}"
            print(f"✓ {title}" if problem is None else f"✗ {title}: {problem}")
            if problem is not None and strict():
                raise AssertionError(f"{title}: {problem}")
            return Verdict(problem is None)

        return report

    return decorate


def close(answer: object, expected: object, what: str, hint: str, tolerance: float = 1e-5) -> None:
    """Raise a :class:`Hint` unless ``answer`` equals ``expected`` in shape and, within ``tolerance``, in value."""
    if answer is None:
        raise Hint(f"{what} is None; did you forget to return it?")
    got = np.asarray(answer.detach() if isinstance(answer, torch.Tensor) else answer, dtype=np.float64)
    wanted = np.asarray(expected.detach() if isinstance(expected, torch.Tensor) else expected, dtype=np.float64)
    if got.shape != wanted.shape:
        raise Hint(f"{what} has shape {got.shape}, expected {wanted.shape}. {hint}")
    if not np.allclose(got, wanted, atol=tolerance, rtol=tolerance):
        raise Hint(f"{what} is {np.round(got, 4)}, expected {np.round(wanted, 4)}. {hint}")


# -- notebook 00 ------------------------------------------------------------------------------------------------------


@exercise("a history of your own")
def check_my_history(my_history: Callable, n_items: int) -> None:
    """``my_history() -> list[int]``: three or more different movie indices below ``n_items``."""
    history = my_history()
    if history is None:
        raise Hint("the function returns nothing; end it with `return find([...])`")
    if any(isinstance(movie, str) for movie in history):
        raise Hint("these are titles; the model wants indices: pass the titles to find([...])")
    if len(set(history)) < 3 or len(set(history)) < len(history):
        raise Hint(f"{history} are not three or more different movies; does each beginning match a title of its own?")
    if not all(2 <= movie < n_items for movie in history):
        raise Hint(f"movie indices go from 2 to {n_items - 1}, 0 is padding and 1 is unknown; got {history}")


@exercise("overlap of two lists")
def check_overlap(overlap: Callable) -> None:
    """``overlap(first, second) -> float``."""
    hint = "Count the entries of the first list that the second has too, and divide by the length of the first."
    close(overlap([1, 2, 3, 4], [4, 3, 9, 8]), 0.5, "the overlap of [1, 2, 3, 4] and [4, 3, 9, 8]", hint)
    close(overlap([1, 2], [2, 1]), 1.0, "the overlap of [1, 2] and [2, 1]", "The order of a list does not matter here.")
    close(overlap(["a"], ["b"]), 0.0, "the overlap of two lists with nothing in common", hint)


# -- notebook 01 ------------------------------------------------------------------------------------------------------


def _small_data() -> EncodedData:
    return encode(synthetic(n_ratings=600, n_users=20, n_movies=200, seed=3))


@exercise("Exercise 1: how much is unknown?")
def check_unseen_share(unseen_share: Callable[[Vocabulary, np.ndarray], float]) -> None:
    vocabulary = Vocabulary.fit("colour", ["blue", "green", "red"])
    hint = "encode the values; UNKNOWN (index 1) marks those the vocabulary has never seen"
    cases = ((["red", "pink"], 0.5), (["blue", "green"], 0.0), (["grey"], 1.0), (["red", "red", "red", "pink"], 0.25))
    for values, expected in cases:
        close(unseen_share(vocabulary, np.array(values)), expected, f"the share for {values}", hint)


@exercise("Exercise 2: the newest movies first")
def check_history_of(history_of: Callable[[EncodedData, int, int], np.ndarray]) -> None:
    data = _small_data()
    for user in (2, 5, 9):
        start, end = data.offsets[user : user + 2]
        for position in (start, start + 1, end - 1):
            for length in (1, 3, 1_000):
                past = data.history(position)
                expected = past[::-1][:length]
                answer = history_of(data, int(position), length)
                hint = "It holds the user's movies before the position; reverse them, then keep the first `length`."
                if answer is not None and len(answer) > len(past):
                    hint = "Those are movies of the user before: a history starts at data.offsets[user]."
                elif answer is not None and len(past) > length and np.array_equal(answer, past[:length][::-1]):
                    hint = "Those are the user's oldest movies; keep the newest."
                elif answer is not None and len(expected) > 1 and np.array_equal(answer, expected[::-1]):
                    hint = "The right movies in the wrong order: the newest comes first."
                close(answer, expected, f"the history at position {position} with length {length}", hint)


@exercise("Exercise 3: one moment for everybody")
def check_split_at(split_at: Callable[[EncodedData, int], tuple[np.ndarray, np.ndarray]]) -> None:
    data = _small_data()
    moments = [int(data.timestamp[data.offsets[2] + 1]), int(np.quantile(data.timestamp, 0.6)), 0]
    for moment in moments:
        answer = split_at(data, moment)
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise Hint("return two arrays of positions: training and test")
        train, test = np.asarray(answer[0], dtype=np.int64), np.asarray(answer[1], dtype=np.int64)
        expected_train, expected_test = [], []
        for user in range(data.n_users):
            positions = np.arange(data.offsets[user], data.offsets[user + 1])
            before = positions[data.timestamp[positions] < moment]
            expected_train += before.tolist()
            if 0 < len(before) < len(positions):
                expected_test.append(int(before[-1]) + 1)
        close(train, expected_train, "train", "It is every position with a timestamp before the moment.")
        if set(test.tolist()) > set(expected_test):
            raise Hint(
                "the test holds too much: one position per user, the first at or after the moment, and only of users "
                "with a rating before it"
            )
        close(test, expected_test, "test", "It is the first position of a user at or after the moment, sorted.")


# -- notebook 02 ------------------------------------------------------------------------------------------------------


@exercise("Exercise 1: the last few movies")
def check_mean_of_newest(mean_of_newest: Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    embedded = torch.randn(4, 5, 3, generator=generator)
    lengths = torch.tensor([5, 2, 1, 0])
    mask = torch.arange(5) < lengths.unsqueeze(1)
    embedded = torch.where(mask.unsqueeze(-1), embedded, torch.tensor(9.0))  # whoever forgets the mask sees it at once
    for k in (1, 3, 10):
        rows = [embedded[b, : min(k, n)].mean(dim=0) if n else torch.zeros(3) for b, n in enumerate(lengths.tolist())]
        answer = mean_of_newest(embedded, mask, k)
        hint = "Place 0 is the newest: cut embedded and mask to the first k places, then take the masked mean."
        if isinstance(answer, torch.Tensor) and answer.isnan().any():
            raise Hint("an empty history gives NaN (0 / 0): clamp the number of movies to at least 1")
        close(answer, torch.stack(rows), f"the mean of the newest {k}", hint)


@exercise("Exercise 2: your own sampler")
def check_power_probabilities(power_probabilities: Callable[[np.ndarray, float], np.ndarray]) -> None:
    counts = np.array([7, 7, 100, 10, 1, 0])
    for power in (0.0, 0.5, 1.0):
        weight = np.array([0, 0, *(counts[2:].astype(float) ** power)])
        answer = np.asarray(power_probabilities(counts, power), dtype=float)
        if answer.shape == counts.shape and answer[:2].any():
            raise Hint("rows 0 and 1 are padding and unknown, no movies: their probability must be 0")
        if answer.shape == counts.shape and not np.isclose(answer.sum(), 1):
            raise Hint(f"the probabilities sum to {answer.sum():.4f}; divide the weights by their sum")
        close(answer, weight / weight.sum(), f"probabilities for power {power}", "Raise each count to the power first.")


@exercise("Exercise 3: accidental hits")
def check_accidental_hits(accidental_hits: Callable[[torch.Tensor], torch.Tensor]) -> None:
    items = torch.tensor([4, 7, 4, 9, 7, 4])
    expected = torch.tensor([[i != j and a == b for j, b in enumerate(items)] for i, a in enumerate(items)])
    answer = accidental_hits(items)
    if isinstance(answer, torch.Tensor) and answer.shape == expected.shape and answer.diagonal().any():
        raise Hint("a row's own movie is its positive: the diagonal must be False")
    close(answer, expected, "the table of hits", "Entry [i, j] is true where items i and j are the same movie, i ≠ j.")


# -- notebook 03 ------------------------------------------------------------------------------------------------------


@exercise("Exercise 1: all cosines at once")
def check_cosine_matrix(cosine_matrix: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
    users = torch.tensor([[3.0, 4.0], [0.0, -2.0]])
    movies = torch.tensor([[6.0, 8.0], [1.0, 0.0], [0.5, -0.5]])
    answer = cosine_matrix(users.clone(), movies.clone())
    hint = "Divide every row by its length first; then one matrix product of users with the transposed movies."
    if isinstance(answer, torch.Tensor) and answer.shape == (2, 3) and torch.allclose(answer, users @ movies.T):
        raise Hint("these are dot products of vectors as they come: long vectors win; bring both sides to length one")
    close(answer, [[1.0, 0.6, -0.141421], [-0.8, 0.0, 0.707107]], "the matrix", hint)


@exercise("Exercise 2: the highest temperature that will do")
def check_highest_temperature(highest_temperature: Callable[[int, float], float]) -> None:
    for n_candidates, loss in ((512, 1.0), (2_000, 0.1), (1_000_000, 0.01)):
        answer = highest_temperature(n_candidates, loss)
        hint = "Solve loss = ln(1 + (n - 1) e^(-2/T)) for T: take exp on both sides, subtract 1, divide, take the log."
        if answer is not None and answer < 0:
            hint = "A temperature is positive: mind the sign when you take the logarithm of a number below 1."
        expected = 2 / math.log((n_candidates - 1) / math.expm1(loss))
        close(answer, expected, f"the temperature for n = {n_candidates:,} and loss {loss}", hint)


@exercise("Exercise 3: count before you train")
def check_tower_parameters(tower_parameters: Callable[[int, list[int]], int]) -> None:
    for width, dims in ((10, [4]), (10, [4, 3]), (96, [256, 64]), (7, [5, 4, 3])):
        sizes = [width, *dims]
        weights = sum(i * o for i, o in itertools.pairwise(sizes))
        expected = weights + sum(dims) + len(dims) - 1
        answer = tower_parameters(width, list(dims))
        hint = "A linear layer from i to o columns has i × o weights and o shifts; a PReLU has one slope."
        if answer == weights:
            hint = "Those are the matrices alone: each layer also adds a shift per output."
        elif answer == expected - (len(dims) - 1):
            hint = "The linear layers are right. One slope for each PReLU is missing (none after the last layer)."
        close(answer, expected, f"the count for width {width} and dims {dims}", hint)


# -- notebook 04 ------------------------------------------------------------------------------------------------------


@exercise("Exercise 1: a corrected list-wise loss")
def check_corrected_list_wise(corrected_list_wise: Callable[..., torch.Tensor]) -> None:
    generator = torch.Generator().manual_seed(5)
    positive, negative = torch.randn(3, generator=generator), torch.randn(3, 4, generator=generator)
    log_q_positive = -5 * torch.rand(3, generator=generator)
    log_q_negative = -5 * torch.rand(3, 4, generator=generator)
    answer = corrected_list_wise(positive, negative, log_q_positive, log_q_negative)
    corrected, others = positive - log_q_positive, negative - log_q_negative

    def loss(first: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
        return -torch.cat([first.unsqueeze(1), rest], dim=1).log_softmax(dim=1)[:, 0].mean()

    hint = "Subtract each score's own log q, put the positive in column 0, take the softmax over all columns."
    for wrong, why in (
        (loss(positive, negative), "That is the loss without any correction."),
        (loss(positive + log_q_positive, negative + log_q_negative), "The sign is the wrong way: subtract log q."),
        (loss(positive, others), "The positive stands among the candidates too: correct it like the others."),
    ):
        if isinstance(answer, torch.Tensor) and answer.shape == () and torch.allclose(answer, wrong):
            hint = why
    close(answer, loss(corrected, others), "the loss", hint)


@exercise("Exercise 2: the loss at chance")
def check_chance_loss(chance_loss: Callable[[int, np.ndarray], float]) -> None:
    for batch_size, counts in ((512, [10, 10, 10, 10]), (64, [0, 0, 6, 3, 1]), (2, [1])):
        counts = np.array(counts)
        hint = "ln B + Σ q ln(n q): q are the shares of the movies with at least one rating, n how many those are."
        if (counts == 0).any():
            hint += " Leave movies without ratings out, or the logarithm of 0 gets in."
        expected = loss_at_chance(TrainingConfig(batch_size=batch_size), counts)
        close(chance_loss(batch_size, counts), expected, f"the loss for B = {batch_size}, counts {counts}", hint)


@exercise("Exercise 3: when to stop")
def check_should_stop(should_stop: Callable[[list[float], int], bool]) -> None:
    cases = (
        ([], 2, False, "no epoch has been run yet"),
        ([0.1, 0.2, 0.3], 2, False, "every epoch was better than the one before"),
        ([0.1, 0.3, 0.2], 2, False, "only one epoch has passed since the best"),
        ([0.1, 0.3, 0.2, 0.25], 2, True, "two epochs have passed since the best, though the last went up a little"),
        ([0.3, 0.3, 0.3], 2, True, "a tie is no improvement"),
        ([0.3, 0.2, 0.31, 0.2], 2, False, "the third epoch set a new best; count from there"),
        ([0.3, 0.2], 1, True, "with patience 1 the first epoch without a new best is the last"),
    )
    for scores, patience, expected, why in cases:
        answer = should_stop(list(scores), patience)
        if answer is None:
            raise Hint("the answer is None; did you forget to return it?")
        if bool(answer) != expected:
            raise Hint(f"for {scores} and patience {patience} expected {expected}: {why}")


# -- notebook 05 ------------------------------------------------------------------------------------------------------


@exercise("mean reciprocal rank")
def check_mean_reciprocal_rank(mean_reciprocal_rank: Callable) -> None:
    """``mean_reciprocal_rank(ranks [n]) -> float``."""
    close(mean_reciprocal_rank(np.array([1.0])), 1.0, "MRR of rank 1", "A first place is worth 1.")
    ranks = np.array([1.0, 2.0, 4.0])
    answer = mean_reciprocal_rank(ranks)
    if np.ndim(answer) == 0 and np.isclose(answer, 1 / ranks.mean()):
        raise Hint("you inverted the mean rank; average the inverses, so that one bad rank cannot ruin everything")
    close(answer, (1 + 1 / 2 + 1 / 4) / 3, "MRR of ranks 1, 2, 4", "Divide 1 by each rank, then average over users.")


@exercise("expected Hit@k with shuffled ties")
def check_expected_hit(expected_hit: Callable) -> None:
    """``expected_hit(scores [B, I], target [B], k) -> [B]``."""
    scores = torch.tensor([[0.9, 0.5, 0.5, 0.5, 0.1], [0.9, 0.8, 0.7, 0.6, 0.5], [0.2, 0.2, 0.2, 0.2, 0.2]])
    target = torch.tensor([1, 2, 4])
    for k, expected in ((1, [0, 0, 0.2]), (2, [1 / 3, 0, 0.4]), (3, [2 / 3, 1, 0.6]), (5, [1, 1, 1])):
        close(
            expected_hit(scores.clone(), target, k),
            expected,
            f"expected Hit@{k} of the three test rows",
            "With a above and t others tied the target takes one of t + 1 places, a + 1 to a + t + 1; "
            "k - a of them are good, but never fewer than 0 nor more than t + 1.",
        )


@exercise("popular movies of the genre watched last")
def check_recent_genre(recent_genre_scores: Callable) -> None:
    """``recent_genre_scores(newest [B], genres [I, G], counts [I]) -> [B, I]``."""
    genres = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1]])
    counts = torch.tensor([9.0, 5, 3, 8, 7])
    close(
        recent_genre_scores(torch.tensor([1, 2, 4]), genres, counts),
        [[0, 5, 3, 0, 0], [0, 5, 3, 8, 0], [0, 0, 0, 0, 7]],
        "the score of five movies for three users",
        "genres[newest] @ genres.T counts the genres two movies share; with one or more a movie keeps its count.",
    )


# -- notebook 06 ------------------------------------------------------------------------------------------------------


@exercise("search without the seen")
def check_search_unseen(answer: Callable) -> None:
    vectors = np.random.default_rng(0).normal(size=(40, 4))
    index = build_index(vectors, 100 + 3 * np.arange(40))
    for query in vectors[:5]:
        order = index.search(query, 40)[0][0]
        cases = (
            ("with nothing seen", [], order[:5]),
            ("when the best 8 are all seen", order[:8], order[8:13]),
            ("when 38 of 40 are seen, so only 2 are left", order[:38], order[38:]),
            ("when a seen id is not in the index", [*order[:2].tolist(), 5], order[2:7]),
        )
        for what, seen, expected in cases:
            got = np.asarray(answer(index, query, np.asarray(seen, dtype=np.int64), 5))
            if got.ndim != 1:
                raise Hint(f"expected one array of ids [k], got shape {got.shape}; search returns [1, n], take row 0")
            if np.isin(got, seen).any():
                raise Hint(f"{what}, seen ids came back; np.isin(ids, seen_ids) marks them")
            if len(got) != len(expected):
                raise Hint(f"{what}, {len(got)} ids came back, expected {len(expected)}; fetch k + len(seen_ids)")
            close(got, expected, f"{what}, the answer", "Keep the order of the search, best first.")


@exercise("the cheapest nprobe")
def check_cheapest_nprobe(answer: Callable) -> None:
    class Dial:
        """Looks like an index; with nprobe cells searched it finds the first nprobe of ten neighbours."""

        nprobe = 1

        def tune(self, nprobe: int) -> Dial:
            self.nprobe = nprobe
            return self

        def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
            found = np.where(np.arange(k) < self.nprobe, np.arange(k), 1000 + np.arange(k))
            return np.tile(found, (len(queries), 1)), np.zeros((len(queries), k), dtype=np.float32)

    queries, exact = np.zeros((3, 4), dtype=np.float32), np.tile(np.arange(10), (3, 1))
    cases = ((0.5, (1, 2, 5, 10), 5), (0.55, (10, 6, 5, 1), 6), (0.0, (4, 2), 2), (1.0, (1, 9), None))
    for target, choices, expected in cases:
        got = answer(Dial(), queries, exact, target, choices)
        if got != expected:
            hint = (
                "None says that no choice is enough."
                if expected is None
                else "Sort the choices, and return the first with recall ≥ target (a recall equal to it is enough)."
            )
            raise Hint(f"target {target}, choices {choices}: the answer is {got}, expected {expected}. {hint}")


@exercise("megabytes of an index")
def check_index_megabytes(answer: Callable) -> None:
    cases = (
        ("a million float32 vectors of 64", (1_000_000, 64, "float32"), 256.0, "4 bytes for each of n · dim numbers."),
        ("the same in sq8", (1_000_000, 64, "sq8"), 64.0, "One byte a number."),
        ("the same in pq with 16 codes", (1_000_000, 64, "pq"), 16.0, "m bytes a vector, whatever dim is."),
        ("a billion in pq with 32 codes", (10**9, 128, "pq", 32), 32_000.0, "m bytes a vector, whatever dim is."),
    )
    for what, arguments, expected, hint in cases:
        close(answer(*arguments), expected, what, hint)


# -- notebook 07 ------------------------------------------------------------------------------------------------------


@exercise("a share of mutual neighbours")
def check_mutual_share(mutual_share: Callable[[np.ndarray], float]) -> None:
    """Three rows by hand, then a ring in which every relation holds both ways."""
    rows = np.array([[1], [0], [0]])
    close(
        mutual_share(rows), 2 / 3, "the share for rows [[1], [0], [0]]",
        "0 and 1 name each other; 2 names 0, who does not name 2. Count relations, not pairs of movies.",
    )  # fmt: skip
    ring = (np.arange(6)[:, None] + [-1, 1]) % 6
    close(mutual_share(ring), 1.0, "the share for a ring", "In a ring everybody names both sides, so all is mutual.")


@exercise("neighbours kept on the map")
def check_kept_on_the_map(kept_on_the_map: Callable[[np.ndarray, np.ndarray], float]) -> None:
    """Order must not matter, and a neighbour is compared within its own row only."""
    vectors = np.array([[1, 2], [0, 3], [3, 0], [2, 1]])
    shuffled = vectors[:, ::-1]
    close(kept_on_the_map(vectors, shuffled), 1.0, "the share for the same lists in another order",
          "Compare the lists as sets: whether each true neighbour is anywhere in the map's list.")  # fmt: skip
    on_map = np.array([[1, 3], [2, 3], [1, 2], [3, 0]])
    close(kept_on_the_map(vectors, on_map), 2 / 8, "the share for a map that keeps 2 of 8 neighbours",
          "Look in the same row of both arrays, and divide by the number of true neighbours, n times k.")  # fmt: skip


@exercise("places that hold half of the weight")
def check_places_for_half(places_for_half: Callable[[np.ndarray], int]) -> None:
    """A plain case, an exact half, and weights that do not sum to 1."""
    hint = "Add up the weights from the newest on (np.cumsum) and count places until half of the total is reached."
    close(places_for_half(np.array([0.2, 0.2, 0.2, 0.4])), 3, "the answer for [.2, .2, .2, .4]", hint)
    close(places_for_half(np.array([0.5, 0.25, 0.25])), 1, "the answer for [.5, .25, .25]", f"Half is enough. {hint}")
    close(places_for_half(np.array([1.0, 1.0, 4.0, 2.0])), 3, "the answer for [1, 1, 4, 2]",
          "The weights need not sum to 1: compare with half of their sum.")  # fmt: skip


# -- notebook 08 ------------------------------------------------------------------------------------------------------


@exercise("guard")
def check_guard(guard: Callable[[str, np.ndarray, int], None]) -> None:
    """Valid ids pass; -1 and the vocabulary size are refused by name, value and limit."""
    for fine in (
        np.array([0, 1, 9]),
        np.array([[0, 9]]),
        np.empty(0, dtype=np.int64),
        np.empty((2, 0), dtype=np.int64),
    ):
        try:
            guard("age", fine, 10)
        except ValueError as error:
            raise Hint(f"{fine.tolist()} are valid ids of a vocabulary of 10, but it raised: {error}") from error
    for bad, ids in ((-1, np.array([3, -1])), (10, np.array([[0, 10], [2, 3]])), (-7, np.array([-7]))):
        try:
            guard("age", ids, 10)
        except ValueError as error:
            for part, what in (("age", "the input's name"), (str(bad), "the bad id"), ("9", "the largest valid id")):
                if part not in str(error):
                    raise Hint(f"the message {str(error)!r} does not contain {what}, {part}") from error
        else:
            raise Hint(f"{ids.tolist()} passed, although {bad} is outside 0 … 9; check both ends")


@exercise("quantise_rows")
def check_quantise_rows(quantise_rows: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]) -> None:
    """Codes and scales give back a table whose rows differ a hundredfold in size, one of them all zeros."""
    table = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32) * np.array([[0], [0.01], [1], [1], [100]])
    with np.errstate(all="ignore"):
        codes, scales = quantise_rows(table.astype(np.float32))
    if np.asarray(codes).dtype != np.int8:
        raise Hint(f"codes are {np.asarray(codes).dtype}, expected int8: use .astype(np.int8) after rounding")
    if np.shape(scales) != (5,):
        raise Hint(
            f"scales have shape {np.shape(scales)}, expected (5,), one per row: the largest |w| along axis 1 / 127"
        )
    if not np.isfinite(scales).all() or np.any(codes[0]):
        raise Hint("the padding row is all zeros and its scale is 0: do not divide by it")
    error = np.abs(codes * np.asarray(scales)[:, None] - table).max(axis=1)
    allowed = np.abs(table).max(axis=1) / 127 / 2
    if (error > 1.01 * allowed + 1e-9).any():
        row = int(np.argmax(error - allowed))
        raise Hint(
            f"row {row} is off by up to {error[row]:.4g}, half a scale is {allowed[row]:.4g}. The largest |w| of a row "
            "should become 127; round before converting, since astype cuts off"
        )


@exercise("mean_errors")
def check_mean_errors(mean_errors: Callable[[np.ndarray], tuple[float, float]]) -> None:
    """Mean absolute rounding error of a table with one scale, and with one scale per row."""
    table = np.random.default_rng(1).normal(size=(6, 8)).astype(np.float32) * np.array(
        [[0.01], [0.1], [1], [1], [2], [9]]
    )
    wanted = []
    for axis in (None, 1):
        scale = np.abs(table).max(axis=axis, keepdims=True) / 127
        wanted.append(np.abs(np.round(table / scale) * scale - table).mean())
    close(
        mean_errors(table), wanted, "(one scale, per row)", "Give back codes × scale and average |difference| over all."
    )


# -- notebook 09 ------------------------------------------------------------------------------------------------------


@exercise("keep_unseen")
def check_keep_unseen(keep_unseen: Callable[..., tuple[list[int], list[float]]]) -> None:
    """The first k unseen in order, fewer where fewer are left."""
    ids, scores = [7, 3, 9, 1, 4], [0.9, 0.8, 0.7, 0.6, 0.5]
    for seen, k, wanted in (({3, 1}, 2, [7, 9]), (set(), 3, [7, 3, 9]), ({7, 3, 9, 1}, 2, [4]), (set(ids), 2, [])):
        answer = keep_unseen(ids, scores, seen, k)
        if answer is None or len(answer) != 2:
            raise Hint("return two things: the ids and their scores")
        got, got_scores = list(answer[0]), list(answer[1])
        if got != wanted:
            raise Hint(
                f"with seen={seen or '{}'} and k={k} the ids are {got}, expected {wanted}; remove first, then cut"
            )
        if got_scores != [scores[ids.index(i)] for i in wanted]:
            raise Hint(f"the scores {got_scores} do not belong to the ids {got}; keep the two lists in step")


@exercise("swap_bundle")
def check_swap(swap: Callable[..., bool]) -> None:
    """Replaced when all is well; the old one stays when loading or trying fails."""

    def fails(*_: object) -> bool:
        raise ValueError("altered file")

    cases = {
        "all is well": (lambda: "new", lambda new: new == "new", "new"),
        "load() raises": (fails, lambda new: True, "old"),
        "try_out() returns False": (lambda: "new", lambda new: False, "old"),
        "try_out() raises": (lambda: "new", fails, "old"),
    }
    for case, (load, try_out, wanted) in cases.items():
        live = {"now": "old"}

        def watched(new: str, live: dict = live, try_out: Callable = try_out) -> bool:
            if live["now"] != "old":
                raise Hint("the new one went live before it was tried out; assign after try_out")
            return try_out(new)

        try:
            replaced = swap(live, load, watched)
        except ValueError as error:
            raise Hint(
                f"when {case}, the error reached the caller ({error}); the old one should go on serving"
            ) from error
        if live["now"] != wanted:
            raise Hint(f"when {case}, {live['now']!r} is live, expected {wanted!r}")
        if replaced is not (wanted == "new"):
            raise Hint(f"when {case}, it returned {replaced!r}, expected {wanted == 'new'}")


@exercise("shards_needed")
def check_shards_needed(shards_needed: Callable[[int, float, float, int], int]) -> None:
    """Whole machines, rounded up per replica set."""
    for arguments, wanted in (
        ((10**9, 256, 32, 1), 8),
        ((10**9, 256, 32, 3), 24),
        ((10**9, 256, 60, 2), 8),
        ((1682, 256, 32, 2), 2),
    ):
        got = shards_needed(*arguments)
        if got != wanted:
            raise Hint(
                f"shards_needed{arguments} is {got}, expected {wanted}. A GiB is 2**30 bytes; round one copy up to "
                "whole machines first, then multiply by the replicas"
            )


# -- notebook 10 ------------------------------------------------------------------------------------------------------


@exercise("Exercise 1: how many users a difference needs")
def check_users_needed(users_needed: Callable[[float, float], float]) -> None:
    for p, difference in ((0.25, 0.01), (0.5, 0.02), (0.1, 0.05)):
        answer, expected = users_needed(p, difference), 8 * p * (1 - p) / difference**2
        hint = "Set the difference equal to 2 · √(2 p (1 - p) / n) and solve for n."
        if answer is not None and math.isclose(answer, expected / 2, rel_tol=0.01):
            hint = "Both settings are measured, so the variances of two means add up."
        elif answer is not None and math.isclose(answer, expected / 4, rel_tol=0.01):
            hint = "That is one standard error; clearly different means two."
        close(answer, expected, f"the number of users for p = {p}, difference {difference}", hint, tolerance=1e-3)


@exercise("Exercise 2: the largest temperature")
def check_largest_temperature(largest_temperature: Callable[[float, int], float]) -> None:
    for loss, n in ((0.01, 512), (1.0, 512), (2.5, 64)):
        expected = 2 / math.log((n - 1) / math.expm1(loss))
        hint = "Solve loss = ln(1 + (n - 1) e^(-2/T)) for T: first e to both sides, then the logarithm of what is left."
        close(largest_temperature(loss, n), expected, f"the temperature for loss {loss} over {n} movies", hint)


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
