"""Rounding in a training: what goes along with it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from modelpress_runner.edits.quantize import QuantizedLayer
from modelpress_runner.edits.quantizers import AffineQuantizer, Quantizer
from modelpress_runner.errors import CompressionError
from modelpress_runner.evaluators.parameter_groups import ParameterGroup
from modelpress_runner.methods.quantize.algorithms.lsq import initial_scale
from modelpress_runner.methods.quantize.calibrate import layer_of, quantizers_of
from modelpress_runner.methods.quantize.numerics import ema
from modelpress_runner.methods.quantize.observers import set_range
from modelpress_runner.methods.quantize.protocol import QuantizeMethod
from modelpress_runner.runtime import distributed as ranks
from modelpress_runner.training.participants import Participant

_Key = tuple[str, str]
_LEAST = 1 / 64  # that a learned scale becomes, in units of its first


class RoundedTraining(Participant):
    """Lets a training go through rounded weights and activations from its step number `start` on.

    What activations need to know of data comes from the steps before, so at least the first step sees them as they
    are. Modes of the model, dropout and norms are none of its business.

    Args:
        layers: names of the layers with quantizers.
        method: what becomes of them.
        start: optimizer steps before anything is rounded.
        how: weights are observed, minMax or mse.
        path: of the block.
    """

    def __init__(self, layers: list[str], method: QuantizeMethod, start: int, how: str, path: str) -> None:
        self._names, self._method, self._start, self._how, self._path = layers, method, start, how, path
        self._layers: dict[str, QuantizedLayer] = {}
        self._quantizers: dict[_Key, Quantizer] = {}
        self._learned: dict[_Key, nn.Parameter] = {}
        self._averages: dict[_Key, tuple[torch.Tensor, torch.Tensor]] = {}
        self._pending: dict[_Key, list[torch.Tensor]] = {}
        self._handles: list[Any] = []
        self._known: set[_Key] = set()  # activations whose scale is set
        self._steps = 0

    def parameter_groups(self, model: nn.Module) -> list[ParameterGroup]:
        """The scales, of a method that learns them, without weight decay."""
        self._layers = {name: layer_of(model, name) for name in self._names}
        self._quantizers = {
            (name, target): quantizer
            for name, layer in self._layers.items()
            for target, quantizer in quantizers_of(layer).items()
        }
        if not self._method.learns:
            return []
        self._learned = {
            key: nn.Parameter(torch.ones_like(quantizer.scale)) for key, quantizer in self._quantizers.items()
        }
        return [{"params": list(self._learned.values()), "weight_decay": 0.0}]

    def attach(self, model: nn.Module) -> None:
        """Puts hooks before activations whose ranges are wanted."""
        for key, quantizer in self._quantizers.items():
            quantizer.enabled = False
            if key in self._learned:
                quantizer.__dict__["learned"] = self._learned[key]
            if key[1] != "weight" and self._looks(quantizer):
                self._handles.append(quantizer.register_forward_pre_hook(self._looking(key)))

    def begin(self) -> None:
        """What needs no data is rounded at once, without a start step."""
        self._switch()

    def detach(self) -> None:
        """Takes hooks and learned scales off again; what trained is rounded from now on."""
        while self._handles:
            self._handles.pop().remove()
        for quantizer in self._quantizers.values():
            quantizer.__dict__.pop("learned", None)
            quantizer.enabled = True

    def touches(self, step: int) -> str | None:
        """It reads weights, and where they are clamped writes them."""
        return "writes" if self._method.clamps else "reads" if self._method.observes else None

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Scales follow what was seen."""
        self._steps = max(self._steps, step)
        if self._pending:
            self._seen()
        for parameter in self._learned.values():
            parameter.data.clamp_(min=_LEAST)
        for layer in self._layers.values():
            if layer.weight_quantizer is None:
                continue
            if self._method.clamps:
                layer.get_parameter("weight").data.clamp_(-1.0, 1.0)
            if self._method.observes:
                self._method.begin(layer.weight_quantizer, layer.get_parameter("weight"), self._how)
        self._switch()

    def finish(self) -> None:
        """What was learned becomes the scales.

        Raises:
            CompressionError: a range was never seen, or nothing was rounded: the training was too short.
        """
        if self._steps <= self._start:
            raise CompressionError(
                f"the training made {self._steps} steps, so nothing was rounded from step {self._start} on; train "
                "longer, or lower startStep",
                self._path,
            )
        for name, target in self._quantizers.keys() - self._known:
            if target != "weight" and self._looks(self._quantizers[name, target]):
                raise CompressionError(
                    f"'{name}' was not called in the training, so the range of its {target} is not known; exclude it",
                    self._path,
                )
        for key, parameter in self._learned.items():
            quantizer = self._quantizers[key]
            quantizer.scale.mul_(parameter.detach().to(quantizer.scale.device))
            parameter.data.fill_(1.0)

    def state_dict(self) -> dict[str, Any]:
        """Averages, and which scales are set."""
        averages = {"\n".join(key): torch.stack(value) for key, value in self._averages.items()}
        return {"steps": self._steps, "averages": averages, "known": sorted("\n".join(key) for key in self._known)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As state_dict gave it."""
        self._steps = state["steps"]
        self._known = {_key(text) for text in state["known"]}
        self._averages = {_key(text): (value[0].clone(), value[1].clone()) for text, value in state["averages"].items()}
        self._switch()

    def _looks(self, quantizer: Quantizer) -> bool:
        """Whether a quantizer of activations needs to see them."""
        wanted = self._method.observes or self._method.learns
        return wanted and isinstance(quantizer, AffineQuantizer)

    def _looking(self, key: _Key) -> Any:
        def look(quantizer: nn.Module, args: tuple[Any, ...]) -> None:
            if not (quantizer.training and torch.is_grad_enabled()) or (self._method.learns and key in self._known):
                return
            value = args[0].detach().float()
            if self._method.learns:
                found = initial_scale(value.reshape(1, -1), self._quantizers[key].qmax)
                self._pending.setdefault(key, []).append(torch.stack([found[0], found[0]]))
            elif value.numel():
                self._pending.setdefault(key, []).append(torch.stack(torch.aminmax(value)))

        return look

    def _seen(self) -> None:
        """The ranges of a step, of all ranks together."""
        keys = (
            sorted(self._pending)
            if not ranks.is_distributed()
            else sorted(key for key in self._quantizers if key[1] != "weight" and self._looks(self._quantizers[key]))
        )
        for key in keys:
            found, quantizer = self._pending.get(key, []), self._quantizers[key]
            low = torch.stack([each[0] for each in found]).amin() if found else torch.zeros(())
            high = torch.stack([each[1] for each in found]).amax() if found else torch.zeros(())
            seen = ranks.all_reduce_mean(torch.tensor(float(bool(found))))
            if not float(seen):
                continue
            low, high = (ranks.all_reduce_mean(each) / float(seen) for each in (low, high))
            self._known.add(key)
            if self._method.learns:
                quantizer.scale.copy_(low)
                continue
            before = self._averages.get(key, (None, None))
            self._averages[key] = ema(before[0], low), ema(before[1], high)
            set_range(quantizer, *self._averages[key])
        self._pending.clear()

    def _switch(self) -> None:
        for key, quantizer in self._quantizers.items():
            ready = key[1] == "weight" or key in self._known or not self._looks(quantizer)
            quantizer.enabled = ready and self._steps >= self._start


def _key(text: str) -> _Key:
    name, _, target = text.partition("\n")
    return name, target
