"""Augmentation of training images, on the device: random crop, flip, cutout."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Augmentation(NamedTuple):
    """What is done to training images.

    Attributes:
      padding: pixels on each side, of which a random crop is taken; 0 crops nothing.
      flip: whether half of them are turned left to right.
      cutout: side of a square of zeros around a random pixel (arXiv:1708.04552); 0: none.
    """

    padding: int
    flip: bool
    cutout: int = 0


def augment(
    images: jax.Array, key: jax.Array, positions: jax.Array, how: Augmentation
) -> jax.Array:
    """Random crop of the zero-padded image, random left-right flip, cutout.

    The noise of an image depends on its position in the *global* batch, so that one device and many
    see the same images.

    Args:
      images: normalised, `[B, H, W, C]`.
      key: of the step.
      positions: of the images in the global batch, `[B]` int32.
      how: see there.

    Returns:
      `[B, H, W, C]`.
    """
    padding, flip, cutout = how
    if not padding and not flip and not cutout:
        return images
    height, width = images.shape[1:3]
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))

    def one(image, position):
        noise = jax.random.uniform(jax.random.fold_in(key, position), (5 if cutout else 3,))
        top, left = (noise[:2] * (2 * padding + 1)).astype(jnp.int32)
        rows, columns = top + jnp.arange(height), left + jnp.arange(width)
        if flip:
            columns = jnp.where(noise[2] < 0.5, columns[::-1], columns)
        image = image[rows][:, columns]
        if cutout:
            # From cutout // 2 pixels before the middle; borders may cut the square.
            below, right = (
                jnp.arange(size) - jnp.floor(size * u).astype(jnp.int32) + cutout // 2
                for size, u in zip((height, width), noise[3:], strict=True)
            )
            inside = [(away >= 0) & (away < cutout) for away in (below, right)]
            hole = inside[0][:, None, None] & inside[1][None, :, None]
            image = jnp.where(hole, 0, image)
        return image

    return jax.vmap(one)(padded, positions)
