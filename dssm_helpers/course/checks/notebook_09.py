"""Checks of the exercises of notebook 09."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ...retrieval import ExactIndex, build_index
from ...vocabulary import Vocabulary
from . import Hint, exercise


def fan(ids: np.ndarray) -> ExactIndex:
    """An index in the plane: the nearest of (1, 0) is the first id, then the second, and so on."""
    angles = np.linspace(0, 1.5, len(ids))
    return build_index(np.stack([np.cos(angles), np.sin(angles)], axis=1), ids)


@exercise("Exercise 2: neither seen nor of that genre")
def check_recommend_without(recommend: Callable[..., list[int]]) -> None:
    ids = np.arange(100, 140)
    few = {item: {"Drama"} for item in ids.tolist()} | {100: {"Horror", "Comedy"}, 103: {"Horror"}}
    many = few | {item: {"Horror"} for item in range(105, 130)}
    for seen, genres, k in (({101, 104}, few, 3), (set(), few, 5), ({101}, many, 6), ({*range(130, 139)}, many, 5)):
        horror = {item for item, names in genres.items() if "Horror" in names}
        wanted = [item for item in ids.tolist() if item not in seen | horror][:k]
        case = f"k={k}, {len(seen)} seen, {len(horror)} of the unwanted genre"
        try:
            answer = recommend(fan(ids), np.array([1.0, 0.0]), set(seen), dict(genres), "Horror", k)
        except ValueError as error:
            raise Hint(f"{case}: {error}. Pass allow_fewer=True and return what is left") from error
        if not isinstance(answer, list):
            raise Hint(f"{case}: expected a list of ids, got {answer!r}; `ids[0].tolist()` is one.")
        for unwanted, why in (
            (seen, "which was seen. The search takes one set of ids to exclude: put both kinds into it"),
            (horror - {100}, "which is of that genre. `genres` says of each id what it is"),
            (horror, "a horror comedy. One of several genres is enough to leave a movie out"),
            ({-1}, "which is no movie: the search pads a short answer with it. Leave it out"),
        ):
            if back := unwanted & set(answer):
                raise Hint(f"{case}: the answer contains {min(back)}, {why}.")
        if len(answer) < len(wanted):
            few = f"{len(answer)} answers, {len(wanted)} exist"
            raise Hint(f"{case}: {few}. Exclude in the search, not from what it found.")
        if answer != wanted:
            raise Hint(f"{case}: expected {wanted}, the nearest first, got {answer}.")


@exercise("Exercise 3: the faulty server")
def check_serve(serve: Callable[..., list[int]]) -> None:
    movies, slots = np.arange(1000, 1120), []
    vocabularies = {"user_id": Vocabulary("user_id", [7]), "item_id": Vocabulary("item_id", movies)}

    def tower(batch: dict[str, np.ndarray]) -> np.ndarray:
        slots[:] = (batch["history"][0, :50] + 998).tolist()  # the ids again
        return np.array([[1.0, 0.0]])

    for n in (3, 50, 70):
        case, history, right = f"after {n} movies", movies[:n].tolist(), movies[:n][::-1][:50].tolist()
        answer = serve(tower, fan(movies), vocabularies, {"user_id": 7}, list(history), 5)
        if slots == right[::-1]:
            raise Hint(f"{case} the tower gets the right movies, the oldest first; it was trained on newest first.")
        if slots != right:
            other = f"{slots[:3]} … {slots[-1]}, in training {right[:3]} … {right[-1]}"
            raise Hint(f"{case} the tower gets {other}. Which of the history does it never see?")
        if back := set(answer) & set(history):
            raise Hint(f"{case} it recommends {min(back)}, seen long ago. The tower's 50 are not all that was seen.")
        if answer != movies[n : n + 5].tolist():
            raise Hint(f"{case} expected the five nearest unseen, {movies[n : n + 5].tolist()}, got {answer}.")
