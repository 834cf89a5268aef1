"""What the cells of a notebook show: a sentence, a guess beside its result, a picture with its description."""

from __future__ import annotations

import io
import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from IPython.display import Image, Markdown, display

from ..settings import project_root, widgets
from ..visualization import COLOURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED, PINK, SKY = COLOURS
GREY = "#777777"

SCREEN_DPI = 80  # pixels of the page per inch of a figure
SHARPNESS = 2  # pixels of the picture per pixel of the page


def say(sentence: str) -> None:
    """Show a sentence whose numbers were computed; Markdown."""
    display(Markdown(sentence))


def beside(guess: Any, result: Any, what: str = "") -> None:
    """Show the reader's guess and what was measured; ``...``, a guess that was left empty, is no mistake.

    Args:
        guess, result: a number, or words.
        what: the unit, or what is counted, such as ``"% of the users"``.
    """
    measured, unit = _text(result), f" {what}" if what else ""
    if guess is ...:
        say(f"**{measured}**{unit} (no guess was made).")
    else:
        say(f"You guessed {_text(guess)}; it is **{measured}**{unit}.")


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def live_front_end() -> bool:
    """True where somebody can click or type, and not where a notebook only runs through; ``DSSM_WIDGETS`` decides."""
    page = "JPY_SESSION_NAME" in os.environ or "google.colab" in sys.modules
    return widgets() == "1" or (not widgets() and page and find_spec("ipywidgets") is not None)


def stored(name: str, command: str) -> dict[str, Any] | None:
    """A result file of ``benchmarks/`` (in a wheel it lies beside this module), or ``None`` and how to make it."""
    for folder in (project_root() / "benchmarks", Path(__file__).parent / "stored"):
        if (folder / name).exists():
            return json.loads((folder / name).read_text(encoding="utf-8"))
    print(f"benchmarks/{name} is not here. In a clone of the course, this makes it: {command}")
    return None


def show(figure: Figure, alt: str) -> None:
    """Show a matplotlib figure, sharp on today's screens, with a text for whoever cannot see it.

    Args:
        alt: what the picture shows: the message, not its title.
    """
    import matplotlib.pyplot as plt

    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=SCREEN_DPI * SHARPNESS, bbox_inches="tight")
    plt.close(figure)  # else the notebook shows it a second time
    width = int.from_bytes(file.getvalue()[16:20]) // SHARPNESS  # of the PNG's header
    display(Image(file.getvalue(), width=width, alt=alt))
