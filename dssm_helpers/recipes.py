"""Named models: what goes into the towers, and how they are trained."""

from __future__ import annotations

from dataclasses import dataclass, field

from . import seed_everything
from .data import EncodedData, with_request_time
from .features import DEFAULT_POOLING, default_features
from .model import DSSM
from .training import TrainingConfig


@dataclass(frozen=True)
class Recipe:
    """Every setting of ``default_features``, of the towers (both alike) and of the trainer."""

    pooling: str | tuple[str, ...] = DEFAULT_POOLING
    dim: int = 64
    dims: tuple[int, ...] = (256, 64)
    dropout: float = 0.2
    temperature: float = 0.1
    max_history: int = 50
    without: tuple[str, ...] = ()
    request_time: bool = False  # the user's side has the columns of ``data.REQUEST``
    training: TrainingConfig = field(default_factory=TrainingConfig)


RECIPES = {
    "dssm": Recipe(),
    # The textbook's pooling. Validation prefers a window of 10 movies to one of 50: a short window is a crude recency.
    "dssm_mean": Recipe(pooling="mean", max_history=10),
    "dssm_mean_50": Recipe(pooling="mean"),
    "best": Recipe(request_time=True),  # notebook 13; three of them folded into one (`folding`) are the best
}


def find_recipe(recipe: Recipe | str) -> Recipe:
    """A recipe by name."""
    if isinstance(recipe, str) and recipe not in RECIPES:
        raise ValueError(f"unknown model {recipe!r}; choose one of {', '.join(RECIPES)}")
    return RECIPES[recipe] if isinstance(recipe, str) else recipe


def data_of(data: EncodedData, recipe: Recipe | str) -> EncodedData:
    """``data`` as the recipe's model reads it, for its ``BatchBuilder`` and its bundle."""
    return with_request_time(data) if find_recipe(recipe).request_time else data


def build_model(data: EncodedData, recipe: Recipe | str = "dssm", seed: int = 0) -> DSSM:
    """An untrained model after ``recipe``; the same seed gives the same weights."""
    recipe, data = find_recipe(recipe), data_of(data, recipe)
    seed_everything(seed)
    user, item = default_features(
        data, dim=recipe.dim, pooling=recipe.pooling, max_history=recipe.max_history, without=recipe.without
    )
    tower = {"dims": recipe.dims, "dropout": recipe.dropout}
    return DSSM(user, item, tower, tower, temperature=recipe.temperature)
