"""What every benchmark shares: machine, points kept, a process per measurement, memory, time, files. For Linux."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read once, when torch loads OpenMP

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
POINTS, PEERS = ROOT / "artifacts" / "benchmarks", ROOT / "artifacts" / "peers"
RESULTS = HERE / "results.json"
sys.path.insert(0, str(ROOT))  # the peers' environments do not have the course installed

import numpy as np  # noqa: E402

from dssm_helpers.files import digest, file_digest, write_atomically  # noqa: E402


def machine() -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "cpu": re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())[1],
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "numpy")},
    }


def machines(points: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """One description of the machines of all points; where they differ, each value once."""
    values = {name: dict.fromkeys(str(point["machine"][name]) for point in points) for name in points[0]["machine"]}
    return {name: " and ".join(found) for name, found in values.items()}


def command_line(doc: str | None) -> argparse.ArgumentParser:
    """A parser that prints a script's docstring as it is written."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def once(path: Path, measure: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """What ``measure`` returns, with its key and machine, kept at ``path``: an interrupted command goes on there."""
    if not path.exists():
        write_json(path, {"key": path.stem, "machine": machine(), **measure()})
    return read_json(path)


def point(name: str, **settings: Any) -> Path:
    """Where :func:`once` keeps a point: under a hash of its settings, of the library and of the benchmarks."""
    files = sorted([*ROOT.glob("dssm_helpers/*.py"), *HERE.glob("*.py")])
    code = [file_digest(file) for file in files if file.name != "report.py"]  # it measures nothing
    return POINTS / f"{name}-{digest([settings, code])[:12]}.json"


def ask(python: str | Path, script: str, part: str, *, threads: int = 1, **options: Any) -> dict[str, Any]:
    """Start ``script part`` in a process of its own, and read the JSON it prints last (see :func:`answer`)."""
    print(f"{script} {part} {options} …", flush=True)
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


def memory(field: str = "VmHWM") -> int:
    """Bytes this process holds now (``VmRSS``), or the most since the start or :func:`reset_peak` (``VmHWM``)."""
    return 1024 * int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def clocks() -> np.ndarray:
    """Seconds on the wall clock and of processor time."""
    return np.array([time.perf_counter(), time.process_time()])


def seconds_of(function: Callable[[], Any], repeats: int = 1) -> list[float]:
    """Seconds of each of ``repeats`` calls."""
    at = [time.perf_counter()]
    for _ in range(repeats):
        function()
        at.append(time.perf_counter())
    return np.diff(at).tolist()


def preparation(load: Callable[[], Any], prepare: Callable[[Any], Any]) -> dict[str, float]:
    """Seconds of ``prepare(load())`` without the loading, and the peak of memory, what was loaded included."""
    imports, loaded = memory("VmRSS"), load()
    reset_peak()
    (seconds,) = seconds_of(lambda: prepare(loaded))
    return {"seconds": seconds, "mib_above_imports": (memory() - imports) / 2**20}


def rates(seconds: Sequence[float], rows: int) -> dict[str, float]:
    """Training examples per second from the seconds of every epoch; what the first takes longer is the start."""
    usual = median(seconds[1:])
    return {"examples_per_second": rows / usual, "seconds_to_start": seconds[0] - usual}


def latency(recommend: Callable[[dict], Sequence], requests: str, repeats: int = 2000) -> dict[str, float]:
    """Milliseconds of one answer to the requests in a file: median and 99th percentile, after 50 to warm up."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core
    asked = json.loads(Path(requests).read_text(encoding="utf-8"))
    assert all(len(recommend(request)) == 10 for request in asked[:50])
    turn = iter(asked * (1 + repeats // len(asked)))
    p50, p99 = 1e3 * np.quantile(seconds_of(lambda: recommend(next(turn)), repeats), [0.5, 0.99])
    return {"p50_ms": p50, "p99_ms": p99, "requests": repeats}


def read_json(path: Path) -> dict[str, Any]:
    """A file of results; an empty dict if there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file of results, whole or not at all."""
    with write_atomically(path) as temporary:
        text = json.dumps(content, indent=1, ensure_ascii=False, default=float)
        temporary.write_text(text + "\n", encoding="utf-8")


def merge_section(path: Path, name: str, section: Mapping[str, Any]) -> None:
    """Replace one section of a file; each says when and where it was measured."""
    write_json(path, dict(sorted({**read_json(path), name: {"machine": machine(), **section}}.items())))
