"""OpenVINO, on the CPU."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np

from modelpress_runner.errors import first_line
from modelpress_runner.serving import cpu
from modelpress_runner.serving.errors import CallError, RuntimeFileError
from modelpress_runner.serving.ort import WIDE
from modelpress_runner.serving.session import Forms, Session, package
from modelpress_runner.serving.signature import KEY, Signature

EXTRA = "openvino"
_MOST_FIXED = 4  # shapes that a session is compiled for, besides any shape


def openvino() -> ModuleType:
    """The package, without its telemetry: importing it would report that to a server of its maker's.

    It goes without the package that reports, which is therefore made to be missing.

    Raises:
        MissingRuntimeError: it is not installed.
    """
    sys.modules.setdefault("openvino_telemetry", cast(ModuleType, None))
    return package("openvino", EXTRA)


def rt_path(key: str) -> list[str]:
    """Where a model keeps what ONNX has under `key` in its metadata."""
    return key.split(".")


class OvSession(Session):
    """model.xml and, beside it, model.bin.

    Inputs of a shape that comes twice in a row are compiled for: a program of fixed shapes has more of its operations
    fused (a MiniLM with eight bits takes an eighth less). Others are computed by a program for any shape.

    Args:
        path: of model.xml.
        threads: of one call.

    Raises:
        MissingRuntimeError: openvino is not installed.
        RuntimeFileError: it is no model of OpenVINO, or not one that modelpress wrote.
    """

    runtime = "openvino"

    def __init__(self, path: Path, threads: int = 1) -> None:
        core = openvino().Core()
        self.threads = threads
        # One call at a time, computed in the numbers that the file has: without a word some processors take bfloat16.
        config = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": str(threads),
            "INFERENCE_PRECISION_HINT": "f32",
            "ENABLE_CPU_PINNING": "NO",
        }
        try:
            model = core.read_model(str(path))
            if model.has_rt_info(rt_path(WIDE)) and cpu.saturates():
                config["LP_TRANSFORMS_MODE"] = "NO"  # no exact way in eight bits: sums are floats
            compiled = core.compile_model(model, "CPU", config)
        except Exception as error:  # RuntimeError and others
            raise RuntimeFileError(f"OpenVINO cannot open {path.name}: {_last_line(error)}") from error
        if not model.has_rt_info(rt_path(KEY)):
            raise RuntimeFileError(
                f"{path.name} was not written by modelpress: it does not say how it is called; open it with "
                "openvino.Core().compile_model"
            )
        self.signature = Signature.of_json(str(model.get_rt_info(rt_path(KEY)).value), path.name)
        present = sorted(each.get_any_name() for each in compiled.inputs)
        if present != sorted(spec.name for spec in self.signature.inputs) or len(compiled.outputs) != len(
            self.signature.output_names
        ):
            raise RuntimeFileError(f"{path.name}: what it says of its call is not what it takes; fetch it again")
        self._request = compiled.create_infer_request()
        self._outputs = range(len(compiled.outputs))
        self._core, self._config, self._path = core, config, path
        self._fixed: dict[Forms, Any] = {}  # requests by the inputs that they are for
        self._most_fixed = _MOST_FIXED if model.is_dynamic() else 0

    def run(self, feed: Mapping[str, np.ndarray[Any, Any]]) -> Sequence[np.ndarray[Any, Any]]:
        request = self._request_for(*self._forms(feed))
        try:
            request.infer(dict(feed), share_inputs=True)
        except Exception as error:  # RuntimeError and others
            raise CallError(f"OpenVINO cannot run the model on these inputs: {_last_line(error)}") from error
        return [np.array(request.get_output_tensor(index).data) for index in self._outputs]

    def _request_for(self, forms: Forms, again: bool) -> Any:
        if again and forms not in self._fixed and len(self._fixed) < self._most_fixed:
            try:
                model = self._core.read_model(str(self._path))
                model.reshape({name: list(shape) for name, _, shape in forms})
                self._fixed[forms] = self._core.compile_model(model, "CPU", self._config).create_infer_request()
            except Exception:  # the program for any shape says what is wrong with this one, if anything is
                self._fixed[forms] = self._request
        return self._fixed.get(forms, self._request)


def _last_line(error: BaseException) -> str:
    """Its errors say first where in its source they arose, and last what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else first_line(error)
