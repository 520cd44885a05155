"""Writes an ONNX file with what a reader needs to use it, and compares it with the network."""

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx

from asose_jax.exports import comparison
from asose_jax.exports.onnx_graph import IMAGES, LOGITS, OPSET
from asose_jax.runtime import workdir

_INTERFACE = {
    'input': f'{IMAGES}: uint8 [N, H, W, C], pixel values 0..255, any N; normalisation is inside',
    'output': 'probabilities and logits: float32 [N, classes]',
    'layout': 'NHWC',
    'dtype': 'float32',
    'opset': OPSET,
}


def write(
    path: pathlib.Path,
    model: onnx.ModelProto,
    about: Mapping[str, Any],
    logits: Callable[[np.ndarray], Any],
) -> None:
    """Checks and writes a model, and compares it with the network, see `comparison.compare`.

    Args:
      path: of the file.
      model: of a whole network, see `translation.add_network`.
      about: entries of `metadata_props`; JSON-compatible values by name.
      logits: maps images uint8 `[N, H, W, C]` to the logits of the network, `[N, classes]`.

    Raises:
      OSError: it cannot be written; it names the path.
    """
    for key, value in {**_INTERFACE, **about}.items():
        text = value if isinstance(value, str) else json.dumps(value)
        model.metadata_props.add(key=key, value=text)
    onnx.checker.check_model(model, full_check=True)
    with workdir.naming(path):
        path.write_bytes(model.SerializeToString())
    shape = [each.dim_value for each in model.graph.input[0].type.tensor_type.shape.dim][1:]
    comparison.compare(path, 'onnxruntime', shape, logits, lambda: runner(path, LOGITS))


def runner(path: pathlib.Path, output: str) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function that runs a file on the CPU and returns one of its outputs."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    return lambda images: np.asarray(session.run([output], {IMAGES: images})[0])
