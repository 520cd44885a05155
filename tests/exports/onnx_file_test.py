"""An ONNX file says what it is, and is compared with the network that it was written from."""

import json
import logging
import sys

import numpy as np
import onnx
import pytest

from asose_jax.exports import onnx_file
from asose_jax.exports.onnx_graph import Graph

SHAPE = (3, 2, 1)


def _model():
    """Logits: the mean pixel, and its opposite."""
    graph = Graph()
    x = graph.normalised(SHAPE, np.zeros(1), np.ones(1))
    graph.classify(x, np.array([[1, -1]]), np.zeros(2))
    return graph.model()


def _logits(images):
    mean = images.mean((1, 2))
    return np.concatenate([mean, -mean], -1)


@pytest.mark.parametrize(
    ('factor', 'warned'), [(1, False), (1.001, True), (np.nan, True)], ids=['same', 'off', 'nan']
)
def test_file_that_computes_something_else_is_warned_of(tmp_path, caplog, factor, warned):
    with caplog.at_level(logging.INFO, 'asose_jax'):
        onnx_file.write(tmp_path / 'a.onnx', _model(), {}, lambda images: factor * _logits(images))
    assert 'no logit differs from the network by more than' in caplog.text
    assert ('computes something else' in caplog.text) == warned


def test_without_onnxruntime_the_file_is_written_and_the_log_says_it_was_not_run(
    tmp_path, caplog, monkeypatch
):
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    onnx_file.write(tmp_path / 'a.onnx', _model(), {}, _logits)
    onnx.checker.check_model(onnx.load(tmp_path / 'a.onnx'))
    assert 'was not run, since onnxruntime is not installed' in caplog.text


def test_metadata_tell_how_to_use_the_file_whatever_the_names_are(tmp_path):
    names = ['a, "b"', 'é\udce9', '']
    onnx_file.write(tmp_path / 'a.onnx', _model(), {'class_names': names}, _logits)
    told = {each.key: each.value for each in onnx.load(tmp_path / 'a.onnx').metadata_props}
    assert json.loads(told['class_names']) == names
    assert (told['layout'], told['dtype'], told['opset']) == ('NHWC', 'float32', '17')
    assert 'uint8 [N, H, W, C], pixel values 0..255' in told['input']
