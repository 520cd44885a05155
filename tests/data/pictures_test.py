"""Single pictures: read as for training, from a file or from Pillow; found as they are named."""

import logging
import os

import numpy as np
import pytest
from helpers import datasets
from helpers.pictures import picture
from PIL import Image

from asose_jax.data import pictures
from asose_jax.runtime.errors import UserError


def _odd_pictures(root):
    """Two classes of pictures of many sizes and modes, some of them large, lying or transparent."""
    lying = Image.Exif()
    lying[0x0112] = 6
    random = np.random.default_rng(0)
    for name in ('cat', 'dog'):
        (root / name).mkdir(parents=True)
        for i in range(3):
            colour = Image.fromarray(random.integers(0, 256, (90, 150 + i, 3), np.uint8))
            colour.save(root / name / f'large{i}.jpg', exif=lying)
            colour.resize((12, 9)).quantize().save(
                root / name / f'palette{i}.png', transparency=b'\0\x7f'
            )
            deep = random.integers(0, 2**16, (9, 12 + i), np.uint16)
            Image.fromarray(deep).save(root / name / f'deep{i}.png')


def test_pictures_are_read_as_for_training(tmp_path):
    _odd_pictures(tmp_path)
    d = datasets.load(
        'folder',
        seed=0,
        valid_fraction=0.3,
        dir=str(tmp_path),
        image_size=8,
        test_fraction=0.3,
    )
    trained_on = [d.images.read(part)[0] for part in (d.train, d.valid, d.test)]
    expected = sorted(image.tobytes() for part in trained_on for image in part)
    files = pictures.find(str(tmp_path))
    assert len(files) == 18
    assert sorted(pictures.pixels(file, (8, 8, 3)).tobytes() for file in files) == expected


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('name', ['palette0.png', 'deep1.png'])
def test_pillow_image_is_read_like_its_file_and_stays_as_it_is(tmp_path, name, channels):
    _odd_pictures(tmp_path)
    shape = (6, 8, channels)  # not square: the middle of that form is cut out
    image = Image.open(tmp_path / 'cat' / name)
    before = (image.size, image.mode)
    np.testing.assert_array_equal(
        pictures.pixels(image, shape), pictures.pixels(tmp_path / 'cat' / name, shape)
    )
    assert (image.size, image.mode) == before


def test_large_jpeg_of_pillow_keeps_its_size_and_looks_like_its_file(tmp_path):
    ramp = np.broadcast_to(np.linspace(0, 255, 400).astype(np.uint8)[:, None], (400, 300))
    Image.fromarray(ramp).save(tmp_path / 'ramp.jpg')
    image = Image.open(tmp_path / 'ramp.jpg')
    ours = pictures.pixels(image, (8, 8, 1)).astype(int)
    assert image.size == (300, 400)
    np.testing.assert_allclose(ours, pictures.pixels(tmp_path / 'ramp.jpg', (8, 8, 1)), atol=2)


@pytest.fixture
def album(tmp_path, monkeypatch):
    """Pictures at several depths, what is none, hidden ones, and links."""
    for name in ('b.png', 'a/2.JPG', 'a/1.jpeg', 'a/deep/er/x.png', 'a,b.png', '.hidden/x.png'):
        picture(tmp_path / 'album' / name)
    picture(tmp_path / 'elsewhere' / 'linked.png')
    (tmp_path / 'album' / 'notes.txt').write_text('')
    (tmp_path / 'album' / '.DS_Store').write_bytes(b'')
    os.symlink(tmp_path / 'elsewhere', tmp_path / 'album' / 'link')
    os.symlink(tmp_path / 'album', tmp_path / 'elsewhere' / 'back')  # a circle
    monkeypatch.chdir(tmp_path / 'album')


WITHIN_A = ['a/1.jpeg', 'a/2.JPG', 'a/deep/er/x.png']


@pytest.mark.usefixtures('album')
@pytest.mark.parametrize(
    ('images', 'expected'),
    [
        ('.', [*WITHIN_A, 'a,b.png', 'b.png']),
        ('a', WITHIN_A),
        ('a/', WITHIN_A),
        ('b.png', ['b.png']),
        ('b.png,a', ['b.png', *WITHIN_A]),
        (' b.png , a/1.jpeg ', ['b.png', 'a/1.jpeg']),
        (['b.png', 'a/1.jpeg', 'b.png'], ['b.png', 'a/1.jpeg']),
        ('a,b.png', ['a,b.png']),  # a file of this name
        ('a/*.j*', ['a/1.jpeg']),
        ('a/**/*.png,b.png', ['a/deep/er/x.png', 'b.png']),
        ('a*', [*WITHIN_A, 'a,b.png']),
        ('notes.txt', ['notes.txt']),  # named, so it is tried
        ('b.png,gone.png', ['b.png', 'gone.png']),  # to be reported when it is read
    ],
)
def test_pictures_are_found_each_once_in_the_order_in_which_they_are_named(images, expected):
    found = [path for path in pictures.find(images) if 'link' not in path]
    assert found == expected


@pytest.mark.usefixtures('album')
def test_links_are_followed_once(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger('asose_jax'), 'propagate', True)
    assert [path for path in pictures.find('.') if 'link' in path] == ['link/linked.png']
    (told,) = caplog.messages
    assert told == "1 file ignored, since only .png, .jpg, .jpeg are read: 'notes.txt'"


@pytest.mark.parametrize(
    ('make', 'reason'),
    [
        (os.mkdir, 'it is no file, but a folder'),
        (os.mkfifo, 'it is no file, but a pipe or a device'),
        (lambda path: path.symlink_to(path), 'Too many levels of symbolic links'),
        (lambda path: None, 'No such file or directory'),
    ],
)
def test_what_is_no_picture_is_named_in_plain_words(tmp_path, make, reason):
    path = tmp_path / 'a.png'
    make(path)
    with pytest.raises(UserError, match=rf'\n  {path}: {reason}$'):
        pictures.of_each(lambda file: pictures.pixels(file, (8, 8, 3)), [path])


@pytest.mark.parametrize('images', ['', ' , ', '.', []])
def test_where_no_picture_is_found_it_says_so(tmp_path, monkeypatch, images):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r'images=.*: there are no pictures'):
        pictures.find(images)
