"""Labelled images with random access, and the resizing of images."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageOps


@dataclasses.dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images with random access.

    Attributes:
      size: number of examples.
      read: maps indices `[n]` to (images uint8 `[n, H, W, C]`, labels int32 `[n]`).
      labels: labels int32 `[size]`, or `None` if they are not known without reading the images.
      arrays: all (images, labels) of a set that is held in memory, otherwise `None`.
      contents: hash of the bytes of each image's file, str `[size]`, where splits depend on it;
        otherwise `None`.
      read_labels: maps indices `[n]` to labels int32 `[n]` and decodes no image, where `labels` are
        not known; `None` leaves it to `read`.
    """

    size: int
    read: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    labels: np.ndarray | None = None
    arrays: tuple[np.ndarray, np.ndarray] | None = None
    contents: np.ndarray | None = None
    read_labels: Callable[[np.ndarray], np.ndarray] | None = None

    @classmethod
    def from_arrays(cls, images: np.ndarray, labels: np.ndarray) -> 'ImageSet':
        """Builds a set in memory: images uint8 `[size, H, W, C]`, labels int32 `[size]`."""
        return cls(len(images), lambda i: (images[i], labels[i]), labels, (images, labels))

    def labels_at(self, indices: np.ndarray) -> np.ndarray:
        """Returns the labels of some images, int32 `[n]`; decodes no image if it need not."""
        if self.labels is not None:
            return self.labels[indices]
        return self.read(indices)[1] if self.read_labels is None else self.read_labels(indices)

    def concatenate(self, other: 'ImageSet') -> 'ImageSet':
        """Concatenates two sets; the indices of `other` start at the size of this one.

        Unless both sets are held in memory, one call must not mix indices of both.
        """
        if self.arrays is not None and other.arrays is not None:
            (images, labels), (more_images, more_labels) = self.arrays, other.arrays
            return ImageSet.from_arrays(
                np.concatenate((images, more_images)), np.concatenate((labels, more_labels))
            )

        def of_either(
            first: Callable[[np.ndarray], Any], second: Callable[[np.ndarray], Any]
        ) -> Callable[[np.ndarray], Any]:
            # All indices of a batch belong to the same split.
            return lambda i: first(i) if i.max() < self.size else second(i - self.size)

        return ImageSet(
            self.size + other.size,
            of_either(self.read, other.read),
            read_labels=of_either(self.labels_at, other.labels_at),
        )


def fitted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Returns the central part of `image`, scaled to `size`.

    An image of this size, (width, height) in pixels, is returned unchanged. Else this equals
    scaling until both sides have at least this size, and cutting out the centre.
    """
    if image.size == size:
        return image
    return ImageOps.fit(image, size, Image.Resampling.BILINEAR)


def center_square(image: Image.Image, size: int | None) -> Image.Image:
    """Returns the central square of `image`, scaled to `size` x `size` pixels.

    With `None` it is the image itself. Else this equals scaling the shorter side to `size` and
    cutting out the centre.
    """
    return image if size is None else fitted(image, (size, size))


def resize_all(images: np.ndarray, size: int | None) -> np.ndarray:
    """Applies `center_square` to every image of an array, uint8 `[N, H, W, C]`."""
    if size is None or images.shape[1:3] == (size, size):
        return images
    # Pillow represents a grey image without an axis of channels.
    without_grey_axis = images.squeeze(-1) if images.shape[-1] == 1 else images
    scaled = [np.asarray(center_square(Image.fromarray(i), size)) for i in without_grey_axis]
    return np.stack(scaled).reshape(len(images), size, size, images.shape[-1])
