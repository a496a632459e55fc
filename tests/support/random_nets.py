"""Random small models for the dependency analysis: blocks of many kinds in random composition, shared and nested."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from modelpress_runner.dependency.cutting import edits_of
from modelpress_runner.dependency.groups import ChannelDependencies
from modelpress_runner.edits.base import Edit

SIZE = 4  # of an image

Image = torch.Tensor  # (samples, channels, SIZE, SIZE)
Block = Callable[[random.Random, int], tuple[nn.Module, int]]  # from input channels to a block and its channels


class Fixed(nn.Module):
    """A function of images as a module."""

    def __init__(self, function: Callable[..., Image]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *x: Image) -> Image:
        return self.function(*x)


class Residual(nn.Module):
    def __init__(self, inner: nn.Module, outer: nn.Module | None) -> None:
        super().__init__()
        self.inner, self.outer = inner, outer

    def forward(self, x: Image) -> Image:
        return self.inner(x) + (x if self.outer is None else self.outer(x))


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, 3, 1), nn.Conv2d(3, channels, 1)

    def forward(self, x: Image) -> Image:
        return x * torch.sigmoid(self.expand(torch.relu(self.reduce(x.mean((2, 3), keepdim=True)))))


class Concatenated(nn.Module):
    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Image) -> Image:
        return torch.cat([self.first(x), self.second(x)], 1)


class Halves(nn.Module):
    """A function of the halves of the channels, taken in one of several ways."""

    def __init__(self, how: str, function: Callable[[Image, Image], Image]) -> None:
        super().__init__()
        self.how, self.function = how, function

    def forward(self, x: Image) -> Image:
        half = x.shape[1] // 2
        if self.how == "slice":
            return self.function(x[:, :half], x[:, half:])
        if self.how == "view":
            both = x.view(x.shape[0], 2, half, *x.shape[2:])
            return self.function(both[:, 0], both[:, 1])
        return self.function(*x.chunk(2, 1))


class Attention(nn.Module):
    """Over the pixels, with heads of a fixed width."""

    def __init__(self, channels: int, heads: int, width: int, kind: str) -> None:
        super().__init__()
        self.width, self.kind = width, kind
        rows = heads * width
        if kind == "fused":
            self.qkv = nn.Linear(channels, 3 * rows)
        else:
            self.q, self.k, self.v = (nn.Linear(channels, rows) for _ in range(3))
        self.out = nn.Linear(rows, channels)
        if kind == "biased":  # a number for each head and distance
            self.bias = nn.Embedding(2 * SIZE * SIZE, heads)

    def forward(self, x: Image) -> Image:
        samples, _, height, wide = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        if self.kind == "fused":
            parts = self.qkv(tokens).view(samples, height * wide, 3, -1, self.width).permute(2, 0, 3, 1, 4)
            q, k, v = parts.unbind(0)
        else:
            q, k, v = (
                layer(tokens).view(samples, height * wide, -1, self.width).transpose(1, 2)
                for layer in (self.q, self.k, self.v)
            )
        if self.kind == "kernel":
            seen = F.scaled_dot_product_attention(q, k, v)
        elif self.kind == "biased":
            place = torch.arange(height * wide)
            bias = self.bias(place[:, None] - place + height * wide).permute(2, 0, 1)
            seen = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
        elif self.kind == "einsum":
            weights = torch.softmax(torch.einsum("bhtd,bhsd->bhts", q, k) * 0.5, -1)
            seen = torch.einsum("bhts,bhsd->bhtd", weights, v)
        else:
            seen = torch.softmax(q @ k.transpose(-1, -2) / self.width**0.5, -1) @ v
        mixed = self.out(seen.transpose(1, 2).flatten(2))
        return mixed.transpose(1, 2).reshape(samples, -1, height, wide)


class Linear(nn.Module):
    """A linear attention without softmax: products of activations over channels."""

    def __init__(self, channels: int, positive: bool) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Conv2d(channels, 6, 1) for _ in range(3))
        self.positive = positive

    def forward(self, x: Image) -> Image:
        q, k, v = (layer(x).flatten(2) for layer in (self.q, self.k, self.v))
        if self.positive:
            q, k = F.elu(q) + 1, F.elu(k) + 1
        return (v @ k.transpose(1, 2) @ q).view(x.shape[0], -1, *x.shape[2:])


class Twice(nn.Module):
    """One module called twice."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Image) -> Image:
        return self.conv(torch.relu(self.conv(x)))


class ChannelsLast(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Image) -> Image:
        return self.inner(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Scaled(nn.Module):
    """A parameter or a buffer for each channel."""

    def __init__(self, channels: int, parameter: bool) -> None:
        super().__init__()
        value = torch.linspace(0.5, 1.5, channels).view(1, channels, 1, 1)
        if parameter:
            self.scale = nn.Parameter(value)
        else:
            self.register_buffer("scale", value)

    def forward(self, x: Image) -> Image:
        return x * self.scale


class RootMeanSquare(nn.Module):
    """Such a norm, written by hand."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.epsilon = nn.Parameter(torch.ones(channels)), 1e-3

    def forward(self, x: Image) -> Image:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.epsilon))


class Recurrent(nn.Module):
    """Runs along the pixels."""

    def __init__(self, channels: int, kind: type[nn.LSTM | nn.GRU]) -> None:
        super().__init__()
        self.rnn = kind(channels, channels, batch_first=True)

    def forward(self, x: Image) -> Image:
        return self.rnn(x.flatten(2).transpose(1, 2))[0].transpose(1, 2).reshape(x.shape)


class Hidden(nn.Module):
    """Recurrent layers over each other, one way or both, whose steps and last state a linear layer takes."""

    def __init__(self, channels: int, kind: type[nn.LSTM | nn.GRU | nn.RNN], layers: int, both: bool) -> None:
        super().__init__()
        self.rnn = kind(channels, 5, layers, bidirectional=both, batch_first=True)
        self.steps, self.last = nn.Linear(10 if both else 5, channels), nn.Linear(5, channels)

    def forward(self, x: Image) -> Image:
        out, after = self.rnn(x.flatten(2).transpose(1, 2))
        after = after[0] if isinstance(after, tuple) else after
        mixed = self.steps(out) + self.last(after[-1])[:, None]
        return mixed.transpose(1, 2).unflatten(2, x.shape[2:])


class Tied(nn.Module):
    """A weight that an embedding and a linear layer share."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.table, self.out, self.back = nn.Embedding(5, 6), nn.Linear(6, 5), nn.Linear(5, channels)
        self.out.weight = self.table.weight

    def forward(self, x: Image) -> Image:
        rows = self.table(torch.arange(4) + 1)
        mixed = self.back(torch.relu(self.out(rows)))
        return x + mixed.mean(0).view(1, -1, 1, 1)


class MultiHead(nn.Module):
    """torch's attention of the pixels to themselves."""

    def __init__(self, channels: int, heads: int, first: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, heads, batch_first=first)

    def forward(self, x: Image) -> Image:
        tokens = x.flatten(2).transpose(1, 2)
        return self.attention(tokens, tokens, tokens)[0].transpose(1, 2).reshape(x.shape)


class Queries(nn.Module):
    """Attention whose numbers of heads are attributes: one head of keys, or two in one weight with the queries."""

    def __init__(self, channels: int, kind: str) -> None:
        super().__init__()
        self.heads, self.keys, self.width, self.kind = 4, 1 if kind == "shared" else 2, 3, kind
        self.copies = self.heads // self.keys
        self.qkv = nn.Linear(channels, (self.heads + 2 * self.keys) * self.width)
        self.out = nn.Linear(self.heads * self.width, channels)

    def forward(self, x: Image) -> Image:
        qkv = self.qkv(x.flatten(2).transpose(1, 2))
        first, size = self.heads * self.width, self.keys * self.width
        if self.kind == "split":
            parts = qkv.split([first, size, size], 2)
        else:
            parts = (qkv[..., :first], qkv[..., first : first + size], qkv[..., first + size :])
        q, k, v = (part.unflatten(2, (-1, self.width)).transpose(1, 2) for part in parts)
        k, v = (t[:, :, None].expand(-1, -1, self.copies, -1, -1).flatten(1, 2) for t in (k, v))
        mixed = torch.softmax(q @ k.transpose(2, 3), -1) @ v
        return self.out(mixed.transpose(1, 2).flatten(2)).transpose(1, 2).unflatten(2, x.shape[2:])


def _shuffled(x: Image) -> Image:
    return x.view(x.shape[0], 2, -1, *x.shape[2:]).transpose(1, 2).flatten(1, 2)


def _block(dice: random.Random, channels: int, depth: int) -> tuple[nn.Module, int]:
    """A random block for this many channels, and the channels that it gives."""
    wide = 2 * dice.randint(2, 6)
    even = channels % 2 == 0
    same: list[Callable[[], nn.Module]] = [
        lambda: nn.BatchNorm2d(channels),
        lambda: nn.InstanceNorm2d(channels, affine=True),
        lambda: nn.PReLU(channels),
        lambda: nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
        lambda: Gate(channels),
        lambda: Twice(channels),
        lambda: Attention(
            channels,
            dice.randint(2, 4),
            dice.randint(2, 3),
            dice.choice(["fused", "kernel", "biased", "einsum", "plain"]),
        ),
        lambda: ChannelsLast(nn.Linear(channels, channels)),
        lambda: ChannelsLast(nn.LayerNorm(channels)),
        lambda: ChannelsLast(nn.RMSNorm(channels, eps=1e-3)),
        lambda: ChannelsLast(RootMeanSquare(channels)),
        lambda: Recurrent(channels, dice.choice([nn.LSTM, nn.GRU])),
        lambda: Hidden(
            channels, dice.choice([nn.LSTM, nn.GRU, nn.RNN]), dice.randint(1, 2), dice.choice([False, True])
        ),
        lambda: Tied(channels),
        lambda: MultiHead(channels, dice.choice([n for n in (1, 2, 3, 4) if channels % n == 0]), dice.random() < 0.5),
        lambda: Queries(channels, dice.choice(["shared", "fused", "split"])),
        lambda: Scaled(channels, dice.random() < 0.5),
        lambda: Fixed(dice.choice([torch.relu, F.silu, torch.sigmoid, torch.tanh, F.gelu, torch.cos])),
        lambda: Fixed(lambda x: x * x.mean(1, keepdim=True)),
        lambda: Fixed(lambda x: torch.softmax(x, 1)),
        lambda: Fixed(lambda x: x.flip(1)),
        lambda: Fixed(lambda x: x.roll(1, 3)),
        lambda: Fixed(lambda x: F.avg_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 1)),
        lambda: Fixed(lambda x: F.interpolate(x, scale_factor=2)[..., ::2, ::2]),
        lambda: Fixed(lambda x: x - x.amax((2, 3), keepdim=True)),
        lambda: Fixed(lambda x: torch.stack([x, x.flip(3)], 0).sum(0)),
        lambda: Fixed(lambda x: x * x.sum(1, keepdim=True)),
        lambda: Fixed(lambda x: F.normalize(x, dim=1)),
    ]
    if even and channels > 2:
        same.append(lambda: Fixed(_shuffled))  # of two channels the 2 in its code is the channels
    if even:
        same += [
            lambda: nn.GroupNorm(2, channels),
            lambda: nn.Conv2d(channels, channels, 1, groups=2),
        ]
    if depth < 2:
        same.append(lambda: Residual(_chain(dice, channels, dice.randint(1, 3), depth + 1, channels)[0], None))
    kind = dice.randrange(8)
    if kind == 0:
        return nn.Conv2d(channels, wide, dice.choice([1, 3]), padding="same"), wide
    if kind == 1 and depth < 2:
        first, a = _chain(dice, channels, dice.randint(0, 2), depth + 1)
        second, b = _chain(dice, channels, dice.randint(0, 2), depth + 1)
        return Concatenated(first, second), a + b
    if kind == 2 and even:
        how, function = (
            dice.choice(["slice", "view", "chunk"]),
            dice.choice([torch.mul, torch.add, lambda a, b: a * torch.sigmoid(b)]),
        )
        return Halves(how, function), channels // 2
    if kind == 3:
        return nn.Sequential(nn.Conv2d(channels, 4 * 3, 1), nn.PixelShuffle(2), nn.AvgPool2d(2)), 3
    if kind == 4:
        return nn.ConvTranspose2d(channels, wide, 1), wide
    if kind == 5:
        return Linear(channels, dice.random() < 0.5), 6
    if kind == 6:
        return Fixed(lambda x: x.repeat_interleave(2, 1)), 2 * channels
    return dice.choice(same)(), channels


def _chain(
    dice: random.Random, channels: int, length: int, depth: int, target: int | None = None
) -> tuple[nn.Module, int]:
    blocks: list[nn.Module] = []
    for _ in range(length):
        block, channels = _block(dice, channels, depth)
        blocks.append(block)
    if target is not None and channels != target:
        blocks.append(nn.Conv2d(channels, target, 1))
        channels = target
    return nn.Sequential(*blocks), channels


def removal(found: ChannelDependencies, seed: int) -> list[Edit]:
    """The edits that take a random part of every group's units away."""
    dice = torch.Generator().manual_seed(seed)
    removed = torch.zeros(found.unit_count, dtype=torch.bool)
    for group in found.groups:
        size = len(group.units)
        if size > 1:
            count = int(torch.randint(1, size, (1,), generator=dice))
            removed[group.vector[torch.randperm(size, generator=dice)[:count]]] = True
    return edits_of(found, removed)


def random_net(seed: int) -> nn.Module:
    """A model of images (samples, 3, SIZE, SIZE) with up to about thirty operations."""
    dice = random.Random(seed)
    torch.manual_seed(seed)
    first = 2 * dice.randint(2, 6)
    body, channels = _chain(dice, first, dice.randint(2, 6), 0)
    head = nn.Linear(channels, 3)
    return nn.Sequential(nn.Conv2d(3, first, 3, padding=1), body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head).eval()
