"""Labelled images with random access, and the one way in which they change size."""

import dataclasses
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageOps


@dataclasses.dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images with random access.

    Attributes:
      size: number of examples.
      read: indices `[n]` to (images uint8 `[n, H, W, C]`, labels int32 `[n]`).
      labels: int32 `[size]` where they are known without reading images, else `None`.
      arrays: all images and labels at once if the set is held in memory, else `None`.
    """

    size: int
    read: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    labels: np.ndarray | None = None
    arrays: tuple[np.ndarray, np.ndarray] | None = None

    @classmethod
    def of_arrays(cls, images: np.ndarray, labels: np.ndarray) -> 'ImageSet':
        """A set held in memory."""
        return cls(len(images), lambda i: (images[i], labels[i]), labels, (images, labels))

    def followed_by(self, other: 'ImageSet') -> 'ImageSet':
        """Both sets in one; indices of `other` come after those of this one."""
        if self.arrays is not None and other.arrays is not None:
            joined = [np.concatenate(pair) for pair in zip(self.arrays, other.arrays, strict=True)]
            return ImageSet.of_arrays(*joined)

        def read(indices):
            # A batch comes from one split only.
            if indices.max() < self.size:
                return self.read(indices)
            return other.read(indices - self.size)

        return ImageSet(self.size + other.size, read)


def fitted(image: Image.Image, size: int | None) -> Image.Image:
    """The middle square of `image`, `size` pixels a side; `None` leaves it as it is.

    The same as to bring the short side to `size` and to cut the middle out.
    """
    if size is None or image.size == (size, size):
        return image
    return ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)


def resized(images, size):
    if size is None or images.shape[1:3] == (size, size):
        return images
    square = images.squeeze(-1) if images.shape[-1] == 1 else images
    scaled = [np.asarray(fitted(Image.fromarray(i), size)) for i in square]
    return np.stack(scaled).reshape(len(images), size, size, images.shape[-1])
