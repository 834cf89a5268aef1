"""Run and clean the notebooks, refill the README from their figures, build the solved and the graded course."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError
from PIL import Image

from ..data import SPLITS
from ..files import write_atomically
from ..settings import artifacts_dir, data_dir, project_root
from .exercises import for_nbgrader, solve
from .scoreboard import draw_scoreboard, plain_scoreboard, read_results, scoreboard_markdown, update_results

ROOT = project_root()
NOTEBOOKS = ROOT / "notebooks"
FOLDED = {"cellView": "form", "jupyter": {"source_hidden": True}, "tags": ["hide-input"]}
PUBLISHED = NOTEBOOKS / "results-ml-100k.json"  # the figures of the committed notebooks and of the README


def notebook_paths() -> list[Path]:
    """The numbered notebooks in order."""
    return sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))


# What the kernel took at most, in KiB on Linux and in bytes on macOS; Windows has no such module.
GAUGE = """
import importlib.util, sys
if importlib.util.find_spec("resource"):
    import resource
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**10 if sys.platform == "linux" else 2**20))
"""


class Client(NotebookClient):
    """Ctrl-C ends the kernel at once; nbclient's own handler would then report that the kernel died."""

    async def async_start_new_kernel(self, **options: object) -> None:
        def interrupt(notebook: asyncio.Task) -> None:
            self.shutdown_kernel = "immediate"
            notebook.cancel()

        for number in (signal.SIGINT, signal.SIGTERM) if sys.platform != "win32" else ():  # whose loop takes no handler
            asyncio.get_running_loop().add_signal_handler(number, interrupt, asyncio.current_task())
        await super().async_start_new_kernel(**options)


def execute(path: Path, dataset: str) -> tuple[nbformat.NotebookNode, float, str | None]:
    """Run one notebook in its own kernel: the executed copy, the seconds, and the error if there was one.

    The copy's metadata says how many MiB the kernel took.
    """
    notebook = nbformat.read(path, as_version=4)
    os.environ["DSSM_DATASET"] = dataset
    if sys.platform == "win32":  # zmq needs a selector loop
        asyncio.set_event_loop_policy(asyncio.WindowsSelectorEventLoopPolicy())
    # A kernel on this machine warns that its connection to this machine is not encrypted; only errors matter here.
    quiet, folder = ["--IPKernelApp.log_level=ERROR"], {"metadata": {"path": str(path.parent)}}
    started, error, gauge = time.perf_counter(), None, nbformat.v4.new_code_cell(GAUGE)
    notebook.cells.append(gauge)
    client = Client(notebook, timeout=1800, resources=folder, extra_arguments=quiet)
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError) as failure:
        error = str(failure)
    except (RuntimeError, asyncio.CancelledError) as failure:  # a dead kernel, or one that dies before its first answer
        error = f"{path.name}: {failure}. Was the kernel killed, or is there too little memory?"
        client.km = client.km or client.create_kernel_manager()  # nbclient asks it at exit whether it has a kernel
    if client.shutdown_kernel == "immediate":
        raise KeyboardInterrupt
    notebook.cells.pop()
    notebook.metadata["mib"] = float(gauge.outputs[0].text) if gauge.get("outputs") else None
    return notebook, time.perf_counter() - started, error


def clean(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Take out what differs between runs or machines (timestamps, widget state, paths) and shrink the pictures.

    A cell whose first line is ``# @title …`` is folded, for JupyterLab, for the book and (by that line) for Colab.
    """
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    notebook.metadata = nbformat.from_dict({"kernelspec": kernel, "language_info": {"name": "python"}})
    for cell in notebook.cells:
        folded = cell.cell_type == "code" and cell.source.startswith("# @title")
        cell.metadata = nbformat.from_dict(FOLDED if folded else {})
        if cell.cell_type == "code":
            cell.outputs = _merged(cell.outputs)
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                # A progress bar redraws its line after a carriage return; keep what stands at the end.
                text = "\n".join(line.rstrip("\r").split("\r")[-1] for line in output.text.split("\n"))
                output.text = text.replace(str(ROOT), "…").replace(str(Path.home()), "~")
            elif "image/png" in output.get("data", {}):
                output.data["image/png"] = with_palette(output.data["image/png"])
                if alt := output.metadata.get("image/png", {}).get("alt"):  # the book reads it from the cell
                    cell.metadata["mystnb"] = {"image": {"alt": alt}}
    return notebook


def _merged(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Neighbouring pieces of a stream as one output: a progress bar arrives in many."""
    merged: list[nbformat.NotebookNode] = []
    for output in outputs:
        if merged and output.output_type == "stream" and output.name == merged[-1].get("name"):
            merged[-1].text += output.text
        else:
            merged.append(output)
    return merged


def with_palette(png: str, colours: int = 256) -> str:
    """A base64 PNG redrawn with a palette: a third of the size, and no visible difference in plots."""
    full, small = io.BytesIO(base64.b64decode(png)), io.BytesIO()
    picture = Image.open(full)
    if picture.mode == "P":
        return png
    picture = picture.convert("RGB").quantize(colours, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    picture.save(small, "PNG", optimize=True)
    return base64.b64encode(small.getvalue()).decode() + "\n"


def stamp_running_time(notebook: nbformat.NotebookNode, seconds: float) -> nbformat.NotebookNode:
    """Write the measured time into the title cell's ``**Runs in:** … on``."""
    cell = notebook.cells[0]
    cell.source = re.sub(r"(\*\*Runs in:\*\* )[^·\n]*", rf"\g<1>{seconds:.0f} s on two CPU cores", cell.source, count=1)
    return notebook


def run(dataset: str, in_place: bool = False, only: list[str] | None = None) -> int:
    """Execute the notebooks in order, one progress line each; return the exit status.

    All of them in place start from empty artifacts.
    """
    folder = artifacts_dir(dataset)
    target = NOTEBOOKS if in_place else folder / "notebooks"
    paths = {path.stem[:2]: path for path in notebook_paths()}
    if unknown := set(only or []) - set(paths):
        raise ValueError(f"no notebook {', '.join(sorted(unknown))}; there are {', '.join(paths)}")
    if in_place and not only and folder.exists():  # committed outputs and times are those of a fresh clone
        if data_dir().resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"the data folder {data_dir()} lies in {folder}, which is to be emptied; move it")
        for made in (folder, *(artifacts_dir(f"{dataset}-{split}") for split in (*SPLITS, "earlier"))):
            shutil.rmtree(made, ignore_errors=True)
    chosen = [path for number, path in paths.items() if not only or number in only]
    target.mkdir(parents=True, exist_ok=True)
    print(f"Running {len(chosen)} notebooks on {dataset}", flush=True)
    failed, seconds, memory = [], {}, {}
    for number, path in enumerate(chosen, 1):
        print(f"[{number}/{len(chosen)}] {path.stem:<34}", end="", flush=True)
        notebook, seconds[path.stem], error = execute(path, dataset)
        memory[path.stem] = notebook.metadata["mib"]
        if error is None or not in_place:
            with write_atomically(target / path.name) as temporary:
                nbformat.write(stamp_running_time(clean(notebook), seconds[path.stem]), temporary)
        print(f"{seconds[path.stem]:7.1f} s  {'FAILED' if error else 'ok'}", flush=True)
        if error:
            failed.append(path.stem)
            print(re.sub(r"\x1b\[[0-9;]*m", "", error), file=sys.stderr)
    if read_results(folder):
        with update_results(folder) as results:
            for name, measured in (("notebook_seconds", seconds), ("notebook_mib", memory)):
                results[name] = {**results.get(name, {}), **measured}
        print(f"\n{plain_scoreboard(results)}")
    if failed:
        print(f"\n{len(failed)} of {len(chosen)} notebooks failed: {', '.join(failed)}", file=sys.stderr)
        return 1
    print(
        f"\nExecuted notebooks: {target}\nAll figures:        {folder / 'results.json'}\nRead on:            make lab"
    )
    return 0


def map_markdown(results: dict) -> str:
    """The table of notebooks with measured times and memory, for the README."""
    lines = ["| notebook | after it you can | runs in | memory |", "|---|---|---:|---:|"]
    for path in notebook_paths():
        title, promise = _title_and_promise(path)
        seconds, mib = (results.get(name, {}).get(path.stem) for name in ("notebook_seconds", "notebook_mib"))
        took, used = f"{seconds:.0f} s" if seconds else "–", f"{mib / 1024:.1f} GiB" if mib else "–"
        lines.append(f"| [{path.stem[:2]} {title}](notebooks/{path.name}) | {promise} | {took} | {used} |")
    return "\n".join(lines)


def times_markdown(results: dict) -> str:
    """How long each notebook takes to read (its own word for it) and to run, for the instructor."""
    lines = ["| notebook | reading, minutes | running, seconds | exercises |", "|---|---:|---:|---:|"]
    for path in notebook_paths():
        cells = nbformat.read(path, as_version=4).cells
        reading = re.search(r"\*\*Reading:\*\* (\d+)", cells[0].source)[1]
        seconds = results.get("notebook_seconds", {}).get(path.stem)
        exercises = sum(len(re.findall(r"^### Exercise \d", cell.source, re.M)) for cell in cells)
        lines.append(
            f"| {path.stem[:2]} {_title_and_promise(path)[0]} | {reading} | {seconds or 0:.0f} | {exercises} |"
        )
    return "\n".join(lines)


def deployment_markdown(results: dict) -> str:
    """What notebooks 06, 08 and 09 measured about getting the model into service, for the README."""
    retrieval, onnx, serving = (results[name] for name in ("retrieval", "onnx", "serving"))
    exact, hits, cold = retrieval["indexes"]["exact"], onnx["hit@10"], serving["hit@10_cold_users"]
    files = ", ".join(f"{name} {onnx['kib'][name]:,.0f} KiB ({hits[name]:.3f})" for name in onnx["kib"])
    rows = {
        "exact search over the catalogue, median": f"{exact['p50_ms']:.2f} ms for {retrieval['items']:,} movies",
        "largest difference between torch and ONNX Runtime": f"{onnx['max_difference']:.0e}",
        "ONNX files of the model, and their Hit@10": files,
        "ONNX Runtime against torch, one user": f"{onnx['speedup_over_torch']['1']:.1f}× faster",
        "Hit@10 as served, from raw ids without torch": f"{serving['hit@10_served']:.3f}",
        "one request, raw ids to titles, median": f"{serving['p50_ms']:.2f} ms",
        "Hit@10 of a user never seen, from the history alone": f"{cold['history only']:.3f}",
        "Hit@10 knowing nothing: falls back to popularity": f"{cold['nothing, popularity']:.3f}",
    }
    return "\n".join(["| into service | measured |", "|---|---:|", *(f"| {k} | {v} |" for k, v in rows.items())])


def _title_and_promise(path: Path) -> tuple[str, str]:
    """From the title cell: the heading without its number, and the sentence that follows "you can"."""
    text = nbformat.read(path, as_version=4).cells[0].source
    title = re.search(r"^#\s+(?:\d+\s*[·:.–-]?\s*)?(.+)$", text, re.M)
    promise = re.search(r"you can\s+(.+?)\.(?:\s|\*|$)", text, re.S)
    if not title or not promise:
        raise ValueError(f"{path.name}: the title cell needs '# NN · Title' and a sentence '… you can ….'")
    return title[1].strip(), " ".join(promise[1].split())


def fill_block(text: str, name: str, content: str) -> str:
    """Put ``content`` between the markers of the README's generated part ``name``."""
    pattern = rf"(<!-- {name}: generated -->\n).*?(<!-- /{name} -->)"
    text, count = re.subn(pattern, lambda m: f"{m[1]}{content}\n{m[2]}", text, flags=re.S)
    if count != 1:
        raise ValueError(f"README.md needs one pair of markers '<!-- {name}: generated -->' … '<!-- /{name} -->'")
    return text


def render_readme(text: str, results: dict) -> str:
    """Fill the README's scoreboard, map of notebooks and table of deployment figures."""
    text = fill_block(text, "scoreboard", scoreboard_markdown(results))
    text = fill_block(text, "map", map_markdown(results))
    return fill_block(text, "deployment", deployment_markdown(results))


def render_times(text: str, results: dict) -> str:
    """Fill the instructor's table of times."""
    return fill_block(text, "times", times_markdown(results))


def refresh_readme() -> None:
    """Copy the fresh figures beside the notebooks, redraw the README's picture and refill its tables."""
    results = read_results(artifacts_dir("ml-100k"))
    draw_scoreboard(results, NOTEBOOKS / "images" / "scoreboard.png")
    with write_atomically(PUBLISHED) as temporary:
        shutil.copyfile(artifacts_dir("ml-100k") / "results.json", temporary)
    for path, render in ((ROOT / "README.md", render_readme), (ROOT / "docs" / "instructor.md", render_times)):
        text = render(path.read_text(encoding="utf-8"), results)
        with write_atomically(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def build(kind: str) -> int:
    """Write the solved course into ``artifacts/solved/``, or nbgrader's source tree into ``artifacts/nbgrader/``.

    Both lie inside the clone, so that the set-up cell finds the package by walking up.
    """
    target = ROOT / "artifacts" / kind
    shutil.rmtree(target, ignore_errors=True)
    for path in notebook_paths():
        notebook = clean(nbformat.read(path, as_version=4))
        written = target / path.name if kind == "solved" else target / "source" / path.stem / path.name
        with write_atomically(written) as temporary:
            nbformat.write(solve(notebook) if kind == "solved" else for_nbgrader(notebook), temporary)
    if kind == "nbgrader":
        # Of itself nbgrader gives a cell 30 s, and cells here train.
        settings = ("c = get_config()", "c.CourseDirectory.course_id = 'dssm'", "c.Execute.timeout = 1800")
        (target / "nbgrader_config.py").write_text("\n".join(settings) + "\n")
    print(f"{len(notebook_paths())} notebooks in {target}")
    return 0
