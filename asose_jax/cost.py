"""What networks cost: floating-point operations, counted by XLA from the program of each part."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from asose_jax import genotype, ops
from asose_jax.genotype import NetSpec
from asose_jax.model import Mode, Norm, SuperNet
from asose_jax.phases import Phase

# The gradients of a layer's input and of its weights cost about as much as the layer, each.
_TRAINING = 3
_INPUT_GRADIENT = 1


def forward_flops(spec: NetSpec, rows: list[np.ndarray] | None = None) -> float:
    """Floating-point operations of one image's forward pass; a multiply-add counts as two.

    Args:
      spec: of the network.
      rows: how much of each candidate is computed, `[K]` per mixed operation: probabilities give
        the mean over draws. All of each, if not given.

    Returns:
      The count.
    """
    if rows is None:
        rows = [np.ones(len(candidates)) for _, _, candidates in spec.rows()]
    height, width, _ = spec.image_shape
    sizes = []
    for block in spec.blocks:
        height, width = math.ceil(height / block.stride), math.ceil(width / block.stride)
        sizes.append((height, width, block.channels))
    total = _around(spec)
    for (number, _, candidates), row in zip(spec.rows(), rows, strict=True):
        total += sum(
            share * _operation(name, sizes[number])
            for name, share in zip(candidates, row, strict=True)
        )
    return float(total)


def training_flops(
    spec: NetSpec,
    phase: Phase,
    probabilities: list[np.ndarray],
    weight_images: int,
    alpha_images: int,
) -> float:
    """What training cost, in the mean over draws.

    Args:
      spec: of the network.
      phase: how it was used.
      probabilities: of every mixed operation's candidates.
      weight_images: seen by weight steps: forward, and both gradients of what was drawn.
      alpha_images: seen by alpha steps: all candidates forward, and the gradient of what was drawn.

    Returns:
      Floating-point operations.
    """
    if phase is Phase.WARMUP:
        candidates = [row[2] for row in spec.rows()]
        probabilities = [np.array([n == 'skip_connect' for n in names]) for names in candidates]
    drawn = forward_flops(spec, probabilities)
    alpha = forward_flops(spec) + _INPUT_GRADIENT * drawn
    return _TRAINING * drawn * weight_images + alpha * alpha_images


@functools.cache
def _operation(name, size):
    x = jax.ShapeDtypeStruct((1, *size), jnp.float32)
    operation = ops.make(name, size[-1], Norm('float32', None))
    variables = jax.eval_shape(lambda x: operation.init(jax.random.key(0), x, False), x)
    return _count(lambda v, x: operation.apply(v, x, False), variables, x)


@functools.lru_cache(maxsize=16)
def _around(spec):
    """Stem, transitions and head: the network with nothing but skip_connect."""
    chosen = genotype.Genotype(
        tuple(('skip_connect',) * len(block.branches) for block in spec.blocks)
    )
    net = SuperNet(genotype.derive(spec, chosen))
    x = jax.ShapeDtypeStruct((1, *spec.image_shape), jnp.float32)
    call = functools.partial(net.apply, mode=Mode.ARGMAX, train=False)
    start = functools.partial(net.init, mode=Mode.ARGMAX, train=False)
    variables = jax.eval_shape(lambda x: start(jax.random.key(0), x), x)
    return _count(call, variables, x)


def _count(function, *shapes):
    return (jax.jit(function).lower(*shapes).cost_analysis() or {}).get('flops', 0.0)
