"""Text: trigrams, hashing, the paper's towers and their start, training, BM25, splits without a leak."""

from __future__ import annotations

import ast
import math

import numpy as np
import pytest
import torch

from dssm_helpers import text as search
from dssm_helpers.course.corpora import (
    BM25,
    bare_names,
    described,
    distinct,
    docstrings,
    ranked,
    reciprocal_rank_fusion,
    split_pairs,
    typo,
)
from dssm_helpers.evaluation import ranks_of
from dssm_helpers.onnx_export import OnnxTower, export_onnx
from dssm_helpers.text import text_trigrams, trigrams, vectors, words
from dssm_helpers.vocabulary import UNKNOWN

TEXTS = [f"{a}{b} town" for a in ("nor", "sud", "est", "wes", "ham") for b in ("burg", "dorf", "stad")]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return search.paper_model(search.fit_trigrams(TEXTS, least=1), gamma=10)


@pytest.mark.parametrize("word", ["a", "ab", "web", "cosine", "banana"])
def test_trigrams_are_all_windows_of_three(word):
    padded = "#" + word + "#"
    assert trigrams(word) == [a + b + c for a, b, c in zip(padded, padded[1:], padded[2:], strict=False)]


def test_words_and_texts():
    assert words("San-José, np.argsort_v2!") == ["san", "josé", "np", "argsort", "v2"]
    assert text_trigrams("a web") == ["#a#", "#we", "web", "eb#"]


def test_repeats_keep_words_apart_and_a_typo_shares_most_trigrams():
    assert set(trigrams("1000")) == set(trigrams("10000"))
    assert sorted(trigrams("1000")) != sorted(trigrams("10000"))
    right, wrong = set(trigrams("amsterdam")), set(trigrams("amsterdan"))
    assert len(right & wrong) > len(right) / 2


def test_hashing_pads_with_0_cuts_and_knows_the_unknown():
    vocabulary = search.fit_trigrams(["web web", "wet"], least=2)
    assert vocabulary.values.tolist() == ["#we", "eb#", "web"]
    ids = search.hashed(["web", "wet", "", "web web"], vocabulary, 4).tolist()
    assert ids == [[2, 4, 3, 0], [2, UNKNOWN, UNKNOWN, 0], [0, 0, 0, 0], [2, 4, 3, 2]]
    assert search.hashed([""], vocabulary).tolist() == [[0]]


def test_towers_start_as_in_the_paper_and_count_as_one_kernel(model):
    for tower in (model.user_tower, model.item_tower):
        for weight in tower.parameters():
            bound = math.sqrt(6 / sum(weight.shape)) if weight.dim() == 2 else 0
            assert bound * 0.9 <= weight.abs().max() <= bound + 1e-6
        assert 0.9 < tower.mlp[-1](torch.full((1, 300), 100.0)).abs().max() <= 1  # tanh is the last thing
    batch = {"query": search.hashed(TEXTS, search.fit_trigrams(TEXTS, least=1))}
    layer = model.user_tower.embedding
    training, evaluating = layer.train()(batch), layer.eval()(batch)
    torch.testing.assert_close(training, evaluating)
    counts = torch.zeros(len(TEXTS), model.user_tower.embedding.features[0].vocab_size)
    counts.scatter_add_(1, batch["query"], (batch["query"] > 0).float())
    torch.testing.assert_close(training, torch.tanh(counts @ layer.tables["query"].weight))


def test_onnx_gives_the_same_vectors(model, tmp_path):
    ids = search.hashed(TEXTS, search.fit_trigrams(TEXTS, least=1))
    for part, side in (("user", "query"), ("item", "document")):
        tower = OnnxTower.load(export_onnx(model, tmp_path / f"{part}.onnx", part))
        np.testing.assert_allclose(tower({side: ids.numpy()}), vectors(model, ids, side), atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"negatives": 4}, {"negatives": 4, "sgd": 0.5}])
def test_training_finds_the_pairs(model, options):
    ids, clicked = search.hashed(TEXTS, search.fit_trigrams(TEXTS, least=1)), np.arange(len(TEXTS))[::-1].copy()
    sgd = options.pop("sgd", None)
    optimizer = torch.optim.SGD(model.parameters(), lr=sgd) if sgd else None
    losses = search.fit_pairs(model, ids, ids, clicked, epochs=60, batch_size=8, optimizer=optimizer, **options)
    assert losses[-1] < 0.3 * losses[0]
    assert ranks_of(vectors(model, ids) @ vectors(model, ids, "document").T, clicked).mean() < 1.5


def test_bm25_against_its_formula():
    texts = ["red red car", "blue car", "a green and slow boat"]
    score = BM25(texts, k1=1.2, b=0.75)(["red car"])[0]
    mean = (3 + 2 + 5) / 3
    idf = {"red": math.log1p(2.5 / 1.5), "car": math.log1p(1.5 / 2.5)}
    part = [2.2 * n / (n + 1.2 * (0.25 + 0.75 * 3 / mean)) for n in (2, 1)]
    assert score[0] == pytest.approx(idf["red"] * part[0] + idf["car"] * part[1])
    assert score[2] == 0


def test_ranks_count_ties_half_and_fusion_adds_reciprocal_ranks():
    scores = np.array([[3.0, 1, 1, 0], [0, 0, 0, 0]])
    assert ranks_of(scores, [1, 2]).tolist() == [2.5, 2.5]
    fused = reciprocal_rank_fusion(np.array([[3.0, 2, 1]]), np.array([[10.0, 30, 20]]))
    np.testing.assert_allclose(fused, [[1 / 61 + 1 / 63, 1 / 62 + 1 / 61, 1 / 63 + 1 / 62]])


def test_ranking_in_parts_is_ranking_at_once():
    texts, clicked = np.array(["red car", "blue", "slow boat", "car", "nothing"]), np.array([0, 1, 2, 1, 0])
    score = BM25(["red red car", "blue car", "a green and slow boat"])
    np.testing.assert_array_equal(ranked(score, texts, clicked, at_once=2), ranks_of(score(texts), clicked))


def test_pairs_are_distinct_and_the_split_leaks_nothing():
    rows = [("Sao Paulo", "b"), ("sao-paulo", "b"), ("two homes", "a"), ("two homes", "b"), ("A", "a"), ("other", "a")]
    assert distinct(rows, ["a", "b"])[0]["query"].tolist() == ["Sao Paulo", "other"]
    clicked = np.random.default_rng(0).integers(0, 200, 2000)
    parts = split_pairs(clicked, 50)
    assert len(np.unique(np.concatenate(list(parts.values())))) == sum(map(len, parts.values()))
    seen = np.concatenate([parts[name] for name in ("train", "validation", "test")])
    assert not set(clicked[parts["unseen"]]) & set(clicked[seen])


def test_docstrings_are_read_without_importing():
    functions = "  def f(self, x):\n    'Does two.'\n  def _g(self):\n    'No.'"
    tree = ast.parse(f"class A:\n  'Makes one.\\n\\nMore.'\n{functions}")
    assert sorted(described(tree, "m")) == [("Does two.", "m.A.f", "(x)"), ("Makes one.", "m.A", "")]
    pairs, documents = docstrings(["packaging"])
    assert len(documents) == len(set(documents)) > 5
    assert (documents[pairs["clicked"]] == pairs["document"]).all()


def test_a_signature_changes_the_documents_and_nothing_else():
    (pairs, names), (same, signed) = (docstrings(["packaging"], signature) for signature in (False, True))
    assert same[["query", "clicked"]].equals(pairs[["query", "clicked"]])
    assert [text.partition("(")[0] for text in signed] == list(names)
    assert any("(" in text for text in signed)
    assert (signed[same["clicked"]] == same["document"]).all()


def test_a_typo_is_one_edit_and_each_kind_comes():
    rng, word = np.random.default_rng(0), "bonn"
    slips = {typo(word, rng) for _ in range(500)}
    dropped = {word[:i] + word[i + 1 :] for i in range(4)}
    doubled = {word[: i + 1] + word[i:] for i in range(4)}
    swapped = {"obnn", "bnon"}  # the last two are equal
    assert slips >= dropped | doubled | swapped
    assert word not in slips
    replaced = slips - dropped - doubled - swapped
    assert all(len(slip) == 4 and sum(a != b for a, b in zip(slip, word, strict=True)) == 1 for slip in replaced)
    assert {next(i for i in range(4) if slip[i] != word[i]) for slip in replaced} == {0, 1, 2, 3}
    assert typo("Bonn am Rhein", np.random.default_rng(1)) == typo("Bonn am Rhein", np.random.default_rng(1))


def test_bare_names_are_those_of_one_document():
    documents = ["a.b.argsort(x)", "a.fit", "c.fit(self.x)", "top"]
    assert bare_names(documents).tolist() == ["argsort", "", "", "top"]
