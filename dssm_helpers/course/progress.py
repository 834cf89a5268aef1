"""Which exercises are done: titles and days in ``artifacts/progress.json``, no names; it stays on the machine."""

from __future__ import annotations

import datetime
import importlib
import json
import pkgutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from ..files import write_atomically
from ..settings import artifacts_dir
from . import checks


def done() -> dict[str, str]:
    """``{"04 · Exercise 2: …": "2026-01-31"}``: every exercise whose check has passed, and the day it first did."""
    try:
        return dict(json.loads(_path().read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        print(f"{_path()} is damaged ({error}); it is begun anew")
        return {}


def record(check: Callable) -> None:
    """Remember that an exercise is solved; the first day stays."""
    name = _name(check)
    known = done()
    if name not in known:
        with write_atomically(_path()) as temporary:
            known[name] = datetime.date.today().isoformat()
            temporary.write_text(json.dumps(known, indent=1, ensure_ascii=False), encoding="utf-8")


def progress() -> pd.DataFrame:
    """One row a notebook: how many of its checked exercises are done, and which are open. Works in any notebook."""
    known, rows = done(), {}
    for module in sorted(found.name for found in pkgutil.iter_modules(checks.__path__)):
        contents = vars(importlib.import_module(f"{checks.__name__}.{module}")).values()
        names = [_name(check) for check in contents if hasattr(check, "exercise")]
        left = [name.partition(" · ")[2] for name in names if name not in known]
        rows[module.removeprefix("notebook_")] = {
            "done": f"{len(names) - len(left)} of {len(names)}",
            "open": ", ".join(left),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("notebook")


def _name(check: Callable) -> str:
    return f"{check.__module__[-2:]} · {check.exercise}"


def _path() -> Path:
    return artifacts_dir("progress.json")
