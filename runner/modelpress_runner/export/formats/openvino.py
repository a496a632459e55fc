"""model.xml and model.bin, run by OpenVINO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from modelpress.store import layout as names
from modelpress_runner.errors import CompressionError, InvalidSpecError
from modelpress_runner.export.formats.base import TARGET, Format, FreeAxes
from modelpress_runner.export.layout import Layout


class OpenVino(Format):
    """model.xml and model.bin."""

    name = "openvino"
    extra = "onnx,openvino"  # it is written by way of ONNX
    measured = "model.xml, run by OpenVINO (its size: with model.bin)"
    needs_example = True
    file = names.OPENVINO
    exported = "openvino"

    def check(self, layout: Layout | None, path: str = TARGET) -> None:
        """Its packages are installed."""
        from modelpress_runner.serving.errors import MissingRuntimeError
        from modelpress_runner.serving.ov import openvino
        from modelpress_runner.serving.session import package

        try:
            openvino()
            for name in ("onnx", "onnxscript", "onnxruntime"):
                package(name, "onnx")
        except MissingRuntimeError as error:
            raise InvalidSpecError(str(error), path) from error

    def write(
        self, model: nn.Module, example: Any, path: Path, layout: Layout | None, free: FreeAxes | None = None
    ) -> Path | None:
        """Exports it, with its proof."""
        from modelpress_runner.export.openvino.program import export_openvino
        from modelpress_runner.export.pt2.equivalence import NotPortableError

        try:
            export_openvino(model, example, path, free)
        except NotPortableError as error:
            raise CompressionError(
                f"the model has no form in OpenVINO ({error.reason}); make it exportable, or take another format",
                TARGET,
            ) from error
        return path

    def open(self, model: nn.Module, path: Path | None, layout: Layout | None) -> nn.Module:
        """As mp.load opens it."""
        from modelpress_runner.export.runtime_module import RuntimeModule

        assert path is not None
        return RuntimeModule(path)

    def size(self, model: nn.Module, path: Path | None) -> int:
        """That of both files."""
        assert path is not None
        return sum(each.stat().st_size for each in self.files(path))

    def parts(self, path: Path) -> list[Path]:
        """The graph and the tensors."""
        return [path, path.with_name(names.OPENVINO_DATA)]

    def loading(self) -> str:
        """With OpenVINO alone."""
        return (
            'With OpenVINO, without torch. `mp.load(uri, format="openvino")` opens it as a module that is called as '
            "the model was:\n\n"
            "```python\nimport openvino\n\n"
            'model = openvino.Core().compile_model("model.xml", "CPU")\n'
            "outputs = model({each.any_name: ... for each in model.inputs})\n```"
        )
