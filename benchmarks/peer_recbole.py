"""RecBole's SASRec on our split, ranked by our evaluation. Runs in RecBole's own environment; peers.py starts it.

RecBole gets exactly our sequences: the same ratings, in our order (its timestamp is the place in the user's sequence),
split leave-one-out like ours. Nothing of it is patched. After every epoch its model scores every movie for each
validation history; ``rank_targets`` ranks them with seen movies removed; the epoch with the best validation Hit@10 is
the one reported on test. Training ends after ten epochs without a better one (RecBole's own patience).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import machine as shared
import numpy as np
import pandas as pd
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.model.sequential_recommender import SASRec
from recbole.trainer import Trainer
from recbole.utils import init_seed
from task import MAX_HISTORY, load_tables, prepare

from dssm_helpers.data import EncodedData
from dssm_helpers.evaluation import Scorer, metrics, rank_targets
from dssm_helpers.vocabulary import FIRST

PATIENCE = 10
SETTINGS = {
    "n_layers": 2,
    "n_heads": 2,
    "hidden_size": 64,
    "hidden_dropout_prob": 0.2,  # the SASRec paper's for ML-1M
    "attn_dropout_prob": 0.2,
    "loss_type": "CE",
    "train_neg_sample_args": None,  # what CE asks for
    "MAX_ITEM_LIST_LENGTH": MAX_HISTORY,
    "train_batch_size": 256,  # RecBole's 2048 learns far more slowly
    "learning_rate": 1e-3,
}
PROTOCOL = {
    "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
    **{"metrics": ["Hit"], "valid_metric": "Hit@10", "use_gpu": False, "show_progress": False, "state": "ERROR"},
}


def write_interactions(data: EncodedData, folder: Path) -> None:
    """RecBole's "atomic file": the place in the user's sequence as time, so that its order is ours."""
    (folder / "ours").mkdir()
    place = np.arange(len(data)) - data.offsets[data.user]
    items = data.vocabularies["item_id"].decode(data.item)
    columns = {"user_id:token": data.user, "item_id:token": items, "timestamp:float": place}
    pd.DataFrame(columns).to_csv(folder / "ours" / "ours.inter", sep="\t", index=False)


def scorer(model: SASRec, dataset, data: EncodedData) -> Scorer:
    """Scores of RecBole's model with our item indices as columns."""
    theirs = dataset.token2id(dataset.iid_field, [str(i) for i in data.vocabularies["item_id"].values])
    to_theirs = torch.cat([torch.zeros(FIRST, dtype=torch.long), torch.as_tensor(theirs, dtype=torch.long)])

    def scores(positions: np.ndarray) -> torch.Tensor:
        histories = [to_theirs[data.history(p)[-MAX_HISTORY:].astype(np.int64)] for p in positions]
        sequence = torch.zeros(len(positions), MAX_HISTORY, dtype=torch.long)  # oldest first, zeros at the end
        for row, history in zip(sequence, histories, strict=True):
            row[: len(history)] = history
        length = torch.tensor([max(1, len(history)) for history in histories])
        model.eval()
        with torch.inference_mode():
            return model.full_sort_predict({model.ITEM_SEQ: sequence, model.ITEM_SEQ_LEN: length})[:, to_theirs]

    return scores


def train(tables: str, seed: int) -> dict[str, Any]:
    """Train until the patience ends; the metrics of the best epoch, the curve and the test ranks."""
    sys.argv = sys.argv[:1]  # RecBole's Config reads the command line too
    data, split, _ = prepare(load_tables(tables))
    with tempfile.TemporaryDirectory() as folder:
        write_interactions(data, Path(folder))
        files = {"data_path": folder, "checkpoint_dir": folder, "seed": seed}
        config = Config(model="SASRec", dataset="ours", config_dict={**SETTINGS, **PROTOCOL, **files})
        init_seed(seed, config["reproducibility"])
        dataset = create_dataset(config)
        rows, _, _ = data_preparation(config, dataset)
        model = SASRec(config, rows.dataset)
        trainer, score = Trainer(config, model), scorer(model, dataset, data)
        curve: list[dict] = []
        best, at = {"epoch": 0, "hit@10": -1.0}, np.zeros(2)
        while len(curve) - best["epoch"] < PATIENCE:
            started = shared.clocks()
            trainer._train_epoch(rows, len(curve))
            at += shared.clocks() - started
            found = metrics(rank_targets(score, data, split.validation))
            curve.append({"epoch": len(curve) + 1, "seconds": at[0], "cpu_seconds": at[1], **found})
            print(curve[-1], flush=True)
            if found["hit@10"] > best["hit@10"]:
                best, ranks = curve[-1], rank_targets(score, data, split.test)
    return {
        "settings": {**SETTINGS, "patience": PATIENCE},
        "versions": {name: shared.version(name) for name in ("recbole", "torch", "numpy", "pandas", "scipy")},
        "threads": torch.get_num_threads(),
        "stopped_by": "patience",
        "epoch": best["epoch"],
        "epochs_run": len(curve),
        "validation": {name: best[name] for name in found},
        "test": metrics(ranks),
        "seconds_to_best": best["seconds"],
        "cpu_seconds_to_best": best["cpu_seconds"],
        "curve": curve,
        "test_ranks": ranks.tolist(),
    }


if __name__ == "__main__":
    shared.answer(train)
