"""What is left behind a training, and a model that is looked at only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from modelpress_runner.errors import UserCodeError
from modelpress_runner.evaluators.hooks import ForwardHook
from modelpress_runner.passes.collectors import Collector, Pass
from modelpress_runner.passes.frozen import scoring_passes
from modelpress_runner.passes.run import Kind, Sources, run_pass
from modelpress_runner.process.stopping import Stopped
from modelpress_runner.runtime import rng
from modelpress_runner.testing.evaluators.basis import EPOCH, Basis, Make, first_weight, is_same, traces, values_of
from modelpress_runner.training.run import training_session


class Leavings(Basis):
    """Nothing is left on models, optimizers and frameworks; a frozen model stays as it is."""

    @pytest.mark.parametrize("ending", ["well", "in the loss", "before a step", "after a step", "in a hook", "broken"])
    def test_nothing_is_left_after_unbinding(self, make: Make, request: pytest.FixtureRequest, ending: str) -> None:
        """Hooks and patched methods go from model, optimizers and framework, however training ended; then it works."""
        evaluator, model = request.getfixturevalue("broken")() if ending == "broken" else make()
        evaluator.record_parameter_names(model)
        before, functions = traces(model), dict(vars(F))
        name, _ = first_weight(model)
        evaluator.bind(model)
        optimizers = list(evaluator.optimizers())
        bound = traces(*optimizers)
        calls: list[str] = []

        def stops(when: str) -> Callable[..., Any]:
            def hook(*args: Any) -> Any:
                calls.append(when)
                if ending == when:
                    raise Stopped
                return args[0] if when == "in the loss" else None

            return hook

        evaluator.patch_loss(stops("in the loss"))
        evaluator.before_optimizer_step(stops("before a step"))
        evaluator.after_optimizer_step(stops("after a step"))
        evaluator.register_forward_hook(name.rpartition(".")[0], ForwardHook(stops("in a hook")))
        if ending == "well":
            self._train(evaluator, model)
        elif ending == "broken":
            with pytest.raises(UserCodeError):
                self._train(evaluator, model)
        else:
            with pytest.raises(Stopped):
                self._train(evaluator, model)
        optimizers = optimizers or list(evaluator.optimizers())
        evaluator.unbind()
        assert traces(model) == before
        assert traces(*optimizers) <= bound
        assert [each for each in functions if getattr(F, each, None) is not functions[each]] == []
        assert {text for each in self.watched(evaluator) for text in traces(each)} == set()
        if ending != "broken":
            known = len(calls)
            values = values_of(model)
            with training_session(model, evaluator, {}) as session:
                session.train(*EPOCH)
            assert len(calls) == known
            assert not is_same(values_of(model), values)

    def test_it_trains_a_frozen_model(self, make: Make) -> None:
        """Three steps over a model that is held as it is: gradients come, in eval mode, and no bit changes."""
        evaluator, model = make()
        evaluator.record_parameter_names(model)
        evaluator.on_stage_begin("prune", "taylor")
        model.train()
        values, state = values_of(model), rng.capture()
        before, modes = traces(model), [module.training for module in model.modules()]
        name, weight = first_weight(model)
        seen: list[torch.Tensor] = []

        def look() -> None:
            gradient = evaluator.gradient(weight)
            assert gradient is not None
            assert not any(module.training for module in model.modules())
            with evaluator.gathered_parameters():
                assert torch.equal(weight.detach(), values[name].to(weight.device))
            seen.append(gradient.detach().clone())

        scoring_passes(model, evaluator, 3, before_step=look)
        assert len(seen) == 3
        assert any(float(gradient.abs().max()) > 0 for gradient in seen)
        assert is_same(values_of(model), values)
        assert is_same(rng.capture(), state)
        assert traces(model) == before
        assert [module.training for module in model.modules()] == modes
        assert all(parameter.grad is None for parameter in model.parameters())

    @pytest.mark.parametrize("kind", [Kind.EVALUATION, Kind.TRAINING])
    def test_a_pass_sees_activations(self, make: Make, kind: Kind) -> None:
        """Sums of |output| of a module are those that a hook of torch's own sees in an evaluation, or in three steps
        over the frozen model; weights, modes, random numbers and hooks are as they were."""
        evaluator, model = make()
        evaluator.record_parameter_names(model)
        evaluator.on_stage_begin("prune", "taylor")
        name = first_weight(model)[0].rpartition(".")[0]
        model.train()
        values, state, before = values_of(model), rng.capture(), traces(model)
        found, count = run_pass(
            model, Sources(evaluator), kind, lambda data: {"": _Outputs(name, data)}, batches=3, seed=4
        )
        assert count >= 1
        assert is_same(values_of(model), values)
        assert is_same(rng.capture(), state)
        assert traces(model) == before
        assert all(module.training for module in model.modules())
        noted: list[torch.Tensor] = []

        def note(module: nn.Module, args: Any, output: torch.Tensor) -> None:
            if kind is Kind.EVALUATION or torch.is_grad_enabled():
                noted.append(output.detach().double().abs().sum())

        handle = model.get_submodule(name).register_forward_hook(note)
        with rng.fork_rng(4):
            if kind is Kind.TRAINING:
                steps: list[int] = []
                scoring_passes(model, evaluator, 3, before_step=lambda: steps.append(len(noted)))
                noted = noted[: steps[-1]]
            else:
                evaluator.evaluate(model)
                noted = noted[: int(found[""].calls)]
        handle.remove()
        assert noted
        assert int(found[""].calls) == len(noted)
        assert float(found[""].compute()) == float(sum(noted))


class _Outputs(Collector):
    """The sum of |output| of a module, and its calls."""

    states: ClassVar = {"total": "sum", "calls": "sum"}

    def __init__(self, name: str, data: Pass) -> None:
        self._name, self._data = name, data
        self.total, self.calls = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.long)

    def attach(self) -> None:
        self._hook = ForwardHook(lambda buffer, module, args, output: buffer.append(output.detach()))
        self._data.register_forward_hook(self._name, self._hook)

    def update(self) -> None:
        for output in self._hook.buffer:
            self.total, self.calls = self.total + output.double().abs().sum(), self.calls + 1
        self._hook.buffer.clear()

    def compute(self) -> torch.Tensor:
        return self.total
