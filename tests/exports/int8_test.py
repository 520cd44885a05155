"""A quantised file has the interface of the other one, and numbers that say what it costs."""

import json
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers.runs import make_whole, tiny

import asose_jax
from asose_jax.pipeline import builders


@pytest.fixture(scope='module')
def finished(shared, tmp_path_factory):
    """A finished run, and the folder of its export."""
    workdir = tmp_path_factory.mktemp('finished') / 'run'
    shutil.copytree(shared('whole', make_whole) / 'run', workdir)
    return workdir, asose_jax.load(workdir).export('int8')


def test_quantised_file_is_measured_on_the_test_split(finished):
    workdir, target = finished
    told = json.loads((target / 'model_int8.json').read_text())
    data = builders.load_data(tiny())
    images, labels = data.images.read(data.test)
    for kind, name in (('float32', 'model.onnx'), ('int8', 'model_int8.onnx')):
        session = onnxruntime.InferenceSession(target / name, providers=['CPUExecutionProvider'])
        probabilities, logits = session.run(None, {'images': images})
        np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)
        assert logits.shape == (len(images), 10)
        right = (probabilities.argmax(-1) == labels).mean()
        assert told[kind]['test_accuracy'] == pytest.approx(right)
        assert told[kind]['bytes'] == (target / name).stat().st_size
    assert told['test_images'] == len(images)
    assert told['calibration_images'] == len(data.train)
    assert told['float32']['test_accuracy'] == pytest.approx(
        json.loads((workdir / 'summary.json').read_text())['test_accuracy']
    )


def test_weights_of_convolutions_are_8_bit_integers(finished):
    _, target = finished
    model = onnx.load(target / 'model_int8.onnx')
    kinds = {each.name: each.data_type for each in model.graph.initializer}
    made = {node.output[0]: node for node in model.graph.node}
    kernels = [made[node.input[1]].input[0] for node in model.graph.node if node.op_type == 'Conv']
    assert kernels
    assert {kinds[name] for name in kernels} == {onnx.TensorProto.INT8}
    told = {each.key: each.value for each in model.metadata_props}
    assert told['dtype'] == 'int8'
    assert len(json.loads(told['class_names'])) == 10


def test_images_to_calibrate_on_are_asked_for_before_anything_is_written(
    finished, tmp_path, monkeypatch
):
    def gone(*_, **__):
        raise asose_jax.UserError("data.dir='pictures': there is no such folder")

    workdir, target = finished
    shutil.copytree(workdir, tmp_path / 'run', ignore=shutil.ignore_patterns(target.name))
    monkeypatch.setattr(builders, 'load_data', gone)
    with pytest.raises(asose_jax.UserError, match=r"run in .*run: data.dir='pictures'"):
        asose_jax.export(tmp_path / 'run', 'int8')
    assert not (tmp_path / 'run' / 'export').exists()
