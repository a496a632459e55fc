"""ONNX Runtime, on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from modelpress_runner.errors import first_line
from modelpress_runner.serving import cpu
from modelpress_runner.serving.errors import CallError, RuntimeFileError
from modelpress_runner.serving.session import Session, package
from modelpress_runner.serving.signature import KEY, Signature

EXTRA = "onnx"
QUANTIZED = "modelpress.quantized"  # metadata: the file computes in eight bits
WIDE = "modelpress.wide"  # metadata: with weights that may overflow where `cpu.saturates`
MEASURED_ON = "modelpress.cpu"  # metadata: the CPU that it was written and proven on
_QUIET = 3  # errors alone


class OrtSession(Session):
    """model.onnx.

    Attributes:
        metadata: what the file says of itself.

    Args:
        path: of the file.
        threads: of one call.

    Raises:
        MissingRuntimeError: onnxruntime is not installed.
        RuntimeFileError: it is no ONNX file, or not one that modelpress wrote.
    """

    runtime = "onnxruntime"
    metadata: dict[str, str]

    def __init__(self, path: Path, threads: int = 1) -> None:
        ort = package("onnxruntime", EXTRA)
        ort.disable_telemetry_events()
        self.threads = threads
        self._session = self._opened(ort, path, precise=False)
        metadata = self.metadata = dict(self._session.get_modelmeta().custom_metadata_map)
        if WIDE in metadata and cpu.saturates():
            self._session = self._opened(ort, path, precise=True)
        if KEY not in metadata:
            raise RuntimeFileError(
                f"{path.name} was not written by modelpress: it does not say how it is called; open it with "
                "onnxruntime.InferenceSession"
            )
        self.signature = Signature.of_json(metadata[KEY], path.name)
        present = [each.name for each in self._session.get_inputs()], [o.name for o in self._session.get_outputs()]
        if present != ([spec.name for spec in self.signature.inputs], list(self.signature.output_names)):
            raise RuntimeFileError(f"{path.name}: what it says of its call is not what it takes; fetch it again")

    def run(self, feed: Mapping[str, np.ndarray[Any, Any]]) -> Sequence[np.ndarray[Any, Any]]:
        self._forms(feed)
        try:
            found: list[np.ndarray[Any, Any]] = self._session.run(None, dict(feed))
        except Exception as error:  # its errors share no class with each other
            raise CallError(f"ONNX Runtime cannot run the model on these inputs: {first_line(error)}") from error
        return found

    def _opened(self, ort: Any, path: Path, *, precise: bool) -> Any:
        options = ort.SessionOptions()
        options.log_severity_level = _QUIET
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        # Threads that spin for the next call would slow down whoever runs between two calls.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if precise:
            options.add_session_config_entry("session.x64quantprecision", "1")
        try:
            return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors share no class with each other
            raise RuntimeFileError(f"ONNX Runtime cannot open {path.name}: {first_line(error)}") from error
