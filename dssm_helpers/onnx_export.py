"""Towers as ONNX files, and a session that needs neither torch nor this course's model code (notebook 08).

:func:`export_onnx` needs torch, onnx and onnxscript; :func:`compress_onnx` needs onnx and onnxruntime;
:class:`OnnxTower` runs with NumPy and onnxruntime alone, so this module imports everything heavier inside functions.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .files import write_atomically

if TYPE_CHECKING:
    from .model import DSSM

OPSET = 18  # the operator set the exporter writes natively; onnxruntime has run it since 1.14
PARTS = {"model": "score", "user": "user_vector", "item": "item_vector"}  # what is exported → its output's name
VARIANTS = ("int8", "fp16")
METADATA_KEY = "dssm"


def export_onnx(model: DSSM, path: str | Path, part: str = "model", *, opset: int = OPSET) -> Path:
    """Write a model or one of its towers as a single ONNX file (notebook 08, "Export").

    The file has one input per feature, of the feature's name: int64 ``[batch]``, or ``[batch, length]`` for a
    sequence. Batch size and sequence length are free, 0 included. One output: ``user_vector`` or ``item_vector``
    ``[batch, D]``, or ``score [batch]``. The vocabulary sizes travel in the file, for :class:`OnnxTower` to check ids.

    Args:
        model: exported in evaluation mode (dropout off); its mode is restored afterwards.
        path: the file to write, complete or not at all. Nothing is written beside it.
        part: ``"model"``, ``"user"`` or ``"item"``.
        opset: ONNX operator set.

    Raises:
        ValueError: an unknown part.
        ImportError: onnx or onnxscript is not installed.
    """
    if part not in PARTS:
        raise ValueError(f"unknown part {part!r}; choose from {', '.join(PARTS)}")
    onnx = _require("onnx", "export")
    _require("onnxscript", "export")
    import torch

    from .features import SequenceFeature

    towers = {"model": [model.user_tower, model.item_tower], "user": [model.user_tower], "item": [model.item_tower]}
    module = {"model": model, "user": model.user_tower, "item": model.item_tower}[part]
    features = {feature.name: feature for tower in towers[part] for feature in tower.embedding.features}
    device = next(model.parameters()).device
    # Two rows and three places: the exporter takes a size of 0 or 1 for a constant.
    example, axes = {}, {}
    for name, feature in features.items():
        sequence = isinstance(feature, SequenceFeature)
        example[name] = torch.ones((2, 3) if sequence else (2,), dtype=torch.int64, device=device)
        axes[name] = {0: "batch", 1: name} if sequence else {0: "batch"}
    with evaluation_mode(model), _quiet():
        program = torch.onnx.export(
            module,
            (),
            kwargs={"batch": example},
            dynamic_shapes={"batch": axes},
            input_names=list(features),
            output_names=[PARTS[part]],
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
    proto = program.model_proto
    for node in proto.graph.node:  # stack traces of the machine that exported
        del node.metadata_props[:]
    del proto.metadata_props[:]
    note = {
        "part": part,
        "vocab_sizes": {name: feature.vocab_size for name, feature in features.items()},
        "dim": model.dim,
        "temperature": model.temperature,
    }
    onnx.helper.set_model_props(proto, {METADATA_KEY: json.dumps(note)})
    onnx.checker.check_model(proto, full_check=True)
    with write_atomically(path) as temporary:
        onnx.save_model(proto, temporary)
    return Path(path)


@contextmanager
def evaluation_mode(model: Any) -> Iterator[None]:
    """Dropout off inside the block; every module's mode is put back afterwards, also after an error."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def compress_onnx(source: str | Path, target: str | Path, variant: str) -> Path:
    """Write a smaller copy of an exported file (notebook 08, "Smaller").

    Args:
        variant: ``"fp16"`` stores every weight in two bytes and computes in float32 as before. ``"int8"`` stores one
            byte per weight with a scale (per tensor for tables, per column for layers) and multiplies in integers.

    Raises:
        ValueError: an unknown variant.
        FileNotFoundError: no ``source``.
    """
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; choose from {', '.join(VARIANTS)}")
    if not Path(source).exists():
        raise FileNotFoundError(f"no ONNX file at {source}; make it with export_onnx")
    onnx = _require("onnx", "compression")
    with write_atomically(target) as temporary, _quiet():
        if variant == "fp16":
            onnx.save_model(_half_weights(onnx.load(source)), temporary)
        else:
            _require("onnxruntime", "int8")
            from onnxruntime.quantization import QuantType, quantize_dynamic

            quantize_dynamic(source, temporary, per_channel=True, weight_type=QuantType.QInt8)
        onnx.checker.check_model(onnx.load(temporary))
    return Path(target)


def _half_weights(proto: Any) -> Any:
    """Float weights become half precision with a cast back to float behind each: half the file, the same operators.

    Processors without half-precision arithmetic gain nothing from computing in it, so only storage changes.
    """
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for weight in proto.graph.initializer:
        if weight.data_type != TensorProto.FLOAT or np.prod(weight.dims) < 64:  # constants of the graph stay exact
            continue
        name, values = weight.name, numpy_helper.to_array(weight)
        weight.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}.fp16"))
        casts.append(helper.make_node("Cast", [f"{name}.fp16"], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return proto


class OnnxTower:
    """An exported tower (or model) in onnxruntime. Needs NumPy and onnxruntime; calls may come from several threads.

    Attributes:
        part: ``"user"``, ``"item"`` or ``"model"``. dim: size of the vectors.
        vocab_sizes: input name → number of valid ids.
        ranks: input name → 1 for ``[B]``, 2 for ``[B, L]``.
    """

    def __init__(self, session: Any, note: Mapping[str, Any]):
        self.session = session
        self.part: str = note["part"]
        self.dim: int = note["dim"]
        self.temperature: float = note["temperature"]
        self.vocab_sizes: dict[str, int] = note["vocab_sizes"]
        # An input the graph does not use (none in this course's models) may be missing from the session.
        self.ranks = {value.name: len(value.shape) for value in session.get_inputs()}

    @classmethod
    def load(cls, path: str | Path, *, threads: int = 1) -> OnnxTower:
        """Open a file of :func:`export_onnx` or :func:`compress_onnx`.

        Args:
            threads: per call. One is best for single requests; a server runs several calls side by side.

        Raises:
            FileNotFoundError: no such file.
            ValueError: it is no ONNX model, or not one this course exported.
            ImportError: onnxruntime is not installed.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"no ONNX file at {path}; make it with export_onnx")
        runtime = _require("onnxruntime", "running a tower")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads leave the core alone
        try:
            session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own classes share no public base
            raise ValueError(f"{path} is not a readable ONNX model: {str(error).splitlines()[0][:200]}") from error
        note = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        if note is None:
            raise ValueError(f"{path} carries no vocabulary sizes; it was not written by export_onnx")
        return cls(session, json.loads(note))

    def __repr__(self) -> str:
        return f"OnnxTower({self.part!r}, inputs={list(self.ranks)}, dim={self.dim})"

    def __call__(self, batch: Mapping[str, Any]) -> np.ndarray:
        """Ids by input name, ``[B]`` or ``[B, L]`` integers → vectors ``[B, D]`` (scores ``[B]`` of a whole model).

        Raises:
            KeyError: an input is missing or unknown.
            ValueError: not whole numbers, a wrong number of axes, unequal batch sizes, or an id outside its
                vocabulary. onnxruntime itself would wrap -1 around to the last row in silence.
        """
        return self.session.run(None, self.checked(batch))[0]

    def checked(self, batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The inputs as int64 arrays after every check of :meth:`__call__`."""
        if batch.keys() != self.ranks.keys():
            missing, extra = sorted(self.ranks.keys() - batch.keys()), sorted(batch.keys() - self.ranks.keys())
            parts = [f"missing {', '.join(missing)}"] if missing else []
            parts += [f"unknown {', '.join(extra)}"] if extra else []
            raise KeyError(f"inputs: {'; '.join(parts)}; this {self.part} takes {', '.join(self.ranks)}")
        inputs, rows = {}, None
        for name, rank in self.ranks.items():
            ids = np.asarray(batch[name])
            if ids.dtype.kind not in "iu" and ids.size:
                raise ValueError(f"input {name!r}: expected whole numbers (indices of its vocabulary), got {ids.dtype}")
            if ids.ndim != rank:
                shape = "[batch]" if rank == 1 else "[batch, length]"
                raise ValueError(f"input {name!r}: expected shape {shape}, got {list(ids.shape)}")
            if rows is not None and len(ids) != rows:
                raise ValueError(f"input {name!r} has {len(ids)} rows, the inputs before it have {rows}")
            rows = len(ids)
            if ids.size and not (ids.min() >= 0 and ids.max() < self.vocab_sizes[name]):
                place = np.argwhere((ids < 0) | (ids >= self.vocab_sizes[name]))[0]
                raise ValueError(
                    f"input {name!r}: id {ids[tuple(place)]} in row {place[0]} is outside 0 … "
                    f"{self.vocab_sizes[name] - 1} (0 padding, 1 unknown); encode raw values with the vocabulary "
                    "the model was trained with"
                )
            if rank == 2 and ids.shape[1] == 0:  # one padded place means the same, and max pooling needs a place
                ids = np.zeros((rows, 1))
            inputs[name] = ids.astype(np.int64, copy=False)
        return inputs


def _require(package: str, purpose: str) -> Any:
    import importlib

    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(f"{purpose} needs {package}: pip install {package}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporter and quantiser report their progress and their own deprecations; none of it is for the caller."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
