"""The same networks in PyTorch, written as its users would, for comparison only."""

import torch
from torch import nn
from torch.nn import functional

from benchmarks.ours import Size


def depthwise(channels: int, size: int, dilation: int) -> nn.Conv2d:
    """One kernel a channel, size kept."""
    pad = (size - 1) * dilation // 2
    return nn.Conv2d(
        channels, channels, size, padding=pad, dilation=dilation, groups=channels, bias=False
    )


def _separable(channels, size, dilation=1):
    return [
        nn.ReLU(),
        depthwise(channels, size, dilation),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
    ]


class _Zero(nn.Module):
    def forward(self, x):
        return torch.zeros_like(x)


def operation(name: str, channels: int) -> nn.Module:
    """The primitive called `name`."""
    kind, size = name[:8], int(name[-1]) if name[-1].isdigit() else 0
    if kind == 'sep_conv':
        return nn.Sequential(*_separable(channels, size), *_separable(channels, size))
    if kind == 'dil_conv':
        return nn.Sequential(*_separable(channels, size, 2))
    if name == 'conv_7x1_1x7':
        return nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels, channels, (1, 7), padding=(0, 3), bias=False),
            nn.Conv2d(channels, channels, (7, 1), padding=(3, 0), bias=False),
            nn.BatchNorm2d(channels),
        )
    if name == 'avg_pool_3x3':
        return nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    if name == 'max_pool_3x3':
        return nn.MaxPool2d(3, 1, 1)
    return {'none': _Zero, 'skip_connect': nn.Identity}[name]()


class _StraightThrough(torch.autograd.Function):
    """Forward the drawn output; backward <g, y_k> to the weight of every candidate."""

    @staticmethod
    def forward(context, drawn, weights, *outputs):
        context.save_for_backward(*outputs)
        return drawn.view_as(drawn)

    @staticmethod
    def backward(context, g):
        # A dot product in the layout of g makes no copy and no product image.
        line = _contiguous_line if g.is_contiguous() else _channels_last_line
        products = [torch.dot(line(g), line(y)) for y in context.saved_tensors]
        return (g, torch.stack(products).float(), *(None for _ in products))


def _contiguous_line(x):
    return x.reshape(-1)


def _channels_last_line(x):
    return x.permute(0, 2, 3, 1).reshape(-1)


class _Block(nn.Module):
    def __init__(self, before, channels, stride, names):
        super().__init__()
        self.transition = nn.Identity()
        if stride > 1 or before != channels:
            self.transition = nn.Sequential(
                nn.Conv2d(before, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )
        self.operations = nn.ModuleList(operation(name, channels) for name in names)
        self.gate = nn.Parameter(torch.ones(()))

    def forward(self, x, drawn, weights=None):
        x = self.transition(x)
        y = self.operations[drawn](x)
        if weights is not None:
            with torch.no_grad():
                each = [y if k == drawn else op(x) for k, op in enumerate(self.operations)]
            y = _StraightThrough.apply(y, weights, *each)
        return x + self.gate * y


class Net(nn.Module):
    """stem - blocks - mean - linear, with SGD for the weights and Adam for alpha.

    Args:
      size: as ours.
      layout: `torch.contiguous_format` or `torch.channels_last`.
      chosen: one operation a block: the derived network.
      device: where it is, with its images.
      autocast: dtype of the activations, if other than float32.
      compiled: whether `torch.compile` compiles the network, for each draw anew.
    """

    def __init__(
        self,
        size: Size,
        layout: torch.memory_format,
        chosen: tuple | None = None,
        device: str = 'cpu',
        autocast: torch.dtype | None = None,
        compiled: bool = False,
    ):
        super().__init__()
        torch.manual_seed(0)
        self.size, self.layout = size, layout
        channels = size.channels
        self.stem = nn.Sequential(
            nn.Conv2d(size.image[-1], channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        )
        self.blocks = nn.ModuleList()
        for i in range(size.depth):
            wider = 2 if i in size.reductions else 1
            names = (chosen[i],) if chosen else size.primitives
            self.blocks.append(_Block(channels, channels * wider, wider, names))
            channels *= wider
        self.head = nn.Linear(channels, 10)
        self.alpha = nn.Parameter(torch.zeros(size.depth, len(size.primitives)))
        self.to(device, memory_format=layout)
        self.device, self.autocast = device, autocast
        self.network = torch.compile(self.forward) if compiled else self.forward
        weights = [p for p in self.parameters() if p is not self.alpha]
        self.weights = weights
        self.sgd = torch.optim.SGD(weights, 0.025, momentum=0.9, weight_decay=3e-4)
        self.adam = torch.optim.AdamW([self.alpha], 3e-4, betas=(0.5, 0.999), weight_decay=1e-3)
        height, width, depth = size.image
        images = torch.randint(0, 256, (2048, depth, height, width), dtype=torch.uint8)
        self.images, self.labels = images.to(device), torch.randint(0, 10, (2048,)).to(device)
        self.loss = torch.zeros(())

    def forward(self, x: torch.Tensor, drawn: list[int], weights=None) -> torch.Tensor:
        x = self.stem(x)
        for i, block in enumerate(self.blocks):
            x = block(x, drawn[i], None if weights is None else weights[i])
        return self.head(x.mean((2, 3)))

    def _batch(self):
        """Random crops and flips by one gather, twice as fast as slicing image after image."""
        device = self.device
        index = torch.randint(0, 2048, (self.size.batch,), device=device)
        images = (self.images[index].float() - 128) / 64
        height, width, depth = self.size.image
        padded = functional.pad(images, (4, 4, 4, 4)).flatten(2)
        corners = torch.randint(0, 9, (len(index), 2, 1), device=device)
        rows = corners[:, 0] + torch.arange(height, device=device)
        columns = torch.arange(width, device=device)
        mirrored = torch.rand(len(index), 1, device=device) < 0.5
        columns = corners[:, 1] + torch.where(mirrored, columns.flip(0), columns)
        places = (rows[:, :, None] * (width + 8) + columns[:, None]).flatten(1)
        cut = padded.gather(2, places[:, None].expand(-1, depth, -1))
        cut = cut.view(len(index), depth, height, width)
        return cut.contiguous(memory_format=self.layout), self.labels[index]

    def _loss(self, drawn, weights=None):
        images, labels = self._batch()
        with torch.autocast(self.device, self.autocast, enabled=self.autocast is not None):
            loss = functional.cross_entropy(self.network(images, drawn, weights), labels)
        self.loss = loss.detach()
        return loss

    def wait(self) -> float:
        """The loss of the last step, once it is done."""
        return self.loss.item()

    def weight_step(self, drawn: list[int], update: bool = True) -> None:
        """Forward, both gradients of the drawn operations, SGD."""
        self.sgd.zero_grad(set_to_none=True)
        self._loss(drawn).backward()
        if update:
            self.sgd.step()

    def alpha_step(self, drawn: list[int]) -> None:
        """All operations forward, the gradient of alpha and of nothing else, AdamW."""
        for weight in self.weights:
            weight.requires_grad_(False)
        self.adam.zero_grad(set_to_none=True)
        soft = torch.softmax(self.alpha, -1)
        index = torch.tensor(drawn, device=self.device)
        hard = functional.one_hot(index, soft.shape[-1]).float()
        self._loss(drawn, hard + soft - soft.detach()).backward()
        self.adam.step()
        for weight in self.weights:
            weight.requires_grad_(True)
