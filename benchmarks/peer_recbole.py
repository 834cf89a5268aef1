"""RecBole's SASRec on our split, ranked by our evaluation. Runs in RecBole's own environment; peers.py starts it.

RecBole gets exactly our sequences: the same ratings, in our order (its timestamp is the place in the user's sequence),
split leave-one-out like ours, histories of at most 50 movies. Nothing of it is patched. After every epoch its model
scores every movie for each validation history; ``rank_targets`` ranks them with seen movies removed; the epoch with the
best validation Hit@10 is the one reported on test.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import machine as shared
import numpy as np
import torch

from dssm_helpers.data import EncodedData, encode, load_movielens, split_by_time
from dssm_helpers.evaluation import metrics, rank_targets
from dssm_helpers.features import BatchBuilder
from dssm_helpers.vocabulary import FIRST

MAX_HISTORY = 50


def write_interactions(data: EncodedData, folder: Path) -> None:
    """RecBole's "atomic file": raw ids, and the place in the user's sequence as time, so that its order is ours."""
    target = folder / "ours" / "ours.inter"
    target.parent.mkdir(parents=True)
    place = np.arange(len(data)) - data.offsets[data.user]
    movies = data.vocabularies["movie_id"].decode(data.item)
    lines = (f"{u}\t{m}\t{t}\n" for u, m, t in zip(data.user.tolist(), movies, place.tolist(), strict=True))
    target.write_text("user_id:token\titem_id:token\ttimestamp:float\n" + "".join(lines), encoding="utf-8")


class RecBoleScorer:
    """Scores of RecBole's model with our movie indices as columns."""

    def __init__(self, model, dataset, data: EncodedData):
        self.model = model
        self.batches = BatchBuilder(data, max_history=MAX_HISTORY)
        movies = [str(m) for m in data.vocabularies["movie_id"].values]
        theirs = dataset.token2id(dataset.iid_field, movies)
        self.to_theirs = torch.cat([torch.zeros(FIRST, dtype=torch.long), torch.as_tensor(theirs, dtype=torch.long)])

    def __call__(self, positions: np.ndarray) -> torch.Tensor:
        newest_first = self.batches.users(positions)["history"]  # [B, L], zeros at the end
        length = (newest_first > 0).sum(dim=1)
        place = (length.unsqueeze(1) - 1 - torch.arange(newest_first.shape[1])).clamp(min=0)
        oldest_first = newest_first.gather(1, place) * (torch.arange(newest_first.shape[1]) < length.unsqueeze(1))
        batch = {self.model.ITEM_SEQ: self.to_theirs[oldest_first], self.model.ITEM_SEQ_LEN: length.clamp(min=1)}
        self.model.eval()
        with torch.inference_mode():
            return self.model.full_sort_predict(batch)[:, self.to_theirs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file for metrics, curve and test ranks")
    parser.add_argument("--seconds", type=float, default=600, help="stop training after this long (default 600)")
    parser.add_argument("--patience", type=int, default=10, help="epochs without a better validation (RecBole's: 10)")
    parser.add_argument(
        "--batch-size", type=int, default=256, help="default 256 (RecBole's: 2048, which learns far more slowly)"
    )
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="RecBole's default: 0.001")
    parser.add_argument("--dropout", type=float, default=0.2, help="default 0.2, the SASRec paper's for ML-1M")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all cores")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.model.sequential_recommender import SASRec
    from recbole.trainer import Trainer
    from recbole.utils import init_seed

    data = encode(load_movielens("ml-100k"))
    split = split_by_time(data)
    with tempfile.TemporaryDirectory() as folder:
        write_interactions(data, Path(folder))
        settings = {
            "data_path": folder,
            "checkpoint_dir": folder,
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
            "MAX_ITEM_LIST_LENGTH": MAX_HISTORY,
            "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
            "train_neg_sample_args": None,  # what loss_type CE asks for
            "loss_type": "CE",
            "hidden_size": 64,
            "hidden_dropout_prob": arguments.dropout,
            "attn_dropout_prob": arguments.dropout,
            "train_batch_size": arguments.batch_size,
            "learning_rate": arguments.learning_rate,
            "metrics": ["Hit"],
            "valid_metric": "Hit@10",
            "use_gpu": False,
            "show_progress": False,
            "state": "ERROR",
        }
        sys.argv = sys.argv[:1]  # RecBole's Config reads the command line too
        config = Config(model="SASRec", dataset="ours", config_dict=settings)
        init_seed(config["seed"], config["reproducibility"])
        dataset = create_dataset(config)
        train, _, _ = data_preparation(config, dataset)
        model = SASRec(config, train.dataset)
        trainer = Trainer(config, model)
        scorer = RecBoleScorer(model, dataset, data)
        n_rows = len(train.dataset)
        settings_shown = {k: getattr(arguments, k) for k in ("batch_size", "learning_rate", "dropout", "patience")}
        settings_shown |= {"loss": "CE", "d": 64, "layers": 2, "heads": 2, "max_history": MAX_HISTORY}
        settings_shown["seed"] = config["seed"]
        print(f"{n_rows:,} training rows with a history; {dataset.item_num - 1:,} movies", flush=True)

        curve, best, trained, processor = [], {"hit@10": -1.0}, 0.0, 0.0
        while shared.room_for_another(trained, len(curve), arguments.seconds):
            if len(curve) - best.get("epoch", 0) >= arguments.patience:
                break
            started, busy = time.perf_counter(), time.process_time()
            trainer._train_epoch(train, len(curve))
            trained, processor = trained + time.perf_counter() - started, processor + time.process_time() - busy
            row = {"epoch": len(curve) + 1, "seconds": round(trained, 2), "cpu_seconds": round(processor, 2)}
            row |= metrics(rank_targets(scorer, data, split.validation))
            curve.append(row)
            if row["hit@10"] > best["hit@10"]:
                best, ranks = row, rank_targets(scorer, data, split.test)
            out_of_patience = len(curve) - best["epoch"] >= arguments.patience
            report = {
                "settings": settings_shown,
                "versions": {n: shared.version_of(n) for n in ("recbole", "torch", "numpy", "pandas", "scipy")},
                "threads": torch.get_num_threads(),
                "training_rows": n_rows,
                "stopped_by": "patience" if out_of_patience else "time limit",
                "validation": {k: v for k, v in best.items() if "@" in k or k == "mrr"},
                "test": metrics(ranks),
                "epoch": best["epoch"],
                "epochs_run": len(curve),
                "seconds_to_best": best["seconds"],
                "cpu_seconds_to_best": best["cpu_seconds"],
                "seconds_total": round(trained, 1),
                "curve": curve,
                "test_ranks": ranks.tolist(),
            }
            with shared.write_atomically(arguments.out) as temporary:  # after every epoch: a stopped run is not lost
                temporary.write_text(json.dumps(report), encoding="utf-8")
            print(
                f"epoch {row['epoch']:3d}, {trained:5.0f} s: validation Hit@10 {row['hit@10']:.3f}, "
                f"Hit@100 {row['hit@100']:.3f}, NDCG@10 {row['ndcg@10']:.3f}",
                flush=True,
            )
    print(f"test of epoch {best['epoch']}: {report['test']}", flush=True)


if __name__ == "__main__":
    main()
