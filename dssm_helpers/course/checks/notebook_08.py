"""Checks of the exercises of notebook 08."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from ...features import SequenceFeature, SparseFeature
from ...model import DSSM, Tower
from . import Hint, close, exercise

Batch = dict[str, np.ndarray]


@exercise("Exercise 2: a scale per row")
def check_quantise_rows(quantise_rows: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]) -> None:
    sizes = np.array([0, 0.01, 1, 1, 100])[:, None]
    table = (np.random.default_rng(0).normal(size=(5, 8)) * sizes).astype(np.float32)
    largest = np.abs(table).max(axis=1)
    try:
        with np.errstate(divide="raise", invalid="raise"):
            codes, scales = quantise_rows(table.copy())
    except FloatingPointError as error:
        raise Hint("0 / 0 in the padding row: its scale is 0, so put another divisor there first") from error
    if np.asarray(codes).dtype != np.int8:
        raise Hint(f"codes are {np.asarray(codes).dtype}, expected int8: use .astype(np.int8) after rounding")
    close(scales, largest / 127, "scales", "One per row: the largest |w| along axis 1, divided by 127.")
    off = np.abs(codes * np.asarray(scales)[:, None] - table).max(axis=1)
    if (off > 1.01 * largest / 254 + 1e-9).any():
        row = int(np.argmax(off - largest / 254))
        found = f"row {row} is off by up to {off[row]:.4g}, half a scale is {largest[row] / 254:.4g}"
        raise Hint(f"{found}: .astype cuts off, so round first; and divide each row by its own scale")


@exercise("Exercise 3: a test that finds nothing")
def check_is_same(is_same: Callable[[Tower, Callable[[Batch], np.ndarray]], bool]) -> None:
    user = [SparseFeature("age", 9, 4), SparseFeature("zip", 9, 4), SequenceFeature("history", 30, 8)]
    tower = DSSM(user, [SparseFeature("item_id", 30, 8)], {"dims": [16, 8]}, {"dims": [8]}).user_tower.eval()
    with torch.no_grad():  # so that different ids give vectors that differ
        for parameter in tower.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(parameter))))

    def honest(ids: Batch) -> np.ndarray:
        with torch.inference_mode():
            return tower({n: torch.from_numpy(np.asarray(c)) for n, c in ids.items()}).numpy() + np.float32(2e-7)

    def frozen(ids: Batch) -> np.ndarray:
        if ids["history"].shape != (2, 3):
            raise RuntimeError("Got invalid dimensions")
        return honest(ids)

    def exchanged(ids: Batch) -> np.ndarray:
        return honest({**ids, "age": ids["zip"], "zip": ids["age"]})

    for run, what in (
        (exchanged, "an export with the columns age and zip exchanged. Which batch could have told?"),
        (lambda ids: honest({**ids, "history": ids["history"][:, :3]}), "an export that reads three movies at most"),
        (lambda ids: honest(ids) + np.float32(1e-3), "an export that is off by 0.001; float32 has seven digits"),
        (frozen, "an export that refuses all batches but those of 2 rows and 3 movies"),
    ):
        try:
            if is_same(tower, run):
                raise Hint(f"the test said True to {what}")
        except RuntimeError as error:
            raise Hint("the export refused a batch, and the test stopped with its error: let it say False") from error
    if not is_same(tower, honest):
        raise Hint("the test said False to an honest export, off by 2e-7: sums in another order give other last digits")
