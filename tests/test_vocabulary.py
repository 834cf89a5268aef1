"""Values to indices and back: 0 is padding, 1 is unknown, real values from 2."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from conftest import notebook_definitions

from dssm_helpers.vocabulary import FIRST, PADDING, UNKNOWN, Vocabulary, load_vocabularies, save_vocabularies


@pytest.mark.parametrize("values", [[30, 10, 20, 10], ["b", "c", "a", "b"]])
def test_real_values_start_at_two_and_come_back_in_any_shape(values):
    vocabulary = Vocabulary.fit("column", values)
    assert (PADDING, UNKNOWN, FIRST) == (0, 1, 2)
    assert vocabulary.encode(vocabulary.values).tolist() == [2, 3, 4]
    assert len(vocabulary) == 5
    values = vocabulary.values[np.array([[0, 2], [1, 1]])]
    indices = vocabulary.encode(values)
    assert (indices.shape, indices.dtype) == ((2, 2), np.int64)
    assert vocabulary.decode(indices.ravel()) == values.ravel().tolist()
    assert vocabulary.decode([PADDING, UNKNOWN]) == [None, None]
    assert vocabulary.encode([]).dtype == np.int64


@pytest.mark.parametrize("value", [15, -1, 10**18, 10**30, None, float("nan"), "z", "", "aa"])
def test_strange_values_are_unknown(value):
    known = ["a", "b", "c"] if isinstance(value, str) else [10, 20, 30]
    vocabulary = Vocabulary.fit("id", pd.Series(known))
    assert vocabulary.encode([value]).tolist() == [UNKNOWN]
    assert vocabulary.encode(pd.Series([known[0], value, known[2]], dtype=object)).tolist() == [2, UNKNOWN, 4]


@pytest.mark.parametrize(("fitted", "given"), [([1, 2], ["1"]), (["1", "2"], [1]), ([1, 2], np.array(["1"], object))])
def test_text_for_numbers_is_refused(fitted, given):
    with pytest.raises(ValueError, match="vocabulary 'id' holds"):
        Vocabulary.fit("id", fitted).encode(given)


@pytest.mark.parametrize(
    ("values", "message"),
    [([], "or text, got"), ([1.0, float("nan")], "or text, got"), (np.array(["a", None], dtype=object), "missing")],
)
def test_fit_refuses_what_it_cannot_hold(values, message):
    with pytest.raises(ValueError, match=message):
        Vocabulary.fit("id", values)
    with pytest.raises(ValueError, match="must be unique"):
        Vocabulary("id", [1, 1])


@pytest.mark.parametrize(
    ("fitted", "new", "behind"),
    [([30, 10], [20, 10, 40, 20, 5], [5, 20, 40]), (["b", "a"], ["aa", "b", "ccc"], ["aa", "ccc"]), ([7], [7], [])],
)
def test_extending_moves_no_index(fitted, new, behind, tmp_path):
    vocabulary = Vocabulary.fit("id", fitted)
    larger = vocabulary.extended(new)
    assert larger.values.tolist() == [*vocabulary.values.tolist(), *behind]
    for values in (np.array([*new, *fitted]), pd.Series([*new, *fitted], dtype=object)):  # both ways of looking up
        indices = larger.encode(values)
        assert larger.decode(indices) == values.tolist()
        old = vocabulary.encode(values)
        assert np.array_equal(indices[old > UNKNOWN], old[old > UNKNOWN])
        assert (indices[old == UNKNOWN] >= len(vocabulary)).all()
    assert larger.encode(larger.values[:0]).tolist() == []
    save_vocabularies({"id": larger}, tmp_path / "v.json")
    assert load_vocabularies((tmp_path / "v.json").read_bytes())["id"].values.tolist() == larger.values.tolist()
    with pytest.raises(ValueError, match="vocabulary 'id' holds"):
        vocabulary.extended([1] if vocabulary.is_text else ["1"])


def test_saved_as_json_and_read_back(tmp_path):
    path = tmp_path / "new.json"
    saved = {"id": Vocabulary.fit("id", [3, 1]), "title": Vocabulary.fit("title", ["Amélie", "Åse"])}
    save_vocabularies(saved, path)
    assert "Amélie" in path.read_text(encoding="utf-8")
    loaded = load_vocabularies(path.read_bytes())
    assert {n: v.values.tolist() for n, v in loaded.items()} == {n: v.values.tolist() for n, v in saved.items()}


def test_the_notebook_agrees():
    encode_values = notebook_definitions("01", "encode_values")["encode_values"]
    known = np.array([5, 7, 100, 2_000])
    values = np.random.default_rng(0).integers(0, 2_100, 500)
    values[:4] = known
    assert np.array_equal(encode_values(known, values), Vocabulary("id", known).encode(values))


@pytest.mark.parametrize(
    "values", [[5, 7, 8], [-3, 0, 2], [1, 10**15], [2**62, 2**62 + 3], [-(2**63), 2**63 - 1], [-(2**63), 3 - 2**63]]
)
def test_numbers_at_the_edges_of_int64_are_told_apart(values):
    vocabulary = Vocabulary("x", values)
    near = [v + step for v in values for step in (-1, 0, 1) if -(2**63) <= v + step < 2**63]
    asked = np.array([*near, 0, -1, 2**63 - 1, -(2**63)], dtype=np.int64)
    index = {value: place + FIRST for place, value in enumerate(values)}
    expected = [index.get(int(value), UNKNOWN) for value in asked]
    assert vocabulary.encode(asked).tolist() == expected
    natural = asked >= 0
    assert vocabulary.encode(asked[natural].astype(np.uint64)).tolist() == np.asarray(expected)[natural].tolist()
    assert vocabulary.encode(np.array([2**64 - 1], dtype=np.uint64)).tolist() == [UNKNOWN]
