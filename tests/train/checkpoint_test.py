"""What is saved comes back bit for bit; what cannot be read is said to be so."""

import collections
import functools
import pathlib
import shutil

import chex
import jax
import jax.numpy as jnp
import pytest
from helpers import networks
from helpers.damage import flip

from asose_jax.runtime.errors import UserError
from asose_jax.spaces import chain, registry
from asose_jax.train import checkpoint
from asose_jax.train.phases import Phase

SPEC = chain.build(
    (4, 4, 1),
    3,
    channels=4,
    depth=1,
    reductions=(),
    max_channels=4,
    primitives=('none', 'skip_connect'),
)
TX = networks.make_optimizer(networks.make_schedule(dict.fromkeys(Phase, 1), 4))
META = {'spec': SPEC.to_json(), 'phase': 'search', 'told': {'phases': []}}


@functools.cache
def fresh(seed=0):
    return jax.device_put(networks.fresh_state(networks.supernet(SPEC), TX, seed))


def _save(directory, steps, **options):
    with checkpoint.Checkpoints(directory, **options) as checkpoints:
        for step in steps:
            checkpoints.save(step, fresh(step), META)


def test_state_comes_back_bit_for_bit_and_its_description_before_it(tmp_path):
    _save(tmp_path, [7])
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() == 7
        meta = checkpoints.describe(7)
        assert registry.spec_from_json(meta['spec']) == SPEC
        restored = checkpoints.restore(7, fresh(0))
    assert jax.tree.structure(restored) == jax.tree.structure(fresh(7))
    chex.assert_trees_all_equal_shapes_and_dtypes(restored, fresh(7))
    chex.assert_trees_all_equal(restored, fresh(7))


def test_saved_state_does_not_change_when_its_buffers_are_given_away(tmp_path):
    """Saving goes on in the background while the next step overwrites the arrays."""
    move = jax.jit(lambda s: jax.tree.map(lambda leaf: leaf + 1, s), donate_argnums=0)
    now = jax.tree.map(jnp.array, fresh(0))
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, now, META)
        for _ in range(5):
            now = move(now)
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(1, fresh(0))
    chex.assert_trees_all_equal(restored, fresh(0))


def test_saved_description_does_not_change_when_the_run_goes_on(tmp_path, monkeypatch):
    """It is written in the background; here, only when the caller has changed its own."""
    written, going_on = checkpoint.ocp.JsonCheckpointHandler.async_save, {'phases': [1]}

    async def late(self, directory, item=None, args=None):
        going_on['phases'].append(2)
        return await written(self, directory, item, args)

    monkeypatch.setattr(checkpoint.ocp.JsonCheckpointHandler, 'async_save', late)
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(7, fresh(), {**META, 'told': going_on})
    assert going_on == {'phases': [1, 2]}
    assert _read(tmp_path)[0]['told'] == {'phases': [1]}


def test_newest_and_milestones_are_kept(tmp_path):
    _save(tmp_path, [1, 2, 3, 4, 5], keep=2, milestones=[2])
    kept = sorted(int(path.name) for path in tmp_path.iterdir() if path.name.isdigit())
    assert kept == [2, 4, 5]


def test_milestones_that_come_later_are_kept(tmp_path):
    with checkpoint.Checkpoints(tmp_path, keep=1, milestones=[1]) as checkpoints:
        for step in (1, 2, 3, 4):
            if step == 3:
                checkpoints.keep_for_good([2])
            checkpoints.save(step, fresh(step), META)
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == [1, 2, 4]


def test_same_step_is_saved_once(tmp_path):
    _save(tmp_path, [3, 3])
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() == 3


def _read(directory, step=7):
    with checkpoint.Checkpoints(directory) as checkpoints:
        return checkpoints.describe(step), checkpoints.restore(step, fresh(0))


def _truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _empty(path):
    path.write_bytes(b'')


def _files(directory, step=7):
    return sorted(path for path in (directory / str(step)).rglob('*') if path.is_file())


@pytest.mark.parametrize(
    'damage',
    [
        flip,
        pathlib.Path.unlink,
        *(pytest.param(d, marks=pytest.mark.slow) for d in (_truncate, _empty)),
    ],
)
def test_damage_of_any_file_is_found_or_does_no_harm(tmp_path, damage):
    _save(tmp_path / 'saved', [7])
    expected, told = _read(tmp_path / 'saved'), []
    files = _files(tmp_path / 'saved')
    for number in range(len(files)):
        copy = tmp_path / str(number)
        shutil.copytree(tmp_path / 'saved', copy)
        damage(_files(copy)[number])
        try:
            read = _read(copy)
        except checkpoint.DamagedError as error:
            told.append(str(error).startswith(f'checkpoint {copy / "7"}'))
        else:
            assert read[0] == expected[0]
            chex.assert_trees_all_equal(read[1], expected[1])
    assert len(told) >= 3  # the description, the arrays, and what says where they are
    assert all(told)


@pytest.mark.parametrize('parts', [2, pytest.param(5, marks=pytest.mark.slow)])
def test_every_bit_of_the_arrays_is_guarded(tmp_path, parts):
    """Also where the format has no checksum of its own."""
    _save(tmp_path, [7])
    arrays = [path for path in _files(tmp_path) if path.parent.name == 'd']
    assert arrays
    for path in arrays:
        whole = path.read_bytes()
        for place in range(len(whole) // 10, len(whole), max(1, len(whole) // parts)):
            content = bytearray(whole)
            content[place] ^= 1
            path.write_bytes(content)
            try:
                _, restored = _read(tmp_path)
            except checkpoint.DamagedError:
                continue
            finally:
                path.write_bytes(whole)
            chex.assert_trees_all_equal(restored, fresh(7))


def test_arrays_that_are_whole_but_of_another_checkpoint_are_damage(tmp_path):
    """The format finds nothing wrong with them; the checksums in the description do."""
    _save(tmp_path, [7, 8], keep=2)
    shutil.rmtree(tmp_path / '7' / 'state')
    shutil.copytree(tmp_path / '8' / 'state', tmp_path / '7' / 'state')
    with pytest.raises(checkpoint.DamagedError, match=r'checksum mismatch in \.'):
        _read(tmp_path)


def test_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, caplog):
    place = tmp_path / 'checkpoints'
    _save(place, [1, 2, 3], keep=3)
    for step in (2, 3):
        _empty(place / str(step) / 'meta' / 'metadata')
    with checkpoint.Checkpoints(place, keep=3) as checkpoints:
        assert (
            checkpoints.restore_latest_valid(lambda step: (checkpoints.describe(step), step)[1])
            == 1
        )
        assert checkpoints.latest() == 1
        checkpoints.save(2, fresh(2), META)  # its place is free again
    told = [record.getMessage() for record in caplog.records]
    for step in (2, 3):
        assert any(f'checkpoint {place / str(step) / "meta"} cannot be read' in t for t in told)
        assert (tmp_path / 'damaged' / str(step)).is_dir()
    assert _read(place, 2)[0]['phase'] == 'search'


def test_nothing_is_moved_where_all_are_damaged(tmp_path):
    place = tmp_path / 'checkpoints'
    _save(place, [1, 2], keep=2)
    for step in (1, 2):
        flip(place / str(step) / 'meta' / 'metadata')
    with (
        checkpoint.Checkpoints(place) as checkpoints,
        pytest.raises(UserError, match=r'(?s)no checkpoint can be read:.*2/meta.*1/meta.*deleted'),
    ):
        checkpoints.restore_latest_valid(checkpoints.describe)
    assert {path.name for path in place.iterdir()} == {'1', '2'}
    assert not (tmp_path / 'damaged').exists()


def test_other_schema_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, 'SCHEMA', 99)
    _save(tmp_path, [7])
    monkeypatch.undo()
    with (
        checkpoint.Checkpoints(tmp_path) as checkpoints,
        pytest.raises(
            UserError, match=f'has schema 99; this version reads schema {checkpoint.SCHEMA}'
        ),
    ):
        checkpoints.describe(7)


def test_other_shapes_are_an_error(tmp_path):
    _save(tmp_path, [7])
    wide = fresh(0).replace(step=jnp.zeros((2,), jnp.int32))
    with (
        checkpoint.Checkpoints(tmp_path) as checkpoints,
        pytest.raises(checkpoint.DamagedError, match='cannot be read'),
    ):
        checkpoints.restore(7, wide)


def test_full_disk_is_an_error_before_anything_is_written(tmp_path, monkeypatch):
    usage = collections.namedtuple('Usage', 'total used free')(2**30, 2**30, 2**20)
    monkeypatch.setattr(checkpoint.shutil, 'disk_usage', lambda _: usage)
    with (
        checkpoint.Checkpoints(tmp_path) as checkpoints,
        pytest.raises(UserError, match=r'no room for checkpoints: .* has 1 MiB free, 16 MiB'),
    ):
        checkpoints.save(1, fresh(0), META)
    assert not [path for path in tmp_path.iterdir() if path.name.isdigit()]


def test_place_to_start_from_is_a_workdir_or_one_checkpoint(tmp_path):
    _save(tmp_path / 'checkpoints', [7])
    assert checkpoint.parse_init_from(str(tmp_path)) == (tmp_path / 'checkpoints', None)
    one = tmp_path / 'checkpoints' / '7'
    assert checkpoint.parse_init_from(str(one)) == (tmp_path / 'checkpoints', 7)
    numbered = tmp_path / 'random' / '0'  # a workdir of several searches
    _save(numbered / 'checkpoints', [3])
    assert checkpoint.parse_init_from(str(numbered)) == (numbered / 'checkpoints', None)
    with pytest.raises(UserError, match='no checkpoints there'):
        checkpoint.parse_init_from(str(pathlib.Path('/nowhere')))
