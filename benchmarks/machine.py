"""What every benchmark shares: which machine, how long, and one JSON file that many parts write into."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read once, when torch loads OpenMP

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / "results.json"
sys.path.insert(0, str(ROOT))

from dssm_helpers.files import write_atomically  # noqa: E402


def machine() -> dict[str, Any]:
    """Date, processor, cores, memory in GiB, and versions of Python, torch and NumPy."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version_of(name) for name in ("torch", "numpy")},
    }


def version_of(package: str) -> str | None:
    """Installed version, without importing the package; ``None`` if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, OSError, ValueError):  # Windows
        return None


def resident_memory() -> int:
    """Bytes of physical memory this process holds now (Linux; elsewhere its largest so far)."""
    return _status("VmRSS") or _largest()


def reset_peak() -> None:
    """Forget the peak so far, so that :func:`peak_memory` sees only what comes now (Linux; elsewhere nothing)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory() -> int:
    """Largest number of bytes of physical memory held since the start or the last :func:`reset_peak`."""
    return _status("VmHWM") or _largest()


def _status(field: str) -> int | None:
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def _largest() -> int:
    import resource  # not on Windows

    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024


def available_memory() -> int | None:
    """Bytes that can be taken without swapping; ``None`` where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def pin_to_one_core() -> None:
    """Keep this process on one core, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def latency(seconds: Sequence[float]) -> dict[str, float]:
    """Milliseconds: median and 99th percentile."""
    ordered = sorted(seconds)
    at = min(len(ordered) - 1, round(0.99 * (len(ordered) - 1)))
    return {"p50_ms": 1e3 * median(ordered), "p99_ms": 1e3 * ordered[at], "requests": len(ordered)}


def best_of(function: Callable[[], Any], repeats: int = 5) -> dict[str, float]:
    """Seconds of ``function()``: the best and the median of ``repeats`` runs."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
    return {"best": min(seconds), "median": median(seconds)}


def both_clocks() -> tuple[float, float]:
    """Seconds on the wall clock and of processor time."""
    return time.perf_counter(), time.process_time()


def rates(at: Sequence[tuple[float, float]], rows: int) -> dict[str, float]:
    """Training examples per second from the clocks before and after each epoch; the first epoch warms up.

    ``seconds_to_start`` is what the first took longer than the others: compilation, if there is any.
    """
    first, *later = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(at)]
    wall, processor = (median(seconds) for seconds in zip(*later, strict=True))
    return {
        "examples_per_second": rows / wall,
        "examples_per_cpu_second": rows / processor,
        "seconds_to_start": first[0] - wall,
    }


def room_for_another(spent: float, done: int, limit: float) -> bool:
    """Whether one more round as long as the ``done`` before would end within ``limit``; the first always may."""
    return done == 0 or spent * (done + 1) / done <= limit


@contextmanager
def step(title: str) -> Iterator[None]:
    """Print ``title`` at once and the seconds it took at the end."""
    print(f"{title} …", flush=True)
    started = time.perf_counter()
    yield
    print(f"{title}: {time.perf_counter() - started:.1f} s", flush=True)


def read_results(path: str | Path = RESULTS) -> dict[str, Any]:
    """All sections measured so far; an empty dict if there is no file."""
    path = Path(path)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def merge_section(path: str | Path, name: str, payload: Mapping[str, Any]) -> None:
    """Replace section ``name`` of the JSON file at ``path``; the other sections stay. Safe with several writers.

    The section gets a ``machine`` entry (unless it brings one), because parts may be measured on different days.
    """
    path = Path(path)
    with _locked(path):
        results = read_results(path)
        results[name] = {"machine": machine(), **payload}
        with write_atomically(path) as temporary:
            text = json.dumps(results, indent=1, sort_keys=True, ensure_ascii=False, default=float)
            temporary.write_text(text + "\n", encoding="utf-8")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold ``path``'s lock file, so that two writers do not overwrite each other's sections."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock.tmp")
    with lock.open("w") as handle:
        try:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX)
        except ImportError:  # Windows: no lock, one writer at a time
            pass
        yield


def markdown_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    """Rows of equal keys as a Markdown table; floats get three significant digits, ``None`` a dash."""
    if not rows:
        raise ValueError("a table needs at least one row")
    columns = list(columns or rows[0])
    lines = [columns, ["---"] * len(columns), *([_cell(row.get(column)) for column in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value).replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    import argparse

    argparse.ArgumentParser(description="Print this machine as the benchmarks describe it.").parse_args()
    print(json.dumps(machine(), indent=1))
