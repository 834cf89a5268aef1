"""onnx_export.py: parity with torch, one file, dynamic shapes, refused ids, no torch at run time (notebook 08)."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import nullcontext
from itertools import product

import numpy as np
import pytest
import torch
from conftest import ROOT, make_model, notebook_definitions

from dssm_helpers.model import evaluation_mode
from dssm_helpers.onnx_export import PARTS, OnnxTower, compress_onnx, export_onnx
from dssm_helpers.vocabulary import Vocabulary

onnx = pytest.importorskip("onnx", reason="pip install onnx onnxscript onnxruntime")
onnxruntime = pytest.importorskip("onnxruntime", reason="pip install onnxruntime")


@pytest.fixture(scope="module")
def model(data):
    return make_model(data)


@pytest.fixture(scope="module")
def exported(model, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    for part in PARTS:
        export_onnx(model, folder / f"{part}.onnx", part, data.vocabularies)
    return folder


def random_batch(tower, rows, length):
    """Any valid ids, padding and unknown included; padding ends a sequence, and each sequence has its own length."""
    rng, batch = np.random.default_rng(0), {}
    for name, rank in tower.ranks.items():
        slots = length if name == "history" else 60 - length
        batch[name] = rng.integers(0, tower.vocab_sizes[name], (rows, slots) if rank == 2 else rows)
        if rank == 2:
            batch[name][np.arange(slots) >= rng.integers(0, slots + 1, (rows, 1))] = 0
    return batch


def in_torch(model, part, batch):
    """The answer of the model, with one padded slot more, which changes nothing: max pooling needs a slot."""
    module = model if part == "model" else getattr(model, f"{part}_tower")
    with torch.inference_mode():
        return module({n: torch.from_numpy(np.pad(x, [(0, 0), (0, 1)][: x.ndim])) for n, x in batch.items()}).numpy()


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("pooling", [("mean", "sum", "recency"), ("max", "recency:3")], ids=str)
def test_parity_with_torch_at_every_size(data, tmp_path, pooling, part):
    model = make_model(data, pooling)
    tower = OnnxTower.load(export_onnx(model, tmp_path / "tower.onnx", part))
    for rows, length in product([0, 1, 7, 500], [0, 1, 13, 50, 60]):
        batch = random_batch(tower, rows, length)
        expected = in_torch(model, part, batch)
        got = tower({name: ids.astype(np.int32) for name, ids in batch.items()})  # other integers will do
        assert got.shape == expected.shape == ((rows,) if part == "model" else (rows, model.dim))
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


def test_one_file_with_feature_names_free_axes_and_no_machine_paths(exported):
    assert sorted(path.name for path in exported.iterdir()) == ["item.onnx", "model.onnx", "user.onnx"]
    graph = onnx.load(exported / "user.onnx").graph
    axes = {value.name: [axis.dim_param for axis in value.type.tensor_type.shape.dim] for value in graph.input}
    assert axes["gender"] == ["batch"]
    assert axes["history"] == ["batch", "history"]
    assert [value.name for value in graph.output] == ["user_vector"]
    assert str(ROOT).encode() not in (exported / "user.onnx").read_bytes()


def test_export_switches_dropout_off_restores_every_mode_and_reads_a_learned_temperature(data, tmp_path):
    model = make_model(data).train()
    model.item_tower.eval()
    model.temperature = torch.nn.Parameter(torch.tensor(0.25))
    modes = [module.training for module in model.modules()]
    whole = OnnxTower.load(export_onnx(model, tmp_path / "model.onnx").read_bytes())  # the bytes are enough
    assert [module.training for module in model.modules()] == modes
    assert whole.temperature == 0.25
    batch = random_batch(whole, 5, 4)
    with evaluation_mode(model):
        assert np.abs(whole(batch) - in_torch(model, "model", batch)).max() <= 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"age": [-1, 2]}, "'age': id -1"),
        ({"history": [[3, 2], [4, 122]]}, "'history': id 122"),
        ({"zip": [2.0, 3.0]}, "'zip': expected whole numbers"),
        ({"gender": [True, False]}, "'gender': expected whole numbers"),
        ({"history": [2, 3]}, "'history': expected"),
        ({"age": [2]}, "'age': 1"),
    ],
)
def test_bad_input_is_refused_before_the_session(exported, change, message):
    tower = OnnxTower.load(exported / "user.onnx")
    with pytest.raises(ValueError, match=message):
        tower(random_batch(tower, 2, 2) | change)


@pytest.mark.parametrize(("variant", "smaller", "off"), [("fp16", 0.75, 2e-2), ("int8", 0.65, 0.3)])
def test_variants_are_smaller_and_close(exported, tmp_path, variant, smaller, off):
    target = compress_onnx(exported / "user.onnx", tmp_path / "small.onnx", variant)
    assert target.stat().st_size < smaller * (exported / "user.onnx").stat().st_size
    full, small = OnnxTower.load(exported / "user.onnx"), OnnxTower.load(target)
    assert (small.vocab_sizes, small.vocab_digests, small.ranks) == (full.vocab_sizes, full.vocab_digests, full.ranks)
    batch = random_batch(full, 200, 9)
    assert 0 < np.abs(small(batch) - full(batch)).max() < off


@pytest.mark.parametrize(
    ("part", "column", "refused"),
    [("user", "item_id", True), ("user", "zip", True), ("user", "year", False), ("item", "year", True)],
)
def test_another_vocabulary_of_the_same_size_is_refused_where_it_is_read(exported, data, part, column, refused):
    old = data.vocabularies[column]
    new = Vocabulary(column, [*old.values[1:], f"{old.values[-1]}z" if old.is_text else old.values[-1] + 1])
    with pytest.raises(ValueError, match=f"vocabulary of {column}:") if refused else nullcontext():
        OnnxTower.load(exported / f"{part}.onnx", {**data.vocabularies, column: new})


def test_unknown_names_and_foreign_files_are_refused(model, exported, tmp_path):
    with pytest.raises(ValueError, match="users"):
        export_onnx(model, tmp_path / "x.onnx", "users")
    with pytest.raises(ValueError, match="int4"):
        compress_onnx(exported / "user.onnx", tmp_path / "x.onnx", "int4")
    proto = onnx.load(exported / "user.onnx")
    del proto.metadata_props[:]
    with pytest.raises(ValueError, match="export_onnx"):
        OnnxTower.load(proto.SerializeToString())


def test_a_tower_runs_where_torch_cannot_be_imported(model, exported, tmp_path):
    batch = random_batch(OnnxTower.load(exported / "user.onnx"), 4, 6)
    code = (
        "import json, sys\n"
        "for name in ('torch', 'pandas', 'onnx', 'onnxscript'): sys.modules[name] = None\n"
        "from dssm_helpers.onnx_export import OnnxTower\n"
        "print(OnnxTower.load(sys.argv[1])(json.load(sys.stdin)).tolist())\n"
    )
    command = [sys.executable, "-c", code, exported / "user.onnx"]
    given = json.dumps({name: ids.tolist() for name, ids in batch.items()}).encode()
    vectors = json.loads(subprocess.check_output(command, input=given, cwd=ROOT, timeout=120))
    assert np.abs(vectors - in_torch(model, "user", batch)).max() <= 1e-5


def test_the_notebook_exports_the_same(model, exported, tmp_path):
    by_hand = notebook_definitions("08", "example_for", "export_tower")["export_tower"]
    by_hand(model.user_tower, tmp_path / "by_hand.onnx", "user_vector")
    session = onnxruntime.InferenceSession(tmp_path / "by_hand.onnx")
    tower = OnnxTower.load(exported / "user.onnx")
    batch = random_batch(tower, 5, 12)
    assert session.run(None, batch)[0] == pytest.approx(tower(batch), abs=1e-6)
