"""Exact search against Annoy and Faiss over a large catalogue, one thread (notebook 06 shows the stored table).

The vectors are the course's trained item vectors, multiplied into neighbourhoods (``retrieval.enlarge``), the queries
its real user vectors. About eight minutes for a million on one core; an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

os.environ |= {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}  # read once, by the imports

import machine as shared
import numpy as np

from dssm_helpers.course.workspace import Workspace
from dssm_helpers.retrieval import build_index, enlarge, measure

# name, backend, build options, the search options to try; None: as many cells as the root of the vectors
HNSW = {"kind": "hnsw", "M": 16, "efConstruction": 40}
CONTENDERS = [
    ("exact", "exact", {}, [{}]),
    ("Annoy", "annoy", {"n_trees": 20}, [{"search_k": k} for k in (2_000, 10_000, 50_000)]),
    ("Faiss ivf", "faiss", {"kind": "ivf", "nlist": None}, [{"nprobe": p} for p in (1, 8, 32, 128)]),
    ("Faiss hnsw", "faiss", HNSW, [{"efSearch": e} for e in (64, 256, 1024)]),
    ("Faiss sq8", "faiss", {"kind": "sq8"}, [{}]),
    ("Faiss ivfpq", "faiss", {"kind": "ivfpq", "nlist": None}, [{"nprobe": p} for p in (8, 32, 128)]),
]  # fmt: skip


def contend(vectors: np.ndarray, queries: np.ndarray, contender: tuple) -> dict[str, Any]:
    """Build an index and search it with every setting: a row for each."""
    name, backend, options, searches = contender
    exact_ids, _ = build_index(vectors).search(queries, 10)
    if "nlist" in options:
        options = {**options, "nlist": max(1, min(round(len(vectors) ** 0.5), len(vectors) // 39))}
    started = shared.clocks()
    index = build_index(vectors, backend=backend, **options)
    about = {"index": name, "build": {k: v for k, v in options.items() if k != "kind"}}
    about["build_seconds"] = (shared.clocks() - started)[0]
    rows = [{**about, "search": search, **measure(index.tune(**search), queries, exact_ids)} for search in searches]
    index.close()
    return {"rows": rows}


if __name__ == "__main__":
    parser = shared.command_line(__doc__)
    parser.add_argument("--vectors", type=int, default=1_000_000, help="size of the catalogue, from 10,000")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"), help="where to write")
    arguments = parser.parse_args()
    workspace = Workspace(progress=False)
    queries = workspace.scorer().user_vectors(workspace.split.test[:300]).cpu().numpy()
    vectors = enlarge(workspace.item_vectors()[1], arguments.vectors)
    rows = []
    for contender in CONTENDERS:
        path = shared.point("ann", contender=contender, vectors=vectors.shape, data=workspace.data.fingerprint())
        found = shared.once(path, partial(contend, vectors, queries, contender))
        rows += [{**row, "machine": found["machine"]} for row in found["rows"]]
        print(*found["rows"], sep="\n", flush=True)
    machine = shared.machines(rows)
    about = {"date": machine["date"], "machine": {**machine, "threads used": 1}, "dataset": workspace.dataset}
    about["versions"] = {name: shared.version(name) for name in ("numpy", "annoy", "faiss-cpu")}
    about |= {"vectors": len(vectors), "dimensions": vectors.shape[1], "queries": len(queries)}
    shared.write_json(arguments.out, {**about, "rows": rows})
