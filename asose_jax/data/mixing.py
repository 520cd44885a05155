"""Mixing of two training images and their labels: mixup and CutMix, on the device."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Mixing(NamedTuple):
    """Selects how images are mixed; if both are on, each step draws one of them.

    Attributes:
      mixup: a of Beta(a, a) for weighted sums of images (Zhang et al. 2018, arXiv:1710.09412); 0
        turns it off.
      cutmix: a of Beta(a, a) for rectangles of another image (Yun et al. 2019, arXiv:1905.04899);
        0 turns it off.
    """

    mixup: float
    cutmix: float


def draw_shares(key: jax.Array, height: int, width: int, mixing: Mixing) -> jax.Array:
    """Draws the share of the first image in each pixel of a mixed one.

    One draw serves all images of a step, as in the programs of both papers. Its mean is the share
    of the first label: with CutMix, borders may cut the rectangle, which then counts as it is.

    Args:
      key: random key of the step.
      height: of the images, in pixels.
      width: likewise.
      mixing: what to draw; at least one of the two is on.

    Returns:
      `[height, width, 1]` float32, 0 to 1: all alike with mixup, 0 in the rectangle of CutMix and 1
      around it.
    """
    share_key, place_key, choice_key = jax.random.split(key, 3)
    shares = []
    if mixing.mixup:
        share = jax.random.beta(share_key, mixing.mixup, mixing.mixup)
        shares.append(jnp.full((height, width, 1), share, jnp.float32))
    if mixing.cutmix:
        share = jax.random.beta(share_key, mixing.cutmix, mixing.cutmix)
        center = jax.random.uniform(place_key, (2,))
        outside = ~rectangle(share, center, height, width)
        shares.append(outside[:, :, None].astype(jnp.float32))
    if len(shares) == 1:
        return shares[0]
    return jnp.where(jax.random.bernoulli(choice_key), *shares)


def rectangle(share: jax.Array, center: jax.Array, height: int, width: int) -> jax.Array:
    """Returns the rectangle of CutMix (arXiv:1905.04899, equation 2), cut at the borders.

    Args:
      share: of the first image, scalar; the whole rectangle has an area of 1 - share.
      center: of the rectangle, as shares of height and width, `[2]`, each in [0, 1).
      height: of the images, in pixels.
      width: likewise.

    Returns:
      Whether each pixel is in the rectangle, bool `[height, width]`.
    """
    ratio, inside = jnp.sqrt(1 - share), []
    for size, place in zip((height, width), center, strict=True):
        half = (size * ratio).astype(jnp.int32) // 2
        middle = (size * place).astype(jnp.int32)
        pixels = jnp.arange(size)
        inside.append((pixels >= middle - half) & (pixels < middle + half))
    return inside[0][:, None] & inside[1][None, :]


def mix(images: jax.Array, others: jax.Array, shares: jax.Array) -> jax.Array:
    """Mixes images `[B, H, W, C]` with others, by the shares of `draw_shares`."""
    shares = shares[None]
    return shares * images + (1 - shares) * others
