"""What every benchmark shares: which machine, a process per measurement, memory, time, and the files between them."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read once, when torch loads OpenMP

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PEERS = ROOT / "artifacts" / "peers"
RESULTS, SASREC_RANKS = HERE / "results.json", HERE / "sasrec_ranks.json"
sys.path.insert(0, str(ROOT))  # the peers' environments do not have the course installed

from dssm_helpers.files import write_atomically  # noqa: E402

if TYPE_CHECKING:
    from dssm_helpers.movielens import MovieLens


def machine() -> dict[str, Any]:
    """Date, processor, cores, memory in GiB, and versions of Python, torch and NumPy."""
    cpu, memory_gib = platform.processor() or platform.machine(), None
    with contextlib.suppress(OSError, StopIteration):  # Linux has its full name
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    with contextlib.suppress(AttributeError, ValueError):  # Windows does not say
        memory_gib = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gib": memory_gib,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "numpy")},
    }


# -- A process per measurement -----------------------------------------------------------------------------------------


def ask(python: str | Path, script: str, part: str, *, threads: int = 1, **options: Any) -> dict[str, Any]:
    """Start ``script part`` in a process of its own, and read the JSON it prints last (see :func:`answer`)."""
    environ = {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "OPENBLAS", "MKL")}
    log = PEERS / f"{script}-{part}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as file:
        command = [str(python), "-W", "ignore", str(HERE / script), part, json.dumps(options, default=str)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=file, text=True, env={**os.environ, **environ})
    if done.returncode:
        raise RuntimeError(f"{script} {part} ended with {done.returncode}; {log} says why")
    return json.loads(done.stdout.splitlines()[-1])


def answer(*parts: Callable[..., dict[str, Any]]) -> None:
    """The other end of :func:`ask`: call the part that the command line names with its options."""
    with contextlib.redirect_stdout(sys.stderr):  # libraries print while they work
        result = {part.__name__: part for part in parts}[sys.argv[1]](**json.loads(sys.argv[2]))
    print(json.dumps(result, default=float))


@contextlib.contextmanager
def step(title: str) -> Iterator[None]:
    """Print ``title`` at once and the seconds it took at the end."""
    print(f"{title} …", flush=True)
    started = time.perf_counter()
    yield
    print(f"{title}: {time.perf_counter() - started:.1f} s", flush=True)


# -- Memory and time ---------------------------------------------------------------------------------------------------


def memory(field: str = "VmHWM") -> int:
    """Bytes this process holds now (``VmRSS``), or the most since the start or :func:`reset_peak` (``VmHWM``)."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
    import resource  # without /proc only the most since the start is known

    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024


def reset_peak() -> None:
    """Forget the peak so far (Linux; elsewhere nothing)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def seconds_of(function: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds of each of ``repeats`` calls."""
    at = [time.perf_counter()]
    for _ in range(repeats):
        function()
        at.append(time.perf_counter())
    return [b - a for a, b in pairwise(at)]


def latency(recommend: Callable[[dict], Sequence], requests: str, repeats: int) -> dict[str, float]:
    """Milliseconds of one answer to the requests in a file: median and 99th percentile, after 50 to warm up.

    On one core, where the system can keep a process there.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    asked = json.loads(Path(requests).read_text(encoding="utf-8"))
    assert all(len(recommend(request)) == 10 for request in asked[:50])
    turn = iter(asked * (1 + repeats // len(asked)))
    seconds = sorted(seconds_of(lambda: recommend(next(turn)), repeats))
    return {"p50_ms": 1e3 * median(seconds), "p99_ms": 1e3 * seconds[round(0.99 * (repeats - 1))], "requests": repeats}


def clocks() -> tuple[float, float]:
    """Seconds on the wall clock and of processor time."""
    return time.perf_counter(), time.process_time()


def rates(at: Sequence[tuple[float, float]], rows: int) -> dict[str, float]:
    """Training examples per second from :func:`clocks` before the first and after each epoch; the first warms up.

    ``seconds_to_start`` is what the first took longer than the others: compilation, if there is any.
    """
    wall, processor = ([b - a for a, b in pairwise(clock)] for clock in zip(*at, strict=True))
    return {
        "examples_per_second": rows / median(wall[1:]),
        "examples_per_cpu_second": rows / median(processor[1:]),
        "seconds_to_start": wall[0] - median(wall[1:]),
    }


# -- Files -------------------------------------------------------------------------------------------------------------


def read_json(path: Path) -> dict[str, Any]:
    """A file of results; an empty dict if there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file of results, whole or not at all."""
    text = json.dumps(content, indent=1, ensure_ascii=False, default=float)
    with write_atomically(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def merge_section(path: Path, name: str, section: Mapping[str, Any]) -> None:
    """Replace one section of a file; the others stay, and each says when and where it was measured."""
    write_json(path, dict(sorted({**read_json(path), name: {"machine": machine(), **section}}.items())))


def save_tables(tables: MovieLens, path: Path) -> Path:
    """The three tables as plain arrays, readable from any environment without pickle."""
    import numpy as np

    arrays = {"name": np.asarray(tables.name)}
    for table in ("ratings", "users", "movies"):
        for column, values in getattr(tables, table).items():
            values = values.to_numpy()
            arrays[f"{table}.{column}"] = values if values.dtype.kind in "iuf" else values.astype(str)
    with write_atomically(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)
    return path


def load_tables(path: str | Path) -> MovieLens:
    """What :func:`save_tables` wrote."""
    import numpy as np
    import pandas as pd

    from dssm_helpers.movielens import MovieLens

    with np.load(path) as stored:
        names = {
            table: [n for n in stored.files if n.startswith(f"{table}.")] for table in ("ratings", "users", "movies")
        }
        frames = {t: pd.DataFrame({n.partition(".")[2]: stored[n] for n in found}) for t, found in names.items()}
        return MovieLens(str(stored["name"]), **frames)
