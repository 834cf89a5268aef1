"""Checks of the exercises of notebook 03."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from . import Hint, close, exercise

RANDOM = torch.Generator().manual_seed(0)
WIDTHS = {"age": 3, "genres": 3, "item_id": 4}
TABLES = {name: torch.randn(8, width, generator=RANDOM) for name, width in WIDTHS.items()}  # the padding row as well
LAYERS = partial(torch.matmul, other=torch.randn(7, 5, generator=RANDOM))


def _unit(*parts: Tensor) -> Tensor:
    return F.normalize(LAYERS(torch.cat(parts, dim=-1)), dim=-1)


@exercise("Exercise 2: a user tower from given tables")
def check_user_vectors(user_vectors: Callable[..., Tensor]) -> None:
    history = torch.tensor([[4, 5, 6, 0], [3, 0, 0, 0], [0, 0, 0, 0]])
    batch = {"age": torch.tensor([2, 3, 1]), "history": history}
    age, movies, present = TABLES["age"][batch["age"]], TABLES["item_id"][history], (history != 0).unsqueeze(-1)
    total, n = (movies * present).sum(dim=1), present.sum(dim=1)
    mean = total / n.clamp(min=1)
    x = LAYERS(torch.cat([age, mean], dim=-1))
    try:
        answer = user_vectors(dict(batch), dict(TABLES), LAYERS)
    except KeyError as error:
        raise Hint(f"there is no table {error}: whose rows are the movies of a history?") from error
    close(
        answer,
        _unit(age, mean),
        "the vectors of three users",
        "Age's row, then the mean over the slots in use; side by side; through the layers; divided by its length.",
        (_unit(age, movies.mean(dim=1)), "Padding counted as a movie: slots with 0 must not weigh."),
        (_unit(age, total / 4), "You divided by all slots; divide by the number of movies that are there."),
        (_unit(age, total / n), "The user without a history became 0 / 0; zeros are wanted."),
        (_unit(age, total), "That is the sum of the history: with it, whoever watched more gets a longer part."),
        (_unit(mean, age), "The history came first; the age should."),
        (x, "These vectors have many lengths; divide each by its own."),
        (x / x.norm(dim=0), "You divided along the batch: dim=0 runs over users, dim=-1 over a vector's numbers."),
    )


@exercise("Exercise 3: three faults in an item tower")
def check_item_vectors(item_vectors: Callable[..., Tensor]) -> None:
    item, genres = torch.tensor([2, 3, 4, 5]), torch.tensor([[2, 3], [4, 0], [5, 6], [0, 0]])

    def vectors(n: int = 4, padding: int = 0) -> Tensor:
        return item_vectors({"item_id": item[:n], "genres": F.pad(genres[:n], (0, padding))}, TABLES, LAYERS)

    answer, rows = vectors(), TABLES["genres"][genres] * (genres != 0).unsqueeze(-1)
    if torch.isnan(answer).any():
        raise Hint("a movie without any genre gets NaN, and one NaN spoils every score")
    if not torch.allclose(answer, vectors(padding=3), atol=1e-5):
        raise Hint("the same movies get other vectors when the genres column is padded by three more zeros")
    if (answer >= 0).all():
        raise Hint("no number in any vector is negative, so two movies are never more than a right angle apart")
    if not torch.allclose(answer[:1], vectors(n=1), atol=1e-5):
        raise Hint("a movie's vector changes with the movies that happen to be in the same batch")
    parts = TABLES["item_id"][item], rows.sum(dim=1) / (genres != 0).sum(dim=1, keepdim=True).clamp(min=1)
    why = "The three symptoms are gone, but something else has changed: the id, the mean of the genres, the layers."
    lengths = LAYERS(torch.cat(parts, dim=-1)), "They are no longer of length one."
    close(answer, _unit(*parts), "the vectors", why, lengths)
