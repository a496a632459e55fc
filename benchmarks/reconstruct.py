"""What `prune.reconstruct` brings back on a sentence encoder, without labels and without training.

The job of examples/minilm with more of each feed-forward layer cut out than it can bear: scored are 128 questions that
must find their answers. Calibration data are docstrings of Python's standard library, texts of another
domain, with no pair among them. Reported for each share and kind: the score, how much of the lost score came back, and
the seconds (of the clock, and of the processors) that the stage took beyond the same one with `none`; `auto` scores the
model seven times in them. Accuracy on 128 pairs has a standard error of .04, and
pairs are the same throughout.

Usage: python benchmarks/reconstruct.py [--samples 128]
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from modelpress.api.load import load_dict
from modelpress.api.v1alpha1 import CompressionJob
from modelpress_runner.engine.run import run_stages
from modelpress_runner.huggingface.entry import PretrainedModel
from modelpress_runner.inputs.gather import gathered

HERE = Path(__file__).resolve().parent
EXAMPLE = HERE.parent / "examples" / "minilm"
CASES = {0.25: ("none", "bias", "leastSquares", "auto"), 0.5: ("none", "bias", "leastSquares", "auto")}


def docstrings(count: int) -> list[str]:
    """So many docstrings of the standard library, drawn with a fixed seed, each of 80 characters or more."""
    texts = []
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            text = ast.get_docstring(node) if isinstance(node, ast.FunctionDef | ast.ClassDef) else None
            if text and len(text) >= 80:
                texts.append(" ".join(text.split())[:400])
    return random.Random(0).sample(texts, count)


def job(share: float, kind: str) -> CompressionJob:
    """The example's job with other sparsities, calibration data and a recovery."""
    data = yaml.safe_load((EXAMPLE / "job.yaml").read_text())
    data["spec"]["data"]["calibration"] = {"uri": "calibration.jsonl"}
    prune = data["spec"]["stages"][0]["prune"]
    prune["configList"][0]["sparsity"] = share
    prune["reconstruct"] = kind
    loaded = load_dict(data)
    assert isinstance(loaded, CompressionJob)
    return loaded


def main() -> None:
    """Runs all cases and writes benchmarks/results/reconstruct.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=128)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        subprocess.run([sys.executable, EXAMPLE / "prepare.py"], check=True, capture_output=True)
        shutil.copytree(EXAMPLE, folder, dirs_exist_ok=True)
        texts = docstrings(arguments.samples)
        (folder / "calibration.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        spec = job(0.25, "none").spec
        with gathered(spec, str(folder)) as inputs:
            assert spec.model.hugging_face is not None
            subject = PretrainedModel(spec.model.hugging_face, inputs).subject(spec.model, seed=0, train=False)
            dense = subject.model
            assert subject.evaluator is not None
            score = subject.evaluator.evaluate(dense)["default"]
            for share, kinds in CASES.items():
                none: dict[str, Any] = {}
                for kind in kinds:
                    subject.model = copy.deepcopy(dense)
                    recipe = job(share, kind).spec.stages
                    cpu, wall = time.process_time(), time.perf_counter()
                    outcome = run_stages(subject, recipe, seed=0, scores=False)
                    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
                    found = {"score": subject.evaluator.evaluate(outcome.model)["default"], "wall": wall, "cpu": cpu}
                    none = none or found
                    row = {"share": share, "reconstruct": kind, "dense": score, "score": found["score"]}
                    row["recovered"] = (found["score"] - none["score"]) / (score - none["score"])
                    row["seconds"] = wall - none["wall"]
                    row["cpuSeconds"] = cpu - none["cpu"]
                    row["did"] = [note for note in outcome.notes if note.startswith("reconstruct")]
                    rows.append(row)
                    print(json.dumps(row), flush=True)
    result = {
        "rows": rows,
        "samples": arguments.samples,
        "threads": torch.get_num_threads(),
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "load": os.getloadavg()[0]},
    }
    (HERE / "results" / "reconstruct.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
