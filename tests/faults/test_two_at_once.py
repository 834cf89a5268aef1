"""Several processes on one checkout: all finish right."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import small
import test_movielens
import torch
from test_movielens import CONTENT, assert_expected, load, names

from dssm_helpers import movielens
from dssm_helpers.retrieval import load_index
from dssm_helpers.serving import Recommender

server = test_movielens.server
forks = pytest.mark.skipif(sys.platform != "linux", reason="forks")


def at_once(n: int, job: Callable[[int], None]) -> None:
    """``job(0)`` … ``job(n - 1)``, each in a process of its own; all have to end well."""
    children = []
    for number in range(n):
        children.append(os.fork())
        if children[-1] == 0:
            status = 1
            try:
                torch.set_num_threads(1)
                job(number)
                status = 0
            finally:
                os._exit(status)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * n


@forks
@pytest.mark.fault("two runs on one checkout train, export and record", "nothing", "what either made, whole")
def test_two_runs(tmp_path):
    ws = small.workspace(tmp_path, "a")
    with small.converted_once():
        small.save_bundle(tmp_path / "elsewhere", "a")

    def run(number: int) -> None:
        for _ in range(2):
            small.train(tmp_path, "a")
            for job in (small.save_index, small.save_bundle):
                job(tmp_path, "a")
            ws.record(**{f"section{number}": {"is": number}})

    at_once(3, run)
    small.train(tmp_path / "alone", "a")
    assert small.read_model(tmp_path) == small.read_model(tmp_path / "alone")
    assert load_index(tmp_path / "index").search(small.VECTORS["a"][0], 1)[0] == [[0]]
    answers = [Recommender.load(path / "bundle").recommend(3, [5], 9) for path in (tmp_path, tmp_path / "elsewhere")]
    assert answers[0] == answers[1]
    assert {f"section{number}" for number in range(3)} <= ws.results().keys()
    assert not list(tmp_path.rglob("*.tmp"))


@forks
@pytest.mark.fault("many figures are recorded at once", "nothing", "every one of them")
def test_no_section_is_lost(tmp_path):
    ws = small.workspace(tmp_path, "a")
    at_once(4, lambda number: [ws.record(**{f"s{number}_{n}": n}) for n in range(25)])
    assert sum(name.startswith("s") and name != "seeds" for name in ws.results()) == 100


@pytest.mark.fault("two first runs fetch the data at once", "nothing", "one file")
def test_a_download_that_another_finished_is_used(server, tmp_path):
    """Not taken for a stranger's file that is in the way."""
    content, target = CONTENT["ml-1m"], tmp_path / "ml-1m.zip"
    digest, waits = hashlib.sha256(content).hexdigest(), threading.Barrier(2)

    def get(path: Path, pause: float) -> None:
        waits.wait()
        time.sleep(pause)
        path.write_bytes(content)

    threads = [threading.Thread(target=movielens._download, args=(target, digest, get, p)) for p in (0, 0.1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert movielens._download(target, digest, lambda path: pytest.fail("fetched again")) == target
    assert_expected(load("ml-1m", tmp_path))
    assert names(tmp_path) == ["ml-1m.zip"]


@forks
@pytest.mark.fault("thirty learners share one read-only data folder", "nothing", "the folder, untouched")
def test_a_shared_folder_is_only_read(server, tmp_path):
    (tmp_path / "ml-1m.zip").write_bytes(CONTENT["ml-1m"])
    tmp_path.chmod(0o555)
    before = [(path.name, path.stat().st_mtime_ns) for path in (tmp_path, *tmp_path.iterdir())]
    writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT

    def learn(number: int) -> None:
        def audit(event: str, arguments: tuple) -> None:  # root may write anywhere, so look at what is asked for
            if event == "open" and str(arguments[0]).startswith(str(tmp_path)) and arguments[2] & writes:
                os._exit(2)
            if event in ("os.mkdir", "os.rename", "os.remove") and str(tmp_path) in str(arguments):
                os._exit(3)

        sys.addaudithook(audit)
        assert_expected(load("ml-1m", tmp_path))

    at_once(30, learn)
    tmp_path.chmod(0o755)
    assert before == [(path.name, path.stat().st_mtime_ns) for path in (tmp_path, *tmp_path.iterdir())]


@forks
@pytest.mark.fault("a reader while the folder is exchanged, again and again", "nothing", "the old or the new, whole")
def test_a_reader_meets_a_writer(tmp_path):
    small.save_index(tmp_path, "a")

    def work(number: int) -> None:
        until = time.monotonic() + 1
        while time.monotonic() < until:
            if number == 0:
                for variant in "ba":
                    small.save_index(tmp_path, variant)
            else:
                index = load_index(tmp_path / "index")
                found = index.search(np.stack([small.VECTORS[v][7] for v in "ab"]), 1)
                assert np.isclose(found[1].max(), 1, atol=1e-5)
                assert 7 in found[0]

    at_once(4, work)
