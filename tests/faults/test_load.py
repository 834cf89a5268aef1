"""A recommender that answers, grows and is exchanged at once: the small version of ``benchmarks/load.py``."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import small

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import load


@pytest.fixture(scope="module")
def bundles(tmp_path_factory) -> list[str]:
    folders = [tmp_path_factory.mktemp(variant) for variant in "ab"]
    with small.converted_once():
        for folder, variant in zip(folders, "ab", strict=True):
            small.save_bundle(folder, variant)
    return [str(folder / "bundle") for folder in folders]


def test_outcomes_tell_bundles_and_editions_apart(bundles):
    asked = load.requests(load.Week(bundles[0]).server, load.Random(0))
    one, other = (load.alone(bundle, asked) for bundle in bundles)
    answered = [at for at, result in enumerate(one[0, 0]) if getattr(result, "basis", "popularity") != "popularity"]
    assert len(answered) > load.ORDINARY / 2
    assert not any(one[0, 0][at] == other[0, 0][at] for at in answered)
    for state in ((0, 1), (1, 0), (1, 1)):
        assert sum(a != b for a, b in zip(one[0, 0], one[state], strict=True)) > load.ORDINARY / 10
    odd = [type(result) for result in one[0, 0][load.ORDINARY :]]
    assert len(odd) > odd.count(str) > len(odd) / 2


@pytest.mark.slow
@pytest.mark.fault(
    "16 threads ask, one request in twenty odd, while items are added and the recommender is exchanged",
    "what is wrong with each odd request",
    "every answer is that of one bundle and one catalogue; memory stays",
)
def test_every_outcome_is_one_that_a_single_thread_gets(bundles):
    found = load.under_load(bundles, n=8000, clients=16)
    assert found["requests"] == 8000
    assert found["kinds"].keys() == {"user", "history", "demographics", "popularity", "refused"}
    assert found["additions"] > 50
    assert found["exchanges"] > 2
    assert found["mib_at_the_end"] < found["mib_after_a_tenth"] + 50
