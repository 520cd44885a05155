"""Augmentation of training images on the device: random crop, flip and cutout."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Augmentation(NamedTuple):
    """Selects the augmentations of training images.

    Attributes:
      padding: pixels of zeros added on each side before a random crop; 0 turns cropping off.
      flip: whether each image is flipped left to right with probability 1/2.
      cutout: side in pixels of the square of zeros around a random pixel (arXiv:1708.04552); 0
        turns it off.
    """

    padding: int
    flip: bool
    cutout: int


def augment(
    images: jax.Array, key: jax.Array, positions: jax.Array, augmentation: Augmentation
) -> jax.Array:
    """Applies a random crop of the zero-padded image, a random left-right flip and cutout.

    The noise of an image depends on its position in the *global* batch, so a batch is augmented
    alike on one device and on many.

    Args:
      images: normalised images, `[B, H, W, C]`.
      key: random key of the step.
      positions: positions of the images in the global batch, int32 `[B]`.
      augmentation: what to apply.

    Returns:
      The augmented images, `[B, H, W, C]`, in the dtype of `images`.
    """
    padding, flip, cutout = augmentation
    if not padding and not flip and not cutout:
        return images
    height, width = images.shape[1:3]
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))

    def augment_image(image: jax.Array, position: jax.Array) -> jax.Array:
        noise = jax.random.uniform(jax.random.fold_in(key, position), (5 if cutout else 3,))
        top, left = (noise[:2] * (2 * padding + 1)).astype(jnp.int32)
        rows, columns = top + jnp.arange(height), left + jnp.arange(width)
        if flip:
            columns = jnp.where(noise[2] < 0.5, columns[::-1], columns)
        image = image[rows][:, columns]
        if cutout:
            # Distances from the top and left edges of the square, which lie cutout // 2 pixels
            # before the random pixel. The image's borders may cut the square.
            from_top, from_left = (
                jnp.arange(size) - jnp.floor(size * u).astype(jnp.int32) + cutout // 2
                for size, u in zip((height, width), noise[3:], strict=True)
            )
            inside = [(distance >= 0) & (distance < cutout) for distance in (from_top, from_left)]
            hole = inside[0][:, None, None] & inside[1][None, :, None]
            image = jnp.where(hole, 0, image)
        return image

    return jax.vmap(augment_image)(padded, positions)
