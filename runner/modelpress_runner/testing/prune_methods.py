"""The contract of a pruning method, as tests that any method can run (needs pytest).

    class TestMyMethod(PruneMethodContract):
        algorithm = "mine"                      # the name of its row, which is registered by then
        modules = {**MODULES, "MyLayer": lambda: MyLayer(4, 6)}     # if the row's default types are not torch's own

What a test asks depends on the row: its granularity (a score for each weight, or for each output channel) and its needs
(scores that need activations or gradients are collected from a pass over data, the others come from the module alone).
Several methods are tested by one class if it overrides the fixture `each`. What prunes is tried as a stage by itself,
as part of a `together`, and in a loop of the user's own; with other evaluators than plain PyTorch if a class overrides
`net`, `evaluator` and the fixture `way`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from modelpress.api.v1alpha1 import Prune, Stage
from modelpress.api.v1alpha1.algorithms import algorithm
from modelpress_runner.artifact.load import load
from modelpress_runner.edits.masks import Masks
from modelpress_runner.engine.outcome import RecipeOutcome
from modelpress_runner.engine.run import run_stages
from modelpress_runner.evaluators.base import Evaluator
from modelpress_runner.evaluators.torch_evaluator import TorchEvaluator
from modelpress_runner.in_process.compress import compress
from modelpress_runner.in_process.prepare import prepare_compression
from modelpress_runner.methods.context import StageContext, Transform
from modelpress_runner.methods.prune.protocol import DataDrivenMethod, PruneMethod
from modelpress_runner.methods.prune.registry import method
from modelpress_runner.methods.prune.selection import select
from modelpress_runner.methods.prune.statistics import collect
from modelpress_runner.passes.collectors import TrainingPass
from modelpress_runner.runtime import rng
from modelpress_runner.stages.prune import steps
from modelpress_runner.subject.subject import Subject

# A small module of 6 outputs by the name of its type.
MODULES: Mapping[str, Callable[[], nn.Module]] = {
    "Conv1d": lambda: nn.Conv1d(4, 6, 3, groups=2),
    "Conv2d": lambda: nn.Conv2d(4, 6, 3),
    "Conv3d": lambda: nn.Conv3d(2, 6, 2),
    "ConvTranspose1d": lambda: nn.ConvTranspose1d(4, 6, 3, groups=2),
    "ConvTranspose2d": lambda: nn.ConvTranspose2d(4, 6, 3),
    "ConvTranspose3d": lambda: nn.ConvTranspose3d(2, 6, 2),
    "Linear": lambda: nn.Linear(4, 6),
    "BatchNorm1d": lambda: norm(nn.BatchNorm1d(6)),
    "BatchNorm2d": lambda: norm(nn.BatchNorm2d(6)),
    "BatchNorm3d": lambda: norm(nn.BatchNorm3d(6)),
}


def norm(module: nn.Module) -> nn.Module:
    """The norm with factors that differ."""
    weight: Any = module.weight
    nn.init.uniform_(weight, 0.1, 1.0)
    return module


def generator(seed: int = 0) -> torch.Generator:
    """A generator of its own."""
    return torch.Generator().manual_seed(seed)


def inputs(module: nn.Module) -> torch.Tensor:
    """Random inputs for a linear or convolutional module or a batch norm, in the type of its weight."""
    weight: Any = module.weight
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return torch.randn(2, module.num_features, *[4] * int(type(module).__name__[-2]), dtype=weight.dtype)
    channels: Any = module.in_features if isinstance(module, nn.Linear) else module.in_channels
    return torch.randn(2, channels, *[4] * (weight.dim() - 2), dtype=weight.dtype)


def loss_of(model: nn.Module, inputs: Callable[[nn.Module], torch.Tensor] = inputs) -> torch.Tensor:
    """The sum of the squared outputs of every child on its own, on random inputs."""
    losses = [part(inputs(part)).square().sum() for part in model.children()]
    return torch.stack([loss.float() for loss in losses]).sum()


def trainer(model: nn.Module) -> Evaluator:
    """Trains by `loss_of`."""

    def training_func(
        model: Any, optimizer: Any, training_step: Any, scheduler: Any, max_steps: Any, max_epochs: Any
    ) -> None:
        for _ in range(max_steps):
            optimizer.zero_grad()
            training_step(None, model).backward()
            optimizer.step()

    return TorchEvaluator(
        training_func, lambda params: torch.optim.SGD(params, lr=0.1), lambda batch, model: loss_of(model)
    )


def _nothing() -> None:
    """Nobody watches."""


def masked(model: nn.Module, evaluator: Evaluator | None = None, **settings: Any) -> StageContext:
    """The state after one prune stage without a shrink."""
    context = StageContext(model, evaluator or trainer(model), None, 0)
    for step in steps(Prune.model_validate({"speedup": False, **settings}), 0):
        assert isinstance(step, Transform)
        step.apply(context)
    return context


class PruneMethodContract:
    """Tests that every pruning method passes. Subclass it under a name that begins with Test."""

    algorithm: ClassVar[str] = ""
    # Makes a module of each of the row's default types.
    modules: ClassVar[Mapping[str, Callable[[], nn.Module]]] = MODULES

    @pytest.fixture
    def each(self) -> PruneMethod:
        """The method."""
        return method(self.algorithm)

    def scores(self, each: PruneMethod, module: nn.Module, seed: int = 0) -> torch.Tensor:
        """The module's scores, collected over two steps if the method is data-driven."""
        if not each.facts.data_driven:
            return each.score(module, generator(seed))
        model = nn.Sequential(module)
        prune = Prune.model_validate({"algorithm": each.name, "configList": [{"sparsity": 0.5}]})
        context = StageContext(model, trainer(model), None, seed)
        found = collect(context, select(model, prune, "here"), 2, (0, 1), "here")["0"]
        assert isinstance(each, DataDrivenMethod)
        return each.scores(found, module)

    def layer(self, each: PruneMethod, inputs: int, outputs: int) -> nn.Module:
        """A module that the method prunes: a linear layer, else a norm of so many outputs, which takes as many."""
        if "Linear" in each.op_types:
            return nn.Linear(inputs, outputs)
        if "BatchNorm1d" in each.op_types:
            return norm(nn.BatchNorm1d(outputs))
        pytest.skip("takes neither Linear nor BatchNorm1d")

    def asked(self, each: PruneMethod, model: nn.Module, share: float, **entry: Any) -> dict[str, Any]:
        """The block that has the method remove this share of every module.

        A method that says itself what goes (`threshold` of its row) is asked for nothing. Then so many weights of each
        module are set to zero before: what remains of it must be just that.
        """
        if each.facts.threshold is None:
            return {"algorithm": each.name, "configList": [{**entry, "sparsity": share}]}
        with torch.no_grad():
            for part in model.modules():
                weight: Any = getattr(part, "weight", None)
                if weight is not None:
                    weight.view(-1)[: round(share * weight.numel())] = 0.0
        return {"algorithm": each.name, "configList": [{**entry}]}

    def shape(self, each: PruneMethod, module: nn.Module) -> tuple[int, ...]:
        """Of the scores of a module of 6 outputs."""
        weight: Any = module.weight
        return tuple(weight.shape) if each.facts.granularity == "weight" else (6,)

    def test_scores_have_the_promised_shape(self, each: PruneMethod) -> None:
        """On the device of the weight, finite, one for each channel, in float64, or weight, for every default type."""
        assert each.op_types
        for type_name in each.op_types:
            module = self.modules[type_name]()
            found = self.scores(each, module)
            weight: Any = module.weight
            wanted = torch.float32 if each.facts.granularity == "weight" else torch.float64
            assert found.dtype is wanted, type_name
            assert found.device == weight.device, type_name
            assert found.shape == self.shape(each, module), type_name
            assert bool(torch.isfinite(found).all()), type_name

    def test_scores_repeat_and_leave_the_module_alone(self, each: PruneMethod) -> None:
        """Same module, same generator, same scores; weights, gradients, hooks and the global random state stay."""
        module = self.modules[each.op_types[0]]()
        weight: Any = module.weight
        before, state = weight.detach().clone(), torch.get_rng_state()
        first, second = (self.scores(each, module, 4) for _ in range(2))
        assert torch.equal(first, second)
        assert torch.equal(weight, before)
        assert weight.grad is None
        assert not first.requires_grad
        assert torch.equal(torch.get_rng_state(), state)
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks
        assert module.training

    def test_half_precision_is_summed_in_double(self, each: PruneMethod) -> None:
        """Scores of bfloat16 weights are those of the same numbers in float64; gradients are as exact as they come.

        Those of single weights are in float32 then, which is as exact for numbers that are not summed.
        """
        module, same = self.layer(each, 300, 4).bfloat16(), self.layer(each, 300, 4).double()
        same.load_state_dict(module.state_dict())
        if not each.facts.data_driven:
            assert torch.equal(each.score(module, generator()).double(), each.score(same, generator()))
            return
        totals = []
        for model in (module, same):
            parent = nn.Sequential(model)
            evaluator = trainer(parent)
            evaluator.bind(parent)
            assert isinstance(each, DataDrivenMethod)
            collector = each.collector("0", model, TrainingPass(evaluator))
            collector.attach()
            weight: Any = model.weight
            parent(torch.full((2, 300), 0.5, dtype=weight.dtype))
            weight.grad = torch.full_like(weight, 0.5)
            collector.update()
            totals.append(collector.compute())
            evaluator.unbind()
        if "activations" in each.facts.needs:  # which are as exact as the forward pass is
            assert torch.allclose(totals[0], totals[1], rtol=0.05, atol=0.05)
        else:
            assert torch.equal(*totals)

    # Stages: alone, along with a training, and in a loop of the user's own --------------------------------------------

    @pytest.fixture(params=["stage", "together", "loop"])
    def way(self, request: pytest.FixtureRequest) -> str:
        """How a stage is carried out."""
        way: str = request.param
        return way

    def net(self, *modules: nn.Module) -> nn.Module:
        """A model whose children are these, called "0", "1" and so on."""
        return nn.Sequential(*modules)

    def evaluator(self, model: nn.Module) -> Evaluator:
        """Trains every child on its own; one step an epoch where it knows epochs only."""
        return trainer(model)

    def pruned(
        self, way: str, model: nn.Module, settings: dict[str, Any], seed: int = 0, watch: Callable[[], None] = _nothing
    ) -> Masks:
        """The masks of one prune stage, and no shrink. Rounds are steps where it goes along with a training.

        Args:
            way: as the fixture gives it.
            settings: of the block.
            watch: called behind each round, or before each step and at the end.
        """
        block = {"speedup": False, **settings}
        if way == "stage":
            context = StageContext(model, self.evaluator(model), None, seed)
            for step in steps(Prune.model_validate(block), 0):
                assert isinstance(step, Transform)
                step.apply(context)
                watch()
            return context.masks
        schedule = dict(block.pop("schedule", {}))
        rounds = schedule.pop("rounds", None)
        # What takes zeros takes them before a step has moved them.
        begin = 1 if algorithm("prune", block["algorithm"]).threshold is None else 0
        counted = {"startStep": begin}
        if rounds is not None:
            counted |= {"endStep": begin + rounds, "frequency": 1}
        part = {"prune": {**block, "schedule": {**schedule, **counted}}}
        run = self._along if way == "together" else self._in_a_loop
        with rng.fork_rng(seed):
            return run(model, part, 2 if rounds is None else 1 + rounds, seed, watch)

    def _along(self, model: nn.Module, part: dict[str, Any], count: int, seed: int, watch: Callable[[], None]) -> Masks:
        evaluator = self.evaluator(model)
        bind = evaluator.bind

        def bound(model: nn.Module) -> None:
            bind(model)
            evaluator.before_optimizer_step(watch)

        evaluator.bind = bound  # type: ignore[method-assign]
        length = {"maxSteps" if evaluator.supports_max_steps else "epochs": count}
        stage = Stage.model_validate({"together": {**length, "of": [part]}})
        outcome = run_stages(Subject(model, evaluator), [stage], seed=seed, scores=False)
        watch()
        return outcome.masks

    def _in_a_loop(
        self, model: nn.Module, part: dict[str, Any], count: int, seed: int, watch: Callable[[], None]
    ) -> Masks:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        compression = prepare_compression(model, [{"together": {"of": [part]}}], optimizers=optimizer, seed=seed)
        callbacks = compression.callbacks
        callbacks.on_train_begin()
        for number in range(count):
            callbacks.on_step_begin(number)
            optimizer.zero_grad()
            loss_of(model).backward()
            callbacks.on_before_optimizer_step()
            watch()
            optimizer.step()
            callbacks.on_after_optimizer_step()
        watch()
        callbacks.on_train_end()
        return compression.result.masks

    def test_masks_cover_weight_and_bias(self, each: PruneMethod, way: str) -> None:
        """Masks are shaped and typed like the parameters, hold 0 and 1, and are in force."""
        if not {"Conv2d", "Linear"} <= set(each.op_types):
            pytest.skip("takes no Conv2d and Linear")
        model = self.net(nn.Conv2d(3, 8, 3).double(), nn.Linear(4, 8, bias=False))
        masks = self.pruned(way, model, self.asked(each, model, 0.5))
        assert {name: set(tensors) for name, tensors in masks.items()} == {"0": {"weight", "bias"}, "1": {"weight"}}
        for name, tensors in masks.items():
            for parameter, mask in tensors.items():
                value = getattr(model.get_submodule(name), parameter)
                assert mask.shape == value.shape
                assert mask.dtype is value.dtype
                assert set(mask.unique().tolist()) <= {0.0, 1.0}
                assert bool((value[mask == 0] == 0).all())
            assert float(tensors["weight"].mean()) == 0.5
        assert float(masks["0"]["bias"].mean()) == (1.0 if each.facts.granularity == "weight" else 0.5)

    @pytest.mark.parametrize("scope", ["local", "global"])
    def test_rounds_never_give_back(self, each: PruneMethod, scope: str, way: str) -> None:
        """From round to round zeros are only added, although weights change in between."""
        if each.facts.threshold is not None:
            pytest.skip("goes to no sparsity")
        model = self.net(self.layer(each, 6, 20), self.layer(each, 20, 20))
        before: dict[str, torch.Tensor] = {}
        shares = []
        of = sum(value.numel() for name, value in model.named_parameters() if name.endswith("weight"))

        def look() -> None:
            zeros = 0
            for name, part in model.named_children():
                weight: Any = part.weight
                gone = weight.detach() == 0
                assert not bool((before.get(name, gone) & ~gone).any())
                before[name] = gone
                zeros += int(gone.sum())
                if way == "stage":
                    with torch.no_grad():
                        weight.copy_(torch.randn(weight.shape, generator=generator(9)))
            shares.append(round(zeros / of, 2))

        settings = {
            "algorithm": each.name,
            "scope": scope,
            "configList": [{"sparsity": 0.8}],
            "schedule": {"type": "linear", "rounds": 4},
        }
        self.pruned(way, model, settings, 3, look)
        assert shares == sorted(shares)
        assert shares[-1] > 0
        if scope == "local":
            assert shares == ([0.2, 0.4, 0.6, 0.8] if way == "stage" else [0.0, 0.0, 0.2, 0.4, 0.6, 0.8])

    def test_a_stage_run_twice_gives_the_same(self, each: PruneMethod, way: str) -> None:
        """A stage that runs again from the same state, as after a restart, gives the same masks."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            weights = self.layer(each, 6, 20).state_dict()
        results = []
        for _ in range(2):
            layer = self.layer(each, 6, 20)
            layer.load_state_dict(weights)
            model = self.net(layer)
            results.append(self.pruned(way, model, self.asked(each, model, 0.3), 7)["0"]["weight"])
        assert torch.equal(*results)
        assert float((results[0] == 0).float().mean()) == pytest.approx(0.3)

    # What holds of a stage by itself ----------------------------------------------------------------------------------

    def chain(self, each: PruneMethod) -> nn.Sequential:
        """A linear layer of 8 outputs, a norm, and a layer that takes them."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return nn.Sequential(nn.Linear(4, 8), norm(nn.BatchNorm1d(8)), nn.ReLU(), nn.Linear(8, 6))

    def of_chain(self, each: PruneMethod) -> str:
        """The module of the chain that the method prunes: its first layer, else the norm."""
        if not {"Linear", "BatchNorm1d"} & set(each.op_types):
            pytest.skip("takes neither Linear nor BatchNorm1d")
        return "0" if "Linear" in each.op_types else "1"

    def chain_evaluator(self) -> Evaluator:
        """Trains a chain on random inputs, alike for every call."""
        batch = torch.randn(16, 4, generator=generator(3))

        def training_func(
            model: Any, optimizer: Any, training_step: Any, scheduler: Any, max_steps: Any, max_epochs: Any
        ) -> None:
            for _ in range(max_steps):
                optimizer.zero_grad()
                training_step(batch, model).backward()
                optimizer.step()

        return TorchEvaluator(
            training_func,
            lambda params: torch.optim.SGD(params, lr=0.1),
            lambda batch, model: model(batch).square().mean(),
        )

    def after(self, model: nn.Module, *stages: dict[str, Any]) -> RecipeOutcome:
        """What comes of a recipe for a chain."""
        subject = Subject(model, self.chain_evaluator(), torch.randn(3, 4, generator=generator(5)))
        return run_stages(subject, [Stage.model_validate(stage) for stage in stages], seed=1, scores=False)

    def test_a_second_stage_like_the_first_changes_nothing(self, each: PruneMethod) -> None:
        """What is asked for is there already."""
        found = []
        for times in (1, 2):
            model = self.chain(each)
            block = {"shrink": False, **self.asked(each, model, 0.5, opNames=[self.of_chain(each)])}
            found.append(self.after(model, *[{"prune": block}] * times).masks)
        first, second = found
        assert first.keys() == second.keys()
        for name, tensors in first.items():
            assert all(torch.equal(mask, second[name][parameter]) for parameter, mask in tensors.items())

    def test_what_is_excluded_keeps_every_bit(self, each: PruneMethod) -> None:
        """Although the entries before select it."""
        model = self.chain(each)
        chosen = self.of_chain(each)
        block = {"shrink": False, **self.asked(each, model, 0.5)}
        block["configList"].append({"opNames": [chosen], "exclude": True})
        last = "3" if "Linear" in each.op_types else None
        if last is None:
            model.append(norm(nn.BatchNorm1d(6)))
            last = "4"
        before = {name: value.clone() for name, value in model.state_dict().items()}
        masks = self.after(model, {"prune": block}).masks
        assert set(masks) == {last}
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items() if name[0] != last)

    def test_what_is_masked_stays_zero_in_a_training(self, each: PruneMethod) -> None:
        """While the rest of the module moves."""
        model = self.chain(each)
        chosen = self.of_chain(each)
        block = {"shrink": False, **self.asked(each, model, 0.5, opNames=[chosen])}
        before = model.state_dict()[f"{chosen}.weight"].clone()
        outcome = self.after(model, {"prune": block}, {"finetune": {"maxSteps": 3}})
        weight: Any = outcome.model.get_submodule(chosen).weight
        gone = outcome.masks[chosen]["weight"] == 0
        assert bool(gone.any())
        assert bool((weight[gone] == 0).all())
        assert not torch.equal(weight[~gone], before[~gone])

    @pytest.mark.parametrize(("share", "left"), [(0.5, 4), (0.3, 6), (0.99, 1)])
    def test_what_depends_on_each_other_goes_together(self, each: PruneMethod, share: float, left: int) -> None:
        """A shrink takes floor(8 share) channels, of the layer, of the norm and of what follows, and leaves one.

        Of methods that score single weights it is the pattern 1xchannel that does.
        """
        if each.facts.threshold is not None:
            pytest.skip("goes to no sparsity")
        model = self.chain(each)
        block = self.asked(each, model, share, opNames=[self.of_chain(each)])
        if not each.structured:
            block["pattern"] = "1xchannel"
        outcome = self.after(model, {"prune": block})
        made: Any = outcome.model
        assert (made[0].out_features, made[1].num_features, made[3].in_features) == (left, left, left)
        assert not outcome.masks

    def test_what_was_made_is_loaded_again(self, each: PruneMethod, tmp_path: Path) -> None:
        """The artifact gives the same outputs, and as many zeros, without the code that made it."""
        model = self.chain(each)
        block = {"shrink": False, **self.asked(each, model, 0.5, opNames=[self.of_chain(each)])}
        inputs = torch.randn(3, 4, generator=generator(6))
        result = compress(model, [{"prune": block}], self.chain_evaluator(), inputs)
        result.save(tmp_path / "made")
        loaded = load(tmp_path / "made")
        with torch.no_grad():
            assert torch.allclose(loaded.eval()(inputs), result.model.eval()(inputs), atol=1e-6)
        zeros = [
            sum(int((value == 0).sum()) for value in each.state_dict().values()) for each in (result.model, loaded)
        ]
        assert zeros[0] == zeros[1]

    def test_its_row_is_complete(self, each: PruneMethod) -> None:
        """It is the object that the row names, the row says in a sentence what it does, and it can be collected if the
        row says that it looks at data."""
        assert each.facts.name == each.name
        assert each.facts.sentence
        assert isinstance(each, DataDrivenMethod) is each.facts.data_driven
