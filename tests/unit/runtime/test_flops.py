"""Our count is torch's."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from modelpress_runner.runtime.flops import FlopCount
from modelpress_runner.runtime.unfused import unfused

NETS = {
    "grouped and strided convolutions": (
        nn.Sequential(nn.Conv2d(4, 8, 3, groups=2, stride=2), nn.Conv2d(8, 8, 3, groups=8, padding=1, dilation=2)),
        torch.zeros(3, 4, 13, 9),
    ),
    "transposed convolution": (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), torch.zeros(2, 4, 5, 5)),
    "one dimension": (nn.Conv1d(3, 5, 4), torch.zeros(2, 3, 11)),
    "linear on sequences": (nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3, bias=False)), torch.zeros(2, 4, 7)),
    "attention": (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.zeros(2, 5, 8)),
    "recurrent": (nn.LSTM(5, 6, num_layers=2, batch_first=True), torch.zeros(2, 7, 5)),
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("fused", [False, True])
def test_it_is_what_torch_counts(name: str, fused: bool) -> None:
    """With fused kernels off, as MACs are counted, and on."""
    net, inputs = NETS[name]
    counts = []
    for counter in (FlopCount(), FlopCounterMode(display=False)):
        with torch.no_grad(), counter:
            if fused:
                net.eval()(inputs)
            else:
                with unfused():
                    net.eval()(inputs)
        counts.append(counter.total if isinstance(counter, FlopCount) else counter.get_total_flops())
    assert counts[0] == counts[1]
    assert counts[0] > 0 or fused


def test_operators_on_matrices() -> None:
    """2 mnk of each: 2*3*5*7, and four of them in a batch, twice."""
    with FlopCount() as counter:
        torch.mm(torch.zeros(3, 5), torch.zeros(5, 7))
        torch.bmm(torch.zeros(4, 3, 5), torch.zeros(4, 5, 7))
        torch.baddbmm(torch.zeros(4, 3, 7), torch.zeros(4, 3, 5), torch.zeros(4, 5, 7))
    assert counter.total == 210 + 840 + 840
