"""What is saved comes back bit for bit; what cannot be read is said to be so."""

import collections
import functools
import pathlib

import chex
import jax
import jax.numpy as jnp
import pytest

from asose_jax import checkpoint, genotype, optim, phases, state
from asose_jax.errors import UserError
from asose_jax.model import SuperNet
from asose_jax.phases import Phase

SPEC = genotype.chain_spec(
    (4, 4, 1),
    3,
    channels=4,
    depth=1,
    reductions=(),
    max_channels=4,
    primitives=('skip_connect', 'sep_conv_3x3'),
)
TX = optim.make_optimizer(phases.make_plan(dict.fromkeys(Phase, 1), 4))
META = {'spec': SPEC.to_json(), 'phase': 'search', 'told': {'phases': []}}


@functools.cache
def fresh(seed=0):
    return state.init_state(SuperNet(SPEC), TX, jax.random.key(seed))


def _save(directory, steps, **options):
    with checkpoint.Checkpoints(directory, **options) as checkpoints:
        for step in steps:
            checkpoints.save(step, fresh(step), META)


def test_state_comes_back_bit_for_bit_and_its_description_before_it(tmp_path):
    _save(tmp_path, [7])
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() == 7
        meta = checkpoints.describe(7)
        assert genotype.NetSpec.from_json(meta['spec']) == SPEC
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


def test_newest_and_milestones_are_kept(tmp_path):
    _save(tmp_path, [1, 2, 3, 4, 5], keep=2, milestones=[2])
    kept = sorted(int(path.name) for path in tmp_path.iterdir() if path.name.isdigit())
    assert kept == [2, 4, 5]


def test_same_step_is_saved_once(tmp_path):
    _save(tmp_path, [3, 3])
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() == 3


def test_damaged_checkpoint_is_an_error_that_names_it(tmp_path):
    _save(tmp_path, [7])
    for path in (tmp_path / '7' / 'state').rglob('*'):
        if path.is_file():
            path.write_bytes(b'')
    with checkpoint.Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError) as error:
        checkpoints.restore(7, fresh(0))
    message = str(error.value)
    assert f'checkpoint {tmp_path / "7"} cannot be read' in message
    assert 'choose another --workdir' in message


def test_lost_description_is_an_error_that_names_it(tmp_path):
    _save(tmp_path, [7])
    (tmp_path / '7' / 'meta' / 'metadata').write_text('{"schema": ')
    with (
        checkpoint.Checkpoints(tmp_path) as checkpoints,
        pytest.raises(UserError, match=r'7 cannot be read'),
    ):
        checkpoints.describe(7)


def test_other_schema_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, 'SCHEMA', 99)
    _save(tmp_path, [7])
    monkeypatch.undo()
    with (
        checkpoint.Checkpoints(tmp_path) as checkpoints,
        pytest.raises(UserError, match=f'has schema 99; this version reads {checkpoint.SCHEMA}'),
    ):
        checkpoints.describe(7)


def test_other_shapes_are_an_error(tmp_path):
    _save(tmp_path, [7])
    wide = fresh(0).replace(step=jnp.zeros((2,), jnp.int32))
    with (
        checkpoint.Checkpoints(tmp_path) as checkpoints,
        pytest.raises(UserError, match='cannot be read'),
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
    assert checkpoint.locate(str(tmp_path)) == (tmp_path / 'checkpoints', None)
    one = tmp_path / 'checkpoints' / '7'
    assert checkpoint.locate(str(one)) == (tmp_path / 'checkpoints', 7)
    with pytest.raises(UserError, match='no checkpoints there'):
        checkpoint.locate(str(pathlib.Path('/nowhere')))
