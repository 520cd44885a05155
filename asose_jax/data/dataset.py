"""Data sets, and their split into train / valid / test.

`train` moves the weights, `valid` moves alpha and decides, `test` reports and decides nothing.
"""

import dataclasses
import difflib
import os
import pathlib
from concurrent import futures

import numpy as np
from PIL import Image
from sklearn import model_selection

from asose_jax.data import image_folder
from asose_jax.data.image_set import ImageSet, fitted
from asose_jax.runtime.errors import UserError

_READ_AT_ONCE = 2000  # records per call when a set is loaded into memory
_STATISTICS_FROM = 10_000  # training images that mean and deviation are taken from
_STATISTICS_AT_ONCE = 100  # of them per thread


@dataclasses.dataclass(frozen=True, eq=False)
class Data:
    """A data set, split.

    Attributes:
      images: the training split followed by the test split.
      train: indices into `images`; with `valid`, a partition of the training split.
      valid: likewise.
      test: likewise; all of the test split.
      class_names: one per label.
      mean: per channel, of `train`, in pixel values 0..255; float32 `[C]`.
      std: standard deviation, likewise.
    """

    images: ImageSet
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: np.ndarray
    std: np.ndarray


def load(
    name: str,
    *,
    seed: int,
    valid_fraction: float,
    data_dir: str | None = None,
    train_split: str = 'train',
    test_split: str = 'test',
    test_fraction: float | None = None,
    image_size: int | None = None,
    resident_megabytes: int = 1024,
) -> Data:
    """Opens a data set and splits it.

    The split into train and valid depends on `seed` alone. It is stratified by label where the
    labels are known, and a plain shuffle where images are streamed from TFDS.

    Args:
      name: `'digits'` (comes with scikit-learn), `'folder'` (of pictures, see `image_folder.load`),
        or a TFDS name such as `'cifar10'`.
      seed: of the split.
      valid_fraction: share of the training split that is held out as `valid`.
      data_dir: of the pictures, or where TFDS data lies; `None` means $TFDS_DATA_DIR or
        ~/tensorflow_datasets.
      train_split: TFDS split or folder to learn from; slices such as `'train[:90%]'` work in TFDS.
      test_split: TFDS split or folder to report on.
      test_fraction: of a folder that has no such folder.
      image_size: height and width, see `image_set.fitted`; needed where images differ in size.
      resident_megabytes: a larger set is streamed from disk instead of held on the device.

    Returns:
      The data.

    Raises:
      UserError: no such set, not prepared, no such split, or a part would be empty.
    """
    splits, limit = (train_split, test_split), resident_megabytes * 2**20
    if name == 'digits':
        learn, test, names = _digits(image_size)
    elif name == 'folder':
        learn, test, names = image_folder.load(
            data_dir, splits, test_fraction=test_fraction, image_size=image_size, limit=limit
        )
    else:
        learn, test, names = _tfds(name, data_dir, splits, image_size, limit)
    labels = learn.labels
    present = names if labels is None else np.unique(labels)
    if len(present) < 2:
        raise UserError(
            f'data.name={name!r} has images of {len(present)} class; to tell classes apart takes '
            'two. Check data.name and data.train_split.'
        )
    train, valid = _split(learn.size, labels, valid_fraction, seed)
    mean, std = _statistics(learn, train)
    everything = learn.followed_by(test)
    held_back = np.arange(learn.size, everything.size, dtype=np.int32)
    shape = learn.read(train[:1])[0].shape[1:]
    return Data(everything, train, valid, held_back, names, shape, mean, std)


def _split(size, labels, valid_fraction, seed):
    held_out = round(size * valid_fraction)
    classes = 1 if labels is None else len(np.unique(labels))
    if held_out < classes or size - held_out < classes:
        filled = [share for share in (0.2, 0.5) if round(size * share) >= classes]
        advice = 'There are too few images.'
        if filled:
            advice = f'Choose a fraction that leaves both parts filled, e.g. {filled[0]}.'
        raise UserError(
            f'data.valid_fraction={valid_fraction} splits {size} training images into '
            f'{size - held_out} for train and {held_out} for valid, but each part needs at least '
            f'{classes}. {advice}'
        )
    if labels is not None and 1 in np.bincount(labels):
        raise UserError(
            f'of the class with label {np.bincount(labels).tolist().index(1)} there is a single '
            'training image; each class needs two, one for train and one for valid.'
        )
    parts = model_selection.train_test_split(
        np.arange(size), test_size=held_out, stratify=labels, random_state=seed
    )
    if labels is not None:
        parts = _every_class_in_both(*parts, labels)
    return [np.sort(part).astype(np.int32) for part in parts]


def _every_class_in_both(train, valid, labels):
    """One image of each class that one of the parts lacks, since it is small, moves there."""

    def missing(part, other):
        absent = np.setdiff1d(labels[other], labels[part])
        return np.array([other[labels[other] == label][0] for label in absent], other.dtype)

    to_valid, to_train = missing(valid, train), missing(train, valid)
    train, valid = np.setdiff1d(train, to_valid), np.setdiff1d(valid, to_train)
    return np.append(train, to_train), np.append(valid, to_valid)


def _statistics(learn, train):
    """Mean and deviation per channel, from evenly spaced training images, in float64."""
    every = -(-len(train) // _STATISTICS_FROM)
    chosen = train[::every]

    def sums(start):
        images = learn.read(chosen[start : start + _STATISTICS_AT_ONCE])[0].astype(np.float64)
        return images.sum((0, 1, 2)), (images**2).sum((0, 1, 2)), images[..., 0].size

    with futures.ThreadPoolExecutor() as pool:
        found = list(pool.map(sums, range(0, len(chosen), _STATISTICS_AT_ONCE)))
    total, squares, pixels = (sum(parts) for parts in zip(*found, strict=True))
    mean = total / pixels
    std = np.sqrt(np.maximum(squares / pixels - mean**2, 1.0))
    return mean.astype(np.float32), std.astype(np.float32)


def _digits(image_size):
    """1,797 handwritten digits, 8x8, of scikit-learn; a fifth, the same for all seeds, is test."""
    from sklearn import datasets  # imported here: it loads all of scikit-learn's readers

    bunch = datasets.load_digits()
    images = (bunch.images * (255 / 16)).round().astype(np.uint8)[..., None]
    images = _resized(images, image_size)
    labels = bunch.target.astype(np.int32)
    learn, test = model_selection.train_test_split(
        np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0
    )
    names = tuple(str(name) for name in bunch.target_names)
    sets = [ImageSet.of_arrays(images[part], labels[part]) for part in (learn, test)]
    return *sets, names


def _tfds(name, data_dir, splits, image_size, limit):
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
        images = np.stack([_resized(r[image_key][None], image_size)[0] for r in records])
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


def _resized(images, size):
    if size is None or images.shape[1:3] == (size, size):
        return images
    square = images.squeeze(-1) if images.shape[-1] == 1 else images
    scaled = [np.asarray(fitted(Image.fromarray(i), size)) for i in square]
    return np.stack(scaled).reshape(len(images), size, size, images.shape[-1])


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
