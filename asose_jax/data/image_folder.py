"""A folder of pictures with a subfolder for each class: `DIR/<class>/*.png`, .jpg, .jpeg.

Or one folder of such a kind for each part: `DIR/train/<class>`, `DIR/test/<class>`.
"""

import logging
import math
import os
import pathlib
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

from asose_jax.data.image_set import ImageSet, fitted
from asose_jax.runtime.errors import UserError

logger = logging.getLogger('asose_jax')

_SUFFIXES = ('.png', '.jpg', '.jpeg')
_VALID = ('val', 'valid', 'validation')  # parts that are learned from, beside the training part
_TEST_FRACTION = 0.2
_AT_ONCE = 10_000  # pictures that are handed to the threads together
_NAMED = 5  # files or folders in one message


def load(
    directory: str,
    splits: tuple[str, str],
    *,
    test_fraction: float | None,
    image_size: int | None,
    limit: int,
) -> tuple[ImageSet, ImageSet, tuple[str, ...]]:
    """Opens a folder of pictures. Every picture is decoded once, to see that all can be read.

    Args:
      directory: with class folders, or with folders of parts that have class folders.
      splits: names of the parts to learn from and to test on. Without folders of these names, the
        test part is drawn from each class, the same for all seeds.
      test_fraction: share that is drawn; `None` means a fifth.
      image_size: see `image_set.fitted`; needed where pictures differ in size.
      limit: bytes; a larger set is streamed.

    Returns:
      What to learn from, what to test on, the class names (bytes that are no UTF-8 as `\\xe9`). One
      channel if all pictures are grey, else three.

    Raises:
      UserError: names the folder or the files that are not as they should be, and says why.
    """
    root = pathlib.Path(directory).expanduser()
    if not root.is_dir():
        at = '' if root.is_absolute() else f' in {pathlib.Path.cwd()}'
        raise UserError(f'data.dir={directory!r}: there is no such folder{at}')
    try:
        learned, tested = _parts(root, *splits)
        names = sorted({name for part in learned for name in _folders(part)})
        if len(names) < 2:
            raise UserError(
                f'{learned[0]} has {len(names)} folders of classes; to tell classes apart takes '
                'two. Pictures belong into FOLDER/CLASS/, a folder for each class; set data.dir.'
            )
        paths, labels = _listed(learned, names)
        if tested is not None and test_fraction is not None:
            raise UserError(
                f'data.test_fraction={test_fraction} would change nothing: the pictures in '
                f'{tested} are the test. Leave it out.'
            )
        _require_enough(names, labels, 3 if tested is None else 2)
        if tested is None:
            chosen = _held_out(labels, _TEST_FRACTION if test_fraction is None else test_fraction)
            test = paths[chosen], labels[chosen]
            paths, labels = paths[~chosen], labels[~chosen]
        else:
            test = _listed([tested], names)
    except OSError as error:
        raise UserError(f'data.dir={directory!r}: {error}') from error
    shape = _shape([*paths, *test[0]], image_size)
    streamed = (len(paths) + len(test[0])) * math.prod(shape) > limit
    sets = [_image_set(*part, shape, image_size, streamed) for part in ((paths, labels), test)]
    return *sets, tuple(os.fsencode(name).decode(errors='backslashreplace') for name in names)


# --- Which files


def _parts(root, train, test):
    """The folders that have class folders: those to learn from, and that of the test, if any."""
    if train == test:
        raise UserError(f'data.train_split and data.test_split are both {train!r}')
    inside = _folders(root)
    has = f'{root} has the folders {_several(inside)}' if inside else f'{root} has no folders'
    if train not in inside or not _folders(root / train):
        if (train, test) != ('train', 'test'):
            raise UserError(
                f'data.train_split={train!r} is no folder with folders of classes: {has}. Set '
                'data.train_split and data.test_split.'
            )
        if train in inside and test in inside:
            raise UserError(f'{root / train} has no folders of classes, only files')
        return [root], None
    if test not in inside and test != 'test':
        raise UserError(f'data.test_split={test!r} is no folder: {has}')
    learned = [train, *(name for name in _VALID if name in inside and name not in (train, test))]
    unused = [name for name in inside if name not in (*learned, test)]
    if unused:
        logger.warning('%s: nothing is read from the folders %s', root, _several(unused))
    return [root / name for name in learned], root / test if test in inside else None


def _visible(folder):
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    return [e for e in entries if not e.name.startswith('.') and e.name != '__MACOSX']


def _folders(folder):
    return [entry.name for entry in _visible(folder) if entry.is_dir()]


def _listed(parts, names):
    """Paths `[n]` and labels `[n]` of all pictures, in an order that no disk decides."""
    paths, labels, others = [], [], []
    for part in parts:
        strangers = [name for name in _folders(part) if name not in names]
        if strangers:
            raise UserError(f'{part}: there is nothing to learn the classes {_several(strangers)}')
        for name in _folders(part):
            entries = _visible(part / name)
            deeper = [entry.name for entry in entries if entry.is_dir()]
            if deeper:
                raise UserError(
                    f'{part / name} has folders inside ({_several(deeper)}), where a class has '
                    'pictures. If it is a part of the set, name the parts with data.train_split '
                    'and data.test_split; if it is a class, put its pictures into it directly.'
                )
            pictures = [e.path for e in entries if e.name.lower().endswith(_SUFFIXES)]
            others += [e.path for e in entries if not e.name.lower().endswith(_SUFFIXES)]
            paths += pictures
            labels += [names.index(name)] * len(pictures)
    if others:
        logger.warning(
            '%d files that are not %s are left out: %s',
            len(others),
            ', '.join(_SUFFIXES),
            _several(others),
        )
    if not paths:
        raise UserError(f'{parts[0]}: there are no pictures ({", ".join(_SUFFIXES)})')
    return np.array(paths, object), np.array(labels, np.int32)


def _require_enough(names, labels, least):
    counts = np.bincount(labels, minlength=len(names))
    few = [f'{name!r} ({n})' for name, n in zip(names, counts, strict=True) if n < least]
    if few:
        needs = ('train', 'valid', 'test')[:least]
        raise UserError(
            f'each class needs at least {least} pictures, for {", ".join(needs)}; these have '
            f'fewer: {", ".join(few)}. Add pictures, or remove the folder.'
        )


def _held_out(labels, fraction):
    """Which are the test: of each class the same share, at least one, at most all but two."""
    generator = np.random.default_rng(0)
    chosen = np.zeros(len(labels), bool)
    for label in range(labels.max() + 1):
        members = np.flatnonzero(labels == label)
        count = int(np.clip(round(len(members) * fraction), 1, len(members) - 2))
        chosen[generator.permutation(members)[:count]] = True
    return chosen


# --- Pictures


def _shape(paths, image_size):
    """`(H, W, C)` of all pictures, each of which is decoded."""
    with futures.ThreadPoolExecutor() as pool:
        looks = _of_each(_look, paths, pool.map)
    sizes = [size for size, _ in looks]
    channels = 1 if all(grey for _, grey in looks) else 3
    if image_size is not None:
        return image_size, image_size, channels
    for path, (width, height) in zip(paths, sizes, strict=True):
        if (width, height) != sizes[0]:
            raise UserError(
                f'pictures differ in size: {paths[0]} has {sizes[0][0]}x{sizes[0][1]} pixels, '
                f'{path} has {width}x{height}. Set data.image_size, for example '
                '--config.data.image_size=32'
            )
    return *sizes[0][::-1], channels


def _look(path):
    """Width and height as they are seen, and whether the picture is grey."""
    with Image.open(path) as image:
        size = image.size
        image.draft(None, (1, 1))  # of a JPEG, an eighth of each side will do
        image.load()
        lies = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
        return size[::-1] if lies else size, Image.getmodebase(image.mode) == 'L'


def _pixels(path, channels, image_size):
    """uint8 `[H, W, channels]`; what is transparent becomes white."""
    with Image.open(path) as opened:
        if image_size is not None:
            opened.draft(None, (2 * image_size, 2 * image_size))  # a JPEG, at least so large
        image = ImageOps.exif_transpose(opened)
    if image.mode.startswith('I'):  # 16 bits, of which `convert` would take the lower ones
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert('RGBA')
        image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
    image = fitted(image.convert('L' if channels == 1 else 'RGB'), image_size)
    return np.asarray(image).reshape(*image.size[::-1], channels)


def _image_set(paths, labels, shape, image_size, streamed):
    def read_one(path):
        return _pixels(path, shape[-1], image_size)

    if streamed:
        # Whoever reads many batches has threads of his own.
        def read(indices):
            return np.stack(_of_each(read_one, paths[indices])), labels[indices]

        return ImageSet(len(paths), read, labels)
    with futures.ThreadPoolExecutor() as pool:
        return ImageSet.of_arrays(np.stack(_of_each(read_one, paths, pool.map)), labels)


def _of_each(
    work: Callable[[str], Any], paths: Sequence[str], mapped: Callable[..., Any] = map
) -> list[Any]:
    """What `work` gives for each picture; one error names all that it fails for."""

    def tried(path):
        try:
            return work(path)
        except Exception as error:  # a decoder has many ways to fail
            return error

    results = []
    for start in range(0, len(paths), _AT_ONCE):
        results += mapped(tried, paths[start : start + _AT_ONCE])
    failed = [(p, r) for p, r in zip(paths, results, strict=True) if isinstance(r, Exception)]
    if failed:
        lines = [f'{path}: {type(e).__name__}: {str(e)[:200]}' for path, e in failed[:_NAMED]]
        rest = [f'and {len(failed) - _NAMED} more'] if len(failed) > _NAMED else []
        raise UserError(
            'these pictures cannot be read; repair or remove them:\n  ' + '\n  '.join(lines + rest)
        ) from failed[0][1]
    return results


def _several(names):
    shown = ', '.join(repr(name) for name in names[:_NAMED])
    return shown + (f' and {len(names) - _NAMED} more' if len(names) > _NAMED else '')
