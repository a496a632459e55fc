"""Binding, calls and evaluation."""

from __future__ import annotations

import copy

import pytest

from modelpress_runner.runtime import rng
from modelpress_runner.runtime import user_rng as generators
from modelpress_runner.testing.evaluators.basis import Basis, Make, is_same, through_disk, values_of


class Binding(Basis):
    """It is bound to one model at a time, trains it call by call, and scores it."""

    def test_it_can_train_and_evaluate(self, make: Make) -> None:
        """It says so, and what it would need."""
        evaluator, model = make()
        evaluator.record_parameter_names(model)
        evaluator.on_stage_begin("finetune", None)
        assert evaluator.can_train
        assert evaluator.can_evaluate
        assert evaluator.train_needs
        assert evaluator.evaluate_needs

    def test_it_is_bound_to_one_model_at_a_time(self, make: Make) -> None:
        """A second bind is an error; without a bind there is no model; unbinding twice is fine."""
        evaluator, model = make()
        with pytest.raises(RuntimeError, match="not bound"):
            _ = evaluator.model
        evaluator.unbind()
        evaluator.bind(model)
        assert evaluator.model is model
        with pytest.raises(RuntimeError, match="already bound"):
            evaluator.bind(model)
        evaluator.unbind()
        evaluator.unbind()
        with pytest.raises(RuntimeError, match="not bound"):
            _ = evaluator.model

    def test_it_trains_the_model_that_it_is_bound_to(self, make: Make) -> None:
        """Bound to a copy it trains the copy, with optimizers of its own, and the first model stays as it is."""
        evaluator, model = make()
        evaluator.record_parameter_names(model)
        twin, before = copy.deepcopy(model), values_of(model)
        evaluator.bind(model)
        first = list(evaluator.optimizers())
        evaluator.unbind()
        evaluator.bind(twin)
        self._train(evaluator, twin)
        second = list(evaluator.optimizers())
        assert second
        assert all(one is not two for one in first for two in second)
        held = {id(p) for optimizer in second for group in optimizer.param_groups for p in group["params"]}
        if not evaluator.sharded:
            assert held <= {id(p) for p in twin.parameters()}
        evaluator.unbind()
        assert is_same(values_of(model), before)
        assert not is_same(values_of(twin), before)

    def test_a_new_binding_starts_afresh(self, make: Make) -> None:
        """Bound again to the same weights, with the same random numbers, it trains to the same result."""
        results = []
        evaluator, model = make()
        evaluator.record_parameter_names(model)
        own = generators.save(evaluator.rng_roots())
        for _ in range(2):
            twin = copy.deepcopy(model)
            generators.restore(evaluator.rng_roots(), own)
            with rng.fork_rng(1):
                evaluator.bind(twin)
                self._train(evaluator, twin)
                evaluator.unbind()
            results.append(values_of(twin))
        assert is_same(*results)

    def test_calls_go_on_with_the_same_optimizers(self, make: Make) -> None:
        """From call to call the optimizers are the same objects."""
        evaluator, model = make()
        evaluator.bind(model)
        self._train(evaluator, model)
        first = list(evaluator.optimizers())
        self._train(evaluator, model)
        second = list(evaluator.optimizers())
        assert first
        assert len(first) == len(second)
        assert all(one is two for one, two in zip(first, second, strict=True))
        evaluator.unbind()

    def test_state_is_plain_and_comes_back(self, make: Make) -> None:
        """The state loads with weights_only, and an evaluator that has loaded it gives the same."""
        evaluator, model = make()
        evaluator.bind(model)
        self._train(evaluator, model)
        state = through_disk(evaluator.state_dict())
        evaluator.unbind()
        other, twin = make()
        other.bind(twin)
        other.load_state_dict(through_disk(state))
        assert is_same(through_disk(other.state_dict()), state)
        other.unbind()

    def test_it_keeps_to_a_number_of_steps(self, make: Make) -> None:
        """max_steps=n is n steps of the first optimizer, in every call."""
        evaluator, model = make()
        if not evaluator.supports_max_steps:
            pytest.skip("it trains by epochs")
        evaluator.bind(model)
        steps: list[None] = []
        evaluator.before_optimizer_step(lambda: steps.append(None))
        counts = []
        for asked in (1, 3, 2):
            steps.clear()
            self._train(evaluator, model, (asked, None))
            counts.append(len(steps))
        assert counts == [1, 3, 2]
        evaluator.unbind()

    def test_evaluation_changes_nothing(self, make: Make) -> None:
        """Modes, requires_grad, weights, buffers, gradients and random numbers stay; bound or not, scores agree."""
        evaluator, model = make()
        evaluator.record_parameter_names(model)
        model.train()
        next(model.children(), model).eval()
        modes = [module.training for module in model.modules()]
        wanted = [parameter.requires_grad for parameter in model.parameters()]
        values, state, own = values_of(model), rng.capture(), generators.save(evaluator.rng_roots())
        unbound = evaluator.evaluate(model)
        assert is_same(rng.capture(), state)
        assert is_same(generators.save(evaluator.rng_roots()), own)
        evaluator.bind(model)
        bound = evaluator.evaluate()
        evaluator.unbind()
        assert "default" in unbound
        assert all(type(value) is float for value in unbound.values())
        assert bound == unbound
        assert [module.training for module in model.modules()] == modes
        assert [parameter.requires_grad for parameter in model.parameters()] == wanted
        assert is_same(values_of(model), values)
        assert all(parameter.grad is None for parameter in model.parameters())

    def test_it_evaluates_between_calls(self, make: Make) -> None:
        """A score after a call has no effect on what is trained after it."""
        results = []
        for scoring in (False, True):
            evaluator, model = make()
            with rng.fork_rng(3):
                evaluator.bind(model)
                self._train(evaluator, model)
                if scoring:
                    evaluator.evaluate()
                    with evaluator.gathered_parameters():
                        twin = copy.deepcopy(model)
                    evaluator.evaluate(twin)
                self._train(evaluator, model)
                evaluator.unbind()
            results.append(values_of(model))
        assert is_same(*results)
