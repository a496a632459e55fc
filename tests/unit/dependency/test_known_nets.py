"""Nets of known kinds: what may go of each, by hand, that it is proven, and that whatever stays is told with a line."""

from __future__ import annotations

import re

import known_nets
import pytest
import torch
from random_nets import removal

from modelpress_runner.dependency.analyse import find_dependencies
from modelpress_runner.dependency.cutting import edits_of
from modelpress_runner.dependency.groups import ChannelDependencies
from modelpress_runner.dependency.prove import prove_structure
from modelpress_runner.edits.base import Edit

LINE = re.compile(r"\([\w<>]+\.\w+:\d+\)")
HEADS = {"embed inner.out": 12, "inner.q inner.k inner.v": 3}
# Of each net the groups that may go, by their producers, with their number of units.
GROUPS: dict[str, dict[str, int]] = {
    "C2f": {"0": 8, "1.first 1.inner.0.0 1.inner.1.0": 6, "1.last": 8},
    "U-Net": {"0": 8, "1.down": 8, "1.deep": 16, "1.up": 8, "1.out": 8},
    "ConvTranspose": {"0": 8, "1": 6, "3": 8},
    "PixelShuffle": {"0": 8, "1": 6, "3": 8},
    "channel shuffle": {"0": 4},
    "GLU": {"0": 8, "1": 6, "3": 8},
    "SE": {"0 1.expand": 8, "1.reduce": 3},
    "GroupNorm": {"0": 4},
    "LayerNorm": {},
    "frozen BatchNorm": {"0": 8},
    "weight_norm": {"2": 8},
    "spectral_norm": {"2": 8},
    "LSTM": {"embed inner.out": 12, "inner.rnn": 8},
    "GRU": {"embed inner.out": 12, "inner.rnn": 8},
    "tied embeddings": {"embed inner.2": 12, "inner.0": 16},
    "MultiheadAttention": {"embed inner.attention.out_proj": 12, "inner.attention": 3},
    "TransformerEncoder": {
        f"inner.layers.{n}.{part}": size for n in (0, 1) for part, size in (("self_attn", 3), ("linear1", 16))
    },
    "einsum attention": HEADS,
    "rotary": HEADS,
    "rotary by a table": HEADS,
    "ALiBi": HEADS,
    "LSTMCell": {"embed inner.out": 12, "inner.cell": 8},
    "GRUCell": {"embed inner.out": 12, "inner.cell": 8},
    "experts": {"embed inner.out": 12},
    "LoRA": {"embed inner.2.base inner.2.b": 12, "inner.0.base inner.0.b": 16, "inner.0.a": 2, "inner.2.a": 2},
}


def test_all_nets_are_known() -> None:
    """The table is whole."""
    assert GROUPS.keys() == known_nets.NETS.keys()


@pytest.mark.parametrize("name", known_nets.NETS)
def test_what_goes_is_proven_and_what_stays_is_told(name: str) -> None:
    """Nothing is frozen silently: every layer with parameters is in the analysis, every unit of it goes or is told of,
    and each reason names a line and what holds the channels there."""
    torch.manual_seed(0)
    model, inputs = known_nets.NETS[name]()
    model.eval()
    found = find_dependencies(model, inputs)
    assert {" ".join(group.producers): len(group.units) for group in found.groups} == GROUPS[name]
    for reason in found.frozen.values():
        assert LINE.search(reason), reason
        assert re.search(r"\w+ in '|'[\w.]+'|^\w+ \(", reason), reason
    free = {unit for group in found.groups for unit in group.units}
    assert {unit for axis in found.axes for unit in axis.units} == free | found.frozen.keys()
    known = {axis.module.rpartition(".")[0] if axis.axis.startswith("dim") else axis.module for axis in found.axes}
    owners = {path for path, module in model.named_modules() if any(True for _ in module.parameters(recurse=False))}
    assert {path for path in owners if "parametrizations" not in path} <= known
    if GROUPS[name]:
        prove_structure(model, _fours(found) if name == "experts" else removal(found, 0), inputs, draws=1)


def _fours(found: ChannelDependencies) -> list[Edit]:
    """Takes four units of each group: grouped_mm wants rows of whole 16 bytes."""
    removed = torch.zeros(found.unit_count, dtype=torch.bool)
    removed[[unit for group in found.groups for unit in group.units[:4]]] = True
    return edits_of(found, removed)
