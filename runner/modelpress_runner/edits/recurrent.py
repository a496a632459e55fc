"""The channel axes of nn.LSTM, nn.GRU and nn.RNN, and of the cells that code steps itself.

A hidden unit is a row of each gate in the weights and biases of a layer, and a column of what takes the unit: the
layer's own next step, and the layer above. All layers and directions are equally wide, so the same places of all of
them go together.
"""

from __future__ import annotations

from torch import nn

from modelpress_runner.errors import CompressionError

RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}
_CELL_GATES = {nn.LSTMCell.forward: 4, nn.GRUCell.forward: 3, nn.RNNCell.forward: 1}


def recurrent_axis(module: nn.RNNBase | nn.RNNCellBase, name: str, axis: str) -> tuple[int, dict[str, str]]:
    """Size and layouts of the axis "in", "out" (rows of gates) or "hidden" (columns that take hidden units).

    Raises:
        CompressionError: it has none that can be cut.
    """
    if isinstance(module, nn.RNNCellBase):
        return _cell_axis(module, name, axis)
    kind = type(module)
    if kind.forward not in (nn.LSTM.forward, nn.GRU.forward, nn.RNN.forward):
        raise CompressionError(f"'{name}' ({kind.__name__}) has a forward of its own")
    ends = [f"l{layer}{way}" for layer in range(module.num_layers) for way in ("", "_reverse")[: _directions(module)]]
    if axis == "in":
        return module.input_size, {f"weight_ih_{end}": "cols" for end in ends[: _directions(module)]}
    if module.proj_size:
        raise CompressionError(f"'{name}' ({kind.__name__}) projects its hidden units")
    rows, width = module.get_parameter("weight_hh_l0").shape
    if axis == "out":
        gates = f"gates{_GATES[module.mode]}"
        kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh") if module.bias else ("weight_ih", "weight_hh")
        return rows // _GATES[module.mode], {f"{k}_{end}": gates for k in kinds for end in ends}
    above = {f"weight_ih_{end}": f"blocks{_directions(module)}" for end in ends[_directions(module) :]}
    return width, {f"weight_hh_{end}": "dim1" for end in ends} | above


def _cell_axis(module: nn.RNNCellBase, name: str, axis: str) -> tuple[int, dict[str, str]]:
    gates = _CELL_GATES.get(type(module).forward)
    if gates is None:
        raise CompressionError(f"'{name}' ({type(module).__name__}) has a forward of its own")
    if axis == "in":
        return module.input_size, {"weight_ih": "cols"}
    if axis == "hidden":
        return module.weight_hh.shape[1], {"weight_hh": "dim1"}
    kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh") if module.bias else ("weight_ih", "weight_hh")
    return module.weight_hh.shape[0] // gates, dict.fromkeys(kinds, f"gates{gates}")


def _directions(module: nn.RNNBase) -> int:
    return 2 if module.bidirectional else 1
