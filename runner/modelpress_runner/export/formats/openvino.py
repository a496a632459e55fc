"""model.xml and model.bin, run by OpenVINO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from modelpress.store import layout as names
from modelpress_runner.export.formats.base import FreeAxes
from modelpress_runner.export.formats.runtime import RuntimeFormat


class OpenVino(RuntimeFormat):
    """model.xml and model.bin."""

    name = "openvino"
    extra = "onnx,openvino"  # it is written by way of ONNX
    measured = "model.xml, run by OpenVINO (its size: with model.bin)"
    file = names.OPENVINO
    form_name = "OpenVINO"
    beside = names.OPENVINO_DATA
    exported = "openvino"

    def need(self) -> None:
        """Of its extra."""
        from modelpress_runner.serving.ov import openvino
        from modelpress_runner.serving.session import package

        openvino()
        for name in ("onnx", "onnxscript", "onnxruntime"):
            package(name, "onnx")

    def export(self, model: nn.Module, example: Any, path: Path, free: FreeAxes | None) -> None:
        """As RuntimeFormat.export."""
        from modelpress_runner.export.openvino.program import export_openvino

        export_openvino(model, example, path, free)

    def loading(self) -> str:
        """With OpenVINO alone."""
        return (
            'With OpenVINO, without torch. `mp.load(uri, format="openvino")` opens it as a module that is called as '
            "the model was:\n\n"
            "```python\nimport openvino\n\n"
            'core = openvino.Core()\nmodel = core.read_model("model.xml")\n'
            "# model.reshape({name: [1, ...], ...}) first, if each call has the same shapes: fixed ones are faster\n"
            'compiled = core.compile_model(model, "CPU")\n'
            "outputs = compiled({each.any_name: ... for each in compiled.inputs})\n```"
        )
