"""Checks for the exercises: what is wrong, and a hint how to go on, instead of a traceback.

A check prints ``✓`` or ``✗`` with a hint and returns whether it passed. With ``DSSM_STRICT=1`` (CI, where the
solutions run) a failed check raises, so a wrong solution cannot look green.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable

import numpy as np
import torch

from .data import EncodedData, encode, synthetic
from .training import TrainingConfig, loss_at_chance
from .vocabulary import Vocabulary
from .workspace import strict


class Hint(Exception):
    """What is wrong with an answer and how to go on."""


def exercise(title: str) -> Callable[[Callable[..., None]], Callable[..., bool]]:
    """Turn a function that raises :class:`Hint` on a wrong answer into a check that reports."""

    def decorate(check: Callable[..., None]) -> Callable[..., bool]:
        @functools.wraps(check)
        def report(*answer: object) -> bool:
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
            return problem is None

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
        "genres[newest] @ genres.T counts the genres two movies share; one or more keeps the movie's count, none gives 0.",
    )


# -- notebook 06 ------------------------------------------------------------------------------------------------------

# -- notebook 07 ------------------------------------------------------------------------------------------------------

# -- notebook 08 ------------------------------------------------------------------------------------------------------

# -- notebook 09 ------------------------------------------------------------------------------------------------------

# -- notebook 10 ------------------------------------------------------------------------------------------------------
