"""Laws 3, 4, 5 and 8 of the spec, on the whole supernet with all ten primitives."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from asose_jax import chain, genotype, gumbel, mixed, model
from asose_jax.forward import Forward, Mode, SearchSettings
from asose_jax.model import SuperNet

SPEC = chain.build((6, 6, 2), 3, channels=4, depth=2, reductions=(1,), max_channels=8)
IMAGES = jax.random.normal(jax.random.key(0), (8, 6, 6, 2))
LABELS = jnp.arange(8) % 3
HARD = SearchSettings()
SOFT = SearchSettings(estimator='gumbel')
TAU = 0.7


@functools.cache
def variables(spec=SPEC, settings=None):
    """Fresh weights, with BatchNorm statistics and scales that are not trivial."""
    keys = {'params': jax.random.key(1), 'arch': jax.random.key(2)}
    net = SuperNet(spec, settings or SearchSettings())
    init = jax.jit(lambda: net.init(keys, IMAGES[:1], mode=Mode.SKIP, train=False))
    made = init()

    def shaken(tree, low, high):
        leaves, structure = jax.tree.flatten(tree)
        random = np.random.default_rng(0)
        moved = [leaf + random.uniform(low, high, leaf.shape).astype('f') for leaf in leaves]
        return structure.unflatten(moved)

    return {
        'params': shaken(made['params'], -0.1, 0.1),
        'arch': made['arch'],
        'batch_stats': shaken(made['batch_stats'], 0.0, 0.5),
    }


@functools.partial(jax.jit, static_argnames=('mode', 'settings', 'train'))
def forward(params, arch, key, mode, settings=HARD, train=True):
    """Mean loss; and (logits, changed collections)."""
    net = SuperNet(SPEC, settings)
    logits, changed = net.apply(
        {**variables(), 'params': params, 'arch': arch},
        IMAGES,
        TAU,
        mode=mode,
        train=train,
        mutable=['batch_stats', 'guard'],
        rngs={'gumbel': key},
    )
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean()
    return loss, (logits, changed)


def _alpha(arch, block):
    return arch[f'block_{block}']['choice_0']['alpha']


def _with_alpha(arch, block, alpha):
    return {**arch, f'block_{block}': {'choice_0': {'alpha': alpha}}}


# --- Law 3: alpha learns


def _alpha_gradient(mode, settings, key):
    v = variables()
    return jax.grad(lambda a: forward(v['params'], a, key, mode, settings)[0])(v['arch'])


@pytest.mark.parametrize('seed', range(4))
def test_alpha_step_gives_a_gradient_to_every_primitive(seed):
    gradient = _alpha_gradient(Mode.ALPHA, SearchSettings(), jax.random.key(seed))
    for block in range(2):
        assert (_alpha(gradient, block) != 0).all()


def test_soft_alpha_gradient_agrees_with_central_differences():
    v, key, h = variables(), jax.random.key(5), 2e-2
    gradient = _alpha_gradient(Mode.ALPHA, SOFT, key)

    def loss(block, k, step):
        alpha = _alpha(v['arch'], block).at[k].add(step)
        moved = _with_alpha(v['arch'], block, alpha)
        return float(forward(v['params'], moved, key, Mode.ALPHA, SOFT)[0])

    for block in range(2):
        for k in range(10):
            numeric = (loss(block, k, h) - loss(block, k, -h)) / (2 * h)
            assert abs(numeric - _alpha(gradient, block)[k]) < 1e-3 + 0.02 * abs(numeric)


def test_straight_through_gradient_agrees_with_central_differences_of_its_relaxation():
    """Hard value, soft slope: L(hard + soft(alpha) - soft(alpha_0)), with the noise held fixed."""
    x = jax.random.normal(jax.random.key(3), (4, 6, 6, 4))
    g = jax.random.normal(jax.random.key(4), x.shape)
    candidates = tuple(functools.partial(jnp.multiply, k + 1) for k in range(5))
    outputs = [candidate(x) for candidate in candidates]
    alpha_0, key = jnp.arange(5.0) / 3, jax.random.key(6)

    def soft(alpha):
        return gumbel.gumbel_softmax(alpha, key, TAU, hard=False)

    hard = gumbel.gumbel_softmax(alpha_0, key, TAU)

    def relaxed(alpha):
        weights = hard + soft(alpha) - soft(alpha_0)
        return sum(w * (y * g).sum() for w, y in zip(weights, outputs, strict=True))

    def ours(alpha):
        weights = gumbel.gumbel_softmax(alpha, key, TAU)
        drawn = outputs[int(hard.argmax())]
        return (mixed.straight_through(candidates, drawn, weights, (x,)) * g).sum()

    gradient = jax.grad(ours)(alpha_0)
    np.testing.assert_allclose(ours(alpha_0), relaxed(alpha_0), rtol=1e-5)
    for k in range(5):
        step = jnp.zeros(5).at[k].set(1e-2)
        numeric = (relaxed(alpha_0 + step) - relaxed(alpha_0 - step)) / 2e-2
        np.testing.assert_allclose(gradient[k], numeric, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize('seed', range(3))
def test_alpha_step_has_the_gradient_of_the_dense_definition(seed):
    key = jax.random.key(seed)
    ours = _alpha_gradient(Mode.ALPHA, SearchSettings(), key)
    dense = _alpha_gradient(Mode.DENSE, SearchSettings(), key)
    chex.assert_trees_all_close(ours, dense, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(('group', 'found'), [('params', True), ('arch', False)])
def test_alpha_step_computes_no_weight_gradient(group, found):
    """Of depthwise convolutions, nor of matrix products."""
    v, mode = variables(), Mode.DRAW if group == 'params' else Mode.ALPHA

    def loss(part):
        trainable = {'params': v['params'], 'arch': v['arch'], group: part}
        return forward(**trainable, key=jax.random.key(0), mode=mode)[0]

    compiled = jax.jit(jax.grad(loss)).lower(v[group]).compile().as_text()
    assert ('jit(_kernel_gradient)' in compiled) == found
    assert ('jit(_product_gradient)' in compiled) == found


# --- Law 4: computing only what is drawn changes nothing


@pytest.mark.parametrize('seed', range(3))
def test_drawn_only_and_dense_give_the_same_logits_and_weight_gradients(seed):
    v, key = variables(), jax.random.key(seed)

    def run(mode):
        loss = jax.value_and_grad(lambda p: forward(p, v['arch'], key, mode), has_aux=True)
        (_, (logits, _)), gradient = loss(v['params'])
        return logits, gradient

    drawn, dense = run(Mode.DRAW), run(Mode.DENSE)
    chex.assert_trees_all_close(drawn, dense, atol=1e-5, rtol=0)


def test_only_the_drawn_operation_updates_its_statistics():
    v = variables()
    _, (_, changed) = forward(v['params'], v['arch'], jax.random.key(0), Mode.DRAW)
    for block in range(2):
        before = v['batch_stats'][f'block_{block}']['branch_0']
        after = changed['batch_stats'][f'block_{block}']['branch_0']
        moved = [
            name
            for name in before
            if any(
                jax.tree.leaves(
                    jax.tree.map(lambda a, b: bool((a != b).any()), before[name], after[name])
                )
            )
        ]
        assert len(moved) <= 1


def test_soft_draws_without_small_weights_match_the_mixture_they_stand_for():
    """Thresholds that drop nothing leave the dense mixture."""
    everything = SearchSettings(
        estimator='gumbel', thresholds=gumbel.Thresholds(1.0, 1.0, 0.0, 0.0, 0.0)
    )
    v, key = variables(), jax.random.key(1)
    kept = forward(v['params'], v['arch'], key, Mode.DRAW, everything)[1][0]
    dense = forward(v['params'], v['arch'], key, Mode.DENSE, everything)[1][0]
    np.testing.assert_allclose(kept, dense, atol=1e-5)


# --- Law 5: the weight guard


@pytest.mark.parametrize('mode', [Mode.DRAW, Mode.ALPHA, Mode.ARGMAX])
def test_nan_row_behaves_as_skip_connect_and_others_are_unchanged(mode):
    v, key = variables(), jax.random.key(2)
    poisoned = _with_alpha(v['arch'], 0, _alpha(v['arch'], 0).at[4].set(jnp.nan))
    skip = list(chain.PRIMITIVES).index('skip_connect')
    certain = _with_alpha(v['arch'], 0, jnp.zeros(10).at[skip].set(1e4))
    loss, (logits, changed) = forward(v['params'], poisoned, key, mode)
    _, (expected, healthy) = forward(v['params'], certain, key, mode)
    assert jnp.isfinite(loss)
    np.testing.assert_array_equal(logits, expected)
    assert sum(jax.tree.leaves(changed['guard'])) == 1
    assert sum(jax.tree.leaves(healthy['guard'])) == 0


def test_without_the_guard_a_nan_row_chooses_what_argmax_makes_of_it():
    v, key = variables(), jax.random.key(2)
    poisoned = _with_alpha(v['arch'], 0, _alpha(v['arch'], 0).at[4].set(jnp.nan))
    first = _with_alpha(v['arch'], 0, jnp.zeros(10).at[0].set(1e4))  # none
    bare = SearchSettings(guard=False)
    _, (logits, changed) = forward(v['params'], poisoned, key, Mode.DRAW, bare)
    _, (expected, _) = forward(v['params'], first, key, Mode.DRAW)
    np.testing.assert_array_equal(logits, expected)
    assert not changed.get('guard')
    healthy, guarded = (
        forward(v['params'], v['arch'], key, Mode.DRAW, settings)[1][0]
        for settings in (bare, SearchSettings())
    )
    np.testing.assert_array_equal(healthy, guarded)


def test_nan_row_gets_no_gradient_and_the_others_a_finite_one():
    v = variables()
    poisoned = _with_alpha(v['arch'], 0, _alpha(v['arch'], 0).at[4].set(jnp.nan))
    key = jax.random.key(2)
    gradient = jax.grad(lambda a: forward(v['params'], a, key, Mode.ALPHA)[0])(poisoned)
    np.testing.assert_array_equal(_alpha(gradient, 0), 0)
    assert jnp.isfinite(_alpha(gradient, 1)).all()
    assert (_alpha(gradient, 1) != 0).all()


# --- Law 8: the derived network


def test_derived_network_is_the_supernet_under_argmax():
    v = variables()
    for names in (('sep_conv_3x3', 'conv_7x1_1x7'), ('none', 'max_pool_3x3')):
        chosen = genotype.Genotype(tuple((name,) for name in names))
        index = [list(chain.PRIMITIVES).index(name) for name in names]
        arch = v['arch']
        for block, k in enumerate(index):
            arch = _with_alpha(arch, block, jnp.zeros(10).at[k].set(1.0))
        assert genotype.most_likely(SPEC, arch) == chosen
        expected = forward(v['params'], arch, jax.random.key(0), Mode.ARGMAX, train=False)[1][0]
        derived = SuperNet(genotype.derive(SPEC, chosen))
        alone = {'params': v['params'], 'batch_stats': v['batch_stats']}
        logits = derived.apply(alone, IMAGES, mode=Mode.ARGMAX, train=False)
        np.testing.assert_allclose(logits, expected, atol=1e-5)


# --- The rest of section 2


def test_alpha_starts_with_the_stated_bias():
    alpha = np.stack(
        [
            SearchSettings().initial_alpha(jax.random.key(i), tuple(chain.PRIMITIVES))
            for i in range(500)
        ]
    )
    np.testing.assert_array_equal(alpha[:, 0], -2)
    np.testing.assert_array_equal(alpha[:, 3], 1)
    rest = np.delete(alpha, [0, 3], axis=1)
    assert abs(rest.mean()) < 0.03
    assert abs(rest.std() - 0.5) < 0.02


def test_warmup_uses_skip_connect_only():
    v = variables()
    gradient = jax.grad(lambda p: forward(p, v['arch'], jax.random.key(0), Mode.SKIP)[0])(
        v['params']
    )
    for block in range(2):
        operations = gradient[f'block_{block}']['branch_0']
        assert all((leaf == 0).all() for leaf in jax.tree.leaves(operations))
        assert gradient[f'block_{block}']['gate_0'] != 0


def test_block_with_zero_gate_is_the_identity():
    spec = chain.BlockSpec(4, 1, (('none', 'skip_connect', 'sep_conv_3x3'),))
    norm = functools.partial(model.nn.BatchNorm, momentum=0.9, epsilon=1e-5, dtype=jnp.float32)
    start, use = (
        chain.Block(spec, Forward(norm, SearchSettings(), mode, False))
        for mode in (Mode.SKIP, Mode.ARGMAX)
    )
    x = jax.random.normal(jax.random.key(0), (2, 5, 5, 4))
    keys = {'params': jax.random.key(1), 'arch': jax.random.key(2)}
    made = start.init(keys, x)
    made['params']['gate_0'] = jnp.float32(0)
    np.testing.assert_array_equal(use.apply(made, x), x)


@pytest.mark.parametrize('residual', [True, False])
def test_none_cuts_a_network_without_residuals_and_no_other(residual):
    spec = dataclasses.replace(SPEC, residual=residual)
    cut = genotype.derive(spec, genotype.Genotype((('max_pool_3x3',), ('none',))))
    made = SuperNet(cut).init(jax.random.key(0), IMAGES, mode=Mode.ARGMAX, train=False)
    logits = SuperNet(cut).apply(made, IMAGES, mode=Mode.ARGMAX, train=False)
    same = np.allclose(logits, logits[:1], atol=1e-6)
    assert same != residual


def test_bfloat16_computes_the_same_network_with_float32_parameters():
    v, key = variables(), jax.random.key(0)
    net = SuperNet(SPEC, dtype='bfloat16')
    logits = net.apply(v, IMAGES, TAU, mode=Mode.DRAW, train=False, rngs={'gumbel': key})
    expected = forward(v['params'], v['arch'], key, Mode.DRAW, train=False)[1][0]
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, expected, atol=0.1 * float(jnp.abs(expected).max()))
