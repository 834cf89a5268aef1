"""Every ``DSSM_*`` environment variable: all optional, read at each call, with the standard library alone."""

import os
from pathlib import Path

DATASETS = ("ml-100k", "ml-1m", "synthetic")


def dataset_name() -> str:
    """``DSSM_DATASET``, default ``ml-100k``."""
    name = os.environ.get("DSSM_DATASET") or "ml-100k"
    if name not in DATASETS:
        raise ValueError(f"DSSM_DATASET is {name!r}; choose one of {', '.join(DATASETS)}")
    return name


def seeds() -> list[int]:
    """Seeds to average over: 0 … ``DSSM_SEEDS`` - 1. Fewer is quicker and less certain.

    Default three; on ml-1m, where one training takes minutes, one.
    """
    text = os.environ.get("DSSM_SEEDS") or ("1" if dataset_name() == "ml-1m" else "3")
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"DSSM_SEEDS must be a whole number from 1, got {text!r}")
    return list(range(int(text)))


def strict() -> bool:
    """True where a missing optional part is a failure (``DSSM_STRICT=1``, as in CI)."""
    return os.environ.get("DSSM_STRICT", "") not in ("", "0")


def device_name() -> str:
    """``DSSM_DEVICE``: ``cpu`` (default), ``cuda``, ``mps`` or ``auto``."""
    return os.environ.get("DSSM_DEVICE") or "cpu"


def widgets() -> str:
    """``DSSM_WIDGETS``: ``1`` shows forms, ``0`` printed examples; default: forms where somebody has a page open."""
    return os.environ.get("DSSM_WIDGETS", "")


def project_root() -> Path:
    """The clone this package runs from, else the working folder (an installed package, as on Colab)."""
    here = Path(__file__).resolve().parent.parent
    return here if (here / "pyproject.toml").exists() else Path.cwd()


def data_dir() -> Path:
    """Folder of downloaded data: ``DSSM_DATA_DIR``, else ``data/`` in the repository (or the working folder)."""
    return Path(os.environ.get("DSSM_DATA_DIR") or project_root() / "data").expanduser()


def artifacts_dir(dataset: str) -> Path:
    """``DSSM_ARTIFACTS_DIR``, else ``artifacts/`` in the repository, then the data set's name."""
    folder = Path(os.environ.get("DSSM_ARTIFACTS_DIR") or project_root() / "artifacts").expanduser()
    if folder.resolve() == data_dir().resolve():  # emptying the one would remove an unpacked data set from the other
        raise ValueError(f"DSSM_ARTIFACTS_DIR and DSSM_DATA_DIR are both {folder}; give each a folder of its own")
    return folder / dataset
