"""Lists the search spaces. A new space is a file like `chain.py` and an entry in `SPACES`."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax

from asose_jax.arch import published
from asose_jax.arch.genotype import FALLBACK, NONE, Genotype, NetSpec
from asose_jax.spaces import chain, darts, nasbench201


class Space(NamedTuple):
    """Collects all that the other packages need to know of a search space.

    Attributes:
      spec: Class of the descriptions of its networks.
      build: Builds the description of a supernet from the fields of the config's `model`:
        `build(image_shape, num_classes, channels=..., depth=..., reductions=...,
        max_channels=..., primitives=...)`.
      body: Applies the network without its head: `body(spec, forward, images)` yields the features
        `[B, H, W, C]` after each module. To be called in a compact Linen module.
      primitives: Candidate operations that its text form can name, as published.
      needs: Primitives that every set of candidates must contain.
      channels_divisor: The config's `model.channels` must be a multiple of it.
      grows: Whether its networks can grow (docs/algorithm.md, "Growth").
      dumps: Writes a genotype in the text form of the literature; `None` if there is none.
      loads: Parses this text, `loads(text, name)`; `name` chooses one of several genotypes in it.
        Raises a `ValueError` that says what is wrong with it.
    """

    spec: type[NetSpec]
    build: Callable[..., NetSpec]
    body: Callable[..., Iterator[jax.Array]]
    primitives: tuple[str, ...] = ()
    needs: frozenset[str] = frozenset({FALLBACK})
    channels_divisor: int = 1
    grows: bool = False
    dumps: Callable[[Genotype], str] | None = None
    loads: Callable[..., Genotype] | None = None


SPACES: dict[str, Space] = {
    'chain': Space(chain.ChainSpec, chain.build, chain.body, grows=True),
    'nasbench201': Space(
        nasbench201.NasBench201Spec,
        nasbench201.build,
        nasbench201.body,
        published.NASBENCH201,
        dumps=nasbench201.dumps,
        loads=nasbench201.loads,
    ),
    'darts': Space(
        darts.DartsSpec,
        darts.build,
        darts.body,
        published.DARTS,
        needs=frozenset({FALLBACK, NONE}),
        channels_divisor=2,
        dumps=darts.dumps,
        loads=darts.loads,
    ),
}


def genotype_text(spec: NetSpec, chosen: Genotype) -> str | None:
    """Returns a genotype in the text form that the literature uses for its space.

    `None` if the space has none, or the genotype has operations that are not among the published
    ones.
    """
    space = SPACES[spec.SPACE]
    unpublished = {name for group in chosen.operations for name in group} - set(space.primitives)
    return None if space.dumps is None or unpublished else space.dumps(chosen)


def spec_from_json(data: Mapping[str, Any]) -> NetSpec:
    """Reads a description of any space, as `NetSpec.to_json` writes it.

    Raises:
      KeyError: The space is unknown or a field is missing.
    """
    return SPACES[data['space']].spec.from_json(data)
