"""Every pruning method passes the shipped suite; what each scores is worked out by hand."""

from __future__ import annotations

import pkgutil

import pytest
import torch
from torch import nn

from modelpress.api.v1alpha1 import Prune
from modelpress.api.v1alpha1.algorithms import CHANNEL_TYPES, algorithm, algorithms, names
from modelpress_runner.methods.context import StageContext, Transform
from modelpress_runner.methods.prune import scores
from modelpress_runner.methods.prune.protocol import PruneMethod
from modelpress_runner.methods.prune.registry import method, methods
from modelpress_runner.stages.prune import steps
from modelpress_runner.testing.prune_methods import MODULES, PruneMethodContract, generator, masked


def filters(count: int) -> nn.Sequential:
    """A convolution whose filter k holds the value k everywhere."""
    conv = nn.Conv2d(2, count, 3)
    with torch.no_grad():
        conv.weight.copy_(torch.arange(float(count)).view(-1, 1, 1, 1).expand_as(conv.weight))
    return nn.Sequential(conv)


def test_the_table_and_the_modules_are_the_same() -> None:
    """A module of scores for each row, a row for each module."""
    assert {module.name for module in pkgutil.iter_modules(scores.__path__)} == set(names("prune")) == set(methods())
    needs = {row.name: set(row.needs) for row in algorithms("prune") if row.needs}
    gradients = {key: {"gradients"} for key in ("taylor", "movement", "gradient", "snip", "snip_momentum", "fisher")}
    assert needs == gradients | {key: {"activations"} for key in ("apoz", "mean_activation", "wanda", "sparse_gpt")}


class TestEveryMethod(PruneMethodContract):
    """The contract."""

    @pytest.fixture(params=names("prune"))
    def each(self, request: pytest.FixtureRequest) -> PruneMethod:
        """Each in its turn."""
        return method(request.param)

    test_what_was_made_is_loaded_again = pytest.mark.long(PruneMethodContract.test_what_was_made_is_loaded_again)

    @pytest.mark.parametrize("type_name", CHANNEL_TYPES)
    def test_scores_are_never_negative(self, each: PruneMethod, type_name: str) -> None:
        """Of all that are shipped, for all of the seven types; but movement says in which direction."""
        if each.name == "slim":
            pytest.skip("takes norms")
        if each.name == "sparse_gpt":
            assert set(each.op_types) == {"Conv1d", "Conv2d", "Linear"}
            type_name = each.op_types[CHANNEL_TYPES.index(type_name) % 3]
        else:
            assert set(each.op_types) == set(CHANNEL_TYPES)
        assert each.name == "movement" or bool((self.scores(each, MODULES[type_name]()) >= 0).all())

    def test_types_it_does_not_know_are_not_among_its_own(self, each: PruneMethod) -> None:
        """Norms are pruned by none but slim unless named, and embeddings by none at all."""
        known = {"Embedding", "LayerNorm"} | (set() if each.name == "slim" else {"BatchNorm2d"})
        assert known.isdisjoint(algorithm("prune", each.name).default_types)


@pytest.mark.parametrize(("count", "sparsity", "kept"), [(5, 0.2, [1, 2, 3, 4]), (10, 0.6, [6, 7, 8, 9])])
def test_l1_keeps_the_largest_filters(count: int, sparsity: float, kept: list[int]) -> None:
    """Of filters that hold 0, 1, 2, ... everywhere the small ones go, with their bias."""
    context = masked(filters(count), algorithm="l1", configList=[{"opTypes": ["Conv2d"], "sparsity": sparsity}])
    mask = context.masks["0"]
    assert mask["weight"].shape == (count, 2, 3, 3)
    assert torch.nonzero(mask["weight"].flatten(1).all(dim=1)).flatten().tolist() == kept
    assert torch.nonzero(mask["bias"]).flatten().tolist() == kept
    assert int(mask["weight"].sum()) == len(kept) * 18


def test_scores_by_hand() -> None:
    """Rows (3, -4) and (5, 0): L1 7 and 5, L2 5 and 5; level the magnitudes; a bias counts for none of them."""
    linear = nn.Linear(2, 2)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[3.0, -4], [5, 0]]))
        linear.bias.copy_(torch.tensor([100.0, 200]))
    assert method("l1").score(linear, generator()).tolist() == [7.0, 5.0]
    assert method("l2").score(linear, generator()).tolist() == [5.0, 5.0]
    assert method("level").score(linear, generator()).tolist() == [[3.0, 4.0], [5.0, 0.0]]


def test_transposed_convolutions_are_scored_by_their_outputs() -> None:
    """Weight (in 4, out per group 2): output 2g + p is column p of the rows of group g."""
    up = nn.ConvTranspose1d(4, 4, 1, groups=2)
    with torch.no_grad():
        up.weight.copy_(torch.arange(8.0).view(4, 2, 1))
    assert method("l1").score(up, generator()).tolist() == [0 + 2, 1 + 3, 4 + 6, 5 + 7]


def test_random_depends_on_seed_stage_round_and_layer_only() -> None:
    """Another seed or another stage draws other channels; another layer's presence changes nothing."""

    def removed(model: nn.Module, seed: int, stage: int) -> list[int]:
        context = StageContext(model, None, None, seed)
        settings = {"algorithm": "random", "speedup": False, "configList": [{"sparsity": 0.5}]}
        (step,) = steps(Prune.model_validate(settings), stage)
        assert isinstance(step, Transform)
        step.apply(context)
        return torch.nonzero(context.masks["0"]["bias"] == 0).flatten().tolist()

    alone = removed(nn.Sequential(nn.Linear(2, 40)), 0, 0)
    assert len(alone) == 20
    assert removed(nn.Sequential(nn.Linear(2, 40), nn.Linear(40, 7)), 0, 0) == alone
    assert removed(nn.Sequential(nn.Linear(2, 40)), 1, 0) != alone
    assert removed(nn.Sequential(nn.Linear(2, 40)), 0, 1) != alone
