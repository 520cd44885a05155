"""Networks of every space to export, with random weights, statistics and normalisation."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from asose_jax.arch import genotype
from asose_jax.arch.genotype import NetSpec
from asose_jax.exports import translation
from asose_jax.exports.layers import Layers
from asose_jax.nn import operations
from asose_jax.nn.forward import Mode
from asose_jax.spaces import chain, darts, nasbench201

from . import networks

ODD, EVEN, BOTH = (7, 5, 3), (6, 8, 1), (7, 8, 1)
_STRIDE_TWO = ('sep_conv_3x3', 'dil_conv_3x3', 'conv_7x1_1x7', 'nor_conv_1x1')
_STRIDE_TWO += ('nor_conv_3x3', 'avg_pool_3x3', 'max_pool_3x3', 'skip_connect')


class Example(NamedTuple):
    """A network that is not trained, and what it says of some images."""

    variables: dict[str, Any]
    mean: np.ndarray
    std: np.ndarray
    images: np.ndarray  # uint8 [N, H, W, C]
    logits: np.ndarray


@functools.cache
def example(spec: NetSpec) -> Example:
    """The network with random numbers in all of its arrays."""
    random, variables = np.random.default_rng(0), networks.variables(networks.supernet(spec))
    channels = spec.image_shape[2]
    mean, std = (random.uniform(low, 2 * low, channels).astype('f') for low in (80, 40))
    images = random.integers(0, 256, (3, *spec.image_shape), dtype=np.uint8)
    net, x = networks.supernet(spec), (images.astype('f') - mean) / std
    logits = jax.jit(lambda: net.apply(variables, x, mode=Mode.ARGMAX, train=False))()
    return Example(variables, mean, std, images, np.asarray(logits))


def translated(spec: NetSpec, layers: Layers) -> Any:
    """The layers, once the network of `example` is added to them."""
    variables = networks.variables(networks.supernet(spec))
    channels = spec.image_shape[2]
    mean, std = np.full(channels, 100, 'f'), np.full(channels, 50, 'f')
    translation.add_network(layers, spec, variables, mean=mean, std=std)
    return layers


def small_chain(shape, *blocks, **options) -> chain.ChainSpec:
    """A chain of these blocks, with four classes."""
    return chain.ChainSpec(shape, 4, 4, blocks, **options)


def chain_with_factors() -> chain.ChainSpec:
    """All primitives that the reduction cell does not have, and those without BN."""
    names = {*operations.PRIMITIVES} - {*_STRIDE_TWO} | operations.PARAMETER_FREE
    branches = tuple((name,) for name in sorted(names))
    blocks = chain.BlockSpec(6, 2, (('skip_connect',),)), chain.BlockSpec(6, 1, branches)
    factors = (False,), (True,) * len(branches)
    return small_chain(EVEN, *blocks, factors=factors)


def cells_of_nasbench201() -> nasbench201.NasBench201Spec:
    """Cells of all its primitives, around two residual blocks that halve images of odd sizes."""
    edges = (('nor_conv_3x3',),), (('none',), ('none',)), (('avg_pool_3x3',), ('skip_connect',))
    cell = (*edges[:2], (*edges[2], ('nor_conv_1x1',)))
    modules = (4, 1), (6, 2), (6, 2), (6, 1)
    return nasbench201.NasBench201Spec(ODD, 4, 4, modules, cell)


def reduction(shape, edges) -> darts.DartsSpec:
    """A reduction cell with operations at these `(node, edge)`, and a cell without any."""
    spec = networks.build('darts', shape, 4, channels=4, depth=2, reductions=(0,))
    chosen = {(darts.NODES + node, edge): name for (node, edge), name in edges.items()}
    groups = [
        [(chosen.get((g, m), 'none'),) for m in range(len(members))]
        for g, members in enumerate(spec.groups())
    ]
    return spec.with_groups(genotype.to_tuples(groups))


def cells_of_darts() -> darts.DartsSpec:
    """Each of eight operations with stride 2; behind them, a cell of which one input is halved."""
    edges = {divmod(i, 2): name for i, name in enumerate(_STRIDE_TWO)}
    spec = reduction(ODD, {**edges, (1, 2): 'max_pool_3x3'})  # from node to node, stride 1
    normal = ((('skip_connect',), ('none',)), *spec.normal[1:])
    return dataclasses.replace(spec, normal=normal)


def without_operations(space: str) -> NetSpec:
    """A network in which every choice is `none`."""
    specs = {
        'chain': small_chain(ODD, chain.BlockSpec(4, 1, (('none',),)), residual=False),
        'nasbench201': nasbench201.NasBench201Spec(
            ODD, 4, 4, ((4, 1),), tuple((('none',),) * n for n in (1, 2, 3))
        ),
        'darts': reduction(ODD, {}),
    }
    return specs[space]


def both_strides(name: str) -> NetSpec:
    """A primitive with either stride, on images of odd height and even width."""
    return reduction(BOTH, {(0, 0): name, (1, 2): name})


def random_network(space: str) -> NetSpec:
    """A random genotype of a space."""
    sizes = {'channels': 4, 'depth': 3, 'reductions': (1,), 'max_channels': 8}
    spec = networks.build(space, EVEN, 4, **sizes)
    return genotype.derive(spec, genotype.random(spec, np.random.default_rng(1)))
