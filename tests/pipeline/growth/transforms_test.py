"""Growth changes the network and not the function; the optimizer goes along."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import networks

from asose_jax.config.schema import FIELDS
from asose_jax.nn.forward import Mode
from asose_jax.pipeline.growth import transforms
from asose_jax.pipeline.growth.transforms import Growth
from asose_jax.spaces import chain
from asose_jax.train import state
from asose_jax.train.phases import Phase

NAMES = FIELDS['model.primitives'].default
CHEAP = ('none', 'max_pool_3x3', 'skip_connect', 'dil_conv_3x3')
SCHEDULE = networks.make_schedule(dict.fromkeys(Phase, 1), 4)
TX = networks.make_optimizer(SCHEDULE)
IMAGES = np.random.default_rng(0).normal(size=(8, 6, 6, 2)).astype(np.float32)
LABELS = np.arange(8) % 3
HARD = networks.settings()


def _chain(names, **changes):
    sizes = {'channels': 4, 'depth': 2, 'reductions': (1,), 'max_channels': 8, **changes}
    return chain.build((6, 6, 2), 3, primitives=names, **sizes)


def _fresh(spec, seed=7):
    """A state at the start of training, without waiting for a compiler."""
    shapes = jax.eval_shape(
        functools.partial(state._initial, networks.supernet(spec), TX), jax.random.key(seed)
    )
    random = np.random.default_rng(seed)

    def value(leaf):
        scale = 1 / np.sqrt(max(1, np.prod(leaf.shape[:-1])))
        return (abs(random.normal(size=leaf.shape)) * scale).astype(leaf.dtype)

    return jax.tree.map(value, shapes)


def _trained(spec, seed=0):
    """A state in which every number is random: weights, alpha, BN statistics, moments, counts."""
    random = np.random.default_rng(seed)

    def value(path, leaf):
        names = transforms._path_names(path)
        if leaf.dtype == np.int32:
            return np.int32(random.integers(5, 50))
        if {'var', 'nu', 'scale'} & set(names):
            return random.uniform(0.5, 1.5, leaf.shape).astype('f')
        scale = 1 / np.sqrt(max(1, np.prod(leaf.shape[:-1])))
        return (random.normal(size=leaf.shape) * scale).astype('f')

    return jax.tree.map_with_path(value, _fresh(spec))


@functools.partial(jax.jit, static_argnums=(0, 2, 3, 4))
def _apply(spec, state, modes, settings, dtype):
    """Logits in each of the modes, in training and in evaluation: one program."""

    def logits(mode, train):
        return networks.supernet(spec, settings, dtype).apply(
            {**state.trainable, 'batch_stats': state.batch_stats},
            IMAGES,
            mode=mode,
            train=train,
            mutable=['batch_stats', 'guard'],
            rngs={'gumbel': jax.random.key(3)},
        )[0]

    return jnp.stack([logits(mode, train) for mode in modes for train in (True, False)])


def _logits(spec, state, modes, settings=HARD, dtype='float32'):
    held = state.replace(opt_state=(), totals=())  # which would be arguments of the program
    return np.asarray(_apply(spec, held, modes, settings, dtype))


def _change(before, after, modes, settings=HARD):
    pair = (_logits(*net, modes, settings) for net in (before, after))
    return np.abs(np.subtract(*pair)).max()  # NaN, if there is one


def _grow(spec, grown, step):
    return transforms.grow(spec, grown, step, fresh=_fresh, key=jax.random.key(11))


STEPS = [
    Growth('depth', 0, candidates=CHEAP),
    Growth('depth', 1, candidates=CHEAP),
    Growth('depth', 2, candidates=CHEAP),
    Growth('width', 0, channels=6),
    Growth('width', 1, channels=19),
    Growth('branch', 0, candidates=CHEAP),
    Growth('branch', 1, candidates=CHEAP),
]
MORE = [pytest.param(STEPS[i], marks=pytest.mark.slow) for i in (0, 2, 4, 6)]


@pytest.mark.parametrize(
    'step', [STEPS[1], STEPS[3], STEPS[5], *MORE], ids=lambda s: f'{s.kind}-{s.where}'
)
def test_growth_keeps_the_logits_of_the_supernet(step):
    spec = _chain(CHEAP)
    before = spec, _trained(spec)
    after = _grow(*before, step)
    assert after[0] == transforms.grown_spec(spec, step)
    assert after[0] != spec
    # A draw's noise goes by the number of the block, which a growth in depth changes.
    modes = (Mode.DENSE, Mode.ARGMAX) if step.kind == 'width' else (Mode.ARGMAX,)
    assert _change(before, after, modes) <= 1e-5


@pytest.mark.parametrize(
    'names', [CHEAP, pytest.param(NAMES, marks=pytest.mark.slow)], ids=['cheap', 'all']
)
def test_width_keeps_the_logits_with_all_primitives_in_use_at_once(names):
    spec = _chain(names)
    before = spec, _trained(spec)
    after = _grow(*_grow(*before, Growth('width', 1, channels=11)), Growth('width', 0, channels=6))
    soft = networks.settings(estimator='gumbel')
    assert _change(before, after, (Mode.DENSE,), soft) <= 1e-5


def _of_each(names):
    """A derived network with a block for each name; the last of them halves the image."""
    size = len(names)
    spec = _chain(names, depth=size, reductions=(size - 1,))
    return spec.with_groups(tuple(((name,),) for name in names))


@pytest.mark.parametrize('names', [NAMES[:5], NAMES[5:]], ids=['first half', 'second half'])
def test_every_primitive_grows_in_width_depth_and_branches_exactly(names):
    """On a derived network, where no draw decides what is computed."""
    spec = _of_each(names)
    before = spec, _trained(spec)
    after = before
    for step in (
        Growth('width', 0, channels=7),
        Growth('width', 1, channels=9),
        Growth('depth', 2, candidates=names[-1:]),
        Growth('branch', 1, candidates=names[:1]),
    ):
        grown = _grow(*after, step)
        assert grown[0] != after[0]
        after = grown
    assert _change(before, after, (Mode.ARGMAX,)) <= 1e-5


@pytest.mark.soak
@pytest.mark.parametrize('name', NAMES)
def test_every_primitive_alone_grows_exactly(name):
    """On the derived network, where no draw decides what is computed."""
    spec = _chain((name,))
    before = spec, _trained(spec)
    for step in (
        Growth('width', 0, channels=7),
        Growth('width', 1, channels=9),
        Growth('depth', 1, candidates=(name,)),
        Growth('branch', 1, candidates=(name,)),
    ):
        after = _grow(*before, step)
        assert _change(before, after, (Mode.ARGMAX,)) <= 1e-5
        before = after


def _drawn(random, spec, names):
    """A growth of any kind, at any place of the network as it is."""
    kind = str(random.choice(chain.KINDS_OF_GROWTH))
    if kind == 'width':
        widths = transforms.stage_channels(spec)
        stage = random.integers(len(widths))
        return Growth(kind, int(stage), channels=int(widths[stage] + random.integers(1, 10)))
    places = len(spec.blocks) + (kind == 'depth')
    return Growth(kind, int(random.integers(places)), candidates=names)


def _ten_growths_keep_the_logits(names, seed):
    random, spec = np.random.default_rng(seed), _chain(names)
    before = after = spec, _trained(spec, seed)
    kinds = set()
    for _ in range(10):
        step = _drawn(random, after[0], names)
        after = _grow(*after, step)
        kinds.add(step.kind)
    assert kinds == {*chain.KINDS_OF_GROWTH}
    assert _change(before, after, (Mode.ARGMAX,)) <= 1e-5
    chex.assert_trees_all_equal_shapes_and_dtypes(after[1], _fresh(after[0]))


@pytest.mark.parametrize(
    ('name', 'seed'),
    [
        ('dil_conv_3x3', 0),
        pytest.param('dil_conv_3x3', 1, marks=pytest.mark.slow),
        *(pytest.param('conv_7x1_1x7', seed, marks=pytest.mark.slow) for seed in (2, 3)),
        *(pytest.param('sep_conv_3x3', seed, marks=pytest.mark.soak) for seed in (4, 5)),
    ],
)
def test_ten_growths_in_any_order_keep_the_logits_of_a_derived_network(name, seed):
    _ten_growths_keep_the_logits((name,), seed)


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(4))
def test_ten_growths_in_any_order_keep_the_logits_of_a_supernet(seed):
    _ten_growths_keep_the_logits(CHEAP, seed)


@pytest.mark.parametrize(
    'step',
    [STEPS[3], *(pytest.param(STEPS[i], marks=pytest.mark.slow) for i in (1, 6))],
    ids=lambda s: s.kind,
)
def test_bfloat16_keeps_the_logits_within_its_own_rounding(step):
    """A split weight rounds anew: within a few units of bfloat16's 1/256, of the largest logit."""
    spec = _chain(CHEAP)
    before = spec, _trained(spec)
    after = _grow(*before, step)
    pair = (_logits(*net, (Mode.ARGMAX,), dtype='bfloat16') for net in (before, after))
    for old, new in zip(*pair, strict=True):  # in training, in evaluation
        assert np.abs(old - new).max() <= 4 / 256 * np.abs(old).max()


@pytest.mark.parametrize('step', [STEPS[0], STEPS[4], STEPS[5]], ids=lambda s: s.kind)
def test_grown_state_has_the_tree_of_a_fresh_one_and_the_optimizer_takes_it(step):
    spec = _chain(CHEAP)
    grown_spec, grown = _grow(spec, _trained(spec), step)
    chex.assert_trees_all_equal_shapes_and_dtypes(grown, _fresh(grown_spec))
    assert grown.step == _trained(spec).step
    grads = jax.tree.map(np.ones_like, grown.trainable)
    update = jax.jit(TX.update)
    updates, _ = update(grads, grown.opt_state, grown.trainable, step=np.int32(0))
    chex.assert_trees_all_equal_shapes(updates, grown.trainable)


def test_two_channels_widened_to_three_by_hand():
    """Stem 1x1 image -> 2 channels -> head; the numbers are worked out in the comments."""
    spec = chain.ChainSpec((1, 1, 1), 2, 2, ())
    old = _trained(spec)
    source, share = transforms.channel_map(2, 3, jax.random.key(0))
    twin, other = int(source[2]), 1 - int(source[2])
    assert list(source[:2]) == [0, 1]
    # The original weighs 1 to 1.5, its copy 2 to 2.5: the shares are 2/7..3/7 and the rest.
    assert share[other] == 1
    assert share[twin] + share[2] == pytest.approx(1)
    assert 2 / 7 <= share[twin] <= 3 / 7

    head, stem = np.float32([[1, 2], [3, 4]]), np.arange(18, dtype='f').reshape(3, 3, 1, 2)
    momentum = np.float32([[10, 20], [30, 40]])
    old = old.replace(
        params={**old.params, 'head': {'bias': np.float32([5, 6]), 'kernel': head}},
    )
    old.params['stem'] = {'kernel': stem}
    inner = old.opt_state.inner_states['weights'].inner_state
    trace = next(leaf for leaf in jax.tree.leaves(inner, is_leaf=_is_trace) if _is_trace(leaf))
    trace.trace['params']['head']['kernel'][:] = momentum
    grown_spec, new = transforms.widen(spec, old, 0, 3, key=jax.random.key(0))

    assert grown_spec.stem_channels == 3
    # Producers are copied ...
    np.testing.assert_array_equal(new.params['stem']['kernel'][..., :2], stem)
    np.testing.assert_array_equal(new.params['stem']['kernel'][..., 2], stem[..., twin])
    for name in ('scale', 'bias'):
        a, b = old.params['stem_norm'][name], new.params['stem_norm'][name]
        np.testing.assert_array_equal(b, a[[0, 1, twin]])
    for name in ('mean', 'var'):
        a, b = old.batch_stats['stem_norm'][name], new.batch_stats['stem_norm'][name]
        np.testing.assert_array_equal(b, a[[0, 1, twin]])
    # ... the head divides: row 0 is (1, 2), row 1 is (3, 4) ...
    rows = new.params['head']['kernel']
    np.testing.assert_array_equal(rows[other], head[other])
    np.testing.assert_allclose(rows[twin], head[twin] * share[twin], rtol=1e-6)
    np.testing.assert_allclose(rows[twin] + rows[2], head[twin], rtol=1e-6)
    np.testing.assert_array_equal(new.params['head']['bias'], [5, 6])
    # ... and momentum takes the same way.
    inner = new.opt_state.inner_states['weights'].inner_state
    trace = next(leaf for leaf in jax.tree.leaves(inner, is_leaf=_is_trace) if _is_trace(leaf))
    moved = trace.trace['params']['head']['kernel']
    np.testing.assert_allclose(moved[[twin, 2]].sum(0), momentum[twin], rtol=1e-6)
    np.testing.assert_allclose(moved[2], momentum[twin] * share[2], rtol=1e-6)


def _is_trace(node):
    return isinstance(node, optax.TraceState)


def test_copies_are_not_twins_after_one_update():
    spec = _chain(('sep_conv_3x3',), depth=1, reductions=())
    grown_spec, grown = _grow(spec, _trained(spec), Growth('width', 0, channels=6))
    source, _ = transforms.channel_map(4, 6, jax.random.key(11))

    def loss(params):
        variables = {'params': params, 'batch_stats': grown.batch_stats}
        logits, _ = networks.supernet(grown_spec).apply(
            variables, IMAGES, mode=Mode.ARGMAX, train=True, mutable=['batch_stats']
        )
        return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean()

    gradient = jax.jit(jax.grad(loss))(grown.params)
    updated = optax.apply_updates(grown.params, optax.tree.scale(-0.1, gradient))
    for copy in (4, 5):
        first = int(source[copy])
        for kernel in (
            updated['stem']['kernel'],
            updated['block_0']['branch_0']['sep_conv_3x3']['sep_0']['pointwise']['kernel'],
            updated['block_0']['branch_0']['sep_conv_3x3']['sep_1']['depthwise'],
        ):
            assert np.abs(kernel[..., copy] - kernel[..., first]).max() > 1e-6


def _with_factors(operations, value):
    return {
        name: {**own, 'factor': value} if 'factor' in own else own
        for name, own in operations.items()
    }


def test_new_block_starts_shut_with_alpha_as_at_the_start_and_others_move_up():
    spec = _chain(CHEAP)
    old = _trained(spec)
    grown_spec, new = _grow(spec, old, Growth('depth', 1, candidates=CHEAP))
    fresh = _fresh(grown_spec)
    assert [block.stride for block in grown_spec.blocks] == [1, 1, 2]
    assert [block.channels for block in grown_spec.blocks] == [4, 4, 8]
    inserted = new.params['block_1']['branch_0']
    assert {inserted[name]['factor'].item() for name in CHEAP if name != 'none'} == {0.0}
    chex.assert_trees_all_equal(new.arch['block_1'], fresh.arch['block_1'])
    chex.assert_trees_all_equal(
        inserted, _with_factors(fresh.params['block_1']['branch_0'], np.float32(0))
    )
    for there, here in ((0, 0), (1, 2)):
        for tree in ('params', 'arch', 'batch_stats'):
            chex.assert_trees_all_equal(
                getattr(new, tree)[f'block_{here}'], getattr(old, tree)[f'block_{there}']
            )


def test_a_new_row_of_alpha_moves_no_faster_than_the_old_ones():
    """Adam's second moment of a new row is the mean of the others', its first moment 0."""
    spec = _chain(CHEAP)
    old = _trained(spec)
    for step in (Growth('depth', 2, candidates=CHEAP), Growth('branch', 0, candidates=CHEAP)):
        _, new = _grow(spec, old, step)
        block, row = ('block_2', 'choice_0') if step.kind == 'depth' else ('block_0', 'choice_1')
        before, after = (s.opt_state.inner_states['arch'].inner_state for s in (old, new))
        adam = [
            next(leaf for leaf in jax.tree.leaves(t, is_leaf=_is_adam) if _is_adam(leaf))
            for t in (before, after)
        ]
        rows = [adam[0].nu['arch'][f'block_{i}']['choice_0']['alpha'] for i in range(2)]
        new_row = adam[1].nu['arch'][block][row]['alpha']
        np.testing.assert_allclose(new_row, np.mean(rows, 0), rtol=1e-6)
        assert adam[1].count == adam[0].count


def _is_adam(node):
    return isinstance(node, optax.ScaleByAdamState)


def test_shares_sum_to_one_and_no_two_copies_are_alike():
    for old, new in ((2, 3), (16, 24), (3, 20), (8, 9)):
        source, share = transforms.channel_map(old, new, jax.random.key(old))
        counts = np.bincount(source, minlength=old)
        assert counts.max() - counts.min() <= 1
        np.testing.assert_allclose(np.bincount(source, share), 1)
        assert len(np.unique(share[np.isin(source, np.flatnonzero(counts > 1))])) == sum(
            counts[counts > 1]
        )


def test_widening_that_removes_a_transition_is_refused():
    spec = _chain(CHEAP)
    second = dataclasses.replace(spec.blocks[1], stride=1)
    spec = dataclasses.replace(spec, blocks=(spec.blocks[0], second))
    with pytest.raises(ValueError, match='transition between them'):
        transforms.grown_spec(spec, Growth('width', 0, channels=8))


def test_widening_to_fewer_channels_is_refused():
    with pytest.raises(ValueError, match='stage 1 has 8 channels already'):
        transforms.grown_spec(_chain(CHEAP), Growth('width', 1, channels=8))


def test_added_parameters_are_counted_without_growing():
    spec = _chain(NAMES)
    old = _trained(spec)
    count = lambda s: sum(leaf.size for leaf in jax.tree.leaves(s.params))  # noqa: E731
    for stage, channels in ((0, 7), (1, 20)):
        _, new = _grow(spec, old, Growth('width', stage, channels=channels))
        told = transforms.added_parameters(spec, old.params, stage, channels)
        assert told == count(new) - count(old)


def test_growth_survives_json():
    for step in STEPS:
        assert Growth.from_json(step.to_json()) == step
