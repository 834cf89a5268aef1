"""The course with other versions (``make matrix``): an environment for each; docs/versions.md says what came of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Sequence
from datetime import date
from itertools import product

from ..files import digest, file_digest, write_atomically
from .runner import ROOT, fill_block, notebook_paths
from .venvs import virtual_environment

KINDS = {"pinned": "all, as pinned", "lowest": "all, the lowest admitted", "core": "nothing optional"}
TOOLS = ("nbmake", "packaging", "pytest")  # they run tests and notebooks; no part of the course needs them
OTHERS = "network or release or slow or notebooks or server"
STEPS = {"tests": ["-m", f"not ({OTHERS})", "tests"], "notebooks": ["--nbmake", "--nbmake-timeout=1800"]}
SHOWN = ("torch", "numpy", "pandas", "scikit-learn", "onnxruntime")
KEPT, PAGE, RECORD = ROOT / "artifacts" / "matrix", ROOT / "docs" / "versions.md", ROOT / "docs" / "versions.json"


def interpreters() -> dict[str, str]:
    """``{"3.12": "/usr/bin/python3.12"}``: 3.11 to 3.14 on the PATH, or among those that ``INTERPRETERS`` names."""
    named = os.environ.get("INTERPRETERS", "").split() or [f"python3.{minor}" for minor in range(11, 15)]
    ask, found = "import sys; print('%d.%d' % sys.version_info[:2])", {}
    for path in filter(None, map(shutil.which, named)):
        found[subprocess.run([path, "-c", ask], capture_output=True, text=True).stdout.strip()] = path
    if not (suitable := sorted(found.keys() & {"3.11", "3.12", "3.13", "3.14"})):
        raise ValueError(f"no Python 3.11 to 3.14 among {named}; name some: INTERPRETERS='/a/python /another/python'")
    return {python: found[python] for python in suitable}


def plan(found: dict[str, str]) -> dict[str, str]:
    """``{"3.12-pinned": interpreter}``: pinned versions with each Python, the other kinds with the oldest."""
    pairs = [(python, kind) for python in found for kind in KINDS if kind == "pinned" or python == min(found)]
    return {f"{python}-{kind}": found[python] for python, kind in pairs}


def requirements(kind: str) -> list[str]:
    """What pip installs in an environment of this kind, each in one version."""
    pins = re.findall(r"^[\w-]+==.+", (ROOT / "requirements.txt").read_text(encoding="utf-8"), re.M)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = [line for extra in project["optional-dependencies"].values() for line in extra]
    lowest = [line.replace(">=", "==") for line in project["dependencies"] + optional] if kind == "lowest" else []
    names = {*TOOLS, *(line.partition(">=")[0] for line in project["dependencies"] if kind == "core")}
    return lowest + [pin for pin in pins if kind == "pinned" or pin.partition("==")[0] in names]


def matrix(chosen: Sequence[str] = ()) -> int:
    """Run the chosen entries, or all, and record each step; what passed with the same code and versions is left out.

    1 if one failed, 0 if all passed.
    """
    entries = plan(interpreters())
    if unknown := set(chosen) - set(entries):
        raise ValueError(f"no entry {', '.join(sorted(unknown))}; there are {', '.join(entries)}")
    files = [*ROOT.glob("dssm_helpers/**/*.py"), *ROOT.glob("tests/**/*.py"), *notebook_paths()]
    code = digest({path.relative_to(ROOT).as_posix(): file_digest(path) for path in files})
    record, ok = json.loads(RECORD.read_text(encoding="utf-8")), []
    for name, step in product(chosen or entries, STEPS):
        of = {"code": code, "packages": requirements(name.partition("-")[2])}
        found = record.setdefault(name, {}).get(step, {})
        if not (found.get("passed") and of.items() <= found.items()):
            print(f"\n{name}, {step}", flush=True)
            passed, outcome = attempt(name, step, entries[name], of["packages"])
            today = date.today().isoformat()
            found = record[name][step] = {**of, "passed": passed, "outcome": outcome, "date": today}
            page = render(PAGE.read_text(encoding="utf-8"), record)
            for path, text in ((RECORD, json.dumps(record, indent=1) + "\n"), (PAGE, page)):
                with write_atomically(path) as temporary:
                    temporary.write_text(text, encoding="utf-8")
        print(f"{name}, {step}: {found['outcome']}", flush=True)
        ok.append(found["passed"])
    return int(not all(ok))


def attempt(name: str, step: str, interpreter: str, packages: list[str]) -> tuple[bool, str]:
    """Run one step in the entry's environment, shown as it goes on and kept in a log: did it pass, and what it said."""
    settings = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "DSSM_STRICT")}
    settings |= {"DSSM_SEEDS": "1", "DSSM_ARTIFACTS_DIR": str(KEPT / f"{name}-artifacts"), "PYTHONIOENCODING": "utf-8"}
    if step == "notebooks":
        settings["DSSM_DATASET"] = "synthetic"
    elif not name.endswith("core"):
        settings["DSSM_STRICT"] = "1"  # a missing part is then a failure, and no test that is skipped
    course = ["--no-deps", "--editable", str(ROOT)]
    try:
        python = virtual_environment(KEPT / name, packages, course, interpreter=interpreter)
    except subprocess.CalledProcessError as error:  # pip has said why, and the other entries can still run
        return False, f"no environment: pip ended with {error.returncode}"
    command, line = [python, "-m", "pytest", *STEPS[step]], ""
    if step == "notebooks":  # without the optional parts, those that ask for none; the others say what to install
        texts = {str(path): path.read_text(encoding="utf-8") for path in notebook_paths()}
        command += [path for path, text in texts.items() if not (name.endswith("core") and "needs(" in text)]
    elif not name.endswith("pinned"):
        command += ["-m", f"not ({OTHERS} or pinned)"]  # the last one counts
    with (KEPT / f"{name}-{step}.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=settings, stdout=subprocess.PIPE, encoding="utf-8")
        for line in process.stdout:
            print(line, end="", flush=True)
            log.write(line)
    outcome = re.sub(r" in [\d.]+s.*", "", line.strip("= \n"))  # of "== 980 passed, 2 skipped in 300.12s ==="
    return process.wait() == 0, outcome


def render(text: str, record: dict[str, dict]) -> str:
    """Fill the table of docs/versions.md."""
    rows = [["Python", "packages", *SHOWN, *STEPS], ["---"] * (2 + len(SHOWN) + len(STEPS))]
    for name, steps in sorted(record.items()):
        python, _, kind = name.partition("-")
        versions = dict(package.split("==") for package in steps["tests"]["packages"])
        said = [f"{found['outcome']} ({found['date']})" for found in steps.values()]
        rows.append([python, KINDS[kind], *(versions.get(package, "–") for package in SHOWN), *said])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows) if record else "Nothing has been run whole yet."
    return fill_block(text, "versions", table)
