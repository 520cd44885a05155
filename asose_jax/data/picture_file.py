"""Decodes one file of a picture: PNG or JPEG, of any mode, size and orientation."""

import io
import os
import pathlib
import struct
import warnings

from PIL import ExifTags, Image, JpegImagePlugin, PngImagePlugin, UnidentifiedImageError

from asose_jax.data import fingerprint
from asose_jax.runtime.errors import UserError

MAX_PIXELS = 180_000_000  # of a picture; half a gigabyte in colour
_PNG, _JPEG = b'\x89PNG\r\n\x1a\n', b'\xff\xd8\xff'  # first bytes of such files
_TEXTS = (b'tEXt', b'zTXt', b'iTXt', b'iCCP')  # chunks of a PNG without pixels

# Such a picture is read as it lies; a line of the library for each would bury the log.
warnings.filterwarnings('ignore', message='Corrupt EXIF data', module=r'PIL\.')


def read(path: str | os.PathLike[str]) -> bytes:
    """Returns the bytes of a file.

    Raises:
      OSError: it cannot be read.
      UserError: it is a pipe or a device, from which nothing may ever come.
    """
    file = pathlib.Path(path)
    if file.exists() and not file.is_file():
        what = 'a folder' if file.is_dir() else 'a pipe or a device'
        raise UserError(f'it is no file, but {what}')
    return file.read_bytes()


def check(path: str) -> tuple[tuple[int, int], bool, str]:
    """Decodes a picture; returns (width, height) after EXIF rotation, whether it is grey, its hash.

    The file is read once, so the hash is that of the bytes that were decoded. A JPEG is decoded at
    an eighth of its width and height, which is enough to find damage.

    Raises:
      Exception: it cannot be decoded; decoders raise many types.
    """
    content = read(path)
    image, (width, height) = _decoded(content, path, (1, 1))
    rotated = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    size = (height, width) if rotated else (width, height)
    return size, Image.getmodebase(image.mode) == 'L', fingerprint.digest_of_bytes(content)


def decode(path: str | os.PathLike[str], least: tuple[int, int]) -> Image.Image:
    """Decodes a picture, not yet turned as its EXIF orientation says.

    A JPEG may be decoded smaller than it is, if not smaller than `least`, (width, height).

    Raises:
      Exception: it cannot be decoded; decoders raise many types.
    """
    image, _ = _decoded(read(path), os.fspath(path), least)
    return image


def _decoded(
    content: bytes, path: str, draft: tuple[int, int]
) -> tuple[Image.Image, tuple[int, int]]:
    """Returns the decoded image, and the (width, height) that it has without the draft.

    `draft` is the least (width, height) of a JPEG that is decoded smaller than it is.
    """
    try:
        return _decoded_as_it_is(content, path, draft)
    except ValueError:  # Pillow refuses comments and colour profiles of more than a megabyte
        if not content.startswith(_PNG):
            raise
        return _decoded_as_it_is(_without_texts(content), path, draft)


def _decoded_as_it_is(
    content: bytes, path: str, draft: tuple[int, int]
) -> tuple[Image.Image, tuple[int, int]]:
    file = io.BytesIO(content)
    try:
        # `Image.open` warns of large pictures, as guards of servers do, and calls larger an attack.
        if content.startswith(_PNG):
            image = PngImagePlugin.PngImageFile(file)
        elif content.startswith(_JPEG):
            image = JpegImagePlugin.JpegImageFile(file)
        else:
            image = Image.open(file)
    except (UnidentifiedImageError, SyntaxError, IndexError, TypeError, struct.error) as error:
        raise UnidentifiedImageError(f'cannot identify image file {path!r}') from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UserError(
            f'{width}x{height} pixels are too many; up to {MAX_PIXELS // 10**6} million are read. '
            'Scale the picture down'
        )
    image.draft(None, draft)
    image.load()
    return image, (width, height)


def _without_texts(png: bytes) -> bytes:
    """Returns the file without the chunks that hold texts and colour profiles."""
    kept, start = [png[: len(_PNG)]], len(_PNG)
    while start + 8 <= len(png):
        length, kind = struct.unpack_from('>I4s', png, start)
        end = start + 12 + length  # length, kind and checksum take four bytes each
        if kind not in _TEXTS:
            kept.append(png[start:end])
        start = end
    return b''.join(kept)
