"""Whole experts of mixtures: where they are, what the router gives each, the cuts that take them out, the proof."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from modelpress.api.v1alpha1 import DropExperts
from modelpress_runner.edits.attributes import Attribute
from modelpress_runner.edits.base import Edit
from modelpress_runner.edits.cuts import Cut
from modelpress_runner.edits.entries import Entries
from modelpress_runner.edits.replay import replay
from modelpress_runner.errors import CompressionError, InvalidSpecError, first_line
from modelpress_runner.evaluators.hooks import ForwardHook
from modelpress_runner.methods.context import StageContext
from modelpress_runner.methods.drop.whole import selected
from modelpress_runner.passes.collectors import Collector, Pass
from modelpress_runner.passes.run import Sources, run_pass
from modelpress_runner.runtime import rng
from modelpress_runner.runtime.example_inputs import as_call
from modelpress_runner.runtime.graph import tensors_in
from modelpress_runner.runtime.preserve import untouched

TAKES = "dropExperts takes modules that hold a router and experts: a list of them, or tensors with a row for each"
_CHOSEN = ("top_k", "num_experts_per_tok", "num_selected_experts")
_GROUPS = ("n_group", "num_expert_group", "n_groups")
_TOKENS, _LOW = 64, 1e4
_NEAR = {torch.float64: 1e-9, torch.float32: 1e-5}


@dataclass(frozen=True)
class Mixture:
    """A module with a router and experts.

    Attributes:
        module: its name.
        router: name of the module whose weight has a row for each expert.
        tensors: names of the parameters, in full, whose first dimension are the experts; empty: they are a list.
        held: name of the module that holds the experts.
        numbers: (module, attribute) of whole numbers that count them.
        experts: how many there are.
        chosen: how many of them a token is sent to.
    """

    module: str
    router: str
    tensors: tuple[str, ...]
    held: str
    numbers: tuple[tuple[str, str], ...]
    experts: int
    chosen: int

    def edits(self, model: nn.Module, kept: Sequence[int]) -> list[Edit]:
        """What leaves the experts `kept`, ascending."""
        router, keep = model.get_submodule(self.router), tuple(kept)
        out: list[Edit] = []
        if isinstance(router, nn.Linear):
            out.append(Cut(self.router, "out", keep))
        else:
            out += [Cut(f"{self.router}.{name}", "dim0", keep) for name in _rows(router, self.experts)]
        out += [Cut(name, "dim0", keep) for name in self.tensors] or [Entries(self.held, keep)]
        return [*out, *(Attribute(module, name, len(keep)) for module, name in self.numbers)]


def mixtures(model: nn.Module) -> list[Mixture]:
    """All of them, known by the shapes of their weights, in the model's order."""
    found = [each for name, module in model.named_modules() if (each := _mixture(name, module)) is not None]
    return [each for each in found if not any(other.module.startswith(f"{each.module}.") for other in found)]


def _mixture(name: str, module: nn.Module) -> Mixture | None:
    children = dict(module.named_children())
    prefix = f"{name}." if name else ""
    for held, experts in children.items():
        count = _count(experts)
        if count < 2 or (isinstance(experts, nn.ModuleList) and not _says_expert(held, experts)):
            continue
        routers = [
            (f"{prefix}{other}.{inner}".rstrip("."), part)
            for other, child in children.items()
            if other != held
            for inner, part in child.named_modules()
            if _routes(part, count)
        ]
        if not routers:
            continue
        where, router = routers[0]
        holders = {name: module, f"{prefix}{held}": experts, where: router}
        numbers = [
            (place, key)
            for place, holder in holders.items()
            for key, value in vars(holder).items()
            if type(value) is int and value == count and "expert" in key and key not in _CHOSEN
        ]
        said = [getattr(holder, key, None) for holder in holders.values() for key in _CHOSEN]
        groups = [getattr(holder, key, None) for holder in holders.values() for key in _GROUPS]
        if any(isinstance(value, int) and value > 1 for value in groups):
            continue  # the choice is among groups of equal size
        chosen = next((value for value in said if type(value) is int), 1)
        rows = () if isinstance(experts, nn.ModuleList) else _rows(experts, count)
        tensors = tuple(f"{prefix}{held}.{key}" for key in rows)
        return Mixture(name, where, tensors, f"{prefix}{held}", tuple(numbers), count, chosen)
    return None


def _count(experts: nn.Module) -> int:
    """How many experts a module holds: modules that are alike, or rows of its tensors; 0: none."""
    if isinstance(experts, nn.ModuleList):
        alike = {(type(each), *((key, value.shape) for key, value in each.named_parameters())) for each in experts}
        return len(experts) if len(alike) == 1 and any(True for _ in experts.parameters()) else 0
    own = [value for value in experts._parameters.values() if value is not None and value.dim() >= 3]
    counts = {value.shape[0] for value in own}
    return counts.pop() if len(counts) == 1 else 0


def _says_expert(name: str, held: nn.ModuleList) -> bool:
    """Whether a list of modules beside a layer of as many rows, which may be anything, is said to hold experts."""
    return any("expert" in text.lower() for text in (name, type(held).__name__, type(held[0]).__name__))


def _routes(module: nn.Module, count: int) -> bool:
    """Whether a module has a weight with a row for each of so many experts, and nothing else that has no cut."""
    weight = module._parameters.get("weight")
    if weight is None or weight.dim() != 2 or weight.shape[0] != count:
        return False
    # What is added to the choice of each.
    return not any(value is not None and value.dim() and value.shape[0] == count for value in module._buffers.values())


def _rows(module: nn.Module, count: int) -> list[str]:
    return [k for k, v in module._parameters.items() if v is not None and v.dim() and v.shape[0] == count]


def mixtures_of(model: nn.Module, block: DropExperts, path: str) -> list[Mixture]:
    """The selected ones; all have as many experts.

    Raises:
        InvalidSpecError: a selector matches nothing, what is named is none, or their numbers of experts differ.
    """
    found = {each.module: each for each in mixtures(model)}
    names = selected(model, block, path, list(found), TAKES)
    for name, number in names.items():
        if number is not None and name not in found:
            kind = type(model.get_submodule(name)).__name__
            raise InvalidSpecError(f"'{name}' is a {kind}; {TAKES}", f"{path}.configList[{number}].opNames")
    taken = [found[name] for name in names if name in found]
    if not taken:
        raise InvalidSpecError(f"no selected module holds experts; {TAKES}", path)
    sizes = {each.experts for each in taken}
    if len(sizes) > 1:
        listed = ", ".join(f"'{each.module}' {each.experts}" for each in taken[:6])
        raise InvalidSpecError(
            f"layers have different numbers of experts ({listed}); give each number a stage of its own", path
        )
    return taken


def counts_beside(model: nn.Module, taken: Sequence[Mixture], kept: int) -> list[Edit]:
    """Numbers of experts that modules around all mixtures keep for themselves follow, where all lose as many."""
    if [each.module for each in taken] != [each.module for each in mixtures(model)]:
        return []
    known = {where for each in taken for where in each.numbers}
    return [
        Attribute(name, key, kept)
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if key in ("num_experts", "num_local_experts", "n_routed_experts")
        and type(value) is int
        and value == taken[0].experts
        and (name, key) not in known
    ]


def usages(
    context: StageContext, taken: Sequence[Mixture], steps: int | None, seed: int, path: str
) -> dict[str, list[float]]:
    """What the router gives each expert: the mean over tokens of its probability, where it is among those chosen
    (Muzio et al. 2024, arXiv 2404.05089).

    Raises:
        InvalidSpecError: there is no data to look at.
        CompressionError: a router is not called in the pass.
    """
    sources = Sources(context.evaluator, context.calibration_data)
    kind = sources.kind({"activations"})
    if kind is None:
        missing = sources.missing({"activations"})
        raise InvalidSpecError(f"what the router gives is seen in a pass over data, but {missing}", path)
    collectors, count = run_pass(
        context.model,
        sources,
        kind,
        lambda data: {each.module: Given(each, data) for each in taken},
        batches=steps,
        seed=seed,
        stop=context.stop,
    )
    context.report(f"scored the experts of {len(taken)} layers by {count} {kind}")
    return {name: each.compute().tolist() for name, each in collectors.items()}


class Given(Collector):
    """Sums of a router's probabilities over the tokens that an expert is chosen for."""

    states: ClassVar = {"_total": "sum", "_count": "sum"}

    def __init__(self, mixture: Mixture, data: Pass) -> None:
        self._mixture, self._data = mixture, data
        self._total = torch.zeros(mixture.experts, dtype=torch.float64)
        self._count = torch.zeros((), dtype=torch.float64)
        self._hook = ForwardHook(self._look)

    def attach(self) -> None:
        """As Collector.attach."""
        self._data.register_forward_hook(self._mixture.router, self._hook)

    def update(self) -> None:
        """As Collector.update."""
        for total, count in self._hook.buffer:
            self._total += total
            self._count += count
        self._hook.buffer.clear()

    def compute(self) -> torch.Tensor:
        """As Collector.compute."""
        if not self._count:
            raise CompressionError(f"'{self._mixture.router}' was not called in the pass over data; exclude its layer")
        return self._total / self._count

    def _look(self, buffer: list[Any], module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        with torch.no_grad():
            # From what it takes: what routers give has many forms.
            taken = tensors_in(args)[0].detach()
            weight, bias = module._parameters["weight"], module._parameters.get("bias")
            assert weight is not None
            logits = nn.functional.linear(taken.reshape(-1, weight.shape[1]).float(), weight.float())
            logits = logits if bias is None else logits + bias.float()
            shares = logits.softmax(dim=-1)
            best = shares.topk(min(self._mixture.chosen, shares.shape[1]), dim=-1)
            sums = torch.zeros_like(shares).scatter_(1, best.indices, best.values).double().sum(dim=0)
            buffer.append((sums.cpu(), len(shares)))


def prove(model: nn.Module, taken: Sequence[Mixture], edits: Sequence[Edit], dummy_input: Any) -> tuple[int, int]:
    """Proves that each layer without experts gives what it gave where none of them was chosen, and that the model runs.

    Drawn are tokens and, for the experts that go, rows of the router that no token chooses. Real are all other weights.

    Returns:
        Parameters before and after.

    Raises:
        CompressionError: it does not hold.
    """
    small = copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})
    replay(small, edits)
    shapes = []
    for each in (model, small):
        args, kwargs = as_call(dummy_input)
        try:
            with untouched(each), rng.fork_rng(0), torch.no_grad():
                shapes.append([tuple(tensor.shape) for tensor in tensors_in(each.eval()(*args, **kwargs))])
        except Exception as error:
            raise CompressionError(
                f"without experts the model does not run: {type(error).__name__}: {first_line(error)}"
            ) from error
    if shapes[0] != shapes[1]:
        raise CompressionError(f"without experts the model's outputs change: shapes {shapes[0]} became {shapes[1]}")
    for mixture in taken:
        _prove_one(model, small, mixture, edits)
    before, after = (sum(parameter.numel() for parameter in each.parameters()) for each in (model, small))
    return before, after


def _prove_one(model: nn.Module, small: nn.Module, mixture: Mixture, edits: Sequence[Edit]) -> None:
    where = (mixture.router, f"{mixture.router}.weight")
    kept = next(edit.kept for edit in edits if isinstance(edit, Cut) and edit.module in where)
    gone = [number for number in range(mixture.experts) if number not in kept]
    reasons = []
    for wide in _NEAR:
        try:
            gap = _gap(model, small, mixture, gone, wide)
        except Exception as error:
            reasons.append(f"{type(error).__name__}: {first_line(error)}")
            continue
        if not gap <= _NEAR[wide]:
            raise CompressionError(
                f"'{mixture.module}' without experts differs by {gap:.3g} of its largest value from itself where none "
                "of them is chosen: the others' shares depend on how many there are"
            )
        return
    raise CompressionError(f"'{mixture.module}' does not run by itself, so nothing can be proven ({reasons[0]})")


@torch.no_grad()
def _gap(model: nn.Module, small: nn.Module, mixture: Mixture, gone: list[int], wide: torch.dtype) -> float:
    whole, part = (copy.deepcopy(each.get_submodule(mixture.module)).to(wide).eval() for each in (model, small))
    inner = mixture.router[len(mixture.module) :].lstrip(".")
    router = whole.get_submodule(inner)
    weight = router._parameters["weight"]
    assert weight is not None
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn((1, _TOKENS, weight.shape[1]), generator=generator, dtype=torch.float64)
    tokens[..., 0] = tokens[..., 0].abs() + 1  # rows that look at it alone are never chosen
    weight[gone] = 0
    weight[gone, 0] = -_LOW
    given = tokens.to(weight.device, wide)
    old, new = (tensors_in(each(given.clone()))[0] for each in (whole, part))
    scale = float(old.abs().max())
    return float((old - new).abs().max()) / scale if scale else 0.0
