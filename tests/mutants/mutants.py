"""Plants small faults, one at a time, and looks whether a test fails: ``python tests/mutants/mutants.py``.

A sample with a seed, spread over the modules by their lines and within a module over the operators. Each fault is
planted in a copy of the tree and meets the tests of its module, with ``--wide`` then those of all others. What is found
goes to ``docs/mutants.json`` (an entry a fault; of a survivor, ``why`` is written there by hand) and
``docs/mutants.md``. A fault that is recorded is not run again, but for survivors with ``--again``.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import asdict
from itertools import chain, zip_longest
from pathlib import Path

from operators import Mutant, by_hand, mutants_of

ROOT = Path(__file__).resolve().parent.parent.parent
LIBRARY = ROOT / "dssm_helpers"
RECORD, PAGE = ROOT / "docs" / "mutants.json", ROOT / "docs" / "mutants.md"
TIMEOUT = 300  # seconds for a file of tests; a fault that makes them hang is caught
# Tests beside those of the module's own name.
BESIDE = {
    "data": "evaluation", "fast": "training", "features": "model data",
    "files": "serving faults/test_damage faults/test_two_at_once", "index": "retrieval", "milvus": "retrieval",
    "model": "training", "movielens": "faults/test_network", "objectives": "training", "pairs": "ranking",
    "recipes": "model workspace", "retrieval": "serving", "schema": "data", "serving": "faults/test_two_at_once",
    "tables": "own", "training": "workspace", "vocabulary": "data",
}  # fmt: skip
WIDE = [
    "vocabulary", "data", "features", "model", "objectives", "training", "evaluation", "workspace", "retrieval", "text",
    "serving", "ranking", "folding", "tables", "own", "files", "visualization", "onnx_export", "diagnosis",
    "faults/test_hostile", "faults/test_damage",
]  # fmt: skip
PLAIN = "not slow and not network and not server and not release and not notebooks"
WARM = (
    "pytest", "torch", "numpy", "pandas", "scipy.sparse", "sklearn.manifold", "matplotlib.pyplot", "nbformat",
    "tqdm.auto", "onnx", "onnxruntime.quantization", "onnxscript", "safetensors.torch", "faiss", "annoy", "requests",
    "torch.onnx._internal.exporter._core",
)  # fmt: skip

HEAD = """\
# What the tests notice

Small faults were planted in the library, the workspace, the diagnosis and the checks of the exercises, one at a time:
a sample with a seed, in each module as many as its lines ask for, each operator of `tests/mutants/operators.py` in turn
(a comparison that takes in its border, a sign or a lock dropped, arguments swapped, another axis, a guard or a
statement left out and so on). Docstrings, annotations and texts are left alone. A fault is caught when a test fails;
what none notices is named below, those too that change nothing, *equivalent* ones.

{whole}
`make mutants` goes on with those of the sample that have not met the tests yet, and writes this page.

"""


def sample(count: int, seed: int = 0) -> list[Mutant]:
    """About ``count`` faults: each module its share by lines, and of a module each operator in turn."""
    school = [LIBRARY / "course" / f"{name}.py" for name in ("diagnosis", "workspace")]
    paths = [*LIBRARY.glob("*.py"), *school, *LIBRARY.glob("course/checks/*.py")]
    sources = {p.relative_to(LIBRARY).as_posix(): p.read_text(encoding="utf-8") for p in sorted(paths)}
    lines, chosen = sum(source.count("\n") for source in sources.values()), []
    for name, source in sources.items():
        draw, by_operator = random.Random(f"{seed} {name}"), defaultdict(list)
        for mutant in mutants_of(name, source):
            by_operator[mutant.operator].append(mutant)
        operators = [draw.sample(found, len(found)) for found in by_operator.values()]
        draw.shuffle(operators)
        turns = [mutant for mutant in chain(*zip_longest(*operators)) if mutant]
        chosen += [*by_hand(name, source), *turns[: max(1, round(count * source.count("\n") / lines))]]
    return chosen


def tests_of(file: str) -> list[list[str]]:
    """The arguments of pytest, a run each, that look at a module first."""
    stem = Path(file).stem
    if stem.startswith("notebook_"):
        return [["tests/test_exercises.py", "-k", f"{stem[-2:]}_ and wrong_answers"], ["tests/test_checks.py"]]
    names = ["checks" if file.endswith("checks/__init__.py") else stem, *BESIDE.get(stem, "").split()]
    return [[path] for path in map(_path, names) if (ROOT / path).exists()]


def _path(name: str) -> str:
    return f"tests/{name}.py" if "/" in name else f"tests/test_{name}.py"


def fails(tree: Path, arguments: list[str]) -> str:
    """Which test of ``arguments`` fails in ``tree``; "" if none does. In a child that needs not import torch anew."""
    found = tree / "failed.txt"
    found.unlink(missing_ok=True)
    faulthandler.cancel_dump_traceback_later()  # the child has not its thread, and would wait for it when a test fails
    child = os.fork()
    if child == 0:
        os.setsid()
        os._exit(_in_child(tree, arguments, found))
    end = time.monotonic() + TIMEOUT
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > end:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return f"{arguments[0]}: more than {TIMEOUT} s"
        time.sleep(0.05)
    if found.exists():
        return found.read_text(encoding="utf-8")
    return f"{arguments[0]}: ended with status {ended[1]}" if ended[1] else ""


def _in_child(tree: Path, arguments: list[str], found: Path) -> int:
    import pytest

    class First:
        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            if report.failed:
                found.write_text(report.nodeid, encoding="utf-8")

        def pytest_collectreport(self, report: pytest.CollectReport) -> None:
            if report.failed:
                found.write_text(f"{report.nodeid}: import", encoding="utf-8")

    os.chdir(tree)
    os.environ |= {"PYTHONPATH": str(tree), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    sys.path[0] = str(tree)
    out = os.open(tree / "out.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    options = ["-x", "-q", "-m", PLAIN, "-p", "no:cacheprovider", f"--basetemp={tree}/tmp"]
    return int(pytest.main([*options, *arguments], plugins=[First()]))


def judge(tree: Path, mutant: Mutant, runs: list[list[str]]) -> str:
    target = tree / "dssm_helpers" / mutant.file
    source, before = target.read_text(encoding="utf-8"), target.stat()
    target.write_text(mutant.planted(source), encoding="utf-8")
    try:
        return next(filter(None, (fails(tree, run) for run in runs)), "")
    finally:
        target.write_text(source, encoding="utf-8")
        os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))  # so that its compiled form counts again


def identity(entry: dict[str, str]) -> tuple[str, ...]:
    """What stays when lines are added above a fault."""
    return tuple(entry[name] for name in ("file", "operator", "code", "was", "now"))


def score(record: list[dict[str, str]]) -> float:
    """The share that is caught of the faults that change anything; equivalent ones, whose ``why`` says so, do not."""
    caught = [bool(entry["caught_by"]) for entry in record if not entry["why"].startswith("equivalent")]
    return sum(caught) / len(caught)


def page(record: list[dict[str, str]]) -> str:
    """The record as a page: shares by module, and the survivors."""
    caught, of = Counter(e["file"] for e in record if e["caught_by"]), Counter(e["file"] for e in record)
    n = sum(caught.values())
    whole = f"**{n} of {len(record)} are caught ({n / len(record):.1%})"
    whole += f"; of those that change anything, {score(record):.1%}.**"
    parts = [HEAD.format(whole=whole), "| module | planted | caught |\n|---|---|---|\n"]
    parts += [f"| `{file}` | {of[file]} | {caught[file]} |\n" for file in sorted(of)]
    parts.append("\n## What no test catches\n\n| where | was | became | why |\n|---|---|---|---|\n")
    for entry in (entry for entry in record if not entry["caught_by"]):
        texts = (" ".join(entry[name].split()).replace("|", "\\|") for name in ("was", "now"))
        was, now = (f"`{text}`" if len(text) < 90 else f"`{text[:85]} …`" for text in texts)
        parts.append(f"| `{entry['file']}` {entry['line']} | {was} | {now} | {entry['why']} |\n")
    return "".join(parts)


def write(record: list[dict[str, str]]) -> None:
    record.sort(key=lambda entry: (entry["file"], entry["line"], entry["operator"], entry["now"]))
    RECORD.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    PAGE.write_text(page(record), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=150)
    parser.add_argument("--again", action="store_true", help="run the survivors once more")
    parser.add_argument("--wide", action="store_true", help="they meet the tests of other modules too")
    parser.add_argument("--page", action="store_true", help="only write the page")
    given = parser.parse_args()
    record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else []
    if given.page:
        return write(record)
    for name in WARM:
        importlib.import_module(name)
    sys.dont_write_bytecode = False  # what is compiled once serves the later runs
    known = {identity(entry): entry for entry in record}
    chosen = sample(given.count)
    random.Random(0).shuffle(chosen)  # what is interrupted has seen every module
    with tempfile.TemporaryDirectory() as folder:
        left = shutil.ignore_patterns(".git", ".venv", "artifacts", "data", "dist", "__pycache__")
        tree = Path(shutil.copytree(ROOT, Path(folder, "tree"), ignore=left))
        for number, mutant in enumerate(chosen):
            entry = known.get(identity(asdict(mutant)))
            if entry and (entry["caught_by"] or not given.again):
                continue
            runs, begin = tests_of(mutant.file), time.monotonic()
            if given.wide:
                runs += [[path] for path in map(_path, WIDE) if [path] not in runs]
            caught_by = judge(tree, mutant, runs)
            if entry is None:
                record.append(entry := {name: v for name, v in asdict(mutant).items() if name != "start"})
            entry |= {"caught_by": caught_by, "why": "" if caught_by else entry.get("why", "")}
            write(record)
            what = f"{mutant.file}:{mutant.line} {mutant.operator}: {caught_by or 'SURVIVES'}"
            print(f"{number + 1}/{len(chosen)} {time.monotonic() - begin:.0f} s {what}", flush=True)


if __name__ == "__main__":
    main()
