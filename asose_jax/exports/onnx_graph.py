"""Builds an ONNX graph layer by layer; it knows no search space and no run.

Images are `[N, C, H, W]` inside the graph, the only layout of ONNX's convolutions and pools.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

# Old enough for runtimes of 2022, and the last one before some operators take their axes as inputs.
OPSET = 17
IMAGES, LOGITS, PROBABILITIES = 'images', 'logits', 'probabilities'
BATCH = 'N'  # name of the free dimension


class Pixels(NamedTuple):
    """Names an array float32 `[N, C, H, W]` of the graph.

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

    def folded(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns `[F, ...]` weights and the bias of a convolution that includes this BatchNorm."""
        factor = self.scale / np.sqrt(np.asarray(self.var, np.float64) + self.epsilon)
        return weights * factor.reshape(-1, 1, 1, 1), self.bias - factor * self.mean


class Graph:
    """Collects nodes and constants; every method adds a layer and returns what it computes.

    Names of nodes and of their results are equal; `name` in the methods is made unique.
    """

    def __init__(self) -> None:
        """Starts with an empty graph."""
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._uses: dict[str, int] = {}  # how often a name was asked for

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
        height, width, channels = image_shape
        x = self._node('Transpose', [IMAGES], 'normalise/channels_first', perm=[0, 3, 1, 2])
        x = self._node('Cast', [x], 'normalise/float', to=TensorProto.FLOAT)
        for kind, values in (('Sub', mean), ('Mul', 1 / np.asarray(std, np.float64))):
            constant = self._constant(np.reshape(values, (1, -1, 1, 1)), f'normalise/{kind}/values')
            x = self._node(kind, [x, constant], f'normalise/{kind.lower()}')
        return Pixels(x, channels, height, width)

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
        """Convolves, with a BatchNorm behind it folded into kernel and bias.

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
        weights = np.asarray(kernel, np.float64).transpose(3, 2, 0, 1)
        features, _, *size = weights.shape
        parts = [weights] if norm is None else norm.folded(weights)
        inputs = [
            self._constant(part, f'{name}/{key}')
            for key, part in zip(('kernel', 'bias'), parts, strict=False)
        ]
        border = [(taps - 1) * dilation // 2 for taps in size]
        pads = self._missing(x) if at_end else border * 2
        y = self._node(
            'Conv',
            [x.name, *inputs],
            name,
            kernel_shape=size,
            strides=[stride, stride],
            dilations=[dilation, dilation],
            group=x.channels if depthwise else 1,
            pads=pads,
        )
        return self._thinned(y, x, stride)._replace(channels=features)

    def relu(self, x: Pixels, name: str) -> Pixels:
        """Computes `max(x, 0)`."""
        return x._replace(name=self._node('Relu', [x.name], f'{name}/relu'))

    def batch_norm(self, x: Pixels, norm: BatchNorm, name: str) -> Pixels:
        """Applies a BatchNorm that no convolution comes before."""
        inputs = [
            self._constant(getattr(norm, key), f'{name}/{key}')
            for key in ('scale', 'bias', 'mean', 'var')
        ]
        y = self._node('BatchNormalization', [x.name, *inputs], name, epsilon=norm.epsilon)
        return x._replace(name=y)

    def pool_3x3(self, kind: str, x: Pixels, name: str, stride: int) -> Pixels:
        """Computes `AveragePool` or `MaxPool` of the valid 3x3 neighbours."""
        options = {'count_include_pad': 0} if kind == 'AveragePool' else {}
        y = self._node(
            kind,
            [x.name],
            name,
            kernel_shape=[3, 3],
            strides=[stride, stride],
            pads=[1] * 4,
            **options,
        )
        return self._thinned(y, x, stride)

    def mean_2x2(self, x: Pixels, name: str) -> Pixels:
        """Computes the mean of every 2x2 pixels; zeros beyond the border of an odd size count."""
        y = self._node(
            'AveragePool',
            [x.name],
            name,
            kernel_shape=[2, 2],
            strides=[2, 2],
            pads=self._missing(x),
            count_include_pad=1,
        )
        return self._thinned(y, x, 2)

    def scale(self, x: Pixels, factor: npt.ArrayLike, name: str) -> Pixels:
        """Multiplies by a scalar."""
        constant = self._constant(np.reshape(factor, ()), f'{name}/value')
        return x._replace(name=self._node('Mul', [x.name, constant], name))

    def total(self, terms: Iterable[Pixels | None], like: Pixels, name: str) -> Pixels:
        """Adds up arrays.

        Args:
          terms: the arrays; `None` stands for zeros.
          like: has the sizes of the sum.
          name: of the layer.

        Returns:
          The sum; an array of zeros if nothing else is added up.
        """
        remaining = [term for term in terms if term is not None]
        if not remaining:
            return self._zeros(like, name)
        y, *rest = remaining
        for term in rest:
            y = y._replace(name=self._node('Add', [y.name, term.name], f'{name}/add'))
        return y

    def concat(self, parts: list[Pixels], name: str) -> Pixels:
        """Concatenates along the channels."""
        y = self._node('Concat', [part.name for part in parts], name, axis=1)
        return parts[0]._replace(name=y, channels=sum(part.channels for part in parts))

    def classify(self, x: Pixels, kernel: npt.ArrayLike, bias: npt.ArrayLike) -> None:
        """Ends the graph: a global average, a linear layer, and the softmax of its logits.

        Args:
          x: the features.
          kernel: `[C, classes]`.
          bias: `[classes]`.
        """
        mean = self._node('GlobalAveragePool', [x.name], 'head/mean')
        flat = self._node('Flatten', [mean], 'head/flat')
        values = {'kernel': kernel, 'bias': bias}
        inputs = [self._constant(each, f'head/{key}') for key, each in values.items()]
        self._nodes.append(helper.make_node('Gemm', [flat, *inputs], [LOGITS], 'head/dense'))
        self._nodes.append(
            helper.make_node('Softmax', [LOGITS], [PROBABILITIES], 'head/softmax', axis=-1)
        )

    def model(self, image_shape: tuple[int, int, int], classes: int) -> onnx.ModelProto:
        """Returns the model: images uint8 `[N, H, W, C]` to probabilities and logits.

        Args:
          image_shape: `(H, W, C)`.
          classes: number of logits.
        """
        images = helper.make_tensor_value_info(IMAGES, TensorProto.UINT8, [BATCH, *image_shape])
        outputs = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [BATCH, classes])
            for name in (PROBABILITIES, LOGITS)
        ]
        graph = helper.make_graph(self._nodes, 'network', [images], outputs, self._constants)
        opsets = [helper.make_opsetid('', OPSET)]
        return helper.make_model(
            graph,
            producer_name='asose_jax',
            opset_imports=opsets,
            ir_version=helper.find_min_ir_version_for(opsets),
        )

    def _zeros(self, like: Pixels, name: str) -> Pixels:
        # Not a constant: ONNX broadcasts sums, but not Concat, over the number of images.
        count = self._node('Shape', [IMAGES], f'{name}/count', start=0, end=1)
        sizes = numpy_helper.from_array(np.array(like[1:], np.int64), self._unique(f'{name}/sizes'))
        self._constants.append(sizes)
        shape = self._node('Concat', [count, sizes.name], f'{name}/shape', axis=0)
        return like._replace(name=self._node('ConstantOfShape', [shape], f'{name}/zeros'))

    def _missing(self, x: Pixels) -> list[int]:
        """Returns ONNX's `pads` that make height and width even: top, left, bottom, right."""
        return [0, 0, x.height % 2, x.width % 2]

    def _thinned(self, name: str, x: Pixels, stride: int) -> Pixels:
        return Pixels(name, x.channels, -(-x.height // stride), -(-x.width // stride))

    def _constant(self, values: npt.ArrayLike, name: str) -> str:
        tensor = numpy_helper.from_array(np.asarray(values, np.float32), self._unique(name))
        self._constants.append(tensor)
        return tensor.name

    def _node(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        name = self._unique(name)
        self._nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def _unique(self, name: str) -> str:
        self._uses[name] = self._uses.get(name, 0) + 1
        return name if self._uses[name] == 1 else f'{name}_{self._uses[name]}'
