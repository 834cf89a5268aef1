"""Training on several processes with one joint batch of negatives (notebook 10, "When one machine is not enough").

Run by ``torchrun --nproc-per-node 2 -m dssm_helpers.distributed``: gloo on CPUs, nccl on GPUs. Every rank encodes its
own rows; item vectors and indices are gathered, so each user is ranked against the items of *all* ranks. The
loss and its gradient equal those of one process with the joint batch, which a test checks.
"""

from __future__ import annotations

import argparse
import os

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather
from torch.nn.parallel import DistributedDataParallel

from .data import encode, split_by_time
from .evaluation import evaluate
from .features import Batch, BatchBuilder
from .model import DSSM
from .movielens import SCHEMA, load_movielens
from .objectives import TrainingConfig, batch_loss, log_shares, with_unknown_ids
from .recipes import build_model
from .settings import dataset_name, device_name
from .training import adamw, learning_rate_schedule, resolve_device


class JointBatchLoss(nn.Module):
    """In-batch softmax over the rows of all ranks, as a module, so that DistributedDataParallel sees its forward.

    DDP averages the gradients of the ranks and every rank's loss is a mean over equally many rows, so the result is
    the gradient of the mean over the joint batch. ``all_gather`` is the differentiable one: an item vector also gets
    the gradient of the other ranks' losses, in which it was a negative.
    """

    def __init__(self, model: DSSM, config: TrainingConfig, log_q: Tensor):
        super().__init__()
        if config.objective != "in_batch":
            raise ValueError(f"only in_batch negatives need gathering; got the objective {config.objective!r}")
        self.model, self.config = model, config
        self.register_buffer("log_q", log_q, persistent=False)

    def forward(self, batch: Batch) -> Tensor:
        target = batch["item_id"]  # [b]
        if self.config.id_dropout:
            batch = with_unknown_ids(batch, self.config.id_dropout)
        users = self.model.user_tower(batch)  # [b, D]
        items = self.model.item_tower(batch)  # [b, D]
        rank = 0
        if dist.is_initialized():
            rank = dist.get_rank()
            parts = [torch.empty_like(target) for _ in range(dist.get_world_size())]
            dist.all_gather(parts, target)
            items, target = torch.cat(all_gather(items)), torch.cat(parts)  # [B, D], [B]
        logits = self.model.logits(users, items)  # [b, B]
        return batch_loss(self.config, logits, target, batch["history"], self.log_q, first=rank * len(users))


def train_epoch(
    loss_of: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    batches: BatchBuilder,
    train: np.ndarray,
    generator: torch.Generator,
    batch_size: int,
) -> float:
    """One pass over ``train``: every rank takes its share of each joint batch of ``batch_size``. The mean loss."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if batch_size % world:
        raise ValueError(f"batch_size {batch_size} does not divide over {world} ranks")
    share = batch_size // world
    total, count = torch.zeros((), device=batches.device), 0
    for positions in batches.epoch(train, batch_size, generator):  # the same order on every rank: the same seed
        if len(positions) < batch_size:
            raise ValueError(f"{len(positions)} training rows are fewer than one batch of {batch_size}")
        loss = loss_of(batches(positions[rank * share : (rank + 1) * share]))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        total += loss.detach()
        count += 1
    if dist.is_initialized():
        dist.all_reduce(total)
    return float(total) / count / world


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default=None, help="default: DSSM_DATASET, else ml-100k")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=512, help="of all ranks together")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    distributed = "RANK" in os.environ  # torchrun sets it
    on_gpu = torch.cuda.is_available()
    if distributed:
        dist.init_process_group("nccl" if on_gpu else "gloo")
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        os.environ["DSSM_DEVICE"] = "cuda"
    try:
        _train(options)
    finally:
        if distributed:
            dist.destroy_process_group()


def _train(options: argparse.Namespace) -> None:
    """The run itself, in this process or on its rank."""
    # A function of its own, so that the DistributedDataParallel module is gone before its process group is destroyed:
    # freed after it, it now and then waits for ever for a thread of the group.
    distributed = dist.is_initialized()
    rank, world = (dist.get_rank(), dist.get_world_size()) if distributed else (0, 1)
    device = resolve_device(device_name())
    tables = load_movielens(options.dataset or dataset_name(), progress=rank == 0)
    data = encode(tables.ratings, tables.users, tables.movies, SCHEMA, name=tables.name)
    split, batches = split_by_time(data), BatchBuilder(data, device=device)
    config = TrainingConfig(epochs=options.epochs, batch_size=options.batch_size, seed=options.seed)
    model = build_model(data, "dssm", options.seed).to(device)
    module: nn.Module = JointBatchLoss(model, config, log_shares(data.item_counts(split.train)).to(device))
    if distributed:
        module = DistributedDataParallel(module)
    optimizer = adamw(module, config)
    schedule = learning_rate_schedule(optimizer, config, config.epochs * (len(split.train) // config.batch_size))
    for epoch in range(config.epochs):
        module.train()
        torch.manual_seed(options.seed + 1000 * epoch + rank)  # dropout differs between ranks
        generator = torch.Generator().manual_seed(options.seed + epoch)
        loss = train_epoch(module, optimizer, schedule, batches, split.train, generator, config.batch_size)
        if rank == 0:
            hit = evaluate(model, batches, split.validation)["hit@10"]
            print(f"epoch {epoch + 1}: {world} ranks, loss {loss:.4f}, validation hit@10 {hit:.3f}")
    if distributed:
        dist.barrier()  # a rank that leaves while another still talks to it brings both down


if __name__ == "__main__":
    main()
