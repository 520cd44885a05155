"""Small networks of every space: their arrays, without waiting for a compiler."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from asose_jax.arch.genotype import NetSpec
from asose_jax.config import presets
from asose_jax.nn import batch_norm
from asose_jax.nn.forward import Forward, Mode, NetSettings
from asose_jax.pipeline import builders
from asose_jax.spaces.registry import SPACES
from asose_jax.spaces.supernet import SuperNet
from asose_jax.train import optimizer, phases, state
from asose_jax.train.phases import Phase, Schedule

_AROUND_ONE = {'scale', 'var', 'factor'}
_PRESETS = {'chain': 'seed', 'darts': 'darts', 'nasbench201': 'nasbench201'}


def _config(preset: str = 'seed', **fields: Any) -> ml_collections.ConfigDict:
    config = presets.get_config(preset)
    config.update_from_flattened_dict(fields)
    return config


def build(space: str, image_shape: tuple[int, int, int], num_classes: int, **sizes: Any) -> NetSpec:
    """A supernet of a space, with the sizes and primitives of its preset, and these changes."""
    model = _config(_PRESETS[space]).model
    names = ('channels', 'depth', 'reductions', 'max_channels', 'primitives')
    sizes = {name: model[name] for name in names} | sizes
    return SPACES[space].build(image_shape, num_classes, **sizes)


def settings(**changes: Any) -> NetSettings:
    """The settings of a network by the preset `seed`, with these changes."""
    return dataclasses.replace(_settings(), **changes)


@functools.cache
def _settings():
    return builders.make_settings(_config(), _config().arch)


def supernet(
    spec: NetSpec,
    given: NetSettings | None = None,
    dtype: str = 'float32',
    synced_over: str | None = None,
    **changes: Any,
) -> SuperNet:
    """The network of a description, with these settings or those of the preset `seed`."""
    return SuperNet(spec, given or settings(**changes), dtype, synced_over)


def forward(
    mode: Mode,
    train: bool,
    dtype: str = 'float32',
    partial: int = 1,
    beta: float = 0.0,
    for_cpu: bool = True,
    **changes,
) -> Forward:
    """What the parts of a network share in a pass, with `settings`."""
    norm = batch_norm.Norm(dtype, None)
    return Forward(norm, settings(**changes), mode, train, partial, for_cpu, beta=beta)


def make_schedule(
    epochs: dict[Phase, int], train_steps: int, freeze_epochs: int = 0, **search: Any
) -> Schedule:
    """The schedule by the preset `seed`, but that temperature falls with the search's length."""
    fields = {'anneal_every': None, **search}
    config = _config(**{f'search.{name}': value for name, value in fields.items()})
    return phases.make_schedule(epochs, train_steps, config.search, freeze_epochs)


def make_optimizer(schedule: Schedule, **fields: Any) -> optax.GradientTransformationExtraArgs:
    """The optimizer by the preset `seed`, and these changes of its fields."""
    return optimizer.make_optimizer(_config(**fields), schedule)


@functools.cache
def shapes(net: SuperNet) -> Any:
    """All variables of a network, as shapes."""
    keys, x = jax.random.key(0), jnp.zeros((1, *net.spec.image_shape))
    names = {'params': keys, 'arch': keys}
    return jax.eval_shape(lambda: net.init(names, x, mode=Mode.SKIP, train=False))


def priced(space: str, primitives: tuple[str, ...]) -> NetSpec:
    """A supernet of images of 8x8x2 whose positions differ in cost."""
    return build(
        space,
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
    return sum(leaf.size for leaf in jax.tree.leaves(shapes(supernet(spec))['params']))


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
