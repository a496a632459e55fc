"""What could go at all: a search of all subsets of a layer's channels, to hold the dependency analysis against."""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from modelpress_runner.dependency.analyse import find_dependencies
from modelpress_runner.edits.axes import module_axis, shrink
from modelpress_runner.errors import CompressionError

Image = torch.Tensor
X = torch.randn((4, 3, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float64)

# What happens to the channels between two convolutions, without parameters. No Fourier transform: of every other
# channel it gives the same twice over, so these can go all at once, and the analysis, which has no rule for it, keeps
# them.
FUNCTIONS: Sequence[Callable[[Image], Image]] = (
    torch.relu,
    torch.sigmoid,
    torch.cos,
    lambda x: x.flip(1),
    lambda x: x + x.flip(1),
    lambda x: x.roll(1, 1),
    lambda x: x.repeat(1, 2, 1, 1),
    lambda x: x.repeat_interleave(2, 1),
    lambda x: torch.cat([x, torch.tanh(x)], 1),
    lambda x: F.glu(x, 1),
    lambda x: torch.mul(*x.chunk(2, 1)),
    lambda x: x[:, : x.shape[1] // 2] + x[:, x.shape[1] // 2 :],
    lambda x: F.pixel_shuffle(x, 2)[..., ::2, ::2],
    lambda x: F.pixel_unshuffle(x, 2).repeat_interleave(2, 2).repeat_interleave(2, 3),
    lambda x: F.channel_shuffle(x, 2),
    lambda x: x.view(x.shape[0], 2, -1, *x.shape[2:]).transpose(1, 2).flatten(1, 2),
    lambda x: torch.softmax(x, 1),
    lambda x: x.cumsum(1),
    lambda x: x - x.mean(1, keepdim=True),
    lambda x: x * x.sum(1, keepdim=True),
    lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),
    lambda x: F.normalize(x, dim=1),
)
# The same with parameters for each channel.
LAYERS: Sequence[Callable[[int], nn.Module]] = (
    nn.Identity,
    nn.BatchNorm2d,
    nn.PReLU,
    lambda n: nn.GroupNorm(2, n),
    lambda n: nn.GroupNorm(1, n),
    lambda n: nn.Conv2d(n, n, 1, groups=n),
)


class Net(nn.Module):
    """A convolution to one of `widths` channels, a layer, up to two functions of channels, a convolution."""

    def __init__(self, seed: int, widths: Sequence[int] = (4, 4, 6, 6, 8)) -> None:
        super().__init__()
        dice = random.Random(seed)
        torch.manual_seed(seed)
        while True:
            self.channels = dice.choice(widths)
            self.layer = dice.choice(LAYERS)(self.channels)
            self.functions = dice.choices(FUNCTIONS, k=dice.randint(0, 2))
            try:
                taken = self.after(self.layer(torch.zeros(1, self.channels, 2, 2))).shape[1]
            except RuntimeError:  # nothing for this many channels
                continue
            break
        self.a, self.b = nn.Conv2d(3, self.channels, 1), nn.Conv2d(taken, 3, 1)
        for parameter in self.parameters():
            nn.init.normal_(parameter)
        self.double().eval()

    def after(self, x: Image) -> Image:
        for function in self.functions:
            x = function(x)
        return x

    def forward(self, x: Image) -> Image:
        return self.b(self.after(self.layer(self.a(x))))


def can_go(model: Net, gone: torch.Tensor) -> bool:
    """Whether the first convolution works without these channels, with some cut of the second one's inputs.

    With weights of its own for each input the second gives the same if and only if what it takes, channel by channel,
    is what it took before, those left out that its cut takes away. Whether there is such a cut a search from the first
    channel on finds out.
    """
    masked, small = copy.deepcopy(model.layer), copy.deepcopy(model.layer)
    with torch.no_grad():
        if any(True for _ in masked.parameters()):
            view = module_axis(masked, "layer", "out")
            for tensor in view.parameters:
                getattr(masked, tensor)[~view.keep_mask(tensor, getattr(masked, tensor), ~gone)] = 0
            try:
                shrink(module_axis(small, "layer", "out"), ~gone)
            except CompressionError:
                return False
        given = model.a(X)
        try:
            # A masked convolution gives zeros, a shrunk one what is left.
            before = model.after(masked(given.masked_fill(gone.view(-1, 1, 1), 0)))
            after = model.after(small(given[:, ~gone]))
        except (RuntimeError, TypeError):  # its code has other parts to work with, or none
            return False
    rows = iter(before.unbind(1))
    return all(any(torch.allclose(row, other, rtol=1e-9, atol=1e-12) for row in rows) for other in after.unbind(1))


def could_and_may(model: Net) -> tuple[set[int], set[int]]:
    """The first convolution's channels that can go, in some subset of up to half of them, and those that may.

    Of an only one that is left much is right by chance.
    """
    channels = model.channels
    subsets = itertools.chain.from_iterable(
        itertools.combinations(range(channels), count) for count in range(1, channels // 2 + 1)
    )
    possible: set[int] = set()
    for subset in subsets:
        if not set(subset) <= possible:
            gone = torch.zeros(channels, dtype=torch.bool)
            gone[list(subset)] = True
            if can_go(model, gone):
                possible |= set(subset)
    found = find_dependencies(model, X)
    axis = found.output("a")
    assert axis is not None
    return possible, {channel for channel, unit in enumerate(axis.units) if unit not in found.frozen}
