"""What is asked: typos, new words, bare names; names or signatures as documents. ``python benchmarks/queries.py``
writes ``queries.json`` (notebook 16).

NDCG@10 over all documents, means of three seeds. ``names too`` trains on the training documents' bare names as well.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from machine import machine, write_json

from dssm_helpers import text as search
from dssm_helpers.course.corpora import (
    BM25,
    alternate_names,
    bare_names,
    docstrings,
    reciprocal_rank_fusion,
    split_pairs,
    typo,
)
from dssm_helpers.evaluation import ndcg, paired_bootstrap, ranks_of
from dssm_helpers.text import text_trigrams, words

FILE, SEEDS = Path(__file__).with_suffix(".json"), 3
PARTS = ("validation", "test", "unseen")
CORPORA = {
    "docstrings": (docstrings, {"n": 500, "longest": 100, "epochs": 10, "batch_size": 512}),
    "signatures": (partial(docstrings, signature=True), {"n": 500, "longest": 100, "epochs": 10, "batch_size": 512}),
    "names": (alternate_names, {"n": 2000, "longest": 24, "epochs": 2, "batch_size": 1024}),
}
GAINS = (("DSSM", "BM25, trigrams"), ("both", "DSSM"), ("both", "BM25, trigrams"), ("DSSM, names too", "DSSM"))
GAINS += (("DSSM, names too", "BM25, trigrams"), ("both, names too", "DSSM, names too"))


def ndcg_of(score: Callable, texts: np.ndarray, clicked: np.ndarray) -> np.ndarray:
    """NDCG@10 ``[Q]``, scored in parts."""
    parts = range(0, len(texts), 500)
    return ndcg(np.concatenate([ranks_of(score(texts[i : i + 500]), clicked[i : i + 500]) for i in parts]))


def measure(name: str) -> dict:
    """Means, ranges between seeds, and paired gains for each kind of query and part of one corpus."""
    load, settings = CORPORA[name]
    pairs, documents = load()
    text, clicked = pairs["query"].to_numpy(), pairs["clicked"].to_numpy()
    rows, longest, names = split_pairs(clicked, settings["n"]), settings["longest"], bare_names(documents)
    train, known = rows["train"], [*documents, *text[rows["train"]]]
    vocabulary, seen = search.fit_trigrams(known), {word for one in known for word in words(one)}
    shown = search.hashed(documents, vocabulary, longest)

    def towers(seed: int, names_too: bool = False) -> Callable:
        torch.manual_seed(seed)
        model, target = search.paper_model(vocabulary), clicked[train]
        named = np.unique(target[names[target] != ""]) if names_too else target[:0]
        queries = search.hashed([*text[train], *names[named]], vocabulary, longest)
        options = {"epochs": settings["epochs"], "batch_size": settings["batch_size"], "seed": seed}
        search.fit_pairs(model, queries, shown, np.concatenate([target, named]), **options)
        vectors = search.vectors(model, shown, "document").T
        return lambda texts: search.vectors(model, search.hashed(texts, vocabulary, longest)) @ vectors

    grams = BM25(documents, text_trigrams)
    methods = {"BM25, words": [BM25(documents)], "BM25, trigrams": [grams]}
    for suffix in ("", ", names too") if name != "names" else ("",):
        methods[f"DSSM{suffix}"] = found = [towers(seed, bool(suffix)) for seed in range(SEEDS)]
        methods[f"both{suffix}"] = [lambda texts, f=f: reciprocal_rank_fusion(f(texts), grams(texts)) for f in found]
    result = {"pairs": len(pairs), "documents": len(documents), "boards": {}}
    for part in PARTS:
        asked, target, rng = text[rows[part]], clicked[rows[part]], np.random.default_rng(0)
        new = np.array([any(word not in seen for word in words(one)) for one in asked])
        kinds = {"all": (asked, target), "a new word": (asked[new], target[new])}
        kinds["typos"] = np.array([typo(one, rng) for one in asked]), target
        if name != "names":
            one = names[target] != ""
            asked, target = asked[one], target[one]
            half = np.arange(len(target)) % 2 == 0
            kinds |= {"summaries": (asked, target), "bare names": (names[target], target)}
            kinds["half and half"] = np.where(half, asked, names[target]), target
        for kind, of in kinds.items():
            values = {method: np.array([ndcg_of(score, *of) for score in scores]) for method, scores in methods.items()}
            means = {method: value.mean(axis=1) for method, value in values.items()}
            pairs_of = [(ours, theirs) for ours, theirs in GAINS if ours in values]
            result["boards"][f"{kind}, {part}"] = {
                "n": len(of[1]),
                "ndcg": {method: round(float(mean.mean()), 4) for method, mean in means.items()},
                "seeds": {method: [round(float(m.min()), 4), round(float(m.max()), 4)] for method, m in means.items()},
                "gains": {f"{a} over {b}": str(paired_bootstrap(values[a], values[b])) for a, b in pairs_of},
            }
            print(name, part, kind, result["boards"][f"{kind}, {part}"], flush=True)
    return result


def main() -> None:
    torch.set_num_threads(1)
    result = {"machine": machine(), "seeds": SEEDS}
    for name in CORPORA:
        result[name] = measure(name)
        write_json(FILE, result)


if __name__ == "__main__":
    main()
