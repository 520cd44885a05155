"""What networks cost: floating-point operations, counted by XLA from the program of each part."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from asose_jax import genotype, ops
from asose_jax.estimators import Estimator
from asose_jax.genotype import SAFE, NetSpec
from asose_jax.model import Mode, SuperNet
from asose_jax.norm import Norm

# The gradients of a layer's input and of its weights cost about as much as the layer, each.
_TRAINING = 3
_INPUT_GRADIENT = 1
# Both gradients in training and in validation, and alpha's gradient with its derivative along the
# weights: of a product, forwards and backwards, that is the product and two more.
_SECOND_ORDER = 2 * _TRAINING + 3 * (1 + _INPUT_GRADIENT)


def forward_flops(spec: NetSpec, rows: list[np.ndarray] | None = None) -> float:
    """Floating-point operations of one image's forward pass; a multiply-add counts as two.

    Args:
      spec: of the network.
      rows: how much of each candidate is computed, `[K]` per row of alpha: probabilities give
        the mean over draws. All of each, if not given.

    Returns:
      The count.
    """
    if rows is None:
        rows = [np.ones(len(candidates)) for _, _, candidates in spec.rows()]
    total = _around(spec)
    for (group, member, candidates), row in zip(spec.rows(), rows, strict=True):
        for place in spec.places(group, member):
            total += sum(
                share * _operation(name, place.shape, place.stride)
                for name, share in zip(candidates, row, strict=True)
            )
    return float(total)


def training_flops(
    spec: NetSpec,
    mode: Mode,
    estimator: Estimator,
    probabilities: list[np.ndarray],
    weight_images: int,
    alpha_images: int,
    second_order: bool = False,
) -> float:
    """What training cost, in the mean over draws.

    Args:
      spec: of the network.
      mode: how weight steps used it.
      estimator: of alpha's gradient. Where it mixes operations, all of them count, also those that
        `gumbel.drop_small` left out.
      probabilities: softmax(alpha) of every row.
      weight_images: seen by weight steps: forward, and both gradients of what was drawn.
      alpha_images: seen by alpha steps: all candidates forward, and the gradient of what was drawn.
      second_order: whether alpha steps look ahead, see `unrolled.gradient`; they see as many images
        to train on beside those.

    Returns:
      Floating-point operations.
    """
    candidates = [row.candidates for row in spec.rows()]
    if mode is Mode.SKIP:
        probabilities = [np.array([n == SAFE for n in names]) for names in candidates]
    if mode is Mode.UNIFORM:
        probabilities = [np.full(len(names), 1 / len(names)) for names in candidates]
    everything, drawn = forward_flops(spec), forward_flops(spec, probabilities)
    if mode is Mode.DRAW and not estimator.one_hot:
        drawn = everything
    alpha = (everything if estimator.dense else drawn) + _INPUT_GRADIENT * drawn
    if second_order:
        alpha = _SECOND_ORDER * everything
    return _TRAINING * drawn * weight_images + alpha * alpha_images


def multiply_adds(spec: NetSpec) -> int:
    """What papers call FLOPs: products in convolutions and the head, and the head's additions.

    Pooling, BatchNorm and ReLU do not count, and a multiply-add counts as one: so do NAS-Bench-201
    (arXiv:2001.00326) and those who followed DARTS.

    Args:
      spec: of a derived network.
    """
    total = 0

    def count(call, arguments, keywords, context):
        nonlocal total
        y = call(*arguments, **keywords)
        for kernel in context.module.variables.get('params', {}).values():
            if getattr(kernel, 'ndim', 0) > 1:
                total += kernel.size * math.prod(y.shape[1:-1])
        return y

    x = jax.ShapeDtypeStruct((1, *spec.image_shape), jnp.float32)
    start = functools.partial(SuperNet(spec).init, mode=Mode.ARGMAX, train=False)
    with nn.intercept_methods(count):
        jax.eval_shape(lambda x: start(jax.random.key(0), x), x)
    return total + spec.num_classes


@functools.cache
def _operation(name, size, stride):
    x = jax.ShapeDtypeStruct((1, *size), jnp.float32)
    operation = ops.make(name, size[-1], Norm('float32', None), stride)
    variables = jax.eval_shape(lambda x: operation.init(jax.random.key(0), x, False), x)
    return _count(lambda v, x: operation.apply(v, x, False), variables, x)


@functools.lru_cache(maxsize=16)
def _around(spec):
    """All but the mixed operations: what the network costs with skip_connect, without those."""
    groups = spec.groups()
    chosen = genotype.Genotype(tuple((SAFE,) * len(group) for group in groups))
    skips = sum(
        _operation(SAFE, place.shape, place.stride)
        for group, member, _ in spec.rows()
        for place in spec.places(group, member)
    )
    net = SuperNet(genotype.derive(spec, chosen))
    x = jax.ShapeDtypeStruct((1, *spec.image_shape), jnp.float32)
    call = functools.partial(net.apply, mode=Mode.ARGMAX, train=False)
    start = functools.partial(net.init, mode=Mode.ARGMAX, train=False)
    variables = jax.eval_shape(lambda x: start(jax.random.key(0), x), x)
    return _count(call, variables, x) - skips


def _count(function, *shapes):
    return (jax.jit(function).lower(*shapes).cost_analysis() or {}).get('flops', 0.0)
