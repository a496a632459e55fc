"""Small models of every structure that a shrink must get right, in a module that another process can import."""

from __future__ import annotations

import threading

import torch
from torch import nn


class Residual(nn.Module):
    """Digits-like residual CNN, input (n, 1, 8, 8)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(width)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(width * 16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Class scores (n, 10)."""
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x))))))
        return self.head(self.pool(x).flatten(1))


class Grouped(nn.Module):
    """A convolution in 2 groups of 8 channels: channels at one place in both groups go together."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3)
        self.grouped = nn.Conv2d(16, 16, 3, groups=2)
        self.conv2 = nn.Conv2d(16, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Sigmoids between the layers: a removed channel must not leave its sigmoid(0) = 0.5 behind."""
        return self.conv2(torch.sigmoid(self.grouped(torch.sigmoid(self.conv1(x)))))


class ManyGroups(nn.Module):
    """A convolution in 8 groups of 2 channels: whole groups go."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3)
        self.grouped = nn.Conv2d(16, 16, 3, groups=8)
        self.conv2 = nn.Conv2d(16, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, 4, h - 4, w - 4)."""
        return self.conv2(torch.relu(self.grouped(torch.relu(self.conv1(x)))))


class Depthwise(nn.Module):
    """Pointwise, depthwise, pointwise, as in mobile networks."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(3, 12, 1, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.depthwise = nn.Conv2d(12, 12, 3, groups=12, padding=1)
        self.act = nn.PReLU(12)
        self.project = nn.Conv2d(12, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, 5, h, w)."""
        return self.project(self.act(self.depthwise(torch.nn.functional.hardswish(self.norm(self.expand(x))))))


class GroupNormed(nn.Module):
    """GroupNorm with 4 groups of 3 channels: only whole groups can go without changing its statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 12, 3)
        self.norm = nn.GroupNorm(4, 12)
        self.conv2 = nn.Conv2d(12, 5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, 5, h - 4, w - 4)."""
        return self.conv2(torch.relu(self.norm(self.conv1(x))))


class Concat(nn.Module):
    """Two branches and the input itself side by side, then a norm over all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 6, 3, padding=1)
        self.right = nn.Conv2d(3, 10, 1)
        self.norm = nn.BatchNorm2d(19)
        self.last = nn.Conv2d(19, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, 4, h, w)."""
        return self.last(torch.relu(self.norm(torch.cat([self.left(x), x, self.right(x)], dim=1))))


class Decoder(nn.Module):
    """Transposed convolutions, one of them grouped, and a scale for each channel that is a plain parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.up1 = nn.ConvTranspose2d(8, 12, 2, stride=2)
        self.norm = nn.InstanceNorm2d(12, affine=True)
        self.scale = nn.Parameter(torch.full((12, 1, 1), 0.5))
        self.up2 = nn.ConvTranspose2d(12, 8, 2, stride=2, groups=2)
        self.last = nn.Conv2d(8, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, 1, 4h, 4w)."""
        return self.last(torch.tanh(self.up2(torch.relu(self.norm(self.up1(self.conv(x)))) * self.scale)))


class Signal(nn.Module):
    """One-dimensional: flatten over 10 steps, then linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(2, 8, 3, padding=1)
        self.norm = nn.BatchNorm1d(8)
        self.conv2 = nn.Conv1d(8, 6, 3, padding=1)
        self.hidden = nn.Linear(60, 20)
        self.head = nn.Linear(20, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores (n, 3) of a signal (n, 2, 10)."""
        x = torch.relu(self.conv2(torch.relu(self.norm(self.conv1(x)))))
        return self.head(torch.relu(self.hidden(x.flatten(1))))


class Volume(nn.Module):
    """Three-dimensional."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(1, 6, 3, padding=1)
        self.norm = nn.BatchNorm3d(6)
        self.conv2 = nn.Conv3d(6, 4, 3, padding=1)
        self.head = nn.Linear(4 * 27, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores (n, 2) of a volume (n, 1, 3, 3, 3)."""
        return self.head(self.conv2(torch.relu(self.norm(self.conv1(x)))).flatten(1))


class FeedForward(nn.Module):
    """A transformer's block without attention: the stream passes a LayerNorm and stays, the hidden layer can go."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.norm = nn.LayerNorm(8)
        self.up = nn.Linear(8, 32)
        self.down = nn.Linear(32, 8)
        self.head = nn.Linear(8, 20)

    def forward(self, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        """Token scores (n, length, 20) under "scores"."""
        x = self.embed(tokens)
        x = x + self.down(torch.nn.functional.gelu(self.up(self.norm(x))))
        return {"scores": self.head(x)}


class GroupedQueryAttention(nn.Module):
    """Llama-like attention: 4 query heads share 2 key and value heads, whose number is fixed in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(32)
        self.q = nn.Linear(32, 32)
        self.k = nn.Linear(32, 16)
        self.v = nn.Linear(32, 16)
        self.o = nn.Linear(32, 32)
        self.up = nn.Linear(32, 64)
        self.down = nn.Linear(64, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, length, 32) to the same."""
        n, length, _ = x.shape
        h = self.norm(x)
        q = self.q(h).view(n, length, 4, 8).transpose(1, 2)
        k, v = (layer(h).view(n, length, 2, 1, 8).permute(0, 2, 3, 1, 4) for layer in (self.k, self.v))
        k, v = (shared.expand(n, 2, 2, length, 8).reshape(n, 4, length, 8) for shared in (k, v))
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, 32)
        x = x + self.o(mixed)
        return x + self.down(torch.relu(self.up(self.norm(x))))


class ChannelMean(nn.Module):
    """Averages over channels: removing one changes the mean of the others."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3)
        self.conv2 = nn.Conv2d(8, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, 4, h - 4, w - 4)."""
        x = self.conv1(x)
        return self.conv2(x - x.mean(dim=1, keepdim=True))


class FixedWidth(nn.Module):
    """Reshapes to a number of channels that stands in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Conv2d(3, 6, 1)
        self.conv1 = nn.Conv2d(6, 8, 3)
        self.conv2 = nn.Conv2d(4, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Takes 8 channels for 2 x 4."""
        x = self.conv1(torch.relu(self.fine(x)))
        n, _, h, w = x.shape
        return self.conv2(x.view(n, 2, 4, h, w).sum(dim=1))


class Hanging(nn.Module):
    """Its forward pass never ends."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Waits for what nobody will do."""
        threading.Event().wait()
        return self.conv(x)


class Crashing(nn.Module):
    """Ends the process that runs it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Never returns."""
        raise SystemExit("no licence for this model")


IMAGE = (2, 3, 8, 8)
SHRINKABLE: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "residual": (Residual, (2, 1, 8, 8)),
    "grouped": (Grouped, IMAGE),
    "many groups": (ManyGroups, IMAGE),
    "depthwise": (Depthwise, IMAGE),
    "group norm": (GroupNormed, IMAGE),
    "concat": (Concat, IMAGE),
    "decoder": (Decoder, IMAGE),
    "signal": (Signal, (2, 2, 10)),
    "volume": (Volume, (2, 1, 3, 3, 3)),
}


def trained_like(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random parameters and norm statistics, as training would leave them: nothing is 0 or 1 by default any more."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
        for name, buffer in model.named_buffers():
            if buffer.is_floating_point():
                noise = torch.randn(buffer.shape, generator=generator)
                buffer.copy_(noise.abs() + 0.5 if name.endswith("var") else noise)
    return model
