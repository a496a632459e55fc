"""model.onnx, run by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from modelpress.store import layout as names
from modelpress_runner.errors import CompressionError, InvalidSpecError
from modelpress_runner.export.formats.base import TARGET, Format, FreeAxes
from modelpress_runner.export.layout import Layout


class OnnxRuntime(Format):
    """model.onnx."""

    name = "onnxruntime"
    extra = "onnx"
    measured = "model.onnx, run by ONNX Runtime"
    needs_example = True
    file = names.ONNX
    exported = "onnx"

    def check(self, layout: Layout | None, path: str = TARGET) -> None:
        """Its packages are installed."""
        from modelpress_runner.serving.errors import MissingRuntimeError
        from modelpress_runner.serving.session import package

        for name in ("onnx", "onnxscript", "onnxruntime"):
            try:
                package(name, self.extra)
            except MissingRuntimeError as error:
                raise InvalidSpecError(str(error), path) from error

    def write(
        self, model: nn.Module, example: Any, path: Path, layout: Layout | None, free: FreeAxes | None = None
    ) -> Path | None:
        """Exports it, with its proof."""
        from modelpress_runner.export.onnx.program import export_onnx
        from modelpress_runner.export.pt2.equivalence import NotPortableError

        try:
            export_onnx(model, example, path, free)
        except NotPortableError as error:
            raise CompressionError(
                f"the model has no form in ONNX ({error.reason}); make it exportable, or take another format",
                TARGET,
            ) from error
        return path

    def open(self, model: nn.Module, path: Path | None, layout: Layout | None) -> nn.Module:
        """As mp.load opens it."""
        from modelpress_runner.export.runtime_module import RuntimeModule

        assert path is not None
        return RuntimeModule(path)

    def size(self, model: nn.Module, path: Path | None) -> int:
        """That of its files."""
        assert path is not None
        return sum(each.stat().st_size for each in self.files(path))

    def parts(self, path: Path) -> list[Path]:
        """model.onnx, and the tensors beside it where it would be larger than 2 GB."""
        return [path, path.with_name(names.ONNX_DATA)]

    def loading(self) -> str:
        """With ONNX Runtime alone."""
        return (
            'With ONNX Runtime, without torch. `mp.load(uri, format="onnxruntime")` opens it as a module that '
            "is called as the model was:\n\n"
            "```python\nimport onnxruntime\n\n"
            'session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])\n'
            "outputs = session.run(None, {each.name: ... for each in session.get_inputs()})\n```"
        )
