"""SIGKILL at any moment: no half-written file is ever read, and the next run completes without cleaning by hand."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import small
import torch

from dssm_helpers import movielens
from dssm_helpers.onnx_export import OnnxTower
from dssm_helpers.retrieval import load_index
from dssm_helpers.serving import Recommender

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and kills its children")
KILLS = 24
CONTENT = bytes(range(256)) * 2000


def download(folder: Path, variant: str) -> None:
    def in_pieces(path: Path) -> None:
        with path.open("wb") as file:
            for start in range(0, len(CONTENT), 10_000):
                file.write(CONTENT[start : start + 10_000])
                file.flush()

    (folder / "data.zip").unlink(missing_ok=True)
    movielens._download(folder / "data.zip", hashlib.sha256(CONTENT).hexdigest(), in_pieces)


# What a reader gets; a download may be missing, but is never half there.
READERS: dict[str, Callable[[Path], object]] = {
    "a trained model": small.read_model,
    "an index": lambda folder: load_index(folder / "index").search(np.ones(8), 5)[0].tolist(),
    "an ONNX file": lambda folder: OnnxTower.load(folder / "user.onnx")(small.user_batch()).tolist(),
    "a bundle": lambda folder: Recommender.load(folder / "bundle").recommend(3, [5, 7], 5).item_ids,
    "results": small.read_record,
    "a download": lambda folder: (folder / "data.zip").read_bytes() if (folder / "data.zip").exists() else CONTENT,
}
JOBS = {**small.JOBS, "a download": download}


def kill(job: Callable[[], None], rounds: int, seconds: float) -> None:
    """Run ``job`` over and over in a child, and kill it that many seconds after so many rounds."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)  # the parent's threads are not in the child
            os.close(reading)
            with open(os.devnull, "w") as sys.stdout:
                os.write(writing, b".")
                while True:
                    job()
                    os.write(writing, b".")
        finally:
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        assert len(pipe.read(1 + rounds)) == 1 + rounds  # it is at work
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL  # and did not end by itself


ROWS = [
    pytest.param(what, id=what, marks=pytest.mark.fault(f"killed while it writes {what}", sees, kept))
    for what, sees, kept in (
        ("a download", "it is fetched again", "a file that is there is whole"),
        ("a trained model", "it is trained again", "the model before"),
        ("an index", "it is built again", "the index before"),
        ("an ONNX file", "it is exported again", "the file before"),
        ("a bundle", "it is exported again", "the bundle before"),
        ("results", "it is measured again", "the results before"),
    )
]


@pytest.mark.parametrize("what", ROWS)
def test_the_old_or_the_new_is_whole_and_the_next_run_completes(what, tmp_path):
    job, read, expected = JOBS[what], READERS[what], {}
    for variant in "ab":
        job(tmp_path / variant, variant)  # elsewhere
        expected[variant] = read(tmp_path / variant)
    clock = time.perf_counter()
    job(tmp_path / "a", "b")
    seconds = time.perf_counter() - clock  # of one run, now that all is loaded
    folder, moments = tmp_path / "killed", np.random.default_rng(0)
    folder.mkdir()
    job(folder, "b")

    def both() -> None:
        for variant in "ab":
            job(folder, variant)

    for trial in range(KILLS):
        kill(both, trial % 2, moments.uniform(0, 2 * seconds))
        assert read(folder) in expected.values()  # once it was there, it stays
    for variant in "ba":
        job(folder, variant)
        assert read(folder) == expected[variant]
