"""A pruning method in one file: output channels that say least, by the mean of |output| over data."""

from __future__ import annotations

from typing import Any, ClassVar

from modelpress.api.v1alpha1.algorithms import Algorithm, SparsitySchedule, register

register(
    Algorithm(
        name="mean_magnitude",
        family="prune",
        granularity="channel",
        needs=frozenset({"activations"}),
        default_types=("Linear",),
        paper="",
        sentence="output channels of smallest mean activation",
        aliases=("mean_magn",),
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
    from modelpress_runner.methods.prune.protocol import DataDrivenMethod
    from modelpress_runner.passes.collectors import Collector, Pass

    class Means(Collector):
        states: ClassVar = {"total": "sum", "count": "sum"}

        def __init__(self, name: str, module: nn.Module, data: Pass) -> None:
            self.name, self.data = name, data
            self.total = torch.zeros(module.out_features).double()
            self.count = torch.zeros(())
            self.hook = ForwardHook(lambda buffer, module, args, output: buffer.append(output.detach()))

        def attach(self) -> None:
            self.data.register_forward_hook(self.name, self.hook)

        def update(self) -> None:
            for output in self.hook.buffer:
                rows = output.flatten(0, -2).double().abs().cpu()
                self.total, self.count = self.total + rows.sum(dim=0), self.count + len(rows)
            self.hook.buffer.clear()

        def compute(self) -> torch.Tensor:
            return self.total / self.count

    class MeanMagnitude(DataDrivenMethod):
        name = "mean_magnitude"

        def collector(self, name: str, module: nn.Module, data: Pass) -> Means:
            return Means(name, module, data)

    method = globals()["METHOD"] = MeanMagnitude()
    return method
