"""Image classification sets of TensorFlow Datasets, read without TensorFlow."""

import difflib
import os
import pathlib

import numpy as np

from asose_jax.data import image_set
from asose_jax.data.image_set import ImageSet
from asose_jax.runtime.errors import UserError

_READ_AT_ONCE = 2000  # records per call when a set is loaded into memory


def load(name, data_dir, splits, image_size, limit):
    import tensorflow_datasets as tfds  # imported here: seconds that digits need not pay

    root = pathlib.Path(data_dir or os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets'))
    root = root.expanduser()
    builder = tfds.builder_from_directory(_prepared(tfds, name, root))
    info = builder.info
    keys = (info.supervised_keys or ())[:2]  # a third one would weigh examples
    if not keys or not isinstance(info.features[keys[1]], tfds.features.ClassLabel):
        raise UserError(f'data.name={name!r} is not an image classification set: {info.features}')
    if info.file_format is not tfds.core.file_adapters.FileFormat.ARRAY_RECORD:
        raise UserError(
            f'data.name={name!r} is prepared as {info.file_format.value}, which cannot be read '
            f'without TensorFlow. Prepare it as array_record: {_prepare_command(name, root)}'
        )
    image = info.features[keys[0]]
    if len(image.shape) != 3 or image.shape[-1] is None or image.np_dtype != np.uint8:
        raise UserError(
            f'data.name={name!r} has examples {image.shape} of {np.dtype(image.np_dtype)}; they '
            'must be images (height, width, channels) of uint8.'
        )
    if None in image.shape and image_size is None:
        raise UserError(
            f'the images of {name!r} differ in size; set data.image_size, for example '
            '--config.data.image_size=64'
        )
    sets = []
    for split in splits:
        try:
            source = builder.as_data_source(split)
        except ValueError as error:
            raise UserError(
                f'{name!r} has no split {split!r} (it has: {", ".join(info.splits)}). Set '
                'data.train_split and data.test_split; slices such as '
                "--config.data.test_split='train[90%:]' work too."
            ) from error
        where = f'{name!r}, split {split!r}'
        sets.append(_image_set(source, info.features, keys, image_size, where))
    size = sum(part.size * part.read(np.arange(1))[0].nbytes for part in sets)
    if size <= limit:
        sets = [_in_memory(part) for part in sets]
    return *sets, tuple(info.features[keys[1]].names)


def _image_set(source, features, keys, image_size, where):
    image_key, label_key = keys
    classes = features[label_key].num_classes

    def read(indices):
        try:
            records = source.__getitems__([int(i) for i in indices])
        except Exception as error:  # of array_record, of TFDS, of the decoder
            told = (str(error).splitlines() or [''])[0][:200]
            raise UserError(
                f'{where}: of the records {indices.min()} to {indices.max()} one cannot be read '
                f'({type(error).__name__}: {told}). Prepare the data set again.'
            ) from error
        images = np.stack([image_set.resized(r[image_key][None], image_size)[0] for r in records])
        labels = np.array([r[label_key] for r in records], np.int32)
        odd = labels[(labels < 0) | (labels >= classes)]
        if len(odd):
            raise UserError(
                f'{where}: a label is {odd[0]}, where {classes} classes have 0 to {classes - 1}. '
                'Has this split labels? Choose another with data.train_split, data.test_split.'
            )
        return images, labels

    if not len(source):
        raise UserError(f'{where} is empty; check data.train_split and data.test_split')
    return ImageSet(len(source), read)


def _in_memory(images):
    starts = range(0, images.size, _READ_AT_ONCE)
    parts = [images.read(np.arange(s, min(s + _READ_AT_ONCE, images.size))) for s in starts]
    return ImageSet.of_arrays(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _prepared(tfds, name, root):
    """The directory of the newest prepared version of `name` (TFDS syntax: name/config:version)."""
    path, _, version = name.partition(':')
    versions = (root / path).glob(f'{version or "*"}/dataset_info.json')
    found = sorted((v.parent for v in versions), key=lambda d: [int(n) for n in d.name.split('.')])
    if found:
        return found[-1]
    known = tfds.list_builders(with_community_datasets=False)
    plain = path.split('/')[0]
    if plain not in known:
        near = difflib.get_close_matches(plain, [*known, 'digits', 'folder'], n=3)
        hint = f' Did you mean {" or ".join(near)}?' if near else ''
        raise UserError(
            f"data.name={name!r} is neither 'digits' nor 'folder' nor a TFDS image set, and "
            f'nothing by that name is prepared under {root}.{hint}'
        )
    raise UserError(
        f'{name!r} is not prepared under {root} (data.dir or $TFDS_DATA_DIR). On a machine with a '
        f'network and TensorFlow (pip install tensorflow), run: {_prepare_command(name, root)}'
    )


def _prepare_command(name, root):
    return (
        f"python -c \"import tensorflow_datasets as tfds; tfds.builder('{name}', "
        f"data_dir='{root}', file_format='array_record').download_and_prepare()\""
    )
