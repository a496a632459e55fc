"""Weights that make up for those that go: by hand on a few weights, and as stages."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from modelpress.api.v1alpha1 import Stage
from modelpress_runner.engine.run import run_stages
from modelpress_runner.errors import InvalidSpecError
from modelpress_runner.methods.prune.surgeon import (
    DAMPING,
    Cheapest,
    CheapestInGroups,
    Fixed,
    costs,
    inverse_factor,
    removed_in_turn,
)
from modelpress_runner.subject.subject import Subject


def matrix(*rows: tuple[float, ...]) -> torch.Tensor:
    """(1, rows, columns), float64."""
    return torch.tensor([rows], dtype=torch.float64)


def bits(text: str) -> torch.Tensor:
    """Bool, (1, 1, columns): 1 is what goes."""
    return torch.tensor([[[letter == "1" for letter in text]]])


def test_two_weights_by_hand() -> None:
    """H = (2 1; 1 2), damped by .01 2: diagonals 2.02. Without w_0 = 3 the other becomes 1 + 3 / 2.02. Each costs
    w^2 (H_jj - 1 / H_kk), what least squares leaves."""
    moments, weight = matrix((2, 1), (1, 2)), matrix((3, 1))
    gone, left = removed_in_turn(weight, inverse_factor(moments), Fixed(bits("10")), 128)
    assert left[0, 0].tolist() == pytest.approx([0, 1 + 3 / 2.02])
    assert torch.equal(gone, bits("10"))
    assert costs(weight, moments)[0, 0].tolist() == pytest.approx([9 * (2.02 - 1 / 2.02), 2.02 - 1 / 2.02])


def test_four_weights_are_those_of_least_squares() -> None:
    """Of two rows the first two columns go: w_K + w_R H_RK H_KK^-1, for each."""
    torch.manual_seed(0)
    inputs = torch.randn(50, 4, dtype=torch.float64) @ torch.randn(4, 4, dtype=torch.float64)
    moments = inputs.T @ inputs / 50
    weight = torch.randn(1, 2, 4, dtype=torch.float64)
    removed = bits("1100").expand(1, 2, 4)
    _, left = removed_in_turn(weight, inverse_factor(moments[None]), Fixed(removed), 128)
    damped = moments + DAMPING * moments.diagonal().mean() * torch.eye(4)
    wanted = weight[0, :, 2:] + weight[0, :, :2] @ damped[:2, 2:] @ torch.linalg.inv(damped[2:, 2:])
    assert torch.allclose(left[0, :, 2:], wanted)
    assert bool((left[0, :, :2] == 0).all())


def test_without_correlation_it_is_magnitude_times_the_inputs_norm() -> None:
    """Costs w^2 H_jj (as near as damping: + .075) are 16.., 4.., 9.., 4.. less: indices 1 and 3; nothing else moves."""
    moments, weight = torch.diag(torch.tensor([1.0, 4.0, 9.0, 16.0], dtype=torch.float64))[None], matrix((4, 1, 1, 0.5))
    factor, nothing = inverse_factor(moments), bits("0000")
    assert torch.equal(removed_in_turn(weight, factor, Cheapest(nothing, 1), 128)[0], bits("0001"))
    gone, left = removed_in_turn(weight, factor, Cheapest(nothing, 2), 128)
    assert torch.equal(gone, bits("0101"))
    assert left[0, 0].tolist() == [4, 0, 1, 0]
    assert torch.equal(removed_in_turn(weight, factor, Cheapest(bits("1000"), 2), 128)[0], bits("1001"))


def test_what_goes_next_depends_on_what_went() -> None:
    """Of each four weights one goes. Columns 0 and 4 say nearly the same: without 0, 4 doubles, and 5 is the least."""
    moments = torch.eye(8, dtype=torch.float64)[None].clone()
    moments[0, 0, 4] = moments[0, 4, 0] = 0.9
    weight = matrix((1, 5, 5, 5, 1, 1.5, 3, 3))
    gone, left = removed_in_turn(weight, inverse_factor(moments), CheapestInGroups(bits("00000000"), 2, 3, 4), 4)
    assert torch.equal(gone, bits("10000100"))
    assert left[0, 0].tolist() == pytest.approx([0, 5, 5, 5, 1 + 0.9 / 1.01, 0, 3, 3])
    half = CheapestInGroups(bits("00000000").expand(1, 2, 8), 2, 3, 4)  # of each place the cheaper row
    both = torch.cat([weight, 2 * weight], dim=1)
    assert removed_in_turn(both, inverse_factor(moments), half, 4)[0][0].sum(dim=1).tolist() == [2, 0]


def test_blocks_of_columns_are_one_sweep() -> None:
    """300 columns: what is given goes alike whether updates wait for 128 columns or for 4, and counts are exact."""
    torch.manual_seed(0)
    inputs = torch.randn(400, 300, dtype=torch.float64)
    factor = inverse_factor((inputs.T @ inputs / 400)[None])
    weight = torch.randn(1, 5, 300, dtype=torch.float64)
    gone, left = removed_in_turn(weight, factor, Cheapest(torch.zeros_like(weight, dtype=torch.bool), 701), 128)
    assert int(gone.sum()) == 701
    again = removed_in_turn(weight, factor, Fixed(gone), 4)[1]
    assert torch.allclose(left, again)
    assert bool((left[gone] == 0).all())
    assert bool((left[~gone] != 0).all())


def net() -> nn.Sequential:
    """Two linear layers, alike for every call."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 6))


def data() -> list[torch.Tensor]:
    """Inputs that depend on each other."""
    generator = torch.Generator().manual_seed(2)
    mixed = torch.randn(5, 12, generator=generator)
    return [torch.randn(64, 5, generator=generator) @ mixed for _ in range(3)]


def pruned(model: nn.Module, algorithm: str, **block: Any) -> Any:
    """What comes of a stage on `data`."""
    stage = {"prune": {"algorithm": algorithm, "shrink": False, "configList": [{}], **block}}
    subject = Subject(model, None, data()[0], data())
    return run_stages(subject, [Stage.model_validate(stage)], seed=0, scores=False)


def moved(model: nn.Module) -> float:
    """How far its outputs are from those of `net`."""
    with torch.no_grad():
        return sum(float((model(batch) - net()(batch)).square().mean()) for batch in data())


@pytest.mark.parametrize(
    ("block", "most"), [({"sparsity": 0.5}, 0.6), ({"pattern": "2:4"}, 0.7), ({"pattern": "2x2", "sparsity": 0.5}, 0.8)]
)
def test_outputs_move_less_than_with_masks_alone(block: dict[str, Any], most: float) -> None:
    """Single weights, N:M and blocks, beside the better of wanda and level; and just so many weights go."""
    made = {algorithm: pruned(net(), algorithm, **block) for algorithm in ("sparse_gpt", "wanda", "level")}
    errors = {algorithm: moved(outcome.model) for algorithm, outcome in made.items()}
    assert errors["sparse_gpt"] < most * min(errors["wanda"], errors["level"])
    for name in ("0", "2"):
        weight: Any = made["sparse_gpt"].model.get_submodule(name).weight
        mask = made["sparse_gpt"].masks[name]["weight"]
        assert float(mask.mean()) == 0.5
        assert torch.equal(weight == 0, mask == 0)
    if block.get("pattern") == "2:4":
        assert bool((mask.view(6, 4, 4).sum(dim=2) == 2).all())


def test_a_layer_is_fitted_to_what_the_pruned_ones_before_it_give() -> None:
    """The second layer's new weights are those for the inputs that it gets from the first one as it is by then."""
    made = pruned(net(), "sparse_gpt", sparsity=0.5)
    with torch.no_grad():
        inputs = torch.cat([made.model[:2](batch) for batch in data()]).double()
    factor = inverse_factor((inputs.T @ inputs / len(inputs))[None])
    weight: Any = net()[2].weight
    nothing = torch.zeros(1, 6, 16, dtype=torch.bool)
    wanted = removed_in_turn(weight.detach().double()[None], factor, Cheapest(nothing, 48), 128)[1]
    assert torch.allclose(made.model[2].weight.double(), wanted[0], atol=1e-5)


def test_convolutions_with_groups_and_kernels() -> None:
    """Columns lie as the kernel meets its inputs: outputs move less than with the same weights merely left out."""
    torch.manual_seed(3)
    inputs = torch.randn(8, 4, 6, 6).cumsum(dim=2).cumsum(dim=3)
    inputs[:, 1] += 2 * inputs[:, 0]
    for conv in (
        nn.Conv2d(4, 6, 3, groups=2, padding=1, stride=2),
        nn.Conv2d(4, 4, (1, 3)),
        nn.Conv2d(4, 4, 3, groups=4),
    ):
        model = nn.Sequential(conv)
        before: Any = conv.weight.detach().clone()
        dense = conv(inputs)
        stage = {"prune": {"algorithm": "sparse_gpt", "shrink": False, "sparsity": 0.5, "configList": [{}]}}
        outcome = run_stages(
            Subject(model, None, inputs, [inputs]), [Stage.model_validate(stage)], seed=0, scores=False
        )
        mask = outcome.masks["0"]["weight"]
        error = (outcome.model(inputs) - dense).square().sum()
        with torch.no_grad():
            outcome.model[0].weight.copy_(before * mask)
        assert error < 0.95 * (outcome.model(inputs) - dense).square().sum()
        assert int(mask.sum()) == mask.numel() - mask.numel() // 2


def test_a_global_ranking_and_a_threshold_make_up_too() -> None:
    """As many go over all layers together; what is left is no longer what it was."""
    made = pruned(net(), "sparse_gpt", sparsity=0.5, scope="global")
    weights = [made.model[0].weight, made.model[2].weight]
    assert sum(int((weight == 0).sum()) for weight in weights) == (12 * 16 + 16 * 6) // 2
    kept = weights[0] != 0
    assert not torch.allclose(weights[0][kept], net()[0].weight[kept])  # type: ignore[index]


def test_a_class_that_computes_otherwise_is_refused() -> None:
    """With the entry and what to do."""

    class Own(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input) * 2

    with pytest.raises(InvalidSpecError, match=r"Own has a forward of its own; exclude it, or take wanda") as caught:
        pruned(nn.Sequential(Own(12, 4)), "sparse_gpt", sparsity=0.5)
    assert caught.value.path == "spec.stages[0].prune.configList[0]"
