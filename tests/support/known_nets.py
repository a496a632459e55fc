"""Small nets of kinds that are known to be hard to shrink, for the dependency analysis: tests and a benchmark.

Each takes what stands beside it in NETS, and has a head whose outputs are the model's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from random_nets import ChannelsLast, Fixed, Gate
from torch import nn
from torch.nn import functional as F

Made = tuple[nn.Module, torch.Tensor]
LENGTH, WIDTH, HEADS, HEAD = 6, 12, 3, 4


def images() -> torch.Tensor:
    """(samples, channels, height, width)."""
    return torch.randn((2, 3, 8, 8), generator=torch.Generator().manual_seed(0))


def words() -> torch.Tensor:
    """(samples, length)."""
    return torch.arange(2 * LENGTH).view(2, LENGTH) % 11


class C2f(nn.Module):
    """YOLOv8's block: a chunk of channels goes through bottlenecks, and everything is put side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(8, 12, 1), nn.Conv2d(24, 8, 1)
        self.inner = nn.ModuleList(
            nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.SiLU()) for _ in range(2)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = list(self.first(x).chunk(2, 1))
        for block in self.inner:
            parts.append(parts[-1] + block(parts[-1]))
        return self.last(torch.cat(parts, 1))


class Frozen(nn.Module):
    """A BatchNorm that is not trained, as detectors have them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, value in (("weight", 1.5), ("bias", 0.5), ("running_mean", 0.25), ("running_var", 2.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)


class UNet(nn.Module):
    """Down once and up again, with a connection across."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1, stride=2)
        self.up, self.out = nn.ConvTranspose2d(16, 8, 2, stride=2), nn.Conv2d(16, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        side = torch.relu(self.down(x))
        return self.out(torch.cat([side, self.up(torch.relu(self.deep(side)))], 1))


class Tokens(nn.Module):
    """An embedding, something of tokens (samples, LENGTH, WIDTH) added to them, and a head."""

    def __init__(self, inner: nn.Module, tied: bool = False) -> None:
        super().__init__()
        self.embed, self.inner, self.head = nn.Embedding(11, WIDTH), inner, nn.Linear(WIDTH, 11)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        return self.head(x + self.inner(x))


class Attention(nn.Module):
    """Heads of a fixed width: by einsum, with rotary embeddings, or with ALiBi's distances."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.q, self.k, self.v = (nn.Linear(WIDTH, HEADS * HEAD) for _ in range(3))
        self.out = nn.Linear(HEADS * HEAD, WIDTH)
        self.register_buffer("slopes", 2.0 ** -torch.arange(1.0, HEADS + 1))
        angles = torch.arange(LENGTH)[:, None] * 100.0 ** -torch.linspace(0, 1, HEAD // 2)
        self.register_buffer("angles", torch.cat([angles, angles], 1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (layer(x).unflatten(2, (-1, HEAD)) for layer in (self.q, self.k, self.v))
        if self.kind.startswith("rotary"):
            angles = torch.arange(x.shape[1])[:, None] * 100.0 ** -torch.linspace(0, 1, HEAD // 2)
            both = self.angles[: x.shape[1]] if "table" in self.kind else torch.cat([angles, angles], 1)
            cos, sin = (f(both)[:, None] for f in (torch.cos, torch.sin))
            q, k = (t * cos + torch.cat([-t[..., HEAD // 2 :], t[..., : HEAD // 2]], -1) * sin for t in (q, k))
        scores = torch.einsum("bthd,bshd->bhts", q, k) / math.sqrt(HEAD)
        if self.kind == "alibi":
            place = torch.arange(x.shape[1])
            scores = scores - self.slopes[:, None, None] * (place[:, None] - place).abs()
        return self.out(torch.einsum("bhts,bshd->bthd", torch.softmax(scores, -1), v).flatten(2))


class Own(nn.Module):
    """torch's attention of tokens to themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class Low(nn.Module):
    """A linear layer with an adapter of low rank beside it (Hu et al. 2021, arXiv 2106.09685)."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base, self.scale = base, 2.0 / rank
        self.a, self.b = nn.Linear(base.in_features, rank, bias=False), nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.b(self.a(x)) * self.scale


class Recurrent(nn.Module):
    """Two layers of hidden units, both ways, and a linear layer."""

    def __init__(self, kind: type[nn.LSTM | nn.GRU]) -> None:
        super().__init__()
        self.rnn, self.out = kind(WIDTH, 8, 2, bidirectional=True, batch_first=True), nn.Linear(16, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.rnn(x)[0])


class Steps(nn.Module):
    """A cell whose steps the code makes, from zeros on."""

    def __init__(self, kind: type[nn.LSTMCell | nn.GRUCell]) -> None:
        super().__init__()
        self.cell, self.out, self.hidden = kind(WIDTH, 8), nn.Linear(8, WIDTH), 8

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state: Any = x.new_zeros(len(x), self.hidden)
        if isinstance(self.cell, nn.LSTMCell):
            state = (state, torch.zeros(len(x), self.cell.hidden_size))
        steps = []
        for step in x.unbind(1):
            state = self.cell(step, state)
            steps.append(state[0] if isinstance(state, tuple) else state)
        return self.out(torch.stack(steps, 1))


class Experts(nn.Module):
    """Two experts in one weight; each takes half of the tokens, which lie by expert."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(2, WIDTH, 16) / 4), nn.Parameter(torch.randn(2, 16, WIDTH) / 4)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.flatten(0, 1)
        ends = torch.tensor([len(rows) // 2, len(rows)], dtype=torch.int32)
        inner = torch.relu(F.grouped_mm(rows, self.up, offs=ends))
        return self.out(F.grouped_mm(inner, self.down, offs=ends).view_as(x))


def _image(*layers: nn.Module) -> Callable[[], Made]:
    """Layers from 8 channels to 8, between two convolutions."""
    return lambda: (nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *layers, nn.Conv2d(8, 2, 1)), images())


def _shuffled(x: torch.Tensor) -> torch.Tensor:
    return x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


def _text(make: Callable[[], nn.Module], tied: bool = False) -> Callable[[], Made]:
    return lambda: (Tokens(make(), tied), words())


def _feed_forward(wrap: Callable[[nn.Linear], nn.Module] = lambda layer: layer) -> nn.Module:
    return nn.Sequential(wrap(nn.Linear(WIDTH, 16)), nn.GELU(), wrap(nn.Linear(16, WIDTH)))


def _encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 16, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


NETS: dict[str, Callable[[], Made]] = {
    "C2f": lambda: _image(C2f())(),
    "U-Net": lambda: _image(UNet())(),
    "ConvTranspose": lambda: _image(nn.ConvTranspose2d(8, 6, 2, stride=2), nn.ReLU(), nn.Conv2d(6, 8, 1))(),
    "PixelShuffle": lambda: _image(nn.Conv2d(8, 24, 1), nn.PixelShuffle(2), nn.Conv2d(6, 8, 1))(),
    "channel shuffle": lambda: _image(Fixed(_shuffled), nn.Conv2d(8, 8, 3, padding=1, groups=8))(),
    "GLU": lambda: _image(nn.Conv2d(8, 12, 1), Fixed(lambda x: F.glu(x, 1)), nn.Conv2d(6, 8, 1))(),
    "SE": lambda: _image(Gate(8))(),
    "GroupNorm": lambda: _image(nn.GroupNorm(4, 8), nn.ReLU())(),
    "LayerNorm": lambda: _image(ChannelsLast(nn.LayerNorm(8)))(),
    "frozen BatchNorm": lambda: _image(Frozen(8), nn.ReLU())(),
    "weight_norm": lambda: _image(nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 6, 1)), nn.Conv2d(6, 8, 1))(),
    "spectral_norm": lambda: _image(nn.utils.parametrizations.spectral_norm(nn.Conv2d(8, 6, 1)), nn.Conv2d(6, 8, 1))(),
    "LSTM": _text(lambda: Recurrent(nn.LSTM)),
    "GRU": _text(lambda: Recurrent(nn.GRU)),
    "LSTMCell": _text(lambda: Steps(nn.LSTMCell)),
    "GRUCell": _text(lambda: Steps(nn.GRUCell)),
    "experts": _text(Experts),
    "tied embeddings": _text(_feed_forward, tied=True),
    "MultiheadAttention": _text(Own),
    "TransformerEncoder": _text(_encoder),
    "einsum attention": _text(lambda: Attention("einsum")),
    "rotary": _text(lambda: Attention("rotary")),
    "rotary by a table": _text(lambda: Attention("rotary table")),
    "ALiBi": _text(lambda: Attention("alibi")),
    "LoRA": _text(lambda: _feed_forward(lambda layer: Low(layer, 2))),
}
