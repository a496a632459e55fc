"""Dependency analysis with torch-pruning: the only place that touches it. Runs as a process of its own (see plan.py).

torch-pruning traces one forward pass by autograd and knows for each pair of neighbouring operations how channel
numbers map from one to the other (DepGraph, Fang et al. 2023, arXiv 2301.12900). Its own walk over that graph can go on
for ever (grouped-query attention), costs a pass over the graph for every channel, and does not know which group numbers
a GroupNorm allows; so only its edges are used here, and channels that an edge connects are joined into units (by
union-find).

    python -m modelpress_runner.dependency.trace_graph FOLDER PIPE
reads FOLDER/question.json (sys.path of the parent, seconds) and FOLDER/model.pt, closes the inherited pipe once the
model is there, and writes FOLDER/answer.json: {"coupling": ...}, {"error": reason}, or {"unreadable": reason} if the
model cannot be unpickled here. The folder is private to one question.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modelpress_runner.dependency.groups import ChannelDependencies, DependentAxis
from modelpress_runner.dependency.reach import spare_unreached
from modelpress_runner.edits.axes import CONV, axis_of
from modelpress_runner.errors import CompressionError
from modelpress_runner.runtime.graph import call, map_tensors, tensors_in


def find_dependencies(model: nn.Module, dummy_input: Any) -> ChannelDependencies:
    """Finds out which channels of `model` hang together, from one forward pass in eval mode.

    Changes the model (requires_grad, eval mode): give a copy.

    Raises:
        CompressionError: the forward pass fails, or autograd cannot follow it.
    """
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(True)
    try:
        return spare_unreached(_Tracer(model, dummy_input).dependencies(), model, dummy_input)
    except CompressionError:
        raise
    except Exception as error:
        raise CompressionError(
            f"torch-pruning cannot follow this model: {type(error).__name__}: {error}; "
            "set shrink: false, or prune the model without it"
        ) from error


_MAX_CHANNELS = 4096  # of an operation in a model whose layers have fewer than half of it


class _Tracer:
    """One dependency graph, walked once. An atom is (node number, side, channel)."""

    def __init__(self, model: nn.Module, dummy_input: Any) -> None:
        self.model = model
        self.names = {module: name for name, module in model.named_modules()}
        self.parameter_names = {id(p): name for name, p in model.named_parameters()}
        self.graph, self.inputs, self.outputs = _trace(model, dummy_input)
        self.nodes = list(self.graph.module2node.values())
        self.number = {id(node): number for number, node in enumerate(self.nodes)}
        self.parent: list[int] = []
        self.atoms: dict[tuple[int, str, int], int] = {}
        self.reasons: list[tuple[int, str]] = []  # (atom, why its unit must stay)

    def dependencies(self) -> ChannelDependencies:
        self._walk()
        axes: list[tuple[str, str, bool, list[int]]] = []
        for number, node in enumerate(self.nodes):
            axes += self._axes_of(number, node)
        self._freeze_ends()
        order = {name: n for n, name in enumerate(dict(self.model.named_modules()))}
        axes.sort(key=lambda axis: (order.get(axis[0], len(order)), axis[1] != "out"))
        units: dict[int, int] = {}
        coupled = [
            DependentAxis(name, side, producer, tuple(units.setdefault(self._find(a), len(units)) for a in atoms))
            for name, side, producer, atoms in axes
        ]
        frozen: dict[int, str] = {}
        for atom, reason in self.reasons:
            unit = units.get(self._find(atom))
            if unit is not None:
                frozen.setdefault(unit, reason)
        made = {unit for axis in coupled if axis.producer for unit in axis.units}
        for axis in coupled:
            for unit in set(axis.units) - made:
                frozen.setdefault(unit, f"'{axis.module}' takes these channels from outside the traced model")
        return ChannelDependencies(tuple(coupled), frozen)

    # The walk ---------------------------------------------------------------------------------------------------------

    def _walk(self) -> None:
        from torch_pruning._helpers import _HybridIndex
        from torch_pruning.dependency.index_mapping import _GQAIndexMapping

        edges: dict[tuple[int, str], list[tuple[int, str, list[Any]]]] = defaultdict(list)
        for number, node in enumerate(self.nodes):
            for dep in node.dependencies:
                target = self.number[id(dep.target)]
                mappings = [mapping for mapping in dep.index_mapping if mapping is not None]
                edges[number, self._side(node, dep.trigger)].append(
                    (target, self._side(dep.target, dep.handler), mappings)
                )
        todo = [
            (number, side, list(range(size)))
            for number, node in enumerate(self.nodes)
            for side, size in self._sizes(node)
        ]
        for number, side, channels in todo:
            for channel in channels:
                self._atom(number, side, channel)
        limit = max([_MAX_CHANNELS, *(2 * len(channels) for _, _, channels in todo)])
        broken: dict[tuple[int, str], str] = {}
        while todo:
            number, side, channels = todo.pop()
            for target, target_side, mappings in edges[number, side]:
                pairs: Iterator[tuple[int, int]]
                if mappings:
                    mapped = [_HybridIndex(idx=channel, root_idx=channel) for channel in channels]
                    lossy = any(isinstance(mapping, _GQAIndexMapping) for mapping in mappings)
                    try:
                        for mapping in mappings:
                            mapped = mapping(mapped)
                    except (IndexError, ZeroDivisionError, TypeError, ValueError):
                        # What it joins is not known, so that nothing on either side of it may go.
                        broken[number, side] = broken[target, target_side] = self._between(number, target)
                        continue
                    if lossy:  # it forgets where an index came from, but keeps their order
                        pairs = zip(channels, (item.idx for item in mapped), strict=False)
                    else:
                        pairs = ((item.root_idx, item.idx) for item in mapped)
                else:
                    pairs = ((channel, channel) for channel in channels)
                fresh = []
                for channel, other in pairs:
                    if other >= limit:  # a slice in a circle, taken for one of channels, goes on for ever
                        broken[number, side] = broken[target, target_side] = self._between(number, target)
                        break
                    if (target, target_side, other) not in self.atoms:
                        fresh.append(other)
                    self._join(self._atom(number, side, channel), self._atom(target, target_side, other))
                if fresh:
                    todo.append((target, target_side, fresh))
        for (number, side, _), atom in self.atoms.items():
            if (number, side) in broken:
                self.reasons.append((atom, broken[number, side]))

    def _between(self, number: int, target: int) -> str:
        """Why nothing goes at an edge that torch-pruning itself cannot follow."""
        ends = [self.names.get(node.module) for node in (self.nodes[number], self.nodes[target])]
        named = " and ".join(f"'{name}'" for name in ends if name) or "an operation on them"
        return f"torch-pruning cannot follow channels at {named}"

    def _side(self, node: Any, function: Any) -> str:
        pruner = self.graph.get_pruner_of_module(node.module)
        return "out" if function == pruner.prune_out_channels else "in"

    def _sizes(self, node: Any) -> Iterator[tuple[str, int]]:
        if node.module not in self.names and id(node.module) not in self.parameter_names:
            return
        pruner = self.graph.get_pruner_of_module(node.module)
        size = self.graph.get_out_channels(node)
        if size is not None:
            yield "out", size
        if pruner.prune_in_channels != pruner.prune_out_channels:
            size = self.graph.get_in_channels(node)
            if size is not None:
                yield "in", size

    def _atom(self, number: int, side: str, channel: int) -> int:
        key = (number, side, channel)
        atom = self.atoms.get(key)
        if atom is None:
            atom = self.atoms[key] = len(self.parent)
            self.parent.append(atom)
        return atom

    def _find(self, atom: int) -> int:
        parent = self.parent
        while parent[atom] != atom:
            parent[atom] = parent[parent[atom]]
            atom = parent[atom]
        return atom

    def _join(self, first: int, second: int) -> None:
        self.parent[self._find(first)] = self._find(second)

    # What the modules allow -------------------------------------------------------------------------------------------

    def _axes_of(self, number: int, node: Any) -> list[tuple[str, str, bool, list[int]]]:
        """The axes of one node that can be cut; ties channels that its groups hold together; freezes what cannot be."""
        module = node.module
        name = self.names.get(module) if isinstance(module, nn.Module) else self.parameter_names.get(id(module))
        sizes = dict(self._sizes(node))
        if name is None or not sizes:
            return []
        out = []
        for side, size in sizes.items():
            atoms = [self._atom(number, side, channel) for channel in range(size)]
            reason = self._refusal(module, name, side, size)
            if reason is None and (number, side, size) in self.atoms:
                reason = f"torch-pruning maps channels onto '{name}' that it does not have; exclude it"
            if reason is not None:
                self.reasons += [(atom, reason) for atom in atoms]
            out.append((name, side, isinstance(module, CONV | nn.Linear | nn.Embedding), atoms))
        if not isinstance(module, CONV | nn.GroupNorm):
            return out
        groups = module.groups if isinstance(module, CONV) else module.num_groups
        if groups == 1:
            return out
        by_side = {side: atoms for _, side, _, atoms in out}
        # A GroupNorm's statistics run over its groups, and a convolution with many small ones loses more freedom by
        # keeping all of them equal: there whole groups go. Else the channels at one place in all groups go together.
        widths = [len(atoms) // groups for atoms in by_side.values()]
        if isinstance(module, nn.GroupNorm) or groups >= min(widths):
            for atoms in by_side.values():
                width = len(atoms) // groups
                for channel, atom in enumerate(atoms):
                    self._join(by_side["out"][channel // width * (len(by_side["out"]) // groups)], atom)
            return [(name, "out", False, by_side["out"])]
        for atoms in by_side.values():
            width = len(atoms) // groups
            for channel, atom in enumerate(atoms):
                self._join(atoms[channel % width], atom)
        return out

    def _refusal(self, module: Any, name: str, side: str, size: int) -> str | None:
        if isinstance(module, nn.LayerNorm):
            return f"the LayerNorm '{name}' takes its statistics over them"
        if isinstance(module, nn.GroupNorm) and module.num_groups == 1:
            return f"the GroupNorm '{name}' has one group and takes its statistics over them"
        if isinstance(module, nn.Embedding):
            return f"the embedding '{name}' makes them"
        if isinstance(module, CONV) and module.in_channels != module.out_channels == module.groups > 1:
            return f"'{name}' has as many groups as outputs, but takes several inputs in each"
        try:
            view = axis_of(self.model, name, side)
        except CompressionError as error:
            return str(error)
        if view.size != size:
            return f"torch-pruning takes the {view.size} channels of '{name}' for {size}"
        for tensor in view.parameters:
            if self._uses(getattr(view.owner, tensor)) > 1:
                return f"'{name}.{tensor}' is shared with another module"
        return None

    def _uses(self, parameter: torch.Tensor) -> int:
        return sum(p is parameter for module in self.model.modules() for p in module._parameters.values())

    def _freeze_ends(self) -> None:
        ends: dict[int, str] = {}
        for number, node in enumerate(self.nodes):
            if any(node.grad_fn is grad_fn for grad_fn in self.outputs):
                ends[number] = "they reach the model's output"
            elif any(node.module is tensor for tensor in self.inputs):
                ends[number] = "they are tied to the model's input"
        for (number, side, _), atom in self.atoms.items():
            if side == "out" and number in ends:
                self.reasons.append((atom, ends[number]))


def _trace(model: nn.Module, dummy_input: Any) -> tuple[Any, list[torch.Tensor], list[Any]]:
    """torch-pruning's graph, the input tensors that are nodes of it, and the grad_fns of the outputs."""
    # Inputs become nodes too, so that what is added to them is known to be tied. A model that changes its input in
    # place cannot be traced that way; then they are left out, and the proof has to find such ties.
    try:
        return _trace_with(model, map_tensors(dummy_input, _leaf))
    except RuntimeError as error:
        if "leaf Variable" not in str(error):
            raise
        return _trace_with(model, dummy_input)


def _leaf(tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_floating_point() or tensor.dim() < 2:
        return tensor
    # torch-pruning knows the width of a Parameter; three-dimensional ones it takes for a ViT's position embeddings.
    return tensor.detach().clone().requires_grad_(True) if tensor.dim() == 3 else nn.Parameter(tensor.detach().clone())


def _trace_with(model: nn.Module, inputs: Any) -> tuple[Any, list[torch.Tensor], list[Any]]:
    import torch_pruning

    leaves = [tensor for tensor in tensors_in(inputs) if tensor.is_leaf and tensor.requires_grad]
    seen: list[torch.Tensor] = []

    def forward(traced: nn.Module, given: Any) -> list[torch.Tensor]:
        seen.extend(t for t in tensors_in(call(traced, given)) if t.grad_fn is not None)
        if not seen:
            raise CompressionError("no output of the model depends on its parameters in a way that autograd can follow")
        return seen

    graph = torch_pruning.DependencyGraph()
    with torch.enable_grad(), warnings.catch_warnings():
        # It guesses widths no deeper than that; what it gets wrong, the proof finds.
        warnings.filterwarnings("ignore", message="Maximum recursive depth reached")
        graph.build_dependency(
            model,
            inputs,
            forward_fn=forward,
            unwrapped_parameters=[(leaf, 1) for leaf in leaves],
            verbose=False,
        )
    return graph, leaves, [tensor.grad_fn for tensor in seen]


def main(folder: Path, ready: int) -> None:
    """Reads the question in `folder`, closes the pipe `ready` when the work begins, and leaves the answer there."""
    question = json.loads((folder / "question.json").read_text())
    sys.path[:] = question["sys.path"]
    # Should the parent be killed, this process must not outlive its time limits.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(question["startSeconds"] + 5)
    answer: dict[str, Any]
    try:
        model, dummy_input = torch.load(folder / "model.pt", map_location="cpu", weights_only=False)
    except Exception as error:
        answer = {"unreadable": f"{type(error).__name__}: {error}"}
    else:
        signal.alarm(question["seconds"] + 5)
        os.close(ready)
        try:
            answer = {"coupling": find_dependencies(model, dummy_input).to_dict()}
        except CompressionError as error:
            answer = {"error": str(error)}
    partial = folder / "answer.json.part"
    partial.write_text(json.dumps(answer))
    partial.rename(folder / "answer.json")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
