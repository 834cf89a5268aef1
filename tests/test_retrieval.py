"""retrieval.py: every backend against exact search, bad input, saving, Milvus, and an Annoy that lies."""

from __future__ import annotations

import re
import shutil
import sys
import time

import numpy as np
import psutil
import pytest
from conftest import notebook_definitions
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.preprocessing import normalize

from dssm_helpers import retrieval
from dssm_helpers.files import read_manifest, write_folder
from dssm_helpers.index import NOTHING, Index
from dssm_helpers.retrieval import build_index, enlarge, load_index, measure, recall

N, DIM = 300, 16
RNG = np.random.default_rng(0)
VECTORS = RNG.normal(size=(N, DIM)).astype(np.float32)
IDS = 50 + 7 * RNG.permutation(N)  # neither row numbers nor sorted
QUERIES = RNG.normal(size=(9, DIM))
EXHAUSTIVE = {  # settings under which the answer must be the exact one
    "exact": {"backend": "exact"},
    "annoy": {"backend": "annoy", "search_k": 10**6},
    "flat": {"backend": "faiss", "kind": "flat"},
    "ivf": {"backend": "faiss", "kind": "ivf", "nprobe": 10**4},
    "hnsw": {"backend": "faiss", "kind": "hnsw", "efSearch": N},
    "milvus": {"backend": "milvus", "ef": N},
}
LOSSY = {"sq8": {"backend": "faiss", "kind": "sq8"}, "ivfpq": {"backend": "faiss", "kind": "ivfpq", "nprobe": 10**4}}
MILVUS = {kind: {"backend": "milvus", "index_type": kind, "nlist": 4} for kind in ("FLAT", "IVF_FLAT", "AUTOINDEX")}
HASTY = {  # settings that look at far too little
    "annoy": {"backend": "annoy", "n_trees": 1, "search_k": 1},
    "ivf": {"backend": "faiss", "kind": "ivf", "nlist": 60, "nprobe": 1},
    "hnsw": {"backend": "faiss", "kind": "hnsw", "M": 2, "efConstruction": 2, "efSearch": 1},
}


def cases(options: dict[str, dict]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("options", options.values(), ids=options.keys())


@pytest.fixture
def built(request):
    """``build_index`` whose indexes are closed after the test."""

    def build(vectors=VECTORS, ids=IDS, **options):
        index = build_index(vectors, ids, **options)
        request.addfinalizer(index.close)
        return index

    return build


def by_hand(vectors: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All ids and cosines for QUERIES, best first, with none of the code under test."""
    cosines = cosine_similarity(QUERIES, vectors)
    order = np.argsort(-cosines, axis=1)
    return ids[order], np.take_along_axis(cosines, order, axis=1)


ORDER, COSINES = by_hand(VECTORS, IDS)


@cases(EXHAUSTIVE | MILVUS)
def test_equals_search_by_hand(built, options):
    index = built(**options)
    found, scores = index.search(QUERIES, 10)
    assert (found.dtype, scores.dtype, found.shape) == (np.int64, np.float32, (len(QUERIES), 10))
    assert (found == ORDER[:, :10]).all()
    np.testing.assert_allclose(scores, COSINES[:, :10], atol=1e-5)
    assert (len(index), index.dim, index.backend, sorted(index.ids)) == (N, DIM, options["backend"], sorted(IDS))
    assert (index.search(QUERIES[0], 5)[0] == found[:1, :5]).all()  # one query is a batch of one


def test_neither_layout_nor_precision_matters_and_equals_keep_their_order(built):
    strange = np.asfortranarray(np.repeat(VECTORS, 2, axis=1).astype(np.float64) * 30)[:, ::2]
    index = built(strange, IDS.astype(np.int32))
    assert (index.search(np.asfortranarray(QUERIES), 10)[0] == ORDER[:, :10]).all()
    twins = np.repeat(np.eye(4), 5, axis=0)
    assert built(twins, np.arange(20)[::-1]).search(twins[0], 5)[0].tolist() == [[19, 18, 17, 16, 15]]
    assert built(twins, None).search(twins[5], 5)[0].tolist() == [[5, 6, 7, 8, 9]]  # without ids the row numbers
    assert built(twins, None, backend="annoy").search(twins[0], 5)[1].min() == pytest.approx(1.0)  # no false alarm


@cases(LOSSY)
def test_compressed_indexes_find_most(built, rng, options):
    vectors = enlarge(normalize(rng.normal(size=(40, DIM))), 600)
    index, exact = built(vectors, None, **options), built(vectors, None)
    assert recall(index.search(vectors[:50], 10)[0], exact.search(vectors[:50], 10)[0]) > 0.7
    assert index.nbytes < exact.nbytes


@pytest.mark.parametrize(
    ("options", "dial", "positions"),  # from hasty to careful
    [
        ({"backend": "annoy", "n_trees": 5}, "search_k", (10, 300, 10_000)),
        ({"backend": "faiss", "kind": "ivf", "nlist": 50}, "nprobe", (1, 8, 50)),
        ({"backend": "faiss", "kind": "hnsw", "M": 4}, "efSearch", (10, 50, 1000)),
    ],
)
def test_more_effort_finds_more(built, rng, options, dial, positions):
    vectors, queries = rng.normal(size=(2000, DIM)), rng.normal(size=(50, DIM))
    expected, _ = built(vectors, None).search(queries, 10)
    index = built(vectors, None, **options)
    recalls = [recall(index.tune(**{dial: at}).search(queries, 10)[0], expected) for at in positions]
    assert recalls[0] < recalls[1] < recalls[2]
    assert recalls[2] > 0.99


@cases(EXHAUSTIVE | {kind: MILVUS[kind] for kind in ("FLAT", "IVF_FLAT")})
@pytest.mark.parametrize("many", [8, 40, 200, None])  # less than a tenth is allowed, a little more, most, all
def test_exclude_and_allowed_are_exact_search_on_the_rest(built, options, many):
    index, allowed = built(**options), RNG.permutation(IDS)[:many]
    kept = np.isin(ORDER, allowed)
    order = [row[inside].tolist() for row, inside in zip(ORDER, kept, strict=True)]
    # the best ones, none, all but five, the worst ones, ids that are not there
    seen = [order[0][:-5][:20], (), set(order[2][5:]), np.array(order[3][6:]), [3, 2**63, 10**30, -(10**30)]]
    for given in (allowed, [*allowed.tolist(), 1, 10**30], set(allowed.tolist())) if many else (None,):
        found, scores = index.search(QUERIES[:5], 5, exclude=seen, allowed=given)
        for row, excluded in enumerate(seen):
            assert found[row].tolist() == [item for item in order[row] if item not in set(excluded)][:5]
        assert (np.diff(scores, axis=1) <= 0).all()
        np.testing.assert_allclose(scores[1], COSINES[1][kept[1]][:5], atol=1e-5)


@cases(HASTY | {"AUTOINDEX": MILVUS["AUTOINDEX"]})
def test_there_are_k_answers_wherever_there_are_k(built, options):
    """The hasty indexes meet none or few of them on their way. Where few are allowed all of them are looked at."""
    index = built(**options)
    found, _ = index.search(QUERIES, 50, exclude=ORDER[:, :250])
    assert (np.sort(found, axis=1) == np.sort(ORDER[:, 250:], axis=1)).all()
    found, scores = index.search(QUERIES, 60, allowed=IDS[:60])
    assert (np.sort(found, axis=1) == np.sort(IDS[:60])).all()
    assert (np.diff(scores, axis=1) <= 0).all()
    found, _ = index.search(QUERIES, 1, allowed=IDS[:29])
    assert (found == [row[np.isin(row, IDS[:29])][:1] for row in ORDER]).all()


@cases(HASTY)
def test_what_one_query_excludes_changes_nothing_for_the_others(built, options):
    index = built(**options)
    found, _ = index.search(QUERIES, 3, exclude=[ORDER[0, :250], *[()] * 8])
    assert (found[1:] == index.search(QUERIES[1:], 3)[0]).all()


@cases(EXHAUSTIVE)
def test_too_few_left_is_an_error_or_padding(built, options):
    index = built(VECTORS[:6], IDS[:6], **options)
    for message, k, arguments in [
        (r"k=7, but only 6 of 6 items are left", 7, {}),
        (r"only 0 of 6 items are left for query 1 after excluding 6", 1, {"exclude": [[], IDS[:6]]}),
        (r"only 0 of 0 items", 1, {"allowed": []}),
    ]:
        with pytest.raises(ValueError, match=message):
            index.search(QUERIES[:2], k, **arguments)
    found, scores = index.search(QUERIES[:2], 8, exclude=[IDS[:4], IDS[:6]], allow_fewer=True)
    assert set(found[0, :2]) == set(IDS[4:6])
    assert (found == NOTHING).sum() == 6 + 8
    assert (np.isfinite(scores) == (found != NOTHING)).all()


def test_another_search_at_any_moment_of_a_search(built, monkeypatch):
    """A reader right behind each store that a search makes on its index must get the right answer."""
    index = built()

    def store_and_search(self, name, value):
        object.__setattr__(self, name, value)
        assert (self.search(QUERIES, 10)[0] == ORDER[:, :10]).all()

    monkeypatch.setattr(Index, "__setattr__", store_and_search, raising=False)
    assert (index.search(QUERIES, 5, exclude=ORDER[:, :3])[0] == ORDER[:, 3:8]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vectors": np.where(np.arange(DIM) == 3, np.nan, VECTORS)}, "NaN, infinity or zeros only in 300 rows"),
        ({"vectors": np.where(np.arange(N)[:, None] == 7, np.inf, VECTORS)}, "in 1 rows, first row 7"),
        ({"vectors": np.where(np.arange(N)[:, None] == 4, 0, VECTORS)}, "in 1 rows, first row 4: .* no cosine"),
        ({"vectors": VECTORS[0]}, r"array \[n, D\], got shape \(16,\)"),
        ({"ids": IDS[:-1]}, r"300 vectors need 300 different .* shape \(299,\)"),
        ({"ids": np.append(IDS[1:], IDS[1])}, "299 different ones"),
        ({"ids": IDS.astype(float)}, "of float64"),
        ({"ids": IDS - 1000}, "numbers from 0 as ids"),
        ({"backend": "scann"}, "unknown backend 'scann'; choose one of exact, annoy, faiss, milvus"),
        ({"backend": "annoy", "trees": 3}, r"annoy has no option \['trees'\]; it knows .*n_trees"),
        ({"backend": "faiss", "kind": "lsh"}, "choose one of flat, ivf, hnsw, ivfpq, sq8"),
    ],
)
def test_what_cannot_be_built_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        build_index(**{"vectors": VECTORS, "ids": IDS} | change)


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ("search", (QUERIES[:, :15], 3), r"queries .* \[n, 16\], got shape \(9, 15\)"),
        ("search", (np.full(DIM, np.nan), 3), "queries hold NaN, .*, first row 0"),
        ("search", (QUERIES, 0), "k must be at least 1"),
        ("search", (QUERIES, 3, [[1], [2]]), "exclude has 2 entries for 9 queries"),
        ("add", (np.ones((1, DIM + 1)), [1]), r"\[n, 16\], got shape \(1, 17\)"),
        ("add", (VECTORS[:2], [1, 1]), "1 different"),
    ],
)
def test_a_refused_call_says_why_and_changes_nothing(built, method, arguments, message):
    index = built()
    with pytest.raises(ValueError, match=message):
        getattr(index, method)(*arguments)
    with pytest.raises(ValueError, match="cannot change after building"):
        index.tune(nprobe=3)
    assert (index.search(QUERIES, 10)[0] == ORDER[:, :10]).all()
    assert index.search(np.empty((0, DIM)), 3)[0].shape == (0, 3)


@pytest.mark.parametrize(
    ("backend", "missing", "command"),
    [
        ("faiss", "faiss", "faiss-cpu"),
        ("milvus", "milvus_lite", "pymilvus milvus-lite"),
        ("milvus", "pyarrow", "pyarrow"),  # which milvus_lite imports in its turn
    ],
)
def test_a_missing_library_names_the_command(monkeypatch, backend, missing, command):
    if missing == "pyarrow":
        pytest.importorskip("milvus_lite", reason="pip install pymilvus milvus-lite")
    for name in [name for name in sys.modules if name.startswith("milvus_lite")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=rf"needs {missing}: pip install {command} \("):
        build_index(VECTORS, backend=backend)


@cases({name: EXHAUSTIVE[name] for name in ("exact", "flat", "ivf", "milvus")})
def test_upsert_replaces_and_appends(built, options):
    index = built(**options)
    for _ in range(2):  # twice the same is the same as once
        index.add(np.stack([-VECTORS[5], VECTORS[:5].sum(0), VECTORS[9]]), [IDS[5], 9999, IDS[9]])
    changed, all_ids = np.vstack([VECTORS, VECTORS[:5].sum(0)]), np.append(IDS, 9999)
    changed[5] *= -1
    assert sorted(index.ids) == sorted(all_ids)
    assert (index.search(QUERIES, 10)[0] == by_hand(changed, all_ids)[0][:, :10]).all()


def test_what_cannot_be_updated_says_so(built):
    with pytest.raises(ValueError, match="read-only once built; call build_index again"):
        built(backend="annoy").add(VECTORS[:1], [1])
    graph = built(backend="faiss", kind="hnsw")
    with pytest.raises(ValueError, match="cannot replace a vector"):
        graph.add(VECTORS[:1], IDS[:1])
    graph.add(-VECTORS[:1], [1])  # a new one is fine
    assert graph.search(-VECTORS[0], 1)[0].item() == 1


@cases(EXHAUSTIVE | LOSSY)
def test_a_saved_index_is_loaded_from_what_was_verified(built, options, tmp_path):
    """Also from a part of a larger folder; what happens to the folder afterwards does not reach the index."""
    index, path = built(**options), tmp_path / "index"
    index.save(path)
    with write_folder(tmp_path / "bundle", "bundle", {}) as folder:
        index.save(folder / "index")
    manifest = read_manifest(tmp_path / "bundle", "bundle")
    shutil.rmtree(tmp_path / "bundle")
    for source in (manifest.inside("index", "index"), path):
        loaded = load_index(source)
        loaded.save(path)  # onto itself
        np.testing.assert_array_equal(loaded.search(QUERIES, 10), index.search(QUERIES, 10))
        assert (sorted(loaded.ids), loaded.options) == (sorted(IDS), index.options)
        loaded.close()
    assert list(tmp_path.iterdir()) == [path]  # nothing temporary is left
    (path / "items.npz").write_bytes(b"?")
    with pytest.raises(ValueError, match="altered"):
        load_index(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backend": "scann"}, "unknown backend 'scann'"),
        ({"options": {"uri": "evil.db"}}, "wants to say where to connect"),
        ({"options": {"hook": "x"}}, r"milvus has no option \['hook'\]"),
        ({}, "live elsewhere, in a Milvus; say where by uri="),
    ],
)
def test_a_crafted_manifest_chooses_nothing(change, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with write_folder("index", "index", {"backend": "milvus", "dim": DIM, "options": {}} | change):
        pass
    with pytest.raises(ValueError, match=message):
        load_index("index")
    assert [p.name for p in tmp_path.iterdir()] == ["index"]  # nothing was created elsewhere


@pytest.mark.parametrize("fault", ["wrong neighbours", "short distances", "long distances", "nothing"])
def test_a_broken_annoy_is_refused_with_the_cure(monkeypatch, fault):
    import annoy

    class Broken(annoy.AnnoyIndex):
        def get_nns_by_vector(self, vector, n, search_k=-1, include_distances=False):
            rows, distances = super().get_nns_by_vector(vector, N, search_k, True)
            if fault == "wrong neighbours":
                return rows[-n:], distances[-n:]
            wrong = {"short distances": 0.8, "long distances": 1.5}
            return (rows[:n], [d * wrong[fault] for d in distances[:n]]) if fault in wrong else ([], [])

    monkeypatch.setattr(annoy, "AnnoyIndex", Broken)
    with pytest.raises(ValueError, match=r"wrong neighbours.*ANNOY_COMPILER_ARGS=.*annoy-mm"):
        build_index(VECTORS, backend="annoy")
    assert "ffast-math" not in retrieval.ANNOY_CURE.split("ANNOY_COMPILER_ARGS=")[1].split()[0]


def test_building_into_a_milvus_elsewhere_removes_nothing_and_saves_no_address(built, tmp_path):
    uri, path = str(tmp_path / "movies.db"), tmp_path / "index"
    options = {"backend": "milvus", "uri": uri, "token": "secret", "ef": N}
    first = built(**options)
    first.add(-VECTORS[:1], [9999])  # what one server adds
    first.save(path)
    first.close()
    built(VECTORS[:100], IDS[:100], **options).close()  # another one starts
    assert [p.name for p in path.iterdir()] == ["manifest.json"]
    assert not re.search(r"secret|movies\.db", (path / "manifest.json").read_text())
    with pytest.raises(ValueError, match="no collection 'items' at"):
        load_index(path, uri=str(tmp_path / "empty.db"))
    reopened = load_index(path, uri=uri)
    assert sorted(reopened.ids) == sorted([*IDS, 9999])
    assert reopened.search(np.stack([-VECTORS[0], VECTORS[200]]), 1)[0].tolist() == [[9999], [IDS[200]]]
    reopened.close()


def test_a_private_milvus_ends_when_it_is_closed():
    def connected() -> set:
        return {(place.laddr, place.raddr) for place in psutil.Process().net_connections()}

    before, until = connected(), time.monotonic() + 20
    index = build_index(VECTORS, IDS, backend="milvus")
    assert connected() - before
    index.close()
    while (left := connected() - before) and time.monotonic() < until:
        time.sleep(0.05)
    assert not left


def test_a_large_catalogue_reaches_milvus_in_several_requests(built):
    """128 vectors of the largest width make one."""
    index = built(np.eye(130, 32_768), None, backend="milvus", index_type="FLAT")
    assert index.ids.tolist() == list(range(130))


def test_milvus_leaves_other_collections_alone(built, tmp_path):
    from pymilvus import MilvusClient

    options = {"backend": "milvus", "uri": str(tmp_path / "shared.db")}
    theirs = MilvusClient(options["uri"])
    theirs.create_collection("items", dimension=DIM)  # somebody else's, under the same name
    theirs.insert("items", [{"id": 1, "vector": [1.0] * DIM}])
    with pytest.raises(ValueError, match=r"'items' holds .*'vector': 16.* it stays as it is"):
        build_index(VECTORS, IDS, **options)
    built(**options, collection="movies")
    with pytest.raises(ValueError, match=r"'movies' holds .*'item_vector': 16.*, not item vectors of 8 "):
        build_index(VECTORS[:, :8], IDS, **options, collection="movies")
    assert theirs.get("items", ids=[1])
    theirs.close()


def test_measure_reports_what_it_says(built):
    figures = measure(built(), QUERIES, ORDER[:, :10])
    assert figures["recall@10"] == 1.0
    assert 0 < figures["p50_ms"] <= figures["p99_ms"] < 1000
    assert figures["megabytes"] == pytest.approx(N * (DIM * 4 + 8) / 1e6, rel=0.05)


def test_measure_times_every_query_and_no_call_before(built, monkeypatch):
    index = built()
    search, queries = index.search, np.resize(QUERIES, (30, DIM))
    for slow, expected in ((range(10), False), (range(10, 30), True)):  # of 10 calls that warm up and 30 that count
        calls = iter(range(100))
        pause = lambda calls=calls, slow=slow: time.sleep(0.05 * (next(calls) in slow))  # noqa: E731
        monkeypatch.setattr(index, "search", lambda *a, pause=pause: pause() or search(*a))
        assert (measure(index, queries, np.resize(ORDER[:, :10], (30, 10)))["p50_ms"] >= 50) == expected


def test_enlarged_vectors_keep_their_neighbourhoods(rng):
    vectors = normalize(rng.normal(size=(30, 64))).astype(np.float32)
    large = enlarge(vectors, 2000, seed=3)
    np.testing.assert_allclose(np.linalg.norm(large, axis=1), np.ones(2000), atol=1e-5)
    assert (large == enlarge(vectors, 2000, seed=3)).all()
    gap = np.sqrt(2 - 2 * (vectors @ vectors.T - 2 * np.eye(30)).max(axis=1))
    nearest = (large @ vectors.T).argmax(axis=1)
    assert 0.5 < np.median(np.linalg.norm(large - vectors[nearest], axis=1) / gap[nearest]) < 1.2


def test_the_notebook_builds_what_the_helper_ships():
    found = notebook_definitions("06", "exact_search", "recall_at_k")
    theirs = found["exact_search"](normalize(QUERIES.astype(np.float32)), normalize(VECTORS), IDS, 7)
    ours = build_index(VECTORS, IDS).search(QUERIES, 7)
    np.testing.assert_allclose(theirs, ours, atol=1e-6)
    other = np.array([[3, 1, 9], [7, 8, 9]]), np.array([[1, 2, 3], [4, 5, 6]])
    assert found["recall_at_k"](*other) == recall(*other) == pytest.approx(1 / 3)
