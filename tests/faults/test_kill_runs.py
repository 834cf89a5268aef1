"""`make run` and `make notebooks`, killed at any moment: whole, the runner alone, a kernel alone, and by Ctrl-C.

The commands are the real ones over a course of small notebooks. They are forked, so that nothing is imported again.
"""

from __future__ import annotations

import contextvars
import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import nbformat
import numpy as np
import psutil
import pytest
import small
import test_movielens
from conftest import ROOT
from test_kill import KILLS, kill
from test_movielens import CONTENT, load
from test_runner import RESULTS, notebook

from dssm_helpers.course import commands, runner
from dssm_helpers.course.scoreboard import read_results, update_results
from dssm_helpers.files import digest, file_digest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and kills its children")
server = test_movielens.server
MARKERS = ("scoreboard", "map", "deployment", "times")
WORK = """
from dssm_helpers.course.workspace import Workspace
ws = Workspace("synthetic", progress=False)
ws.trained(epochs=1)
ws.record(models={"dssm": dict.fromkeys(("hit@10", "hit@100", "ndcg@10", "mrr", "train_seconds"), 0.5)})
print("done")
"""
WRITES = """
import itertools, os
from dssm_helpers.course.scoreboard import update_results
from dssm_helpers.settings import artifacts_dir
for number in itertools.count() if os.environ["RUN"] == "endless" else range(3):
    with update_results(artifacts_dir("synthetic")) as results:
        results["section"] = dict.fromkeys(map(str, range(2000)), number)
"""
RECORDS = """
import itertools, os
from dssm_helpers.course.workspace import Workspace
ws = Workspace("synthetic", progress=False)
for _ in itertools.count() if os.environ["RUN"] == "first" else range(1):
    ws.record(by=os.environ["RUN"])
"""


@pytest.fixture
def course(tmp_path, monkeypatch) -> Iterator[Path]:
    """An empty course in the place of this one; whatever a kill left behind is ended."""
    (tmp_path / "notebooks").mkdir()
    monkeypatch.setattr(runner, "ROOT", tmp_path)
    monkeypatch.setattr(runner, "NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.setattr(runner, "PUBLISHED", tmp_path / "notebooks" / "results-ml-100k.json")
    monkeypatch.setenv("DSSM_ARTIFACTS_DIR", str(tmp_path / "artifacts"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    started.clear()
    yield tmp_path
    for process in started:
        if process.is_running():
            process.kill()


started: list[psutil.Process] = []


def add(course: Path, name: str, *sources: str) -> None:
    nbformat.write(notebook(*sources), course / "notebooks" / f"{name}.ipynb")


def start(course: Path, *command: str) -> psutil.Process:
    """The command in a process group of its own; what it says goes to the file ``log``."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setsid()
            sys.stdout = sys.stderr = (course / "log").open("w")
            os.dup2(sys.stdout.fileno(), 1)
            os.dup2(sys.stdout.fileno(), 2)
            status = contextvars.Context().run(commands.main, list(command))  # the parent's event loop stays its own
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    started.append(psutil.Process(child))
    return started[-1]


def ended(process: psutil.Process) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process.pid, 0)[1])


def kernels(process: psutil.Process) -> list[psutil.Process]:
    found = []
    for child in process.children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            if "ipykernel_launcher" in child.cmdline():
                found.append(child)
    started.extend(child for child in found if child not in started)
    return found


def until(condition: Callable[[], object], seconds: float = 120) -> object:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.01)
    return found


def whole(path: Path) -> dict:
    """A file of results with its own digest."""
    note = json.loads(path.read_text(encoding="utf-8"))
    assert note.pop("digest") == digest(note)
    return note


@pytest.mark.fault("killed while it prepares the data", "nothing", "the data; preparing writes nothing to disk")
def test_preparation_writes_nothing(server, tmp_path):
    (tmp_path / "ml-1m.zip").write_bytes(CONTENT["ml-1m"])
    writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT

    def prepare() -> None:
        ws = small.workspace(tmp_path / "artifacts", "a")
        ws.split.train, ws.batches, ws.origin(), load("ml-1m", tmp_path)

    prepare()  # what is imported late is imported here
    child = os.fork()
    if child == 0:

        def audit(event: str, arguments: tuple) -> None:
            if event == "open" and isinstance(arguments[2], int) and arguments[2] & writes:
                os._exit(2)
            if event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink"):
                os._exit(3)

        status = 1
        try:
            sys.addaudithook(audit)
            prepare()
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["ml-1m.zip"]


WRITTEN = [
    pytest.param(
        in_place, id=what, marks=pytest.mark.fault(f"killed while it writes {what}", "it is written again", kept)
    )
    for in_place, what, kept in (
        (False, "executed copies of the notebooks", "each copy, the old or the new, whole"),
        (True, "notebooks in place, and the README", "each notebook, table and picture, the old or the new, whole"),
    )
]


@pytest.mark.slow
@pytest.mark.parametrize("in_place", WRITTEN)
def test_what_a_run_writes_is_the_old_or_the_new(course, monkeypatch, in_place):
    """As in small.converted_once, what a kernel made is kept, and the writing happens each time."""
    kept, execute, folder = {}, runner.execute, course / "artifacts" / "ml-100k"

    def executed_once(path: Path, dataset: str) -> tuple:
        key = path.name, os.environ["RUN"]
        if key not in kept:
            kept[key] = execute(path, dataset)
        return copy.deepcopy(kept[key])

    def job(variant: str) -> None:
        os.environ["RUN"] = variant
        models = {"dssm": {**RESULTS["models"]["dssm"], "hit@10": {"a": 0.25, "b": 0.26}[variant]}}
        with update_results(folder) as results:
            results.update({**RESULTS, "models": models})
        assert runner.run("ml-100k", in_place=in_place, only=["00", "01"]) == 0
        if in_place:
            runner.refresh_readme()

    def written() -> dict[Path, str]:
        return {path: file_digest(path) for pattern in patterns for path in course.glob(pattern)}

    patterns = (
        "*.md",
        "docs/*.md",
        "notebooks/*.ipynb",
        "notebooks/images/*.png",
        "artifacts/ml-100k/notebooks/*.ipynb",
    )
    monkeypatch.setattr(runner, "execute", executed_once)
    monkeypatch.setenv("RUN", "")
    (course / "docs").mkdir()
    for page in ("README.md", "docs/instructor.md"):
        (course / page).write_text("".join(f"<!-- {name}: generated -->\n<!-- /{name} -->\n" for name in MARKERS))
    for name in ("00_first", "01_second"):
        add(course, name, "import os\nprint(2_000_000 * os.environ['RUN'])")  # takes a while to write
        path = course / "notebooks" / f"{name}.ipynb"
        text = path.read_text().replace(
            "see it.", "see it.\\n**Reading:** 5 minutes · **Runs in:** 1 s on two CPU cores"
        )
        path.write_text(text)
    expected = {}
    for variant in "ab":
        job(variant)
        expected[variant] = written()
    assert sum(expected["a"][path] != expected["b"][path] for path in expected["b"]) >= 2
    clock = time.perf_counter()
    job("b")
    seconds, moments = time.perf_counter() - clock, np.random.default_rng(0)
    for trial in range(KILLS):
        kill(lambda: [job(variant) for variant in "ab"], trial % 2, moments.uniform(0, 2 * seconds))
        found = written()
        assert found.keys() == expected["a"].keys()
        for path, content in found.items():
            assert content in (expected["a"][path], expected["b"][path]), path.name
        assert whole(folder / "results.json")["models"]
        assert not in_place or whole(runner.PUBLISHED)["models"]
    for variant in "ba":
        job(variant)
        assert written() == expected[variant]


KILLED = [
    pytest.param(
        command, id=name, marks=pytest.mark.fault(f"`{name}` is killed, whole or the runner alone", sees, kept)
    )
    for name, command, sees, kept in (
        ("make run", ("run", "--dataset", "synthetic"), "the next run completes", "models, figures and copies, whole"),
        ("make notebooks", ("notebooks", "--only", "01"), "the next run completes", "each notebook, whole"),
    )
]


@pytest.mark.slow
@pytest.mark.parametrize("command", KILLED)
def test_the_next_run_completes(course, command):
    add(course, "00_first", WORK)
    add(course, "01_second", "print(1)")
    notebooks, artifacts = course / "notebooks", course / "artifacts"
    target = notebooks if command[0] == "notebooks" else artifacts / "synthetic" / "notebooks"
    before = {path.name: path.read_bytes() for path in notebooks.iterdir()}

    def made() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (*target.glob("*.ipynb"), *artifacts.rglob("*.safetensors"))}

    clock = time.perf_counter()
    assert ended(start(course, *command)) == 0
    seconds, expected, moments = time.perf_counter() - clock, made(), np.random.default_rng(0)
    assert expected["01_second.ipynb"] != before["01_second.ipynb"]
    shutil.rmtree(artifacts, ignore_errors=True)
    for name, content in before.items():
        (notebooks / name).write_bytes(content)
    for trial in range(4):
        process = start(course, *command)
        time.sleep(moments.uniform(0, seconds))
        alone = [] if trial % 2 else kernels(process)
        for victim in (process, *alone):
            victim.kill()
        ended(process)
        for path in (*target.glob("*.ipynb"), *notebooks.glob("*.ipynb")):
            assert path.read_bytes() in (before[path.name], expected.get(path.name))
    assert ended(start(course, *command)) == 0  # at once: of the last run, a kernel may still be alive
    assert made() == expected
    assert command[0] == "notebooks" or whole(artifacts / "synthetic" / "results.json")["models"].keys() == {"dssm"}


@pytest.mark.slow
@pytest.mark.fault(
    "a kernel dies, twenty times", "the notebook is named, and the run goes on", "figures and copies, whole"
)
def test_a_dead_kernel_is_named(course, monkeypatch, capsys):
    names = [f"{number:02d}_endless" for number in range(20)]
    for name in names:
        add(course, name, WRITES)
    add(course, "20_last", "print(1)")
    folder, moments = course / "artifacts" / "synthetic", np.random.default_rng(0)
    results = folder / "results.json"
    with update_results(folder) as figures:
        figures.update({**RESULTS, "section": {}})
    monkeypatch.setenv("RUN", "endless")
    process, dead = start(course, "run", "--dataset", "synthetic"), []
    for number in range(len(names)):
        (kernel,) = until(lambda: [one for one in kernels(process) if one not in dead])
        if number % 2:  # while it writes
            since = results.stat().st_mtime_ns
            until(lambda since=since: results.stat().st_mtime_ns > since)
            time.sleep(moments.uniform(0, 0.05))
        else:  # while it starts
            time.sleep(moments.uniform(0, 1))
        kernel.kill()
        dead.append(kernel)
        assert len(set(read_results(folder)["section"].values())) <= 1
    assert ended(process) == 1
    said = (course / "log").read_text()
    assert said.count("FAILED") == len(names)
    assert "20 of 21 notebooks failed" in said
    assert "Traceback" not in said
    for name in names:
        assert f"{name}.ipynb: Kernel died" in said
    for name in (*names, "20_last"):
        nbformat.validate(nbformat.read(folder / "notebooks" / f"{name}.ipynb", as_version=4))
    monkeypatch.setenv("RUN", "short")
    assert ended(start(course, "run", "--dataset", "synthetic", "--only", "00", "20")) == 0
    assert set(whole(results)["section"].values()) == {2}
    assert "is damaged" not in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.fault("the runner is killed, and its kernel writes on", "nothing", "the figures of the next run")
def test_a_kernel_left_behind_ends(course, monkeypatch):
    add(course, "00_first", RECORDS)
    folder = course / "artifacts" / "synthetic"
    with update_results(folder) as figures:
        figures.update(RESULTS)
    monkeypatch.setenv("RUN", "first")
    process = start(course, "run", "--dataset", "synthetic")
    until(lambda: whole(folder / "results.json").get("by") == "first")
    (kernel,) = kernels(process)
    process.kill()
    ended(process)
    assert kernel.is_running()
    monkeypatch.setenv("RUN", "second")
    assert ended(start(course, "run", "--dataset", "synthetic")) == 0
    assert whole(folder / "results.json")["by"] == "second"
    assert not kernel.is_running()


CALL = (sys.executable, "-m", "dssm_helpers.course", "run", "--dataset", "synthetic")
MAKE = ("make", f"PY={sys.executable}", "-o", ".venv/.ready", "run", "DATASET=synthetic")


@pytest.mark.slow
@pytest.mark.fault("Ctrl-C", "one line; the exit status is 130", "what was finished; no kernel is left")
@pytest.mark.parametrize(
    ("command", "number", "seconds"),
    [(CALL, signal.SIGINT, 0), (CALL, signal.SIGTERM, 1), (MAKE, signal.SIGINT, 3)],
    ids=["while a kernel starts", "terminated", "make"],
)
def test_ctrl_c_is_one_line(course, command, number, seconds, monkeypatch):
    """The notebooks of this course; a terminal sends the signal to all that runs in it but the kernel."""
    monkeypatch.delenv("MAKELEVEL", raising=False)  # within make test an inner make would call itself make[1]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes) as run:
        (kernel,) = until(lambda: kernels(psutil.Process(run.pid)))
        time.sleep(seconds)
        os.killpg(run.pid, number)
        shown, said = run.communicate(timeout=60)
    lines = [line for line in said.splitlines() if line and not line.startswith("make: ")]
    assert lines == ["Interrupted. What was finished is kept; the same command does the rest."]
    assert run.returncode == 130 or (command is MAKE and run.returncode == -number)
    assert "FAILED" not in shown
    assert not kernel.is_running()
