"""Thirty learners on one machine: a kernel each, one data folder that nobody can write, artefacts of their own."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

from dssm_helpers.movielens import load_movielens
from dssm_helpers.settings import data_dir

LEARNERS = 30
LESSON = """
from dssm_helpers.course.workspace import Workspace
from dssm_helpers.evaluation import evaluate
ws = Workspace("ml-100k", progress=False)
model, _ = ws.trained("dssm", seed=0, epochs=1)
print(evaluate(model, ws.batches, ws.split.validation)["hit@10"], flush=True)
input()
"""


def proportional_mib(process: int) -> float:
    """Memory of a process, what it shares with others counted in parts."""
    text = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="utf-8")
    return int(re.search(r"^Pss: +(\d+) kB", text, re.M)[1]) / 1024


@pytest.mark.release
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="Linux tells memory by process")
def test_thirty_learners_share_one_machine_and_one_read_only_data_folder(tmp_path):
    load_movielens("ml-100k", progress=False)  # the instructor has fetched it
    shared = tmp_path / "data"
    shared.mkdir()
    for path in data_dir().iterdir():
        if path.is_file():
            (shared / path.name).write_bytes(path.read_bytes())
    before = sorted(shared.iterdir())
    shared.chmod(0o555)
    started, learners = time.perf_counter(), []
    for number in range(LEARNERS):
        own = {"DSSM_DATA_DIR": str(shared), "DSSM_ARTIFACTS_DIR": str(tmp_path / f"learner{number}")}
        learners.append(
            subprocess.Popen(
                [sys.executable, "-c", LESSON], cwd=ROOT, env={**os.environ, **own}, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )
        )  # fmt: skip
    answers = [float(learner.stdout.readline()) for learner in learners]
    memory = [proportional_mib(learner.pid) for learner in learners]
    for learner in learners:
        learner.communicate("\n")
    assert [learner.returncode for learner in learners] == [0] * LEARNERS
    assert len(set(answers)) == 1, "one seed, one answer"
    assert sorted(shared.iterdir()) == before
    print(f"{LEARNERS} learners: {statistics.mean(memory):.0f} MiB each, {time.perf_counter() - started:.0f} s for all")
