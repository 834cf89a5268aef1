"""torch-rechub's half of each comparison in peers.py. Runs in torch-rechub's own environment.

Called as its example for DSSM on MovieLens does (``examples/matching/run_ml_dssm.py``), unpatched. Data loaders run in
this process, so that it uses one core as we do. Its items have the first genre only, as in its example: less work.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import machine as shared
import numpy as np
import task
import torch
from sklearn.preprocessing import LabelEncoder
from torch_rechub.basic.features import SequenceFeature, SparseFeature
from torch_rechub.basic.metric import topk_metrics
from torch_rechub.models.matching import DSSM
from torch_rechub.trainers import MatchTrainer
from torch_rechub.utils.data import MatchDataGenerator, df_to_dict, pad_sequences
from torch_rechub.utils.match import Annoy, gen_model_input, generate_seq_feature_match

from dssm_helpers.evaluation import metrics, rank_targets
from dssm_helpers.vocabulary import FIRST

USER_COLUMNS, ITEM_COLUMNS = ["user_id", "gender", "age", "occupation", "zip"], ["movie_id", "year", "cate_id"]


def load_frame(path: str):
    """The one wide frame its example starts from, ids encoded by scikit-learn from 1, and the raw values by column.

    Its ``timestamp`` becomes the row's place in our order, so that ratings of the same second end up in the same order.
    """
    tables = task.load_tables(path)
    data = tables.ratings.sort_values(["user_id", "timestamp"], kind="stable")
    data["timestamp"] = np.arange(len(data))
    data = data.merge(tables.users, on="user_id").merge(tables.movies, on="movie_id")
    data["cate_id"] = data.pop("genres").str.split("|").str[0]
    raw = {"title": dict(zip(tables.movies["movie_id"], tables.movies["title"], strict=True))}
    for column in (*USER_COLUMNS, *ITEM_COLUMNS):
        encoder = LabelEncoder()
        data[column] = encoder.fit_transform(data[column]) + 1
        raw[column] = encoder.classes_
    return data.drop(columns=["title", "rating"]), raw


def profiles(data):
    """The rows of users and of items that its example makes from the frame."""
    return data[USER_COLUMNS].drop_duplicates("user_id"), data[ITEM_COLUMNS].drop_duplicates("movie_id")


def prepare(data, neg_ratio: int):
    """What its example does between the encoded frame and the data loader: arrays to train on, arrays to test."""
    users, items = profiles(data)
    rows = generate_seq_feature_match(
        data, "user_id", "movie_id", "timestamp", sample_method=1, mode=0, neg_ratio=neg_ratio
    )
    return [gen_model_input(r, users, "user_id", items, "movie_id", seq_max_len=task.MAX_HISTORY) for r in rows]


def build(raw: dict) -> DSSM:
    """Its DSSM as in its example, with the year beside the genre (its temperature is an argument its code ignores)."""
    size = {column: len(values) + 1 for column, values in raw.items()}
    user, item = ([SparseFeature(c, size[c], task.WIDTH) for c in columns] for columns in (USER_COLUMNS, ITEM_COLUMNS))
    shared_table = {"pooling": "mean", "shared_with": "movie_id"}
    user.append(SequenceFeature("hist_movie_id", size["movie_id"], task.WIDTH, **shared_table))
    tower = {"dims": list(task.DIMS), "activation": "prelu"}
    return DSSM(user, item, user_params=tower, item_params=tower, temperature=0.02)


class Trained:
    """Its model, trainer and loaders; without ``neg_ratio`` in its in-batch mode. Adam 1e-3."""

    def __init__(self, tables: str, folder: str, neg_ratio: int = 0, rows: int | None = None, batch_size: int = 256):
        data, raw = load_frame(tables)
        train, self.test = prepare(data, neg_ratio)
        train = {name: values[:rows] for name, values in train.items()}
        self.items, self.folder = profiles(data)[1], folder
        self.loader, *self.both_sides = MatchDataGenerator(train, train["label"]).generate_dataloader(
            self.test, df_to_dict(self.items), batch_size=batch_size, num_workers=0
        )
        self.model = build(raw)
        options = {"optimizer_params": {"lr": 1e-3, "weight_decay": 1e-6}, "in_batch_neg": neg_ratio == 0}
        self.trainer = MatchTrainer(self.model, mode=0, model_path=folder, **options)

    def epoch(self) -> None:
        self.model.mode = None
        self.trainer.train_one_epoch(self.loader)

    def save(self) -> None:
        """For :meth:`vectors`, which loads what was saved."""
        torch.save(self.model.state_dict(), Path(self.folder) / "model.pth")

    def vectors(self) -> list[torch.Tensor]:
        """Of all test users and of all items."""
        sides = zip(("user", "item"), self.both_sides, strict=True)
        return [self.trainer.inference_embedding(self.model, side, loader, self.folder) for side, loader in sides]


def prep(tables: str, neg_ratio: int) -> dict[str, Any]:
    """Seconds and peak memory from the encoded frame to the arrays its data loader takes (encoding not counted)."""
    return shared.preparation(lambda: load_frame(tables)[0], lambda data: prepare(data, neg_ratio))


def train(tables: str, steps: int = task.STEPS) -> dict[str, Any]:
    """Training examples per second in its in-batch mode (``in_batch_neg=True``)."""
    peer = Trained(tables, ".", rows=steps * task.BATCH_SIZE)
    return shared.rates(shared.seconds_of(peer.epoch, task.EPOCHS), steps * task.BATCH_SIZE) | {"steps": steps}


def evaluate(tables: str) -> dict[str, Any]:
    """Seconds of its own route: both towers' ``inference_embedding``, its Annoy (10 trees, top 100), its metrics."""
    with tempfile.TemporaryDirectory() as folder:
        peer = Trained(tables, folder, batch_size=4096)
        peer.save()
        users, movies = peer.test["user_id"], peer.items["movie_id"].to_numpy()
        truth = {u: [m] for u, m in zip(users, peer.test["movie_id"], strict=True)}

        def route() -> None:
            user_vectors, item_vectors = peer.vectors()
            index = Annoy(n_trees=10)
            index.fit(item_vectors)
            found = {u: movies[index.query(v, 100)[0]] for u, v in zip(users, user_vectors, strict=True)}
            topk_metrics(y_true=truth, y_pred=found, topKs=[10, 100])

        return {"seconds": shared.median(shared.seconds_of(route, 5))}


def quality(tables: str, seconds: float, neg_ratio: int) -> dict[str, Any]:
    """Test metrics by our evaluation after every epoch, until a limit of seconds or 30 epochs.

    Its training set holds our validation movies as well (it splits off the last movie only), which helps it.
    """
    torch.manual_seed(0)
    np.random.seed(0)
    data, split, _ = task.prepare(task.load_tables(tables))
    curve, trained = [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        peer = Trained(tables, folder, neg_ratio)
        # Both sides encode sorted raw ids: theirs from 1, ours from FIRST.
        row_of_user = {int(user) - 1 + FIRST: row for row, user in enumerate(peer.test["user_id"])}
        columns = peer.items["movie_id"].to_numpy() - 1 + FIRST

        def scorer(positions: np.ndarray) -> torch.Tensor:
            scores = torch.full((len(positions), data.n_items), -2.0)
            rows = [row_of_user[u] for u in data.user[positions].tolist()]
            scores[:, columns] = users[rows] @ items.T
            return scores

        while trained < seconds and len(curve) < 30:
            trained += shared.seconds_of(peer.epoch)[0]
            peer.save()
            users, items = peer.vectors()
            found = metrics(rank_targets(scorer, data, split.test))
            curve.append({"epoch": len(curve) + 1, "seconds": round(trained, 1), **found})
            print(curve[-1], flush=True)
    mode = f"point-wise, {neg_ratio} negatives" if neg_ratio else "in-batch"
    return {"mode": mode, "best": max(curve, key=lambda row: row["hit@100"]), "curve": curve}


def serve(tables: str, requests: str) -> dict[str, Any]:
    """Raw ids → titles assembled from its parts: encode, user tower, its Annoy, drop the seen, titles. One core."""
    data, raw = load_frame(tables)
    model = build(raw).eval()
    users, items = profiles(data)
    profile = users.set_index("user_id").to_dict("index")
    encode = {c: {v: i + 1 for i, v in enumerate(raw[c].tolist())} for c in ("user_id", "movie_id")}
    movie_ids = [raw["movie_id"][i - 1] for i in items["movie_id"]]
    index = Annoy(n_trees=10)
    with torch.inference_mode():
        model.mode = "item"
        index.fit(model({n: torch.as_tensor(v) for n, v in df_to_dict(items).items()}).numpy())
    model.mode = "user"

    def answer(request: dict) -> list[str]:
        user = encode["user_id"][request["user_id"]]
        history = [encode["movie_id"][m] for m in request["history"]]
        batch = {"user_id": torch.tensor([user]), **{n: torch.tensor([v]) for n, v in profile[user].items()}}
        batch["hist_movie_id"] = torch.from_numpy(pad_sequences([history], maxlen=task.MAX_HISTORY)).long()
        with torch.inference_mode():
            vector = model(batch)[0].numpy()
        seen = set(request["history"])
        found = (movie_ids[i] for i in index.query(vector, 10 + len(seen))[0])
        return [raw["title"][m] for m in found if m not in seen][:10]

    return shared.latency(answer, requests)


if __name__ == "__main__":
    shared.answer(prep, train, evaluate, quality, serve)
