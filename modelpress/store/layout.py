"""Names in an artifact folder, in one place.

<namespace>/<job or sweep>-<uid8>/                  a root (request.job_root)
    trials/<00007>/                                 a sweep's trial; a standalone job has what follows in its root
        manifest.json                               the commit point
        <attempt>-<uid8>/model.pt2 ...              what one attempt wrote
        checkpoint/                                 what the next attempt goes on from
    sizes/<00>/                                 of a recipe with several budgets: what a job has, for each of them
    dense/<digest>/                                 a dense model and its baseline
    stages/<digest>/                                first stages that several trials have alike, until it publishes
    stages/files/<folder>/                          other files that its trials leave for each other, until then
    best.json  best/  trials.csv  report.html       what a sweep publishes; best/ has its own manifest.json
"""

from __future__ import annotations

import re

from modelpress.request import trial_prefix, uid8

MANIFEST = "manifest.json"
RESULT = "result.json"
METRICS = "metrics.json"
JOB = "job.yaml"
CARD = "README.md"
PROGRAM = "model.pt2"
WEIGHTS = "model.safetensors"
SHRINK = "shrink.json"
MASKS = "masks.safetensors"
ONNX = "model.onnx"
ONNX_DATA = "model.onnx.data"  # its tensors, where it would be larger than 2 GB
OPENVINO = "model.xml"
OPENVINO_DATA = "model.bin"
BASELINE = "baseline.json"
DENSE_WEIGHTS = "weights.json"  # which file of the folder holds a dense model's weights

TRIALS = "trials"
BEST = "best"
BEST_RECORD = "best.json"
TRIALS_TABLE = "trials.csv"
REPORT = "report.html"
DENSE = "dense"
CHECKPOINT = "checkpoint"
SIZES = "sizes"
SIZES_RECORD = "sizes.json"  # in the artifact of the size that is the job's own
STAGES = "stages"
STAGES_RECORD = "state.json"  # which file of the folder holds the state behind them

__all__ = [
    "BASELINE",
    "BEST",
    "BEST_RECORD",
    "CARD",
    "CHECKPOINT",
    "DENSE",
    "DENSE_WEIGHTS",
    "JOB",
    "MANIFEST",
    "MASKS",
    "METRICS",
    "ONNX",
    "ONNX_DATA",
    "OPENVINO",
    "OPENVINO_DATA",
    "PROGRAM",
    "REPORT",
    "RESULT",
    "SHRINK",
    "SIZES",
    "SIZES_RECORD",
    "STAGES",
    "STAGES_RECORD",
    "TRIALS",
    "TRIALS_TABLE",
    "WEIGHTS",
    "attempt_folder",
    "best_folder",
    "checkpoint_prefix",
    "dense_prefix",
    "join",
    "parse_attempt",
    "shared_files_prefix",
    "size_prefix",
    "stages_prefix",
    "trial_number",
    "trial_prefix",
]


def join(*parts: str) -> str:
    """Path segments as one path; empty parts are left out, so that a root of "" is the store's own."""
    return "/".join(part.strip("/") for part in parts if part.strip("/"))


def attempt_folder(attempt: int, run_uid: str) -> str:
    """`<attempt>-<uid8>`: where one attempt writes, below its prefix. The uid is the pod's, the Job's, or random.

    Raises:
        ValueError: the attempt is below 1, or the uid has no characters that a path takes.
    """
    short = uid8(run_uid)
    if attempt < 1 or not re.fullmatch(r"[A-Za-z0-9]{1,8}", short):
        raise ValueError(f"no attempt folder for attempt {attempt!r} of uid {run_uid!r}")
    return f"{attempt}-{short}"


def parse_attempt(folder: str) -> tuple[int, str] | None:
    """Attempt and uid8 of an attempt folder's name; None if it is not one."""
    found = re.fullmatch(r"([1-9]\d{0,8})-([A-Za-z0-9]{1,8})", folder)
    return (int(found.group(1)), found.group(2)) if found else None


def trial_number(folder: str) -> int | None:
    """Number of a trial from its folder's name below trials/; None if it is not one."""
    return int(folder) if re.fullmatch(r"\d{5,9}", folder) and (len(folder) == 5 or folder[0] != "0") else None


def checkpoint_prefix(prefix: str) -> str:
    """Where the attempts of one run keep the checkpoint that the next one goes on from."""
    return join(prefix, CHECKPOINT)


def size_prefix(prefix: str, number: int) -> str:
    """Where the artifact of one of several sizes lies, from 0, largest first."""
    return join(prefix, SIZES, f"{number:02d}")


def dense_prefix(root: str, digest: str) -> str:
    """Where a dense model and its baseline lie, by the digest of what they depend on.

    Raises:
        ValueError: this is no digest.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]{8,128}", digest):
        raise ValueError(f"not a digest: {digest!r}")
    return join(root, DENSE, digest)


def stages_prefix(root: str, digest: str) -> str:
    """Where the state behind a recipe's first stages lies, by the digest of what they depend on."""
    return join(root, STAGES, digest)


def shared_files_prefix(root: str, folder: str) -> str:
    """Where the trials of a sweep leave files for each other."""
    return join(root, STAGES, "files", folder)


def best_folder(number: int, attempt: str) -> str:
    """Folder below best/ that holds a copy of one trial's files: one for each trial and attempt."""
    return f"{number:05d}-{attempt}"
