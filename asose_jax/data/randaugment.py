"""RandAugment on the device: random changes of shape and colour (arXiv:1909.13719).

Each image gets a few operations in a row, each drawn evenly from `OPERATIONS`, all of one strength.
They are those of the paper without equalize and sharpness, which need a histogram and a blur of
every image. Pixels that come from outside are filled with the mean of the channel, as those of
random crops are.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

_MAX_MAGNITUDE = 10.0
# What an operation does at the largest magnitude, as in AutoAugment (arXiv:1805.09501, table 6).
_DEGREES = 30.0
_SHEAR = 0.3
_SHIFT = 0.3  # of the side
_ENHANCEMENT = 0.9
_BITS = 4  # of 8 that posterize removes
_LUMA = (0.299, 0.587, 0.114)  # of red, green and blue in grey (ITU-R BT.601)

_SHAPES = ('rotate', 'shear_x', 'shear_y', 'translate_x', 'translate_y')
_COLORS = ('brightness', 'contrast', 'color', 'posterize', 'solarize', 'autocontrast')
OPERATIONS = ('identity', *_SHAPES, *_COLORS)


class RandAugment(NamedTuple):
    """Selects how many operations images get, and how strong they are.

    Attributes:
      operations: number of operations that each image gets, one after another; 0 turns it off.
      magnitude: above 0 and at most 10.
    """

    operations: int
    magnitude: float


def randaugment(
    images: jax.Array,
    key: jax.Array,
    positions: jax.Array,
    settings: RandAugment,
    mean: jax.Array,
    std: jax.Array,
) -> jax.Array:
    """Applies random operations to each image.

    The draws of an image depend on its position in the *global* batch only, so that a batch is
    augmented alike on one device and on many.

    Args:
      images: normalised images, `[B, H, W, C]` float32.
      key: random key of the step.
      positions: positions of the images in the global batch, int32 `[B]`.
      settings: number and strength of the operations.
      mean: mean of each channel in pixel values 0..255, `[C]`.
      std: standard deviation of each channel, likewise.

    Returns:
      The augmented images, `[B, H, W, C]` float32.
    """
    strength = settings.magnitude / _MAX_MAGNITUDE

    def augment_image(image: jax.Array, position: jax.Array) -> jax.Array:
        noise = jax.random.uniform(jax.random.fold_in(key, position), (settings.operations, 2))
        for number in range(settings.operations):
            operation = (noise[number, 0] * len(OPERATIONS)).astype(jnp.int32)
            signed = jnp.where(noise[number, 1] < 0.5, -strength, strength)
            image = transform(image, operation, signed, mean, std)
        return image

    return jax.vmap(augment_image)(images, positions)


def transform(
    image: jax.Array, operation: jax.Array, strength: jax.Array, mean: jax.Array, std: jax.Array
) -> jax.Array:
    """Applies an operation of `OPERATIONS` to one normalised image, `[H, W, C]` float32.

    The strength is -1 to 1. Its sign is the direction; posterize and solarize use its size alone,
    and autocontrast does not use it.
    """
    is_now = functools.partial(_is_now, operation)
    mean, std = mean.reshape(1, 1, -1), std.reshape(1, 1, -1)
    warped = _warp(image, operation, strength)
    # Rounded as in a picture: by normalisation, 8 may have become 7.9999, which loses a bit more.
    changed = _change_colors(jnp.round(image * std + mean), operation, strength)
    is_color = functools.reduce(jnp.logical_or, map(is_now, _COLORS))
    return jnp.where(is_color, (changed - mean) / std, warped)


def _is_now(operation: jax.Array, name: str) -> jax.Array:
    return operation == OPERATIONS.index(name)


def _warp(image: jax.Array, operation: jax.Array, strength: jax.Array) -> jax.Array:
    """Moves the pixels of an image `[H, W, C]`: rotation, shear or shift around its middle.

    Every pixel takes the value of the nearest one in the place that it comes from. An operation
    that moves nothing, such as identity, returns the image to the bit.
    """

    def only_if(name: str, value: jax.Array | float) -> jax.Array:
        return jnp.where(_is_now(operation, name), value, 0.0)

    height, width = image.shape[:2]
    angle = only_if('rotate', jnp.deg2rad(_DEGREES) * strength)
    rows, columns = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing='ij')
    y, x = rows - (height - 1) / 2, columns - (width - 1) / 2
    from_x = jnp.cos(angle) * x + (jnp.sin(angle) + only_if('shear_x', _SHEAR * strength)) * y
    from_y = (only_if('shear_y', _SHEAR * strength) - jnp.sin(angle)) * x + jnp.cos(angle) * y
    from_x = from_x + only_if('translate_x', _SHIFT * width * strength)
    from_y = from_y + only_if('translate_y', _SHIFT * height * strength)
    rows = jnp.round(from_y + (height - 1) / 2).astype(jnp.int32)
    columns = jnp.round(from_x + (width - 1) / 2).astype(jnp.int32)
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    moved = image[rows.clip(0, height - 1), columns.clip(0, width - 1)]
    return jnp.where(inside[..., None], moved, 0)  # 0 is the mean of the channel


def _change_colors(pixels: jax.Array, operation: jax.Array, strength: jax.Array) -> jax.Array:
    """Changes the colours of an image of whole values 0..255, `[H, W, C]` float32.

    An operation that changes no colour gives any result.
    """
    channels = pixels.shape[-1]
    luma = jnp.array(_LUMA if channels == 3 else [1 / channels] * channels, jnp.float32)
    grey = (pixels * luma.reshape(1, 1, -1)).sum(-1, keepdims=True)
    low, high = (reduce((0, 1), keepdims=True) for reduce in (pixels.min, pixels.max))
    size = jnp.abs(strength)
    factor = 1 + _ENHANCEMENT * strength
    step = 2 ** jnp.round(_BITS * size)
    changed = {
        'brightness': factor * pixels,
        'contrast': grey.mean() + factor * (pixels - grey.mean()),
        'color': grey + factor * (pixels - grey),
        'posterize': jnp.floor(pixels / step) * step,
        'solarize': jnp.where(pixels >= 256 * (1 - size), 255 - pixels, pixels),
        # A channel of a single value stays as it is.
        'autocontrast': jnp.where(high > low, (pixels - low) * 255 / (high - low), pixels),
    }
    chosen = jnp.select([_is_now(operation, name) for name in _COLORS], list(changed.values()))
    return chosen.clip(0, 255)
