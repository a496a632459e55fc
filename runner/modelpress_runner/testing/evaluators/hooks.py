"""Patches and hooks: what sees losses, steps, modules and weights."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from modelpress_runner.edits.masks import Masks
from modelpress_runner.errors import InvalidModelError
from modelpress_runner.evaluators.hooks import BackwardHook, ForwardHook, TensorHook
from modelpress_runner.runtime.graph import call
from modelpress_runner.testing.evaluators.basis import EPOCH, Basis, Make, first_weight
from modelpress_runner.training.run import training_session


class Hooks(Basis):
    """What is put on a training sees all of it, in every call."""

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
        name, weight = first_weight(model)
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
        name, _ = first_weight(model)
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
        name, _ = first_weight(model)
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
        _, weight = first_weight(model)
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
        name, weight = first_weight(model)
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


def _note(buffer: list[Any], *args: Any) -> None:
    buffer.append(None)
