"""What scripts of NNI's auto compression use: `from modelpress.compat.nni import ...` in place of its module.

AbstractAutoCompressionModule is mp.CompressionModule; a generator makes the search space, an experiment runs it as a
CompressionSweep on this machine. See docs/guides/migrate.md.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelpress.api.errors import Problem, SpecError
from modelpress.convert import nni
from modelpress.convert.notes import Book, Field
from modelpress.convert.quantizers import is_quantizer

if TYPE_CHECKING:
    from modelpress.local import LocalResult
    from modelpress_runner.subject.compression_module import CompressionModule as AbstractAutoCompressionModule

__all__ = ["AbstractAutoCompressionModule", "AutoCompressionExperiment", "AutoCompressionSearchSpaceGenerator"]


def __getattr__(name: str) -> Any:
    if name == "AbstractAutoCompressionModule":
        import modelpress

        return modelpress.CompressionModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class AutoCompressionSearchSpaceGenerator:
    """Makes a search space over pruners and quantizers: add_config for each, then dumps."""

    def __init__(self) -> None:
        self._added: list[dict[str, Any]] = []

    def add_config(self, algorithm_name: str, config_list: Sequence[Mapping[str, Any]], **algo_kwargs: Any) -> None:
        """Adds an algorithm.

        Args:
            algorithm_name: level, slim, l1, l2, fpgm, taylorfo, apoz, mean_activation, naive, qat, dorefa or bnn.
            config_list: its entries; a value may be {"_type": ..., "_value": [...]}.
            algo_kwargs: its further arguments; likewise.
        """
        flat: dict[str, Any] = {"_name": algorithm_name}
        for entry in config_list:
            keys = ["quant_types"] if is_quantizer(algorithm_name) else []
            keys += ["op_types", "op_names"]
            where = "::".join(":".join(entry.get(key) or []) for key in keys)
            for key, value in entry.items():
                if key in keys:
                    continue
                nested = value.items() if isinstance(value, Mapping) and "_type" not in value else [(None, value)]
                for below, item in nested:
                    name = f"config_list::{where}::{key}" + (f"::{below}" if below is not None else "")
                    flat[name] = _choice(item)
        flat |= {f"parameter::{key}": _choice(value) for key, value in algo_kwargs.items()}
        self._added.append(flat)

    def dumps(self) -> dict[str, Any]:
        """The search space, as an experiment takes it and `modelpress convert` reads it."""
        return {"algorithm_name": {"_type": "choice", "_value": [dict(flat) for flat in self._added]}}

    @classmethod
    def loads(cls, search_space: Mapping[str, Any]) -> AutoCompressionSearchSpaceGenerator:
        """A generator with what `dumps` gave."""
        made = cls()
        made._added = [dict(flat) for flat in search_space["algorithm_name"]["_value"]]
        return made


def _choice(value: Any) -> Any:
    return value if isinstance(value, Mapping) else {"_type": "choice", "_value": [value]}


class _Settings:
    """Settings by attribute; those that are asked for before they are set are settings of their own."""

    def __init__(self) -> None:
        self.class_args: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        made = _Settings()
        setattr(self, name, made)
        return made

    def to_dict(self) -> dict[str, Any]:
        """As plain data; empty ones are left out."""
        out = {key: value.to_dict() if isinstance(value, _Settings) else value for key, value in vars(self).items()}
        return {key: str(value) if isinstance(value, Path) else value for key, value in out.items() if value != {}}


class AutoCompressionExperiment:
    """A search over recipes for the model of a CompressionModule.

    Args:
        auto_compress_module: the class, in a module of its own: trials import it.
        config_or_platform: "local"; on a cluster, write `document()` into a file and apply it.

    Attributes:
        config: experiment_name, trial_concurrency, max_trial_number, max_experiment_duration, search_space,
            trial_code_directory, tuner.name, tuner.class_args and so on.
    """

    def __init__(self, auto_compress_module: type, config_or_platform: str = "local") -> None:
        self._module = auto_compress_module
        self.config: Any = _Settings()
        self.notes: list[str] = []
        if config_or_platform != "local":
            message = f"an experiment runs on this machine, not on {config_or_platform}"
            fix = "write experiment.document() into a YAML file, and apply it on a cluster"
            raise SpecError([Problem("config_or_platform", message, fix)])

    def document(self) -> dict[str, Any]:
        """The CompressionSweep as plain data; `notes` say what means something else here.

        Raises:
            SpecError: the configuration has no such meaning here.
        """
        name, file = self._module.__module__, getattr(sys.modules[self._module.__module__], "__file__", None)
        if name == "__main__" or file is None:
            message = f"trials import {self._module.__qualname__}, and it is in the script itself"
            raise SpecError([Problem("auto_compress_module", message, "put it into a module of its own")])
        book = Book("experiment")
        entrypoint = {"entrypoint": f"{name}:{self._module.__qualname__}"}
        drafts = nni.convert(Field(self.config.to_dict(), book), None, entrypoint, None)
        book.check()
        self.notes = [str(note) for note in book.notes if note.kind in ("changed", "missing", "todo")]
        if not drafts:
            raise SpecError([Problem("config.search_space", "it holds no algorithm", "add one by add_config")])
        document = drafts[0].document(book)
        folder = Path(self.config.to_dict().get("trial_code_directory") or _root(Path(file), name))
        template = document["spec"].get("template")
        spec = document["spec"] if template is None else template["spec"]
        spec["code"] = {"path": str(folder.resolve())}
        return document

    def run(self, port: int | None = None, wait_completion: bool = True, debug: bool = False) -> LocalResult:
        """Runs it to its end, on this machine; the same call goes on after an interruption.

        Args:
            port: without effect; `report.html` beside the results shows what is there, also while it runs.

        Raises:
            SpecError: the configuration has no such meaning here.
            LocalError: the run cannot start or go on.
        """
        from modelpress.local import run

        return run(self.document(), progress=True)


def _root(file: Path, module: str) -> Path:
    """The folder that a module is imported from."""
    return file.resolve().parents[module.count(".")]
