"""One file of a picture: what is read of it, and why some are not."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from helpers.pictures import picture
from PIL import Image, PngImagePlugin

from asose_jax.data import fingerprint, picture_file, pictures


def test_hash_is_that_of_the_bytes_that_were_decoded(tmp_path, monkeypatch):
    """Also where a file is replaced at the same moment."""
    path = tmp_path / 'x.png'
    picture(path, seed=1)
    whole, decode = path.read_bytes(), picture_file._decoded

    def replaced(*how):
        path.unlink()
        picture(path, (16, 16), seed=2)
        return decode(*how)

    monkeypatch.setattr(picture_file, '_decoded', replaced)
    found = picture_file.check(str(path))
    assert found == ((8, 8), False, fingerprint.digest_of_bytes(whole))


def _png(pixels, after=False, **chunks):
    """A PNG with these further chunks, in front of its pixels or behind them."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, 'PNG')
    content, added = file.getvalue(), b''
    for kind, data in chunks.items():
        body = kind.encode() + data
        added += struct.pack('>I', len(data)) + body + struct.pack('>I', zlib.crc32(body))
    at = content.index(b'IEND' if after else b'IDAT') - 4
    return content[:at] + added + content[at:]


LONG = b'x' * (PngImagePlugin.MAX_TEXT_CHUNK + 1)
LONG_TEXTS = {
    'zTXt': b'comment\0\0' + zlib.compress(LONG),
    'iTXt': b'comment\0\1\0\0\0' + zlib.compress(LONG),
    'iCCP': b'profile\0\0' + zlib.compress(LONG),
}


@pytest.mark.parametrize('after', [False, True])
@pytest.mark.parametrize('kind', LONG_TEXTS)
def test_long_texts_in_a_png_do_not_keep_it_from_being_read(tmp_path, kind, after):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)
    path = tmp_path / 'x.png'
    path.write_bytes(_png(pixels, after, **{kind: LONG_TEXTS[kind]}))
    assert picture_file.check(str(path))[:2] == ((5, 6), False)
    np.testing.assert_array_equal(pictures.pixels(path, pixels.shape), pixels)


def test_damage_of_a_png_with_a_long_text_is_still_found(tmp_path):
    path = tmp_path / 'x.png'
    path.write_bytes(_png(np.zeros((60, 50), np.uint8), zTXt=LONG_TEXTS['zTXt'])[:-40])
    with pytest.raises(OSError, match=r'truncated|cannot identify'):
        picture_file.check(str(path))


@pytest.mark.parametrize('suffix', ['png', 'jpg'])
@pytest.mark.parametrize('mode', ['L', 'RGB'])
def test_large_picture_is_read_without_a_warning(tmp_path, monkeypatch, suffix, mode):
    """Pillow warns above its limit, and raises above twice that."""
    path = tmp_path / f'x.{suffix}'
    Image.new(mode, (64, 48), 'white').save(path)
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert picture_file.check(str(path))[:2] == ((64, 48), mode == 'L')
        assert pictures.pixels(path, (8, 8, 3)).shape == (8, 8, 3)


@pytest.mark.parametrize('size', [(200_000, 1_000), (13_417, 13_417), (65_000, 65_000)])
def test_picture_that_is_too_large_is_refused_with_its_size_and_the_limit(tmp_path, size):
    """A header says so before anything is decoded."""
    small = _png(np.zeros((1, 1), np.uint8))
    path = tmp_path / 'x.png'
    header = b'IHDR' + struct.pack('>II', *size) + small[24:29]
    path.write_bytes(small[:12] + header + struct.pack('>I', zlib.crc32(header)) + small[33:])
    with pytest.raises(ValueError, match=f'{size[0]}x{size[1]} pixels are too many; up to 180 mil'):
        picture_file.check(str(path))


@pytest.mark.parametrize('suffix', ['webp', 'bmp', 'gif'])
def test_other_formats_are_read_whatever_their_names_say(tmp_path, suffix):
    Image.new('RGB', (5, 4), 'red').save(tmp_path / f'x.{suffix}')
    path = (tmp_path / f'x.{suffix}').rename(tmp_path / 'x.png')
    assert picture_file.check(str(path))[0] == (5, 4)
    assert pictures.pixels(path, (4, 5, 3))[0, 0, 0] > 240
