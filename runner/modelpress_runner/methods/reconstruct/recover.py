"""What `prune.reconstruct` does behind the masks of a round."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import nn

from modelpress.api.messages import keys_in_words
from modelpress.api.v1alpha1 import Prune, Reconstruct
from modelpress_runner.edits.axes import CONV
from modelpress_runner.errors import CompressionError, InvalidSpecError
from modelpress_runner.methods.context import StageContext
from modelpress_runner.methods.prune.patterns import CHANNEL
from modelpress_runner.methods.prune.registry import method
from modelpress_runner.methods.reconstruct.batch_norm import ChannelMoments, keeps_statistics
from modelpress_runner.methods.reconstruct.inputs import is_matrix_product, weight_matrix
from modelpress_runner.methods.reconstruct.refit import Loss, corrected_bias, refitted
from modelpress_runner.methods.reconstruct.statistics import InputMoments
from modelpress_runner.passes.collectors import Collector, Pass
from modelpress_runner.passes.run import Kind, Sources, run_pass
from modelpress_runner.runtime import distributed as ranks
from modelpress_runner.runtime import rng

STRENGTH = 1.0  # of leastSquares
STRENGTHS = (10.0, 1.0, 0.1, 0.01)  # that auto tries, from what changes least
_BYTES = 1 << 30  # of second moments at a time; more layers take further passes
_PASSES = 2**30 + 2**29  # part of the seed

C = TypeVar("C", bound=Collector)
Values = dict[str, dict[str, torch.Tensor]]  # of modules by name: parameters and buffers by name


@dataclass(frozen=True)
class Recovered:
    """What was done: `kind` as a recipe says it, the strength of leastSquares, whether statistics were taken anew."""

    kind: str
    strength: float | None = None
    batch_norm: bool = False

    def __str__(self) -> str:
        text = f"{self.kind}, ridge {self.strength:g}" if self.strength is not None else self.kind
        return f"{text}, then batchNorm" if self.batch_norm else text


@dataclass
class Reconstruction:
    """A model whose masks have just grown, and what it was before.

    Args:
        context: the masks are in force, and the masked weights zero.
        before: the parameters as they were, by name; they are needed as long as this lives.
        path: of the field, for messages.
    """

    context: StageContext
    before: Mapping[str, torch.Tensor]
    path: str
    notes: list[str] = field(default_factory=list)
    _dense: Mapping[str, ChannelMoments] | None = None

    def run(self, kind: Reconstruct) -> str:
        """Recovers in place; what was done, as a line for people.

        Raises:
            CompressionError: the calibration data give no finite numbers.
            InvalidModelError: the model does not take the calibration data.
        """
        done = self._auto() if kind == "auto" else self._given(kind)
        self.context.note(*self.notes, done)
        return done

    def _given(self, kind: Reconstruct) -> str:
        if kind == "batchNorm":
            values = self._statistics()
            self._put(values)
            return f"reconstruct: {kind}: the statistics of {len(values)} BatchNorms were taken anew"
        choice = Recovered(kind, STRENGTH if kind == "leastSquares" else None)
        (values,) = self._fitted([choice]).values()
        self._put(values)
        return f"reconstruct: {choice}: {len(values)} layers"

    def _auto(self) -> str:
        score = self.context.score
        assert score is not None  # checked before anything ran
        none = best = score()
        chosen = Recovered("none")
        masked = self._values()
        candidates = [Recovered("bias"), *(Recovered("leastSquares", strength) for strength in STRENGTHS)]
        fitted = self._fitted(candidates)
        taken: Values = {}
        for candidate in candidates:
            if not fitted[candidate]:
                continue
            self._put(fitted[candidate])
            found = score()
            if found > best:
                best, chosen, taken = found, candidate, fitted[candidate]
            self._put(masked)
        for base, values in {chosen: taken, Recovered("none"): {}}.items():
            self._put(values)
            statistics = self._statistics()
            if statistics:
                self._put(statistics)
                found = score()
                if found > best:
                    best, chosen, taken = found, Recovered(base.kind, base.strength, True), {**values, **statistics}
            self._put(masked)
        self._put(taken)
        text = "batchNorm" if chosen == Recovered("none", None, True) else str(chosen)
        gain = "" if none == best else f", score {abs(none):.6g} -> {abs(best):.6g}"
        return f"reconstruct: auto chose {text}{gain}"

    # Layers that lost inputs ------------------------------------------------------------------------------------------

    def _fitted(self, choices: list[Recovered]) -> dict[Recovered, Values]:
        """The new values of all layers that lost inputs, for each of `choices`, over the dense model's inputs."""
        losses = self._losses()
        modules = dict(self.context.model.named_modules())
        second = any(choice.kind == "leastSquares" for choice in choices)
        out: dict[Recovered, Values] = {choice: {} for choice in choices}
        silent: list[str] = []
        for names in _by_size({name: InputMoments.bytes(modules[name]) if second else 0 for name in losses}):
            with self._as_before():
                moments = self._pass({n: functools.partial(InputMoments, n, modules[n], second=second) for n in names})
            silent += [name for name in names if not moments[name].seen]
            values = ranks.on_rank_zero(functools.partial(self._solve, choices, names, losses, moments))
            for choice, found in zip(choices, values, strict=True):
                out[choice] |= found
        if silent:
            self.notes.append(f"Not reconstructed: {_list(silent)}, which the calibration data do not reach")
        return out

    def _solve(
        self, choices: list[Recovered], names: list[str], losses: dict[str, Loss], moments: Mapping[str, InputMoments]
    ) -> list[Values]:
        out: list[Values] = [{} for _ in choices]
        for name in names:
            module, loss, seen = self.context.model.get_submodule(name), losses[name], moments[name]
            if not seen.seen:
                continue
            if not bool(torch.isfinite(seen.total).all() and torch.isfinite(seen.products).all()):
                raise CompressionError(f"the calibration data give '{name}' inputs that are not finite", self.path)
            for choice, values in zip(choices, out, strict=True):
                if choice.strength is None or not loss.whole:
                    found = corrected_bias(module, loss, seen)
                else:
                    found = refitted(module, loss, seen, choice.strength)
                if found:
                    values[name] = found
        return out

    def _losses(self) -> dict[str, Loss]:
        """What layers have lost beside outputs of their own."""
        out: dict[str, Loss] = {}
        left: list[str] = []
        for name, tensors in self.context.masks.items():
            module = self.context.model.get_submodule(name)
            if "weight" not in tensors or not isinstance(module, CONV | nn.Linear):
                continue
            weight = module.weight
            assert isinstance(weight, torch.Tensor)
            before, now, mask = self.before[f"{name}.weight"], weight.detach(), tensors["weight"]
            if getattr(module, "transposed", False):
                before, now, mask = (tensor.transpose(0, 1) for tensor in (before, now, mask))
            removed = (weight_matrix(mask) == 0).all(dim=1)
            if module.bias is not None:  # an output whose weights are gone one by one still gives its bias
                removed &= tensors["bias"] == 0 if "bias" in tensors else torch.zeros_like(removed)
            loss = Loss.of(before, now, mask, removed)
            if loss is None:
                continue
            if is_matrix_product(module):
                out[name] = loss
            else:
                left.append(name)
        if left:
            self.notes.append(f"Not reconstructed: {_list(left)}, of a kind that has no refit")
        return out

    # BatchNorm --------------------------------------------------------------------------------------------------------

    def _statistics(self) -> Values:
        """New statistics of the BatchNorms that take something else than in the dense model."""
        modules = {name: module for name, module in self.context.model.named_modules() if keeps_statistics(module)}
        if not modules:
            return {}
        make = {name: functools.partial(ChannelMoments, name, module) for name, module in modules.items()}
        if self._dense is None:
            with self._as_before():
                self._dense = self._pass(make)
        out: Values = {}
        for name, moments in self._pass(make).items():
            if moments.seen and moments.differs(self._dense[name]):
                mean, variance = moments.compute()
                if not bool(torch.isfinite(mean).all() and torch.isfinite(variance).all()):
                    raise CompressionError(f"the calibration data give '{name}' inputs that are not finite", self.path)
                out[name] = {"running_mean": mean, "running_var": variance}
        return out

    # The model --------------------------------------------------------------------------------------------------------

    def _pass(self, make: Mapping[str, Callable[[Pass], C]]) -> Mapping[str, C]:
        context = self.context
        found, _ = run_pass(
            context.model,
            Sources(context.evaluator, context.calibration_data),
            Kind.CALIBRATION,
            lambda data: {name: each(data) for name, each in make.items()},
            batches=None,
            seed=rng.derive(context.seed, _PASSES),
            stop=context.stop,
        )
        return found

    @contextlib.contextmanager
    def _as_before(self) -> Iterator[None]:
        """Inside, the parameters are what they were."""
        now = {name: parameter.data for name, parameter in self.context.model.named_parameters()}
        try:
            for name, parameter in self.context.model.named_parameters():
                parameter.data = self.before[name].to(parameter.device)
            yield
        finally:
            for name, parameter in self.context.model.named_parameters():
                parameter.data = now[name]

    def _values(self) -> Values:
        """Copies of everything that recovery may change."""
        names = [*self.context.masks, *(n for n, m in self.context.model.named_modules() if keeps_statistics(m))]
        return {
            name: {
                key: tensor.detach().clone()
                for key in ("weight", "bias", "running_mean", "running_var")
                if isinstance(tensor := getattr(self.context.model.get_submodule(name), key, None), torch.Tensor)
            }
            for name in names
        }

    @torch.no_grad()
    def _put(self, values: Values) -> None:
        for name, tensors in values.items():
            module = self.context.model.get_submodule(name)
            for key, value in tensors.items():
                getattr(module, key).copy_(value)


def parameters(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of all parameters by name, those of tied ones by each."""
    copies = {parameter: parameter.detach().clone() for parameter in model.parameters()}
    return {name: copies[each] for name, each in model.named_parameters(remove_duplicate=False)}


def is_structured(prune: Prune) -> bool:
    """Whether something in the stage removes whole channels."""
    return any(
        method(entry.algorithm or prune.algorithm).structured or (entry.pattern or prune.pattern) == CHANNEL
        for entry in prune.config_list
        if not entry.exclude
    )


def check_reconstruct(prune: Prune, path: str, sources: Sources, dummy_input: object) -> None:
    """Checks that what `prune.reconstruct` needs is there; `path` is the field's.

    Raises:
        InvalidSpecError: it is not.
        InvalidModelError: the calibration data are of no use.
    """
    kind = prune.reconstruct
    if kind == "none":
        return
    if sources.calibration_data is None:
        raise InvalidSpecError(
            f"{kind} looks at calibration data, and there is none; give calibration_data (data.calibration in a "
            "recipe, mp.Subject(calibration_data=...) from an entrypoint), or write none",
            path,
        )
    sources.missing(frozenset({"activations"}))
    if kind == "auto" and (sources.evaluator is None or not sources.evaluator.can_evaluate):
        missing = "an evaluator" if sources.evaluator is None else sources.evaluator.evaluate_needs
        raise InvalidSpecError(
            f"auto goes by the score, and nothing here evaluates; give {missing}, or name bias, leastSquares or "
            "batchNorm",
            path,
        )
    if is_structured(prune) and kind != "batchNorm" and dummy_input is None:
        raise InvalidSpecError(
            f"{kind} needs a dummy_input to find the layers that take what was pruned; give one, or write none", path
        )


def _by_size(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """The names in order, as many at a time as _BYTES have room for, one at least."""
    names: list[str] = []
    total = 0
    for name, size in sizes.items():
        if names and total + size > _BYTES:
            yield names
            names, total = [], 0
        names.append(name)
        total += size
    if names:
        yield names


def _list(names: list[str]) -> str:
    return keys_in_words((f"'{name}'" for name in names), 6)
