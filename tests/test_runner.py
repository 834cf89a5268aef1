"""The runner: executing, cleaning, publishing, the solved and the graded course."""

from __future__ import annotations

import base64
import io

import conftest
import nbformat
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from dssm_helpers.course import commands, runner
from dssm_helpers.course.scoreboard import read_results, update_results


def notebook(*sources: str) -> nbformat.NotebookNode:
    cells = [nbformat.v4.new_markdown_cell("# 00 · Title\n\nAfter this you can see it.")]
    return nbformat.v4.new_notebook(cells=cells + [nbformat.v4.new_code_cell(source) for source in sources])


RESULTS = {
    "dataset": "ml-100k",
    "seeds": 2,
    "models": {
        "popularity": {"hit@10": 0.1, "hit@100": 0.3, "ndcg@10": 0.05, "mrr": 0.04, "train_seconds": 0.0},
        "dssm": {"hit@10": 0.25, "hit@100": 0.7, "ndcg@10": 0.13, "mrr": 0.1, "train_seconds": 21.4},
    },
    "notebook_seconds": {"00_first": 12.3},
    "notebook_mib": {"00_first": 512.0},
    "retrieval": {"items": 1000, "indexes": {"exact": {"p50_ms": 0.06}}},
    "onnx": {
        "max_difference": 3.2e-7,
        "kib": {"float32": 1676.0, "int8": 444.0},
        "hit@10": {"float32": 0.24, "int8": 0.23},
        "speedup_over_torch": {"1": 2.2},
    },
    "serving": {
        "hit@10_served": 0.24,
        "p50_ms": 0.35,
        "hit@10_cold_users": {"history only": 0.22, "nothing, popularity": 0.08},
    },
}


PIXEL = base64.b64encode(
    bytes.fromhex(
        "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b550000000a49444154789c6360000000020001e221bc33"
        "0000000049454e44ae426082"
    )
).decode()


@pytest.fixture
def course_folder(tmp_path, monkeypatch):
    """A course of two tiny notebooks, the second of which can be replaced."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    nbformat.write(notebook("print('a')"), folder / "00_first.ipynb")
    nbformat.write(notebook("import os; print(os.environ['DSSM_DATASET'])"), folder / "01_second.ipynb")
    monkeypatch.setattr(runner, "NOTEBOOKS", folder)
    monkeypatch.setenv("DSSM_ARTIFACTS_DIR", str(tmp_path / "artifacts"))
    monkeypatch.setenv("DSSM_DATASET", "synthetic")
    return folder


def test_run_writes_executed_copies_a_line_per_notebook_and_their_seconds(course_folder, tmp_path, capsys):
    before = (course_folder / "01_second.ipynb").read_bytes()
    folder = tmp_path / "artifacts" / "synthetic"
    with update_results(folder) as results:
        results.update({**RESULTS, "dataset": "synthetic"})
    assert runner.run("synthetic") == 0
    copy = nbformat.read(folder / "notebooks" / "01_second.ipynb", as_version=4)
    assert copy.cells[1].outputs[0].text == "synthetic\n"
    assert (course_folder / "01_second.ipynb").read_bytes() == before
    assert set(read_results(folder)["notebook_seconds"]) == {"00_first", "01_second"}
    assert min(read_results(folder)["notebook_mib"].values()) > 10
    assert "[2/2] 01_second" in capsys.readouterr().out


def test_a_failing_notebook_fails_the_run_and_keeps_the_committed_one(course_folder, capsys):
    nbformat.write(notebook("1 / 0"), course_folder / "01_second.ipynb")
    before = (course_folder / "01_second.ipynb").read_bytes()
    assert runner.run("synthetic", in_place=True) == 1
    assert (course_folder / "01_second.ipynb").read_bytes() == before
    output = capsys.readouterr()
    assert "FAILED" in output.out
    assert "ZeroDivisionError" in output.err


def test_committed_outputs_come_from_empty_artifacts(course_folder, tmp_path):
    cached = tmp_path / "artifacts" / "synthetic" / "model"
    cached.parent.mkdir(parents=True)
    cached.touch()
    for options in ({}, {"in_place": True, "only": ["01"]}):
        assert runner.run("synthetic", **options) == 0
        assert cached.exists()
    assert runner.run("synthetic", in_place=True) == 0
    assert not cached.exists()


@pytest.mark.parametrize("inside", ["", "data"])
def test_emptying_the_artifacts_never_takes_the_data_along(course_folder, tmp_path, monkeypatch, inside):
    data = tmp_path / "artifacts" / "synthetic" / inside
    (data / "ml-100k").mkdir(parents=True)
    monkeypatch.setenv("DSSM_DATA_DIR", str(data))
    with pytest.raises(ValueError, match="which is to be emptied; move it"):
        runner.run("synthetic", in_place=True)
    assert (data / "ml-100k").exists()


@pytest.mark.parametrize("damaged", ['{"models": {', "[]"])
def test_damaged_results_do_not_spoil_a_run_and_are_not_lost(course_folder, tmp_path, capsys, damaged):
    path = tmp_path / "artifacts" / "synthetic" / "results.json"
    path.parent.mkdir(parents=True)
    path.write_text(damaged)
    assert runner.run("synthetic", only=["00"]) == 0
    shown = capsys.readouterr().out
    assert "is damaged" in shown
    assert "01_second" not in shown
    assert path.read_text() == damaged


def test_unknown_notebook_numbers_are_refused(course_folder):
    with pytest.raises(ValueError, match="00, 01"):
        runner.run("synthetic", only=["07"])


def test_clean_keeps_the_last_state_of_a_progress_bar():
    node = notebook("x")
    pieces = ["  0%|", "\r 50%|", "\r100%| done\n", "next\n"]  # each redraw arrives as an output of its own
    node.cells[1].outputs = [nbformat.v4.new_output("stream", name="stderr", text=piece) for piece in pieces]
    node.cells[1].metadata["execution"] = {"iopub.execute_input": "2020-01-01"}
    node.metadata["widgets"] = {"state": {}}
    runner.clean(node)
    assert len(node.cells[1].outputs) == 1
    assert node.cells[1].outputs[0].text == "100%| done\nnext\n"
    assert "execution" not in node.cells[1].metadata
    assert "widgets" not in node.metadata


def test_clean_shrinks_pictures_once_and_keeps_their_size():
    full = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 4), dtype=np.uint8)
    Image.fromarray(noise, "RGBA").save(full, "PNG")
    node = notebook("x")
    data = {"image/png": base64.b64encode(full.getvalue()).decode()}
    node.cells[1].outputs = [nbformat.v4.new_output("display_data", data=data)]
    before = len(data["image/png"])
    shown = runner.clean(node).cells[1].outputs[0].data["image/png"]
    assert len(shown) < before / 2
    assert Image.open(io.BytesIO(base64.b64decode(shown))).size == (60, 40)
    assert runner.clean(node).cells[1].outputs[0].data["image/png"] == shown


def test_clean_folds_titled_cells_and_hands_the_alt_text_to_the_book():
    node = notebook("# @title Draw it\nx", "y")
    node.cells[2].metadata["lines_to_next_cell"] = 2
    shown = nbformat.v4.new_output("display_data", data={"image/png": PIXEL}, metadata={"image/png": {"alt": "a dot"}})
    node.cells[1].outputs = [shown]
    _, drawn, plain = runner.clean(node).cells
    assert drawn.metadata.jupyter.source_hidden
    assert drawn.metadata.tags == ["hide-input"]
    assert drawn.metadata.mystnb.image.alt == "a dot"
    assert plain.metadata == {}


OPEN = 'def f(x):\n    """Twice x."""\n    raise NotImplementedError("multiply by two")'
SOLUTION = """<details><summary>Solution</summary>

```python
def f(x):
    return 2 * x
```

Because.

</details>"""


@pytest.mark.parametrize("kind", ["solved", "nbgrader"])
def test_the_solved_and_the_graded_course_lie_where_their_notebooks_find_the_package(
    course_folder, monkeypatch, tmp_path, kind
):
    set_up = nbformat.read(conftest.notebook_paths()[0], as_version=4).cells[1].source
    node = notebook(set_up, "def check_f(f):\n    return f(2) == 4", OPEN, "check_f(f)", "print(root, f(2))")
    node.cells.insert(5, nbformat.v4.new_markdown_cell(SOLUTION))
    nbformat.write(node, course_folder / "00_first.ipynb")
    (tmp_path / "dssm_helpers").symlink_to(ROOT / "dssm_helpers")
    monkeypatch.setattr(runner, "ROOT", tmp_path)
    assert commands.main([kind]) == 0
    (path,) = (tmp_path / "artifacts" / kind).rglob("00_first.ipynb")
    executed, _, error = runner.execute(path, "synthetic")
    assert error is None
    assert executed.cells[-1].outputs[0].text == f"{tmp_path} 4\n"


def test_readme_is_filled_between_its_markers(course_folder):
    names = ("scoreboard", "map", "deployment")
    text = "a\n" + "b\n".join(f"<!-- {name}: generated -->\nold\n<!-- /{name} -->\n" for name in names)
    filled = runner.render_readme(text, RESULTS)
    assert "old" not in filled
    assert "| [00 Title](notebooks/00_first.ipynb) | see it | 12 s | 0.5 GiB |" in filled
    assert "| ONNX files of the model, and their Hit@10 | float32 1,676 KiB (0.240), int8 444 KiB (0.230) |" in filled
    assert runner.render_readme(filled, RESULTS) == filled
    with pytest.raises(ValueError, match="scoreboard"):
        runner.render_readme("no markers", RESULTS)


def test_running_time_is_written_into_the_title_cell():
    node = notebook("x")
    node.cells[0].source += "\n**Reading:** 5 minutes · **Runs in:** - on two CPU cores"
    runner.stamp_running_time(node, 41.7)
    assert node.cells[0].source.endswith("**Runs in:** 42 s on two CPU cores")
    runner.stamp_running_time(node, 130.0)
    assert node.cells[0].source.endswith("**Runs in:** 130 s on two CPU cores")


def test_command_line_help_and_bad_names(capsys):
    with pytest.raises(SystemExit) as ended:
        commands.main(["run", "--dataset", "netflix"])
    assert ended.value.code == 2
    assert "ml-100k" in capsys.readouterr().err
