"""Data sets and their split into train, valid and test.

`train` trains the weights. `valid` trains alpha and is the basis of every decision. `test` is only
reported.
"""

import dataclasses
import logging
import pathlib
from collections.abc import Mapping
from concurrent import futures
from typing import Any, cast

import ml_collections
import numpy as np
from sklearn import model_selection
from sklearn.utils import class_weight

from asose_jax.data import content_split, image_folder, image_set, tfds
from asose_jax.data.fingerprint import Identity
from asose_jax.data.image_set import ImageSet
from asose_jax.runtime.errors import UserError, counted
from asose_jax.runtime.workdir import read_json_object

logger = logging.getLogger('asose_jax')

_STATISTICS_IMAGES = 10_000  # mean and deviation use about this many training images
_STATISTICS_PER_READ = 100  # images that a thread reads at once for the statistics
FILES = 'data.json'  # in a workdir: the hash of each picture of a folder, by its path
_LABELS_PER_READ = 2000  # records of a streamed set that are read at once for their labels
_MAX_CHANGES = 5  # changes of the data that one error message lists


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A data set with its split.

    Attributes:
      images: the images of the training split followed by those of the test split.
      train: indices into `images`, int32; `train` and `valid` partition the training split.
      valid: indices into `images`, int32.
      test: indices into `images`, int32: the whole test split.
      class_names: one name for each label.
      image_shape: `(H, W, C)`.
      mean: mean of each channel over `train`, in pixel values 0..255, float32 `[C]`.
      std: standard deviation of each channel, in the same units, float32 `[C]`.
      identity: what a run records, to recognise the data later; `None` for the digits.
    """

    images: ImageSet
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: np.ndarray
    std: np.ndarray
    identity: Identity | None = None


def load(data: ml_collections.ConfigDict, seed: int, *, split_by: str, begun: bool) -> Dataset:
    """Opens a data set and splits it.

    The split into train and valid depends on `seed` alone, and for a folder of pictures on the
    bytes of its files. It is stratified by label where the labels are known, and a plain shuffle
    where images are streamed from TFDS.

    Args:
      data: the group `data` of the config.
      seed: seed of the split.
      split_by: for a folder of pictures: `'content'`, or `'position'` as in runs that were begun
        by older versions, see `image_folder.load`.
      begun: whether a run was already trained on these data, see `tfds.load`.

    Returns:
      The data set.

    Raises:
      UserError: the set is unknown, not prepared or not readable, it has no such split, the test
        split shares images with the training split, or a part would be empty.
    """
    name, splits = data.name, (data.train_split, data.test_split)
    resident_bytes = data.resident_megabytes * 2**20
    identity = None
    if name == 'digits':
        learn, test, names = _digits(data.image_size)
    elif name == 'folder':
        learn, test, identity, names = image_folder.load(
            data.dir,
            splits,
            test_fraction=data.test_fraction,
            image_size=data.image_size,
            resident_bytes=resident_bytes,
            split_by=split_by,
        )
    else:
        learn, test, identity, names = tfds.load(
            name, data.dir, splits, data.image_size, resident_bytes, begun
        )
    labels = learn.labels
    present = names if labels is None else np.unique(labels)
    if len(present) < 2:
        raise UserError(
            f'data.name={name!r} has images of {counted(len(present), "class", "classes")}, but a '
            'classifier needs at least two. Check data.name and data.train_split.'
        )
    train, valid = _split(learn, data.valid_fraction, seed)
    mean, std = _statistics(learn, train)
    both = learn.concatenate(test)
    test_indices = np.arange(learn.size, both.size, dtype=np.int32)
    shape = learn.read(train[:1])[0].shape[1:]
    return Dataset(both, train, valid, test_indices, names, shape, mean, std, identity)


def identify(data: ml_collections.ConfigDict, split_by: str) -> Identity | None:
    """Returns the identity of the data set that `load` would open, without decoding its images.

    Raises:
      MissingDataError: there is no such folder, or the set is not prepared.
      UserError: the data cannot be listed, or have no such split.
    """
    splits = (data.train_split, data.test_split)
    if data.name == 'digits':
        return None
    if data.name != 'folder':
        return tfds.identify(data.name, data.dir, splits)
    return image_folder.identify(
        data.dir, splits, test_fraction=data.test_fraction, split_by=split_by
    )


def _split(images: ImageSet, valid_fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the sorted indices of `train` and of `valid`, int32."""
    size, labels = images.size, images.labels
    if not valid_fraction:
        return np.arange(size, dtype=np.int32), np.arange(0, dtype=np.int32)
    held_out = round(size * valid_fraction)
    classes = 1 if labels is None else len(np.unique(labels))
    if held_out < classes or size - held_out < classes:
        possible = [share for share in (0.2, 0.5) if round(size * share) >= classes]
        advice = 'There are too few images.'
        if possible:
            advice = f'Choose a fraction that leaves enough for both, e.g. {possible[0]}.'
        raise UserError(
            f'data.valid_fraction={valid_fraction} splits {size} training images into '
            f'{size - held_out} for train and {held_out} for valid, but each part needs at least '
            f'{classes}. {advice}'
        )
    if labels is not None and 1 in np.bincount(labels):
        raise UserError(
            f'the class with label {np.bincount(labels).tolist().index(1)} has a single training '
            'image, but each class needs two: one for train and one for valid.'
        )
    if labels is not None and images.contents is not None:
        targets = content_split.proportional(np.bincount(labels), held_out)
        chosen = content_split.choose(images.contents, labels, targets, 1, f'valid {seed}')
        if chosen is None:
            raise UserError(
                'no split was found that gives train and valid all classes, since identical '
                'pictures are in several classes. Remove the copies.'
            )
        return np.flatnonzero(~chosen).astype(np.int32), np.flatnonzero(chosen).astype(np.int32)
    train, valid = model_selection.train_test_split(
        np.arange(size), test_size=held_out, stratify=labels, random_state=seed
    )
    if labels is not None:
        train, valid = _with_every_class(np.asarray(train), np.asarray(valid), labels)
    return np.sort(train).astype(np.int32), np.sort(valid).astype(np.int32)


def _with_every_class(
    train: np.ndarray, valid: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Moves one image of each class that a part lacks, which a rare class may, to that part."""

    def missing(part: np.ndarray, other: np.ndarray) -> np.ndarray:
        absent = np.setdiff1d(labels[other], labels[part])
        return np.array([other[labels[other] == label][0] for label in absent], other.dtype)

    to_valid, to_train = missing(valid, train), missing(train, valid)
    train, valid = np.setdiff1d(train, to_valid), np.setdiff1d(valid, to_train)
    return np.append(train, to_train), np.append(valid, to_valid)


def _statistics(learn: ImageSet, train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and standard deviation per channel of evenly spaced images of `train`.

    Sums are accumulated in float64, and a standard deviation below 1 is returned as 1.
    """
    every = -(-len(train) // _STATISTICS_IMAGES)
    chosen = train[::every]

    def sums(start: int) -> tuple[np.ndarray, np.ndarray, int]:
        images = learn.read(chosen[start : start + _STATISTICS_PER_READ])[0].astype(np.float64)
        return images.sum((0, 1, 2)), (images**2).sum((0, 1, 2)), images[..., 0].size

    with futures.ThreadPoolExecutor() as pool:
        parts = list(pool.map(sums, range(0, len(chosen), _STATISTICS_PER_READ)))
    totals, squares, pixels = zip(*parts, strict=True)
    mean = cast(np.ndarray, sum(totals) / sum(pixels))
    std = np.sqrt(np.maximum(sum(squares) / sum(pixels) - mean**2, 1.0))
    return mean.astype(np.float32), std.astype(np.float32)


def balanced_class_weights(data: Dataset) -> np.ndarray:
    """Computes the weight of each class that makes all classes count alike in a loss.

    With n images in `train`, n_c of them of class c, and C classes in it, the weight is
    n / (C n_c), as in scikit-learn's `compute_class_weight`. So the mean weight of the images is 1.

    Returns:
      Weights by label, float32 `[classes]`; 0 for a class without training images.
    """
    parts = np.array_split(data.train, -(-len(data.train) // _LABELS_PER_READ))
    labels = np.concatenate([data.images.labels_at(part) for part in parts])
    present = np.unique(labels)
    weights = np.zeros(len(data.class_names), np.float32)
    weights[present] = class_weight.compute_class_weight('balanced', classes=present, y=labels)
    return weights


def _digits(image_size: int | None) -> tuple[ImageSet, ImageSet, tuple[str, ...]]:
    """Loads scikit-learn's 1,797 handwritten digits of 8x8 pixels.

    A fifth of them, the same for every seed, is the test split.
    """
    from sklearn import datasets  # imported here: it loads all of scikit-learn's readers

    bunch: Any = datasets.load_digits()
    images = (bunch.images * (255 / 16)).round().astype(np.uint8)[..., None]
    images = image_set.resize_all(images, image_size)
    labels = bunch.target.astype(np.int32)
    learn, test = model_selection.train_test_split(
        np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0
    )
    names = tuple(str(name) for name in bunch.target_names)
    learn, test = (ImageSet.from_arrays(images[part], labels[part]) for part in (learn, test))
    return learn, test, names


def require_same_data(data: Dataset, recorded: Mapping[str, Any], workdir: pathlib.Path) -> None:
    """Checks that the data are still those of an earlier run.

    A changed set is split anew, so images that the run was trained on could end up in its test
    split.

    Args:
      data: the data set as it is now.
      recorded: what the run recorded about it in run.json: `classes`, `images` (see `split_sizes`),
        `image_shape` and `data` (see `Identity`). Missing entries are not compared.
      workdir: the directory of the run; data.json in it lists the pictures of a folder.

    Raises:
      UserError: the classes, the images, their number or their shape differ.
    """
    changes = [*_identity_changes(data.identity, recorded, workdir), *_changes(data, recorded)]
    _refuse_changes(changes, workdir)


def require_same_identity(
    identity: Identity | None, recorded: Mapping[str, Any], workdir: pathlib.Path
) -> None:
    """Checks what `require_same_data` checks, as far as it is known without reading the images.

    Raises:
      UserError: the data differ.
    """
    _refuse_changes(_identity_changes(identity, recorded, workdir), workdir)


def recorded_split(recorded: Mapping[str, Any], workdir: pathlib.Path) -> str:
    """Returns how the run in `workdir` splits a folder of pictures, see `image_folder.load`.

    Raises:
      UserError: nothing is recorded.
    """
    if not recorded:
        raise UserError(
            f'{workdir / "run.json"} is missing or cannot be read, so it is not known which data '
            'the run was trained on. Restore it, or start a run in another --workdir.'
        )
    known = recorded.get('data')
    return known.get('split_by', 'content') if isinstance(known, dict) else 'position'


def warn_of_other_pictures(data: Dataset, source: pathlib.Path) -> None:
    """Warns if pictures that another run was trained on may be in this run's test split.

    Args:
      data: the data set of this run.
      source: the workdir of the other run, from which this one takes weights or the genotype.
    """
    if data.identity is None:
        return
    recorded, record = read_json_object(source / 'run.json'), data.identity.record
    if recorded.get('classes') != list(data.class_names):
        return
    known, counts = recorded.get('data'), recorded.get('images')
    if not isinstance(known, dict):  # of an older version, which split folders by position
        other_split = data.identity.files is not None
    elif known.get('name') != record['name']:
        return
    elif data.identity.files is None:
        other_split = any(known.get(key, value) != value for key, value in record.items())
    else:  # the digest does not depend on data.test_fraction, the number of test images does
        tested = counts.get('test') if isinstance(counts, dict) else None
        other_split = known.get('digest') != record['digest'] or tested != len(data.test)
    if other_split:
        logger.warning(
            '%s was trained with another split of these classes, so pictures that it learned from '
            'may be in the test split of this run: its test accuracy may be too high',
            source,
        )


def _identity_changes(
    identity: Identity | None, recorded: Mapping[str, Any], workdir: pathlib.Path
) -> list[str]:
    known = recorded.get('data')
    if identity is None or not isinstance(known, dict):
        return []
    return identity.changes(known, read_json_object(workdir / FILES))


def _refuse_changes(changes: list[str], workdir: pathlib.Path) -> None:
    if not changes:
        return
    more = [f'and {len(changes) - _MAX_CHANGES} more'] if len(changes) > _MAX_CHANGES else []
    raise UserError(
        f'the data differ from those of the run in {workdir}: '
        f'{"; ".join(changes[:_MAX_CHANGES] + more)}. Changed data are split anew, so images that '
        'the run was trained on could be used to test it. Restore the data, or start a run in '
        'another --workdir.'
    )


def _changes(data: Dataset, recorded: Mapping[str, Any]) -> list[str]:
    """Describes each difference between the data and what a run recorded about them."""
    now, counts = list(data.class_names), split_sizes(data)
    before, counts_before = list(recorded.get('classes', now)), recorded.get('images', counts)
    changes = [
        *(f'the class {name!r} is new' for name in now if name not in before),
        *(f'the class {name!r} is gone' for name in before if name not in now),
    ]
    if now != before and not changes:
        changes.append('the classes are in another order')
    if counts != counts_before:
        changes.append(f'there were {_listed(counts_before)} images, now {_listed(counts)}')
    shape, shape_before = list(data.image_shape), recorded.get('image_shape')
    if shape_before not in (None, shape):
        changes.append(f'images were {shape_before} (height, width, channels), now {shape}')
    return changes


def split_sizes(data: Dataset) -> dict[str, int]:
    """Returns the number of images in `train`, `valid` and `test`."""
    return {name: len(getattr(data, name)) for name in ('train', 'valid', 'test')}


def _listed(counts: Mapping[str, int]) -> str:
    return ', '.join(f'{count} {name}' for name, count in counts.items())
