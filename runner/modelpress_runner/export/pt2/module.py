"""The module that a program is opened as: it runs a graph for eval() and one for train(), over one state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from modelpress_runner.errors import ArtifactError
from modelpress_runner.export.pt2.graph import STATE, Graph


class Program(nn.Module):
    """An exported model. It has the parameters and buffers of the model, under their names, and none of its classes.

    It takes what the model took (any batch size, positional or by name) and returns tensors, tuples, lists or dicts of
    tensors. `train()` and `eval()` switch dropout, BatchNorm and whatever else depends on the mode, for the whole
    program: the mode of a single submodule has no effect. It can be finetuned, moved and copied; it holds no Conv2d or
    Linear to prune again (for that, `mp.load(uri, into=model)`).
    """

    def __init__(
        self,
        eval_graph: Graph,
        train_graph: Graph | None,
        state: Mapping[str, torch.Tensor],
        eval_constants: Mapping[str, torch.Tensor],
        train_constants: Mapping[str, torch.Tensor],
        no_training: str | None = None,
    ) -> None:
        """
        Args:
            eval_graph: what runs after eval().
            train_graph: what runs after train(); None: the same.
            state: parameters (instances of nn.Parameter) and persistent buffers by name.
            eval_constants: tensors that `eval_graph` needs besides `state`.
            train_constants: tensors that `train_graph` needs besides `state`.
            no_training: why train() does not work; None: it does.
        """
        super().__init__()
        self._mp_no_training = no_training
        for name, tensor in state.items():
            _register(self, name, tensor, persistent=True)
        evaluated = trained = _Bound(self, eval_graph, eval_constants, "constants_eval")
        if train_graph is not None:
            trained = _Bound(self, train_graph, train_constants, "constants_train")
        self._mp_graphs = {False: evaluated, True: trained}
        self.eval()

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs, in order."""
        return self._mp_graphs[False].names

    def train(self, mode: bool = True) -> Program:
        """Switches to training, or back. ArtifactError if the model could not be exported for training."""
        if mode and self._mp_no_training is not None:
            raise ArtifactError(
                f"this program runs in eval mode only ({self._mp_no_training}); to train, load it with "
                "mp.load(uri, into=model)"
            )
        super().train(mode)
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model's forward returned. TypeError or ValueError if the inputs are not what the model takes."""
        return self._mp_graphs[self.training].run(args, kwargs)

    def extra_repr(self) -> str:
        return ", ".join(self._mp_graphs[False].described())


class _Bound:
    """A graph, and where in the program's tree its state lies."""

    def __init__(self, root: nn.Module, graph: Graph, constants: Mapping[str, torch.Tensor], folder: str) -> None:
        self.module, self.outputs, self.root = graph.module, graph.outputs, root
        self.in_spec, self.out_spec = graph.in_spec, graph.out_spec
        self.sources: list[tuple[nn.Module, str] | None] = []
        self.inputs = [(given.name, given.expected) for given in graph.inputs if given.kind not in STATE]
        for given in graph.inputs:
            if given.target is None:
                self.sources.append(None)
                continue
            name = given.target
            if not _has(root, name):
                if name not in constants:
                    raise ArtifactError(f"model.pt2 lacks the tensor {name!r}; fetch the artifact again")
                if given.kind != "buffer":
                    name = f"{folder}.{name.replace('.', '_')}"
                if not _has(root, name):
                    _register(root, name, constants[given.target], persistent=False)
            owner, _, leaf = name.rpartition(".")
            self.sources.append((root.get_submodule(owner), leaf))
        for kind, target in graph.outputs:
            own = kind == "user_input_mutation"
            if target is not None and not (target in dict(self.inputs) if own else _has(root, target)):
                raise ArtifactError(f"model.pt2 changes {target!r}, which it does not have; fetch the artifact again")
        self.names = graph.names
        positional, named = self.in_spec.children()
        self.positional, self.named = positional.num_children, list(named.context or [])
        if len(self.names) != self.positional + len(self.named):
            self.names = (*(f"argument {index}" for index in range(self.positional)), *self.named)

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        flat = self._flatten(args, kwargs)
        given = iter(flat)
        inputs = [next(given) if source is None else _get(*source) for source in self.sources]
        results = self.module(*inputs)
        returned = []
        for (kind, target), value in zip(self.outputs, results, strict=True):
            if target is None:
                returned.append(value)
            elif kind == "user_input_mutation":
                flat[[name for name, _ in self.inputs].index(target)].copy_(value)
            else:
                owner, _, leaf = target.rpartition(".")
                with torch.no_grad():
                    _get(self.root.get_submodule(owner), leaf).copy_(value)
        return pytree.tree_unflatten(returned, self.out_spec)

    def described(self) -> list[str]:
        return [f"{name}: {_shape_text(expected)}" for name, expected in self.inputs]

    def _flatten(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        if len(args) != self.positional or list(kwargs) != self.named:
            args, kwargs = self._bind(args, kwargs)
        flat, spec = pytree.tree_flatten((args, kwargs))
        if spec != self.in_spec:
            raise TypeError(
                f"the inputs are not nested as at export; the program takes ({', '.join(self.described())})"
            )
        sizes: dict[str, int] = {}
        for (name, expected), value in zip(self.inputs, flat, strict=True):
            if not isinstance(expected, tuple):
                if value != expected or isinstance(value, torch.Tensor):
                    raise ValueError(f"input {name} was {expected!r} at export and cannot be {_brief(value)}")
                continue
            if not isinstance(value, torch.Tensor):
                raise TypeError(f"input {name} is a {type(value).__name__}; the program takes a tensor")
            fits = len(expected) == value.ndim and all(
                size == sizes.setdefault(want, size) if isinstance(want, str) else want is None or size == want
                for want, size in zip(expected, value.shape, strict=True)
            )
            if not fits:
                raise ValueError(
                    f"input {name} is of shape {tuple(value.shape)}; the program takes {_shape_text(expected)}"
                )
        return flat

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given = dict(zip(self.names, args, strict=False))
        twice = given.keys() & kwargs.keys()
        given.update(kwargs)
        if len(args) > len(self.names) or twice or given.keys() != set(self.names):
            named = [*(f"positional {index}" for index in range(len(args))), *kwargs]
            raise TypeError(
                f"the program takes the inputs {', '.join(self.names)}; given: {', '.join(named) or 'none'}; "
                "inputs that were not in dummy_input are not part of it"
            )
        values = [given[name] for name in self.names]
        return tuple(values[: self.positional]), dict(zip(self.named, values[self.positional :], strict=True))


def _shape_text(expected: Any) -> str:
    if not isinstance(expected, tuple):
        return repr(expected)
    sizes = [
        str(size) if isinstance(size, int) else "batch" if index == 0 else "any" for index, size in enumerate(expected)
    ]
    return f"({', '.join(sizes)})"


def _brief(value: Any) -> str:
    return "a tensor" if isinstance(value, torch.Tensor) else repr(value)[:64]


def _register(root: nn.Module, name: str, tensor: torch.Tensor, *, persistent: bool) -> None:
    *path, leaf = name.split(".")
    owner = root
    for part in path:
        if part not in owner._modules:
            owner.add_module(part, nn.Module())
        owner = owner.get_submodule(part)
    if isinstance(tensor, nn.Parameter):
        owner.register_parameter(leaf, tensor)
    else:
        owner.register_buffer(leaf, tensor, persistent=persistent)


def _has(root: nn.Module, name: str) -> bool:
    *path, leaf = name.split(".")
    owner = root
    for part in path:
        if part not in owner._modules:
            return False
        owner = owner.get_submodule(part)
    return leaf in owner._parameters or leaf in owner._buffers


def _get(owner: nn.Module, leaf: str) -> torch.Tensor:
    # Straight from the tables: nn.Module's attribute access is slow. A parametrized weight is in neither.
    found: torch.Tensor | None = owner._parameters.get(leaf)
    if found is None:
        found = owner._buffers.get(leaf)
    return getattr(owner, leaf) if found is None else found
