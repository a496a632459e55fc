"""Hidden units of recurrent layers, and channels along parameters that modules share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import known_nets
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import modelpress as mp
from modelpress_runner.dependency.analyse import find_dependencies
from modelpress_runner.dependency.groups import ChannelDependencies

X = torch.randn((2, 5, 3), generator=torch.Generator().manual_seed(0))


class Tagger(nn.Module):
    """A recurrent layer of width 4 with 2 layers, both ways, and what its steps and its last state are taken for."""

    def __init__(self, kind: Any, packed: bool = False, **settings: Any) -> None:
        super().__init__()
        self.rnn, self.packed = kind(3, 4, 2, bidirectional=True, batch_first=True, **settings), packed
        self.steps, self.last = nn.Linear(8, 2), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor, *state: torch.Tensor) -> torch.Tensor:
        given: Any = x
        if self.packed:
            given = pack_padded_sequence(x, torch.tensor([5, 3])[: len(x)], batch_first=True)
        out, after = self.rnn(given, *state)
        if self.packed:
            out, _ = pad_packed_sequence(out, batch_first=True)
        after = after[0] if isinstance(after, tuple) else after
        return self.steps(out).mean(1) + self.last(after).mean(0)


def _why(found: ChannelDependencies, module: str) -> str:
    axis = found.output(module)
    assert axis is not None
    return found.frozen[axis.units[0]]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_hidden_units_go_by_gates_layers_and_directions(kind: Any, tmp_path: Path) -> None:
    """One of four: rows of every gate, columns of every next step, of the second layer and of what comes behind."""
    torch.manual_seed(0)
    model, gates = Tagger(kind, packed=kind is nn.GRU), {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}[kind]
    with torch.no_grad():
        for name, weight in model.rnn.named_parameters():
            weight.unflatten(0, (gates, 4))[:, 2] *= 1e-3 if "weight" in name else 1.0
    stages = [{"prune": {"config_list": [{"op_types": [kind.__name__], "sparsity": 0.25}]}}]
    result = mp.compress(model, stages, None, X)
    small: Any = result.model
    shapes = {name: tuple(weight.shape) for name, weight in small.rnn.named_parameters()}
    assert small.rnn.hidden_size == 3
    assert (shapes["weight_ih_l0"], shapes["weight_hh_l1_reverse"]) == ((3 * gates, 3), (3 * gates, 3))
    assert (shapes["weight_ih_l1"], shapes["bias_hh_l0"]) == ((3 * gates, 6), (3 * gates,))
    assert (small.steps.in_features, small.last.in_features) == (6, 3)
    rows = model.rnn.weight_hh_l1.detach().unflatten(0, (gates, 4))[:, [0, 1, 3]][..., [0, 1, 3]]
    torch.testing.assert_close(small.rnn.weight_hh_l1.detach(), rows.flatten(0, 1), rtol=0, atol=0)
    result.save(str(tmp_path / "artifact"))
    again: Any = mp.load(str(tmp_path / "artifact"), into=Tagger(kind, packed=kind is nn.GRU))
    torch.testing.assert_close(again.eval()(X), small.eval()(X), rtol=0, atol=0)


def test_a_state_of_another_layer_goes_along_and_a_given_one_holds() -> None:
    """A decoder that begins where an encoder ends loses the same units; what the caller gives, or reads, stays."""

    class Translator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.LSTM(3, 4), nn.LSTM(3, 4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            _, state = self.first(x)
            return self.head(self.second(input=x, hx=state)[0])

    (group,) = find_dependencies(Translator(), X).groups
    assert (group.producers, len(group.units)) == (("first", "second"), 4)
    state = torch.zeros(4, 2, 4)
    found = find_dependencies(Tagger(nn.GRU), (X, state))
    assert "GRU in 'rnn' (test_recurrent.py:" in _why(found, "rnn")
    assert "begins with a state that is given to it" in _why(found, "rnn")
    found = find_dependencies(nn.LSTM(3, 4), X)
    assert found.groups == []
    assert "output" in next(iter(found.frozen.values()))


def test_hidden_units_of_a_cell_go_with_the_zeros_that_the_code_begins_with() -> None:
    """A quarter of eight: rows of every gate, what takes the units, and the number in the user's module."""
    torch.manual_seed(0)
    stages = [{"prune": {"config_list": [{"op_types": ["LSTMCell"], "sparsity": 0.25}]}}]
    small: Any = mp.compress(known_nets.NETS["LSTMCell"]()[0], stages, None, known_nets.words()).model
    cell = small.inner.cell
    assert (cell.hidden_size, small.inner.hidden, small.inner.out.in_features) == (6, 6, 6)
    assert (tuple(cell.weight_ih.shape), tuple(cell.weight_hh.shape), tuple(cell.bias_hh.shape)) == (
        (24, 12), (24, 6), (24,),
    )  # fmt: skip
    assert small(known_nets.words()).shape == (2, 6, 11)


class Language(nn.Module):
    """Tied embeddings around a gated layer behind a root mean square norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(9, 6), nn.RMSNorm(6)
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)
        self.head = nn.Linear(6, 9)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        return self.head(self.norm(x + self.down(torch.relu(self.up(x)))))


def test_hidden_width_goes_where_embeddings_are_tied(tmp_path: Path) -> None:
    """A third of six, in both at once: they are one parameter before and after; so are the rows that are words."""
    torch.manual_seed(0)
    ids = torch.arange(8).view(2, 4)
    dense = Language()
    found = find_dependencies(dense, ids)
    assert {(group.producers, len(group.units)) for group in found.groups} == {(("embed", "down"), 6), (("up",), 8)}
    assert "is shared with another module (test_recurrent.py:" in _why(found, "head")
    entry = {"op_types": ["Embedding", "Linear"], "op_names": ["embed", "down"], "sparsity": 0.34}
    stages = [{"prune": {"config_list": [entry]}}]
    result = mp.compress(dense, stages, None, ids)
    model: Any = result.model
    assert model.head.weight is model.embed.weight
    assert (tuple(model.embed.weight.shape), model.head.in_features, model.up.in_features) == ((9, 4), 4, 4)
    assert sum(p.numel() for p in model.parameters()) == 9 * 4 + 9 + 4 + (4 * 8 + 8) + (8 * 4 + 4)
    result.save(str(tmp_path / "artifact"))
    again: Any = mp.load(str(tmp_path / "artifact"), into=Language())
    assert again.head.weight is again.embed.weight
    torch.testing.assert_close(again.eval()(ids), model.eval()(ids), rtol=0, atol=0)
