"""The search spaces, a row each. A new one is a file like `chain.py`, and its row here."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax

from asose_jax.arch.genotype import NONE, SAFE, Genotype, NetSpec
from asose_jax.spaces import chain, darts, nasbench201


class Space(NamedTuple):
    """What the rest of the program asks of a space.

    Attributes:
      spec: the class of its descriptions.
      build: makes the description of a supernet: `build(image_shape, num_classes, channels=...,
        depth=..., reductions=..., max_channels=..., primitives=...)`, as the config's `model` says.
      body: the network, without its head, called inside of a compact Linen module:
        `body(spec, forward, images)` gives the features `[B, H, W, C]` after each of its parts.
      primitives: the candidate operations of the papers.
      needs: primitives that it cannot do without.
      channels_divisor: what the channels of the stem must be a multiple of.
      grows: whether the growths of `transforms` are made for it.
      dumps: writes a genotype as others exchange it, if they do.
      loads: reads that; a `ValueError` says what is wrong.
    """

    spec: type[NetSpec]
    build: Callable[..., NetSpec]
    body: Callable[..., Iterator[jax.Array]]
    primitives: tuple[str, ...]
    needs: frozenset[str] = frozenset({SAFE})
    channels_divisor: int = 1
    grows: bool = False
    dumps: Callable[[Genotype], str] | None = None
    loads: Callable[[str], Genotype] | None = None


SPACES: dict[str, Space] = {
    'chain': Space(chain.ChainSpec, chain.build, chain.body, chain.PRIMITIVES, grows=True),
    'nasbench201': Space(
        nasbench201.NasBench201Spec,
        nasbench201.build,
        nasbench201.body,
        nasbench201.PRIMITIVES,
        dumps=nasbench201.dumps,
        loads=nasbench201.loads,
    ),
    'darts': Space(
        darts.DartsSpec,
        darts.build,
        darts.body,
        darts.PRIMITIVES,
        needs=frozenset({SAFE, NONE}),
        channels_divisor=2,
        dumps=darts.dumps,
        loads=darts.loads,
    ),
}


def text_of(spec: NetSpec, chosen: Genotype) -> str | None:
    """The genotype as others exchange it; `None` where they would not know it."""
    space = SPACES[spec.SPACE]
    foreign = {name for group in chosen.operations for name in group} - set(space.primitives)
    return None if space.dumps is None or foreign else space.dumps(chosen)


def spec_from_json(data: Mapping[str, Any]) -> NetSpec:
    """The inverse of `NetSpec.to_json`, of any space.

    Raises:
      KeyError: the space is not known, or something is missing.
    """
    return SPACES[data['space']].spec.from_json(data)
