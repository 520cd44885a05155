"""Quantises an ONNX file to 8-bit integers, and measures what that costs.

Static quantisation: ranges of all activations are those that training images have.
"""

import json
import logging
import pathlib
import tempfile
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import helper

from asose_jax.data.dataset import Dataset
from asose_jax.exports import onnx_file
from asose_jax.exports.onnx_graph import IMAGES, PROBABILITIES
from asose_jax.runtime import workdir

logger = logging.getLogger('asose_jax')

_CALIBRATION_IMAGES = 512
_OPERATORS = [
    *('Conv', 'Relu', 'MaxPool', 'AveragePool', 'GlobalAveragePool', 'BatchNormalization'),
    *('Add', 'Mul', 'Concat', 'Gemm'),
]
_EXACT = ['normalise/mul']  # its input is uint8 already
_BATCH = 128  # images that are read and run at once


def write(source: pathlib.Path, target: pathlib.Path, data: Dataset) -> None:
    """Writes the quantised network, and a JSON file of the same name with accuracies and sizes.

    Weights get a range for each channel of the output, activations one for each array. Input and
    outputs of the file stay what they are.

    Args:
      source: ONNX file of `onnx_file.write`.
      target: of the quantised file.
      data: what the network was trained on; the ranges are those of up to 512 training images,
        accuracies are those of the test split.

    Raises:
      OSError: a file cannot be written; it names the path.
    """
    from onnxruntime import quantization

    chosen = np.random.default_rng(0).permutation(data.train)[:_CALIBRATION_IMAGES]
    batches = (pixels for pixels, _ in _batches(data, chosen))

    class Reader(quantization.CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            pixels = next(batches, None)
            return None if pixels is None else {IMAGES: pixels}

    with tempfile.TemporaryDirectory() as scratch, workdir.naming(target):
        shaped = pathlib.Path(scratch) / 'shaped.onnx'
        # Adds the shapes of all arrays. Its optimizations have nothing to do in these graphs.
        quantization.quant_pre_process(
            source, shaped, skip_optimization=True, skip_symbolic_shape=True
        )
        # Signed activations: with unsigned ones, processors without VNNI add up in 16 bits, which
        # overflow. Two networks on the digits lost 1.4 and 3.3 points of accuracy by that.
        quantization.quantize_static(
            shaped,
            target,
            Reader(),
            per_channel=True,
            activation_type=quantization.QuantType.QInt8,
            weight_type=quantization.QuantType.QInt8,
            op_types_to_quantize=_OPERATORS,
            nodes_to_exclude=_EXACT,
            # 256 values would be too few for logits: the two largest of an image might be equal.
            extra_options={'OpTypesToExcludeOutputQuantization': ['Gemm']},
        )
        _describe(source, target)
    result = _compared(source, target, data)
    content = {**result, 'calibration_images': len(chosen)}
    workdir.write_atomically(target.with_suffix('.json'), json.dumps(content, indent=2) + '\n')


def _describe(source: pathlib.Path, target: pathlib.Path) -> None:
    """Gives the quantised file the metadata of the other one, as far as it is true of both."""
    model = onnx.load(target)
    about = {entry.key: entry.value for entry in onnx.load(source).metadata_props}
    del about['test_accuracy']  # the JSON file has its own
    helper.set_model_props(model, {**about, 'dtype': 'int8'})
    onnx.checker.check_model(model)
    onnx.save(model, target)


def _compared(source: pathlib.Path, target: pathlib.Path, data: Dataset) -> dict[str, object]:
    """Runs both files on the test split, and logs and returns what differs."""
    run = {path: onnx_file.runner(path, PROBABILITIES) for path in (source, target)}
    truths, found = [], {source: [], target: []}
    for pixels, labels in _batches(data, data.test):
        truths.append(labels)
        for path, classify in run.items():
            found[path].append(classify(pixels).argmax(-1))
    truth = np.concatenate(truths)
    predicted = {path: np.concatenate(parts) for path, parts in found.items()}
    rows = {
        name: {
            'test_accuracy': float((predicted[path] == truth).mean()),
            'bytes': path.stat().st_size,
        }
        for name, path in (('float32', source), ('int8', target))
    }
    for name, row in rows.items():
        logger.info(
            '%s: test accuracy %.2f %%, %.1f KiB',
            name,
            100 * row['test_accuracy'],
            row['bytes'] / 1024,
        )
    same = float((predicted[source] == predicted[target]).mean())
    logger.info('both choose the same class for %.1f %% of %d images', 100 * same, len(truth))
    return {**rows, 'same_class': same, 'test_images': len(truth)}


def _batches(data: Dataset, indices: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for part in np.array_split(indices, -(-len(indices) // _BATCH)):
        yield data.images.read(part)
