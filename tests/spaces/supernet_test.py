"""Checks gradients, the guard of alpha and derivation on the whole supernet (docs/algorithm.md).

Where a law is about every primitive, a network of one block has all ten; elsewhere two blocks, of
which one halves the image, have those that compile fast.
"""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import networks

from asose_jax.arch import genotype, gumbel
from asose_jax.config.schema import FIELDS
from asose_jax.nn import mixed_op
from asose_jax.nn.forward import Mode
from asose_jax.spaces import chain, supernet

FEW = ('none', 'max_pool_3x3', 'skip_connect', 'dil_conv_3x3')
SPEC = chain.build(
    (6, 6, 2), 3, channels=4, depth=2, reductions=(1,), max_channels=8, primitives=FEW
)
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.normal(size=(8, 6, 6, 2)).astype('f')
LABELS = np.arange(8) % 3
HARD = networks.settings()
SOFT = networks.settings(estimator='gumbel')
TAU = 0.7
# The groups whose gradient a step of this mode takes, if not told otherwise.
MOVED = {Mode.ALPHA: ('arch',), Mode.DENSE: ('params', 'arch')}


def _one_block(*names):
    return chain.build(
        (6, 6, 2), 3, channels=4, depth=1, reductions=(), max_channels=4, primitives=names
    )


PRIMITIVES = FIELDS['model.primitives'].default
ALL = _one_block(*PRIMITIVES)


@functools.cache
def variables(spec=SPEC):
    """Random weights, and BatchNorm statistics and scales that are not trivial."""
    return networks.variables(networks.supernet(spec))


def _apply(params, arch, key, mode, settings, train, spec, dtype='float32'):
    logits, changed = networks.supernet(spec, settings, dtype).apply(
        {'params': params, 'arch': arch, 'batch_stats': variables(spec)['batch_stats']},
        IMAGES,
        TAU,
        mode=mode,
        train=train,
        mutable=['batch_stats', 'guard'],
        rngs={'gumbel': key},
    )
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean()
    return loss, (logits, changed)


@functools.partial(jax.jit, static_argnames=('mode', 'settings', 'train', 'spec'))
def forward(params, arch, key, mode, settings=HARD, train=False, spec=SPEC):
    """Mean loss; and (logits, changed collections)."""
    return _apply(params, arch, key, mode, settings, train, spec)


@functools.partial(jax.jit, static_argnames=('mode', 'settings', 'spec', 'groups'))
def step(params, arch, key, mode, settings=HARD, spec=SPEC, groups=None):
    """Gives what `forward` does in training, and the gradients that a step of this mode takes."""

    def loss(moved):
        of = {'params': params, 'arch': arch, **moved}
        return _apply(of['params'], of['arch'], key, mode, settings, True, spec)

    everything = {'params': params, 'arch': arch}
    groups = groups or MOVED.get(mode, ('params',))
    moved = {group: everything[group] for group in groups}
    return jax.value_and_grad(loss, has_aux=True)(moved)


def _step(key, mode, settings=HARD, spec=SPEC, arch=None, groups=None):
    v = variables(spec)
    arch = v['arch'] if arch is None else arch
    key = jax.random.key(key)
    return jax.device_get(step(v['params'], arch, key, mode, settings, spec, groups))


def _alpha(arch, block):
    return arch[f'block_{block}']['choice_0']['alpha']


def _with_alpha(arch, block, alpha):
    return {**arch, f'block_{block}': {'choice_0': {'alpha': np.asarray(alpha, np.float32)}}}


# --- Alpha learns, and computing only what is drawn changes nothing


def _assert_alpha_and_weights_learn_as_the_dense_definition_says(spec, seed):
    _, alpha = _step(seed, Mode.ALPHA, spec=spec)
    (_, (logits, _)), weights = _step(seed, Mode.DRAW, spec=spec)
    (_, (expected, _)), dense = _step(seed, Mode.DENSE, spec=spec)
    for block in range(len(spec.blocks)):
        assert (_alpha(alpha['arch'], block) != 0).all()
    chex.assert_trees_all_close(alpha['arch'], dense['arch'], atol=1e-5, rtol=1e-4)
    chex.assert_trees_all_close(
        (logits, weights['params']), (expected, dense['params']), atol=1e-5, rtol=0
    )


def test_alpha_step_gives_every_primitive_the_gradient_of_the_dense_definition():
    ours, dense = (
        _step(0, mode, spec=ALL, groups=('arch',))[1]['arch'] for mode in (Mode.ALPHA, Mode.DENSE)
    )
    assert (_alpha(ours, 0) != 0).all()
    chex.assert_trees_all_close(ours, dense, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('seed', range(4))
def test_alpha_and_weights_learn_as_the_dense_definition_says(seed):
    _assert_alpha_and_weights_learn_as_the_dense_definition_says(SPEC, seed)


@pytest.mark.slow
def test_alpha_and_weights_learn_whichever_of_all_primitives_is_drawn():
    drawn = set()
    for seed in range(1, 40):
        (_, (_, changed)), _ = _step(seed, Mode.DRAW, spec=ALL)
        moved = tuple(_moved(ALL, changed))
        if moved not in drawn:
            drawn.add(moved)
            _assert_alpha_and_weights_learn_as_the_dense_definition_says(ALL, seed)
    assert len(drawn) == 7  # one for each primitive with statistics, one for the others


@pytest.mark.slow
@pytest.mark.parametrize(
    ('space', 'primitives', 'changes'),
    [
        ('chain', FEW, {}),
        ('nasbench201', ('none', 'skip_connect', 'nor_conv_1x1'), {'auxiliary_skip': True}),
        ('darts', ('none', 'skip_connect', 'nor_conv_1x1'), {}),
    ],
)
def test_form_for_accelerators_computes_what_the_form_for_cpus_does(space, primitives, changes):
    sizes = {'channels': 4, 'depth': 1, 'reductions': (), 'primitives': primitives}
    net = networks.supernet(networks.build(space, (8, 8, 2), 5, **sizes), **changes)
    v = networks.variables(net)
    rows = jax.tree.leaves(v['arch'])
    rows[0] = np.full_like(rows[0], np.nan)  # the guard acts in both
    arch = jax.tree.unflatten(jax.tree.structure(v['arch']), rows)
    images = RANDOM.normal(size=(4, 8, 8, 2)).astype('f')

    def outcome(for_cpu):
        def loss(trained, images):
            logits, changed = net.clone(for_cpu=for_cpu).apply(
                {**trained, 'batch_stats': v['batch_stats']},
                images,
                TAU,
                mode=Mode.ALPHA,
                train=True,
                beta=0.3,
                mutable=['batch_stats', 'guard'],
                rngs={'gumbel': jax.random.key(1)},
            )
            return (logits**2).sum(), (logits, changed)

        trained = {'params': v['params'], 'arch': arch}
        return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(trained, images)

    ours, of_cpu = outcome(False), outcome(True)
    chex.assert_trees_all_close(ours, of_cpu, atol=1e-5, rtol=1e-5)
    assert sum(jax.tree.leaves(ours[0][1][1]['guard'])) == 1


def _assert_soft_gradient_agrees_with_central_differences(spec):
    arch, h = variables(spec)['arch'], 2e-2
    _, gradient = _step(5, Mode.ALPHA, SOFT, spec)

    def loss(block, k, change):
        alpha = np.array(_alpha(arch, block))
        alpha[k] += change
        return _step(5, Mode.ALPHA, SOFT, spec, _with_alpha(arch, block, alpha))[0][0]

    for block in range(len(spec.blocks)):
        found = _alpha(gradient['arch'], block)
        for k in range(len(found)):
            numeric = (loss(block, k, h) - loss(block, k, -h)) / (2 * h)
            assert abs(numeric - found[k]) < 1e-3 + 0.02 * abs(numeric)


def test_soft_alpha_gradient_agrees_with_central_differences():
    _assert_soft_gradient_agrees_with_central_differences(SPEC)


@pytest.mark.slow
def test_soft_alpha_gradient_of_all_primitives_agrees_with_central_differences():
    _assert_soft_gradient_agrees_with_central_differences(ALL)


@pytest.mark.parametrize('branch', [True, False])
def test_straight_through_gradient_agrees_with_central_differences_of_its_relaxation(branch):
    """Hard value, soft slope: L(hard + soft(alpha) - soft(alpha_0)), with the noise held fixed."""
    x, g = (RANDOM.normal(size=(4, 6, 6, 4)).astype('f') for _ in range(2))
    candidates = tuple(functools.partial(jnp.multiply, k + 1) for k in range(5))
    alpha_0, key = np.arange(5, dtype='f') / 3, jax.random.key(6)

    @jax.jit
    def of(alpha):
        """The relaxed loss, and value and slope of ours."""
        outputs = [candidate(x) for candidate in candidates]
        hard = gumbel.gumbel_softmax(alpha_0, key, TAU, hard=True, noise='unit')

        def soft(alpha):
            return gumbel.gumbel_softmax(alpha, key, TAU, hard=False, noise='unit')

        def ours(alpha):
            weights = gumbel.gumbel_softmax(alpha, key, TAU, hard=True, noise='unit')
            drawn = jnp.stack(outputs)[hard.argmax()]
            return (mixed_op.straight_through(candidates, branch, drawn, weights, (x,)) * g).sum()

        weights = hard + soft(alpha) - soft(alpha_0)
        relaxed = sum(w * (y * g).sum() for w, y in zip(weights, outputs, strict=True))
        return relaxed, *jax.value_and_grad(ours)(alpha)

    relaxed, ours, gradient = of(alpha_0)
    np.testing.assert_allclose(ours, relaxed, rtol=1e-5)
    for k, move in enumerate(1e-2 * np.eye(5, dtype='f')):
        numeric = (of(alpha_0 + move)[0] - of(alpha_0 - move)[0]) / 2e-2
        np.testing.assert_allclose(gradient[k], numeric, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(('mode', 'found'), [(Mode.DRAW, True), (Mode.ALPHA, False)])
def test_alpha_step_computes_no_weight_gradient(mode, found):
    """Of depthwise convolutions, nor of matrix products."""
    spec = _one_block('skip_connect', 'dil_conv_3x3')
    v = variables(spec)

    def gradient(params, arch):
        return step(params, arch, jax.random.key(0), mode, HARD, spec)[1]

    compiled = jax.jit(gradient).lower(v['params'], v['arch']).compile().as_text()
    assert ('jit(_kernel_gradient)' in compiled) == found
    assert ('jit(_product_gradient)' in compiled) == found


def _moved(spec, changed):
    """The operations of the first block whose statistics are other ones than before."""
    before = variables(spec)['batch_stats']['block_0']['branch_0']
    after = changed['batch_stats']['block_0']['branch_0']
    return [
        name
        for name in before
        if any(
            (a != b).any()
            for a, b in zip(*map(jax.tree.leaves, (before[name], after[name])), strict=True)
        )
    ]


def test_only_the_drawn_operation_updates_its_statistics():
    spec, moved = _one_block('skip_connect', 'dil_conv_3x3', 'conv_7x1_1x7'), set()
    v = variables(spec)
    for seed in range(8):
        key = jax.random.key(seed)
        changed = forward(v['params'], v['arch'], key, Mode.DRAW, train=True, spec=spec)[1][1]
        names = _moved(spec, changed)
        assert len(names) <= 1
        moved |= set(names)
    assert moved == {'dil_conv_3x3', 'conv_7x1_1x7'}


def test_soft_draws_without_small_weights_match_the_mixture_they_stand_for():
    """Thresholds that drop nothing leave the dense mixture."""
    everything = networks.settings(
        estimator='gumbel', thresholds=gumbel.Thresholds(1.0, 1.0, 0.0, 0.0, 0.0)
    )
    spec, key = _one_block(*FEW), jax.random.key(1)
    v = variables(spec)
    kept, dense = (
        forward(v['params'], v['arch'], key, mode, everything, train=True, spec=spec)[1][0]
        for mode in (Mode.DRAW, Mode.DENSE)
    )
    np.testing.assert_allclose(kept, dense, atol=1e-5)


# --- The weight guard


def _poisoned(arch):
    """A NaN among the logits of the first block."""
    row = np.array(_alpha(arch, 0))
    row[3] = np.nan
    return _with_alpha(arch, 0, row)


def _sure(arch, name, value=1e4):
    return _with_alpha(arch, 0, value * np.eye(len(FEW))[FEW.index(name)])


@pytest.mark.parametrize('mode', [Mode.DRAW, Mode.ALPHA, Mode.ARGMAX])
def test_nan_row_behaves_as_skip_connect_and_others_are_unchanged(mode):
    v = variables()

    def outcome(arch):
        if mode is Mode.ARGMAX:
            return jax.device_get(forward(v['params'], arch, jax.random.key(2), mode))
        return _step(2, mode, arch=arch)[0]

    loss, (logits, changed) = outcome(_poisoned(v['arch']))
    _, (expected, healthy) = outcome(_sure(v['arch'], 'skip_connect'))
    assert np.isfinite(loss)
    np.testing.assert_array_equal(logits, expected)
    assert sum(jax.tree.leaves(changed['guard'])) == 1
    assert sum(jax.tree.leaves(healthy['guard'])) == 0


def test_without_the_guard_a_nan_row_chooses_what_argmax_makes_of_it():
    v, bare = variables(), networks.settings(guard=False)

    def without(arch):
        return forward(v['params'], arch, jax.random.key(2), Mode.DRAW, bare, train=True)[1]

    logits, changed = without(_poisoned(v['arch']))
    (_, (expected, _)), _ = _step(2, Mode.DRAW, arch=_sure(v['arch'], FEW[0]))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    close(logits, expected)  # another program rounds anew
    assert not changed.get('guard')
    close(without(v['arch'])[0], _step(2, Mode.DRAW)[0][1][0])


def test_nan_row_gets_no_gradient_and_the_others_a_finite_one():
    _, gradient = _step(2, Mode.ALPHA, arch=_poisoned(variables()['arch']))
    np.testing.assert_array_equal(_alpha(gradient['arch'], 0), 0)
    assert np.isfinite(_alpha(gradient['arch'], 1)).all()
    assert (_alpha(gradient['arch'], 1) != 0).all()


# --- The derived network


@pytest.mark.parametrize(
    'names', [('dil_conv_3x3', 'max_pool_3x3'), ('none', 'dil_conv_3x3')], ids=str
)
def test_derived_network_is_the_supernet_under_argmax(names):
    v, chosen = variables(), genotype.Genotype(tuple((name,) for name in names))
    arch = v['arch']
    for block, name in enumerate(names):
        arch = _with_alpha(arch, block, np.eye(len(FEW))[FEW.index(name)])
    assert genotype.most_likely(SPEC, arch) == chosen
    expected = forward(v['params'], arch, jax.random.key(0), Mode.ARGMAX)[1][0]
    derived = networks.supernet(genotype.derive(SPEC, chosen))
    alone = {'params': v['params'], 'batch_stats': v['batch_stats']}
    logits = jax.jit(lambda: derived.apply(alone, IMAGES, mode=Mode.ARGMAX, train=False))()
    np.testing.assert_allclose(logits, expected, atol=1e-5)


# --- The start of alpha, warmup, blocks and dtypes


def test_alpha_starts_with_the_stated_bias():
    def start(key):
        return HARD.initial_alpha(key, PRIMITIVES)

    alpha = np.asarray(jax.jit(jax.vmap(start))(jax.random.split(jax.random.key(0), 500)))
    np.testing.assert_array_equal(alpha[:, 0], -2)
    np.testing.assert_array_equal(alpha[:, 3], 1)
    rest = np.delete(alpha, [0, 3], axis=1)
    assert abs(rest.mean()) < 0.03
    assert abs(rest.std() - 0.5) < 0.02


def test_warmup_uses_skip_connect_only():
    _, gradient = _step(0, Mode.SKIP)
    for block in range(2):
        operations = gradient['params'][f'block_{block}']['branch_0']
        assert operations.pop('skip_connect')['factor'] != 0
        assert all((leaf == 0).all() for leaf in jax.tree.leaves(operations))


def test_block_with_factors_of_zero_is_the_identity():
    spec = chain.BlockSpec(4, 1, (('none', 'skip_connect', 'dil_conv_3x3'),))
    norm = functools.partial(supernet.nn.BatchNorm, momentum=0.9, epsilon=1e-5, dtype=jnp.float32)
    start, use = (
        chain.Block(
            spec, (True,), dataclasses.replace(networks.forward(mode, False), norm=norm), True
        )
        for mode in (Mode.SKIP, Mode.ARGMAX)
    )
    x = RANDOM.normal(size=(2, 5, 5, 4)).astype('f')
    keys = {'params': jax.random.key(1), 'arch': jax.random.key(2)}
    made = networks.random_like(jax.eval_shape(start.init, keys, x))
    call = jax.jit(use.apply)
    assert (call(made, x) != x).any()
    for operation in made['params']['branch_0'].values():
        operation['factor'] = np.float32(0)
    np.testing.assert_array_equal(call(made, x), x)


@pytest.mark.parametrize('residual', [True, False])
def test_none_cuts_a_network_without_residuals_and_no_other(residual):
    spec = dataclasses.replace(SPEC, residual=residual)
    cut = networks.supernet(
        genotype.derive(spec, genotype.Genotype((('max_pool_3x3',), ('none',))))
    )
    made = networks.variables(cut)
    logits = jax.jit(lambda: cut.apply(made, IMAGES, mode=Mode.ARGMAX, train=False))()
    same = np.allclose(logits, logits[:1], atol=1e-6)
    assert same != residual


def test_bfloat16_computes_the_same_network_with_float32_parameters():
    spec, key = _one_block(*FEW), jax.random.key(0)
    v = variables(spec)
    call = functools.partial(_apply, v['params'], v['arch'], key, Mode.DRAW, HARD, False, spec)
    logits, expected = jax.jit(lambda: (call('bfloat16')[1][0], call('float32')[1][0]))()
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, expected, atol=0.1 * float(jnp.abs(expected).max()))
