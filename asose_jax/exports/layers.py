"""The layers that an exported network consists of, whatever it is written as.

`translation` calls them in the order of the network. Each kind of file has a class of its own.
"""

import abc
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Pixels(NamedTuple):
    """Names an array float32 `[N, C, H, W]` of the network.

    Attributes:
      name: of the array.
      channels: C.
      height: H.
      width: W.
    """

    name: str
    channels: int
    height: int
    width: int

    def strided(self, stride: int) -> 'Pixels':
        """Returns the array with the sizes of every `stride`-th pixel in either direction."""
        return self._replace(height=-(-self.height // stride), width=-(-self.width // stride))


class BatchNorm(NamedTuple):
    """Holds the numbers of a BatchNorm that uses running statistics.

    Attributes:
      scale: `[C]`.
      bias: `[C]`.
      mean: `[C]`.
      var: `[C]`.
      epsilon: added to the variance.
    """

    scale: np.ndarray
    bias: np.ndarray
    mean: np.ndarray
    var: np.ndarray
    epsilon: float


class Layers(abc.ABC):
    """Writes a network layer by layer: every method adds one, and returns what that computes.

    `name` is the path of the layer's module in the parameter tree, joined by slashes. Layers may
    share a name.
    """

    @abc.abstractmethod
    def normalised(
        self, image_shape: tuple[int, int, int], mean: np.ndarray, std: np.ndarray
    ) -> Pixels:
        """Turns the input, uint8 `[N, H, W, C]`, into `(images - mean) / std`.

        It is not folded into the first convolution: that pads the normalised image with zeros.

        Args:
          image_shape: `(H, W, C)`.
          mean: `[C]`, in pixel values.
          std: `[C]`, in pixel values.
        """

    @abc.abstractmethod
    def conv(
        self,
        x: Pixels,
        kernel: npt.ArrayLike,
        name: str,
        *,
        stride: int = 1,
        dilation: int = 1,
        depthwise: bool = False,
        at_end: bool = False,
        norm: BatchNorm | None = None,
    ) -> Pixels:
        """Convolves without a bias, and applies the BatchNorm behind it.

        Args:
          x: the input.
          kernel: `[kh, kw, C, F]`, or `[k, k, 1, C]` if depthwise.
          name: of the layer.
          stride: distance between output pixels, in pixels of the input.
          dilation: distance between taps.
          depthwise: whether each channel has a kernel of its own.
          at_end: whether zeros are padded below and to the right only, as many as fill the last
            window; else on both sides alike, as many as keep the size.
          norm: the BatchNorm behind it, if any.

        Returns:
          `[N, F, ceil(H / stride), ceil(W / stride)]`.
        """

    @abc.abstractmethod
    def relu(self, x: Pixels, name: str) -> Pixels:
        """Computes `max(x, 0)`."""

    @abc.abstractmethod
    def batch_norm(self, x: Pixels, norm: BatchNorm, name: str) -> Pixels:
        """Applies a BatchNorm that no convolution comes before."""

    @abc.abstractmethod
    def average_3x3(self, x: Pixels, name: str, stride: int) -> Pixels:
        """Computes the mean of the valid 3x3 neighbours."""

    @abc.abstractmethod
    def max_3x3(self, x: Pixels, name: str, stride: int) -> Pixels:
        """Computes the largest of the valid 3x3 neighbours."""

    @abc.abstractmethod
    def mean_2x2(self, x: Pixels, name: str) -> Pixels:
        """Computes the mean of every 2x2 pixels; zeros beyond the border of an odd size count."""

    @abc.abstractmethod
    def scale(self, x: Pixels, factor: npt.ArrayLike, name: str) -> Pixels:
        """Multiplies by a scalar."""

    @abc.abstractmethod
    def total(self, terms: Iterable[Pixels | None], like: Pixels, name: str) -> Pixels:
        """Adds up arrays.

        Args:
          terms: the arrays; `None` stands for zeros.
          like: the sizes of the result, which need not be an array of the network.
          name: of the layer.
        """

    @abc.abstractmethod
    def concat(self, parts: list[Pixels], name: str) -> Pixels:
        """Concatenates along the channels."""

    @abc.abstractmethod
    def classify(self, x: Pixels, kernel: npt.ArrayLike, bias: npt.ArrayLike) -> None:
        """Ends the network: a global average and a linear layer.

        Args:
          x: the features.
          kernel: `[C, classes]`.
          bias: `[classes]`.
        """
