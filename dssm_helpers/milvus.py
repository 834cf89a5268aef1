"""Milvus, a database of vectors, as an index (notebook 06): embedded, a server, or a cluster."""

from __future__ import annotations

from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np

from .index import Answers, Index, library


class MilvusIndex(Index):
    """A vector database. Without ``uri`` a private Milvus Lite, of which :meth:`save` keeps the vectors.

    With ``uri`` (a server's ``"http://host:19530"``, or a file of your own) the vectors live there, others see an
    upsert at once, and :meth:`save` writes neither them nor where they are. The ``token``, ``"user:password"`` or an
    API key, stays with the client alone. Building into a collection that exists upserts into it: nothing is ever
    deleted, and a collection of something else is refused. No answer, or a wrong token, is a ConnectionError. A server
    that goes away later is pymilvus' own, one that takes longer than ``timeout`` seconds gRPC's; both are found again.

    Tried with Milvus Lite 3.2 and with a server, Milvus 2.3.5 (``tests/test_milvus_server.py``).
    """

    backend = "milvus"
    DEFAULTS: ClassVar = {  # index_type: HNSW, FLAT, IVF_FLAT or AUTOINDEX
        "uri": None, "token": "", "collection": "items", "index_type": "HNSW",
        "M": 32, "efConstruction": 100, "ef": 64, "nlist": 128, "nprobe": 16,
        "timeout": 60,  # seconds for an answer; building a large index may need more
    }  # fmt: skip
    TUNABLE = ("ef", "nprobe", "timeout")

    def _connect(self) -> bool:
        """Whether our collection is there; one of something else is refused."""
        self._folder = TemporaryDirectory(ignore_cleanup_errors=True)
        self._private = None if self.options["uri"] else f"{self._folder.name}/milvus.db"
        uri, self._name = self.options["uri"] or self._private, self.options["collection"]
        token = self.options.pop("token")
        if "@" in uri and not uri.endswith(".db"):  # messages name the uri
            raise ValueError("this uri holds a user and a password; pass them apart, token='user:password'")
        if "://" not in uri:
            library("milvus_lite")
        seldom = {"grpc.keepalive_time_ms": 300_000}  # a server takes frequent pings for an attack, and logs it
        pymilvus = library("pymilvus")
        try:
            # But to a private one clients share a connection, which outlives them, and may be gone when we ask.
            alone = self._private is not None
            self._client = pymilvus.MilvusClient(uri, token=token, grpc_options=seldom, dedicated=alone)
            known = self._ask("has_collection")
        except pymilvus.MilvusException as error:  # whose words are the same for no server and a wrong token
            details = getattr(error.__cause__, "details", lambda: "no details")()
            raise ConnectionError(f"{error.message}: {details}") from error
        if not known:
            return False
        described = self._ask("describe_collection")["fields"]
        fields = {field["name"]: field["params"].get("dim") for field in described}
        if fields != {"item_id": None, "item_vector": self.dim}:
            theirs = f"collection {self._name!r} holds {fields}, not item vectors of {self.dim} dimensions"
            raise ValueError(f"{theirs}; it stays as it is, choose another collection=")
        return True

    def _ask(self, what: str, *arguments: Any, **options: Any) -> Any:
        """A call about our collection, which pymilvus alone would wait for without end."""
        return getattr(self._client, what)(self._name, *arguments, timeout=self.options["timeout"], **options)

    def _load(self) -> None:
        self._ask("load_collection")
        rows = self._ask("query", filter="item_id >= 0", output_fields=["item_id"])
        self.ids = np.array([row["item_id"] for row in rows], dtype=np.int64)

    def _build(self, vectors: np.ndarray) -> None:
        if not self._connect():
            types, schema = library("pymilvus").DataType, self._client.create_schema()
            schema.add_field("item_id", types.INT64, is_primary=True)
            schema.add_field("item_vector", types.FLOAT_VECTOR, dim=self.dim)
            self._ask("create_collection", schema=schema, consistency_level="Strong")
        self._add(vectors, self.ids, self.ids)
        self._ask("flush")  # before create_index: until then not even its field names are checked
        if not self._ask("list_indexes"):
            index, kind = self._client.prepare_index_params(), self.options["index_type"]
            dials = {"HNSW": ("M", "efConstruction"), "IVF_FLAT": ("nlist",)}.get(kind, ())
            # Nested, because pymilvus sends a flat dict key by key, which a server reads and Milvus Lite overlooks.
            params = {"params": {dial: self.options[dial] for dial in dials}}
            index.add_index("item_vector", index_type=kind, metric_type="IP", params=params)
            self._ask("create_index", index)
        self._load()

    def _search(self, queries: np.ndarray, n: int, inside: np.ndarray) -> Answers:
        n = min(n, 16_384)  # Milvus returns no more
        only = f"item_id in {inside.tolist()}" if len(inside) < len(self) else ""
        dials = {"HNSW": {"ef": max(self.options["ef"], n)}, "IVF_FLAT": {"nprobe": self.options["nprobe"]}}
        params = {"params": dials.get(self.options["index_type"], {})}
        for start in range(0, len(queries), 1024):
            part = list(queries[start : start + 1024])
            for hits in self._ask("search", part, only, n, ["item_id"], params):
                yield np.array([hit["item_id"] for hit in hits]), np.array([hit["distance"] for hit in hits])

    def _search_all(self, queries: np.ndarray, n: int, inside: np.ndarray) -> Answers:
        """Of what is still there: another client may have deleted some."""
        left = self._ask("get", inside.tolist(), output_fields=["item_id"])
        inside = inside[np.isin(inside, [item["item_id"] for item in left])]
        if len(inside) == 0:
            return [(inside, np.empty(0))] * len(queries)
        return super()._search_all(queries, min(n, len(inside)), inside)

    def _vectors_of(self, ids: np.ndarray) -> np.ndarray:
        found = {item["item_id"]: item["item_vector"] for item in self._ask("get", ids.tolist())}
        return np.array([found[item] for item in ids.tolist()], dtype=np.float32)

    def _add(self, vectors: np.ndarray, ids: np.ndarray, replaced: np.ndarray) -> None:
        items = [{"item_id": item, "item_vector": vector} for item, vector in zip(ids.tolist(), vectors, strict=True)]
        step = max(1, 2**22 // self.dim)  # 16 MB a request, well below the server's limit
        for start in range(0, len(items), step):
            self._ask("upsert", items[start : start + step])

    def open(self) -> None:
        """Use what lives at ``uri`` as it is."""
        if not self._connect():
            raise ValueError(f"no collection {self._name!r} at {self.options['uri']}; build_index(..., uri=) makes it")
        self._load()

    def close(self) -> None:
        self._client.close()
        if self._private:  # its server, a thread that holds the vectors, would stay
            library("milvus_lite.server_manager").server_manager_instance.release_server(self._private)
        self._folder.cleanup()
