"""MilvusIndex and Recommender with a real Milvus server, 2.3.5, in a process of its own: clients, restart, refusals.

The server listens on all interfaces and its first password is in its manual; it lives for this module only.
"""

from __future__ import annotations

import platform
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import ROOT, make_model

from dssm_helpers.course.venvs import virtual_environment
from dssm_helpers.retrieval import build_index, load_index
from dssm_helpers.serving import Recommender, export_bundle

pymilvus = pytest.importorskip("pymilvus", reason="pip install pymilvus milvus-lite")
grpc = pytest.importorskip("grpc")  # which pymilvus brings

SUITABLE = sys.platform == "linux" and platform.machine() == "x86_64" and sys.version_info < (3, 14)
pytestmark = [
    pytest.mark.server,
    pytest.mark.slow,
    pytest.mark.network,
    pytest.mark.skipif(not SUITABLE, reason="milvus==2.3.5 has wheels for Linux on x86-64, Python up to 3.13"),
]
TOKEN, N, DIM = "root:Milvus", 300, 16
RUN = """
import socket, milvus

def free(config, port):
    try:
        return socket.create_server(("127.0.0.1", port))  # also a port that was in use a moment ago
    except OSError:
        return None

milvus.MilvusServerConfig.try_bind_port = free  # which else moves on to the next port, without a word
milvus.main()
"""
RNG = np.random.default_rng(0)
VECTORS, IDS, QUERIES = RNG.normal(size=(N, DIM)), 50 + 7 * RNG.permutation(N), RNG.normal(size=(9, DIM))


class Server:
    def __init__(self, folder: Path):
        self.folder = folder
        self.python = virtual_environment(ROOT / "artifacts" / "milvus-server", ["milvus==2.3.5"])
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        options = ["--data", str(self.folder), "--proxy-port", str(self.port), "--authorization-enabled", "true"]
        self.process = subprocess.Popen([self.python, "-c", RUN, *options], stdout=subprocess.DEVNULL)
        until = time.monotonic() + 180
        while time.monotonic() < until and self.process.poll() is None:
            try:
                client(self).close()  # it writes, and so waits for all parts of the server
                return
            except (ConnectionError, pymilvus.MilvusException, grpc.RpcError):
                time.sleep(0.5)
        raise RuntimeError(f"no Milvus server after {180} s; its log is in {self.folder}/logs")

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)  # SIGTERM would leave its child alive
        self.process.wait(30)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("milvus"))
    server.start()
    yield server
    server.stop()


def client(server, vectors=VECTORS[:1], ids=IDS[:1], **options):
    """An index in a collection there, by default in one of a single item that tells whether the server answers."""
    there = {"uri": server.uri, "token": TOKEN, "collection": "answers", "ef": N, "nlist": 4}
    return build_index(vectors, ids, backend="milvus", **there | options)


@pytest.fixture
def opened(server, request):
    """``client`` in a collection of this test, closed after it."""

    def open_index(vectors=VECTORS, ids=IDS, **options):
        index = client(server, vectors, ids, **{"collection": request.node.originalname} | options)
        request.addfinalizer(index.close)
        return index

    return open_index


def expected(kept=slice(None), **options):
    return build_index(VECTORS[kept], IDS[kept]).search(QUERIES, 10, **options)


@pytest.mark.parametrize("index_type", ["FLAT", "IVF_FLAT", "HNSW", "AUTOINDEX"])
def test_every_type_of_index_finds_filters_and_excludes(opened, index_type):
    index = opened(index_type=index_type, nprobe=4, collection=index_type)
    seen = [IDS[:200], (), *[IDS[:5]] * 7]
    for options in ({}, {"exclude": seen}, {"allowed": IDS[:100]}, {"allowed": IDS[:20], "exclude": [()] * 9}):
        found, wanted = index.search(QUERIES, 10, **options), expected(**options)
        assert (found[0] == wanted[0]).all()
        np.testing.assert_allclose(found[1], wanted[1], atol=1e-5)


def test_a_second_client_sees_an_upsert_at_once_and_misses_what_was_deleted(opened):
    first, second = opened(), opened(VECTORS[:10], IDS[:10])
    assert sorted(second.ids) == sorted(IDS)  # it found them there
    first.add(-VECTORS[:1], [9999])
    assert second.search(-VECTORS[0], 1)[0].item() == 9999
    first._client.delete(first._name, ids=IDS[:5].tolist())
    for index in (first, second):
        assert not np.isin(index.search(VECTORS[:5], 10)[0], IDS[:5]).any()
        found, _ = index.search(QUERIES, 20, allowed=IDS[:20], allow_fewer=True)
        assert [set(row) - {-1} for row in found.tolist()] == [set(IDS[5:20].tolist())] * len(QUERIES)
        with pytest.raises(ValueError, match="only 0 of 5 items are left"):
            index.search(QUERIES, 1, allowed=IDS[:5])


def test_more_items_than_one_answer_of_milvus_holds(opened, tmp_path):
    vectors = RNG.normal(size=(20_000, DIM))
    opened(vectors, None, index_type="FLAT").save(tmp_path / "index")
    kept = opened(vectors[:1], None)  # which takes up what is there
    assert sorted(kept.ids) == list(range(20_000))
    assert (kept.search(vectors[[0, 19_999]], 1)[0].T == [0, 19_999]).all()


@pytest.fixture(scope="module")
def bundle(data, split, tmp_path_factory):
    return export_bundle(tmp_path_factory.mktemp("served"), make_model(data, max_history=10), data, split.train)


def test_two_recommenders_that_start_at_once_share_one_collection(server, bundle):
    there = {"uri": server.uri, "token": TOKEN}
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: Recommender.load(bundle, **there), range(2))
    alone = Recommender.load(bundle)
    for user in range(1, 6):
        history = [user + 1, user + 50]
        ids = [server.recommend(user, history).item_ids for server in (first, second, alone)]
        assert ids[0] == ids[1] == ids[2]
    first.add_item(5000, "A New Film (1998)", genres="Action|Comedy", year=1998)
    assert 5000 in second.recommend(1, k=120).item_ids
    first.index.close()
    assert len(second.recommend(1)) == 10  # a connection of its own
    second.index.close()


@pytest.mark.parametrize(("token", "details"), [("root:secret", "auth check failure"), ("", "missing authorization")])
def test_a_wrong_token_is_named_and_not_shown(server, token, details):
    with pytest.raises(ConnectionError, match=rf"{server.port}.*: {details}") as refused:
        client(server, token=token)
    assert "secret" not in str(refused.value)


def test_nobody_there():
    with pytest.raises(ConnectionError, match=r"Fail connecting to server on 127.0.0.1:9,.*: failed to connect"):
        build_index(VECTORS, IDS, backend="milvus", uri="http://127.0.0.1:9")


def test_a_server_that_is_stuck_is_an_error_in_time(server, opened):
    index, parts = opened(), psutil.Process(server.process.pid).children(recursive=True)
    index.tune(timeout=2)
    for part in parts:
        part.suspend()
    started = time.monotonic()
    try:
        with pytest.raises(grpc.RpcError, match="DEADLINE_EXCEEDED"):
            index.search(QUERIES, 10)
    finally:
        for part in parts:
            part.resume()
    assert 2 <= time.monotonic() - started < 10
    index.tune(timeout=60)
    assert (index.search(QUERIES, 10)[0] == expected()[0]).all()


def test_a_server_that_goes_away_is_an_error_in_time_and_its_return_finds_everything(server, opened, tmp_path):
    index, wanted, answered, errors = opened(), expected(), [], []
    index.add(-VECTORS[:1], [9999])  # nothing makes the server write it down before it goes
    index.save(tmp_path / "index")

    def ask() -> None:
        while not errors:
            started = time.monotonic()
            try:
                answered.append((index.search(QUERIES, 10)[0] == wanted[0]).all())
            except pymilvus.MilvusException as error:
                errors.append((time.monotonic() - started, str(error)))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    time.sleep(1)
    server.stop()
    asking.join(60)
    assert answered
    assert all(answered)  # a whole answer or none
    assert errors[0][0] < 30
    assert f"Fail connecting to server on 127.0.0.1:{server.port}" in errors[0][1]
    server.start()
    again = load_index(tmp_path / "index", uri=server.uri, token=TOKEN)  # another client
    for one in (index, again):
        assert sorted(one.ids) == sorted([*IDS, 9999])
        assert one.search(-VECTORS[0], 1)[0].item() == 9999
        assert (one.search(QUERIES, 10)[0] == wanted[0]).all()
    again.close()
