"""Whether the device computes what it should; a part of `benchmarks.accelerator`.

Every primitive, forward, both gradients and one update of its weights, against its definition in
float64 on the CPU; and twenty steps of a search on the device against the same on the CPU. Errors
are relative, of whole arrays: |ours - theirs| / |theirs|.
"""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from asose_jax.config import presets
from asose_jax.nn import operations
from asose_jax.nn.batch_norm import Norm
from asose_jax.train import optimizer, phases, pmap
from asose_jax.train.phases import Phase
from benchmarks import ops, ours

STEPS = 20
# Largest error that passes. A ReLU after a rounded sum may be closed where the exact one is open,
# so that the gradients of low precisions differ in whole pixels.
LARGEST = {'float32': 1e-3, 'tf32': 5e-2, 'bfloat16': 0.15}
_FEW = ('max_pool_3x3', 'avg_pool_3x3', 'dil_conv_3x3')
_CONFIG = presets.get_config('seed')
_LR, _DECAY = _CONFIG.weights.lr, _CONFIG.weights.weight_decay


def run(report, quick: bool) -> None:
    """All of it; the CPU takes its twenty steps while the device is busy with the primitives."""
    path = report.path.with_suffix('.npz')
    command = [sys.executable, '-m', 'benchmarks.device_numbers', str(path), str(int(quick))]
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu'}
    environment['JAX_NUM_CPU_DEVICES'] = str(jax.device_count())
    steps = subprocess.Popen(command, env=environment)
    _primitives(report, _FEW if quick else tuple(operations.PRIMITIVES))
    with jax.default_matmul_precision('float32'):
        mine = twenty_steps(quick)
    if steps.wait():
        raise RuntimeError(f'the twenty steps on the CPU ended with status {steps.returncode}')
    theirs = dict(np.load(path))
    path.unlink()
    losses = np.abs(mine['losses'] - theirs['losses']) / np.abs(theirs['losses'])
    report.add(
        f'{STEPS} steps against the CPU',
        loss_after_1=losses[0],
        loss_after_20=losses[-1],
        weights_after_20=_error(mine['weights'], theirs['weights']),
        alpha_after_20=_error(mine['alpha'], theirs['alpha']),
    )


def _primitives(report, names):
    """A row for each precision: the largest errors, and those of every primitive."""
    shape = (4, 8, 8, 8)
    for setting, (dtype, precision) in {**ours.PRECISIONS, 'default': ('float32', None)}.items():
        cases = {name: _case(name, shape, dtype) for name in names}
        with jax.default_matmul_precision(precision):
            got = jax.device_get(_all_ours(cases))
        with jax.enable_x64(True), jax.default_device(jax.local_devices(backend='cpu')[0]):
            exact = jax.device_get(_all_exact(jax.tree.map(np.float64, cases)))
        errors = {
            name: {key: _error(got[name][key], exact[name][key]) for key in exact[name]}
            for name in names
        }
        worst = max(
            (error, name, key) for name, row in errors.items() for key, error in row.items()
        )
        report.add(
            f'primitives in {setting}',
            largest=worst[0],
            where=' '.join(worst[1:]),
            passes=bool(worst[0] < LARGEST[setting]) if setting in LARGEST else None,
            errors=errors,
        )


def _case(name, shape, dtype):
    """Weights, statistics, images and the gradient of the output, as they are in this dtype."""
    random = np.random.default_rng(0)
    module = operations.make(name, shape[-1], Norm(dtype, None), parent=None)
    empty = np.zeros(shape, dtype)
    variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, False), empty)

    def normal(leaf):
        scale = max(1, np.prod(leaf.shape[:-1])) ** -0.5
        return (scale * random.normal(size=leaf.shape)).astype(np.float32)

    params = jax.tree.map(normal, variables.get('params', {}))
    stats = jax.tree.map(lambda a: np.ones(a.shape, a.dtype), variables.get('batch_stats', {}))
    # No two neighbours are equal, so that the largest of them is one pixel in every dtype.
    rows, columns = np.indices(shape[1:3]) % 3
    x = np.broadcast_to((3 * rows + columns)[None, :, :, None], shape) / 4 - 1.0
    if name != 'max_pool_3x3':
        x = random.normal(size=shape)
    return params, stats, x.astype(dtype), random.normal(size=shape).astype(dtype)


def _ours(name, params, stats, x, g):
    dtype = jnp.dtype(x.dtype).name
    call = operations.pure_function(name, x.shape[-1], Norm(dtype, None), 1, True, False)
    y, pull = jax.vjp(lambda params, x: call(params, stats, x)[0], params, x)
    by_params, by_x = pull(g)
    found = {'output': y, 'gradient by x': by_x}
    if not params:
        return found
    epochs = dict.fromkeys(Phase, 0) | {Phase.OPTIMIZE: 1}
    tx = optimizer.make_optimizer(_CONFIG, phases.make_schedule(epochs, 100, _CONFIG.search, 0))
    trained = {'params': params, 'arch': {}}
    updates, _ = tx.update({'params': by_params, 'arch': {}}, tx.init(trained), trained, step=0)
    new = optax.apply_updates(trained, updates)['params']
    moved = jax.tree.map(jnp.subtract, new, params)
    return {**found, 'gradient by weights': by_params, 'update': moved}


@jax.jit
def _all_ours(cases):
    return {name: _ours(name, *case) for name, case in cases.items()}


@jax.jit
def _all_exact(cases):
    return {name: _exact(name, *case) for name, case in cases.items()}


def _exact(name, params, stats, x, g):
    """The same, written out: convolutions of `lax` and nothing of this package."""
    del stats
    y, pull = jax.vjp(lambda params, x: _defined(name, params, x), params, x)
    by_params, by_x = pull(g)
    found = {'output': y, 'gradient by x': by_x}
    if not params:
        return found
    moved = jax.tree.map(lambda p, g: -_LR * (g + _DECAY * p), params, by_params)
    return {**found, 'gradient by weights': by_params, 'update': moved}


def _defined(name, params, x):
    kind, size = name[:8], int(name[-1]) if name[-1].isdigit() else 0
    if kind in ('sep_conv', 'dil_conv'):
        for key in sorted(params):
            own = params[key]
            dilation = 2 if key == 'dil' else 1
            x = ops.reference(own['depthwise'], jax.nn.relu(x), dilation, x.shape[-1])
            x = _norm(own['norm'], x @ own['pointwise']['kernel'])
        return x
    if name == 'conv_7x1_1x7':
        for key in ('horizontal', 'vertical'):
            x = ops.reference(params[key]['kernel'], jax.nn.relu(x) if key == 'horizontal' else x)
        return _norm(params['norm'], x)
    if kind == 'nor_conv':
        kernel = params['conv']['kernel']
        kernel = kernel.reshape(size, size, *kernel.shape[-2:])
        return _norm(params['norm'], ops.reference(kernel, jax.nn.relu(x)))
    if kind in ('avg_pool', 'max_pool'):
        window = ((1, 3, 3, 1), (1, 1, 1, 1), 'SAME')
        if kind == 'max_pool':
            return lax.reduce_window(x, -jnp.inf, lax.max, *window)
        total, ones = (lax.reduce_window(a, 0.0, lax.add, *window) for a in (x, jnp.ones_like(x)))
        return total / ones
    return {'none': jnp.zeros_like(x), 'skip_connect': x}[name]


def _norm(params, x):
    mean, var = x.mean((0, 1, 2), keepdims=True), x.var((0, 1, 2), keepdims=True)
    scale, bias = (params[key].reshape(1, 1, 1, -1) for key in ('scale', 'bias'))
    return (x - mean) / jnp.sqrt(var + 1e-5) * scale + bias


def _error(found, exact):
    """|found - exact| / |exact|, of all arrays of a tree together."""
    found, exact = (
        np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])
        for tree in (found, exact)
    )
    size = np.linalg.norm(exact)
    return float(np.linalg.norm(found - exact) / size if size else np.linalg.norm(found))


def twenty_steps(quick: bool) -> dict[str, np.ndarray]:
    """Losses of the first steps of a search, one by one, and the weights and alpha at their end."""
    few = ('none', 'skip_connect', 'max_pool_3x3', 'sep_conv_3x3', 'conv_7x1_1x7')
    few = few[1:3] if quick else few
    batch = 8 * jax.device_count()
    size = ours.Size(4, 2, batch, (8, 8, 3), (1,), few) if quick else None
    size = size or ours.Size(8, 3, batch, (16, 16, 3), (1,), few)
    net, sums = ours.Network(size, Phase.SEARCH, slots=1), [0.0]
    for step in range(STEPS):
        totals = pmap.fetch_replicated(net.run(1, step)['totals'])
        sums.append(float(totals.loss) + float(totals.arch_loss))
    state = jax.device_get(net.packed.unpack())
    flat = {
        name: np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])
        for name, tree in {'weights': state.params, 'alpha': state.arch}.items()
    }
    return {'losses': np.diff(sums), **flat}


if __name__ == '__main__':
    path, quick = sys.argv[1:]
    np.savez(path, **twenty_steps(bool(int(quick))))
