"""Ten million generated interactions of one's own: read, looked at, encoded, trained for some steps, within 8 GiB.

``python benchmarks/own.py`` writes ``own.json``: seconds of each stage, and the peak of resident memory (notebook 17).
"""

from __future__ import annotations

import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from dssm_helpers.data import encode, split_by_time
from dssm_helpers.features import BatchBuilder
from dssm_helpers.files import write_atomically
from dssm_helpers.objectives import TrainingConfig
from dssm_helpers.recipes import build_model
from dssm_helpers.schema import Schema
from dssm_helpers.tables import describe_interactions, mend, read_tables
from dssm_helpers.training import Trainer

ROWS, USERS, ITEMS, STEPS = 10_000_000, 500_000, 50_000, 200


def generated(folder: Path) -> list[Path]:
    """Ten files of a log with popular and rare items, times in seconds, written piece by piece."""
    paths, rng, n = [folder / f"part-{part}.csv" for part in range(10)], np.random.default_rng(0), ROWS // 10
    for path in paths:
        item = (ITEMS * rng.random(n) ** 3).astype(int)
        table = {"who": rng.integers(0, USERS, n), "what": item, "when": 1_600_000_000 + rng.integers(0, 10**8, n)}
        pd.DataFrame(table).to_csv(path, index=False)
    return paths


def main() -> None:
    seconds, schema = {}, Schema("who", "what", "when")
    with tempfile.TemporaryDirectory() as folder:
        paths, clock = generated(Path(folder)), time.perf_counter

        def timed(stage, work):
            started, result = clock(), work()
            seconds[stage] = round(clock() - started, 1)
            print(f"{stage}: {seconds[stage]} s", flush=True)
            return result

        frame = timed("read", lambda: read_tables(*paths))
    report = timed("look", lambda: describe_interactions(frame, schema))
    frame, _ = timed("mend", lambda: mend(frame, report, also=["repeats"]))
    data = timed("encode", lambda: encode(frame, schema=schema, name="generated"))
    train = timed("split", lambda: split_by_time(data).train)[: STEPS * 512]
    trainer = Trainer(build_model(data), BatchBuilder(data), TrainingConfig(epochs=1))
    timed(f"train, {STEPS} steps of 512", lambda: trainer.fit(train, progress=False))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts KiB
    found = {"rows": ROWS, "users": data.n_users - 2, "items": data.n_items - 2, "rows after mending": len(data)}
    with write_atomically(Path(__file__).with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps({**found, "seconds": seconds, "peak_gib": round(peak, 2)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
