"""Builds an ONNX graph layer by layer; it knows no search space and no run.

Images are `[N, C, H, W]` inside the graph, the only layout of ONNX's convolutions and pools.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from asose_jax.exports.layers import BatchNorm, Layers, Pixels

# Old enough for runtimes of 2022, and the last one before some operators take their axes as inputs.
OPSET = 17
IMAGES, LOGITS, PROBABILITIES = 'images', 'logits', 'probabilities'
FEATURES, RESULT = 'features', 'result'  # of a part of a network
BATCH = 'N'  # name of the free dimension


def _folded(norm: BatchNorm, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns `[F, ...]` weights and the bias of a convolution that includes a BatchNorm."""
    factor = norm.scale / np.sqrt(np.asarray(norm.var, np.float64) + norm.epsilon)
    return weights * factor.reshape(-1, 1, 1, 1), norm.bias - factor * norm.mean


class Graph(Layers):
    """Collects nodes and constants. Names of nodes and of their results are equal, and unique."""

    def __init__(self) -> None:
        """Starts with an empty graph."""
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._uses: dict[str, int] = {}  # how often a name was asked for
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def normalised(
        self, image_shape: tuple[int, int, int], mean: np.ndarray, std: np.ndarray
    ) -> Pixels:
        """Adds Transpose, Cast, Sub and Mul."""
        height, width, channels = image_shape
        self._inputs.append(_array(IMAGES, image_shape, TensorProto.UINT8))
        x = self._node('Transpose', [IMAGES], 'normalise/channels_first', perm=[0, 3, 1, 2])
        x = self._node('Cast', [x], 'normalise/float', to=TensorProto.FLOAT)
        for kind, values in (('Sub', mean), ('Mul', 1 / np.asarray(std, np.float64))):
            constant = self._constant(np.reshape(values, (1, -1, 1, 1)), f'normalise/{kind}/values')
            x = self._node(kind, [x, constant], f'normalise/{kind.lower()}')
        return Pixels(x, channels, height, width)

    def features(self, shape: tuple[int, int, int]) -> Pixels:
        """Adds an input float32 `[N, C, H, W]`, in the place of `normalised`.

        Args:
          shape: `(H, W, C)`.
        """
        height, width, channels = shape
        self._inputs.append(_array(FEATURES, (channels, height, width)))
        return Pixels(FEATURES, channels, height, width)

    def result(self, x: Pixels) -> None:
        """Ends the graph with an array, in the place of `classify`."""
        self._nodes.append(helper.make_node('Identity', [x.name], [RESULT], RESULT))
        self._outputs.append(_array(RESULT, x[1:]))

    def corners(self, x: Pixels, stride: int) -> Pixels:
        """Takes every `stride`-th pixel in either direction."""
        if stride == 1:
            return x
        values = {
            'begin': [0, 0],
            'end': [x.height, x.width],
            'axes': [2, 3],
            'steps': [stride] * 2,
        }
        inputs = [self._integers(value, f'corners/{key}') for key, value in values.items()]
        return x.strided(stride)._replace(name=self._node('Slice', [x.name, *inputs], 'corners'))

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
        """Adds a Conv, with the BatchNorm folded into kernel and bias."""
        weights = np.asarray(kernel, np.float64).transpose(3, 2, 0, 1)
        features, _, *size = weights.shape
        parts = [weights] if norm is None else _folded(norm, weights)
        inputs = [
            self._constant(part, f'{name}/{key}')
            for key, part in zip(('kernel', 'bias'), parts, strict=False)
        ]
        border = [(taps - 1) * dilation // 2 for taps in size]
        pads = _missing(x) if at_end else border * 2
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
        return x.strided(stride)._replace(name=y, channels=features)

    def relu(self, x: Pixels, name: str) -> Pixels:
        """Adds a Relu."""
        return x._replace(name=self._node('Relu', [x.name], f'{name}/relu'))

    def batch_norm(self, x: Pixels, norm: BatchNorm, name: str) -> Pixels:
        """Adds a BatchNormalization."""
        inputs = [
            self._constant(getattr(norm, key), f'{name}/{key}')
            for key in ('scale', 'bias', 'mean', 'var')
        ]
        y = self._node('BatchNormalization', [x.name, *inputs], name, epsilon=norm.epsilon)
        return x._replace(name=y)

    def average_3x3(self, x: Pixels, name: str, stride: int) -> Pixels:
        """Adds an AveragePool that leaves the padding out."""
        return self._pool_3x3('AveragePool', x, name, stride, count_include_pad=0)

    def max_3x3(self, x: Pixels, name: str, stride: int) -> Pixels:
        """Adds a MaxPool."""
        return self._pool_3x3('MaxPool', x, name, stride)

    def mean_2x2(self, x: Pixels, name: str) -> Pixels:
        """Adds an AveragePool that counts the padding."""
        y = self._node(
            'AveragePool',
            [x.name],
            name,
            kernel_shape=[2, 2],
            strides=[2, 2],
            pads=_missing(x),
            count_include_pad=1,
        )
        return x.strided(2)._replace(name=y)

    def scale(self, x: Pixels, factor: npt.ArrayLike, name: str) -> Pixels:
        """Adds a Mul."""
        constant = self._constant(np.reshape(factor, ()), f'{name}/value')
        return x._replace(name=self._node('Mul', [x.name, constant], name))

    def total(self, terms: Iterable[Pixels | None], like: Pixels, name: str) -> Pixels:
        """Adds an Add for every term after the first."""
        remaining = [term for term in terms if term is not None]
        if not remaining:
            return self._zeros(like, name)
        y, *rest = remaining
        for term in rest:
            y = y._replace(name=self._node('Add', [y.name, term.name], f'{name}/add'))
        return y

    def concat(self, parts: list[Pixels], name: str) -> Pixels:
        """Adds a Concat."""
        y = self._node('Concat', [part.name for part in parts], name, axis=1)
        return parts[0]._replace(name=y, channels=sum(part.channels for part in parts))

    def classify(self, x: Pixels, kernel: npt.ArrayLike, bias: npt.ArrayLike) -> None:
        """Adds GlobalAveragePool, Flatten and Gemm, and the Softmax of the logits."""
        mean = self._node('GlobalAveragePool', [x.name], 'head/mean')
        flat = self._node('Flatten', [mean], 'head/flat')
        values = {'kernel': kernel, 'bias': bias}
        inputs = [self._constant(each, f'head/{key}') for key, each in values.items()]
        self._nodes.append(helper.make_node('Gemm', [flat, *inputs], [LOGITS], 'head/dense'))
        self._nodes.append(
            helper.make_node('Softmax', [LOGITS], [PROBABILITIES], 'head/softmax', axis=-1)
        )
        classes = np.shape(bias)
        self._outputs += [_array(name, classes) for name in (PROBABILITIES, LOGITS)]

    def model(self) -> onnx.ModelProto:
        """Returns the model of all layers, for any number of images."""
        graph = helper.make_graph(
            self._nodes, 'network', self._inputs, self._outputs, self._constants
        )
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
        sizes = self._integers(like[1:], f'{name}/sizes')
        shape = self._node('Concat', [count, sizes], f'{name}/shape', axis=0)
        return like._replace(name=self._node('ConstantOfShape', [shape], f'{name}/zeros'))

    def _pool_3x3(self, kind: str, x: Pixels, name: str, stride: int, **attributes: int) -> Pixels:
        y = self._node(
            kind,
            [x.name],
            name,
            kernel_shape=[3, 3],
            strides=[stride, stride],
            pads=[1] * 4,
            **attributes,
        )
        return x.strided(stride)._replace(name=y)

    def _constant(self, values: npt.ArrayLike, name: str, dtype: type = np.float32) -> str:
        tensor = numpy_helper.from_array(np.asarray(values, dtype), self._unique(name))
        self._constants.append(tensor)
        return tensor.name

    def _integers(self, values: Iterable[int], name: str) -> str:
        return self._constant([*values], name, np.int64)

    def _node(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        name = self._unique(name)
        self._nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def _unique(self, name: str) -> str:
        self._uses[name] = self._uses.get(name, 0) + 1
        return name if self._uses[name] == 1 else f'{name}_{self._uses[name]}'


def _missing(x: Pixels) -> list[int]:
    """Returns ONNX's `pads` that make height and width even: top, left, bottom, right."""
    return [0, 0, x.height % 2, x.width % 2]


def _array(
    name: str, shape: tuple[int, ...], dtype: int = TensorProto.FLOAT
) -> onnx.ValueInfoProto:
    """Describes an input or output of this shape for each image."""
    return helper.make_tensor_value_info(name, dtype, [BATCH, *shape])
