"""Every pruning method passes the same suite; what each scores is worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import modelpress as mp
from modelpress.api.v1alpha1 import DATA_DRIVEN, Prune
from modelpress.api.v1alpha1.stages import PruneAlgorithm
from modelpress_runner.methods.context import StageContext, Transform
from modelpress_runner.methods.prune.protocol import PruneMethod
from modelpress_runner.methods.prune.registry import METHODS, method
from modelpress_runner.methods.prune.selection import select
from modelpress_runner.methods.prune.statistics import collect
from modelpress_runner.stages.prune import steps

MODULES = {
    "Conv1d": nn.Conv1d(4, 6, 3, groups=2),
    "Conv2d": nn.Conv2d(4, 6, 3),
    "Conv3d": nn.Conv3d(2, 6, 2),
    "ConvTranspose1d": nn.ConvTranspose1d(4, 6, 3, groups=2),
    "ConvTranspose2d": nn.ConvTranspose2d(4, 6, 3),
    "ConvTranspose3d": nn.ConvTranspose3d(2, 6, 2),
    "Linear": nn.Linear(4, 6),
}


def generator(seed: int = 0) -> torch.Generator:
    """A generator of its own."""
    return torch.Generator().manual_seed(seed)


def trainer(model: nn.Module) -> mp.TorchEvaluator:
    """Trains every part of `model` on its own, on random inputs: the loss is the sum of the squared outputs."""

    def training_func(model, optimizer, training_step, scheduler, max_steps, max_epochs):
        for _ in range(max_steps):
            optimizer.zero_grad()
            training_step(None, model).backward()
            optimizer.step()

    return mp.TorchEvaluator(
        training_func,
        lambda params: torch.optim.SGD(params, lr=0.1),
        lambda batch, model: sum(part(inputs(part)).square().sum() for part in model),
    )


def inputs(module: nn.Module) -> torch.Tensor:
    """Random inputs for one module, in its type."""
    channels = module.in_features if isinstance(module, nn.Linear) else module.in_channels
    sizes = [4] * (module.weight.dim() - 2)
    return torch.randn(2, channels, *sizes, dtype=module.weight.dtype)


def scores(each: PruneMethod, module: nn.Module, seed: int = 0) -> torch.Tensor:
    """The module's scores, collected over two steps if the method is data-driven."""
    if not each.needs.train:
        return each.score(module, generator(seed))
    model = nn.Sequential(module)
    chosen = select(model, Prune.model_validate({"algorithm": each.name, "configList": [{"sparsity": 0.5}]}), "here")
    return collect(StageContext(model, trainer(model), None, seed), chosen, 2, (0, 1), "here")["0"]


def masked(model: nn.Module, **settings: object) -> StageContext:
    """The state after one prune stage without a shrink."""
    context = StageContext(model, trainer(model), None, 0)
    for step in steps(Prune.model_validate({"speedup": False, **settings}), 0):
        assert isinstance(step, Transform)
        step.apply(context)
    return context


def filters(count: int) -> nn.Sequential:
    """A convolution whose filter k holds the value k everywhere."""
    conv = nn.Conv2d(2, count, 3)
    with torch.no_grad():
        conv.weight.copy_(torch.arange(float(count)).view(-1, 1, 1, 1).expand_as(conv.weight))
    return nn.Sequential(conv)


def test_the_registry_has_the_methods_of_the_api() -> None:
    """Names of the API and of the registry are the same."""
    assert set(METHODS) == set(PruneAlgorithm.__args__)
    assert {name: method(name).structured for name in METHODS} == {
        "level": False, "l1": True, "l2": True, "random": True, "taylor": True,
    }  # fmt: skip
    assert {name for name in METHODS if method(name).needs.train} == DATA_DRIVEN


@pytest.mark.parametrize("each", METHODS.values(), ids=METHODS)
class TestEveryMethod:
    """The protocol."""

    @pytest.mark.parametrize("type_name", MODULES)
    def test_scores_have_the_promised_shape(self, each: PruneMethod, type_name: str) -> None:
        """float64 on the CPU, one for each channel or weight, none negative, for every default type."""
        assert set(each.op_types) == set(MODULES)
        module = MODULES[type_name]
        found = scores(each, module)
        assert found.dtype is torch.float64
        assert found.shape == ((6,) if each.structured else module.weight.shape)
        assert bool((found >= 0).all())

    def test_scores_repeat_and_leave_the_module_alone(self, each: PruneMethod) -> None:
        """Same module, same generator, same scores; weights, gradients and the global random state stay."""
        module = nn.Conv2d(3, 5, 3)
        before, state = module.weight.detach().clone(), torch.get_rng_state()
        first, second = (scores(each, module, 4) for _ in range(2))
        assert torch.equal(first, second)
        assert torch.equal(module.weight, before)
        assert module.weight.grad is None
        assert not first.requires_grad
        assert torch.equal(torch.get_rng_state(), state)

    def test_half_precision_is_summed_in_double(self, each: PruneMethod) -> None:
        """Scores of bfloat16 weights are those of the same numbers in float64; gradients are as exact as they come."""
        module = nn.Linear(300, 4).bfloat16()
        same = nn.Linear(300, 4).double()
        with torch.no_grad():
            same.weight.copy_(module.weight)
        if each.needs.train:
            for model in (module, same):
                model.weight.grad = torch.full_like(model.weight, 0.5)
            collectors = [each.collector("x", model, trainer(nn.Sequential(model))) for model in (module, same)]
            for collector in collectors:
                collector.step()
            assert torch.equal(collectors[0].total(), collectors[1].total())
        else:
            assert torch.equal(each.score(module, generator()), each.score(same, generator()))

    def test_masks_cover_weight_and_bias(self, each: PruneMethod) -> None:
        """Masks are shaped and typed like the parameters, hold 0 and 1, and are applied at once."""
        model = nn.Sequential(nn.Conv2d(3, 8, 3).double(), nn.Linear(4, 8, bias=False))
        context = masked(model, algorithm=each.name, configList=[{"sparsity": 0.5}])
        assert {name: set(tensors) for name, tensors in context.masks.items()} == {
            "0": {"weight", "bias"},
            "1": {"weight"},
        }
        for name, tensors in context.masks.items():
            for parameter, mask in tensors.items():
                value = getattr(model.get_submodule(name), parameter)
                assert mask.shape == value.shape
                assert mask.dtype is value.dtype
                assert set(mask.unique().tolist()) <= {0.0, 1.0}
                assert bool((value[mask == 0] == 0).all())
            assert float(tensors["weight"].mean()) == 0.5
        assert float(context.masks["0"]["bias"].mean()) == (0.5 if each.structured else 1.0)

    @pytest.mark.parametrize("scope", ["local", "global"])
    def test_rounds_never_give_back(self, each: PruneMethod, scope: str) -> None:
        """From round to round zeros are only added, although weights change in between."""
        model = nn.Sequential(nn.Linear(6, 20), nn.Linear(20, 20))
        schedule = {"type": "linear", "rounds": 4}
        context = StageContext(model, trainer(model), None, 3)
        before: dict[str, torch.Tensor] = {}
        shares = []
        for step in steps(
            Prune.model_validate(
                {
                    "algorithm": each.name, "scope": scope, "speedup": False,
                    "configList": [{"sparsity": 0.8}], "schedule": schedule,
                }
            ),
            0,
        ):  # fmt: skip
            assert isinstance(step, Transform)
            step.apply(context)
            for name, tensors in context.masks.items():
                assert bool((tensors["weight"] <= before.get(name, tensors["weight"])).all())
                before[name] = tensors["weight"]
            zeros = sum(int((mask == 0).sum()) for mask in before.values())
            shares.append(round(zeros / (120 + 400), 2))
            with torch.no_grad():
                for module in model:
                    module.weight.copy_(torch.randn(module.weight.shape, generator=generator(9)))
        assert shares == sorted(shares)
        if scope == "local":
            assert shares == [0.2, 0.4, 0.6, 0.8]

    def test_a_step_run_twice_gives_the_same(self, each: PruneMethod) -> None:
        """A round that runs again from the same state, as after a restart, gives the same masks."""
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 20))
        (step,) = steps(
            Prune.model_validate({"algorithm": each.name, "speedup": False, "configList": [{"sparsity": 0.3}]}), 2
        )
        results = []
        for _ in range(2):
            twin = nn.Sequential(nn.Linear(6, 20))
            twin.load_state_dict(model.state_dict())
            context = StageContext(twin, trainer(twin), None, 7)
            step.apply(context)
            results.append(context.masks["0"]["weight"])
        assert torch.equal(*results)
        assert int((results[0] == 0).sum()) == 36

    def test_types_it_does_not_know_are_not_among_its_own(self, each: PruneMethod) -> None:
        """Norms and embeddings are pruned by no method unless named."""
        assert {"BatchNorm2d", "Embedding", "LayerNorm"}.isdisjoint(each.op_types)


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
