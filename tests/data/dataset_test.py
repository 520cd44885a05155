"""Data sets: splits that hold what they promise, and errors that say what to do."""

import dataclasses
import errno
import json
import logging
import os
import pathlib
import shutil
import socket
import types
import zlib

import numpy as np
import pytest
from helpers import datasets, prepared
from PIL import Image

from asose_jax.data import dataset, image_set, tfds
from asose_jax.runtime.errors import UserError

WHERE = "'set', split 'train'"


def _digits(seed=0, **changes):
    return datasets.load('digits', **{'seed': seed, 'valid_fraction': 0.2, **changes})


def test_digits_are_split_into_disjoint_parts_that_cover_everything():
    d = _digits()
    parts = np.concatenate([d.train, d.valid, d.test])
    np.testing.assert_array_equal(np.sort(parts), np.arange(1797))
    assert [len(d.train), len(d.valid), len(d.test)] == [1150, 287, 360]
    images, labels = d.images.read(np.arange(5))
    assert images.shape == (5, 8, 8, 1)
    assert (images.dtype, labels.dtype) == (np.uint8, np.int32)
    assert d.images.arrays[0].max() == 255


def test_split_is_stratified():
    d = _digits()
    labels = d.images.arrays[1]
    for part in (d.train, d.valid, d.test):
        shares = np.bincount(labels[part]) / len(part)
        np.testing.assert_allclose(shares, np.bincount(labels) / len(labels), atol=0.006)


def test_seed_fixes_train_and_valid_and_never_touches_test():
    first, again, other = _digits(0), _digits(0), _digits(1)
    np.testing.assert_array_equal(first.valid, again.valid)
    assert set(first.valid) != set(other.valid)
    np.testing.assert_array_equal(
        first.images.read(first.test)[0], other.images.read(other.test)[0]
    )


def test_statistics_are_those_of_train():
    d = _digits()
    pixels = d.images.read(d.train)[0].astype(np.float64)
    np.testing.assert_allclose(d.mean, pixels.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(d.std, pixels.std((0, 1, 2)), rtol=1e-5)


def test_images_can_be_resized():
    assert _digits(image_size=12).image_shape == (12, 12, 1)


def test_without_a_validation_part_train_has_all_images():
    d = _digits(valid_fraction=0)
    assert (d.train.tolist(), len(d.valid)) == ([*range(1437)], 0)
    np.testing.assert_array_equal(d.test, _digits().test)
    assert d.train.dtype == d.valid.dtype == np.int32


@pytest.mark.parametrize('fraction', [0.001, 0.999])
def test_empty_part_is_an_error(fraction):
    with pytest.raises(UserError, match=rf'data.valid_fraction={fraction} splits 1437 .* e.g. 0.2'):
        _digits(valid_fraction=fraction)


@pytest.fixture
def missing(tmp_path, monkeypatch):
    """The message for a set that is not there, found without asking any network."""

    def refuse(*_):
        raise AssertionError('the network was asked')

    monkeypatch.setattr(socket.socket, 'connect', refuse)
    monkeypatch.setattr(socket, 'getaddrinfo', refuse)

    def message(name):
        with pytest.raises(UserError) as error:
            datasets.load(name, seed=0, valid_fraction=0.2, dir=str(tmp_path))
        return str(error.value)

    return message


def test_set_that_is_not_prepared_is_an_error_with_the_command(missing, tmp_path):
    message = missing('mnist')
    assert f"'mnist' is not prepared under {tmp_path}" in message
    assert f"tfds.builder('mnist', data_dir='{tmp_path}', file_format='array_record')" in message
    assert 'download_and_prepare()' in message


@pytest.mark.parametrize('name', ['1.0.1.incompleteAB12', 'newest', '2.0'])
def test_what_is_no_version_of_a_prepared_set_is_passed_over(tmp_path, name):
    """Such a folder stays where the preparation of a set was interrupted."""
    prepared.write(tmp_path, 'own', 1, {'train': [Image.new('L', (8, 8))]}, ('a', 'b'))
    shutil.copytree(tmp_path / 'own' / '1.0.0', tmp_path / 'own' / name)
    found = tfds.identify('own', str(tmp_path), ('train', 'train'))
    assert found.record['version'] == '1.0.0'


@pytest.mark.parametrize('name', ['own', 'own:1.0.0', 'own:1.*.*', 'own:'])
def test_version_of_a_prepared_set_may_be_named(tmp_path, name):
    prepared.write(tmp_path, 'own', 1, {'train': [Image.new('L', (8, 8))]}, ('a', 'b'))
    assert tfds.identify(name, str(tmp_path), ('train', 'train')).record['version'] == '1.0.0'
    with pytest.raises(UserError, match=r"'own:2.0.0' is neither"):
        tfds.identify('own:2.0.0', str(tmp_path), ('train', 'train'))


@pytest.mark.parametrize(
    ('file', 'content'),
    [
        ('dataset_info.json', ''),
        ('dataset_info.json', '{"name": 3}'),
        ('features.json', None),
        ('features.json', '{'),
        ('features.json', '{"pythonClassName": "nowhere.Nothing"}'),
    ],
)
def test_damaged_description_of_a_set_is_one_line_with_the_command(tmp_path, file, content):
    prepared.write(tmp_path, 'own', 1, {'train': [Image.new('L', (8, 8))]}, ('a', 'b'))
    place = tmp_path / 'own' / '1.0.0'
    (place / file).unlink()
    if content is not None:
        (place / file).write_text(content)
    for use in (tfds.identify, _open):
        with pytest.raises(UserError, match=rf'^{place} cannot be read \(.* again: python') as told:
            use('own', str(tmp_path), ('train', 'train'))
        assert '\n' not in str(told.value)


def _open(name, directory, splits):
    return tfds.load(name, directory, splits, None, 0, False)


@pytest.mark.parametrize('folder', ['', 'own', 'own/1.0.0'])
def test_set_that_may_not_be_read_is_not_said_to_be_missing(tmp_path, monkeypatch, folder):
    prepared.write(tmp_path, 'own', 1, {'train': [Image.new('L', (8, 8))]}, ('a', 'b'))
    refused, status, listing = tmp_path / folder, os.stat, os.listdir

    def checked(function):
        def check(path, *rest, **options):
            if pathlib.Path(path).is_relative_to(refused):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return function(path, *rest, **options)

        return check

    monkeypatch.setattr(os, 'stat', checked(status))
    monkeypatch.setattr(os, 'listdir', checked(listing))
    with pytest.raises(PermissionError):
        tfds.identify('own', str(tmp_path), ('train', 'train'))


def test_unknown_set_is_an_error_with_a_suggestion(missing):
    message = missing('cifar11')
    assert "data.name='cifar11' is neither 'digits' nor 'folder' nor a TFDS image set" in message
    assert 'Did you mean' in message
    assert 'cifar10' in message


def _cifar(directory, **changes):
    options = {'seed': 0, 'valid_fraction': 0.2, 'dir': str(directory), **changes}
    return datasets.load('cifar10', **options)


def test_cifar10_is_read_without_tensorflow(cifar_dir):
    d = _cifar(cifar_dir, train_split='train[:500]', test_split='test[:100]')
    assert (len(d.train), len(d.valid), len(d.test)) == (400, 100, 100)
    assert d.image_shape == (32, 32, 3)
    assert d.class_names[:2] == ('airplane', 'automobile')
    np.testing.assert_allclose(d.mean, [125, 123, 114], atol=8)


def test_large_set_is_streamed_with_the_same_images(cifar_dir):
    options = {'train_split': 'train[:300]', 'test_split': 'test[:60]'}
    streamed = _cifar(cifar_dir, resident_megabytes=0, **options)
    resident = _cifar(cifar_dir, **options)
    assert streamed.images.arrays is None
    tight = _cifar(cifar_dir, resident_megabytes=1, **options)  # each part has room, both have not
    assert tight.images.arrays is None
    for indices in (np.array([5, 250, 7]), np.array([301, 359])):
        for one, other in zip(
            streamed.images.read(indices), resident.images.read(indices), strict=True
        ):
            np.testing.assert_array_equal(one, other)


def test_unknown_split_is_an_error_that_names_the_known_ones(cifar_dir):
    with pytest.raises(UserError, match=r"no split 'validation' \(it has: train, test\)"):
        _cifar(cifar_dir, test_split='validation')


@pytest.mark.parametrize('field', ['train_split', 'test_split'])
@pytest.mark.parametrize(
    'split', ['train[:0]', 'train[5:5]', 'train[8:3]', 'train[:1%]', 'train[-1:-1]']
)
def test_slice_without_images_is_told_as_that(tmp_path, field, split):
    pictures = [Image.new('L', (8, 8), 10 * i) for i in range(12)]
    prepared.write(tmp_path, 'own', 1, {'train': pictures, 'test': pictures[:4]}, 'ab')
    with pytest.raises(
        UserError, match=r'is empty: .* The set has train \(12\), test \(4\)'
    ) as told:
        datasets.load(
            'own',
            seed=0,
            valid_fraction=0.5,
            dir=str(tmp_path),
            image_size=8,
            **{field: split},
        )
    assert f'split {split!r}' in str(told.value)
    assert '\n' not in str(told.value)


class _Records:
    """Prepared records, as TFDS hands them over."""

    def __init__(self, labels=(0, 1, 2), broken=False):
        self.labels, self.broken = labels, broken

    def __len__(self):
        return len(self.labels)

    def __getitems__(self, indices):
        if self.broken:
            raise ValueError('crc of record 1 does not match\nmany\nframes')
        image = np.zeros((4, 4, 1), np.uint8)
        return [{'image': image, 'label': self.labels[i]} for i in indices]


def _set_of(records):
    features = {'label': types.SimpleNamespace(num_classes=3)}
    return tfds._image_set(records, lambda: records, features, ('image', 'label'), None, WHERE)


@pytest.mark.parametrize(
    ('records', 'message'),
    [
        (_Records(labels=(0, 3, 1)), r'a label is 3, but 3 classes have labels 0 to 2'),
        (_Records(labels=(0, -1, -1)), r'a label is -1, .* If this split has no labels'),
        (_Records(broken=True), r'between 0 and 2 cannot be read \(ValueError: crc .* match\)'),
    ],
)
def test_bad_records_are_one_clear_error(records, message):
    with pytest.raises(UserError, match=message):
        tfds._in_memory(_set_of(records))


def test_bad_records_of_a_streamed_set_are_an_error_when_they_are_met():
    images = _set_of(_Records(labels=(0, 1, 7)))
    for read in (images.read, images.labels_at):
        read(np.array([0, 1]))
        with pytest.raises(UserError, match='a label is 7'):
            read(np.array([2]))


@pytest.mark.parametrize(('mode', 'channels'), [('L', 1), ('RGB', 3)])
def test_any_tfds_set_is_read_whatever_its_keys_sizes_and_channels(tmp_path, mode, channels):
    pictures = [Image.new(mode, (9 + i, 8), 'white' if i % 2 else 'black') for i in range(12)]
    parts = {'train': pictures, 'validation': pictures[:4]}
    prepared.write(tmp_path, 'own', channels, parts, ('round', 'square'))
    options = {'seed': 0, 'valid_fraction': 0.5, 'dir': str(tmp_path), 'image_size': 6}
    with pytest.raises(UserError, match=r"no split 'test' \(it has: train, validation\)"):
        datasets.load('own', **options)
    for megabytes in (1024, 0):
        d = datasets.load('own', test_split='validation', resident_megabytes=megabytes, **options)
        assert (d.image_shape, d.class_names) == ((6, 6, channels), ('round', 'square'))
        assert (len(d.train), len(d.valid), len(d.test)) == (6, 6, 4)
        for part in (d.train, d.valid, d.test):
            images, labels = d.images.read(part)
            np.testing.assert_array_equal(images[:, 3, 3, 0], 255 * labels)
            np.testing.assert_array_equal(d.images.labels_at(part), labels)


@pytest.mark.parametrize(
    ('shape', 'dtype', 'message'),
    [
        ((8, 8), np.uint8, r"'set' has examples \(8, 8\) of uint8; they must be images"),
        ((4, 8, 8, 3), np.uint8, r'\(4, 8, 8, 3\) of uint8'),
        ((8, 8, None), np.uint8, r'\(8, 8, None\) of uint8'),
        ((8, 8, 3), np.uint16, r'\(8, 8, 3\) of uint16'),
        ((8, 8, 3), np.float32, r'\(8, 8, 3\) of float32'),
        ((None, None, 3), np.uint8, r'differ in size; set data.image_size'),
    ],
)
def test_examples_that_are_no_images_are_an_error(tmp_path, monkeypatch, shape, dtype, message):
    import tensorflow_datasets as tfds

    features = {
        'image': types.SimpleNamespace(shape=shape, np_dtype=dtype),
        'label': tfds.features.ClassLabel(num_classes=3),
    }
    info = types.SimpleNamespace(
        supervised_keys=('image', 'label'),
        features=features,
        file_format=tfds.core.file_adapters.FileFormat.ARRAY_RECORD,
    )
    builder = types.SimpleNamespace(info=info)
    monkeypatch.setattr(tfds, 'builder_from_directory', lambda _: builder)
    (tmp_path / 'set' / '1.0.0').mkdir(parents=True)
    (tmp_path / 'set' / '1.0.0' / 'dataset_info.json').write_text('')
    with pytest.raises(UserError, match=message):
        datasets.load('set', seed=0, valid_fraction=0.2, dir=str(tmp_path))


@pytest.mark.parametrize('fraction', [0.1, 0.2, 0.8])
def test_a_class_of_two_images_has_one_in_either_part(monkeypatch, fraction):
    labels = np.repeat(np.arange(3, dtype=np.int32), (200, 200, 2))
    learn = image_set.ImageSet.from_arrays(np.zeros((402, 4, 4, 1), np.uint8), labels)
    monkeypatch.setattr(dataset, '_digits', lambda _: (learn, learn, ('a', 'b', 'c')))
    for seed in range(3):
        found = _digits(valid_fraction=fraction, seed=seed)
        assert (labels[found.train] == 2).sum() == (labels[found.valid] == 2).sum() == 1
        both = np.concatenate([found.train, found.valid])
        np.testing.assert_array_equal(np.sort(both), np.arange(402))


def test_too_few_images_for_the_classes_are_an_error(monkeypatch):
    labels = np.arange(12, dtype=np.int32) % 10
    learn = image_set.ImageSet.from_arrays(np.zeros((12, 4, 4, 1), np.uint8), labels)
    monkeypatch.setattr(dataset, '_digits', lambda _: (learn, learn, tuple('abcdefghij')))
    with pytest.raises(UserError, match=r'needs at least 10\. There are too few images'):
        _digits()


@pytest.mark.parametrize(
    ('last', 'message'),
    [
        (0, 'has images of 1 class, but a classifier needs at least two'),
        (1, 'the class with label 1 has a single training image'),
    ],
)
def test_one_class_or_one_image_of_a_class_is_an_error(monkeypatch, last, message):
    labels = np.array([0] * 19 + [last], np.int32)
    learn = image_set.ImageSet.from_arrays(np.zeros((20, 4, 4, 1), np.uint8), labels)
    monkeypatch.setattr(dataset, '_digits', lambda _: (learn, learn, ('a', 'b')))
    with pytest.raises(UserError, match=message):
        _digits()


# --- Weights of classes


@pytest.mark.parametrize('streamed', [False, True])
def test_balanced_weights_are_those_by_hand_of_the_training_part_alone(streamed):
    """Six images of a, two of b, none of c: 8 / (2 * 6) and 8 / (2 * 2)."""
    labels = np.array([0, 1, 0, 0, 1, 0, 0, 0, 2, 2, 1], np.int32)
    images = image_set.ImageSet.from_arrays(np.zeros((11, 2, 2, 1), np.uint8), labels)
    if streamed:
        images = image_set.ImageSet(11, images.read)
    data = dataclasses.replace(
        _digits(),
        images=images,
        train=np.arange(8),
        valid=np.arange(8, 10),
        test=np.arange(10, 11),
        class_names=('a', 'b', 'c'),
    )
    weights = dataset.balanced_class_weights(data)
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights, [8 / 12, 8 / 4, 0], rtol=1e-6)
    assert weights[labels[:8]].mean() == pytest.approx(1)


def test_labels_of_a_streamed_set_are_read_without_its_images(tmp_path, monkeypatch):
    d = _own(tmp_path, 'train', 'validation', resident_megabytes=0)
    monkeypatch.setattr(image_set, 'resize_all', None)
    np.testing.assert_allclose(dataset.balanced_class_weights(d)[d.train % 2].mean(), 1)
    with pytest.raises(TypeError):
        d.images.read(d.train)


# --- Splits of a TFDS set


def _own(directory, train, test, **changes):
    """Ten images in `train`, all different, and four in `validation`."""
    if not (directory / 'own').exists():
        pictures = [Image.new('L', (8, 8), 10 * i) for i in range(10)]
        prepared.write(directory, 'own', 1, {'train': pictures, 'validation': pictures[:4]}, 'ab')
    options = {'seed': 0, 'valid_fraction': 0.5, 'image_size': 8, 'dir': str(directory)}
    return datasets.load('own', train_split=train, test_split=test, **options, **changes)


@pytest.mark.parametrize(
    ('train', 'test', 'shared'),
    [
        ('train', 'train', r"10 images \('train\[0:10\]'\)"),
        ('train[:80%]', 'train[70%:]', r"1 image \('train\[7:8\]'\)"),
        ('train[:8]', 'train[4:]', r"4 images \('train\[4:8\]'\)"),
        ('validation+train[:5]', 'train[:2]+train[4:]', r'3 images .* and 1 more\)'),
        ('train', 'validation+train[-1:]', r"1 image \('train\[9:10\]'\)"),
    ],
)
def test_train_and_test_of_the_same_records_are_refused_with_what_they_share(
    tmp_path, train, test, shared
):
    with pytest.raises(UserError, match=f'share {shared}, so the test would use images') as error:
        _own(tmp_path, train, test)
    assert f'data.train_split={train!r} and data.test_split={test!r}' in str(error.value)


@pytest.mark.parametrize(
    ('train', 'test'),
    [
        ('train', 'validation'),
        ('train[:80%]', 'train[80%:]'),
        ('train[4:]+validation', 'train[:4]'),
        ('train[:4]', 'validation[:4]'),
    ],
)
def test_splits_without_common_records_are_taken_whatever_they_are_called(tmp_path, train, test):
    d = _own(tmp_path, train, test)
    assert d.identity.record == {
        **{'name': 'own', 'version': '1.0.0', 'train_split': train, 'test_split': test},
        **{'train_images': len(d.train) + len(d.valid), 'test_images': len(d.test)},
    }


def test_records_that_are_trained_on_twice_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"names 2 images \('train\[4:6\]'\) twice"):
        _own(tmp_path, 'train[:6]+train[4:]', 'validation')


@pytest.mark.parametrize(
    ('train', 'told'), [('train[:8]', 'share 1 image '), ('train[:3]+train[2:5]', 'names 1 image ')]
)
def test_run_that_began_on_splits_that_share_images_keeps_them_and_is_warned(
    tmp_path, train, told, caplog, monkeypatch
):
    monkeypatch.setattr(logging.getLogger('asose_jax'), 'propagate', True)
    d = _own(tmp_path, train, 'train[7:]', begun=True)
    assert d.identity.record['train_split'] == train
    (line,) = caplog.messages
    assert told in line
    assert line.endswith('The run began with these splits and keeps them.')


@pytest.mark.parametrize(
    ('train', 'test', 'told'),
    [
        ('train[4:]', 'train[:4]', False),
        ('train[:4]', 'train[4:]', True),
        ('train[4:]', 'validation', True),
    ],
)
def test_weights_that_may_know_the_test_images_of_a_set_are_told(
    tmp_path, train, test, told, caplog, monkeypatch
):
    monkeypatch.setattr(logging.getLogger('asose_jax'), 'propagate', True)
    source = _own(tmp_path, 'train[4:]', 'train[:4]')
    recorded = {'classes': ['a', 'b'], 'data': source.identity.record}
    (tmp_path / 'run.json').write_text(json.dumps(recorded))
    dataset.warn_of_other_pictures(_own(tmp_path, train, test), tmp_path)
    assert any('may be in the test split of this run' in line for line in caplog.messages) == told


@pytest.mark.parametrize('url', ['gs://bucket/tfds', 's3://bucket'])
def test_prepared_sets_at_a_url_are_refused_also_where_the_environment_names_them(monkeypatch, url):
    monkeypatch.setenv('TFDS_DATA_DIR', url)
    with pytest.raises(
        UserError, match=rf'^{url[:2]}:// paths are not supported yet: \$TFDS_DATA_DIR={url!r}'
    ):
        datasets.load('cifar10', seed=0, valid_fraction=0.2)


def test_another_version_of_a_set_is_another_set(tmp_path):
    before = _own(tmp_path, 'train', 'validation').identity
    record = {**before.record, 'version': '0.9.0', 'train_images': 12}
    assert before.changes(record, {}) == [
        "version was '0.9.0', now '1.0.0'",
        'train_images was 12, now 10',
    ]


def test_split_of_a_set_of_arrays_is_that_of_earlier_versions():
    """The digits and TFDS sets: fixed here, so that runs of before go on."""
    d = _digits()
    assert d.identity is None
    assert d.valid[:8].tolist() == [3, 11, 12, 13, 15, 25, 26, 28]
    assert zlib.crc32(d.train.tobytes() + d.valid.tobytes()) == 845461276
    labels = np.arange(100, dtype=np.int32) % 3
    streamed = image_set.ImageSet(100, lambda i: (i, labels[i]))
    assert zlib.crc32(np.concatenate(dataset._split(streamed, 0.2, 5)).tobytes()) == 2153336709
