"""mp.trace: real objects that can be built again for a changed model."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from modelpress_runner.errors import CompressionError, InvalidModelError
from modelpress_runner.evaluators.trace import RebuildPlan, call_of, trace


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def rebuilt(objects, model, other):
    return RebuildPlan.of(objects, model).build(other)


def test_a_traced_optimizer_is_a_real_one():
    """isinstance, schedulers and weights_only treat what mp.trace made as the class itself."""
    model = net()
    optimizer = trace(torch.optim.Adam)(model.parameters(), lr=0.01)
    assert type(optimizer) is torch.optim.Adam
    scheduler = trace(lr_scheduler.LambdaLR)(optimizer, lr_lambda=lambda epoch: 0.5**epoch)
    assert isinstance(scheduler, trace(lr_scheduler.LambdaLR))
    buffer = io.BytesIO()
    torch.save({"o": optimizer.state_dict(), "s": scheduler.state_dict()}, buffer)
    buffer.seek(0)
    assert torch.load(buffer, weights_only=True)["s"]["last_epoch"] == 0


def test_rebuilding_takes_the_parameters_of_the_changed_model():
    """The generator is materialised once and each parameter is found again by its name, in its order."""
    model = net()
    optimizer = trace(torch.optim.SGD)(model.parameters(), lr=0.25)
    smaller = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    (again,) = rebuilt([optimizer], model, smaller)
    assert [id(p) for p in again.param_groups[0]["params"]] == [id(p) for p in smaller.parameters()]
    assert again.param_groups[0]["lr"] == 0.25


def test_parameter_groups_keep_their_own_settings():
    """Group dicts are recorded before the optimizer writes its defaults into them."""
    model = net()
    groups = [
        {"params": model[0].parameters()},
        {"params": (p for p in model[1].parameters()), "lr": 0.5, "weight_decay": 0.1},
    ]
    optimizer = trace(torch.optim.SGD)(groups, lr=0.1)
    other = net()
    (again,) = rebuilt([optimizer], model, other)
    assert [group["lr"] for group in again.param_groups] == [0.1, 0.5]
    assert [group["weight_decay"] for group in again.param_groups] == [0, 0.1]
    assert again.param_groups[1]["params"][0] is other[1].weight


def test_named_parameters_and_filters_are_understood():
    """(name, parameter) pairs and filter objects are recorded like lists."""
    model = net()
    by_name = trace(torch.optim.SGD)(model.named_parameters(), lr=0.1)
    biases = trace(torch.optim.SGD)(filter(lambda p: p.dim() == 1, model.parameters()), lr=0.1)
    other = net()
    named, filtered = rebuilt([by_name, biases], model, other)
    assert named.param_groups[0]["param_names"] == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert [id(p) for p in filtered.param_groups[0]["params"]] == [id(other[0].bias), id(other[1].bias)]


def test_tied_weights_are_one_parameter_again():
    """A parameter with two names is found by its first one and stays shared."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 3, bias=False)
            self.b = nn.Linear(3, 3, bias=False)
            self.b.weight = self.a.weight

    model = Tied()
    optimizer = trace(torch.optim.SGD)([model.b.weight], lr=0.1)
    other = copy.deepcopy(model)
    (again,) = rebuilt([optimizer], model, other)
    assert again.param_groups[0]["params"] == [other.a.weight]


def test_schedulers_find_their_rebuilt_optimizer():
    """Nested schedulers are built around the new optimizer, not the recorded one."""
    model = net()
    optimizer = trace(torch.optim.SGD)(model.parameters(), lr=1.0)
    warm = trace(lr_scheduler.LinearLR)(optimizer, start_factor=0.5, total_iters=2)
    decay = trace(lr_scheduler.ExponentialLR)(optimizer, gamma=0.1)
    chain = trace(lr_scheduler.SequentialLR)(optimizer, schedulers=[warm, decay], milestones=[2])
    again, scheduler = rebuilt([optimizer, chain], model, net())
    assert scheduler._schedulers[0].optimizer is again
    assert scheduler.optimizer is again
    assert again is not optimizer
    assert again.param_groups[0]["lr"] == 0.5


def test_a_learning_rate_that_is_a_tensor_is_not_shared():
    """Schedulers write into such a tensor: each build starts from the value that was given."""
    model = net()
    rate = torch.tensor(1.0)
    optimizer = trace(torch.optim.SGD)(model.parameters(), lr=rate)
    rate.fill_(9.0)
    plan = RebuildPlan.of([optimizer], model)
    (first,) = plan.build(net())
    first.param_groups[0]["lr"].fill_(5.0)
    (second,) = plan.build(net())
    assert float(second.param_groups[0]["lr"]) == 1.0


def test_a_module_argument_becomes_the_changed_module():
    """What was given the model gets the changed model."""

    class Holder:
        def __init__(self, module: nn.Module) -> None:
            self.module = module

    model, other = net(), net()
    whole, part = rebuilt([trace(Holder)(model), trace(Holder)(model[1])], model, other)
    assert whole.module is other
    assert part.module is other[1]


def test_untraced_objects_are_refused():
    """An optimizer or a scheduler's optimizer that was not traced cannot be built again."""
    model = net()
    plain = torch.optim.Adam(model.parameters())
    assert call_of(plain) is None
    with pytest.raises(InvalidModelError, match=r"mp\.trace\(Adam\)"):
        RebuildPlan.of([plain], model)
    scheduler = trace(lr_scheduler.ExponentialLR)(plain, gamma=0.1)
    with pytest.raises(InvalidModelError, match=r"ExponentialLR was made for a Adam that was not traced"):
        RebuildPlan.of([scheduler], model)


def test_parameters_of_another_model_are_refused():
    """An optimizer over a copy of the model is found out when its names are looked up."""
    optimizer = trace(torch.optim.SGD)(net().parameters(), lr=0.1)
    with pytest.raises(InvalidModelError, match="SGD holds 4 parameters that are not in the model"):
        RebuildPlan.of([optimizer], net())


def test_a_name_that_is_gone_is_an_error():
    """Building for a model without one of the parameters names it."""
    model = net()
    optimizer = trace(torch.optim.SGD)(model.parameters(), lr=0.1)
    with pytest.raises(CompressionError, match=r"SGD trains '1\.weight', which the compressed model no longer has"):
        rebuilt([optimizer], model, nn.Sequential(nn.Linear(3, 4)))


def test_functions_are_traced_like_classes():
    """A traced function's call is repeated with the changed model's parameters."""

    def make(params, lr):
        return torch.optim.SGD(params, lr=lr)

    model, other = net(), net()
    (again,) = rebuilt([trace(make)(model.parameters(), lr=0.3)], model, other)
    assert again.param_groups[0]["params"][0] is other[0].weight
    assert again.param_groups[0]["lr"] == 0.3


def test_the_wrapper_stands_for_the_class():
    """Its attributes and class methods are there, it can be copied, and tracing twice is tracing once."""
    traced = trace(torch.optim.SGD)
    assert trace(traced) is traced
    assert traced.__name__ == "SGD"
    assert copy.copy(traced).__wrapped__ is torch.optim.SGD
    assert repr(traced) == "mp.trace(SGD)"


def test_what_cannot_be_traced_says_so():
    """Neither a number nor a tuple is something that could be built again later."""
    with pytest.raises(TypeError, match="takes a class or a function, not a int"):
        trace(3)
    with pytest.raises(TypeError, match="gave a tuple, which cannot be traced"):
        trace(lambda: ([],))()
