"""Data sets, and their split into train / valid / test.

`train` moves the weights, `valid` moves alpha and decides, `test` reports and decides nothing.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from concurrent import futures
from typing import Any

import numpy as np
from sklearn import model_selection

from asose_jax.data import image_folder, image_set, tfds
from asose_jax.data.image_set import ImageSet
from asose_jax.runtime.errors import UserError

_STATISTICS_FROM = 10_000  # training images that mean and deviation are taken from
_STATISTICS_AT_ONCE = 100  # of them per thread


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
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
) -> Dataset:
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
        learn, test, names = tfds.load(name, data_dir, splits, image_size, limit)
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
    return Dataset(everything, train, valid, held_back, names, shape, mean, std)


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
    images = image_set.resized(images, image_size)
    labels = bunch.target.astype(np.int32)
    learn, test = model_selection.train_test_split(
        np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0
    )
    names = tuple(str(name) for name in bunch.target_names)
    sets = [ImageSet.of_arrays(images[part], labels[part]) for part in (learn, test)]
    return *sets, names


_NAMED = 5  # changes in a message


def require_same_data(images: Dataset, known: Mapping[str, Any], directory: pathlib.Path) -> None:
    """Refuses data that changed: split anew, what was learned from would come into the test.

    Args:
      images: as they are now.
      known: what was written of them, as in run.json; what is not there is not compared.
      directory: the workdir.

    Raises:
      UserError: other classes, another number of images, or images of another shape.
    """
    now, counts = list(images.class_names), sizes(images)
    then, counted = list(known.get('classes', now)), known.get('images', counts)
    changes = [
        *(f'the class {name!r} is new' for name in now if name not in then),
        *(f'the class {name!r} is gone' for name in then if name not in now),
    ]
    if now != then and not changes:
        changes.append('the classes are in another order')
    if counts != counted:
        changes.append(f'there were {_listed(counted)} images, there are {_listed(counts)}')
    shape, shaped = list(images.image_shape), known.get('image_shape')
    if shaped not in (None, shape):
        changes.append(f'images were {shaped} (height, width, channels), they are {shape}')
    if changes:
        more = [f'and {len(changes) - _NAMED} more'] if len(changes) > _NAMED else []
        raise UserError(
            f'the data are not those of the run in {directory}: '
            f'{"; ".join(changes[:_NAMED] + more)}. They are split anew when they change, and what '
            'was learned from may come into the test. Put them back as they were, or start a run '
            'in another --workdir.'
        )


def sizes(images):
    return {name: len(getattr(images, name)) for name in ('train', 'valid', 'test')}


def _listed(counts):
    return ', '.join(f'{count} {name}' for name, count in counts.items())
