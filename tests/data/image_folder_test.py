"""Folders of pictures: what is in them comes out as it is seen; what is wrong is named at once."""

import errno
import itertools
import logging
import os
import pathlib
import shutil
import subprocess
import sys

import chex
import numpy as np
import pytest
from helpers import datasets
from helpers.pictures import config_of, picture
from PIL import Image

from asose_jax.config import presets
from asose_jax.data import dataset
from asose_jax.pipeline import single_run
from asose_jax.runtime.errors import UserError


@pytest.fixture
def pets(tmp_path):
    """Two classes of 10 and 20 pictures of 8x8 pixels, in colour, all different."""
    root = tmp_path / 'pets'
    for name, count in (('cat', 10), ('dog', 20)):
        for i in range(count):
            picture(root / name / f'{i}.png', seed=100 * count + i)
    return root


def _load(directory, **changes):
    options = {'seed': 0, 'valid_fraction': 0.25, 'dir': str(directory), **changes}
    return datasets.load('folder', **options)


def _error(directory, **changes):
    with pytest.raises(UserError) as error:
        _load(directory, **changes)
    return str(error.value)


def _all(d):
    return d.images.read(np.concatenate([d.train, d.valid]))[0], d.images.read(d.test)[0]


# --- Parts


def test_parts_are_disjoint_cover_everything_and_have_each_class_in_its_share(pets):
    d = _load(pets)
    parts = [d.train, d.valid, d.test]
    assert [np.bincount(d.images.read(part)[1]).tolist() for part in parts] == [
        [6, 12],
        [2, 4],
        [2, 4],
    ]
    pixels = np.concatenate([d.images.read(part)[0] for part in parts]).reshape(30, -1)
    assert len(np.unique(pixels, axis=0)) == 30
    assert d.class_names == ('cat', 'dog')


def test_seed_changes_train_and_valid_and_never_the_test(pets):
    first, again, other = _load(pets), _load(pets), _load(pets, seed=1)
    np.testing.assert_array_equal(first.valid, again.valid)
    assert set(first.valid) != set(other.valid)
    np.testing.assert_array_equal(
        first.images.read(first.test)[0], other.images.read(other.test)[0]
    )


@pytest.mark.parametrize(('fraction', 'counts'), [(0.5, [5, 10]), (0.01, [1, 1]), (0.99, [8, 18])])
def test_each_class_is_tested_and_leaves_two_pictures_to_learn_from(pets, fraction, counts):
    d = _load(pets, test_fraction=fraction, valid_fraction=0.5)
    assert np.bincount(d.images.read(d.test)[1]).tolist() == counts


def test_folders_of_parts_are_the_parts_and_val_is_learned_from(pets):
    for i in range(4):
        picture(pets / 'parts' / 'train' / 'b' / f'{i}.png', seed=i)
        picture(pets / 'parts' / 'train' / 'a' / f'{i}.png', seed=10 + i)
        picture(pets / 'parts' / 'val' / 'a' / f'{i}.png', seed=20 + i)
    picture(pets / 'parts' / 'test' / 'b' / 'it.png', seed=30)
    d = _load(pets / 'parts')
    assert (len(d.train), len(d.valid), len(d.test)) == (9, 3, 1)
    images, labels = d.images.read(d.test)
    assert labels.tolist() == [1]
    np.testing.assert_array_equal(images[0], Image.open(pets / 'parts' / 'test' / 'b' / 'it.png'))
    d = _load(pets / 'parts', test_split='val')  # as others call it who have two parts
    assert (len(d.train), len(d.valid), len(d.test)) == (6, 2, 4)


def test_parts_without_a_test_give_a_share_to_it(pets):
    (pets / 'all').mkdir()
    (pets / 'cat').rename(pets / 'all' / 'cat')
    (pets / 'dog').rename(pets / 'all' / 'dog')
    assert len(_load(pets, train_split='all').test) == 6


def test_class_may_be_called_as_a_part(pets):
    (pets / 'dog').rename(pets / 'train')
    assert _load(pets).class_names == ('cat', 'train')


def test_statistics_are_those_of_train(pets):
    d = _load(pets)
    pixels = d.images.read(d.train)[0].astype(np.float64)
    np.testing.assert_allclose(d.mean, pixels.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(d.std, pixels.std((0, 1, 2)), rtol=1e-6)


def test_large_folder_is_streamed_with_the_same_images_and_parts(pets):
    streamed, resident = _load(pets, resident_megabytes=0), _load(pets)
    assert streamed.images.arrays is None
    for name in ('train', 'valid', 'test', 'mean', 'std'):
        np.testing.assert_array_equal(getattr(streamed, name), getattr(resident, name))
    for part in (streamed.train[::-1], streamed.test):
        chex.assert_trees_all_equal(streamed.images.read(part), resident.images.read(part))


# --- Content


def _contents(d):
    """The images of each part as bytes, sorted."""
    parts = (d.images.read(part)[0] for part in (d.train, d.valid, d.test))
    return [sorted(image.tobytes() for image in images) for images in parts]


def _rename(pets):
    (pets / 'cat' / '0.png').rename(pets / 'cat' / 'zzz.png')
    (pets / 'dog' / '7.png').rename(pets / 'dog' / '00.png')


def _exchange_names(pets):
    (pets / 'dog' / '3.png').rename(pets / 'dog' / 'kept.png')
    (pets / 'dog' / '4.png').rename(pets / 'dog' / '3.png')
    (pets / 'dog' / 'kept.png').rename(pets / 'dog' / '4.png')


@pytest.mark.parametrize('change', [_rename, _exchange_names])
def test_names_of_files_change_neither_the_parts_nor_their_order_nor_the_identity(pets, change):
    before = _load(pets)
    change(pets)
    after = _load(pets)
    assert before.identity.record == after.identity.record
    assert after.identity.changes(before.identity.record, before.identity.files) == []
    for name in ('train', 'valid', 'test'):
        parts = [d.images.read(getattr(d, name)) for d in (before, after)]
        chex.assert_trees_all_equal(*parts)


def test_another_folder_with_the_same_files_is_the_same_set(pets, tmp_path):
    before = _load(pets)
    pets.rename(tmp_path / 'elsewhere')
    assert _load(tmp_path / 'elsewhere').identity.record == before.identity.record


def test_added_picture_moves_at_most_one_other_of_its_class(pets):
    before = _contents(_load(pets))
    picture(pets / 'cat' / '00.png', seed=9)
    after = _contents(_load(pets))
    assert len(set(before[2]) - set(after[2])) <= 1


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('folders', [False, True])
def test_identical_files_are_on_one_side_and_every_part_has_every_class(tmp_path, seed, folders):
    """Six copies of some, two of others, also across classes; the others are alone."""
    random = np.random.default_rng(seed)
    root = tmp_path / 'train' if folders else tmp_path
    for c in 'abc':
        for i, content in enumerate(random.permutation(np.repeat(range(12), [6, 2, 2, *[1] * 9]))):
            picture(root / c / f'{i}.png', seed=100 * ord(c) + int(content))
        picture(root / c / 'in_two_classes.png', seed=7)
    if folders:
        picture(tmp_path / 'test' / 'b' / 'new.png', seed=8)
    d = _load(tmp_path, seed=seed)
    for part in (d.train, d.valid, *(() if folders else (d.test,))):
        assert set(d.images.read(part)[1]) == {0, 1, 2}
    sides = [set(contents) for contents in _contents(d)]
    for one, other in itertools.combinations(sides, 2):
        assert not one & other
    assert sum(map(len, (d.train, d.valid, d.test))) == 60 + folders


def test_copies_of_the_test_folder_are_not_trained_on_and_told(pets, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger('asose_jax'), 'propagate', True)
    (pets / 'train').mkdir()
    for c in ('cat', 'dog'):
        (pets / c).rename(pets / 'train' / c)
    for name in ('0', '5'):
        (pets / 'test' / 'dog').mkdir(parents=True, exist_ok=True)
        whole = (pets / 'train' / 'cat' / f'{name}.png').read_bytes()
        (pets / 'test' / 'dog' / f'{name}.png').write_bytes(whole)
    d = _load(pets)
    train, valid, test = map(set, _contents(d))
    assert (len(train | valid), len(test)) == (28, 2)
    assert not (train | valid) & test
    *_, told = caplog.messages  # the first: they are in another class there
    assert told.startswith('2 pictures left out of training, for the test split has the same: ')
    assert f"'{pets / 'train' / 'cat' / '0.png'}'" in told


def test_copies_alone_are_too_few_pictures(tmp_path):
    for c in 'ab':
        for i in range(5):
            picture(tmp_path / c / f'{i}.png', seed=i % 2 if c == 'a' else 10 + i)
    assert (
        'each class needs at least 3 different pictures, for train, valid, test; these have '
        "fewer: 'a' (2)." in _error(tmp_path)
    )


@pytest.mark.parametrize(
    ('classes', 'folder'), [(('012', '013', '023', '123'), ''), (('01', '12', '02'), 'train')]
)
def test_copies_in_too_many_classes_are_an_error_that_claims_no_more_than_is_known(
    tmp_path, classes, folder
):
    for c, contents in enumerate(classes):
        for i in contents:
            picture(tmp_path / folder / str(c) / f'{i}.png', seed=int(i))
    if folder:
        picture(tmp_path / 'test' / '0' / 'new.png', seed=9)
    told = _error(tmp_path, valid_fraction=0.5)
    assert 'no split was found that gives' in told
    assert told.endswith('identical pictures are in several classes. Remove the copies.')


def test_position_is_how_older_runs_split(pets):
    """The names decide, sorted: '0', '1', '10', …; the numbers are those of older versions."""
    d = _load(pets, split_by='position')
    paths = [sorted((pets / c).iterdir()) for c in ('cat', 'dog')]
    tested = np.random.default_rng(0).permutation(10)[:2]
    images = d.images.read(d.test)[0]
    assert sorted(i.tobytes() for i in images[:2]) == sorted(
        np.asarray(Image.open(paths[0][n])).tobytes() for n in tested
    )
    assert d.identity.record['split_by'] == 'position'
    before = d.identity
    _rename(pets)
    (new, gone) = _load(pets, split_by='position').identity.changes(before.record, before.files)
    assert new == "2 pictures are new: 'cat/zzz.png', 'dog/00.png'"
    assert gone == "2 pictures are gone: 'cat/0.png', 'dog/7.png'"


def _add(pets, count=1):
    for i in range(count):
        picture(pets / 'cat' / f'new_{i}.png', seed=50 + i)


@pytest.mark.parametrize(
    ('change', 'expected'),
    [
        (_add, ["1 picture is new: 'cat/new_0.png'"]),
        (
            lambda pets: _add(pets, 8),
            [
                '8 pictures are new: '
                + ', '.join(f"'cat/new_{i}.png'" for i in range(5))
                + ' and 3 more'
            ],
        ),
        (lambda pets: (pets / 'dog' / '3.png').unlink(), ["1 picture is gone: 'dog/3.png'"]),
        (
            lambda pets: picture(pets / 'dog' / '3.png', seed=1),
            ["1 picture is changed: 'dog/3.png'"],
        ),
        (
            lambda pets: (pets / 'dog' / '3.png').rename(pets / 'cat' / 'dog.png'),
            ["1 picture is new: 'cat/dog.png'", "1 picture is gone: 'dog/3.png'"],
        ),
        (lambda pets: (_rename(pets), _add(pets)), ["1 picture is new: 'cat/new_0.png'"]),
    ],
)
def test_other_pictures_are_another_set_and_named(pets, change, expected):
    before = _load(pets).identity
    change(pets)
    after = _load(pets).identity
    assert after.record['digest'] != before.record['digest']
    assert after.changes(before.record, before.files) == expected
    config = presets.get_config('folder')
    config.data.dir = str(pets)
    assert dataset.identify(config.data, 'content') == after


def _linked(pets):
    (pets / 'tac').symlink_to('cat')
    return 20


def _copied(pets):
    for name in ('3', '4'):
        shutil.copy(pets / 'cat' / f'{name}.png', pets / 'dog' / f'copy_{name}.png')
    return 4


def _copied_to_test(pets):
    for name in ('cat', 'dog'):
        shutil.copytree(pets / name, pets / 'train' / name)
        shutil.rmtree(pets / name)
    picture(pets / 'test' / 'dog' / '0.png', seed=999)
    shutil.copy(pets / 'train' / 'cat' / '1.png', pets / 'test' / 'dog' / '1.png')
    return 2


@pytest.mark.parametrize('copy', [_linked, _copied, _copied_to_test])
def test_pictures_in_several_classes_are_told(pets, caplog, monkeypatch, copy):
    monkeypatch.setattr(logging.getLogger('asose_jax'), 'propagate', True)
    count = copy(pets)
    _load(pets)
    assert caplog.messages[0].startswith(f'{count} pictures in several classes at once, which no')
    assert f'{pets.name}/' in caplog.messages[0]


def test_copies_within_a_class_are_told_by_nobody(pets, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger('asose_jax'), 'propagate', True)
    shutil.copy(pets / 'cat' / '3.png', pets / 'cat' / 'copy.png')
    _load(pets)
    assert caplog.messages == []


@pytest.mark.parametrize('folder', ['.', 'train', 'test'])
def test_loose_pictures_are_told(pets, caplog, monkeypatch, folder):
    monkeypatch.setattr(logging.getLogger('asose_jax'), 'propagate', True)
    if folder != '.':
        for part in ('train', 'test'):
            for name in ('cat', 'dog'):
                for i in range(5):
                    picture(
                        pets / part / name / f'{i}.png',
                        seed=1000 * len(part) + 10 * (name == 'cat') + i,
                    )
        for name in ('cat', 'dog'):
            shutil.rmtree(pets / name)
    whole = len(_load(pets).train)
    caplog.clear()
    for i in range(7):
        picture(pets / folder / f'stray_{i}.png', seed=900 + i)
    assert len(_load(pets).train) == whole
    (told,) = caplog.messages
    assert told.startswith(
        '7 pictures ignored, since only pictures in a class folder have a class: '
    )
    assert f"'{pets / folder / 'stray_0.png'}'" in told
    assert told.endswith(' and 2 more')


def test_pictures_to_test_on_without_classes_are_an_error_that_says_so(pets):
    (pets / 'train').mkdir()
    for c in ('cat', 'dog'):
        (pets / c).rename(pets / 'train' / c)
    for i in range(3):
        picture(pets / 'test' / f'{i}.png')
    told = _error(pets)
    assert told.startswith(f'{pets / "test"} has 3 pictures but no class folders')
    assert f'Put them into {pets / "test"}/CLASS/' in told


# --- Pictures


def _two_classes(root, fill):
    """Three equal pictures in each class, saved by `fill(path)`; their files differ at the end."""
    for name in ('a', 'b'):
        (root / name).mkdir(parents=True)
        for i in range(3):
            fill(root / name / f'{i}')
            (path,) = (root / name).glob(f'{i}.*')
            path.write_bytes(path.read_bytes() + f'{name}{i}'.encode())


def _only(root, fill, **changes):
    """The pixels of a set that has one picture six times."""
    _two_classes(root, fill)
    learned, tested = _all(_load(root, valid_fraction=0.5, **changes))
    for image in learned:
        np.testing.assert_array_equal(image, tested[0])
    return tested[0]


@pytest.mark.parametrize('suffix', ['png', 'PNG', 'jpg', 'JPEG', 'Jpg'])
def test_suffixes_in_any_case_are_pictures(tmp_path, suffix):
    kind = 'PNG' if suffix.lower() == 'png' else 'JPEG'

    def fill(path):
        Image.new('RGB', (8, 6), (255, 0, 0)).save(path.with_suffix(f'.{suffix}'), kind)

    found = _only(tmp_path, fill)
    assert found.shape == (6, 8, 3)
    np.testing.assert_allclose(found[0, 0], [255, 0, 0], atol=2)


@pytest.mark.parametrize(
    ('made', 'kind', 'options', 'expected'),
    [
        (Image.new('L', (8, 8), 77), 'png', {}, [77]),
        (Image.new('1', (8, 8), 1), 'png', {}, [255]),
        (Image.new('L', (8, 8), 77), 'jpg', {}, [77]),
        (Image.new('LA', (8, 8), (0, 51)), 'png', {}, [204]),  # a fifth of black on white
        (Image.new('L', (8, 8), 9), 'png', {'transparency': 9}, [255]),
        (Image.fromarray(np.full((8, 8), 0xABCD, np.uint16)), 'png', {}, [0xAB]),
        (Image.new('RGBA', (8, 8), (255, 0, 0, 0)), 'png', {}, [255, 255, 255]),
        (Image.new('RGBA', (8, 8), (255, 0, 0, 255)), 'png', {}, [255, 0, 0]),
        (Image.new('RGB', (8, 8), (1, 2, 3)).quantize(), 'png', {}, [1, 2, 3]),
        (Image.new('RGB', (8, 8)).quantize(), 'png', {'transparency': b'\0'}, [255, 255, 255]),
        (Image.new('CMYK', (8, 8), (0, 255, 255, 0)), 'jpg', {}, [255, 0, 0]),
    ],
)
def test_pictures_of_all_kinds_come_out_as_they_are_seen(tmp_path, made, kind, options, expected):
    found = _only(tmp_path, lambda path: made.save(path.with_suffix(f'.{kind}'), **options))
    assert found.shape == (8, 8, len(expected))
    np.testing.assert_allclose(found[4, 4], expected, atol=2)


def test_one_picture_in_colour_makes_all_have_three_channels(tmp_path):
    _two_classes(tmp_path, lambda path: Image.new('L', (8, 8), 50).save(path.with_suffix('.png')))
    assert _load(tmp_path, valid_fraction=0.5).image_shape == (8, 8, 1)
    Image.new('RGB', (8, 8), (50, 50, 50)).save(tmp_path / 'b' / 'z.png')
    d = _load(tmp_path, valid_fraction=0.5)
    assert d.image_shape == (8, 8, 3)
    assert {a.shape for part in _all(d) for a in part} == {(8, 8, 3)}
    np.testing.assert_array_equal(np.concatenate(_all(d)), 50)


@pytest.mark.parametrize('kind', ['png', 'jpg'])
def test_picture_that_was_taken_lying_stands(tmp_path, kind):
    """EXIF orientation 6: the left side is to be seen at the top."""
    lying = Image.new('RGB', (16, 8), 'black')
    lying.paste('white', (0, 0, 8, 8))  # left half
    exif = Image.Exif()
    exif[0x0112] = 6
    found = _only(tmp_path, lambda path: lying.save(path.with_suffix(f'.{kind}'), exif=exif))
    assert found.shape == (16, 8, 3)
    np.testing.assert_allclose(found[:8], 255, atol=2)
    np.testing.assert_allclose(found[8:], 0, atol=2)


def test_pictures_of_different_sizes_are_fitted_if_that_is_asked_for(tmp_path):
    def fill(path):
        side = 20 + int(path.name)
        image = Image.new('RGB', (2 * side, side), 'red')
        image.paste('white', (side // 2, 0, side // 2 + side, side))  # the middle square
        image.save(path.with_suffix('.jpg'), quality=95)

    _two_classes(tmp_path, fill)
    told = _error(tmp_path)
    assert f'{tmp_path / "a" / "0.jpg"} has 40x20 pixels' in told
    assert f'{tmp_path / "a" / "1.jpg"} has 42x21. Set data.image_size' in told
    d = _load(tmp_path, image_size=4, valid_fraction=0.5)
    assert d.image_shape == (4, 4, 3)
    np.testing.assert_allclose(np.concatenate(_all(d))[:, :, 1:-1], 255, atol=5)


def test_what_is_no_picture_is_left_out_and_told(pets, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger('asose_jax'), 'propagate', True)
    for name in ('.DS_Store', '._0.png', 'Thumbs.db', 'notes.txt'):
        (pets / 'cat' / name).write_bytes(b'no picture')
    (pets / '.git').mkdir()
    (pets / '__MACOSX').mkdir()
    assert len(_load(pets).train) == 18
    told = caplog.messages[0]
    assert told.startswith('2 files ignored, since only .png, .jpg, .jpeg are read: ')
    assert 'Thumbs.db' in told
    assert 'notes.txt' in told


# --- Errors


def test_all_unreadable_pictures_are_named_before_training(pets):
    (pets / 'cat' / 'page.jpg').write_text('<html>404</html>')
    (pets / 'cat' / 'empty.png').write_bytes(b'')
    whole = (pets / 'dog' / '3.png').read_bytes()
    (pets / 'dog' / '3.png').write_bytes(whole[: len(whole) // 2])
    picture(pets / 'dog' / 'cut.jpg', size=(64, 64))
    whole = (pets / 'dog' / 'cut.jpg').read_bytes()
    (pets / 'dog' / 'cut.jpg').write_bytes(whole[: len(whole) // 2])
    told = _error(pets, image_size=8, resident_megabytes=0)
    for name in ('cat/page.jpg', 'cat/empty.png', 'dog/3.png', 'dog/cut.jpg'):
        assert f'{pets / name}: ' in told
    assert 'BytesIO' not in told
    assert told.startswith('these pictures cannot be read; repair or remove them:')
    assert len(told.splitlines()) == 5


@pytest.mark.parametrize(
    'exif', [b'II*\0\x08\0\0\0\xff\xff\x12\x01', b'II*\0\x08\0\0\0\1\0\x12', b'']
)
@pytest.mark.filterwarnings('ignore:Corrupt EXIF data')
def test_damaged_exif_is_no_reason_to_stop(pets, exif):
    for i in range(3):
        file = pets / 'cat' / f'{i}.jpg'
        Image.new('RGB', (8, 8), (i, 0, 0)).save(file, exif=b'Exif\0\0' + exif)
    assert len(_load(pets).images.read(np.arange(33))[0]) == 33


def test_damaged_exif_is_warned_of_to_others_alone(pets):
    """In a process of its own: pytest sets filters of warnings that precede ours."""
    file = pets / 'cat' / 'x.jpg'
    Image.new('RGB', (8, 8)).save(file, exif=b'Exif\0\0II*\0\x08\0\0\0\1\0\x12')
    code = (
        'import sys, warnings; from asose_jax.data import picture_file, pictures\n'
        'picture_file.check(sys.argv[1]); pictures.pixels(sys.argv[1], (8, 8, 3))\n'
        'print("read", file=sys.stderr); warnings.warn("Corrupt EXIF data of the caller")'
    )
    done = subprocess.run(
        [sys.executable, '-c', code, file], capture_output=True, text=True, check=True
    )
    assert done.stderr.startswith('read')
    assert 'of the caller' in done.stderr


@pytest.mark.parametrize(
    ('spoil', 'reason'),
    [
        (os.mkfifo, 'it is no file, but a pipe or a device'),
        (lambda path: path.symlink_to('nowhere.png'), 'No such file'),
        (lambda path: path.symlink_to('/dev/zero'), 'it is no file, but a pipe or a device'),
        (lambda path: path.symlink_to(path.name), 'Too many levels of symbolic links'),
    ],
    ids=['pipe', 'broken link', 'device', 'link to itself'],
)
def test_what_only_looks_like_a_picture_is_named_and_never_waited_for(pets, spoil, reason):
    spoil(pets / 'cat' / 'x.png')
    told = _error(pets)
    assert str(pets / 'cat' / 'x.png') in told
    assert reason in told


@pytest.mark.parametrize('name', ['pets.zip', 'pets.tar.gz', '0.png'])
def test_archive_in_the_place_of_a_folder_is_told(tmp_path, name):
    (tmp_path / name).write_bytes(b'PK')
    assert f"data.dir='{tmp_path / name}' is a file, not a folder" in _error(tmp_path / name)


def test_many_unreadable_pictures_are_counted(pets):
    for i in range(8):
        (pets / 'cat' / f'{i}.png').write_bytes(b'nothing')
    assert _error(pets).splitlines()[-1].strip() == 'and 3 more'


def test_picture_that_breaks_later_is_named_when_it_is_met(pets):
    d = _load(pets, resident_megabytes=0)
    for path in pets.glob('*/*.png'):
        path.write_bytes(b'')
    with pytest.raises(UserError, match=r'cannot be read; repair or remove them:\n.*png'):
        d.images.read(d.train[:2])


@pytest.mark.parametrize('folder', ['', 'cat', 'test'])
def test_folder_that_may_not_be_read_is_one_line_with_advice(pets, monkeypatch, folder):
    scan = os.scandir
    if folder == 'test':
        (pets / 'test' / 'cat').mkdir(parents=True)

    def refuse(path):
        if pathlib.Path(path) == pets / folder:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scan(path)

    monkeypatch.setattr(os, 'scandir', refuse)
    told = _error(pets)
    assert told.startswith(f"data.dir='{pets}': {pets / folder} may not be ")
    assert told.endswith('Permission denied. Give yourself the permission, or choose another path.')


def test_folder_that_is_not_there_is_an_error(tmp_path):
    assert _error(tmp_path / 'pts') == f"data.dir='{tmp_path / 'pts'}': there is no such folder"


def test_folder_that_is_named_from_here_is_sought_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert _error('pts') == f"data.dir='pts': there is no such folder in {pathlib.Path.cwd()}"


@pytest.mark.parametrize(
    ('files', 'options', 'message'),
    [
        (['1.png', '2.png'], {}, 'has no class folders, but'),
        (['a/1.png', 'a/2.png'], {}, 'has 1 class folder, but'),
        (['a/1.png', 'b/1.txt'], {}, "'a' (1), 'b' (0). Add pictures, or remove the folder."),
        (['a/1.txt', 'b/1.txt'], {}, 'there are no pictures (.png, .jpg, .jpeg)'),
        (['train/1.png', 'test/2.png'], {}, 'train has no class folders, only files'),
        (['train/a/1.png'], {'test_split': 'train'}, 'data.test_split are both'),
        (
            ['Train/a/1.png', 'Test/a/1.png'],
            {},
            "Test contains folders ('a'), but a class folder must contain pictures",
        ),
        (
            ['Train/a/1.png', 'Test/a/1.png'],
            {'train_split': 'training'},
            "data.train_split='training' does not name a folder of class folders",
        ),
        (
            ['train/a/1.png', 'train/b/1.png', 'tset/a/1.png'],
            {'test_split': 'val'},
            "data.test_split='val' does not name a folder: ",
        ),
        (
            [f'train/{c}/{i}.png' for c in 'ab' for i in range(2)] + ['test/c/1.png'],
            {},
            "the classes 'c' have no folder in the training split",
        ),
        (
            [f'train/{c}/{i}.png' for c in 'ab' for i in range(2)] + ['test/a/1.png'],
            {'test_fraction': 0.3},
            'data.test_fraction=0.3 has no effect',
        ),
        (
            ['train/a/1.png', 'train/b/1.png', 'train/b/2.png', 'test/a/1.png'],
            {},
            "at least 2 pictures, for train, valid; these have fewer: 'a' (1)",
        ),
    ],
)
def test_folder_that_is_no_data_set_is_an_error_that_says_why(tmp_path, files, options, message):
    for file in files:
        if file.endswith('png'):
            picture(tmp_path / file)
        else:
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).write_text('')
    assert message in _error(tmp_path, **options)


def test_part_that_is_not_read_is_told(pets, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger('asose_jax'), 'propagate', True)
    for k, part in enumerate(('train', 'test', 'extra')):
        for c in 'ab':
            for i in range(2):
                picture(pets / part / c / f'{i}.png', seed=10 * k + 2 * ord(c) + i)
    _load(pets, valid_fraction=0.5)
    assert "the folders 'cat', 'dog', 'extra' are not used" in caplog.messages[0]


# --- The whole program


def test_fewer_images_than_a_batch_are_an_error_before_training(pets, tmp_path):
    config = config_of(pets, **{'batch_size': 64, 'data.valid_fraction': 0.45})
    with pytest.raises(UserError, match=r'batch_size=64: there are only 13 .* Take at most 12 '):
        single_run.run(config, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()
