"""torch-rechub's half of each comparison in peers.py. Runs in torch-rechub's own environment; prints one line of JSON.

Called as its own example for DSSM on MovieLens calls it (``examples/matching/run_ml_dssm.py``). Nothing of it is
patched. Data loaders run in this process: with worker processes it would use more
cores than we do. Its items have one genre (the first, as in its example), which is less work than our list of genres.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import machine as shared

# isort: split
import numpy as np
from our_side import BATCH_SIZE, DIMS, EPOCHS_TIMED, MAX_HISTORY, USER_COLUMNS, WIDTH, load_tables, parse_arguments

ITEM_COLUMNS = ("year", "cate_id")


def load_frame(path: Path):
    """The one wide frame its example starts from, ids encoded by scikit-learn from 1, and the raw values by column.

    Its ``timestamp`` becomes the row's place in our order, so that ratings of the same second end up in the same order.
    """
    from sklearn.preprocessing import LabelEncoder

    tables = load_tables(path)
    data = tables.ratings.sort_values(["user_id", "timestamp"], kind="stable")
    data["timestamp"] = np.arange(len(data))
    data = data.merge(tables.users, on="user_id").merge(tables.movies, on="movie_id")
    data["cate_id"] = data.pop("genres").str.split("|").str[0]
    titles = dict(zip(tables.movies["movie_id"], tables.movies["title"], strict=True))
    raw = {}
    for column in ("user_id", "movie_id", *USER_COLUMNS, *ITEM_COLUMNS):
        encoder = LabelEncoder()
        data[column] = encoder.fit_transform(data[column]) + 1
        raw[column] = encoder.classes_
    return data.drop(columns=["title", "rating"]), raw, titles


def prepare(data, neg_ratio: int):
    """What its example does between the encoded frame and the data loader."""
    from torch_rechub.utils.match import gen_model_input, generate_seq_feature_match

    users = data[["user_id", *USER_COLUMNS]].drop_duplicates("user_id")
    items = data[["movie_id", *ITEM_COLUMNS]].drop_duplicates("movie_id")
    train, test = generate_seq_feature_match(
        data, "user_id", "movie_id", "timestamp", sample_method=1, mode=0, neg_ratio=neg_ratio
    )
    x_train = gen_model_input(train, users, "user_id", items, "movie_id", seq_max_len=MAX_HISTORY)
    x_test = gen_model_input(test, users, "user_id", items, "movie_id", seq_max_len=MAX_HISTORY)
    return x_train, x_test, items


def build(raw: dict):
    """Its DSSM as in its example, with the year beside the genre (its temperature is an argument its code ignores)."""
    from torch_rechub.basic.features import SequenceFeature, SparseFeature
    from torch_rechub.models.matching import DSSM

    def sparse(column: str) -> SparseFeature:
        return SparseFeature(column, vocab_size=len(raw[column]) + 1, embed_dim=WIDTH)

    user = [sparse(column) for column in ("user_id", *USER_COLUMNS)]
    user.append(
        SequenceFeature("hist_movie_id", len(raw["movie_id"]) + 1, WIDTH, pooling="mean", shared_with="movie_id")
    )
    item = [sparse(column) for column in ("movie_id", *ITEM_COLUMNS)]
    tower = {"dims": list(DIMS), "activation": "prelu"}
    return DSSM(user, item, user_params=tower, item_params=tower, temperature=0.02)


def prep(arguments: argparse.Namespace) -> dict:
    """Seconds and peak memory from the encoded frame to the arrays its data loader takes (encoding not counted)."""
    import torch_rechub.trainers
    import torch_rechub.utils.match  # noqa: F401
    from sklearn.preprocessing import LabelEncoder  # noqa: F401

    imports = shared.resident_memory()
    data, _, _ = load_frame(arguments.tables)
    shared.reset_peak()
    started = time.perf_counter()
    x_train, _, _ = prepare(data, arguments.neg_ratio)
    return {
        "seconds": time.perf_counter() - started,
        "mib_above_imports": (shared.peak_memory() - imports) / 2**20,
        "rows": len(data),
        "training_rows": len(x_train["label"]),
        "neg_ratio": arguments.neg_ratio,
    }


def _prepared(arguments: argparse.Namespace):
    data, raw, titles = load_frame(arguments.tables)
    return (*prepare(data, arguments.neg_ratio), raw, titles)


def _trainer(model, folder: str, **options):
    from torch_rechub.trainers import MatchTrainer

    options = {"optimizer_params": {"lr": 1e-3, "weight_decay": 1e-6}, **options}
    return MatchTrainer(model, mode=0, model_path=folder, **options)


def _loaders(x_train, x_test, items, batch_size: int):
    from torch_rechub.utils.data import MatchDataGenerator, df_to_dict

    generator = MatchDataGenerator(x=x_train, y=x_train["label"])
    return generator.generate_dataloader(x_test, df_to_dict(items), batch_size=batch_size, num_workers=0)


def train(arguments: argparse.Namespace) -> dict:
    """Training examples per second in its in-batch mode (``in_batch_neg=True``), after a first epoch."""
    x_train, x_test, items, raw, _ = _prepared(arguments)
    x_train = {name: values[: arguments.steps * BATCH_SIZE] for name, values in x_train.items()}
    loader, _, _ = _loaders(x_train, x_test, items, BATCH_SIZE)
    trainer = _trainer(build(raw), ".", in_batch_neg=True)
    at = [shared.both_clocks()]
    for _ in range(1 + EPOCHS_TIMED):
        trainer.train_one_epoch(loader)
        at.append(shared.both_clocks())
    return shared.rates(at, len(x_train["label"])) | {"steps": arguments.steps}


def evaluate(arguments: argparse.Namespace) -> dict:
    """Seconds of its own route: both towers' ``inference_embedding``, its Annoy (10 trees, top 100), its metrics."""
    import torch
    from torch_rechub.basic.metric import topk_metrics
    from torch_rechub.utils.match import Annoy

    x_train, x_test, items, raw, _ = _prepared(arguments)
    with tempfile.TemporaryDirectory() as folder:
        model = build(raw)
        trainer = _trainer(model, folder)
        _, users, movies = _loaders(x_train, x_test, items, batch_size=4096)
        torch.save(model.state_dict(), Path(folder) / "model.pth")

        def route() -> None:
            user_vectors = trainer.inference_embedding(model, "user", users, folder)
            item_vectors = trainer.inference_embedding(model, "item", movies, folder)
            index = Annoy(n_trees=10)
            index.fit(item_vectors)
            movie_ids = items["movie_id"].to_numpy()
            found = {u: movie_ids[index.query(v, 100)[0]] for u, v in zip(x_test["user_id"], user_vectors, strict=True)}
            truth = {u: [m] for u, m in zip(x_test["user_id"], x_test["movie_id"], strict=True)}
            topk_metrics(y_true=truth, y_pred=found, topKs=[10, 100])

        return {"seconds": shared.best_of(route, arguments.repeats)["median"], "users": len(x_test["user_id"])}


def quality(arguments: argparse.Namespace) -> dict:
    """Test metrics by our evaluation after every epoch, within a limit of seconds.

    Its training set holds our validation movies as well (it splits off the last movie only), which helps it.
    With ``--neg-ratio 3`` point-wise, as its example, else in its in-batch mode; batch 256, Adam 1e-3.
    """
    import torch

    from dssm_helpers.data import encode, split_by_time
    from dssm_helpers.evaluation import metrics, rank_targets
    from dssm_helpers.vocabulary import FIRST

    torch.manual_seed(0)
    np.random.seed(0)
    encoded = encode(load_tables(arguments.tables))
    test = split_by_time(encoded).test
    x_train, x_test, items, raw, _ = _prepared(arguments)
    sampled = arguments.neg_ratio > 0
    model = build(raw)
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(model, folder, in_batch_neg=not sampled)
        loader, users, movies = _loaders(x_train, x_test, items, batch_size=BATCH_SIZE)
        row_of_user = {int(user) - 1 + FIRST: row for row, user in enumerate(x_test["user_id"])}
        columns = items["movie_id"].to_numpy() - 1 + FIRST  # both encode sorted raw ids

        def scorer(positions: np.ndarray) -> torch.Tensor:
            scores = torch.full((len(positions), encoded.n_items), -2.0)
            rows = [row_of_user[u] for u in encoded.user[positions].tolist()]
            scores[:, columns] = user_vectors[rows] @ item_vectors.T
            return scores

        curve, trained = [], 0.0
        while shared.room_for_another(trained, len(curve), arguments.seconds) and len(curve) < max(arguments.epochs):
            started = time.perf_counter()
            model.mode = None
            trainer.train_one_epoch(loader)
            trained += time.perf_counter() - started
            torch.save(model.state_dict(), Path(folder) / "model.pth")
            user_vectors = trainer.inference_embedding(model, "user", users, folder)
            item_vectors = trainer.inference_embedding(model, "item", movies, folder)
            result = metrics(rank_targets(scorer, encoded, test))
            curve.append({"epoch": len(curve) + 1, "seconds": round(trained, 1)} | result)
            print(curve[-1], file=sys.stderr, flush=True)
    best = max(curve, key=lambda row: row["hit@100"])
    return {"mode": "point-wise, 3 negatives" if sampled else "in-batch", "best": best, "curve": curve}


def serve(arguments: argparse.Namespace) -> dict:
    """Raw ids → titles assembled from its parts: encode, user tower, its Annoy, drop the seen, titles. One core."""
    import torch
    from torch_rechub.utils.data import df_to_dict, pad_sequences
    from torch_rechub.utils.match import Annoy

    shared.pin_to_one_core()
    torch.set_num_threads(1)
    data, raw, titles = load_frame(arguments.tables)
    model = build(raw).eval()
    items = data[["movie_id", *ITEM_COLUMNS]].drop_duplicates("movie_id")
    known = data[["user_id", *USER_COLUMNS]].drop_duplicates("user_id").set_index("user_id")
    profile = known.to_dict("index")
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
        batch["hist_movie_id"] = torch.from_numpy(pad_sequences([history], maxlen=MAX_HISTORY)).long()
        with torch.inference_mode():
            vector = model(batch)[0].numpy()
        seen = set(request["history"])
        found = (movie_ids[i] for i in index.query(vector, 10 + len(seen))[0])
        return [titles[m] for m in found if m not in seen][:10]

    requests = json.loads(arguments.requests.read_text(encoding="utf-8"))
    for request in requests[:50]:
        answer(request)
    seconds, count = [], collections.Counter()
    for i in range(arguments.repeats):
        started = time.perf_counter()
        count[len(answer(requests[i % len(requests)]))] += 1
        seconds.append(time.perf_counter() - started)
    return shared.latency(seconds) | {"answers_of_ten": count[10] / arguments.repeats}


PARTS = {f.__name__: f for f in (prep, train, evaluate, quality, serve)}


if __name__ == "__main__":
    arguments = parse_arguments(__doc__, PARTS)
    with contextlib.redirect_stdout(sys.stderr):  # it prints while it works
        result = PARTS[arguments.part](arguments)
    print(json.dumps(result, default=float))
