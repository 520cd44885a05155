"""The gradient of alpha one weight step ahead: against the definition, and inside the program."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import networks, search_steps

from asose_jax.data import augment, batches
from asose_jax.data.dataset import Dataset, ImageSet
from asose_jax.nn import operations
from asose_jax.nn.batch_norm import Norm
from asose_jax.nn.forward import Mode
from asose_jax.pipeline import training_loop
from asose_jax.spaces import chain
from asose_jax.train import optimizer, second_order, steps
from asose_jax.train.phases import Phase
from asose_jax.train.state import Packed

# --- A problem small enough for double precision


def _toy(dtype):
    """Two layers, each a mixture of three; alpha, and two batches of other numbers."""
    random = np.random.default_rng(0)

    def normal(*shape):
        return random.normal(size=shape).astype(dtype)

    weights = {'first': normal(3, 4, 4) / 2, 'second': normal(3, 4, 4) / 2}
    alpha = {'first': normal(3), 'second': normal(3)}
    return weights, alpha, (normal(5, 4), normal(5, 4)), (normal(5, 4), normal(5, 4))


def _loss(weights, alpha, x, y):
    for layer in ('first', 'second'):
        outputs = jnp.tanh(jnp.einsum('kij,bj->kbi', weights[layer], x))
        x = jnp.einsum('k,kbi->bi', jax.nn.softmax(alpha[layer]), outputs)
    return jnp.square(x - y).mean(), 'told'


def _plain(weights, xi):
    return lambda grads: jax.tree.map(lambda w, g: w - xi * g, weights, grads)


def _optax(weights, xi):
    """Clipping, decay, and momentum that is under way."""
    tx = optax.chain(
        optax.clip_by_global_norm(0.05), optax.add_decayed_weights(0.1), optax.sgd(xi, 0.9)
    )
    _, before = jax.jit(tx.update)(weights, tx.init(weights), weights)
    return lambda grads: optax.apply_updates(weights, tx.update(grads, before, weights)[0])


def _bilevel(weights, alpha, valid, train, stepped):
    """L_valid(w'(alpha), alpha), as eq. 6 of the paper writes it."""
    grads = jax.grad(lambda w: _loss(w, alpha, *train)[0])(weights)
    return _loss(stepped(grads), alpha, *valid)[0]


def _ours(weights, alpha, valid, train, stepped):
    return second_order.gradient(_loss, stepped, weights, alpha, valid, train, lambda tree: tree)


@pytest.mark.parametrize('step', [_plain, _optax])
def test_gradient_is_that_of_the_bilevel_objective_by_central_differences(step):
    with jax.enable_x64(True):
        weights, alpha, valid, train = _toy(jnp.float64)
        stepped = step(weights, 0.7)
        told = []

        @jax.jit
        def ours(alpha):
            value, aux, grads = _ours(weights, alpha, valid, train, stepped)
            told.append(aux)
            return value, grads

        value, grads = ours(alpha)
        objective = jax.jit(lambda a: _bilevel(weights, a, valid, train, stepped))
        assert told == ['told']
        np.testing.assert_allclose(value, objective(alpha), rtol=1e-12)
        for layer in alpha:
            for k in range(3):
                up, down = (
                    objective({**alpha, layer: alpha[layer] + sign * 1e-5 * np.eye(3)[k]})
                    for sign in (1, -1)
                )
                slope = (up - down) / 2e-5
                np.testing.assert_allclose(grads[layer][k], slope, rtol=1e-6, atol=1e-9)


def test_no_step_ahead_gives_the_gradient_of_first_order():
    with jax.enable_x64(True):
        weights, alpha, valid, train = _toy(jnp.float64)

        @jax.jit
        def gradients(alpha):
            first = jax.grad(lambda a: _loss(weights, a, *valid)[0])(alpha)
            ahead = [
                _ours(weights, alpha, valid, train, _plain(weights, xi))[2] for xi in (0.0, 0.7)
            ]
            return first, *ahead

        first, still, ahead = jax.device_get(gradients(alpha))
    for layer in first:
        np.testing.assert_allclose(still[layer], first[layer], rtol=1e-12)
        assert (abs(ahead[layer] - first[layer]) > 1e-6).all()


# --- Networks


@pytest.mark.parametrize(
    ('name', 'stride'), [(name, 1 + i % 2) for i, name in enumerate(operations.PRIMITIVES)]
)
def test_gradient_of_every_primitive_has_a_derivative_forwards(name, stride):
    """With either stride, and its value: early_stopping_test."""
    operation = operations.pure_function(name, 2, Norm('float32', None), stride, True, remat=False)
    x = jax.ShapeDtypeStruct((2, 4, 4, 2), 'float32')
    module = operations.make(name, 2, Norm('float32', None), stride)
    variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, False), x)
    stats, params = (variables.get(group, {}) for group in ('batch_stats', 'params'))

    def slope(stats, params, x):
        def of(params, x):
            y, _ = operation(params, stats, x)
            return jnp.square(y).sum()

        return jax.grad(of, (0, 1))(params, x)

    def derivative(stats, *tree):
        return jax.jvp(functools.partial(slope, stats), tree, tree)

    jax.eval_shape(derivative, stats, params, x)


NAMES = ('none', 'skip_connect', 'nor_conv_1x1')
SPEC = chain.build(
    (4, 4, 1), 3, channels=2, depth=1, reductions=(), max_channels=2, primitives=NAMES
)
SCHEDULE = networks.make_schedule({**dict.fromkeys(Phase, 1), Phase.SEARCH: 2}, 4)
START = SCHEDULE.spans[1].start  # of search: an alpha turn
RATE, DECAY, MOMENTUM = 0.5, 0.01, 0.8
TX = networks.make_optimizer(
    SCHEDULE,
    **{'weights.lr': RATE, 'weights.lr_end': RATE},
    **{'weights.momentum': MOMENTUM, 'weights.weight_decay': DECAY},
)
MODEL = networks.supernet(SPEC, estimator='softmax', synced_over=steps.AXIS)
STEP_CONFIG = dataclasses.replace(
    search_steps.STEP_CONFIG, model=MODEL, tx=TX, schedule=SCHEDULE, second_order=True
)
KEY = jax.random.key(0)


def _data():
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 64).astype(np.int32)
    images = (random.integers(0, 60, (64, 4, 4, 1)) + 60 * labels[:, None, None, None]).astype('u1')
    source, halves = ImageSet.from_arrays(images, labels), np.split(np.arange(64), 2)
    statistics = np.float32([100]), np.float32([50])
    return Dataset(source, *halves, halves[1], ('a', 'b', 'c'), (4, 4, 1), *statistics)


DATA = _data()


@functools.cache
def _start():
    """At an alpha turn; momentum is under way."""
    made = networks.fresh_state(MODEL, TX).replace(step=np.int32(START))
    grads = jax.tree.map(lambda leaf: np.float32(0.1 * np.sin(50 * leaf + 1)), made.trainable)
    update = jax.jit(functools.partial(TX.update, step=optimizer.LOOKAHEAD_STEP))
    _, moving = update(grads, made.opt_state, made.trainable)
    return jax.device_get(made.replace(opt_state=moving))


VALID, TRAIN = np.arange(40, 48, dtype=np.int32), np.arange(8, dtype=np.int32)


def _after(step_config, count, streamed):
    """The state after one alpha step on `count` devices."""
    seen = [{'index': index} for index in (VALID, TRAIN)]
    held = DATA
    if streamed:
        read = [DATA.images.read(each['index']) for each in seen]
        seen = [{'image': pixels, 'label': labels} for pixels, labels in read]
        held = dataclasses.replace(DATA, images=ImageSet(64, DATA.images.read))
    call = jax.pmap(
        functools.partial(steps.train_steps, step_config, Phase.SEARCH),
        axis_name=steps.AXIS,
        in_axes=(None, 0, None),
        out_axes=(None, 0),
        devices=jax.devices()[:count],
    )
    shared = {'mean': held.mean, 'std': held.std, 'key': KEY}
    if not streamed:
        shared['images'], shared['labels'] = held.images.arrays
    packed, _ = call(Packed.of(_start()), batches.stack_batches(seen, 3, count, ahead=1), shared)
    return jax.tree.map(np.array, packed).unpack()


@pytest.fixture(scope='module')
def alone():
    """After one step on one device."""
    return _after(STEP_CONFIG, 1, streamed=False)


def test_alpha_step_takes_the_gradient_behind_the_weight_step_to_come(alone):
    """Its batch, its augmentation, its learning rate, momentum and decay; written out."""
    start, net = _start(), networks.supernet(SPEC, MODEL.settings)

    def batch_of(step, index):
        key = jax.random.split(jax.random.fold_in(KEY, step))[1]
        images, labels = DATA.images.read(index)
        images = (images - DATA.mean) / DATA.std
        return augment.augment(images, key, jnp.arange(8), STEP_CONFIG.augmentation), labels

    def loss(params, arch, images, labels):
        logits, _ = net.apply(
            {'params': params, 'arch': arch, 'batch_stats': start.batch_stats},
            images,
            mode=Mode.DENSE,
            train=True,
            mutable=['batch_stats', 'guard'],
            rngs={'gumbel': KEY},
        )
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    momentum = optax.tree.get(start.opt_state, 'trace')['params']

    @jax.jit
    def expected(arch):
        def objective(arch):
            grads = jax.grad(loss)(start.params, arch, *batch_of(START + 1, TRAIN))
            ahead = jax.tree.map(
                lambda w, g, m: w - RATE * (g + DECAY * w + MOMENTUM * m),
                start.params,
                grads,
                momentum,
            )
            return loss(ahead, arch, *batch_of(START, VALID))

        return jax.value_and_grad(objective)(arch)

    value, grads = expected(start.arch)
    assert alone.totals.arch_steps == 1
    np.testing.assert_allclose(alone.totals.arch_loss, value, rtol=1e-4)
    moments = jax.tree.leaves(optax.tree.get(alone.opt_state, 'mu'))
    for ours, exact in zip(moments, jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(ours, (1 - 0.5) * exact, rtol=2e-3, atol=1e-5)
    for name in ('params', 'batch_stats'):
        jax.tree.map(np.testing.assert_array_equal, getattr(alone, name), getattr(start, name))


@pytest.mark.slow
def test_many_devices_with_streamed_images_are_one_device_with_resident_ones(alone):
    many = _after(STEP_CONFIG, jax.device_count(), streamed=True)
    for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(many), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('span', [span for span in SCHEDULE.spans if span.phase.searches])
def test_next_batch_of_an_alpha_step_is_that_of_the_weight_step_to_come(span):
    config = types.SimpleNamespace(
        search=types.SimpleNamespace(arch_data='valid'), seed=0, batch_size=8
    )
    context = types.SimpleNamespace(config=config, schedule=SCHEDULE, data=DATA)
    turns = [s for s in range(span.start, span.stop) if SCHEDULE.is_alpha_turn(s)]
    assert turns
    for step in turns:
        seen, to_come = (training_loop.indices_at(context, span, s) for s in (step, step + 1))
        assert set(seen) <= set(DATA.valid)
        weights = batches.batch_indices(DATA.train, 0, 0, SCHEDULE.weight_updates(step), 8)
        np.testing.assert_array_equal(to_come, weights)
