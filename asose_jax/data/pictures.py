"""Reads single pictures, for training and for prediction alike, and finds those to predict."""

import glob
import logging
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from asose_jax.data import picture_file
from asose_jax.data.fingerprint import MAX_LISTED, several
from asose_jax.data.image_set import fitted
from asose_jax.runtime import paths
from asose_jax.runtime.errors import UserError, counted

logger = logging.getLogger('asose_jax')

SUFFIXES = ('.png', '.jpg', '.jpeg')
_AT_ONCE = 10_000  # pictures that are handed to the threads together

Picture = str | os.PathLike[str] | Image.Image


def pixels(picture: Picture, shape: tuple[int, int, int]) -> np.ndarray:
    """Returns a picture in the form in which networks are trained and used.

    The EXIF orientation is applied, transparent pixels are blended with white, palettes, CMYK and
    16 bits are converted. A picture of another size is scaled and cut like those of
    `data.image_size`, see `image_set.fitted`.

    Args:
      picture: a file, or a Pillow image, which stays as it is. The decoder of a large JPEG file
        scales it down roughly at first. This saves most of the time, and its pixels differ a
        little from those of the same picture as a Pillow image.
      shape: `(H, W, C)` of the result; C is 1 (grey) or 3 (colour).

    Returns:
      uint8 `[H, W, C]`.
    """
    height, width, channels = shape
    if isinstance(picture, Image.Image):
        image = ImageOps.exif_transpose(picture)
    else:
        side = 2 * max(width, height)  # enough whatever the orientation is
        image = ImageOps.exif_transpose(picture_file.decode(picture, (side, side)))
    if image.mode.startswith('I'):  # 16 bits, of which `convert` would take the lower ones
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert('RGBA')
        image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
    image = fitted(image.convert('L' if channels == 1 else 'RGB'), (width, height))
    return np.asarray(image).reshape(shape)


def printable(name: str) -> str:
    r"""Returns a name of the file system as text; bytes that are not UTF-8 become `\xe9`."""
    return os.fsencode(name).decode(errors='backslashreplace')


# --- Finding files


def visible(folder: str | os.PathLike[str]) -> list[os.DirEntry[str]]:
    """Returns the entries of a folder, sorted by name, without hidden ones."""
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    return [e for e in entries if not e.name.startswith('.') and e.name != '__MACOSX']


def find(images: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[str]:
    """Finds the pictures to predict, each once, in the order in which they are named.

    Args:
      images: files, folders and globs: one, or several as a list or with commas between them. A
        folder stands for the .png, .jpg and .jpeg files at any depth in it, sorted by name; hidden
        ones are left out. What is not there stays in the list, to be reported like a damaged file.

    Returns:
      Paths.

    Raises:
      UserError: no picture is found.
      OSError: a folder cannot be read.
    """
    found: list[str] = []
    others: list[str] = []
    for entry in _entries(images):
        paths.require_local(entry, 'images')
        path = os.fspath(pathlib.Path(entry).expanduser())
        matched = [path] if os.path.lexists(path) else sorted(glob.glob(path, recursive=True))
        for match in matched or [path]:
            if not os.path.isdir(match):
                found.append(match)
                continue
            inside = [os.fspath(pathlib.Path(file)) for file in _files_below(match, set())]
            found += [file for file in inside if file.lower().endswith(SUFFIXES)]
            others += [file for file in inside if not file.lower().endswith(SUFFIXES)]
    warn_of_ignored(others)
    if not found:
        raise UserError(f'images={images!r}: there are no pictures ({", ".join(SUFFIXES)})')
    return list(dict.fromkeys(found))


def warn_of_ignored(files: Sequence[str]) -> None:
    """Names files that are left out since their names do not end as those of pictures do."""
    if files:
        logger.warning(
            '%s ignored, since only %s are read: %s',
            counted(len(files), 'file'),
            ', '.join(SUFFIXES),
            several(files),
        )


def _entries(images: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[str]:
    if not isinstance(images, str | os.PathLike):
        entries = list(images) if isinstance(images, Iterable) else [images]
        for entry in entries:
            paths.require_local(entry, 'images')
        return [os.fspath(entry) for entry in entries]
    text = os.fspath(images)
    if os.path.lexists(text):  # a name may have a comma
        return [text]
    return [entry.strip() for entry in text.split(',') if entry.strip()]


def _files_below(folder: str, entered: set[str]) -> Iterator[str]:
    """Yields the files of a folder at any depth; each folder once, where links lead to it again."""
    real = os.path.realpath(folder)
    if real in entered:
        return
    entered.add(real)
    for entry in visible(folder):
        if entry.is_dir():
            yield from _files_below(entry.path, entered)
        else:
            yield entry.path


# --- Reading many


def attempt_each(
    work: Callable[[Any], Any],
    pictures: Sequence[Any] | np.ndarray,
    map_function: Callable[..., Any] = map,
) -> list[Any]:
    """Applies `work` to each picture and returns the results, or the exceptions, in order.

    Args:
      work: reads one picture; it may raise any exception.
      pictures: mostly paths.
      map_function: `map`, or the `map` of a pool of threads.
    """

    def result_or_error(picture: Any) -> Any:
        try:
            return work(picture)
        except Exception as error:  # decoders raise many types of exceptions
            return error

    results: list[Any] = []
    for start in range(0, len(pictures), _AT_ONCE):
        results += map_function(result_or_error, pictures[start : start + _AT_ONCE])
    return results


def of_each(
    work: Callable[[Any], Any],
    pictures: Sequence[Any] | np.ndarray,
    map_function: Callable[..., Any] = map,
) -> list[Any]:
    """Applies `work` to each picture and returns the results in order, see `attempt_each`.

    Raises:
      UserError: lists the pictures for which `work` failed.
    """
    results = attempt_each(work, pictures, map_function)
    failed = [(p, r) for p, r in zip(pictures, results, strict=True) if isinstance(r, Exception)]
    if failed:
        lines = [failure(picture, error) for picture, error in failed[:MAX_LISTED]]
        if len(failed) > MAX_LISTED:
            lines.append(f'and {len(failed) - MAX_LISTED} more')
        raise UserError(
            'these pictures cannot be read; repair or remove them:\n  ' + '\n  '.join(lines)
        ) from failed[0][1]
    return results


def failure(picture: Any, error: Exception) -> str:
    """Returns the name of a picture and why it cannot be read, in one line."""
    reason = getattr(error, 'strerror', None) or f'{type(error).__name__}: {str(error)[:200]}'
    if isinstance(error, UserError):  # in words of this program already
        reason = str(error)
    return f'{printable(str(picture))}: {reason}'
