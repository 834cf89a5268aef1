"""Training on several processes with one joint batch of negatives (notebook 12, "Several processes").

Run by ``torchrun --nproc-per-node 2 -m dssm_helpers.distributed``: gloo on CPUs, nccl on GPUs; two epochs. Every rank
encodes its own rows; item vectors and indices are gathered, so each user is ranked against the items of *all* ranks.
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch import Generator, Tensor, nn
from torch.distributed.nn.functional import all_gather
from torch.nn.parallel import DistributedDataParallel

from .data import encode, split_by_time
from .evaluation import evaluate
from .features import Batch, BatchBuilder
from .model import DSSM
from .movielens import SCHEMA, load_movielens
from .objectives import TrainingConfig, batch_loss
from .recipes import build_model
from .settings import dataset_name
from .training import Trainer, both_towers


def rank_and_world() -> tuple[int, int]:
    """Number of this process and of all processes; 0 and 1 without torchrun."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


class JointBatchLoss(nn.Module):
    """In-batch softmax over the rows of all ranks, as a module, so that DistributedDataParallel sees its forward.

    DDP averages the ranks' gradients, each of a mean over equally many rows: the gradient of the joint batch.
    ``all_gather`` is the differentiable one: an item vector also gets the gradient of the other ranks' losses, in which
    it was a negative.
    """

    def __init__(self, model: DSSM, config: TrainingConfig):
        super().__init__()
        if config.objective != "in_batch":
            raise ValueError(f"only in_batch negatives need gathering; got the objective {config.objective!r}")
        self.model, self.config = model, config

    def forward(self, batch: Batch, log_q: Tensor) -> Tensor:
        target = batch["item_id"]  # [b]
        users, items = both_towers(self.model, batch, self.config)  # [b, D]
        rank, world = rank_and_world()
        if world > 1:
            items, target = torch.cat(all_gather(items)), torch.cat(all_gather(target))  # [B, D], [B]
        logits = self.model.logits(users, items)  # [b, B]
        return batch_loss(self.config, logits, target, batch["history"], log_q, first=rank * len(users))


class JointTrainer(Trainer):
    """A :class:`Trainer` on every rank: each takes its share of each batch, and dropout of its own."""

    def __init__(self, model: DSSM, batches: BatchBuilder, config: TrainingConfig):
        super().__init__(model, batches, config)
        self.rank, self.world = rank_and_world()
        module = JointBatchLoss(model, config)
        self.module = DistributedDataParallel(module) if self.world > 1 else module

    def _loss(self, positions: Tensor, generator: Generator) -> Tensor:
        if len(positions) % self.world:
            raise ValueError(f"a batch of {len(positions)} rows does not divide over {self.world} ranks")
        return self.module(self.batches(positions.chunk(self.world)[self.rank]), self._log_q)


def main() -> None:
    on_gpus = torch.cuda.is_available()
    if on_gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if on_gpus else "gloo")
    try:
        _train("cuda" if on_gpus else "cpu")
        dist.barrier()  # a rank that leaves while another still talks to it brings both down
    finally:
        dist.destroy_process_group()


def _train(device: str) -> None:
    # A function of its own, so that the DistributedDataParallel module is gone before its process group is destroyed:
    # freed after it, it now and then waits for ever for a thread of the group.
    rank, world = rank_and_world()
    tables = load_movielens(dataset_name(), progress=rank == 0)
    data = encode(tables.ratings, tables.users, tables.movies, SCHEMA, name=tables.name)
    split, batches = split_by_time(data), BatchBuilder(data, device=device)
    trainer = JointTrainer(build_model(data).to(device), batches, TrainingConfig(epochs=2))
    history = trainer.fit(split.train, lambda m: evaluate(m, batches, split.validation), progress=rank == 0)
    if rank == 0:
        print(f"{world} ranks", history[["epoch", "loss", "hit@10"]].round(4), sep="\n")


if __name__ == "__main__":
    main()
