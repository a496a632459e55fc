"""Peak memory of four bits for a bfloat16 decoder of 400 M parameters, in multiples of its weights, and a killed run.

Each run is a process of its own: rounding to the nearest; gptq on random tokens; gptq that kills itself with SIGKILL
behind a block drawn by the seed; and gptq that goes on from there. Counted are the process's greatest resident bytes
above what it had before the decoder was built. What went on must have the bits of the run that was left alone.

Usage: python benchmarks/quantize_memory.py [--size 400M] [--seed 0] [--batches 1]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
LIMIT = 1.6  # multiples of the weights
ROWS, TOKENS = 8, 32  # of a batch


def _status(key: str) -> int:
    text = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in text.splitlines() if line.startswith(f"{key}:")).split()[1])


def one(way: str, size: str, batches: int, folder: str, kill: int) -> dict[str, Any]:
    """One run in this process."""
    import torch
    from gpu_check.decoder import SIZES, Decoder

    from modelpress.api.v1alpha1 import Stage
    from modelpress.store import open_store
    from modelpress_runner.engine.checkpoint import Checkpointer
    from modelpress_runner.engine.run import run_stages
    from modelpress_runner.export.state import state_digest
    from modelpress_runner.subject.subject import Subject

    Decoder(SIZES["tiny"], torch.bfloat16)  # loads what building one needs
    base = _status("VmRSS")
    torch.manual_seed(0)
    sizes = SIZES[size]
    model = Decoder(sizes, torch.bfloat16).eval()
    weights = sum(value.numel() * value.element_size() for value in model.parameters())
    generator = torch.Generator().manual_seed(1)
    data = [torch.randint(0, sizes.vocabulary, (ROWS, TOKENS), generator=generator) for _ in range(batches)]
    Path("/proc/self/clear_refs").write_text("5")  # the greatest from here on

    class Killing(Checkpointer):
        """Dies once so many parts are there."""

        def put(self, name: str, content: dict[str, Any]) -> None:
            super().put(name, content)
            if way == "killed" and int(name.rpartition("/")[2]) == kill:
                self.wait()
                os.kill(os.getpid(), signal.SIGKILL)

    block = {
        "algorithm": "weight_only" if way == "rtn" else "gptq",
        "quantBits": 4,
        "granularity": "group",
        "groupSize": 128,
        "configList": [{"opTypes": ["Linear"]}, {"opNamesRe": [".*lm_head"], "exclude": True}],
    }
    began = time.monotonic()
    outcome = run_stages(
        Subject(model, None, data[0][:1], data),
        [Stage.model_validate({"quantize": block})],
        seed=0,
        scores=False,
        checkpointer=Killing(open_store(folder), "", "same", 1),
    )
    layers = outcome.stages[0]["layers"]
    return {
        "weights": weights,
        "base": base,
        "peak": _status("VmHWM") - base,
        "left": sum(value.numel() * value.element_size() for value in model.state_dict().values()),
        "seconds": time.monotonic() - began,
        "digest": state_digest(model),
        "meanSqnrDb": sum(layer["sqnrDb"] for layer in layers) / len(layers),
        "layers": len(layers),
        "notes": outcome.notes,
    }


def main() -> int:
    """All runs; 1 if one takes too much memory, or bits differ."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", default="400M")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batches", type=int, default=1)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--kill", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sys.path.insert(0, str(HERE.parent / "tools"))
    if options.one:
        print(json.dumps(one(options.one, options.size, options.batches, options.folder, options.kill)))
        return 0
    from gpu_check.decoder import SIZES

    kill = random.Random(options.seed).randrange(1, SIZES[options.size].layers)
    runs: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="modelpress-bench-") as shared:
        for way in ("gptq", "killed", "resumed", "rtn"):
            folder = f"{shared}/{'cut' if way in ('killed', 'resumed') else way}"
            command = [sys.executable, __file__, "--one", way, "--folder", folder, "--kill", str(kill)]
            command += ["--size", options.size, "--batches", str(options.batches)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if way == "killed":
                assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
                continue
            if done.returncode:
                print(done.stderr[-3000:])
                return 1
            run = runs[way] = json.loads(done.stdout.splitlines()[-1])
            run["multiple"] = run["peak"] / run["weights"]
            print(
                f"{way:8} peak {run['multiple']:.2f} x weights of {run['weights'] / 1e6:,.0f} MB, left "
                f"{run['left'] / 1e6:,.0f} MB, {run['seconds']:.0f} s, mean SQNR {run['meanSqnrDb']:.1f} dB",
                flush=True,
            )
    same = runs["gptq"]["digest"] == runs["resumed"]["digest"]
    print(f"killed behind block {kill}, resumed: {'the same bits' if same else 'OTHER BITS'}")
    report = {
        "benchmark": "quantize_memory",
        "size": options.size,
        "limit": LIMIT,
        "killedBehind": kill,
        "sameBits": same,
        "load": os.getloadavg(),
        "machine": {"python": platform.python_version(), "cpu": platform.machine(), "cores": os.cpu_count()},
        "rowsAndTokens": [options.batches * ROWS, TOKENS],
        "runs": runs,
    }
    if options.size == "400M":
        (HERE / "results" / "quantize_memory.json").write_text(json.dumps(report, indent=2) + "\n")
    return 0 if same and all(run["multiple"] <= LIMIT for run in runs.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
