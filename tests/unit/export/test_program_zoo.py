"""No honest model is refused: what the zoo exports to calls operators of the list, and is read as torch reads it."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import program_zoo
import pytest
import torch
from torch import fx

from modelpress_runner.export.pt2 import callees, graphcheck, program
from modelpress_runner.export.pt2.graph import read_graph
from modelpress_runner.export.pt2.quiet import quiet
from modelpress_runner.runtime.example_inputs import as_call


@pytest.mark.parametrize("source", [program_zoo.plain, pytest.param(program_zoo.pretrained, marks=pytest.mark.long)])
def test_honest_models_pass(source: Callable[..., object]) -> None:
    """Each passes the check in eval and in train form, calls nothing that a caller would have to name, and reads back.

    What is read calls what torch traced, as often, and gives the same numbers.
    """
    seen = 0
    for name, (model, inputs) in source():
        for training in (False, True):
            with warnings.catch_warnings(), quiet():
                warnings.simplefilter("ignore")
                traced = program.trace(model, inputs, training=training)
                document = program._document(traced)
                flat = traced._graph_module_flat_inputs(*as_call(inputs))
            graphcheck.check_program(document, name)
            assert callees.unlisted(callees.operators(callees.counted(document))) == set(), name
            module = read_graph(document).module
            assert called(module) == called(traced.graph_module), name
            wanted, found = run(traced.graph_module, flat), run(module, flat)
            assert len(wanted) == len(found) > 0, name
            assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True)), name
            seen += 1
    assert seen > 20


def called(module: fx.GraphModule) -> Counter[Any]:
    """How often the graph and those in it call what; items of several results come and go when a graph is written."""
    graphs = (each.graph for each in module.modules() if isinstance(each, fx.GraphModule))
    nodes: Iterator[fx.Node] = (node for graph in graphs for node in graph.nodes)
    return Counter(
        str(node.target) for node in nodes if node.op == "call_function" and "getitem" not in str(node.target)
    )


def run(module: fx.GraphModule, flat: Any) -> list[Any]:
    """The tensors that it returns, with the random numbers of seed 0; numbers as tensors."""
    torch.manual_seed(0)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        given = module(*(each.clone() if isinstance(each, torch.Tensor) else each for each in flat))
    return [each if isinstance(each, torch.Tensor) else torch.tensor(each) for each in given if each is not None]
