"""Runs whose training loop is a script of the user's own: `model.script`.

The script runs in this process as `__main__`, with `model.args` as its command line. It hands its model over with
mp.prepare_compression(model), which gives it the dense weights of the run, and calls the callbacks; when it is over,
the artifact is written.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import tempfile
import traceback
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from modelpress.api.v1alpha1 import CompressionJobSpec, reasons
from modelpress.request import RunRequest
from modelpress.result import RunResult
from modelpress.store.base import ArtifactStore
from modelpress_runner.artifact.identity import checkpoint_identity, dense_digest
from modelpress_runner.engine.checkpoint import Checkpointer
from modelpress_runner.errors import CompressionError, InvalidModelError, UserCodeError
from modelpress_runner.export import state as weights
from modelpress_runner.in_process import current
from modelpress_runner.in_process.loop_state import LoopState
from modelpress_runner.in_process.prepare import Compression, LoopModel
from modelpress_runner.measure.measuring import Measuring
from modelpress_runner.process.progress import EventCallback, silent
from modelpress_runner.process.stopping import StopFlag
from modelpress_runner.runs.dense import Dense, DenseCache
from modelpress_runner.runs.trial import FinishedRun, check_constraints, check_objectives, finish
from modelpress_runner.runtime import distributed as ranks
from modelpress_runner.runtime import rng
from modelpress_runner.usercode import location as code
from modelpress_runner.usercode.calling import user_code

log = logging.getLogger("modelpress")
_PATH = "spec.model.script"


def prepare(request: RunRequest, store: ArtifactStore, stop: StopFlag) -> RunResult:
    """Builds the dense model and its baseline unless the store has them: runs the script until it hands the model over.

    Raises:
        InvalidModelError: it raised, or handed over no model.
    """
    run_ = _ScriptRun(request, store, silent, stop, dense_only=True)
    with run_.script():
        pass
    dense = run_.dense
    if dense is None:
        raise _never_called(request.spec)
    check_objectives(request, dense.baseline)
    found = "was there already" if dense.cached else "is built"
    return RunResult(
        phase="Succeeded",
        reason=reasons.SUCCEEDED,
        message=f"the dense model {found}",
        code_digest=run_.code_digest or None,
        baseline=dense.baseline,
    )


def run(request: RunRequest, store: ArtifactStore, progress: EventCallback, stop: StopFlag) -> RunResult:
    """Runs the script to its end, writes the artifact and commits it.

    In a process group every rank runs it, and what is left after it is rank 0's.

    Raises:
        InvalidModelError: the script raised before it handed a model over, never did, or ended before on_train_end().
        UserCodeError: it raised later.
        CompressionError: it changed the model after on_train_end().
    """
    run_ = _ScriptRun(request, store, progress, stop)
    with run_.script():
        dense, compression = run_.dense, run_.compression
        if dense is None or compression is None:
            raise _never_called(request.spec)
        if not compression.callbacks.ended and compression.at_end_of_script is not None:
            compression.at_end_of_script()
        if not compression.callbacks.ended:
            raise InvalidModelError(
                f"{request.spec.model.script} ended too early: {compression.callbacks.unfinished()}", _PATH
            )
        outcome, measured = compression.finished()
        if weights.state_digest(compression.model) != run_.digest:
            raise CompressionError(
                f"{request.spec.model.script} changed the model after on_train_end(), so what was measured there is no "
                "longer true; train before it, and work on a copy after it",
                _PATH,
            )
        main = ranks.is_rank_zero()
        ranks.destroy_process_group()
        if not main:
            return RunResult(phase="Succeeded", reason=reasons.SUCCEEDED, message="rank 0 writes the artifact")
        made = FinishedRun(outcome, measured, compression.subject, [*dense.notes, *outcome.notes], run_.code_digest)
        with stop.at_once(), tempfile.TemporaryDirectory(prefix="modelpress-") as folder:
            return finish(request, store, made, run_.checkpointer(dense), Path(folder))


def _refused(error: SystemExit, name: str, arguments: Sequence[str]) -> BaseException:
    """In place of a SystemExit: where argparse raised it, what it was that the script does not take."""
    frames = [Path(frame.filename).name for frame in traceback.extract_tb(error.__traceback__)]
    if error.code != 2 or "argparse.py" not in frames:
        return error
    return InvalidModelError(
        f"{name} does not take the command line {' '.join(arguments) or '(none)'}: it says why in the log; write "
        "model.args as its options are called, without the dashes before them (batch-size: 16)",
        "spec.model.args",
    )


def _never_called(spec: CompressionJobSpec) -> InvalidModelError:
    return InvalidModelError(
        f"{spec.model.script} ended without handing a model over; call mp.prepare_compression(model) in it", _PATH
    )


class _StopScript(BaseException):
    """The dense model is there; the rest of the script is not needed."""


class _ScriptRun:
    """A script's run, as prepare_compression finds it (current.ScriptRun)."""

    def __init__(
        self,
        request: RunRequest,
        store: ArtifactStore,
        progress: EventCallback,
        stop: StopFlag,
        *,
        dense_only: bool = False,
    ) -> None:
        self._request, self._store, self._progress, self._stop = request, store, progress, stop
        self._dense_only = dense_only
        self._cleanup = contextlib.ExitStack()
        self._names: dict[str, Any] = {}  # the script's globals
        self._file = Path(request.code_path or ".") / str(request.spec.model.script)
        if not self._file.is_file():
            raise InvalidModelError(f"there is no file {self._file}; correct the path", _PATH)
        self.code_digest = code.digest_of(request.code_path, self._file)
        self.dense: Dense | None = None
        self.compression: Compression | None = None
        self.digest = ""  # of the model's state at on_train_end

    @contextlib.contextmanager
    def script(self) -> Iterator[None]:
        """Runs the script. Inside the context it is over, but its classes are still those of `__main__`."""
        spec = self._request.spec
        rng.seed_all(spec.seed)
        arguments = command_line(spec.model.args)
        with self._cleanup, current.entered(self), _as_main(self._file, arguments) as module:
            code.use(self._request.code_path)
            self._names = vars(module)
            self._cleanup.enter_context(self._stop.at_once())
            with contextlib.suppress(_StopScript):
                self._execute(module)
            yield

    def _execute(self, module: types.ModuleType) -> None:
        name = str(self._request.spec.model.script)
        try:
            with user_code(name):
                try:
                    exec(compile(self._file.read_bytes(), str(self._file), "exec"), vars(module))
                except SystemExit as error:
                    if error.code not in (None, 0):
                        raise _refused(error, name, sys.argv[1:]) from error
        except UserCodeError as error:
            if self.dense is None:
                raise InvalidModelError(str(error), _PATH) from error.__cause__
            raise

    def prepared(self, handed: LoopModel, given: Sequence[str], state: LoopState) -> Compression:
        """As current.ScriptRun."""
        spec, path = self._request.spec, self._request.code_path
        if given:
            raise InvalidModelError(
                f"prepare_compression() was given {given[0]}, but a job runs this script, and its specification says "
                "that; leave it out",
                _PATH,
            )
        if self.dense is not None:
            raise InvalidModelError("prepare_compression() was called twice; a job compresses one model", _PATH)
        digest = dense_digest(spec, self.code_digest)
        cache = DenseCache(self._store, self._request.root, digest)
        log.info("building the dense model")
        base = self._request.base_path or path
        self.dense = cache.obtain(spec, handed, base, self._stop, timed=not self._dense_only)
        for note in self.dense.notes:
            log.warning("%s", note)
        if self._dense_only:
            raise _StopScript
        self._stop.gracefully()  # the loop that comes now is stopped between its steps
        check_constraints(spec, self.dense.baseline)
        check_objectives(self._request, self.dense.baseline)
        measuring = Measuring(spec, self.dense.subject, timed=True)
        state.keep_in(self.checkpointer(self.dense), self._own())
        self.compression = self._cleanup.enter_context(
            contextlib.closing(
                Compression(
                    spec,
                    self.dense.subject,
                    measuring,
                    self.dense.baseline,
                    state,
                    timed=True,
                    folder=Path(self._cleanup.enter_context(tempfile.TemporaryDirectory(prefix="modelpress-"))),
                    report=self._progress,
                    stop=self._stop,
                    ended=self._ended,
                )
            )
        )
        # Whether the dense model was trained here or came from the store makes no difference from here on.
        rng.seed_all(spec.seed)
        return self.compression

    def checkpointer(self, dense: Dense) -> Checkpointer:
        """The checkpoints of this run."""
        identity = checkpoint_identity(self._request.spec, f"{dense.digest} {self.code_digest}")
        return Checkpointer(self._store, self._request.prefix, identity, self._request.attempt)

    def _own(self) -> Mapping[str, Any]:
        """The script's globals; those that it makes later, too."""
        return _Globals(self._names)

    def _ended(self) -> None:
        assert self.compression is not None
        self.digest = weights.state_digest(self.compression.model)
        # What is left of the script changes nothing that lasts.
        self._cleanup.enter_context(self._stop.at_once())


class _Globals(Mapping[str, Any]):
    """A script's own global names."""

    def __init__(self, names: Mapping[str, Any]) -> None:
        self._names = names

    def __getitem__(self, name: str) -> Any:
        return self._names[name]

    def __iter__(self) -> Iterator[str]:
        return (name for name in sorted(self._names) if not name.startswith("__"))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def command_line(args: Mapping[str, Any] | None) -> list[str]:
    """The arguments of a script: --name=value; true is --name, false is nothing, a list is --name and its items."""
    line: list[str] = []
    for name, value in (args or {}).items():
        if isinstance(value, bool):
            line += [f"--{name}"] if value else []
        elif isinstance(value, list):
            line += [f"--{name}", *map(str, value)]
        else:
            line.append(f"--{name}={value}")
    return line


@contextlib.contextmanager
def _as_main(file: Path, arguments: list[str]) -> Iterator[types.ModuleType]:
    """A fresh `__main__` for a script, with its folder on sys.path, as Python itself would start it."""
    main, arguments_before, path = sys.modules["__main__"], sys.argv, list(sys.path)
    module = types.ModuleType("__main__")
    module.__file__ = str(file)
    module.__builtins__ = __builtins__  # type: ignore[attr-defined]
    sys.modules["__main__"], sys.argv = module, [str(file), *arguments]
    if str(file.parent) not in sys.path:
        sys.path.insert(0, str(file.parent))
    try:
        yield module
    finally:
        sys.modules["__main__"], sys.argv, sys.path[:] = main, arguments_before, path
