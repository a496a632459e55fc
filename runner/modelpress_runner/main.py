"""The runner's process: one request in, one result out, with the exit codes of modelpress.result.ExitCode.

Usage: python -m modelpress_runner.main --request FILE --result FILE [--progress FILE] [--parent-pid N]

A trial that several processes train (spec.runner.nodes, processesPerNode) is this process and, below it, one with
`--worker FOLDER` for each of them; see launch.py.

Nothing here imports torch before it is needed: a run whose manifest is there already, collect and publish do not.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from modelpress import __version__
from modelpress.api import plugins
from modelpress.api.errors import SpecError
from modelpress.api.v1alpha1 import reasons
from modelpress.request import MAX_REQUEST_BYTES, RUN_UID_VARIABLE, RunRequest
from modelpress.result import ExitCode, RunRecord, RunResult, conditions_of
from modelpress.results.errors import InvalidRequestError, ResultsError
from modelpress.store import layout, manifest, open_store
from modelpress.store.base import ArtifactStore
from modelpress.store.errors import StoreError, StoreUriError
from modelpress.store.manifest import ManifestError
from modelpress_runner.errors import InvalidModelError, InvalidSpecError, RunnerError, UserCodeError
from modelpress_runner.process import launch, push
from modelpress_runner.process.parent_death import die_with
from modelpress_runner.process.progress import EventCallback, ProgressFile, silent
from modelpress_runner.process.stopping import StopFlag, Stopped
from modelpress_runner.usercode.fetch import with_code

log = logging.getLogger("modelpress")

# Lightning's hints and what it has found, for each Trainer that the user's code makes.
_CHATTY = (
    *("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"),
    *("pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities.rank_zero"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one request; the exit code."""
    options = _arguments(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    if options.parent_pid is not None:
        die_with(options.parent_pid)
    stop = StopFlag()
    stop.install()
    if options.worker is not None:
        return _worker(options, stop)
    request: RunRequest | None = None
    store: ArtifactStore | None = None
    result: RunResult | None
    reported = False  # an earlier attempt's result, which has its record
    try:
        request = _read_request(options.request)
        if not request.run_uid:
            uid = os.environ.get(RUN_UID_VARIABLE) or uuid.uuid4().hex
            request = request.model_copy(update={"run_uid": uid})
        store = _store(request)
        reported = request.purpose == "trial" and manifest.read(store, request.prefix) is not None
        result, code = _serve(request, store, options.progress, stop, reported)
    except (Stopped, KeyboardInterrupt):
        result, code = launch.terminated(), ExitCode.TERMINATED
    except Exception as error:
        result, code = _failure(error)
        if isinstance(error, StoreError) and (hint := _missing_secret(request)):
            result = result.model_copy(update={"message": f"{hint}; {result.message}"})
    # From here on everything is short, and a second signal must not lose the result.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if result is None:  # another node tells it
        return int(code)
    level = logging.INFO if code == ExitCode.DONE else logging.ERROR
    log.log(level, "%s: %s", result.phase, result.message or result.reason)
    _write_result(options.result, result, _kept(request))
    if request is not None and store is not None and request.purpose == "trial" and not reported:
        _write_record(store, request, result)
    return int(code)


def _serve(
    request: RunRequest, store: ArtifactStore, progress: Path | None, stop: StopFlag, finished: bool
) -> tuple[RunResult | None, ExitCode]:
    if request.purpose == "publish":
        from modelpress.results.publish import publish

        return publish(request, store), ExitCode.DONE
    if request.purpose == "suggest":
        os.environ["OMP_NUM_THREADS"] = "1"  # the same sums wherever it runs
        from modelpress.results.suggest import answer

        return answer(request), ExitCode.DONE
    if request.purpose == "collect" or finished:
        from modelpress.results.collect import collect

        return collect(request, store), ExitCode.DONE
    with tempfile.TemporaryDirectory(prefix="modelpress-code-") as folder:
        with stop.at_once():
            request = with_code(request, Path(folder))
        group = launch.group_of(request.spec.runner, os.environ) if request.purpose == "trial" else None
        if group is not None:
            with tempfile.TemporaryDirectory(prefix="modelpress-ranks-") as reports:
                return launch.run(request, group, Path(reports), stop, progress)
        _pin_threads()
        from modelpress_runner.runs import trial

        with _reporting(request, ProgressFile(progress)) as report:
            if request.purpose == "prepare":
                return trial.prepare(request, store, report, stop), ExitCode.DONE
            return trial.run(request, store, report, stop), ExitCode.DONE


def _reporting(request: RunRequest, file: EventCallback) -> contextlib.AbstractContextManager[EventCallback]:
    """The callback for events of a run."""
    pushing = push.reporting(file) if request.purpose == "trial" else None
    return pushing or contextlib.nullcontext(file)


def _worker(options: argparse.Namespace, stop: StopFlag) -> int:
    """One of several processes that train together; writes its result for the process that started them."""
    rank, gone = int(os.environ["RANK"]), False
    if rank > 0:  # what all of them would say, rank 0 says
        log.setLevel(logging.WARNING)
    die_with(int(os.environ[launch.PARENT_VARIABLE]))
    _pin_threads()
    from modelpress_runner.runs import trial
    from modelpress_runner.runtime import distributed as ranks

    try:
        request = _read_request(options.request)
        store = _store(request)
        with stop.at_once():
            ranks.init_process_group()
        with _reporting(request, ProgressFile(options.progress) if rank == 0 else silent) as report:
            result, code = trial.run(request, store, report, stop), ExitCode.DONE
    except (Stopped, KeyboardInterrupt):
        result, code = launch.terminated(), ExitCode.TERMINATED
    except Exception as error:
        gone = ranks.is_peer_lost(error)
        if gone and stop.asked:
            result, code, gone = launch.terminated(), ExitCode.TERMINATED, False
        elif gone:
            log.error("rank %d: another process has gone away (%s)", rank, error)
            result, code = launch.terminated(f"another process has gone away: {error}"), ExitCode.TERMINATED
        else:
            log.error("rank %d failed", rank)
            result, code = _failure(error)
    launch.write_report(options.worker, rank, result, int(code), gone=gone)
    if gone:
        stop.wait(launch.LINGER_SECONDS)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads of the communication would be waited for, and peers that are gone do not answer.
    os._exit(int(code))


def _store(request: RunRequest) -> ArtifactStore:
    place = request.spec.store
    assert place is not None
    return open_store(place.uri, endpoint=place.endpoint, region=place.region)


def _failure(error: Exception) -> tuple[RunResult, ExitCode]:
    """How an error is reported: its message, a documented reason, and whether another attempt may help."""
    if isinstance(error, SpecError | InvalidSpecError | InvalidRequestError | StoreUriError):
        reason, code = reasons.INVALID_SPEC, ExitCode.INVALID
    elif isinstance(error, InvalidModelError | ManifestError):
        reason, code = reasons.INVALID_MODEL, ExitCode.INVALID
    else:
        reason, code = reasons.RUNNER_FAILED, ExitCode.FAILED
    known = isinstance(error, RunnerError | SpecError | StoreError | ResultsError)
    message = str(error) if known else f"{type(error).__name__}: {error} (unforeseen; the log has the traceback)"
    # The user's own traceback is worth reading; ours is not, unless nobody foresaw the error.
    cause = error.__cause__ if isinstance(error, UserCodeError | InvalidModelError) else None
    if cause is not None or not known:
        log.error("traceback:", exc_info=cause or error)
    return RunResult(phase="Failed", reason=reason, message=message), code


def _missing_secret(request: RunRequest | None) -> str | None:
    """What a pod lacks whose store's Secret is not there, or has other keys than the store needs."""
    store = request.spec.store if request is not None else None
    if store is None or store.secret_ref is None or RUN_UID_VARIABLE not in os.environ:
        return None
    family = {"s3": "AWS_", "gs": "GOOGLE_", "az": "AZURE_"}.get(store.uri.partition("://")[0])
    if family is None or any(name.startswith(family) for name in os.environ):
        return None
    name = store.secret_ref.name
    return (
        f"spec.store.secretRef: there is no Secret {name} in the pod's namespace, or it has no key {family}*; create it"
    )


def _read_request(path: Path) -> RunRequest:
    plugins.load()
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidSpecError(f"the request {path} cannot be read ({error.strerror}); give --request a file") from None
    if len(data) > MAX_REQUEST_BYTES:
        raise InvalidSpecError(f"the request has {len(data)} bytes; at most {MAX_REQUEST_BYTES} are read")
    try:
        request = RunRequest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden" and first["loc"][0] == "spec":
            raise InvalidSpecError(
                f"modelpress {__version__} in this image or environment is too old to know this field; set "
                "spec.runner.image to a release that is as new as the operator's, or remove the field",
                where,
            ) from None
        raise InvalidSpecError(f"the request {path} is no RunRequest: {where}: {first['msg']}") from None
    if request.spec.store is None:
        raise InvalidSpecError("the request has no store; the controller that writes it must set one", "spec.store.uri")
    return request


def _kept(request: RunRequest | None) -> list[str]:
    """Metrics that no result may lack; an older controller names none, but its constraints are known."""
    if request is None:
        return []
    constrained = [constraint.metric for constraint in request.spec.constraints or ()]
    return list(dict.fromkeys([*(request.keep_metrics or ()), *constrained]))


def _write_result(path: Path, result: RunResult, keep: Sequence[str]) -> None:
    text = result.to_message(keep)
    temporary: str | None = None
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
            temporary = file.name
            file.write(text)
        os.replace(temporary, path)
    except OSError:
        # A pod's termination log is a mount of its own: it can be written, but not replaced.
        path.write_text(text, encoding="utf-8")
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def _write_record(store: ArtifactStore, request: RunRequest, result: RunResult) -> None:
    trial = request.trial
    known = () if trial is None else (trial.number, trial.parameters, trial.screened)
    record = RunRecord.of(result, request.name, *known, conditions=conditions_of(request.spec))
    folder = layout.join(request.prefix, layout.attempt_folder(request.attempt, request.run_uid))
    try:
        store.put_bytes(f"{folder}/{layout.RESULT}", record.model_dump_json(exclude_none=True).encode())
    except StoreError as error:
        log.error("the record of this run could not be written: %s", error)


def _pin_threads() -> None:
    """One thread count for all of a run's training, so that its sums are taken in the same order each time."""
    count = os.environ.get("OMP_NUM_THREADS", "")
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = int(count) if count.isdigit() and int(count) > 0 else available
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="modelpress_runner.main", description="Run one RunRequest.")
    parser.add_argument("--request", type=Path, required=True, help="RunRequest as JSON")
    parser.add_argument("--result", type=Path, required=True, help="where the RunResult goes, at most 1 KiB of JSON")
    parser.add_argument("--progress", type=Path, help="JSON lines are appended here while the run goes on")
    parser.add_argument("--parent-pid", type=int, help="end when this process ends")
    parser.add_argument("--worker", type=Path, help="one of several processes; where it writes its result")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
