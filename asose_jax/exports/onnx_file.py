"""Writes an ONNX file with what a reader needs to use it, and compares it with the network."""

import json
import logging
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx

from asose_jax.exports import packages
from asose_jax.exports.onnx_graph import IMAGES, LOGITS, OPSET
from asose_jax.runtime import workdir

logger = logging.getLogger('asose_jax')

_COMPARED_IMAGES = 16
# Rounding leaves about 1e-6 of the largest logit; a wrong layer leaves far more than this.
_TOLERANCE = 1e-4
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
    """Checks and writes a model, runs it if onnxruntime is installed, and logs its error.

    Args:
      path: of the file.
      model: result of `onnx_network.build`.
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
    if packages.is_installed('onnxruntime'):
        shape = [each.dim_value for each in model.graph.input[0].type.tensor_type.shape.dim]
        _compare(path, (_COMPARED_IMAGES, *shape[1:]), logits)
    else:
        logger.warning(
            '%s was not run, since onnxruntime is not installed: pip install onnxruntime', path
        )


def runner(path: pathlib.Path, output: str) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function that runs a file on the CPU and returns one of its outputs."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    return lambda images: np.asarray(session.run([output], {IMAGES: images})[0])


def _compare(
    path: pathlib.Path, shape: tuple[int, ...], logits: Callable[[np.ndarray], Any]
) -> None:
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    expected, found = np.asarray(logits(images)), runner(path, LOGITS)(images)
    difference = float(np.abs(found - expected).max() / np.abs(expected).max())
    logger.info(
        '%s: on %d random images, no logit differs from the network by more than %.1e of the '
        'largest',
        path.name,
        len(images),
        difference,
    )
    if not difference <= _TOLERANCE:  # also where it is not a number
        logger.warning(
            '%s computes something else than the network. Do not use it; please report this.', path
        )
