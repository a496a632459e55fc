"""Wrappers leave no trace in names: what was compressed compiled fits the class that it came from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

import modelpress as mp
from modelpress_runner.edits.wrappers import unwrapped
from modelpress_runner.errors import InvalidModelError
from modelpress_runner.export.state import load_strict

X = torch.zeros(2, 4)
LEVEL = {"prune": {"algorithm": "level", "speedup": False, "config_list": [{"sparsity": 0.5}]}}


class Net(nn.Module):
    def __init__(self, wrap: Callable[[nn.Module], nn.Module] = lambda part: part) -> None:
        super().__init__()
        self.body = wrap(nn.Sequential(nn.Linear(4, 6), nn.ReLU()))
        self.head = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


def _compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")


@pytest.mark.parametrize(
    "build",
    [
        lambda: _compiled(Net()),
        lambda: Net(_compiled),
        lambda: nn.DataParallel(_compiled(Net())),
        lambda: AveragedModel(Net()),
        lambda: Net(checkpoint_wrapper),
    ],
    ids=["compiled", "inside", "both", "averaged", "checkpointed"],
)
def test_an_artifact_of_a_wrapped_model_fits_its_class(build: Callable[[], nn.Module], tmp_path: Path) -> None:
    """opNames, shrink.json and weights have the class's names; the given model keeps its wrappers."""
    model = build()
    before = [name for name, _ in model.named_modules()]
    entry = {"op_names": ["body.0"], "sparsity": 0.5}
    result = mp.compress(model, [{"prune": {"config_list": [entry]}}], None, X)
    assert [name for name, _ in model.named_modules()] == before
    again = mp.load(result.save(tmp_path / "a"), into=build())
    x = torch.rand(3, 4)
    plain = unwrapped(again).eval()
    assert plain.body[0].out_features == 3
    assert torch.equal(plain(x), result.model.eval()(x))


def test_a_loop_asks_for_the_model_itself() -> None:
    """It changes the model in place, so it names what is wrapped."""
    stages = [{"prune": {"config_list": [{"op_names": ["body.0"], "sparsity": 0.5}]}}]
    with pytest.raises(InvalidModelError, match="its part 'body' is compiled or wrapped"):
        mp.prepare_compression(Net(_compiled), stages, dummy_input=X)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning", "ignore:.*torch.jit.script:DeprecationWarning")
def test_a_scripted_model_is_refused_with_the_remedy() -> None:
    """Its layers cannot be seen."""
    with pytest.raises(InvalidModelError, match=r"RecursiveScriptModule, which hides its layers; give the torch\.nn"):
        mp.compress(torch.jit.script(nn.Sequential(nn.Linear(4, 2))), [LEVEL], None, X)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model.", "state.net."])
def test_weights_with_a_prefix_are_loaded(prefix: str) -> None:
    """One that all names have, and that is all that keeps them from the model."""
    source, model = Net(), Net()
    load_strict(model, {prefix + name: value for name, value in source.state_dict().items()}, "weights.pth")
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in model.state_dict().items())


def test_weights_of_a_part_that_was_compiled_are_loaded() -> None:
    """The wrapper's name stands inside of the others."""
    source, model = Net(_compiled), Net()
    load_strict(model, dict(source.state_dict()), "weights.pth")
    assert torch.equal(model.body[0].weight, source.body._orig_mod[0].weight)


def test_weights_of_another_model_are_not() -> None:
    """Taking the prefix off leaves names that the model does not have."""
    other = {f"module.{name}": torch.zeros(1) for name in ("body.0.weight", "tail.weight")}
    with pytest.raises(InvalidModelError, match=r"not in the model: module\.body\.0\.weight, module\.tail\.weight"):
        load_strict(Net(), other, "weights.pth")
