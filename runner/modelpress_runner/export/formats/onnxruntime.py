"""model.onnx, run by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from modelpress.store import layout as names
from modelpress_runner.export.formats.base import FreeAxes
from modelpress_runner.export.formats.runtime import RuntimeFormat


class OnnxRuntime(RuntimeFormat):
    """model.onnx."""

    name = "onnxruntime"
    extra = "onnx"
    measured = "model.onnx, run by ONNX Runtime"
    file = names.ONNX
    form_name = "ONNX"
    beside = names.ONNX_DATA
    exported = "onnx"

    def need(self) -> None:
        """Of its extra."""
        from modelpress_runner.serving.session import package

        for name in ("onnx", "onnxscript", "onnxruntime"):
            package(name, self.extra)

    def export(self, model: nn.Module, example: Any, path: Path, free: FreeAxes | None) -> None:
        """As RuntimeFormat.export."""
        from modelpress_runner.export.onnx.program import export_onnx

        export_onnx(model, example, path, free)

    def loading(self) -> str:
        """With ONNX Runtime alone."""
        return (
            'With ONNX Runtime, without torch. `mp.load(uri, format="onnxruntime")` opens it as a module that '
            "is called as the model was:\n\n"
            "```python\nimport onnxruntime\n\n"
            'session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])\n'
            "outputs = session.run(None, {each.name: ... for each in session.get_inputs()})\n```"
        )
