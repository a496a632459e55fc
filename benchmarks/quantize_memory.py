"""Peak memory of four bits for a bfloat16 decoder of 400 M parameters, in multiples of its weights, and a killed run.

Each run is a process of its own: rounding to the nearest; gptq on random tokens; gptq that kills itself with SIGKILL
behind a block drawn by the seed; and gptq that goes on from there. Counted are the process's greatest resident bytes
above what it has before the decoder is built, a tiny decoder having gone the same way first: code that is loaded is no
part of it. What went on must have the bits of the run that was left alone.

Then each writes the folder that transformers loads (compressed-tensors), proof included, and a process with
transformers alone loads it on the CPU: all weights, decompressed, and the logits of one sequence must be those of the
model in memory.

What memory grows with: the second moments of the layers of one block, inputs^2 * 4 or 8 bytes of each, and what the
largest of them is factored in, twice that; outputs of one block on the calibration data, up to 256 MiB, then on disk.

Usage: python benchmarks/quantize_memory.py [--size 400M] [--seed 0] [--batches 1] [--ways gptq,killed,resumed,rtn]
"""

from __future__ import annotations

import argparse
import gc
import hashlib
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
WAYS = ("gptq", "killed", "resumed", "rtn")
BESIDE = ("weight_scale", "weight_shape", "weight_packed")  # ends of names of what lies beside a weight


def _status(key: str) -> int:
    text = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in text.splitlines() if line.startswith(f"{key}:")).split()[1])


def _digests(tensors: dict[str, Any]) -> dict[str, str]:
    """sha256 of each tensor's bytes."""
    import torch

    return {
        name: hashlib.sha256(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy()).hexdigest()
        for name, value in tensors.items()
    }


def tokenizer() -> Any:
    """One of two words, as a folder has one."""
    import transformers
    from tokenizers import Tokenizer, models

    inner = Tokenizer(models.WordLevel({"[UNK]": 0, "word": 1}, unk_token="[UNK]"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]")


def one(way: str, size: str, batches: int, folder: str, kill: int) -> dict[str, Any]:
    """One run in this process, behind one of a tiny decoder."""
    from modelpress_runner.runtime.heap import give_back

    with tempfile.TemporaryDirectory(prefix="modelpress-bench-") as first:
        _run(way, "tiny", batches, first, kill=-1)
    gc.collect()
    give_back()
    return _run(way, size, batches, folder, kill)


def _run(way: str, size: str, batches: int, folder: str, kill: int) -> dict[str, Any]:
    import torch
    from gpu_check.decoder import SIZES, Decoder

    from modelpress.api.v1alpha1 import Stage
    from modelpress.store import open_store
    from modelpress_runner.engine.checkpoint import Checkpointer
    from modelpress_runner.engine.run import run_stages
    from modelpress_runner.export.state import state_digest
    from modelpress_runner.huggingface import compressed_tensors
    from modelpress_runner.huggingface.layout import PretrainedLayout
    from modelpress_runner.huggingface.source import Pretrained
    from modelpress_runner.runtime.heap import give_back
    from modelpress_runner.subject.subject import Subject

    base = _status("VmRSS")
    torch.manual_seed(0)
    sizes = SIZES[size]
    model = Decoder(sizes, torch.bfloat16).eval().llama
    weights = sum(value.numel() * value.element_size() for value in model.parameters())
    generator = torch.Generator().manual_seed(1)
    data = [
        {"input_ids": torch.randint(0, sizes.vocabulary, (ROWS, TOKENS), generator=generator)} for _ in range(batches)
    ]
    example = {"input_ids": data[0]["input_ids"][:1]}
    layout = PretrainedLayout(Pretrained(model, tokenizer(), "AutoModelForCausalLM"))
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
        "backend": "compressed-tensors",
        "quantBits": 4,
        "granularity": "group",
        "groupSize": 64 if size == "tiny" else 128,
        "configList": [{"opTypes": ["Linear"]}, {"opNames": ["lm_head"], "exclude": True}],
    }
    began, spent = time.monotonic(), time.process_time()
    outcome = run_stages(
        Subject(model, None, example, data, layout),
        [Stage.model_validate({"quantize": block})],
        seed=0,
        scores=False,
        checkpointer=Killing(open_store(folder), "", "same", 1),
    )
    layers = outcome.stages[0]["layers"]
    found = {
        "weights": weights,
        "base": base,
        "peak": _status("VmHWM") - base,
        "left": sum(value.numel() * value.element_size() for value in model.state_dict().values()),
        "seconds": time.monotonic() - began,
        "processorSeconds": time.process_time() - spent,
        "digest": state_digest(model),
        "meanSqnrDb": sum(layer["sqnrDb"] for layer in layers) / len(layers),
        "layers": len(layers),
        "notes": outcome.notes,
    }
    give_back()
    Path("/proc/self/clear_refs").write_text("5")
    layout.write(model, example, Path(folder) / "transformers")
    found["writePeak"] = _status("VmHWM") - base
    found["folderBytes"] = sum(each.stat().st_size for each in Path(folder, "transformers").glob("*.safetensors"))
    found["weightDigests"] = _digests(compressed_tensors.weights(model))
    with torch.no_grad():
        torch.save((example, model(**example).logits), Path(folder) / "logits.pt")
    return found


def load(folder: str) -> dict[str, Any]:
    """What transformers alone makes of a folder: digests of its weights, and how far its logits are off."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        Path(folder) / "transformers", dtype="auto", local_files_only=True
    ).eval()
    example, wanted = torch.load(Path(folder) / "logits.pt", weights_only=True)
    with torch.no_grad():
        logits = model(**example).logits  # works out the weights
    assert not any(name.startswith("modelpress") for name in sys.modules)
    return {
        "weightDigests": _digests({n: v for n, v in model.state_dict().items() if not n.endswith(BESIDE)}),
        "logitsOff": float((logits.double() - wanted.double()).norm() / wanted.double().norm()),
        "device": str(model.device),
    }


def main() -> int:
    """All runs; 1 if one takes too much memory, bits differ, or transformers loads another model."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", default="400M")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batches", type=int, default=1)
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--kill", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one == "load":
        print(json.dumps(load(options.folder)))
        return 0
    sys.path.insert(0, str(HERE.parent / "tools"))
    if options.one:
        print(json.dumps(one(options.one, options.size, options.batches, options.folder, options.kill)))
        return 0
    from gpu_check.decoder import SIZES

    kill = random.Random(options.seed).randrange(1, SIZES[options.size].layers)
    runs: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="modelpress-bench-") as shared:
        for way in options.ways.split(","):
            folder = f"{shared}/{'cut' if way in ('killed', 'resumed') else way}"
            command = [sys.executable, __file__, "--folder", folder, "--kill", str(kill)]
            command += ["--size", options.size, "--batches", str(options.batches), "--one"]
            done = subprocess.run([*command, way], capture_output=True, text=True, check=False)
            if way == "killed":
                assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
                continue
            if done.returncode:
                print(done.stderr[-3000:])
                return 1
            run = runs[way] = json.loads(done.stdout.splitlines()[-1])
            done = subprocess.run([*command, "load"], capture_output=True, text=True, check=False)
            if done.returncode:
                print(done.stderr[-3000:])
                return 1
            loaded, own = json.loads(done.stdout.splitlines()[-1]), run.pop("weightDigests")
            run["loadedWeightsEqual"] = loaded.pop("weightDigests") == own
            run |= {"weightsCompared": len(own), **loaded}
            run["multiple"], run["writeMultiple"] = (run[each] / run["weights"] for each in ("peak", "writePeak"))
            equal = "the same weights" if run["loadedWeightsEqual"] else "OTHER WEIGHTS"
            print(
                f"{way:8} peak {run['multiple']:.2f} x weights of {run['weights'] / 1e6:,.0f} MB, left "
                f"{run['left'] / 1e6:,.0f} MB, {run['seconds']:.0f} s, mean SQNR {run['meanSqnrDb']:.1f} dB; written "
                f"and proven at {run['writeMultiple']:.2f} x; transformers loads {equal}, logits "
                f"{run['logitsOff']:.1e} off",
                flush=True,
            )
    same = "resumed" in runs and "gptq" in runs and runs["gptq"]["digest"] == runs["resumed"]["digest"]
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
    if options.size == "400M" and set(options.ways.split(",")) == set(WAYS):
        (HERE / "results" / "quantize_memory.json").write_text(json.dumps(report, indent=2) + "\n")
    within = all(run["multiple"] <= LIMIT and run["loadedWeightsEqual"] for run in runs.values())
    return 0 if same and within else 1


if __name__ == "__main__":
    sys.exit(main())
