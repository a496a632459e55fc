"""MiniLM with eight bits on one thread: what modelpress writes beside what its users would write by hand, in one run.

Variants, all of the same encoder (all-MiniLM-L6-v2, mean of the last states, 64 tokens, a batch of one):
- eager: the module in torch, float32;
- ort-dynamic, ort-static, openvino: `quantize` with that backend, by mp.compress;
- bare-ort, bare-nncf: torch.onnx.export, then ONNX Runtime's quantize_dynamic by channel, and nncf.quantize for
  transformers, each with its runtime's plain session of one thread;
- bare-torchao: torchao's quantize_ with eight bits of weights and of activations as they come, by torch.compile;
- pruned: a quarter of each feed-forward layer cut out, what is left refitted and trained to the dense model's states on
  texts without labels, then as openvino.

Variants are called in turn, in an order drawn for each round, so that each meets the same machine, each time once
without a clock, so that none pays for another's use of the caches; reported are the least and the median of the calls,
the median of the ratios to eager and of ours to bare, the file's bytes, and the share of questions whose answer is
the nearest of all, with its standard error. The load and the CPU are in the result: integers are fast where the CPU has
instructions for their products (VNNI), and the file says whether it was written for one that has.

Usage: python benchmarks/runtimes_minilm.py [--rounds 60] [--variants eager,openvino,bare-nncf] [--output FILE]
       after python examples/minilm/prepare.py; torchao comes into a folder that goes away again
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
MINILM = HERE.parent / "examples" / "minilm"
sys.path.insert(0, str(MINILM))
LENGTH, CALIBRATION = 64, 128
TEXTS, ROWS, STEPS = 4000, 16, 300  # that the pruned one trains on
PAIRS = (("ort-dynamic", "bare-ort"), ("openvino", "bare-nncf"), ("openvino", "bare-torchao"))
ALL = ("eager", "ort-dynamic", "ort-static", "openvino", "bare-ort", "bare-nncf", "bare-torchao", "pruned")

sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # it would report to its maker


def encoder(model_folder: Path) -> Any:
    """The encoder as one module."""
    import torch
    import transformers
    from torch import nn

    class Encoder(nn.Module):
        """Ids and mask -> the mean of the last states."""

        def __init__(self) -> None:
            super().__init__()
            self.bert = transformers.AutoModel.from_pretrained(
                model_folder, add_pooling_layer=False, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
            )

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            states = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            mask = attention_mask.unsqueeze(-1).to(states.dtype)
            return (states * mask).sum(1) / mask.sum(1)

    return Encoder().eval()


def tokens(model_folder: Path, texts: list[str]) -> list[dict[str, Any]]:
    """Each text alone, padded to LENGTH."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder)
    out = []
    for text in texts:
        made = tokenizer(text, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
        out.append({"input_ids": made["input_ids"], "attention_mask": made["attention_mask"]})
    return out


def ours(
    model: Any,
    stages: list[dict[str, Any]],
    target: str,
    calibration: list[Any],
    folder: Path,
    evaluator: Any = None,
) -> Path:
    """What modelpress makes of it; the runtime's file."""
    import modelpress as mp

    given = {"dummy_input": calibration[0]} if evaluator is None else {}
    result = mp.compress(model, stages, evaluator, calibration_data=calibration, target={"format": target}, **given)
    print(f"  {'; '.join(result.notes)[:300]}", file=sys.stderr)
    root = Path(result.save(folder))
    return next(root.rglob("model.onnx" if target == "onnxruntime" else "model.xml"))


def on_texts(model_folder: Path, example: dict[str, Any]) -> Any:
    """How the encoder trains on texts: no loss of its own, a rate that rises and falls."""
    import torch
    import transformers
    from prepare import shuffled

    import modelpress as mp

    tokenizer, texts = transformers.AutoTokenizer.from_pretrained(model_folder), shuffled(TEXTS)

    def train(model: Any, optimizer: Any, step: Any, scheduler: Any, max_steps: int, max_epochs: Any) -> None:
        for number in range(max_steps):
            rows = [texts[(number * ROWS + row) % len(texts)] for row in range(ROWS)]
            batch = tokenizer(rows, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")
            optimizer.zero_grad()
            step({name: batch[name] for name in example}, model).backward()
            optimizer.step()
            scheduler.step()

    def rate(optimizer: Any) -> Any:
        return transformers.get_linear_schedule_with_warmup(optimizer, STEPS // 10, STEPS)

    return mp.TorchEvaluator(
        train,
        lambda parameters: torch.optim.AdamW(parameters, lr=5e-4),
        lambda batch, model: 0.0 * model(**batch).sum(),
        rate,
        dummy_input=example,
    )


def quantize(backend: str, algorithm: str) -> dict[str, Any]:
    return {"quantize": {"backend": backend, "algorithm": algorithm, "configList": [{"opTypes": ["default"]}]}}


def floats(model: Any, example: dict[str, Any], path: Path) -> None:
    """As users export it."""
    import torch

    with contextlib.redirect_stdout(io.StringIO()):
        torch.onnx.export(
            model, (), str(path), kwargs=example, dynamo=True, input_names=list(example), output_names=["sentence"]
        )


def bare_ort(model: Any, calibration: list[Any], folder: Path) -> Path:
    """By ONNX Runtime's own tool."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    floats(model, calibration[0], folder / "floats.onnx")
    quantize_dynamic(folder / "floats.onnx", folder / "model.onnx", per_channel=True, weight_type=QuantType.QInt8)
    return folder / "model.onnx"


def bare_nncf(model: Any, calibration: list[Any], folder: Path) -> Path:
    """By NNCF's quickstart for transformers."""
    import nncf
    import openvino as ov

    floats(model, calibration[0], folder / "floats.onnx")
    feeds = [{name: value.numpy() for name, value in each.items()} for each in calibration]
    with contextlib.redirect_stdout(io.StringIO()):
        made = nncf.quantize(
            ov.Core().read_model(str(folder / "floats.onnx")),
            nncf.Dataset(feeds),
            subset_size=len(feeds),
            model_type=nncf.ModelType.TRANSFORMER,
        )
    ov.save_model(made, str(folder / "model.xml"), compress_to_fp16=False)
    return folder / "model.xml"


def bare_torchao(model: Any, example: dict[str, Any], folder: Path) -> Callable[[dict[str, Any]], Any]:
    """By torchao's quickstart for CPUs."""
    import torch

    command = ["install", "--quiet", "--disable-pip-version-check", "--no-deps", "--target", str(folder), "torchao"]
    subprocess.run([sys.executable, "-m", "pip", *command], check=True)
    sys.path.append(str(folder))
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    made = copy.deepcopy(model)
    quantize_(made, Int8DynamicActivationInt8WeightConfig())
    compiled = torch.compile(made)
    with torch.inference_mode():
        compiled(**example)
    return in_torch(compiled)


def in_torch(model: Any) -> Callable[[dict[str, Any]], Any]:
    """A module's call, with arrays."""
    import torch

    def call(feed: dict[str, Any]) -> Any:
        with torch.inference_mode():
            return model(**{key: torch.from_numpy(value) for key, value in feed.items()}).numpy()

    return call


def plain(path: Path) -> Callable[[dict[str, Any]], Any]:
    """A runtime's own session of one thread."""
    if path.suffix == ".onnx":
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return lambda feed: session.run(None, feed)[0]
    import openvino as ov

    compiled = ov.Core().compile_model(str(path), "CPU", {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1})
    return lambda feed: compiled(feed)[0]


def opened(path: Path) -> Callable[[dict[str, Any]], Any]:
    """As modelpress opens it."""
    from modelpress_runner.serving.session import open_session

    session = open_session(path)
    return lambda feed: session.run(feed)[0]


def score(call: Callable[[dict[str, Any]], Any], questions: list[Any], answers: list[Any]) -> float:
    """The share of questions whose own answer is the nearest."""
    import numpy as np

    both = []
    for side in (questions, answers):
        rows = np.concatenate([call({name: value.numpy() for name, value in each.items()}) for each in side])
        both.append(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    return float(((both[0] @ both[1].T).argmax(1) == np.arange(len(questions))).mean())


def main() -> None:
    """Builds the variants, times them in turn, and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--variants", default=",".join(ALL))
    parser.add_argument("--model", type=Path, default=MINILM / "model")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "runtimes_minilm.json")
    asked = parser.parse_args()
    wanted = asked.variants.split(",")
    if unknown := [each for each in wanted if each not in ALL]:
        parser.error(f"{', '.join(unknown)}: no such variant; there are {', '.join(ALL)}")
    if not asked.model.is_dir():
        parser.error(f"there is no model in {asked.model}; run examples/minilm/prepare.py")

    import torch

    from modelpress_runner.serving import cpu

    torch.set_num_threads(1)
    rows = [json.loads(line) for line in (MINILM / "pairs.jsonl").read_text().splitlines()]
    questions = tokens(asked.model, [row["text"] for row in rows])
    answers = tokens(asked.model, [row["positive"] for row in rows])
    texts = MINILM / "texts.jsonl"
    lines = texts.read_text().splitlines() if texts.exists() else [json.dumps({"text": r["positive"]}) for r in rows]
    calibration = tokens(asked.model, [json.loads(line)["text"] for line in lines[:CALIBRATION]])
    model = encoder(asked.model)
    feed_forward = [{"opNamesRe": [r"bert\.encoder\.layer\.\d+\.intermediate\.dense"], "sparsity": 0.25}]
    states = {
        "lossTypes": ["task", "MSE"],
        "lossWeights": [0.0, 1.0],
        "layerMappings": [{"studentRe": r"bert\.encoder\.layer\.\d+"}],
        "maxSteps": STEPS,
    }
    recipes: dict[str, tuple[list[dict[str, Any]], str]] = {
        "ort-dynamic": ([quantize("onnxruntime", "ptq_dynamic")], "onnxruntime"),
        "ort-static": ([quantize("onnxruntime", "ptq_static")], "onnxruntime"),
        "openvino": ([quantize("openvino", "ptq_static")], "openvino"),
        "pruned": (
            [
                {"prune": {"algorithm": "l1", "configList": feed_forward, "reconstruct": "leastSquares"}},
                {"distill": states},
                quantize("openvino", "ptq_static"),
            ],
            "openvino",
        ),
    }
    calls: dict[str, Callable[[dict[str, Any]], Any]] = {}
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="runtimes-") as temporary:
        for name in wanted:
            began = time.perf_counter()
            folder = Path(temporary) / name
            folder.mkdir()
            found[name] = {}
            if name in ("eager", "bare-torchao"):
                made = in_torch(model) if name == "eager" else bare_torchao(model, calibration[0], folder)
                calls[name] = made
                if name == "eager":  # torchao's is never written to a file
                    found[name]["bytes"] = sum(each.numel() * 4 for each in model.parameters())
            else:
                if name in recipes:
                    evaluator = on_texts(asked.model, calibration[0]) if name == "pruned" else None
                    path = ours(model, *recipes[name], calibration, folder / "out", evaluator)
                    calls[name] = opened(path)
                else:
                    path = (bare_ort if name == "bare-ort" else bare_nncf)(model, calibration, folder)
                    calls[name] = plain(path)
                beside = path.with_suffix(".bin")
                found[name]["bytes"] = path.stat().st_size + (beside.stat().st_size if beside.exists() else 0)
            found[name]["seconds"] = round(time.perf_counter() - began, 1)
            found[name]["score"] = score(calls[name], questions, answers)
            print(f"{name}: {found[name]}", file=sys.stderr, flush=True)
        load = [os.getloadavg()[0]]
        feed = {key: value.numpy() for key, value in questions[0].items()}
        times: dict[str, list[float]] = {name: [] for name in wanted}
        for number in range(asked.rounds + 3):
            for name in random.Random(number).sample(wanted, len(wanted)):
                calls[name](feed)
                start = time.perf_counter()
                calls[name](feed)
                if number >= 3:
                    times[name].append(1e3 * (time.perf_counter() - start))
        load.append(os.getloadavg()[0])
    for name, taken in times.items():
        found[name] |= {"minMs": min(taken), "medianMs": statistics.median(taken)}
        if "eager" in times:
            ratios = [slow / fast for slow, fast in zip(times["eager"], taken, strict=True)]
            found[name] |= {
                "speedupMedian": statistics.median(ratios),
                "speedupOfMin": min(times["eager"]) / min(taken),
            }
    pairs = {
        f"{one} / {other}": {
            "latencyMedian": statistics.median(a / b for a, b in zip(times[one], times[other], strict=True)),
            "latencyOfMin": min(times[one]) / min(times[other]),
            "scoreDifference": found[one]["score"] - found[other]["score"],
        }
        for one, other in PAIRS
        if one in times and other in times
    }
    share = found[wanted[0]]["score"]
    result = {
        "cpu": cpu.described(),
        "load": load,
        "rounds": asked.rounds,
        "pairsScored": len(rows),
        "standardError": (share * (1 - share) / len(rows)) ** 0.5,
        "variants": found,
        "oursByBare": pairs,
    }
    asked.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
