"""What is asked, and of what: ``python benchmarks/queries.py`` writes ``queries.json`` (notebook 16).

Summaries, bare names, misspelt names and half of each, over the docstrings' functions as names and as signatures.
NDCG@10 over all documents, means of three seeds. ``names too`` trains on the training documents' bare names as well.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import command_line, machine, write_json

from dssm_helpers import text as search
from dssm_helpers.course.corpora import BM25, bare_names, docstrings, reciprocal_ranks, split_pairs, typo
from dssm_helpers.evaluation import ndcg, paired_bootstrap, ranks_of
from dssm_helpers.text import text_trigrams

FILE, SEEDS = Path(__file__).with_suffix(".json"), 3
MODELS = {"docstrings": ("DSSM", "DSSM, names too"), "signatures": ("DSSM",)}


def kinds_of(texts: np.ndarray, names: np.ndarray) -> dict[str, np.ndarray]:
    """The same documents asked for by summary, by bare name, by a name with a typo, and half by summary and name."""
    rng = np.random.default_rng(0)
    typos = np.array([typo(name, rng) for name in names])
    half = np.where(np.arange(len(texts)) % 2 == 0, texts, names)
    return {"summaries": texts, "bare names": names, "misspelt": typos, "half and half": half}


def measure(name: str) -> dict[str, Any]:
    """For each part and kind of query the searches' means, the range between seeds, and gains over one another."""
    pairs, documents = docstrings(signature=name == "signatures")
    text, clicked, names = pairs["query"].to_numpy(), pairs["clicked"].to_numpy(), bare_names(documents)
    rows = split_pairs(clicked, 500)
    train, target = rows["train"], clicked[rows["train"]]
    vocabulary = search.fit_trigrams([*documents, *text[train]])
    shown = search.hashed(documents, vocabulary)
    searches = {"BM25, words": [BM25(documents)], "BM25, trigrams": [BM25(documents, text_trigrams)]}

    def towers(seed: int, names_too: bool):
        torch.manual_seed(seed)
        named = np.unique(target[(names[target] != "") & names_too])
        model, clicks = search.paper_model(vocabulary), np.concatenate([target, named])
        queries = search.hashed([*text[train], *names[named]], vocabulary)
        search.fit_pairs(model, queries, shown, clicks, epochs=10, batch_size=512, seed=seed)
        vectors = search.vectors(model, shown, "document").T
        return lambda texts: search.vectors(model, search.hashed(texts, vocabulary)) @ vectors

    for model in MODELS[name]:
        searches[model] = [towers(seed, model != "DSSM") for seed in range(SEEDS)]
    result = {"pairs": len(pairs), "documents": len(documents)}
    for part in ("validation", "test"):
        at = rows[part][names[clicked[rows[part]]] != ""]
        kinds = kinds_of(text[at], names[clicked[at]])
        result[part] = {kind: compare(searches, asked, clicked[at]) for kind, asked in kinds.items()}
    return result


def compare(searches: dict[str, list], asked: np.ndarray, clicked: np.ndarray) -> dict[str, Any]:
    """Each search alone, and each model fused with each BM25."""
    scores = {name: [score(asked) for score in seeds] for name, seeds in searches.items()}
    found = {name: np.array([ndcg(ranks_of(score, clicked)) for score in seeds]) for name, seeds in scores.items()}
    reciprocal = {name: [reciprocal_ranks(score) for score in seeds] for name, seeds in scores.items()}
    gains = [("DSSM, names too", "DSSM")] if "DSSM, names too" in searches else []
    for model in [name for name in searches if name.startswith("DSSM")]:
        for bm25 in ("BM25, words", "BM25, trigrams"):
            (other,), both = reciprocal[bm25], f"{model} + {bm25[6:]}"
            found[both] = np.array([ndcg(ranks_of(one + other, clicked)) for one in reciprocal[model]])
            gains += [(model, bm25), (both, model), (both, bm25)]
    means = {name: values.mean(axis=1) for name, values in found.items()}
    return {
        "n": len(clicked),
        "ndcg": {name: round(float(mean.mean()), 4) for name, mean in means.items()},
        "range": {name: round(float(np.ptp(mean)), 4) for name, mean in means.items()},
        "gains": {f"{a} over {b}": paired_bootstrap(found[a], found[b], 2000) for a, b in gains},
    }


def main() -> None:
    command_line(__doc__).parse_args()
    torch.set_num_threads(1)
    result = {"machine": machine(), "seeds": SEEDS}
    for name in MODELS:
        result[name] = measure(name)
        write_json(FILE, result)
        print(name, result[name]["validation"], flush=True)  # the test is looked at in the notebook, once


if __name__ == "__main__":
    main()
