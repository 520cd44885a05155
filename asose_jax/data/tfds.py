"""Image classification sets of TensorFlow Datasets, read without TensorFlow."""

import contextlib
import difflib
import fnmatch
import functools
import itertools
import logging
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from asose_jax.data import image_set
from asose_jax.data.fingerprint import Identity, MissingDataError
from asose_jax.data.image_set import ImageSet
from asose_jax.runtime import paths
from asose_jax.runtime.errors import UserError, counted

logger = logging.getLogger('asose_jax')

_READ_AT_ONCE = 2000  # records per call when a set is loaded into memory


class _Source(Protocol):
    """The part of a TFDS data source that is used here: records by their indices."""

    def __len__(self) -> int:
        """Returns the number of records."""
        ...

    def __getitems__(self, indices: list[int], /) -> list[Mapping[str, Any]]:
        """Returns the decoded records at `indices`."""
        ...


def load(
    name: str,
    data_dir: str | None,
    splits: tuple[str, str],
    image_size: int | None,
    resident_bytes: int,
    begun: bool,
) -> tuple[ImageSet, ImageSet, Identity, tuple[str, ...]]:
    """Opens a prepared image classification set of TFDS.

    Args:
      name: the set in the syntax of TFDS, `NAME[/CONFIG][:VERSION]`.
      data_dir: directory of the prepared sets; `None` means $TFDS_DATA_DIR or
        ~/tensorflow_datasets.
      splits: TFDS splits to train on and to test on; slices such as `'train[:90%]'` work.
      image_size: see `image_set.center_square`; required where images differ in size.
      resident_bytes: both splits together are streamed from disk if they are larger than this.
      begun: whether a run was already trained on these splits. If they share images, it goes on
        with a warning.

    Returns:
      The images to train on, the images to test on, the identity of the set, and the class names.

    Raises:
      UserError: the set is unknown, not prepared as array_record, or not an image classification
        set of uint8 images, it has no such split, or the splits of a new run share images.
    """
    import tensorflow_datasets as tfds  # imported here: it takes seconds, which digits do not need

    builder, root = _builder(name, data_dir)
    features: Any = builder.info.features
    keys = _keys(tfds, builder.info, name, root)
    _require_images(features[keys[0]], name, image_size)
    learn, test = (
        _image_set(
            _source(builder, split, name),
            functools.partial(_source, builder, split, name, {keys[0]: tfds.decode.SkipDecoding()}),
            features,
            keys,
            image_size,
            f'{name!r}, split {split!r}',
        )
        for split in splits
    )
    try:
        require_disjoint(builder.info.splits, splits, name)
    except OverlapError as error:
        if not begun:
            raise
        logger.warning('%s. The run began with these splits and keeps them.', error.overlap)
    size = sum(part.size * part.read(np.arange(1))[0].nbytes for part in (learn, test))
    if size <= resident_bytes:
        learn, test = _in_memory(learn), _in_memory(test)
    identity = _identity(builder.info, splits, name)
    return learn, test, identity, tuple(features[keys[1]].names)


def identify(name: str, data_dir: str | None, splits: tuple[str, str]) -> Identity:
    """Returns the identity that `load` would return; reads no images.

    Raises:
      MissingDataError: the set is not prepared.
      UserError: it has no such split.
    """
    builder, _ = _builder(name, data_dir)
    return _identity(builder.info, splits, name)


def _builder(name: str, data_dir: str | None) -> tuple[Any, pathlib.Path]:
    """Returns the builder of a prepared set, and the directory of the prepared sets."""
    import tensorflow_datasets as tfds

    if not data_dir:
        data_dir = os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
        paths.require_local(data_dir, '$TFDS_DATA_DIR')
    try:
        root = pathlib.Path(data_dir).expanduser()
    except RuntimeError as error:
        raise UserError(
            f'data.name={name!r}: prepared sets are looked for in {data_dir}, but the home '
            'directory is unknown. Set data.dir, $TFDS_DATA_DIR or $HOME.'
        ) from error
    place = _prepared(tfds, name, root)
    try:
        builder = tfds.builder_from_directory(place)
        if builder.info.features is None:  # they are read on first use
            raise ValueError('it has no features')
    except OSError:
        raise
    except Exception as error:  # TFDS, protobuf and JSON raise different types
        raise UserError(
            f'{place} cannot be read ({_first_line(error)}). Remove it, and prepare the data set '
            f'again: {_prepare_command(name, root)}'
        ) from error
    return builder, root


def _identity(info: Any, splits: tuple[str, str], name: str) -> Identity:
    train, test = splits
    sizes = [_split_info(info, split, name).num_examples for split in splits]
    record = {'name': name.partition(':')[0], 'version': str(info.version)}
    record |= {'train_split': train, 'train_images': sizes[0]}
    return Identity({**record, 'test_split': test, 'test_images': sizes[1]})


def _split_info(info: Any, split: str, name: str) -> Any:
    try:
        return info.splits[split]
    except (KeyError, ValueError) as error:
        raise _no_such_split(info, split, name) from error


class OverlapError(UserError):
    """Splits share images.

    Attributes:
      overlap: which splits share how many images, and what that means.
    """

    def __init__(self, overlap: str, advice: str) -> None:
        """Joins the two sentences."""
        super().__init__(f'{overlap}. {advice}')
        self.overlap = overlap


def require_disjoint(split_infos: Any, splits: tuple[str, str], name: str) -> None:
    """Fails if the images to train on and to test on overlap, or if one is trained on twice.

    Splits are compared by the records that they read, not by their names.

    Args:
      split_infos: of the set, by split or slice.
      splits: to train on and to test on.
      name: of the set, for the message.

    Raises:
      OverlapError: says how many images are shared, and which.
    """
    first: dict[str, tuple[str, int]] = {}  # split and number of the first record, by file
    for split in split_infos:
        start = 0
        for part in split_infos[split].file_instructions:
            first[part.filename] = (split, start)
            start += part.examples_in_shard

    def ranges(split: str) -> list[tuple[str, int, int]]:
        found = []
        for part in split_infos[split].file_instructions:
            base, start = first[part.filename]
            count = part.examples_in_shard - part.skip if part.take < 0 else part.take
            found.append((base, start + part.skip, start + part.skip + count))
        return found

    train, test = map(ranges, splits)
    advice = (
        "Choose parts without common images, e.g. --config.data.train_split='train[:90%]' "
        "--config.data.test_split='train[90%:]'."
    )
    if shared := _common((one, other) for one in train for other in test):
        raise OverlapError(
            f'data.train_split={splits[0]!r} and data.test_split={splits[1]!r} of {name!r} share '
            f'{_count_and_first(shared)}, so the test would use images that were trained on',
            advice,
        )
    if shared := _common(itertools.combinations(train, 2)):
        raise OverlapError(
            f'data.train_split={splits[0]!r} of {name!r} names {_count_and_first(shared)} twice, '
            'so train and valid would share images',
            'Name each part once.',
        )


_Range = tuple[str, int, int]  # split, first record, record after the last one


def _common(pairs: Iterable[tuple[_Range, _Range]]) -> list[_Range]:
    """Returns the sorted ranges that both of any pair have; adjacent ones are joined."""
    both = sorted(
        (split, max(start, other_start), min(stop, other_stop))
        for (split, start, stop), (other, other_start, other_stop) in pairs
        if split == other and max(start, other_start) < min(stop, other_stop)
    )
    joined: list[_Range] = []
    for each in both:
        if joined and joined[-1][0] == each[0] and each[1] <= joined[-1][2]:
            split, start, stop = joined.pop()
            joined.append((split, start, max(stop, each[2])))
        else:
            joined.append(each)
    return joined


def _count_and_first(ranges: list[_Range]) -> str:
    """Returns how many images the ranges have, and the first range: "4 images ('train[4:8]')"."""
    count = sum(stop - start for _, start, stop in ranges)
    split, start, stop = ranges[0]
    more = f' and {len(ranges) - 1} more' if len(ranges) > 1 else ''
    return f"{counted(count, 'image')} ('{split}[{start}:{stop}]'{more})"


def _keys(tfds: ModuleType, info: Any, name: str, root: pathlib.Path) -> tuple[str, str]:
    """Returns the keys of image and label; fails if the set cannot be read as such pairs."""
    keys = (info.supervised_keys or ())[:2]  # a third key would be a weight of the example
    if not keys or not isinstance(info.features[keys[1]], tfds.features.ClassLabel):
        raise UserError(f'data.name={name!r} is not an image classification set: {info.features}')
    if info.file_format is not tfds.core.file_adapters.FileFormat.ARRAY_RECORD:
        raise UserError(
            f'data.name={name!r} is prepared as {info.file_format.value}, which cannot be read '
            f'without TensorFlow. Prepare it as array_record: {_prepare_command(name, root)}'
        )
    return keys


def _require_images(feature: Any, name: str, image_size: int | None) -> None:
    """Fails unless the feature holds uint8 images of one size, or `image_size` makes them so."""
    if len(feature.shape) != 3 or feature.shape[-1] is None or feature.np_dtype != np.uint8:
        raise UserError(
            f'data.name={name!r} has examples {feature.shape} of {np.dtype(feature.np_dtype)}; '
            'they must be images (height, width, channels) of uint8.'
        )
    if None in feature.shape and image_size is None:
        raise UserError(
            f'the images of {name!r} differ in size; set data.image_size, for example '
            '--config.data.image_size=64'
        )


def _source(
    builder: Any, split: str, name: str, decoders: Mapping[str, Any] | None = None
) -> _Source:
    if _split_info(builder.info, split, name).num_examples <= 0:
        raise UserError(
            f'{name!r}, split {split!r} is empty: the slice takes no image. The set has '
            f'{_sizes(builder.info)}; check data.train_split and data.test_split.'
        )
    try:
        return builder.as_data_source(split, decoders=decoders)
    except ValueError as error:
        raise _no_such_split(builder.info, split, name) from error


def _sizes(info: Any) -> str:
    return ', '.join(f'{name} ({info.splits[name].num_examples})' for name in info.splits)


def _no_such_split(info: Any, split: str, name: str) -> UserError:
    return UserError(
        f'{name!r} has no split {split!r} (it has: {", ".join(info.splits)}). Set data.train_split '
        "and data.test_split; slices such as --config.data.train_split='train[:90%]' "
        "--config.data.test_split='train[90%:]' work too."
    )


def _image_set(
    source: _Source,
    open_encoded: Callable[[], _Source],
    features: Mapping[str, Any],
    keys: tuple[str, str],
    image_size: int | None,
    description: str,
) -> ImageSet:
    """Wraps a data source as a streamed set of images.

    Args:
      source: the records of one split.
      open_encoded: opens the same without decoding the images, from which labels are read alone.
      features: the features of a record by key.
      keys: keys of image and label.
      image_size: see `image_set.center_square`.
      description: names the set and the split in error messages.

    `read` of the returned set raises UserError for a damaged record or a label out of range.
    """
    image_key, label_key = keys
    classes = features[label_key].num_classes

    opened = functools.cache(open_encoded)

    def records_at(indices: np.ndarray, records: _Source) -> list[Mapping[str, Any]]:
        try:
            return records.__getitems__([int(i) for i in indices])
        except Exception as error:  # array_record, TFDS and the decoder raise different types
            raise UserError(
                f'{description}: a record between {indices.min()} and {indices.max()} cannot be '
                f'read ({_first_line(error)}). Prepare the data set again.'
            ) from error

    def labels_of(records: list[Mapping[str, Any]]) -> np.ndarray:
        labels = np.array([r[label_key] for r in records], np.int32)
        invalid = labels[(labels < 0) | (labels >= classes)]
        if len(invalid):
            raise UserError(
                f'{description}: a label is {invalid[0]}, but {classes} classes have labels 0 to '
                f'{classes - 1}. If this split has no labels, choose another with '
                'data.train_split and data.test_split.'
            )
        return labels

    def read(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        records = records_at(indices, source)
        images = np.stack(
            [image_set.resize_all(r[image_key][None], image_size)[0] for r in records]
        )
        return images, labels_of(records)

    def read_labels(indices: np.ndarray) -> np.ndarray:
        return labels_of(records_at(indices, opened()))

    return ImageSet(len(source), read, read_labels=read_labels)


def _in_memory(images: ImageSet) -> ImageSet:
    starts = range(0, images.size, _READ_AT_ONCE)
    parts = [images.read(np.arange(s, min(s + _READ_AT_ONCE, images.size))) for s in starts]
    return ImageSet.from_arrays(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _prepared(tfds: ModuleType, name: str, root: pathlib.Path) -> pathlib.Path:
    """Returns the directory of the newest prepared version of `name` (see `load`)."""
    path, _, version = name.partition(':')
    found = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        found = [
            entry
            for entry in os.listdir(root / path)  # `glob` passes over what may not be read
            if fnmatch.fnmatchcase(entry, version or '*')
            and (root / path / entry / 'dataset_info.json').exists()
        ]
    versions = [entry for entry in found if re.fullmatch(r'\d+\.\d+\.\d+', entry)]
    if versions:
        return root / path / max(versions, key=lambda entry: [*map(int, entry.split('.'))])
    known = tfds.list_builders(with_community_datasets=False)
    base_name = path.split('/')[0]
    if base_name not in known:
        close = difflib.get_close_matches(base_name, [*known, 'digits', 'folder'], n=3)
        hint = f' Did you mean {" or ".join(close)}?' if close else ''
        raise UserError(
            f"data.name={name!r} is neither 'digits' nor 'folder' nor a TFDS image set, and "
            f'nothing by that name is prepared under {root}.{hint}'
        )
    raise MissingDataError(
        f'{name!r} is not prepared under {root} (data.dir or $TFDS_DATA_DIR). On a machine with a '
        f'network and TensorFlow (pip install tensorflow), run: {_prepare_command(name, root)}'
    )


def _first_line(error: Exception) -> str:
    return f'{type(error).__name__}: {(str(error).splitlines() or [""])[0][:200]}'


def _prepare_command(name: str, root: pathlib.Path) -> str:
    return (
        f"python -c \"import tensorflow_datasets as tfds; tfds.builder('{name}', "
        f"data_dir='{root}', file_format='array_record').download_and_prepare()\""
    )
