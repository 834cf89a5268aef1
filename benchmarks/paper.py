"""The DSSM paper's ablations on place names: ``python benchmarks/paper.py`` writes ``paper.json`` (notebook 16).

NDCG of 2,000 queries each over all documents. The file is written anew after each row.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine, write_json
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import normalize
from torch import nn

from dssm_helpers import text as search
from dssm_helpers.course.corpora import BM25, alternate_names, reciprocal_rank_fusion, split_pairs
from dssm_helpers.evaluation import ndcg, paired_bootstrap, ranks_of
from dssm_helpers.text import text_trigrams, words

FILE = Path(__file__).with_suffix(".json")
PARTS = ("validation", "test", "unseen")
RUNS: dict[str, dict[str, Any]] = {
    **{f"gamma {gamma}": {"gamma": gamma} for gamma in (5, 10, 20, 40)},
    "words": {"tokens": words},
    "linear": {"layers": 0},
    "one layer less": {"dims": (128,)},
    "four negatives": {"negatives": 4},
    "four negatives, SGD 0.1": {"negatives": 4, "sgd": 0.1},
    "four negatives, SGD 1": {"negatives": 4, "sgd": 1.0},
    "4 epochs": {"epochs": 4},
    "4 epochs, seed 1": {"epochs": 4, "seed": 1},
    "4 epochs, seed 2": {"epochs": 4, "seed": 2},
}


def main() -> None:
    torch.set_num_threads(1)
    pairs, documents = alternate_names()
    text, clicked = pairs["query"].to_numpy(), pairs["clicked"].to_numpy()
    rows = split_pairs(clicked)
    known = [*documents, *text[rows["train"]]]
    sizes = {"pairs": len(pairs), "documents": len(documents), "train": len(rows["train"])}
    result, ranks = {"machine": machine(), **sizes, "runs": {}}, {}

    def keep(name: str, score, seconds: float = 0.0) -> None:
        scores = {part: score(rows[part]) for part in PARTS}
        ranks[name] = {part: ranks_of(scores[part], clicked[rows[part]]) for part in PARTS}
        found = {part: {k: round(float(ndcg(r, k).mean()), 4) for k in (1, 3, 10)} for part, r in ranks[name].items()}
        result["runs"][name] = {"seconds": round(seconds, 1), **found}
        write_json(FILE, result)
        print(name, found["validation"], flush=True)

    def train(gamma=10, dims=(300, 128), layers=1, negatives=None, sgd=None, epochs=2, seed=0, tokens=text_trigrams):
        torch.manual_seed(seed)
        vocabulary = search.fit_trigrams(known, tokens=tokens)
        queries, shown = (search.hashed(texts, vocabulary, 24, tokens) for texts in (text, documents))
        model, began = search.paper_model(vocabulary, gamma, dims), time.process_time()
        for tower in (model.user_tower, model.item_tower) if not layers else ():  # one matrix, and nothing bent
            tower.embedding.squash, tower.mlp = nn.Identity(), nn.Sequential(nn.Linear(300, 128, bias=False))
        optimizer = torch.optim.SGD(model.parameters(), lr=sgd) if sgd else None
        options = {"epochs": epochs, "negatives": negatives, "optimizer": optimizer, "seed": seed}
        search.fit_pairs(model, queries[rows["train"]], shown, clicked[rows["train"]], **options)
        seconds, towards = time.process_time() - began, search.vectors(model, shown, "document").T
        return (lambda at: search.vectors(model, queries[at]) @ towards), seconds

    grams = BM25(documents, text_trigrams)
    for name, tokens in {"words": words, "trigrams": text_trigrams}.items():
        tfidf = TfidfVectorizer(analyzer=tokens, sublinear_tf=True).fit(documents)
        matrix = tfidf.transform(documents)
        keep(f"TF-IDF, {name}", lambda at, t=tfidf, m=matrix: (t.transform(text[at]) @ m.T).toarray())
    lsa = TruncatedSVD(128, random_state=0).fit(matrix)
    concepts = normalize(lsa.transform(matrix)).T
    keep("LSA, trigrams", lambda at: lsa.transform(tfidf.transform(text[at])) @ concepts)
    plain = BM25(documents)
    keep("BM25, words", lambda at: plain(text[at]))
    keep("BM25, trigrams", lambda at: grams(text[at]))
    for name, settings in RUNS.items():
        score, seconds = train(**settings)
        keep(name, score, seconds)
        if name == "4 epochs":
            keep("4 epochs + BM25, trigrams", lambda at: reciprocal_rank_fusion(score(at), grams(text[at])))  # noqa: B023
    seeds = [name for name in RUNS if name.startswith("4 epochs")]
    for part in ("test", "unseen"):
        ours, bm25 = (np.array([ndcg(ranks[n][part]) for n in names]) for names in (seeds, ["BM25, trigrams"]))
        result[f"gain, {part}"] = str(paired_bootstrap(ours, bm25))
        spread = ours.mean(axis=1)
        result[f"seeds, {part}"] = [round(float(spread.min()), 4), round(float(spread.max()), 4)]
    write_json(FILE, result)


if __name__ == "__main__":
    main()
