"""Hooks on a bound model: what they see and change, and that they are gone once unbound."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from modelpress_runner.errors import InvalidModelError
from modelpress_runner.evaluators.hooks import BackwardHook, ForwardHook, TensorHook
from modelpress_runner.process.stopping import Stopped


def keep(buffer, *args):
    """Collects all that a hook is called with."""
    buffer.append(args)


@pytest.fixture
def bound(task):
    """An evaluator bound to y = 2a + 3b with inputs (1, 10) and (2, 20)."""
    model = nn.Sequential(nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[2.0, 3.0]]))
    x = torch.tensor([[1.0, 10.0], [2.0, 20.0]], requires_grad=True)

    def training_func(model, optimizer, training_step, scheduler, max_steps, max_epochs):
        for _ in range(max_steps):
            optimizer.zero_grad()
            training_step(x, model).backward()
            optimizer.step()

    evaluator = task.evaluator(
        training_func=training_func,
        training_step=lambda batch, model: model(batch).sum(),
        optimizers=lambda params: torch.optim.SGD(params, lr=0.0),
    )
    evaluator.bind(model)
    return evaluator


def test_each_hook_sees_what_torch_gives_it(bound):
    """Gradient of the sum: (1 + 2, 10 + 20); outputs 32 and 64; gradients of the outputs 1 and 1."""
    gradient, forward, backward = TensorHook(keep), ForwardHook(keep), BackwardHook(keep)
    bound.register_tensor_hook("0.weight", gradient)
    bound.register_forward_hook("0", forward)
    bound.register_backward_hook("0", backward)
    bound.train(max_steps=2)
    assert [seen[0].tolist() for seen in gradient.buffer] == [[[3.0, 30.0]]] * 2
    module, args, output = forward.buffer[0]
    assert module is bound.model[0]
    assert args[0].shape == (2, 2)
    assert output.tolist() == [[32.0], [64.0]]
    module, grad_input, grad_output = backward.buffer[0]
    assert module is bound.model[0]
    assert grad_input[0].tolist() == [[2.0, 3.0]] * 2
    assert grad_output[0].tolist() == [[1.0], [1.0]]
    assert len(forward.buffer) == len(backward.buffer) == 2


def test_what_a_hook_returns_takes_the_place(bound):
    """A halved gradient is what the parameter gets; a replaced output is what the model gives."""
    bound.register_tensor_hook("0.weight", TensorHook(lambda buffer, gradient: gradient / 2))
    bound.register_forward_hook("0", ForwardHook(lambda buffer, module, args, output: output * 10))
    bound.train(max_steps=1)
    assert bound.model[0].weight.grad.tolist() == [[15.0, 150.0]]


def test_unbinding_takes_every_hook_off(bound):
    """No hook is left on modules or parameters, and buffers keep what they have."""
    hooks = [TensorHook(keep), ForwardHook(keep), BackwardHook(keep)]
    bound.register_tensor_hook("0.weight", hooks[0])
    bound.register_forward_hook("", hooks[1])
    bound.register_backward_hook("0", hooks[2])
    bound.train(max_steps=1)
    model = bound.model
    bound.unbind()
    assert not model._forward_hooks
    assert not model[0]._backward_hooks
    assert not model[0].weight._backward_hooks
    model(torch.ones(1, 2, requires_grad=True)).sum().backward()
    assert [len(hook.buffer) for hook in hooks] == [1, 1, 1]


def test_a_hook_may_be_taken_off_earlier_and_used_again(bound):
    """remove() takes it off; registered again it goes on collecting."""
    hook = ForwardHook(keep)
    bound.register_forward_hook("0", hook)
    hook.remove()
    bound.train(max_steps=1)
    assert not hook.buffer
    bound.register_forward_hook("0", hook)
    bound.train(max_steps=1)
    assert len(hook.buffer) == 1


def test_a_tensor_itself_can_be_hooked(bound):
    """An activation, from within a forward hook: the gradient of each output is 1."""
    gradient = TensorHook(keep)
    bound.register_forward_hook(
        "0", ForwardHook(lambda buffer, module, args, output: bound.register_tensor_hook(output, gradient))
    )
    bound.train(max_steps=3)
    assert [seen[0].tolist() for seen in gradient.buffer] == [[[1.0], [1.0]]] * 3
    assert len(gradient._handles) <= 2


@pytest.mark.parametrize("kind", [TensorHook, ForwardHook, BackwardHook])
def test_stopped_passes_through_a_hook(bound, kind):
    """Raised in any hook it comes out of train() as it is, and unbinding works."""

    def stop(*args):
        raise Stopped

    where = "0.weight" if kind is TensorHook else "0"
    register = {
        TensorHook: bound.register_tensor_hook,
        ForwardHook: bound.register_forward_hook,
        BackwardHook: bound.register_backward_hook,
    }[kind]
    register(where, kind(stop))
    with pytest.raises(Stopped):
        bound.train(max_steps=1)
    model = bound.model
    bound.unbind()
    model(torch.ones(1, 2, requires_grad=True)).sum().backward()


def test_a_wrong_name_is_said_with_near_ones(bound):
    """Unknown modules and parameters, tensors without gradients, and hooks on nothing."""
    with pytest.raises(InvalidModelError, match=r"no parameter '0\.weigth'; near: '0\.weight'"):
        bound.register_tensor_hook("0.weigth", TensorHook(keep))
    with pytest.raises(InvalidModelError, match="no module 'conv1'; it has: '', '0'"):
        bound.register_forward_hook("conv1", ForwardHook(keep))
    with pytest.raises(InvalidModelError, match="the tensor requires no gradient"):
        bound.register_tensor_hook(torch.ones(1), TensorHook(keep))
    bound.unbind()
    with pytest.raises(RuntimeError, match="not bound"):
        bound.register_backward_hook("0", BackwardHook(keep))
