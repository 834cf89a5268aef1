"""Two processes with gathered negatives equal one process with the joint batch."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from dssm_helpers.distributed import JointTrainer
from dssm_helpers.objectives import TrainingConfig
from dssm_helpers.recipes import build_model
from dssm_helpers.training import Trainer

# Runs the same step in one process or in two and writes the loss and every gradient's norm.
SCRIPT = """
import json, os, sys
import torch, torch.distributed as dist
from dssm_helpers.data import encode, split_by_time
from dssm_helpers.distributed import JointTrainer
from dssm_helpers.features import BatchBuilder
from dssm_helpers.movielens import SCHEMA, synthetic
from dssm_helpers.objectives import TrainingConfig, log_shares
from dssm_helpers.recipes import Recipe, build_model

torch.set_num_threads(1)
if "RANK" in os.environ:
    dist.init_process_group("gloo")
tables = synthetic(n_ratings=1_500, n_users=60, n_movies=120, seed=1)
data = encode(tables.ratings, tables.users, tables.movies, SCHEMA)
train, config = split_by_time(data).train, TrainingConfig(id_dropout=0.0)
trainer = JointTrainer(build_model(data, Recipe(dropout=0.0)), BatchBuilder(data), config)
trainer._log_q = log_shares(data.item_counts(train))
loss = trainer._loss(torch.as_tensor(train[:64]), None)
loss.backward()
mean = loss.detach() / trainer.world
if trainer.world > 1:
    dist.all_reduce(mean)
if trainer.rank == 0:
    norms = {n: p.grad.norm().item() for n, p in trainer.model.named_parameters()}
    json.dump({"loss": mean.item(), "norms": norms}, open(sys.argv[1], "w"))
if trainer.world > 1:
    dist.barrier()  # a rank that leaves while another still talks to it brings both down
    del trainer, loss  # before their process group
    dist.destroy_process_group()
"""


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def run(*arguments):
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=180)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_two_processes_give_the_loss_and_gradient_of_the_joint_batch(tmp_path):
    script = tmp_path / "step.py"
    script.write_text(SCRIPT)
    run(script, tmp_path / "one.json")
    run(*TORCHRUN, script, tmp_path / "two.json")
    one, two = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("one", "two"))
    assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)
    assert two["norms"] == pytest.approx(one["norms"], rel=1e-3, abs=1e-6)


@pytest.mark.slow
def test_the_example_runs_under_torchrun(monkeypatch):
    monkeypatch.setenv("DSSM_DATASET", "synthetic")
    printed = run(*TORCHRUN, "-m", "dssm_helpers.distributed")
    assert "2 ranks" in printed
    losses = [float(line.split()[2]) for line in printed.splitlines()[-2:]]
    assert losses[1] < losses[0]


def test_one_process_trains_as_the_trainer_does(data, split, batches):
    """Same order, same schedule, same seeds: the very weights, so nothing that ``Trainer`` reads is ignored."""
    config = TrainingConfig(epochs=2, batch_size=64)
    ours, theirs = (build_model(data), build_model(data))
    JointTrainer(ours, batches, config).fit(split.train, progress=False)
    Trainer(theirs, batches, config).fit(split.train, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_uneven_batches_and_other_objectives_are_refused(data, split, batches):
    trainer = JointTrainer(build_model(data), batches, TrainingConfig(batch_size=65))
    trainer.world = 2
    with pytest.raises(ValueError, match="65 rows does not divide over 2 ranks"):
        trainer.fit(split.train, progress=False)
    with pytest.raises(ValueError, match="only in_batch"):
        JointTrainer(build_model(data), batches, TrainingConfig(objective="pair_wise"))
