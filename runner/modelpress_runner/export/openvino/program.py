"""From model.onnx to OpenVINO's own files."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from modelpress.store import layout as names
from modelpress_runner.errors import ArtifactError, first_line
from modelpress_runner.export.onnx.program import QUANTIZED_TOLERANCE, export_onnx
from modelpress_runner.export.pt2.equivalence import NotPortableError, prove
from modelpress_runner.export.pt2.program import on_cpu
from modelpress_runner.export.pt2.quiet import quiet
from modelpress_runner.export.runtime_module import RuntimeModule
from modelpress_runner.runtime.example_inputs import on_device
from modelpress_runner.runtime.preserve import untouched
from modelpress_runner.serving.ort import QUANTIZED
from modelpress_runner.serving.ov import openvino, rt_path


def export_openvino(
    model: nn.Module, dummy_input: Any, path: Path, free: Mapping[str, Mapping[int, str]] | None = None
) -> list[Path]:
    """Writes `model` as model.xml and model.bin by way of ONNX, and compares both runtimes' outputs with the module's.

    Args:
        model: any module; it is left as it was.
        dummy_input: example inputs.
        path: of model.xml.
        free: as for export_onnx.

    Returns:
        The files that were written.

    Raises:
        MissingRuntimeError: a package of the extras onnx and openvino is not installed.
        NotPortableError: the model cannot be written so, or the file gives something else.
    """
    ov = openvino()
    weights = path.with_suffix(".bin")
    try:
        with tempfile.TemporaryDirectory(prefix="modelpress-onnx-") as folder:
            onnx = Path(folder) / names.ONNX
            export_onnx(model, dummy_input, onnx, free)
            metadata = _metadata(onnx)
            try:
                read = ov.Core().read_model(str(onnx))
                for key, value in sorted(metadata.items()):
                    read.set_rt_info(value, rt_path(key))
                ov.save_model(read, str(path), compress_to_fp16=False)
                module = RuntimeModule(path)
            except (RuntimeError, ArtifactError) as error:
                raise NotPortableError(f"OpenVINO cannot read it: {first_line(error).rstrip('.')}") from error
        model, dummy_input = on_cpu(model), on_device(dummy_input, "cpu")
        with untouched(model), quiet():
            prove(model, module, dummy_input, QUANTIZED_TOLERANCE if QUANTIZED in metadata else None)
    except BaseException:
        for file in (path, weights):
            file.unlink(missing_ok=True)
        raise
    return [path, weights]


def _metadata(path: Path) -> dict[str, str]:
    import onnx_ir as ir

    return dict(ir.load(path).metadata_props)
