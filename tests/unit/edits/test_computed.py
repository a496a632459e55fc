"""Layers whose weight something computes: named with what computes it and the call that ends it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, remove_weight_norm, spectral_norm, weight_norm
from torch.nn.utils.parametrize import remove_parametrizations

import modelpress as mp
from modelpress_runner.errors import InvalidModelError, InvalidSpecError


def _pruned(layer: nn.Module) -> nn.Module:
    prune.l1_unstructured(layer, "weight", 0.5)
    return layer


def _net(wrap: Callable[[nn.Module], nn.Module]) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(wrap(nn.Conv2d(3, 8, 3)), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))


X = torch.zeros(2, 3, 8, 8)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize(
    ("wrap", "remedy"),
    [(weight_norm, "remove_weight_norm"), (_pruned, "prune.remove")],
)
def test_the_older_forms_cannot_be_copied(wrap: Callable[[nn.Module], nn.Module], remedy: str) -> None:
    """One refusal with layer and remedy, which works."""
    stages = [{"prune": {"config_list": [{"op_types": ["Conv2d"], "sparsity": 0.5}]}}]
    model = _net(wrap)
    with pytest.raises(InvalidModelError, match=rf"'0\.weight' is computed by .*{remedy}\("):
        mp.compress(model, stages, None, X)
    (remove_weight_norm if wrap is weight_norm else lambda layer: prune.remove(layer, "weight"))(model[0])
    assert mp.compress(model, stages, None, X).model[0].out_channels == 4


@pytest.mark.parametrize(("algorithm", "speedup"), [("l1", True), ("l1", False), ("level", False)])
@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_a_parametrized_layer_is_left_with_a_note(
    algorithm: str, speedup: bool, wrap: Callable[[nn.Module], nn.Module]
) -> None:
    """Selected by type it stays as it is and the others are pruned; by name it is an error; without it all is well."""

    def stages(**entry):
        return [{"prune": {"algorithm": algorithm, "speedup": speedup, "config_list": [{**entry, "sparsity": 0.5}]}}]

    model = _net(wrap)
    result = mp.compress(model, stages(op_types=["Conv2d"]), None, X)
    [note] = [note for note in result.notes if "'0.weight'" in note]
    assert "remove_parametrizations(model.get_submodule('0'), 'weight')" in note
    assert torch.equal(result.model[0].weight, model[0].weight)
    assert result.metrics["compressed"]["sparsity"] > 0
    with pytest.raises(InvalidSpecError, match=r"opNames: '0\.weight' is computed by"):
        mp.compress(model, stages(op_names=["0"]), None, X)
    remove_parametrizations(model[0], "weight")
    assert not [note for note in mp.compress(model, stages(op_names=["0"]), None, X).notes if "0.weight" in note]


def test_an_old_spectral_norm_is_named() -> None:
    """It is left like a parametrized layer."""
    model = _net(spectral_norm)
    entry = {"op_types": ["Conv2d"], "sparsity": 0.5}
    result = mp.compress(model, [{"prune": {"algorithm": "level", "speedup": False, "config_list": [entry]}}], None, X)
    assert any("remove_spectral_norm(model.get_submodule('0'))" in note for note in result.notes)
