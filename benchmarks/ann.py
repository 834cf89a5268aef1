"""Exact search against Annoy and Faiss over a large catalogue, one thread (notebook 06 shows the stored table).

The vectors are the course's trained item vectors, multiplied into neighbourhoods (``dssm_helpers.retrieval.enlarge``);
the queries are the real user vectors of the test positions. About eight minutes for a million on one core.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
    os.environ[_variable] = "1"  # read once, when NumPy and Faiss are imported

import machine as shared  # noqa: E402
from tqdm import tqdm  # noqa: E402

from dssm_helpers.course.workspace import Workspace  # noqa: E402
from dssm_helpers.retrieval import build_index, enlarge, measure  # noqa: E402

# name, backend, build options, the search option and the values to try; cells=True: as many as the root of the vectors
HNSW = {"kind": "hnsw", "M": 16, "efConstruction": 40}
CONTENDERS = [
    ("exact", "exact", {}, [{}]),
    ("Annoy", "annoy", {"n_trees": 20}, [{"search_k": k} for k in (2_000, 10_000, 50_000)]),
    ("Faiss ivf", "faiss", {"kind": "ivf", "nlist": None}, [{"nprobe": p} for p in (1, 8, 32, 128)]),
    ("Faiss hnsw", "faiss", HNSW, [{"efSearch": e} for e in (64, 256, 1024)]),
    ("Faiss sq8", "faiss", {"kind": "sq8"}, [{}]),
    ("Faiss ivfpq", "faiss", {"kind": "ivfpq", "nlist": None}, [{"nprobe": p} for p in (8, 32, 128)]),
]  # fmt: skip


def run(n_vectors: int, n_queries: int) -> dict:
    """Build, search and save every contender; returns what is stored."""
    workspace = Workspace(progress=False)
    _, items = workspace.item_vectors()
    queries = workspace.scorer().user_vectors(workspace.split.test[:n_queries]).cpu().numpy()
    vectors = enlarge(items, n_vectors)
    exact_ids, _ = build_index(vectors).search(queries, 10)
    rows = []
    for name, backend, options, sweep in tqdm(CONTENDERS):
        if "nlist" in options:
            options = {**options, "nlist": max(1, min(round(n_vectors**0.5), n_vectors // 39))}
        started = time.perf_counter()
        index = build_index(vectors, backend=backend, **options)
        seconds = time.perf_counter() - started
        with tempfile.TemporaryDirectory() as folder:
            index.save(Path(folder) / "index")
            disk = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
        for search in sweep:
            row = {"index": name, "build": {k: v for k, v in options.items() if k != "kind"}, "search": search}
            row |= {"build_seconds": seconds, **measure(index.tune(**search), queries, exact_ids)}
            rows.append(row | {"disk_megabytes": disk / 1e6})
        index.close()
    machine = shared.machine()
    return {
        "date": machine["date"],
        "machine": {**machine, "threads used": 1},
        "versions": {"python": machine["python"]} | {p: shared.version(p) for p in ("numpy", "annoy", "faiss-cpu")},
        "dataset": workspace.dataset,
        "vectors": n_vectors,
        "dimensions": vectors.shape[1],
        "queries": len(queries),
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=1_000_000, help="size of the catalogue, from 10,000")
    parser.add_argument("--queries", type=int, default=300, help="user vectors searched for")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"), help="where to write")
    arguments = parser.parse_args()
    result = run(arguments.vectors, arguments.queries)
    shared.write_json(arguments.out, result)
    for row in result["rows"]:
        setting = ", ".join(f"{key}={value}" for key, value in row["search"].items())
        print(
            f"{row['index']:<12}{setting:<16} recall@10 {row['recall@10']:.3f}  p50 {row['p50_ms']:.2f} ms  "
            f"p99 {row['p99_ms']:.2f} ms  {row['megabytes']:.0f} MB  built in {row['build_seconds']:.0f} s"
        )


if __name__ == "__main__":
    main()
