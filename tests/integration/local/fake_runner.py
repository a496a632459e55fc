"""A small runner that obeys the contract of modelpress_runner.main without torch: standard library only.

Its model is a rule: sparsity s gives score 1 - s/10 and 1000 (1 - s) MACs. `spec.model.args` says how to misbehave:
  ledger: FIFO or file that gets one JSON line at the start and one at the end of every run
  gate: FIFO; the run opens it for reading and so waits until somebody opens it for writing
  exits: {"trial": [1, 2]}: exit codes of the first attempts of a purpose, -9 for SIGKILL by itself; then all is well
  silent: true to end with 0 and neither result nor manifest;  loud: a line to print on standard error
"""

import argparse
import ctypes
import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
BASELINE = {"default": 1.0, "macs": 1000.0, "sizeBytes": 4000.0, "latencyMs": 2.0}


def main() -> int:
    parser = argparse.ArgumentParser()
    for name in ("request", "result", "progress", "parent-pid"):
        parser.add_argument(f"--{name}", required=True)
    args = parser.parse_args()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(args.parent_pid):
        return 143
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    request = json.loads(Path(args.request).read_text())
    how = request["spec"]["model"].get("args", {})
    said = {
        "purpose": request["purpose"],
        "name": request["name"],
        "attempt": request["attempt"],
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "code": request.get("codePath"),
        "pid": os.getpid(),
    }
    try:
        say(how, "start", said)  # whoever reads it may send a signal at once
        code = work(request, how, args)
    except SystemExit as exit_:
        code = exit_.code
    say(how, "end", {**said, "exit": code})
    return code


def say(how: dict, event: str, said: dict) -> None:
    if "ledger" not in how:
        return
    descriptor = os.open(how["ledger"], os.O_WRONLY | os.O_APPEND)
    os.write(descriptor, (json.dumps({"event": event, **said}) + "\n").encode())
    os.close(descriptor)


def work(request: dict, how: dict, args: argparse.Namespace) -> int:
    if "loud" in how:
        print(how["loud"], file=sys.stderr)
    with Path(args.progress).open("a") as file:
        for step in (1, 2):
            line = {"t": time.time(), "stage": "prune", "step": step, "total": 2, "value": 0.5, "message": "scoring"}
            print(json.dumps(line), file=file, flush=True)
    if "gate" in how and request["purpose"] == "trial":
        Path(how["gate"]).read_bytes()
    codes = how.get("exits", {}).get(request["purpose"], [])
    if request["attempt"] <= len(codes):
        return misbehave(codes[request["attempt"] - 1], args)
    if how.get("silent") and request["purpose"] == "trial":
        return 0
    folder = Path(request["spec"]["store"]["uri"]) / request["prefix"]
    result = {"trial": trial, "prepare": prepare, "collect": collect, "publish": publish}[request["purpose"]](
        request, folder
    )
    write(Path(args.result), json.dumps(result))
    return 0


def misbehave(code: int, args: argparse.Namespace) -> int:
    if code == -9:
        os.kill(os.getpid(), signal.SIGKILL)
    reason = {1: "RunnerFailed", 2: "InvalidModel"}.get(code, "RunnerFailed")
    write(
        Path(args.result), json.dumps({"v": 1, "phase": "Failed", "reason": reason, "message": f"told to exit {code}"})
    )
    return code


def trial(request: dict, folder: Path) -> dict:
    manifest = folder / "manifest.json"
    if not manifest.exists():
        sparsity = request["spec"]["stages"][0]["prune"]["configList"][0]["sparsity"]
        keep = 1 - sparsity
        compressed = {"default": round(1 - sparsity / 10, 6), "macs": round(1000 * keep, 6)}
        compressed |= {"sizeBytes": round(4000 * keep, 6), "latencyMs": round(2 * keep, 6)}
        bound = next((c["min"] for c in request["spec"].get("constraints", []) if "min" in c), None)
        met = None if bound is None else compressed["default"] >= bound
        content = {"metrics": {"baseline": BASELINE, "compressed": compressed}, "met": met, "by": request["attempt"]}
        folder.mkdir(parents=True, exist_ok=True)
        write(manifest, json.dumps(content))
    return read(manifest)


def read(manifest: Path) -> dict:
    content = json.loads(manifest.read_text())
    result = {"v": 1, "phase": "Succeeded", "reason": "Committed", **content["metrics"]}
    result["manifestDigest"] = hashlib.sha256(manifest.read_bytes()).hexdigest()
    result |= {"codeDigest": "c" * 64, "smaller": True, "portable": True}
    if content["met"] is not None:
        result |= {"constraintsMet": content["met"], "unmet": [] if content["met"] else ["default is below its min."]}
    return result


def prepare(request: dict, folder: Path) -> dict:
    return {"v": 1, "phase": "Succeeded", "reason": "Committed", "baseline": BASELINE, "codeDigest": "c" * 64}


def collect(request: dict, folder: Path) -> dict:
    manifest = folder / "manifest.json"
    if manifest.exists():
        return read(manifest)
    return {"v": 1, "phase": "NotFound", "reason": "NotFound"}


def publish(request: dict, folder: Path) -> dict:
    best = request["publish"].get("best")
    result = {"v": 1, "phase": "Succeeded", "reason": "Published"}
    if best is not None:
        (folder / "best").mkdir(parents=True, exist_ok=True)
        content = (folder / "trials" / f"{best:05d}" / "manifest.json").read_bytes()
        (folder / "best" / "manifest.json").write_bytes(content)
        result["manifestDigest"] = hashlib.sha256(content).hexdigest()
    return result


def write(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text)
    draft.replace(path)


if __name__ == "__main__":
    sys.exit(main())
