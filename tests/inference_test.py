"""The network of a finished run: predictions, evaluation, export; the package in Python."""

import csv
import dataclasses
import errno
import functools
import json
import logging
import os
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import onnx
import pytest
import safetensors.numpy
from helpers.runs import CHEAPEST, WHOLE, make_whole, tiny
from PIL import Image

import asose_jax
from asose_jax import inference
from asose_jax.metrics import classification
from asose_jax.pipeline import builders
from asose_jax.report import page
from asose_jax.runtime.errors import UserError

_TORCH_ALONE = """
import runpy
import sys
sys.modules |= dict.fromkeys(('jax', 'flax', 'asose_jax'))
import numpy as np
import torch

target, images, found = sys.argv[1:]
exported = runpy.run_path(target)
assert len(exported['CLASS_NAMES']) == 10
network = exported['load']()
assert not network.training
with torch.no_grad():
    np.save(found, network(torch.from_numpy(np.load(images))).numpy())
"""
_ONNX_ALONE = """
import json
import sys
import numpy as np
import onnxruntime

target, images, found = sys.argv[1:]
session = onnxruntime.InferenceSession(target, providers=['CPUExecutionProvider'])
assert len(json.loads(session.get_modelmeta().custom_metadata_map['class_names'])) == 10
(logits,) = session.run(['logits'], {'images': np.load(images)})
np.save(found, logits)
assert not {'jax', 'flax', 'asose_jax', 'onnx'} & sys.modules.keys()
"""
_ALONE = """
import sys
import numpy as np
from jax import export

target, images, found = sys.argv[1:]
with open(target, 'rb') as file:
    model = export.deserialize(file.read())
np.save(found, model.call(np.load(images)))
assert not any(name.startswith(('flax', 'asose_jax')) for name in sys.modules)
"""


@pytest.fixture(scope='module')
def finished(shared, tmp_path_factory):
    """A run with `optimize`, to which tests may add."""
    workdir = tmp_path_factory.mktemp('finished') / 'run'
    shutil.copytree(shared('whole', make_whole) / 'run', workdir)
    return workdir, json.loads((workdir / 'summary.json').read_text())


@pytest.fixture(scope='module')
def model(finished):
    """Its network, loaded once."""
    return asose_jax.load(finished[0])


@functools.cache
def _test_images():
    """The digits, and images and labels of the test split."""
    data = builders.load_data(tiny())
    return data, *data.images.read(data.test)


def test_predictions_are_those_of_the_run(finished, model):
    _, result = finished
    data, images, labels = _test_images()
    found = model.predict(images)
    assert found.shape == (len(images), 10)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)
    assert (found.argmax(1) == labels).mean() == pytest.approx(result['test_accuracy'])
    assert model.class_names == data.class_names
    assert model.genotype.to_json() == result['genotype']
    np.testing.assert_allclose(model.predict(images[:3]), found[:3], rtol=1e-5)
    assert model.predict(images[:0]).shape == (0, 10)


@pytest.fixture
def digits(tmp_path):
    """The first five test images, their files, and a damaged file among these."""
    _, images, _ = _test_images()
    images = images[:5]
    files = [tmp_path / 'pictures' / f'{i}.png' for i in range(5)]
    files[0].parent.mkdir()
    for file, image in zip(files, images, strict=True):
        Image.fromarray(image[..., 0]).save(file)
    (tmp_path / 'pictures' / '1a.png').write_bytes(files[2].read_bytes()[:40])
    return images, files


def test_array_and_pillow_image_and_file_are_predicted_alike_in_their_order(model, digits):
    images, files = digits
    expected = model.predict(images)
    assert len(np.unique(expected.argmax(1))) > 1
    opened = [Image.open(file) for file in files]
    colour = [image.convert('RGB') for image in opened]
    mixed = [images[:2], opened[2], str(files[3]), images[4]]
    for form in (files, list(map(str, files)), opened, colour, list(images), mixed, iter(mixed)):
        np.testing.assert_array_equal(model.predict(form), expected)
    for alone in (files[0], str(files[0]), opened[0], images[0], jax.numpy.asarray(images[:1])):
        np.testing.assert_array_equal(model.predict(alone), expected[:1])
    assert model.predict([]).shape == (0, 10)


def test_batches_change_no_prediction_and_compile_once(finished, model, digits, monkeypatch):
    images, files = digits
    expected = model.predict([*images, *files, *images])
    monkeypatch.setattr(inference, '_PREDICT_BATCH', 4)
    small = asose_jax.load(finished[0])
    for count in (15, 1, 4):
        found = small.predict([*images, *files, *images][:count])
        np.testing.assert_allclose(found, expected[:count], rtol=1e-5)
    assert small._call._cache_size() == 1


def test_damaged_picture_is_named(model, digits):
    _, files = digits
    damaged = files[0].with_name('1a.png')
    with pytest.raises(UserError, match=f'cannot be read; repair or remove them:\n  {damaged}: '):
        model.predict([files[0], damaged])


def _table(path):
    with open(path, encoding='utf-8', newline='') as file:
        return list(csv.DictReader(file))


def test_table_has_a_line_for_each_picture_in_order_and_the_damaged_one_is_named(
    finished, model, digits, tmp_path, monkeypatch, caplog
):
    images, files = digits
    monkeypatch.setattr(inference, '_PREDICT_BATCH', 2)  # the damaged one begins the second batch
    monkeypatch.setattr(inference, '_LOGGED_PREDICTIONS', 3)
    workdir = shutil.copytree(finished[0], tmp_path / 'run')
    with caplog.at_level(logging.INFO, 'asose_jax'):
        path = asose_jax.predict(workdir, files[0].parent)
    assert path == workdir / 'predictions.csv'
    rows, expected = _table(path), model.predict(images)
    assert [row['file'] for row in rows] == list(map(str, files))
    for row, probabilities in zip(rows, expected, strict=True):
        best = np.argsort(-probabilities)[:5]
        assert list(row.values())[1::2] == [str(k) for k in best]  # a digit is its class
        found = [float(number) for number in list(row.values())[2::2]]
        np.testing.assert_allclose(found, probabilities[best], atol=2e-6)
    assert list(rows[0])[:5] == ['file', 'class', 'probability', 'class_2', 'probability_2']
    told = [line for line in caplog.messages if str(tmp_path) in line]
    shown = [f'{file}: {row["class"]} ' for file, row in zip(files, rows, strict=True)][:3]
    assert [any(line.startswith(start) for line in told) for start in shown] == [True] * 3
    (damaged,) = [line for line in told if '1a.png' in line]
    assert damaged.startswith(f'passed over: {files[0].with_name("1a.png")}: ')
    assert told[-1] == f'the classes of 5 pictures are in {path}; 1 could not be read'
    assert len(told) == 3 + 1 + 1
    assert not list(workdir.glob('*.tmp'))


def test_table_may_be_elsewhere_and_stays_where_no_picture_can_be_read(finished, digits, tmp_path):
    _, files = digits
    target = tmp_path / 'table.csv'
    assert asose_jax.predict(finished[0], f'{files[3]},{files[1]}', target) == target
    before = _table(target)
    assert [row['file'] for row in before] == [str(files[3]), str(files[1])]
    with pytest.raises(UserError, match=r'no picture can be read \(2 files tried\)'):
        asose_jax.predict(finished[0], [files[0].with_name('1a.png'), tmp_path / 'gone'], target)
    assert _table(target) == before
    assert not list(tmp_path.glob('*.tmp'))
    with pytest.raises(UserError, match='Is a directory'):
        asose_jax.predict(finished[0], files, tmp_path)
    with pytest.raises(UserError, match=r'gone/table.csv cannot be used: No such file'):
        asose_jax.predict(finished[0], files, tmp_path / 'gone' / 'table.csv')


def test_evaluation_is_that_of_the_predictions(finished, model, caplog):
    workdir, result = finished
    with caplog.at_level(logging.INFO, 'asose_jax'):
        found = asose_jax.evaluate(workdir)
    assert found['accuracy'] == pytest.approx(result['test_accuracy'])
    assert found['balanced_accuracy'] == pytest.approx(result['test_balanced_accuracy'])
    data, images, labels = _test_images()
    guesses = model.predict(images).argmax(1)
    expected = np.zeros((10, 10), int)
    np.add.at(expected, (labels, guesses), 1)
    np.testing.assert_array_equal(found['confusion'], expected)
    for k, row in enumerate(found['classes']):
        assert row['name'] == data.class_names[k]
        assert row['recall'] == pytest.approx(expected[k, k] / expected[k].sum())
        assert row['images'] == expected[k].sum()
    assert json.loads((workdir / 'evaluation.json').read_text()) == found
    assert set(classification.describe(found)) <= set(caplog.messages)
    assert (workdir / 'confusion.png').read_bytes().startswith(b'\x89PNG')


def test_network_whose_numbers_are_not_finite_is_not_evaluated(finished, monkeypatch):
    def broken(model, images):
        return np.where(np.arange(len(images))[:, None] < 2, np.nan, 0.1) * np.ones(10)

    monkeypatch.setattr(inference.Trained, 'predict', broken)
    before = (finished[0] / 'summary.json').read_text()
    with pytest.raises(UserError, match='not finite for 2 of 360 test images') as error:
        asose_jax.evaluate(finished[0])
    assert '\n' not in str(error.value)
    assert (finished[0] / 'summary.json').read_text() == before


@pytest.mark.parametrize(
    'number',
    [errno.ENOSPC, *(pytest.param(n, marks=pytest.mark.slow) for n in (errno.EACCES, errno.EROFS))],
)
def test_results_that_cannot_be_written_lose_no_numbers(finished, monkeypatch, caplog, number):
    def refuse(path, _):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(inference.workdir, 'write_atomically', refuse)
    with (
        caplog.at_level(logging.INFO, 'asose_jax'),
        pytest.raises(UserError, match=r'evaluation.json .*: ' + os.strerror(number)),
    ):
        inference.evaluate(finished[0])
    assert any('test accuracy' in line for line in caplog.messages)
    with pytest.raises(UserError, match=r'model.json .*: ' + os.strerror(number)):
        inference.export(finished[0])
    with pytest.raises(UserError, match=r'report.html .*: ' + os.strerror(number)):
        page.rebuild(finished[0])


def _changed(change):
    whole = builders.load_data

    def load(config, split_by, **rest):
        images = whole(config, split_by, **rest)
        return dataclasses.replace(images, **change(images))

    return load


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda d: {'test': d.test[1:]}, r'differ from .* 360 test images, now .* 359 test'),
        (lambda d: {'class_names': (*d.class_names, 'x')}, "the class 'x' is new"),
        (lambda d: {'class_names': d.class_names[:-1]}, "the class '9' is gone"),
        (lambda d: {'class_names': d.class_names[::-1]}, 'classes are in another order'),
        (lambda d: {'image_shape': (8, 8, 3)}, r'images were \[8, 8, 1\] .*, now \[8, 8, 3\]'),
    ],
)
def test_data_that_changed_are_no_test(finished, monkeypatch, change, message):
    """Changed data are split anew, so training images would be among the test images."""
    monkeypatch.setattr(builders, 'load_data', _changed(change))
    with pytest.raises(UserError, match=message):
        asose_jax.evaluate(finished[0])


def test_run_does_not_go_on_with_data_that_changed(finished, monkeypatch):
    monkeypatch.setattr(builders, 'load_data', _changed(lambda d: {'valid': d.valid[1:]}))
    before = (finished[0] / 'run.json').read_text()
    with pytest.raises(UserError, match='Changed data are split anew'):
        asose_jax.search(tiny(**WHOLE), finished[0])
    assert (finished[0] / 'run.json').read_text() == before


def test_run_on_the_digits_goes_on_without_its_record(finished, tmp_path):
    """Only the split of a folder of pictures depends on what run.json says."""
    workdir = shutil.copytree(finished[0], tmp_path / 'run')
    (workdir / 'run.json').unlink()
    result = asose_jax.search(tiny(**WHOLE), workdir)
    assert result['test_accuracy'] == finished[1]['test_accuracy']


def test_data_that_are_gone_are_named_with_their_run(finished, monkeypatch):
    def gone(*_, **__):
        raise UserError("data.dir='pictures': there is no such folder")

    monkeypatch.setattr(builders, 'load_data', gone)
    with pytest.raises(UserError, match=f"run in {finished[0]}: data.dir='pictures'"):
        asose_jax.evaluate(finished[0])


def test_exported_network_says_the_same_in_a_process_without_this_package(
    finished, model, tmp_path
):
    workdir, _ = finished
    target = asose_jax.export(workdir)
    _, images, _ = _test_images()
    np.save(tmp_path / 'images.npy', images[:5].astype(np.uint8))
    arguments = [target / 'model.stablehlo', tmp_path / 'images.npy', tmp_path / 'found.npy']
    subprocess.run([sys.executable, '-c', _ALONE, *map(str, arguments)], check=True, cwd=tmp_path)
    ours = model.predict(images[:5].astype(np.uint8))
    np.testing.assert_allclose(np.load(tmp_path / 'found.npy'), ours, atol=1e-5)
    told = json.loads((target / 'model.json').read_text())
    assert told['classes'] == list(model.class_names)
    assert told['platforms'] == ['cpu', 'cuda', 'tpu']
    assert (target / 'parameters').is_dir()
    asose_jax.export(workdir)  # a second time, over the first


@pytest.mark.parametrize(
    ('name', 'file', 'code'),
    [
        ('onnx', 'model.onnx', _ONNX_ALONE),
        pytest.param('torch', 'model_torch.py', _TORCH_ALONE, marks=pytest.mark.slow),
    ],
)
def test_file_says_the_same_in_a_process_with_its_runtime_alone(
    model, tmp_path, caplog, name, file, code
):
    _, images, _ = _test_images()
    with caplog.at_level(logging.INFO, 'asose_jax'):
        target = model.export(name)
    assert 'no logit differs from the network by more than' in caplog.text
    assert 'computes something else' not in caplog.text
    np.save(tmp_path / 'images.npy', images)
    arguments = [target / file, tmp_path / 'images.npy', tmp_path / 'found.npy']
    command = [sys.executable, '-c', code, *map(str, arguments)]
    subprocess.run(command, check=True, cwd=tmp_path)
    found, ours = np.load(tmp_path / 'found.npy'), np.asarray(model.logits(images))
    np.testing.assert_allclose(found, ours, rtol=0, atol=1e-5 * np.abs(ours).max())
    right = (found.argmax(-1) == model.predict(images).argmax(-1)).mean()
    assert right > 0.99  # all but ties
    assert json.loads((target / 'model.json').read_text())['classes'] == list(model.class_names)


def test_without_torch_the_module_is_written_and_the_log_says_it_was_not_run(
    finished, caplog, monkeypatch
):
    monkeypatch.setitem(sys.modules, 'torch', None)
    target = asose_jax.export(finished[0], 'torch')
    assert 'was not run, since torch is not installed: pip install torch' in caplog.text
    model, source = asose_jax.load(finished[0]), (target / 'model_torch.py').read_text()
    compile(source, 'model_torch.py', 'exec')
    assert f'GENOTYPE = {model.genotype.to_json()}' in source
    weights = safetensors.numpy.load_file(target / 'model_torch.safetensors')
    stem = model.variables['params']['stem']['kernel'].transpose(3, 2, 0, 1)
    np.testing.assert_array_equal(weights['stem.0.weight'], stem)


def test_bfloat16_is_exported_as_float32(finished, tmp_path, caplog):
    workdir = shutil.copytree(finished[0], tmp_path / 'run')
    model = dataclasses.replace(asose_jax.load(workdir), dtype='bfloat16')
    with caplog.at_level(logging.INFO, 'asose_jax'):
        file = model.export('onnx') / 'model.onnx'
    asose_jax.export(finished[0], 'onnx')
    written, plain = (onnx.load(path) for path in (file, finished[0] / 'export' / 'model.onnx'))
    assert written.graph == plain.graph
    told = {each.key: each.value for each in written.metadata_props}
    assert (told['dtype'], told['trained_dtype']) == ('float32', 'bfloat16')
    assert 'computes something else' not in caplog.text


@pytest.mark.parametrize('names', [('tflite',), ('onnx', 'keras'), ('ONNX',), (None,), ('',)])
def test_unknown_export_is_refused_with_what_there_is(finished, names):
    message = f'there is no export {names[-1]!r}. Choose from stablehlo, onnx, int8, torch'
    with pytest.raises(UserError, match=message):
        asose_jax.export(finished[0], *names)


def test_list_of_exports_is_told_what_to_do(finished):
    with pytest.raises(UserError, match=r"no export \['onnx'\].* an argument of its own"):
        asose_jax.export(finished[0], ['onnx'])


@pytest.mark.parametrize(
    ('name', 'package'),
    [('onnx', 'onnx'), ('int8', 'onnx'), ('int8', 'onnxruntime'), ('torch', 'safetensors')],
)
def test_package_that_an_export_needs_is_named_with_its_command(
    finished, monkeypatch, tmp_path, name, package
):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"the export '{name}' .* pip install {package}$"):
        asose_jax.export(finished[0], 'stablehlo', name)


@pytest.mark.slow
def test_run_without_optimize_leaves_what_its_supernet_had_learned(tmp_path):
    epochs = {'growth.epochs': 0, 'optimize.epochs': 0, 'warmup.epochs': 0}
    config = tiny(**epochs, **{'model.primitives': CHEAPEST, 'search.epochs': 1})
    result = asose_jax.search(config, tmp_path)
    _, images, labels = _test_images()
    model = asose_jax.load(tmp_path)
    assert model.spec.is_derived()
    right = (model.predict(images).argmax(1) == labels).mean()
    assert right == pytest.approx(result['test_accuracy'])


@pytest.mark.parametrize('use', [asose_jax.load, asose_jax.evaluate, asose_jax.export])
@pytest.mark.parametrize(
    ('file', 'content', 'message'),
    [
        ('summary.json', '{', 'summary.json cannot be read: it is damaged'),
        ('summary.json', '[]', 'summary.json cannot be read: it is damaged'),
        ('config.json', '{"seed": 3}', 'config.json is damaged: it lacks the field seeds'),
        ('config.json', 'x', 'config.json cannot be read .* damaged'),
        ('config.json', '{}', 'config.json is damaged: it lacks the field seed'),
        ('config.json', None, 'has a summary but no config.json'),
        ('checkpoints', 'x', 'checkpoints cannot be used: Not a directory'),
    ],
)
def test_damaged_file_of_a_run_is_named(finished, tmp_path, use, file, content, message):
    workdir = tmp_path / 'run'
    workdir.mkdir()
    for name in ('summary.json', 'config.json', 'run.json'):
        shutil.copy(finished[0] / name, workdir)
    if content is None:
        (workdir / file).unlink()
    else:
        (workdir / file).write_text(content)
    with pytest.raises(UserError, match=message) as told:
        use(workdir)
    assert '\n' not in str(told.value)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'mean': [1.0, 2.0]}, 'is damaged: mean must be 1 finite number, one for each channel'),
        ({'std': [float('nan')]}, 'is damaged: std must be 1 finite number'),
        ({'mean': ['x']}, 'is damaged: mean must be 1 finite number'),
        ({'classes': ['a']}, 'is damaged: it names 1 class, but the network has 10'),
        ({'classes': 7, 'mean': 'x'}, 'has no classes, mean that can be used'),
        ({'images': 3}, 'has no images that can be used'),
        ({'genotype': None}, 'has no genotype that can be used'),
    ],
)
def test_entry_of_a_summary_that_cannot_be_right_is_named(finished, tmp_path, changes, message):
    """A mean of one number for three channels, for example, would otherwise be used for all."""
    workdir = shutil.copytree(finished[0], tmp_path / 'run')
    (workdir / 'summary.json').write_text(json.dumps({**finished[1], **changes}))
    with pytest.raises(UserError, match=f'summary.json {message}') as told:
        asose_jax.load(workdir)
    assert '\n' not in str(told.value)


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_pixels_that_are_not_finite_are_refused(model, value):
    images = np.full((1, 8, 8, 1), 9, np.float32)
    images[0, 3, 3, 0] = value
    with pytest.raises(ValueError, match='NaN or infinite'):
        model.predict(images)


@pytest.mark.parametrize(
    ('images', 'told'),
    [
        (np.full((2, 8, 8, 1), 0.7), True),
        (np.zeros((2, 8, 8, 1), np.float32), True),
        (np.full((2, 8, 8, 1), 7.0), False),
        (np.ones((2, 8, 8, 1), np.uint8), False),
        (np.zeros((0, 8, 8, 1)), False),
        ([np.full((8, 8, 1), 0.7)] * 3, True),
        ([np.zeros((8, 8, 1)), np.full((8, 8, 1), 7.0)], False),
        ([np.full((8, 8, 1), 0.7), np.full((8, 8, 1), 7, np.uint8)], False),
    ],
)
def test_pixels_between_0_and_1_are_warned_of(model, caplog, images, told):
    with caplog.at_level(logging.INFO, 'asose_jax'):
        model.predict(images)
    assert sum('takes pixel values 0..255' in line for line in caplog.messages) == told


@pytest.mark.parametrize(
    ('images', 'told'),
    [
        (np.ones((2, 8, 8, 1), bool), 'all pixels are at most 1'),
        (np.full((2, 8, 8, 1), 65535, np.uint16), 'from 65535 to 65535'),
        (np.linspace(-2.1, 2.6, 64).reshape(8, 8, 1), 'from -2.1 to 2.6'),
        ([np.full((8, 8, 1), 9, np.uint8), np.full((8, 8, 1), -900)], 'from -900 to 9'),
        (np.linspace(-9, 263, 64).reshape(8, 8, 1), None),  # scaling may overshoot
        (np.zeros((0, 8, 8, 1), np.uint16), None),
    ],
)
def test_pixels_beyond_0_and_255_are_warned_of(model, caplog, images, told):
    with caplog.at_level(logging.INFO, 'asose_jax'):
        model.predict(images)
    assert len(caplog.messages) == bool(told)
    assert told is None or told in caplog.messages[0]


@pytest.mark.parametrize(
    ('images', 'message'),
    [
        (None, 'images=None is no image. Take an array'),
        (3, 'images=3 is no image'),
        (b'\x89PNG', r"images=b'\x89PNG' is no image"),
        ([1, None], 'this network takes'),
        (np.full((1, 8, 8, 1), 'x'), 'images hold <U1, not numbers'),
        (np.full((1, 8, 8, 1), None), 'images hold object, not numbers'),
        (np.ones((1, 8, 8, 1), complex), 'images hold complex128, but pixels are real numbers'),
    ],
)
def test_what_is_no_image_is_refused(model, images, message):
    with pytest.raises(ValueError, match=re.escape(message)) as told:
        model.predict(images)
    assert '\n' not in str(told.value)


@pytest.mark.parametrize('images', [None, 3, [None], [b'a.png'], np.ones((2, 8, 8, 1)), ''])
def test_images_that_are_no_paths_are_one_line(finished, images):
    with pytest.raises(UserError, match=r'^images=') as told:
        asose_jax.predict(finished[0], images)
    assert '\n' not in str(told.value)


@pytest.mark.parametrize('value', ['', 5, b'x'])
@pytest.mark.parametrize(
    'use',
    [
        asose_jax.evaluate,
        lambda workdir, value: asose_jax.export(workdir, data_dir=value),
        lambda workdir, value: asose_jax.predict(workdir, 'a.png', value),
    ],
)
def test_place_that_is_no_path_is_one_line(finished, tmp_path, monkeypatch, use, value):
    """An empty one is not the current directory: a variable of a shell may be unset."""
    monkeypatch.chdir(tmp_path)
    config = {**json.loads((finished[0] / 'config.json').read_text()), 'data.name': 'folder'}
    workdir = shutil.copytree(finished[0], tmp_path / 'run')
    (workdir / 'config.json').write_text(json.dumps(config))
    with pytest.raises(UserError, match=r'(--data_dir|out)=.* Name a path') as told:
        use(workdir, value)
    assert '\n' not in str(told.value)


def test_pictures_are_not_overwritten_by_their_table(finished, digits, tmp_path):
    _, files = digits
    (tmp_path / 'link').symlink_to(files[1])
    before = files[1].read_bytes()
    for out in (
        files[1],
        tmp_path / 'link',
        files[0].parent / '..' / files[1].parent.name / '1.png',
    ):
        with pytest.raises(UserError, match=r'is one of the pictures\. Name another'):
            asose_jax.predict(finished[0], files[0].parent, out)
    assert files[1].read_bytes() == before


def test_images_of_another_size_are_refused(model):
    with pytest.raises(ValueError, match=r'this network takes \(None, 8, 8, 1\)'):
        model.predict(np.zeros((2, 9, 9, 1)))


@pytest.mark.parametrize('what', [inference.load, inference.evaluate, inference.export])
def test_where_no_run_has_come_to_its_end_it_says_so(what, tmp_path):
    with pytest.raises(UserError, match='holds no finished run'):
        what(tmp_path)


def test_of_several_runs_one_must_be_named(tmp_path):
    (tmp_path / 'seed_0').mkdir()
    for name, content in {
        'config.json': '{"seeds": [0]}',
        'summary.json': '{"searches": []}',
    }.items():
        (tmp_path / name).write_text(content)
    (tmp_path / 'seed_0' / 'metrics.jsonl').write_text('')
    with pytest.raises(UserError, match=r'(?s)several runs.*seed_0'):
        inference.load(tmp_path)


def test_readme_shows_python_that_works(root, finished, tmp_path, monkeypatch):
    """On a run that has ended already, which it takes as it is."""
    workdir = shutil.copytree(finished[0], tmp_path / 'run')
    text = (root / 'README.md').read_text(encoding='utf-8')
    (code,) = [
        block
        for block in re.findall(r'```python\n(.*?)```', text, re.DOTALL)
        if 'asose_jax.search(' in block
    ]
    monkeypatch.setattr('asose_jax.config.presets.get_config', lambda preset: tiny(**WHOLE))
    names = {}
    exec(code.replace('/tmp/digits', str(workdir)), names)
    assert len(names['names']) == 3
    assert set(names['names']) <= set(map(str, range(10)))
