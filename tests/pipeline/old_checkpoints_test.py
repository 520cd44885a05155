"""Checkpoints of versions whose blocks had gates go on as the same networks with factors."""

import dataclasses
import functools
import json
import shutil

import chex
import jax
import numpy as np
import pytest
from helpers import networks
from helpers.runs import WHOLE, make_whole, tiny

from asose_jax.arch import genotype
from asose_jax.nn import factors
from asose_jax.pipeline import old_checkpoints, single_run
from asose_jax.runtime.errors import UserError
from asose_jax.spaces import chain
from asose_jax.train import checkpoint, pmap, state
from asose_jax.train.phases import Phase

NAMES = ('none', 'max_pool_3x3', 'skip_connect', 'dil_conv_3x3')
SPEC = chain.build(
    (6, 6, 2), 3, channels=4, depth=2, reductions=(1,), max_channels=8, primitives=NAMES
)
TX = networks.make_optimizer(networks.make_schedule(dict.fromkeys(Phase, 1), 4))


def _as_before(spec, held):
    """A state with gates, and the same one with factors."""
    number = iter(np.linspace(0.5, 1.5, 99).astype(np.float32))
    old = jax.tree.map(
        lambda leaf: next(number) if isinstance(leaf, jax.ShapeDtypeStruct) else np.asarray(leaf),
        old_checkpoints._map_weights(
            functools.partial(old_checkpoints._with_gates, spec), jax.tree.map(_described, held)
        ),
    )
    known = dict(jax.tree.leaves_with_path(held))
    old = jax.tree.map_with_path(known.get, old)
    return old, old_checkpoints._map_weights(old_checkpoints._with_factors, held, old)


def _described(leaf):
    return jax.ShapeDtypeStruct(np.shape(leaf), np.asarray(leaf).dtype, sharding=None)


@pytest.mark.parametrize(
    'names', [None, ('skip_connect', 'dil_conv_3x3'), ('none', 'max_pool_3x3')], ids=str
)
def test_checkpoint_of_before_is_the_network_whose_factors_are_its_gates(tmp_path, names):
    spec = SPEC
    if names:
        chosen = genotype.Genotype(tuple((name,) for name in names))
        spec = genotype.keep_chosen(SPEC, chosen)
    held = networks.fresh_state(networks.supernet(spec), TX)
    old, expected = _as_before(spec, held)
    plain = dataclasses.replace(spec, factors=())
    with checkpoint.Checkpoints(tmp_path / 'checkpoints') as checkpoints:
        told = {key: value for key, value in plain.to_json().items() if key != 'factors'}
        checkpoints.save(0, pmap.replicated(old), {'spec': told})
        checkpoints.finish()
        meta = checkpoints.describe(0)
        assert old_checkpoints.has_gates(meta['checksums'])
        found_spec, found = old_checkpoints.restore(
            checkpoints, 0, chain.ChainSpec.from_json(meta['spec']), networks.supernet, TX
        )
    if names:
        expected = state.derive_state(expected, spec, chosen, TX)
        spec = factors.folded_spec(spec, chosen)
    assert found_spec == spec
    chex.assert_trees_all_equal(found, expected)


def test_run_that_was_stopped_before_is_not_gone_on_with(shared, tmp_path):
    """Which is told when its network and its config are read, not its arrays."""
    config = tiny(**WHOLE)
    workdir = shutil.copytree(shared('whole', make_whole) / 'run', tmp_path / 'run')
    for path in (workdir / 'checkpoints').iterdir():
        if path.name != '4':  # the end of warmup
            shutil.rmtree(path)
    known = json.loads((workdir / 'config.json').read_text())
    for field in ('search.exact_start', 'search.statistics_batches'):
        del known[field]
    (workdir / 'config.json').write_text(json.dumps({**known, 'search.freeze_epochs': 0}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(old_checkpoints, 'has_gates', lambda names: True)
        with pytest.raises(UserError, match=r'older version .* gates.*init_from=.*checkpoints/4'):
            single_run.run(config, workdir)
