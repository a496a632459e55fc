"""A pruning method in one file: output channels that say least, by the mean of |output| over training steps."""

from __future__ import annotations

from typing import Any

from modelpress.api.v1alpha1.algorithms import Algorithm, SparsitySchedule, register

register(
    Algorithm(
        name="mean_activation",
        family="prune",
        granularity="channel",
        needs=frozenset({"activations"}),
        default_types=("Linear",),
        paper="",
        sentence="output channels of smallest mean activation",
        aliases=("mean_act",),
        runner="activation_plugin:METHOD",
    )
)
register(SparsitySchedule("root", lambda i, s, done: i + (s - i) * done**0.5, "i+(s-i)(t/n)^0.5"))


def __getattr__(name: str) -> Any:
    if name != "METHOD":
        raise AttributeError(name)
    import torch
    from torch import nn

    from modelpress_runner.evaluators.hooks import ForwardHook
    from modelpress_runner.methods.prune.protocol import Collector, DataDrivenMethod, Pass

    class Means(Collector):
        def __init__(self, name: str, module: nn.Module, data: Pass) -> None:
            self.name, self.data, self.total_ = name, data, torch.zeros(module.out_features).double()

        def start(self) -> None:
            self.hook = ForwardHook(lambda buffer, module, args, output: buffer.append(output.detach().double()))
            self.data.register_forward_hook(self.name, self.hook)

        def step(self) -> None:
            for output in self.hook.buffer:
                self.total_ = self.total_ + output.flatten(0, -2).abs().mean(dim=0).cpu()
            self.hook.buffer.clear()

        def total(self) -> torch.Tensor:
            return self.total_

    class MeanActivation(DataDrivenMethod):
        name = "mean_activation"

        def collector(self, name: str, module: nn.Module, data: Pass) -> Means:
            return Means(name, module, data)

    method = globals()["METHOD"] = MeanActivation()
    return method
