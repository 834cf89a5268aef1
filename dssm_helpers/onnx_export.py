"""Towers as ONNX files, and a session that needs neither torch nor this course's model code (notebook 08).

Each function imports the libraries it needs: :class:`OnnxTower` runs with NumPy and onnxruntime alone.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .files import digest, write_atomically

if TYPE_CHECKING:
    from torch import nn

    from .model import DSSM
    from .vocabulary import Vocabulary

OPSET = 18  # the operator set the exporter writes natively; onnxruntime has run it since 1.14
PARTS = {"model": "score", "user": "user_vector", "item": "item_vector"}  # what is exported → its output's name
VARIANTS = ("int8", "fp16")
METADATA_KEY = "dssm_2"  # another number for another content


def export_onnx(
    model: DSSM, path: str | Path, part: str = "model", vocabularies: Mapping[str, Vocabulary] | None = None
) -> Path:
    """Write a model or one of its towers as a single ONNX file, with dropout off (notebook 08, "Export").

    One input per feature, of its name: int64 ``[batch]``, or ``[batch, length]`` for a sequence; both may be 0. One
    output, named in :data:`PARTS`: vectors ``[batch, D]`` or scores ``[batch]``. The vocabulary sizes travel in the
    file, and a hash of each of the ``vocabularies``, for :class:`OnnxTower` to check.
    """
    if part not in PARTS:
        raise ValueError(f"unknown part {part!r}; choose from {', '.join(PARTS)}")
    import torch

    from .features import SequenceFeature, column_of
    from .model import features_of

    module = {"user": model.user_tower, "item": model.item_tower}.get(part, model)
    features = features_of(module)
    example, axes = {}, {}
    for name, feature in features.items():
        sequence = isinstance(feature, SequenceFeature)
        # Two rows and three slots: the exporter takes a size of 0 or 1 for a constant.
        example[name] = next(model.parameters()).new_ones((2, 3) if sequence else 2, dtype=torch.int64)
        axes[name] = {0: "batch", 1: name} if sequence else {0: "batch"}
    sizes = {name: feature.vocab_size for name, feature in features.items()}
    read = {column_of(feature) for feature in features.values()}
    digests = {name: digest(v.values.tolist()) for name, v in (vocabularies or {}).items() if name in read}
    temperature = float(torch.as_tensor(model.temperature).detach())  # which somebody may have made a parameter
    note = {"part": part, "dim": model.dim, "temperature": temperature, "vocab_sizes": sizes, "vocab_digests": digests}
    return write_onnx(module, path, {"batch": example}, {"batch": axes}, list(features), PARTS[part], note)


def write_onnx(
    module: nn.Module,
    path: str | Path,
    example: Mapping[str, Any],
    axes: Mapping[str, Any],
    inputs: Sequence[str],
    output: str,
    note: Mapping[str, Any],
) -> Path:
    """Write any module as a single ONNX file, with dropout off; ``note`` travels in it.

    ``example`` holds the arguments of its forward by name, ``axes`` the names of their free axes.
    """
    import onnx
    import torch

    from .model import evaluation_mode

    with evaluation_mode(module), _quiet():
        proto = torch.onnx.export(
            module,
            kwargs=dict(example),
            dynamic_shapes=dict(axes),
            input_names=list(inputs),
            output_names=[output],
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        ).model_proto
    for node in proto.graph.node:  # stack traces of the machine that exported
        del node.metadata_props[:]
    del proto.metadata_props[:]
    onnx.helper.set_model_props(proto, {METADATA_KEY: json.dumps(note)})
    onnx.checker.check_model(proto, full_check=True)
    with write_atomically(path) as temporary:
        onnx.save_model(proto, temporary)
    return Path(path)


def open_session(source: str | Path | bytes) -> Any:
    """An onnxruntime session of a file, a path or its bytes, on one thread."""
    import onnxruntime

    onnxruntime.disable_telemetry_events()  # which its builds for Windows send
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # best for single requests; a server runs several calls side by side
    options.log_severity_level = 3
    content = source if isinstance(source, bytes) else Path(source).read_bytes()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def compress_onnx(source: str | Path, target: str | Path, variant: str) -> Path:
    """Write a smaller copy of an exported file (notebook 08, "Smaller").

    ``"fp16"`` stores every weight in two bytes and computes in float32: few processors have half-precision arithmetic.
    ``"int8"`` stores one byte per weight with a scale (per tensor for tables, per column for layers) and multiplies in
    integers.
    """
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; choose from {', '.join(VARIANTS)}")
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    from onnxruntime.quantization import quantize_dynamic

    proto = onnx.load(source)
    with write_atomically(target) as temporary, _quiet():
        if variant == "int8":
            del proto.graph.value_info[:]  # inferred anew: a transposed weight may have kept its shape of before
            quantize_dynamic(proto, temporary, per_channel=True)
        else:
            for weight in proto.graph.initializer:
                if weight.data_type == TensorProto.FLOAT and np.prod(weight.dims) >= 64:  # constants stay exact
                    name, half = weight.name, numpy_helper.to_array(weight).astype(np.float16)
                    weight.CopyFrom(numpy_helper.from_array(half, f"{name}.fp16"))
                    cast = helper.make_node("Cast", [f"{name}.fp16"], [name], to=TensorProto.FLOAT)
                    proto.graph.node.insert(0, cast)
            onnx.save_model(proto, temporary)
    return Path(target)


@dataclass(frozen=True)
class OnnxTower:
    """An exported tower (or model) in onnxruntime; calls may come from several threads."""

    session: Any = field(repr=False)
    ranks: dict[str, int]  # input name → 1 for [B], 2 for [B, L]
    part: str  # a key of PARTS
    dim: int
    temperature: float
    vocab_sizes: dict[str, int]  # input name → number of valid ids
    vocab_digests: dict[str, str]  # column → hash of the vocabulary it was trained with, as far as they were given

    @classmethod
    def load(cls, source: str | Path | bytes, vocabularies: Mapping[str, Vocabulary] | None = None) -> OnnxTower:
        """Open an exported or compressed file, a path or its bytes. Another file or vocabulary is a ValueError."""
        session = open_session(source)
        note = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        if note is None:
            raise ValueError("this ONNX file carries no vocabulary sizes; make it with export_onnx")
        tower = cls(session, {value.name: len(value.shape) for value in session.get_inputs()}, **json.loads(note))
        now = {name: digest(v.values.tolist()) for name, v in (vocabularies or {}).items()}
        if other := [name for name, known in tower.vocab_digests.items() if now.get(name, known) != known]:
            names = ", ".join(other)
            raise ValueError(f"the {tower.part} tower knows another vocabulary of {names}: ids would mean other rows")
        return tower

    def __call__(self, batch: Mapping[str, Any]) -> np.ndarray:
        """Ids by input name, ``[B]`` or ``[B, L]`` integers → vectors ``[B, D]`` (scores ``[B]`` of a whole model).

        An input that is missing is a KeyError. A ValueError: not whole numbers, a wrong number of axes, unequal batch
        sizes, or an id outside its vocabulary (onnxruntime itself would take the last row for -1, in silence).
        """
        inputs = {}
        for name, rank in self.ranks.items():
            ids, size = np.asarray(batch[name]), self.vocab_sizes[name]
            if ids.ndim != rank or (ids.size and ids.dtype.kind not in "iu"):
                shape = ["batch", "length"][:rank]
                raise ValueError(f"input {name!r}: expected whole numbers {shape}, got {ids.dtype} {list(ids.shape)}")
            bad = ids[ids.astype(np.uint64) >= size]  # as which a negative one is huge
            if bad.size:
                raise ValueError(f"input {name!r}: id {bad[0]} is outside 0 … {size - 1}; use the model's vocabulary")
            if ids.shape[1:] == (0,):  # one padded slot means the same, and max pooling needs a slot
                ids = np.zeros((len(ids), 1))
            inputs[name] = ids.astype(np.int64, copy=False)
        rows = {name: len(ids) for name, ids in inputs.items()}
        if len(set(rows.values())) > 1:
            raise ValueError(f"all inputs need the same number of rows, got {rows}")
        return self.session.run(None, inputs)[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporter and quantiser report their progress and their own deprecations; none of it is for the caller."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)
