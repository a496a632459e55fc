"""target.uniform: layers that are alike but for their number keep one width, in global rankings and budgets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import modelpress as mp
from modelpress.api.errors import SpecError
from modelpress_runner.errors import InvalidSpecError
from modelpress_runner.methods.prune.ranking import Candidates
from modelpress_runner.methods.prune.uniform import as_families, merged


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(x)))


class Net(nn.Module):
    """Of two alike layers the first has channels whose norms are spread; a third of another name stands behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.last, self.head = nn.ModuleList([Layer(), Layer()]), Layer(), nn.Linear(8, 2)
        with torch.no_grad():
            self.layers[0].up.weight.mul_(torch.linspace(0, 2, 16)[:, None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(self.last(x))


X = torch.randn((4, 8), generator=torch.Generator().manual_seed(0))
ENTRIES = {"configList": [{"opNamesRe": [r".*\.up"]}]}


def widths(block: dict[str, Any], uniform: bool) -> list[int]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Net()
    result = mp.compress(net, [{"prune": {**ENTRIES, **block}}], None, X, target={"uniform": uniform})
    model = result.model
    return [layer.up.out_features for layer in (*model.layers, model.last)]


BUDGET = {"budget": {"metric": "macs", "maxRatio": 0.6}}


@pytest.mark.parametrize("block", [{"sparsity": 0.5, "scope": "global"}, BUDGET])
def test_alike_layers_keep_one_width(block: dict[str, Any]) -> None:
    """And no less goes than without it, but for a step."""
    free, alike = widths(block, False), widths(block, True)
    assert free[0] < free[1]
    assert alike[0] == alike[1]
    assert alike[2] != alike[0]
    assert abs(sum(alike) - sum(free)) <= 2


def test_what_stands_for_several_layers() -> None:
    """The lowest of each together, each layer's scores by its norm; of names those that are equal."""
    one, other = (
        Candidates(torch.tensor(scores, dtype=torch.float64), None, torch.zeros(2, dtype=torch.bool))
        for scores in ((4.0, 3.0), (6.0, 8.0))
    )
    torch.testing.assert_close(merged([one, other], False).scores, torch.tensor([1.2, 1.6], dtype=torch.float64))
    torch.testing.assert_close(merged([one, other], True).scores, torch.tensor([9.0, 12.0], dtype=torch.float64))
    assert as_families(["a", "b", "", "a", ""]) == [[0, 3], [1], [2], [4]]


def test_what_makes_layers_differ_is_refused() -> None:
    """Two sparsities, thresholds, searches."""
    entries = [{"opNames": [f"layers.{number}.up"], "sparsity": 0.25 * (number + 1)} for number in range(2)]
    with pytest.raises(
        InvalidSpecError, match=r"'layers\.0\.up' and 'layers\.1\.up' are asked to lose different shares"
    ):
        widths({"configList": entries}, True)
    with pytest.raises(InvalidSpecError, match="a threshold says what goes"):
        widths({"sparsityThreshold": 0.1}, True)
    with pytest.raises(SpecError, match=r"target\.uniform keeps layers alike"):
        widths({"sparsity": 0.5, "search": {"type": "sensitivity"}}, True)
