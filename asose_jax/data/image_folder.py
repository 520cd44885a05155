"""A folder of pictures with a subfolder for each class: `DIR/<class>/*.png`, .jpg, .jpeg.

The folder may also hold one such folder for each split: `DIR/train/<class>`, `DIR/test/<class>`.
"""

import dataclasses
import logging
import math
import pathlib
from collections.abc import Sequence
from concurrent import futures
from typing import NamedTuple

import numpy as np

from asose_jax.data import content_split, fingerprint, picture_file, pictures
from asose_jax.data.fingerprint import Identity, MissingDataError, several
from asose_jax.data.image_set import ImageSet
from asose_jax.runtime.errors import UserError, counted, describe_os_error

logger = logging.getLogger('asose_jax')

_VALID = ('val', 'valid', 'validation')  # folders that are trained on like the training folder
_TEST_FRACTION = 0.2


class _Listing(NamedTuple):
    """The pictures of a folder.

    Attributes:
      root: the folder.
      names: the class names, as the file system has them.
      paths: of the pictures to train on, and to test on if there is no test folder, `[N]`.
      labels: of these, int32 `[N]`.
      test_paths: of the pictures in the test folder, `[M]`; `None` if there is no test folder.
      test_labels: of these, int32 `[M]`.
    """

    root: pathlib.Path
    names: list[str]
    paths: np.ndarray
    labels: np.ndarray
    test_paths: np.ndarray | None
    test_labels: np.ndarray | None

    def all_paths(self) -> list[str]:
        """Returns the paths of all pictures, those of the test folder last."""
        return [*self.paths, *(() if self.test_paths is None else self.test_paths)]


def load(
    directory: str,
    splits: tuple[str, str],
    *,
    test_fraction: float | None,
    image_size: int | None,
    resident_bytes: int,
    split_by: str,
) -> tuple[ImageSet, ImageSet, Identity, tuple[str, ...]]:
    r"""Opens a folder of pictures and decodes every picture once, to check that all can be read.

    Args:
      directory: contains class folders, or folders of splits that contain class folders.
      splits: names of the folders to train on and to test on. Without folders of these names, the
        test split is drawn from each class, and is the same for all seeds.
      test_fraction: fraction of each class that is drawn; `None` means a fifth.
      image_size: see `image_set.center_square`; required where pictures differ in size.
      resident_bytes: the set is streamed from disk if it is larger than this.
      split_by: `'content'`: order and split depend on the bytes of the files, not on their names,
        and identical files are on the same side. `'position'`: they depend on the sorted names, as
        in runs that were begun by older versions.

    Returns:
      The images to train on, the images to test on, the identity of the set, and the class names;
      bytes of a name that are not UTF-8 are written as `\xe9`. Images have one channel if all
      pictures are grey, else three.

    Raises:
      UserError: the folder is missing, has no such splits or fewer than two classes, a class has
        too few pictures, or pictures cannot be read or differ in size.
    """
    listing = _list(directory, splits, test_fraction)
    paths = listing.all_paths()
    with futures.ThreadPoolExecutor() as pool:
        checks = pictures.of_each(picture_file.check, paths, pool.map)
    shape = _shape(paths, [(size, grey) for size, grey, _ in checks], image_size)
    contents = np.array([content for *_, content in checks])
    _warn_of_several_classes(listing, contents)
    if split_by == 'content':
        listing, contents = _without_copies_of_test(listing, contents)
    found = _identity(listing, contents, split_by)
    (learn, learn_labels, learn_contents), (test, test_labels) = _divided(
        listing, contents, test_fraction, split_by
    )
    streamed = (len(learn) + len(test)) * math.prod(shape) > resident_bytes
    learn_set = _image_set(learn, learn_labels, shape, streamed)
    if split_by == 'content':
        learn_set = dataclasses.replace(learn_set, contents=learn_contents)
    test_set = _image_set(test, test_labels, shape, streamed)
    return learn_set, test_set, found, tuple(pictures.printable(name) for name in listing.names)


def identify(
    directory: str, splits: tuple[str, str], *, test_fraction: float | None, split_by: str
) -> Identity:
    """Returns the identity that `load` would return, without decoding the pictures.

    Raises:
      UserError: as `load` does, but for pictures that cannot be decoded or differ in size.
    """
    listing = _list(directory, splits, test_fraction)
    with futures.ThreadPoolExecutor() as pool:
        contents = np.array(pictures.of_each(_content_of, listing.all_paths(), pool.map))
    if split_by == 'content':
        listing, contents = _without_copies_of_test(listing, contents)
    return _identity(listing, contents, split_by)


def _list(directory: str, splits: tuple[str, str], test_fraction: float | None) -> _Listing:
    """Finds the pictures of a folder, sorted by name; reads none of them."""
    root = pathlib.Path(directory).expanduser()
    if root.is_file():
        raise MissingDataError(
            f'data.dir={directory!r} is a file, not a folder of pictures. Unpack it if it is an '
            'archive, and name the folder that holds one folder for each class.'
        )
    if not root.is_dir():
        where = '' if root.is_absolute() else f' in {pathlib.Path.cwd()}'
        raise MissingDataError(f'data.dir={directory!r}: there is no such folder{where}')
    try:
        train_folders, test_folder = _split_folders(root, *splits)
        names = sorted({name for folder in train_folders for name in _folders(folder)})
        if len(names) < 2:
            raise UserError(
                f'{train_folders[0]} has {counted(len(names), "class folder")}, but a classifier '
                'needs at least two classes. Put the pictures into FOLDER/CLASS/, one folder for '
                'each class, and set data.dir=FOLDER.'
            )
        _warn_of_loose_pictures({root, *train_folders} - {test_folder})
        paths, labels = _labelled_paths(train_folders, names)
        if test_folder is not None and test_fraction is not None:
            raise UserError(
                f'data.test_fraction={test_fraction} has no effect, since the pictures in '
                f'{test_folder} are the test split. Remove it.'
            )
        _require_enough(names, labels, 3 if test_folder is None else 2)
        if test_folder is None:
            return _Listing(root, names, paths, labels, None, None)
        _require_labelled(test_folder)
        _warn_of_loose_pictures({test_folder})
        return _Listing(root, names, paths, labels, *_labelled_paths([test_folder], names))
    except OSError as error:
        raise UserError(f'data.dir={directory!r}: {describe_os_error(error)}') from error


# --- Contents and splits


def _warn_of_several_classes(listing: _Listing, contents: np.ndarray) -> None:
    """Names pictures whose bytes are in more than one class, which no network can tell apart."""
    labels = listing.labels
    if listing.test_labels is not None:
        labels = np.concatenate([labels, listing.test_labels])
    pairs = np.unique(np.stack([contents, labels.astype(str)]), axis=1)
    values, counts = np.unique(pairs[0], return_counts=True)
    several_classes = np.isin(contents, values[counts > 1])
    if several_classes.any():
        paths = np.array(listing.all_paths(), object)[several_classes]
        logger.warning(
            '%s in several classes at once, which no network can tell apart: %s',
            counted(len(paths), 'picture'),
            several(paths.tolist()),
        )


def _without_copies_of_test(listing: _Listing, contents: np.ndarray) -> tuple[_Listing, np.ndarray]:
    """Leaves out pictures to train on whose bytes are those of a picture in the test folder.

    Takes and returns the hashes of the pictures, in the order of `listing.all_paths()`.
    """
    if listing.test_paths is None:
        return listing, contents
    count = len(listing.paths)
    copied = np.isin(contents[:count], contents[count:])
    if not copied.any():
        return listing, contents
    logger.warning(
        '%s left out of training, for the test split has the same: %s',
        counted(int(copied.sum()), 'picture'),
        several(listing.paths[copied].tolist()),
    )
    paths, labels = listing.paths[~copied], listing.labels[~copied]
    _require_enough(listing.names, labels, 2)
    kept = np.concatenate([contents[:count][~copied], contents[count:]])
    return listing._replace(paths=paths, labels=labels), kept


def _identity(listing: _Listing, contents: np.ndarray, split_by: str) -> Identity:
    """Returns the identity of a set: of all contents with their classes, wherever they are."""
    count = len(listing.paths)
    labels = [*listing.labels, *(() if listing.test_labels is None else listing.test_labels)]
    lines, files = [], {}
    for i, (path, label) in enumerate(zip(listing.all_paths(), labels, strict=True)):
        name = str(pathlib.PurePath(path).relative_to(listing.root))
        files[name] = str(contents[i])
        line = [('test', 'train')[i < count], listing.names[label], files[name]]
        lines.append('/'.join(line if split_by == 'content' else [*line, name]))
    digest = fingerprint.digest_of_lines(lines)
    record = {'name': 'folder', 'split_by': split_by, 'files': len(files), 'digest': digest}
    return Identity(record, files)


def _divided(
    listing: _Listing, contents: np.ndarray, test_fraction: float | None, split_by: str
) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Returns (paths, labels, contents) to train on, and (paths, labels) to test on, in order."""
    count, fraction = len(listing.paths), test_fraction or _TEST_FRACTION
    learn = [listing.paths, listing.labels, contents[:count]]
    if listing.test_paths is not None:
        test = [listing.test_paths, listing.test_labels, contents[count:]]
        if split_by == 'content':
            _require_different(listing, contents[:count], 2)
    else:
        if split_by == 'content':
            chosen = _held_out_by_content(listing, contents, fraction)
        else:
            chosen = _held_out(listing.labels, fraction)
        test = [values[chosen] for values in learn]
        learn = [values[~chosen] for values in learn]
    if split_by == 'content':
        learn, test = (
            [values[np.lexsort((part[2], part[1]))] for values in part] for part in (learn, test)
        )
    return (learn[0], learn[1], learn[2]), (test[0], test[1])


def _held_out_by_content(listing: _Listing, contents: np.ndarray, fraction: float) -> np.ndarray:
    """Draws the test split from each class, as `_held_out` does, but by content."""
    _require_different(listing, contents, 3)
    targets = np.array([_share(size, fraction) for size in np.bincount(listing.labels)])
    chosen = content_split.choose(contents, listing.labels, targets, 2, 'test')
    if chosen is None:
        raise UserError(
            f'{listing.root}: no split was found that gives train, valid and test all classes, '
            'since identical pictures are in several classes. Remove the copies.'
        )
    return chosen


def _require_different(listing: _Listing, contents: np.ndarray, least: int) -> None:
    """Fails unless each class has `least` pictures with different bytes."""
    pairs = np.unique(np.stack([listing.labels.astype(str), contents]), axis=1)
    _require_enough(listing.names, pairs[0].astype(np.int32), least, 'different pictures')


# --- Files and folders


def _split_folders(
    root: pathlib.Path, train: str, test: str
) -> tuple[list[pathlib.Path], pathlib.Path | None]:
    """Returns the folders of class folders to train on, and the one to test on, if there is one."""
    if train == test:
        raise UserError(f'data.train_split and data.test_split are both {train!r}')
    inside = _folders(root)
    listing = f'{root} has the folders {several(inside)}' if inside else f'{root} has no folders'
    if train not in inside or not _folders(root / train):
        if (train, test) != ('train', 'test'):
            raise UserError(
                f'data.train_split={train!r} does not name a folder of class folders: {listing}. '
                'Set data.train_split and data.test_split.'
            )
        if train in inside and test in inside:
            raise UserError(
                f'{root / train} has no class folders, only files. Put its pictures into '
                f'{root / train}/CLASS/, one folder for each class.'
            )
        return [root], None
    if test not in inside and test != 'test':
        raise UserError(f'data.test_split={test!r} does not name a folder: {listing}')
    trained_on = [train, *(name for name in _VALID if name in inside and name not in (train, test))]
    unused = [name for name in inside if name not in (*trained_on, test)]
    if unused:
        logger.warning(
            '%s: the folders %s are not used; data.train_split and data.test_split name those that '
            'are',
            root,
            several(unused),
        )
    return [root / name for name in trained_on], root / test if test in inside else None


def _folders(folder: pathlib.Path) -> list[str]:
    return [entry.name for entry in pictures.visible(folder) if entry.is_dir()]


def _labelled_paths(
    folders: Sequence[pathlib.Path], names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns paths `[n]` and labels int32 `[n]` of all pictures, sorted by name.

    A label is the position of the class folder's name in `names`.
    """
    paths, labels, others = [], [], []
    for folder in folders:
        unknown = [name for name in _folders(folder) if name not in names]
        if unknown:
            raise UserError(
                f'{folder}: the classes {several(unknown)} have no folder in the training split, '
                'so they cannot be learned. Add one, or remove them.'
            )
        for name in _folders(folder):
            entries = pictures.visible(folder / name)
            nested = [entry.name for entry in entries if entry.is_dir()]
            if nested:
                raise UserError(
                    f'{folder / name} contains folders ({several(nested)}), but a class folder '
                    'must contain pictures. If it is a split, name the splits with '
                    'data.train_split and data.test_split; if it is a class, put its pictures '
                    'directly into it.'
                )
            here = [e.path for e in entries if e.name.lower().endswith(pictures.SUFFIXES)]
            others += [e.path for e in entries if not e.name.lower().endswith(pictures.SUFFIXES)]
            paths += here
            labels += [names.index(name)] * len(here)
    pictures.warn_of_ignored(others)
    if not paths:
        raise UserError(f'{folders[0]}: there are no pictures ({", ".join(pictures.SUFFIXES)})')
    return np.array(paths, object), np.array(labels, np.int32)


def _loose_pictures(folder: pathlib.Path) -> list[str]:
    """Returns the paths of pictures directly in a folder of class folders."""
    found = [entry for entry in pictures.visible(folder) if entry.is_file()]
    return [entry.path for entry in found if entry.name.lower().endswith(pictures.SUFFIXES)]


def _warn_of_loose_pictures(folders: set[pathlib.Path]) -> None:
    """Names pictures that belong to no class, since they are in no class folder."""
    loose = [path for folder in sorted(folders) for path in _loose_pictures(folder)]
    if loose:
        logger.warning(
            '%s ignored, since only pictures in a class folder have a class: %s',
            counted(len(loose), 'picture'),
            several(loose),
        )


def _require_labelled(test_folder: pathlib.Path) -> None:
    """Fails if the test folder holds pictures but no class folders."""
    loose = _loose_pictures(test_folder)
    if loose and not _folders(test_folder):
        raise UserError(
            f'{test_folder} has {counted(len(loose), "picture")} but no class folders, so their '
            f'classes are not known. Put them into {test_folder}/CLASS/, one folder for each '
            'class, or move the folder elsewhere: then a part of each class is held out as the '
            'test split.'
        )


def _require_enough(
    names: Sequence[str], labels: np.ndarray, least: int, noun: str = 'pictures'
) -> None:
    """Fails unless each class has `least` pictures, one for each split to draw from them."""
    counts = np.bincount(labels, minlength=len(names))
    few = [f'{name!r} ({n})' for name, n in zip(names, counts, strict=True) if n < least]
    if few:
        splits = ('train', 'valid', 'test')[:least]
        raise UserError(
            f'each class needs at least {least} {noun}, for {", ".join(splits)}; these have '
            f'fewer: {", ".join(few)}. Add pictures, or remove the folder.'
        )


def _held_out(labels: np.ndarray, fraction: float) -> np.ndarray:
    """Draws the test split: the same fraction of each class, at least one, at most all but two.

    Returns whether each picture belongs to the test split, bool `[n]`.
    """
    generator = np.random.default_rng(0)
    chosen = np.zeros(len(labels), bool)
    for label in range(labels.max() + 1):
        members = np.flatnonzero(labels == label)
        chosen[generator.permutation(members)[: _share(len(members), fraction)]] = True
    return chosen


def _share(size: int, fraction: float) -> int:
    """Returns how many of `size` pictures of a class are tested: at least 1, at most all but 2."""
    return int(np.clip(round(size * fraction), 1, size - 2))


# --- Pictures


def _shape(
    paths: Sequence[str], checks: Sequence[tuple[tuple[int, int], bool]], image_size: int | None
) -> tuple[int, int, int]:
    """Returns the `(H, W, C)` that all pictures have or will have.

    `checks` are (width, height) of each picture, and whether it is grey.
    """
    sizes = [size for size, _ in checks]
    channels = 1 if all(grey for _, grey in checks) else 3
    if image_size is not None:
        return image_size, image_size, channels
    for path, (width, height) in zip(paths, sizes, strict=True):
        if (width, height) != sizes[0]:
            raise UserError(
                f'pictures differ in size: {paths[0]} has {sizes[0][0]}x{sizes[0][1]} pixels, '
                f'{path} has {width}x{height}. Set data.image_size, for example '
                '--config.data.image_size=32'
            )
    width, height = sizes[0]
    return height, width, channels


def _content_of(path: str) -> str:
    return fingerprint.digest_of_bytes(picture_file.read(path))


def _image_set(
    paths: np.ndarray, labels: np.ndarray, shape: tuple[int, int, int], streamed: bool
) -> ImageSet:
    def read_one(path: str) -> np.ndarray:
        return pictures.pixels(path, shape)

    if streamed:
        # No threads here: the callers that read many batches bring their own.
        def read(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return np.stack(pictures.of_each(read_one, paths[indices])), labels[indices]

        return ImageSet(len(paths), read, labels)
    with futures.ThreadPoolExecutor() as pool:
        return ImageSet.from_arrays(np.stack(pictures.of_each(read_one, paths, pool.map)), labels)
