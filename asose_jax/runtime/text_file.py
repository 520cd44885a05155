"""Text files of users, in the encodings in which Linux and Windows write them."""

import codecs
import pathlib


def read(path: pathlib.Path) -> str:
    """Returns the text of a file in UTF-8 or, where it begins with the mark of it, UTF-16.

    Raises:
      OSError: it cannot be read.
      ValueError: it is no such text.
    """
    content = path.read_bytes()
    is_wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode('utf-16' if is_wide else 'utf-8-sig')
    except UnicodeDecodeError as error:
        raise ValueError(
            f'it is no text in UTF-8 or UTF-16 ({error.reason} at byte {error.start})'
        ) from error
