"""The contract of an evaluator, as tests that any implementation can run (needs pytest).

    class TestMyEvaluator(EvaluatorContract):
        @pytest.fixture
        def make(self):
            def make():                        # each call the same weights, data and settings, nothing shared
                model = ...
                return MyEvaluator(...), model
            return make

The evaluator must be able to train and to evaluate and have a dummy_input, the model at least two modules with a weight
matrix, an epoch at least two optimizer steps. Optional: the fixture `broken` (like `make`, but the user's training
raises an exception after its first step) and `watched(evaluator)` (the framework's objects, looked through for methods
that are still patched). A test that cannot apply at all is left out by setting its name to None in the subclass.
"""

from __future__ import annotations

import copy
import io
import itertools
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from modelpress.api import stages as rules
from modelpress.api.stages import StageRules
from modelpress.api.v1alpha1 import Finetune, Stage
from modelpress.api.v1alpha1.algorithms import CHANNEL_TYPES
from modelpress.store import open_store
from modelpress_runner.edits.axes import axis_of
from modelpress_runner.edits.masks import Masks
from modelpress_runner.engine.checkpoint import Checkpointer
from modelpress_runner.engine.run import RecipeOutcome, run_stages
from modelpress_runner.errors import InvalidModelError, UserCodeError
from modelpress_runner.evaluators.base import Evaluator
from modelpress_runner.evaluators.hooks import BackwardHook, ForwardHook, TensorHook
from modelpress_runner.methods.context import Step, TrainingContext
from modelpress_runner.passes.collectors import Collector, Pass
from modelpress_runner.passes.frozen import scoring_passes
from modelpress_runner.passes.run import Kind, Sources, run_pass
from modelpress_runner.process.stopping import Stopped
from modelpress_runner.runtime import rng
from modelpress_runner.runtime import user_rng as generators
from modelpress_runner.runtime.graph import call
from modelpress_runner.stages.base import StageKind
from modelpress_runner.subject.subject import Subject
from modelpress_runner.training.calls import Call
from modelpress_runner.training.participants import Participant
from modelpress_runner.training.run import training_session
from modelpress_runner.training.step import Training

Make = Callable[[], tuple[Evaluator, nn.Module]]

Limits = tuple[int | None, int | None]  # max_steps, max_epochs

EPOCH: Limits = (None, 1)
_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
    "_post_accumulate_grad_hooks",
    "_optimizer_step_pre_hooks",
    "_optimizer_step_post_hooks",
)


def traces(*objects: Any) -> set[str]:
    """What somebody has put on models, their modules and parameters, optimizers and other objects, as text.

    Hooks, and instance attributes that stand in front of a method of the class.
    """
    found: set[str] = set()
    for number, each in enumerate(objects):
        parts: list[tuple[str, Any]] = [("", each)]
        if isinstance(each, nn.Module):
            parts = [*each.named_modules(), *each.named_parameters()]
        for name, part in parts:
            where = f"{number} {type(part).__name__} {name!r}"
            for attribute in _HOOKS:
                for key, hook in (getattr(part, attribute, None) or {}).items():
                    found.add(f"{where}: {attribute}[{key}] {hook!r}")
            for attribute, value in getattr(part, "__dict__", {}).items():
                if callable(value) and callable(getattr(type(part), attribute, None)):
                    found.add(f"{where}: .{attribute} is {value!r}")
    return found


def _values(model: nn.Module) -> dict[str, torch.Tensor]:
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: value.detach().clone() for name, value in named}


def _same(one: Any, two: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        return one.dtype == two.dtype and torch.equal(one, two)
    if isinstance(one, dict):
        return isinstance(two, dict) and one.keys() == two.keys() and all(_same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(two) and len(one) == len(two) and all(map(_same, one, two))
    return bool(one == two)


def _through_disk(state: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def _first_weight(model: nn.Module) -> tuple[str, nn.Parameter]:
    return next((name, p) for name, p in model.named_parameters() if p.requires_grad and p.dim() > 1)


class EvaluatorContract:
    """What every evaluator promises."""

    @pytest.fixture
    def make(self) -> Make:
        """Makes an evaluator and its model."""
        raise NotImplementedError("the fixture `make` returns a function that gives an evaluator and its model")

    @pytest.fixture
    def broken(self) -> Make:
        """As `make`; the training raises after its first step."""
        pytest.skip("no fixture `broken`")

    def watched(self, evaluator: Evaluator) -> list[Any]:
        """Objects of the framework that the evaluator patches."""
        return []

    @pytest.fixture(autouse=True)
    def _seeded(self) -> Any:
        with rng.fork_rng(0):
            yield

    def _train(self, evaluator: Evaluator, model: nn.Module, limits: Limits = EPOCH) -> None:
        evaluator.train(*limits)
        for parameter in model.parameters():
            parameter.grad = None

    # Binding ----------------------------------------------------------------------------------------------------------

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
        twin, before = copy.deepcopy(model), _values(model)
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
        assert _same(_values(model), before)
        assert not _same(_values(twin), before)

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
            results.append(_values(twin))
        assert _same(*results)

    # Calls ------------------------------------------------------------------------------------------------------------

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

    @pytest.mark.parametrize("unit", ["epochs", "steps"])
    @pytest.mark.parametrize("after", [1, 3, 4])
    def test_a_resumed_run_equals_an_undisturbed_one(self, make: Make, unit: str, after: int, tmp_path: Path) -> None:
        """One call in one go, and one that is asked to stop after some steps and goes on: bit for bit alike."""
        if unit == "steps" and not make()[0].supports_max_steps:
            pytest.skip("it trains by epochs")
        stages = [Stage.model_validate({"finetune": {"epochs": 3} if unit == "epochs" else {"maxSteps": 5}})]
        self._resumed(make, stages, after, tmp_path)

    def _resumed(self, make: Make, stages: list[Any], after: int, folder: Path) -> RecipeOutcome:
        """What a run gives that was interrupted after some steps, compared with one that was not."""
        evaluator, model = make()
        whole = run_stages(Subject(model, evaluator), stages, seed=5, scores=False)
        store = open_store(str(folder))
        asked = False

        def stop() -> None:
            if asked:
                raise Stopped

        other, twin = make()
        steps: list[None] = []
        bind = other.bind

        def bound(model: nn.Module) -> None:
            nonlocal asked
            bind(model)

            def count() -> None:
                nonlocal asked
                steps.append(None)
                asked = len(steps) >= after

            other.before_optimizer_step(count)

        other.bind = bound  # type: ignore[method-assign]
        with rng.fork_rng(99), pytest.raises(Stopped):
            run_stages(
                Subject(twin, other),
                stages,
                seed=5,
                scores=False,
                checkpointer=Checkpointer(store, "", "same", 1),
                stop=stop,
            )
        again, last = make()
        with rng.fork_rng(98):
            outcome = run_stages(
                Subject(last, again),
                stages,
                seed=5,
                scores=False,
                checkpointer=Checkpointer(store, "", "same", 2),
            )
        assert outcome.steps == whole.steps
        assert not [note for note in outcome.notes if "anew" in note]
        expected, got = _values(model), _values(last)
        assert [name for name in expected if not _same(expected[name], got[name])] == []
        assert _same(outcome.masks, whole.masks)
        return outcome

    def test_state_is_plain_and_comes_back(self, make: Make) -> None:
        """The state loads with weights_only, and an evaluator that has loaded it gives the same."""
        evaluator, model = make()
        evaluator.bind(model)
        self._train(evaluator, model)
        state = _through_disk(evaluator.state_dict())
        evaluator.unbind()
        other, twin = make()
        other.bind(twin)
        other.load_state_dict(_through_disk(state))
        assert _same(_through_disk(other.state_dict()), state)
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

    # Patches and hooks ------------------------------------------------------------------------------------------------

    def test_loss_patches_apply_in_order_and_in_every_call(self, make: Make) -> None:
        """The second patch gets what the first gave, and what it gives is trained on: times zero is no gradient."""
        evaluator, model = make()
        evaluator.bind(model)
        seen: list[float] = []
        gradients: list[float] = []

        def first(loss: torch.Tensor, batch: Any) -> torch.Tensor:
            assert batch is not None
            return loss * 0 + 3.0

        def second(loss: torch.Tensor, batch: Any) -> torch.Tensor:
            seen.append(float(loss.detach().mean()))
            return loss * 2

        def before() -> None:
            found = [evaluator.gradient(p) for p in model.parameters() if p.requires_grad]
            gradients.extend(float(g.abs().max()) for g in found if g is not None)

        evaluator.patch_loss(first)
        evaluator.patch_loss(second)
        evaluator.before_optimizer_step(before)
        self._train(evaluator, model)
        once = len(seen)
        self._train(evaluator, model)
        assert once >= 2
        assert len(seen) == 2 * once
        assert set(seen) == {3.0}
        assert gradients
        assert set(gradients) == {0.0}
        evaluator.unbind()

    def test_step_hooks_fire_around_every_step(self, make: Make) -> None:
        """Before, with gradients, then after, with other weights; in the order of registration; in every call."""
        evaluator, model = make()
        name, weight = _first_weight(model)
        shape = weight.shape
        evaluator.bind(model)
        calls: list[str] = []
        weights: list[torch.Tensor] = []
        gradients: list[torch.Tensor | None] = []

        def look() -> None:
            with evaluator.gathered_parameters():
                weights.append(weight.detach().clone())

        evaluator.before_optimizer_step(lambda: calls.append("before"))
        evaluator.before_optimizer_step(lambda: calls.append("again"))
        evaluator.before_optimizer_step(lambda: gradients.append(evaluator.gradient(weight)))
        evaluator.before_optimizer_step(look)
        evaluator.after_optimizer_step(lambda: calls.append("after"))
        evaluator.after_optimizer_step(look)
        for _ in range(2):
            calls.clear()
            self._train(evaluator, model)
            others = len(list(evaluator.optimizers())) > 1
            assert calls[:3] == ["before", "again", "after"]
            assert calls.count("before") == calls.count("again") >= 2
            if not others:
                assert calls == ["before", "again", "after"] * (len(calls) // 3)
        assert any(not torch.equal(one, two) for one, two in itertools.pairwise(weights))
        assert all(gradient is not None and gradient.shape == shape for gradient in gradients), name
        evaluator.unbind()

    def test_model_hooks_fire_in_every_call(self, make: Make) -> None:
        """On a parameter and around modules; unknown names are refused."""
        evaluator, model = make()
        name, _ = _first_weight(model)
        last = [n for n, p in model.named_parameters() if p.requires_grad and p.dim() > 1][-1]
        evaluator.bind(model)
        hooks = TensorHook(_note), ForwardHook(_note), BackwardHook(_note)
        evaluator.register_tensor_hook(name, hooks[0])
        evaluator.register_forward_hook(name.rpartition(".")[0], hooks[1])
        evaluator.register_backward_hook(last.rpartition(".")[0], hooks[2])
        with pytest.raises(InvalidModelError, match="no module"):
            evaluator.register_forward_hook("no_such_module", hooks[1])
        counts = []
        for _ in range(2):
            self._train(evaluator, model)
            counts.append([len(hook.buffer) for hook in hooks])
        evaluator.unbind()
        assert min(counts[0]) >= 2
        assert [2 * count for count in counts[0]] == counts[1]
        call(model.eval(), evaluator.dummy_input)
        assert [len(hook.buffer) for hook in hooks] == counts[1]

    def test_a_model_in_eval_mode_trains_in_train_mode(self, make: Make) -> None:
        """A model that was left in eval mode, as by a score, is trained in train mode, and is in eval mode again."""
        evaluator, model = make()
        name, _ = _first_weight(model)
        model.eval()
        evaluator.bind(model)
        hook = ForwardHook(lambda buffer, module, *_: buffer.append(module.training))
        evaluator.register_forward_hook(name.rpartition(".")[0], hook)
        self._train(evaluator, model)
        evaluator.unbind()
        assert hook.buffer
        assert all(hook.buffer)
        assert not any(module.training for module in model.modules())

    def test_weights_can_be_changed_from_a_hook(self, make: Make) -> None:
        """What is set within gathered_parameters(modify=True) after a step is what the next step begins with."""
        evaluator, model = make()
        _, weight = _first_weight(model)
        evaluator.bind(model)
        begun: list[float] = []

        def clear() -> None:
            with evaluator.gathered_parameters(modify=True), torch.no_grad():
                weight.data.zero_()

        def look() -> None:
            with evaluator.gathered_parameters():
                begun.append(float(weight.detach().abs().max()))

        evaluator.before_optimizer_step(look)
        evaluator.after_optimizer_step(clear)
        self._train(evaluator, model)
        evaluator.unbind()
        assert begun[0] > 0
        assert set(begun[1:]) == {0.0}

    def test_masks_stay_in_force(self, make: Make) -> None:
        """Half of a weight is masked: it is zero at the end, and the rest has been trained."""
        evaluator, model = make()
        evaluator.record_parameter_names(model)
        name, weight = _first_weight(model)
        module, _, parameter = name.rpartition(".")
        mask = torch.ones_like(weight)
        mask.view(-1)[::2] = 0
        masks: Masks = {module: {parameter: mask}}
        before = weight.detach().clone()
        with training_session(model, evaluator, masks) as session:
            session.train(*EPOCH)
            with evaluator.gathered_parameters():
                assert bool((model.get_parameter(name).detach().cpu()[mask == 0] == 0).all())
        after = model.get_parameter(name).detach().cpu()
        assert not torch.equal(after[mask == 1], before[mask == 1])

    # What goes along --------------------------------------------------------------------------------------------------

    def test_a_term_in_the_loss_weighs_once(self, make: Make) -> None:
        """Three times a parameter of its own, added to every loss, is a gradient of 3 in every step, of however many
        losses; the parameter trains, and nothing is left on the model."""
        evaluator, model = make()
        evaluator.record_parameter_names(model)
        before = traces(model)
        along = _Triple()
        session = training_session(model, evaluator, {}, participants=[along])
        if evaluator.sharded:
            with pytest.raises(InvalidModelError, match="parameters of its own, and DeepSpeed takes none"), session:
                pass
            return
        with session:
            session.train(*EPOCH)
        assert along.gradients
        assert set(along.gradients) == {3.0}
        assert along.losses >= len(along.gradients)
        assert float(along.own.detach()) != 0.0
        assert traces(model) == before

    def test_pruning_goes_along_with_a_training(self, make: Make) -> None:
        """together of one_shot pruning is pruning and then finetuning, bit for bit."""
        name = _prunable(make()[1])
        part = {"prune": _level(name, 0.5)}
        recipes = (
            [part, {"finetune": {"epochs": 1}}],
            [{"prune": _level(name, 0.0)}, {"together": {"epochs": 1, "of": [part]}}],
        )
        results = []
        for recipe in recipes:
            evaluator, model = make()
            stages = [Stage.model_validate(stage) for stage in recipe]
            outcome = run_stages(Subject(model, evaluator), stages, seed=5, scores=False)
            results.append((_values(model), outcome.masks, outcome.steps))
        assert _same(*results)
        mask = results[1][1][name]["weight"]
        assert int((mask == 0).sum()) == mask.numel() // 2

    @pytest.mark.parametrize("after", [1, 2, 4])
    def test_pruning_along_goes_on_where_it_was(self, make: Make, after: int, tmp_path: Path) -> None:
        """Channels go in the course of a training, by scores of its steps; interrupted, it ends bit for bit alike."""
        evaluator, model = make()
        name = _prunable(model)
        prune = {
            "algorithm": "taylor",
            "speedup": False,
            "scores": {"steps": 2},
            "configList": [{"opNames": [name], "sparsity": 0.5}],
            "schedule": {"type": "linear", "startStep": 1, "endStep": 5, "frequency": 2},
        }
        length = {"maxSteps": 6} if evaluator.supports_max_steps else {"epochs": 3}
        stages = [Stage.model_validate({"together": {**length, "of": [{"prune": prune}]}})]
        outcome = self._resumed(make, stages, after, tmp_path)
        rows = axis_of(model, name, "out").size
        mask = outcome.masks[name]["weight"]
        assert int((mask == 0).sum()) == rows // 2 * (mask.numel() // rows)

    @pytest.mark.parametrize("after", [1, 3, 4])
    def test_parameters_of_its_own_go_on_where_they_were(
        self, make: Make, after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Stopped after some steps and resumed, the model and the parameters that trained along end bit for bit alike;
        each of both depends on the other in every step."""
        evaluator, _ = make()
        if evaluator.sharded:
            pytest.skip("it takes none")
        made: list[Entangled] = []
        monkeypatch.setitem(rules._KINDS, AlongRules.name, AlongRules())
        monkeypatch.setattr(AlongKind, "made", made)
        length = {"max_steps": 5} if evaluator.supports_max_steps else {"epochs": 3}
        self._resumed(make, [along_stage(**length)], after, tmp_path)
        whole, last = made[0], made[-1]
        assert len(made) == 3
        assert not _same(whole.own.detach(), torch.tensor(Entangled.BEGIN))
        assert _same(whole.own.detach(), last.own.detach())

    # What is left -----------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("ending", ["well", "in the loss", "before a step", "after a step", "in a hook", "broken"])
    def test_nothing_is_left_after_unbinding(self, make: Make, request: pytest.FixtureRequest, ending: str) -> None:
        """Hooks and patched methods go from model, optimizers and framework, however training ended; then it works."""
        evaluator, model = request.getfixturevalue("broken")() if ending == "broken" else make()
        evaluator.record_parameter_names(model)
        before, functions = traces(model), dict(vars(F))
        name, _ = _first_weight(model)
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
            values = _values(model)
            with training_session(model, evaluator, {}) as session:
                session.train(*EPOCH)
            assert len(calls) == known
            assert not _same(_values(model), values)

    # Evaluation -------------------------------------------------------------------------------------------------------

    def test_evaluation_changes_nothing(self, make: Make) -> None:
        """Modes, requires_grad, weights, buffers, gradients and random numbers stay; bound or not, scores agree."""
        evaluator, model = make()
        evaluator.record_parameter_names(model)
        model.train()
        next(model.children(), model).eval()
        modes = [module.training for module in model.modules()]
        wanted = [parameter.requires_grad for parameter in model.parameters()]
        values, state, own = _values(model), rng.capture(), generators.save(evaluator.rng_roots())
        unbound = evaluator.evaluate(model)
        assert _same(rng.capture(), state)
        assert _same(generators.save(evaluator.rng_roots()), own)
        evaluator.bind(model)
        bound = evaluator.evaluate()
        evaluator.unbind()
        assert "default" in unbound
        assert all(type(value) is float for value in unbound.values())
        assert bound == unbound
        assert [module.training for module in model.modules()] == modes
        assert [parameter.requires_grad for parameter in model.parameters()] == wanted
        assert _same(_values(model), values)
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
            results.append(_values(model))
        assert _same(*results)

    # A frozen model ---------------------------------------------------------------------------------------------------

    def test_it_trains_a_frozen_model(self, make: Make) -> None:
        """Three steps over a model that is held as it is: gradients come, in eval mode, and no bit changes."""
        evaluator, model = make()
        evaluator.record_parameter_names(model)
        evaluator.on_stage_begin("prune", "taylor")
        model.train()
        values, state = _values(model), rng.capture()
        before, modes = traces(model), [module.training for module in model.modules()]
        name, weight = _first_weight(model)
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
        assert _same(_values(model), values)
        assert _same(rng.capture(), state)
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
        name = _first_weight(model)[0].rpartition(".")[0]
        model.train()
        values, state, before = _values(model), rng.capture(), traces(model)
        found, count = run_pass(
            model, Sources(evaluator), kind, lambda data: {"": _Outputs(name, data)}, batches=3, seed=4
        )
        assert count >= 1
        assert _same(_values(model), values)
        assert _same(rng.capture(), state)
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


class Entangled(Participant):
    """Two parameters of its own; every loss hangs on them, and their gradients on the loss."""

    BEGIN = (0.5, -0.25)

    def __init__(self) -> None:
        self.own = nn.Parameter(torch.tensor(self.BEGIN))

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        return [{"params": [self.own]}]

    def loss(self, call: Call | None, loss: torch.Tensor) -> torch.Tensor:
        return loss * (1 + 0.1 * self.own[0]) + (self.own[1] * loss.detach() - 1).square()


class AlongRules(StageRules[Finetune]):
    """A stage that trains with an Entangled beside the model."""

    name = "along"
    block = Finetune
    runner = f"{__name__}:ALONG"


class AlongKind(StageKind[Finetune]):
    """What runs it. `made` has the participants of all trainings, in order."""

    name = "along"
    made: ClassVar[list[Entangled]] = []

    def steps(self, block: Finetune, index: int) -> list[Step]:
        def participants(training: TrainingContext) -> list[Participant]:
            self.made.append(Entangled())
            return [self.made[-1]]

        return [Training("along", block.epochs, block.max_steps, participants)]


ALONG = AlongKind()


def along_stage(**length: int) -> Any:
    """A stage of this kind, where it is known."""
    return types.SimpleNamespace(name=None, method=AlongRules.name, block=Finetune(**length))


class _Triple(Participant):
    """Adds three times a parameter of its own to each loss."""

    def __init__(self) -> None:
        self.own = nn.Parameter(torch.zeros(()))
        self.losses = 0
        self.gradients: list[float] = []  # of each step, before anything is clipped
        self._sum = 0.0
        self.own.register_hook(self._add)

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        return [{"params": [self.own]}]

    def loss(self, call: Call | None, loss: torch.Tensor) -> torch.Tensor:
        self.losses += 1
        return loss + 3 * self.own

    def before_step(self, step: int) -> None:
        assert self.own.grad is not None
        self.gradients.append(self._sum)
        self._sum = 0.0

    def _add(self, gradient: torch.Tensor) -> None:
        self._sum += float(gradient)


def _prunable(model: nn.Module) -> str:
    found = (str(name) for name, module in model.named_modules() if type(module).__name__ in CHANNEL_TYPES)
    return next(found)


def _level(name: str, sparsity: float) -> dict[str, Any]:
    return {"algorithm": "level", "speedup": False, "configList": [{"opNames": [name], "sparsity": sparsity}]}


def _note(buffer: list[Any], *args: Any) -> None:
    buffer.append(None)
