"""Small networks of every space: their arrays, without waiting for a compiler."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from asose_jax.arch.genotype import NetSpec
from asose_jax.nn.forward import Mode
from asose_jax.spaces.registry import SPACES
from asose_jax.spaces.supernet import SuperNet
from asose_jax.train import optimizer, state
from asose_jax.train.phases import Schedule

_AROUND_ONE = {'scale', 'var', 'factor'}
_OPTIMIZER = {
    'weight_lr': 0.025,
    'weight_lr_end': 1e-4,
    'momentum': 0.9,
    'weight_decay': 3e-4,
    'clip': 0.0,
    'arch_lr': 3e-4,
    'arch_lr_end': 1e-5,
    'arch_b1': 0.5,
    'arch_b2': 0.999,
    'arch_weight_decay': 1e-3,
}


def make_optimizer(schedule: Schedule, **changes: float) -> optax.GradientTransformationExtraArgs:
    """The optimizer with the settings of the preset `seed`, and these changes."""
    return optimizer.make_optimizer(schedule, **{**_OPTIMIZER, **changes})


@functools.cache
def shapes(net: SuperNet) -> Any:
    """All variables of a network, as shapes."""
    keys, x = jax.random.key(0), jnp.zeros((1, *net.spec.image_shape))
    names = {'params': keys, 'arch': keys}
    return jax.eval_shape(lambda: net.init(names, x, mode=Mode.SKIP, train=False))


def priced(space: str, primitives: tuple[str, ...]) -> NetSpec:
    """A supernet of images of 8x8x2 whose positions differ in cost."""
    return SPACES[space].build(
        (8, 8, 2),
        5,
        channels=4,
        depth=2 if space == 'darts' else 3,
        reductions=(1,),
        max_channels=8,
        primitives=primitives,
    )


def parameters(spec: NetSpec) -> int:
    """How many numbers the weights of a network are."""
    return sum(leaf.size for leaf in jax.tree.leaves(shapes(SuperNet(spec))['params']))


def random_like(tree: Any, seed: int = 0) -> Any:
    """Numbers for shapes of variables: nothing is zero, and BatchNorm's statistics not trivial."""
    random = np.random.default_rng(seed)

    def value(path, leaf):
        name = path[-1].key
        if name in _AROUND_ONE:
            return random.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype)
        if name in ('bias', 'mean'):
            return random.uniform(-0.5, 0.5, leaf.shape).astype(leaf.dtype)
        if len(leaf.shape) < 2:  # rows of alpha, and weights of edges
            return (0.5 * random.normal(size=leaf.shape)).astype(leaf.dtype)
        scale = np.prod(leaf.shape[:-1]) ** -0.5
        return (scale * random.normal(size=leaf.shape)).astype(leaf.dtype)

    return jax.tree.map_with_path(value, tree)


def variables(net: SuperNet, seed: int = 0) -> dict[str, Any]:
    """Random `params`, `arch` (empty where nothing is chosen) and `batch_stats`."""
    return {'arch': {}, **random_like(shapes(net), seed)}


@functools.cache
def _state_shapes(net, tx):
    return jax.eval_shape(functools.partial(state._initial, net, tx), jax.random.key(0))


def fresh_state(
    net: SuperNet, tx: optax.GradientTransformation, seed: int = 0
) -> state.SearchState:
    """A state at step 0, on the host: random variables, and an optimizer that has seen nothing."""
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), _state_shapes(net, tx))
    made = random_like({k: getattr(zeros, k) for k in ('params', 'arch', 'batch_stats')}, seed)
    return zeros.replace(**made)
