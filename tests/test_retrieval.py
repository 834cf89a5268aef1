"""retrieval.py: every backend against exact search, bad input, saving, Milvus, and an Annoy that lies."""

from __future__ import annotations

import re
import shutil
import sys
from contextlib import ExitStack

import numpy as np
import pytest
from conftest import notebook_definitions

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
def built():
    """``build_index`` whose indexes are closed after the test."""
    with ExitStack() as stack:

        def build(*args, **options):
            index = build_index(*args, **options)
            stack.callback(index.close)
            return index

        yield build


def by_hand(vectors: np.ndarray = VECTORS, ids: np.ndarray = IDS) -> tuple[np.ndarray, np.ndarray]:
    """All ids and cosines for QUERIES, best first, written out with none of the code under test."""
    unit = [v / np.sqrt((np.asarray(v, dtype=np.float64) ** 2).sum()) for v in vectors]
    cosines = np.array([[float(np.dot(q / np.sqrt((q**2).sum()), v)) for v in unit] for q in QUERIES])
    order = np.argsort(-cosines, axis=1)
    return ids[order], np.take_along_axis(cosines, order, axis=1)


def by_unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@cases(EXHAUSTIVE | MILVUS)
def test_equals_search_by_hand(built, options):
    index, (expected_ids, expected_scores) = built(VECTORS, IDS, **options), by_hand()
    found, scores = index.search(QUERIES, 10)
    assert (found.dtype, scores.dtype, found.shape) == (np.int64, np.float32, (len(QUERIES), 10))
    assert (found == expected_ids[:, :10]).all()
    np.testing.assert_allclose(scores, expected_scores[:, :10], atol=1e-5)
    assert (len(index), index.dim, index.backend) == (N, DIM, options["backend"])
    assert sorted(index.ids) == sorted(IDS)
    assert index.nbytes > N * DIM * 4
    assert (index.search(QUERIES[0], 5)[0] == found[:1, :5]).all()  # one query is a batch of one


def test_neither_layout_nor_precision_matters_and_equals_keep_their_order(built):
    strange = np.asfortranarray(np.repeat(VECTORS, 2, axis=1).astype(np.float64) * 30)[:, ::2]
    index = built(strange, IDS.astype(np.int32))
    assert (index.search(np.asfortranarray(QUERIES), 10)[0] == by_hand()[0][:, :10]).all()
    twins = np.repeat(np.eye(4), 5, axis=0)
    assert built(twins, np.arange(20)[::-1]).search(twins[0], 5)[0].tolist() == [[19, 18, 17, 16, 15]]
    assert built(twins, backend="annoy").search(twins[0], 5)[1].min() == pytest.approx(1.0)  # no false alarm


@cases(LOSSY)
def test_compressed_indexes_find_most(built, rng, options):
    vectors = enlarge(by_unit(rng.normal(size=(40, DIM))), 600)
    index, exact = built(vectors, **options), built(vectors)
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
    expected, _ = built(vectors).search(queries, 10)
    index = built(vectors, **options)
    recalls = [recall(index.tune(**{dial: at}).search(queries, 10)[0], expected) for at in positions]
    assert recalls[0] < recalls[1] < recalls[2]
    assert recalls[2] > 0.99


@cases(EXHAUSTIVE)
def test_exclude_never_loses_results_and_takes_ids_of_any_size(built, options):
    index, (order, _) = built(VECTORS, IDS, **options), by_hand()
    # the best ones, none, all but five, the worst ones, ids that are not there
    seen = [order[0, :20], (), set(order[2, 5:].tolist()), order[3, 100:].tolist(), [3, 2**63, 10**30, -(10**30)]]
    found, scores = index.search(QUERIES[:5], 5, exclude=seen)
    for row, excluded in enumerate(seen):
        assert found[row].tolist() == [item for item in order[row].tolist() if item not in set(excluded)][:5]
    assert np.isfinite(scores).all()
    assert (np.diff(scores, axis=1) <= 0).all()


@cases(HASTY)
def test_a_hasty_index_still_returns_k_unseen(built, options):
    index = built(VECTORS, IDS, **options)
    order, _ = by_hand()
    found, scores = index.search(QUERIES, 50, exclude=[row[:250] for row in order])
    assert np.isfinite(scores).all()
    assert (np.sort(found, axis=1) == np.sort(order[:, 250:], axis=1)).all()


@cases(EXHAUSTIVE | {kind: MILVUS[kind] for kind in ("FLAT", "IVF_FLAT")})
@pytest.mark.parametrize("many", [8, 40, 200])  # less than a tenth, a little more, most
def test_allowed_is_exact_search_on_the_subset(built, options, many):
    index, (order, cosines) = built(VECTORS, IDS, **options), by_hand()
    allowed = RNG.permutation(IDS)[:many]
    seen = [row[np.isin(row, allowed)][:3].tolist() for row in order]  # of the allowed, the best three
    left = np.isin(order, allowed)
    for given in (allowed, [*allowed.tolist(), 1, 10**30], set(allowed.tolist())):
        found, scores = index.search(QUERIES, 8, allowed=given)
        assert (found == [row[inside][:8] for row, inside in zip(order, left, strict=True)]).all()
        np.testing.assert_allclose(scores[0], cosines[0][left[0]][:8], atol=1e-5)
    found, _ = index.search(QUERIES, 5, exclude=seen, allowed=allowed)
    assert (found == [row[inside][3:8] for row, inside in zip(order, left, strict=True)]).all()


@cases(HASTY | LOSSY | {"AUTOINDEX": MILVUS["AUTOINDEX"]})
def test_allowed_gives_k_wherever_there_are_k(built, options):
    index = built(VECTORS, IDS, **options)
    for many in (20, 60):  # the hasty indexes meet none or few of them on their way
        allowed = RNG.permutation(IDS)[:many]
        found, scores = index.search(QUERIES, many, allowed=allowed)
        assert (np.sort(found, axis=1) == np.sort(allowed)).all()
        assert (np.diff(scores, axis=1) <= 0).all()
        with pytest.raises(ValueError, match=rf"k={many + 1}, but only {many} of {many} items are left for query 0"):
            index.search(QUERIES, many + 1, allowed=allowed)
        found, _ = index.search(QUERIES, many + 1, allowed=allowed, allow_fewer=True)
        assert ((found == NOTHING).sum(axis=1) == 1).all()
    with pytest.raises(ValueError, match="only 0 of 0 items"):
        index.search(QUERIES, 1, allowed=[])


@cases(HASTY)
def test_where_few_are_allowed_all_of_them_are_looked_at(built, options):
    index, (order, _), allowed = built(VECTORS, IDS, **options), by_hand(), IDS[:29]
    found, _ = index.search(QUERIES, 1, allowed=allowed)
    assert (found == [row[np.isin(row, allowed)][:1] for row in order]).all()


def test_another_search_at_any_moment_of_a_search(built, monkeypatch):
    """A reader right behind each store that a search makes on its index must get the right answer."""
    index, request = built(VECTORS, IDS), {"queries": QUERIES, "k": 5, "exclude": [[item] for item in IDS[:9]]}
    expected, _ = built(VECTORS, IDS).search(**request)

    def store_and_search(self, name, value):
        object.__setattr__(self, name, value)
        assert (self.search(**request)[0] == expected).all()

    monkeypatch.setattr(Index, "__setattr__", store_and_search, raising=False)
    assert (index.search(**request)[0] == expected).all()


@cases(EXHAUSTIVE)
def test_too_few_left_is_an_error_or_padding(built, options):
    index = built(VECTORS[:6], IDS[:6], **options)
    with pytest.raises(ValueError, match=r"k=7, but only 6 of 6 items are left"):
        index.search(QUERIES, 7)
    with pytest.raises(ValueError, match=r"only 0 of 6 items are left for query 1 after excluding 6"):
        index.search(QUERIES[:2], 1, exclude=[[], IDS[:6]])
    found, scores = index.search(QUERIES[:2], 8, exclude=[IDS[:4], IDS[:6]], allow_fewer=True)
    assert set(found[0, :2]) == set(IDS[4:6])
    assert (found == NOTHING).sum() == 6 + 8
    assert (np.isfinite(scores) == (found != NOTHING)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v, i: (np.where(np.arange(DIM) == 3, np.nan, v), i), "NaN, infinity or zeros only in 300 rows"),
        (lambda v, i: (np.where(v == v[7, 0], np.inf, v), i), "NaN, infinity .* in 1 rows, first row 7"),
        (lambda v, i: (v * (np.arange(N) != 4)[:, None], i), "zeros only in 1 rows, first row 4: .* no cosine"),
        (lambda v, i: (v[0], i), r"array \[n, D\], got shape \(16,\)"),
        (lambda v, i: (v, i[:-1]), r"300 vectors need 300 different .* shape \(299,\)"),
        (lambda v, i: (v, np.where(i == i[0], i[1], i)), "299 different ones"),
        (lambda v, i: (v, i.astype(float)), "of float64"),
        (lambda v, i: (v, i - 1000), "numbers from 0 as ids"),
    ],
)
def test_bad_vectors_and_ids_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        build_index(*change(VECTORS, IDS))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda index: index.search(QUERIES[:, :15], 3), r"queries .* \[n, 16\], got shape \(9, 15\)"),
        (lambda index: index.search(np.full(DIM, np.nan), 3), "queries hold NaN, .*, first row 0"),
        (lambda index: index.search(QUERIES, 0), "k must be at least 1"),
        (lambda index: index.search(QUERIES, 3, exclude=[[1], [2]]), "exclude has 2 entries for 9 queries"),
        (lambda index: index.add(np.ones((1, DIM + 1)), [1]), r"\[n, 16\], got shape \(1, 17\)"),
        (lambda index: index.add(VECTORS[:2], [1, 1]), "1 different"),
        (lambda index: index.tune(nprobe=3), "cannot change after building"),
    ],
)
def test_a_refused_call_says_why_and_changes_nothing(built, call, message):
    index = built(VECTORS, IDS)
    with pytest.raises(ValueError, match=message):
        call(index)
    assert (index.search(QUERIES, 10)[0] == by_hand()[0][:, :10]).all()
    assert index.search(np.empty((0, DIM)), 3)[0].shape == (0, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "scann"}, "unknown backend 'scann'; choose one of exact, annoy, faiss, milvus"),
        ({"backend": "annoy", "trees": 3}, r"annoy has no option \['trees'\]; it knows .*n_trees"),
        ({"backend": "faiss", "kind": "lsh"}, "choose one of flat, ivf, hnsw, ivfpq, sq8"),
        ({"backend": "faiss", "kind": "ivfpq", "m": 5}, "300 vectors of 16, .*multiple of the number of subquantizers"),
    ],
)
def test_options_that_cannot_work(options, message):
    with pytest.raises(ValueError, match=message):
        build_index(VECTORS, **options)


@pytest.mark.parametrize(
    ("backend", "missing", "command"),
    [
        ("annoy", "annoy", "annoy"),
        ("faiss", "faiss", "faiss-cpu"),
        ("milvus", "pymilvus", "pymilvus milvus-lite"),
        ("milvus", "milvus_lite", "pymilvus milvus-lite"),
        ("milvus", "pyarrow", "pyarrow"),  # which milvus_lite imports in its turn
    ],
)
def test_a_missing_library_names_the_command(monkeypatch, backend, missing, command):
    for name in [name for name in sys.modules if name.startswith("milvus_lite")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=rf"needs {missing}: pip install {command} \("):
        build_index(VECTORS, backend=backend)


@cases({name: EXHAUSTIVE[name] for name in ("exact", "flat", "ivf", "milvus")})
def test_upsert_replaces_and_appends(built, options):
    index = built(VECTORS, IDS, **options)
    for _ in range(2):  # twice the same is the same as once
        index.add(np.stack([-VECTORS[5], VECTORS[:5].sum(0), VECTORS[9]]), [IDS[5], 9999, IDS[9]])
    changed, all_ids = np.vstack([VECTORS, VECTORS[:5].sum(0)]), np.append(IDS, 9999)
    changed[5] *= -1
    assert sorted(index.ids) == sorted(all_ids)
    assert (index.search(QUERIES, 10)[0] == by_hand(changed, all_ids)[0][:, :10]).all()
    assert index.search(-VECTORS[5], 1)[0].item() == IDS[5]


def test_what_cannot_be_updated_says_so(built):
    with pytest.raises(ValueError, match="read-only once built; call build_index again"):
        built(VECTORS, IDS, backend="annoy").add(VECTORS[:1], [1])
    graph = built(VECTORS, IDS, backend="faiss", kind="hnsw")
    with pytest.raises(ValueError, match="cannot replace a vector"):
        graph.add(VECTORS[:1], IDS[:1])
    graph.add(-VECTORS[:1], [1])  # a new one is fine
    assert graph.search(-VECTORS[0], 1)[0].item() == 1


@cases({**EXHAUSTIVE, **LOSSY})
def test_a_saved_index_is_loaded_from_what_was_verified(built, options, tmp_path):
    """Also from a part of a larger folder; what happens to the folder afterwards does not reach the index."""
    index = built(VECTORS, IDS, **options)
    expected = index.search(QUERIES, 10)
    index.save(tmp_path / "index")
    with write_folder(tmp_path / "bundle", "bundle", {}) as folder:
        index.save(folder / "index")
    manifest = read_manifest(tmp_path / "bundle", "bundle")
    shutil.rmtree(tmp_path / "bundle")
    for source in (manifest.inside("index", "index"), tmp_path / "index"):
        loaded = load_index(source)
        loaded.save(tmp_path / "index")  # onto itself
        assert all((one == other).all() for one, other in zip(expected, loaded.search(QUERIES, 10), strict=True))
        assert (sorted(loaded.ids), loaded.options) == (sorted(IDS), index.options)
        loaded.close()
    assert [p.name for p in tmp_path.iterdir()] == ["index"]  # nothing temporary is left
    altered = next(iter(read_manifest(tmp_path / "index", "index").files))
    (tmp_path / "index" / altered).write_bytes(b"?")
    with pytest.raises(ValueError, match=f"altered: {altered}"):
        load_index(tmp_path / "index")
    (tmp_path / "index" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="thesis"):
        index.save(tmp_path / "index")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backend": "scann"}, "unknown backend 'scann'"),
        ({"options": {"uri": "evil.db"}}, "wants to say where to connect"),
        ({"options": {"hook": "x"}}, r"milvus has no option \['hook'\]"),
        ({"elsewhere": True}, "live elsewhere"),
    ],
)
def test_a_crafted_manifest_chooses_nothing(change, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fields = {"backend": "milvus", "dim": DIM, "options": {}, "elsewhere": False}
    with write_folder("index", "index", fields | change):
        pass
    with pytest.raises(ValueError, match=message):
        load_index("index")
    assert [p.name for p in tmp_path.iterdir()] == ["index"]  # nothing was created elsewhere


@cases(EXHAUSTIVE)
def test_a_failed_save_keeps_the_good_index(built, options, tmp_path, monkeypatch):
    index, other = built(VECTORS, IDS, **options), built(-VECTORS, IDS, **options)
    index.save(tmp_path / "index")

    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full_disk)
    with pytest.raises(OSError, match="free some space"):
        other.save(tmp_path / "index")
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["index"]
    again = load_index(tmp_path / "index")
    for left, queries in ((again, QUERIES), (other, -QUERIES)):  # the one that was not saved still answers
        assert (left.search(queries, 5)[0] == by_hand()[0][:, :5]).all()
    again.close()


@pytest.mark.parametrize("fault", ["wrong neighbours", "wrong distances", "nothing"])
def test_a_broken_annoy_is_refused_with_the_cure(monkeypatch, fault):
    import annoy

    class Broken(annoy.AnnoyIndex):
        def get_nns_by_vector(self, vector, n, search_k=-1, include_distances=False):
            rows, distances = super().get_nns_by_vector(vector, N, search_k, True)
            if fault == "wrong neighbours":
                return rows[-n:], distances[-n:]
            return (rows[:n], [d / 2 + 0.3 for d in distances[:n]]) if fault == "wrong distances" else ([], [])

    monkeypatch.setattr(annoy, "AnnoyIndex", Broken)
    with pytest.raises(ValueError, match=r"wrong neighbours.*ANNOY_COMPILER_ARGS=.*annoy-mm"):
        build_index(VECTORS, backend="annoy")
    assert "ffast-math" not in retrieval.ANNOY_CURE.split("ANNOY_COMPILER_ARGS=")[1].split()[0]


def test_milvus_elsewhere(built, tmp_path):
    uri = str(tmp_path / "movies.db")
    index = built(VECTORS, IDS, backend="milvus", uri=uri, token="secret", ef=N)
    index.save(tmp_path / "index")
    index.close()
    assert [p.name for p in (tmp_path / "index").iterdir()] == ["manifest.json"]
    assert not re.search(r"secret|movies\.db", (tmp_path / "index" / "manifest.json").read_text())
    with pytest.raises(ValueError, match="live elsewhere, in a Milvus; say where by uri="):
        load_index(tmp_path / "index")
    with pytest.raises(ValueError, match="no collection 'items' at"):
        load_index(tmp_path / "index", uri=str(tmp_path / "empty.db"))
    reopened = load_index(tmp_path / "index", uri=uri)
    assert (reopened.search(QUERIES, 5)[0] == by_hand()[0][:, :5]).all()
    reopened.close()


def test_building_into_a_milvus_collection_removes_nothing(built, tmp_path):
    options = {"backend": "milvus", "uri": str(tmp_path / "movies.db"), "ef": N}
    first = built(VECTORS, IDS, **options)
    first.add(-VECTORS[:1], [9999])  # what one server adds
    first.close()
    second = built(VECTORS[:100], IDS[:100], **options)  # another one starts
    assert sorted(second.ids) == sorted([*IDS, 9999])
    found, _ = second.search(np.stack([-VECTORS[0], VECTORS[200]]), 1)
    assert found.ravel().tolist() == [9999, IDS[200]]


def test_milvus_leaves_other_collections_alone(built, tmp_path):
    from pymilvus import MilvusClient

    uri = str(tmp_path / "shared.db")
    theirs = MilvusClient(uri)
    theirs.create_collection("items", dimension=DIM)  # somebody else's, under the same name
    theirs.insert("items", [{"id": 1, "vector": [1.0] * DIM}])
    with pytest.raises(ValueError, match=r"'items' holds .*'vector': 16.* it stays as it is"):
        build_index(VECTORS, IDS, backend="milvus", uri=uri)
    built(VECTORS, IDS, backend="milvus", uri=uri, collection="movies")
    with pytest.raises(ValueError, match=r"'movies' holds .*'item_vector': 16.*, not item vectors of 8 "):
        build_index(VECTORS[:, :8], IDS, backend="milvus", uri=uri, collection="movies")
    assert theirs.get("items", ids=[1])
    theirs.close()


def test_measure_reports_what_it_says(built):
    assert recall(np.array([[1, 2, 3], [4, 5, 6]]), np.array([[3, 1, 9], [7, 8, 9]])) == pytest.approx(1 / 3)
    figures = measure(built(VECTORS), QUERIES, built(VECTORS).search(QUERIES, 10)[0])
    assert figures["recall@10"] == 1.0
    assert 0 < figures["p50_ms"] <= figures["p99_ms"] < 1000
    assert figures["megabytes"] == pytest.approx(N * (DIM * 4 + 8) / 1e6, rel=0.05)


def test_enlarged_vectors_keep_their_neighbourhoods(rng):
    vectors = by_unit(rng.normal(size=(30, 64))).astype(np.float32)
    large = enlarge(vectors, 2000, seed=3)
    np.testing.assert_allclose(np.linalg.norm(large, axis=1), np.ones(2000), atol=1e-5)
    assert (large == enlarge(vectors, 2000, seed=3)).all()
    gap = np.sqrt(2 - 2 * (vectors @ vectors.T - 2 * np.eye(30)).max(axis=1))
    nearest = (large @ vectors.T).argmax(axis=1)
    assert 0.5 < np.median(np.linalg.norm(large - vectors[nearest], axis=1) / gap[nearest]) < 1.2


def test_the_notebook_builds_what_the_helper_ships():
    found = notebook_definitions("06", "exact_search", "recall_at_k")
    theirs = found["exact_search"](by_unit(QUERIES.astype(np.float32)), by_unit(VECTORS), IDS, 7)
    ours = build_index(VECTORS, IDS).search(QUERIES, 7)
    assert (theirs[0] == ours[0]).all()
    np.testing.assert_allclose(theirs[1], ours[1], atol=1e-6)
    other = np.roll(ours[0], 1, axis=0)
    assert found["recall_at_k"](other, ours[0]) == pytest.approx(recall(other, ours[0]))
