"""Checks of the exercises of notebook 02."""

from __future__ import annotations

from collections.abc import Callable

import torch

from . import Hint, close, exercise
from .notebook_01 import small_data


def _small_histories() -> tuple[torch.Tensor, torch.Tensor]:
    """``[4, 5, 3]`` and their mask: five movies, two, one, none. Padding holds nines: whoever counts it sees it."""
    mask = torch.arange(5) < torch.tensor([5, 2, 1, 0]).unsqueeze(1)
    values = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    return values.where(mask.unsqueeze(2), 9.0), mask


@exercise("Exercise 1: a maximum that forgets")
def check_max_pooling(max_pooling: Callable[..., torch.Tensor]) -> None:
    embedded, mask = _small_histories()
    answer = max_pooling(embedded, mask)
    if torch.equal(answer, (embedded * mask.unsqueeze(2)).amax(dim=1)):
        raise Hint("as it was given. The three histories above are right; which numbers did they not have?")
    hidden = embedded.masked_fill(~mask.unsqueeze(2), -torch.inf).amax(dim=1)
    right = hidden.where(mask.any(dim=1, keepdim=True), 0.0)
    padding = embedded.amax(dim=1), "The nines are padding: it must not take part."
    empty = "An empty history gives -inf or a huge number, and the next matrix makes NaN of it: give zeros."
    close(answer, right, "the largest of each history", empty, padding)


@exercise("Exercise 2: pooling by attention")
def check_attention_pooling(attention_pooling: Callable[..., torch.Tensor]) -> None:
    embedded, mask = _small_histories()
    query = torch.tensor([0.7, -1.2, 0.4], requires_grad=True)
    scores = (embedded @ query).detach()
    present = scores.masked_fill(~mask, -torch.inf).softmax(dim=1)
    weights = {
        "The padding takes part: give it a score so low that it gets no weight.": scores.softmax(dim=1),
        "The padding took its share in the softmax: mask before it, not only after.": scores.softmax(dim=1) * mask,
        "A score of 0 is not no score, a softmax gives it e^0 = 1. What gives nothing?": (scores * mask).softmax(dim=1),
        "The empty history is a softmax of nothing, 0 / 0: give zeros.": present,
    }
    mistakes = [((weight.unsqueeze(2) * embedded).sum(dim=1), hint) for hint, weight in weights.items()]
    right = (present.nan_to_num().unsqueeze(2) * embedded).sum(dim=1)
    answer = attention_pooling(embedded, mask, query)
    close(answer, right, "the pooled histories", "Weights: a softmax of embedded @ query over the movies.", *mistakes)
    answer.sum().backward()
    close(query.grad.isfinite().all(), True, "learning", "The gradient is NaN: an empty history divides 0 by 0.")


@exercise("Exercise 3: whose history is this?")
def check_histories(histories: Callable[..., torch.Tensor]) -> None:
    data = small_data()
    start = int(data.offsets[5])
    positions = start + torch.tensor([0, 1, 2, 7])

    def read(nearest: int, begin: int) -> torch.Tensor:
        earlier = positions.unsqueeze(1) - nearest - torch.arange(4)
        return torch.from_numpy(data.item).long()[earlier] * (earlier >= begin)

    answer, right = histories(data, positions, 4), read(1, start)
    if torch.equal(answer, read(0, 0)):
        raise Hint("as it was given. What should a user's first rating have as history, and what does it get?")
    mistakes = (
        (read(0, start), "Slot 0 holds the target itself: the newest movie is one step back."),
        (read(1, 0), "Short histories go on with the user before: where does this user begin?"),
        (read(1, start + 1), "The user's very first movie is missing: it stands at the start, not behind it."),
        (right.flip(1), "Slot 0 holds the oldest movie, or padding: the newest comes first."),
    )
    close(answer, right, "of a user's ratings 1, 2, 3 and 8, the histories", "Reverse what precedes.", *mistakes)
