"""A kind of stage in one file: multiplies all weights of the model by a number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field

from modelpress.api.errors import Problem
from modelpress.api.stages import StageRules, register
from modelpress.api.v1alpha1 import ApiModel


class Scale(ApiModel):
    """Multiplies all weights."""

    factor: float = Field(description="By which number.")


class ScaleRules(StageRules[Scale]):
    name = "scale"
    block = Scale
    runner = "scaling_plugin:kind"

    def problems(self, block: Scale, path: str) -> Iterator[Problem]:
        if block.factor == 0:
            yield Problem(f"{path}.factor", "0 leaves nothing of the model", "give another number")

    def sentence(self, block: Mapping[str, Any]) -> str:
        return f"scaled by {block['factor']}"


register(ScaleRules())


def __getattr__(name: str) -> Any:
    if name != "kind":
        raise AttributeError(name)
    import torch

    from modelpress_runner.methods.context import StageContext, Step, Transform
    from modelpress_runner.stages.base import StageKind

    class ScaleKind(StageKind[Scale]):
        name = "scale"

        def steps(self, block: Scale, index: int) -> list[Step]:
            def scale(context: StageContext) -> None:
                with torch.no_grad():
                    for parameter in context.model.parameters():
                        parameter.mul_(block.factor)

            return [Transform("scale", scale)]

        def record(self, block: Scale) -> dict[str, Any]:
            return {"factor": block.factor}

    return ScaleKind()
