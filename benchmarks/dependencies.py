#!/usr/bin/env python
"""What the dependency analysis can take out of known models, with torch-pruning beside it.

    benchmarks/dependencies.py [NAME...]

For each model at random weights: half of what may go (L1), the proof of it, parameters and MACs before and after,
seconds, what stays and why; and torch-pruning's own script at the same ratio, or its error. torchvision and timm are
put into a folder that goes away again. Results: benchmarks/results/dependencies.json; lines that are there and were
not asked for stay.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modelpress_runner.dependency.analyse import find_dependencies
from modelpress_runner.dependency.cutting import edits_of
from modelpress_runner.dependency.prove import prove_structure

RESULTS = Path(__file__).parent / "results" / "dependencies.json"
PACKAGES = ("torchvision", "timm")
RATIO = 0.5
PEER_SECONDS = 30


class Logits(nn.Module):
    """The first output of a transformers model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.model(ids)[0]
        return out


def _vision(name: str, size: int = 64, **settings: Any) -> Callable[[], tuple[nn.Module, torch.Tensor]]:
    def make() -> tuple[nn.Module, torch.Tensor]:
        import torchvision  # type: ignore[import-not-found]

        return torchvision.models.get_model(name, weights=None, **settings), torch.randn(1, 3, size, size)

    return make


def _timm(name: str, size: int = 224) -> Callable[[], tuple[nn.Module, torch.Tensor]]:
    def make() -> tuple[nn.Module, torch.Tensor]:
        import timm  # type: ignore[import-not-found]

        return timm.create_model(name), torch.randn(1, 3, size, size)

    return make


def _text(model: str, config: str, **settings: Any) -> Callable[[], tuple[nn.Module, torch.Tensor]]:
    def make() -> tuple[nn.Module, torch.Tensor]:
        import transformers

        sizes = {
            "vocab_size": 64, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2,
            "num_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
            "eos_token_id": 2, "use_cache": False, **settings,
        }  # fmt: skip
        made = getattr(transformers, model)(getattr(transformers, config)(**sizes))
        return Logits(made), torch.randint(3, 60, (2, 8))

    return make


MODELS: dict[str, Callable[[], tuple[nn.Module, torch.Tensor]]] = {
    **{
        name: _vision(name)
        for name in (
            "resnet18", "resnet50", "wide_resnet50_2", "resnext50_32x4d", "mobilenet_v2", "mobilenet_v3_small",
            "densenet121", "vgg11_bn", "squeezenet1_0", "efficientnet_b0", "mnasnet0_5", "shufflenet_v2_x0_5",
            "regnet_y_400mf", "convnext_tiny", "swin_t",
        )
    },
    "googlenet": _vision("googlenet", aux_logits=False, init_weights=False),
    "inception_v3": _vision("inception_v3", 96, aux_logits=False, init_weights=False),
    "vit_b_16": _vision("vit_b_16", 224),
    "maxvit_t": _vision("maxvit_t", 224),
    "vit_tiny": _timm("vit_tiny_patch16_224"),
    "deit_tiny": _timm("deit_tiny_patch16_224"),
    "mixer_s32": _timm("mixer_s32_224"),
    "levit_128s": _timm("levit_128s"),
    "bert": _text("BertModel", "BertConfig"),
    "roberta": _text("RobertaModel", "RobertaConfig"),
    "distilbert": _text("DistilBertModel", "DistilBertConfig", dim=48, n_heads=4, n_layers=2, hidden_dim=96),
    "gpt2": _text("GPT2LMHeadModel", "GPT2Config", n_embd=48, n_layer=2, n_head=4, n_positions=64),
    "llama": _text("LlamaForCausalLM", "LlamaConfig", num_key_value_heads=2),
    "qwen2": _text("Qwen2ForCausalLM", "Qwen2Config", num_key_value_heads=2),
    "qwen3": _text("Qwen3ForCausalLM", "Qwen3Config", num_key_value_heads=2, head_dim=12),
    "gemma": _text("GemmaForCausalLM", "GemmaConfig", num_key_value_heads=1, head_dim=12, tie_word_embeddings=False),
    "phi3": _text("Phi3ForCausalLM", "Phi3Config", num_key_value_heads=2),
    "mixtral": _text("MixtralForCausalLM", "MixtralConfig", num_key_value_heads=2, num_local_experts=2),
    "t5_encoder": _text("T5EncoderModel", "T5Config", d_model=48, d_ff=96, d_kv=12, num_layers=2, num_heads=4),
}  # fmt: skip


def ours(make: Callable[[], tuple[nn.Module, torch.Tensor]]) -> dict[str, Any]:
    """Half of the units of every group, those with the smallest L1 norm of their first producer."""
    torch.manual_seed(0)
    model, inputs = make()
    model.eval()
    begin = time.perf_counter()
    found = find_dependencies(model, inputs)
    analysed = time.perf_counter() - begin
    removed = torch.zeros(found.unit_count, dtype=torch.bool)
    for group in found.groups:
        axis = found.output(group.producers[0])
        assert axis is not None
        module = model.get_submodule(group.producers[0])
        weight: Any = module.in_proj_weight if isinstance(module, nn.MultiheadAttention) else module.weight
        line = 0 if weight.shape[0] == len(axis.units) else 1
        norms = (
            weight.detach().abs().movedim(line, 0).flatten(1).sum(1) if weight.shape[line] == len(axis.units) else None
        )
        scores = torch.zeros(found.unit_count).index_add_(0, axis.vector, norms) if norms is not None else None
        units = torch.tensor(group.units)
        order = torch.arange(len(units)) if scores is None else scores[units].argsort()
        removed[units[order[: int(RATIO * len(units))]]] = True
    edits = edits_of(found, removed)
    begin = time.perf_counter()
    line_: dict[str, Any] = {
        "analysisSeconds": round(analysed, 2),
        "removableUnits": sum(len(g.units) for g in found.groups),
    }
    reasons = Counter(found.frozen.values())
    line_["stays"] = [f"{count} x {reason}" for reason, count in reasons.most_common(6)]
    line_["layers"] = len(found.layers)
    line_["notes"] = list(found.notes)
    try:
        proof = prove_structure(model, edits, inputs, draws=1)
    except Exception as error:
        return {**line_, "error": f"{type(error).__name__}: {str(error)[:300]}"}
    return {
        **line_,
        "proofSeconds": round(time.perf_counter() - begin, 2),
        "parameters": list(proof.parameters),
        "macs": list(proof.macs),
    }


def peer(make: Callable[[], tuple[nn.Module, torch.Tensor]]) -> dict[str, Any]:
    """torch-pruning's MetaPruner as its readme has it; the last layer stays."""
    import torch_pruning as tp

    torch.manual_seed(0)
    model, inputs = make()
    model.eval()
    before = sum(p.numel() for p in model.parameters())
    last = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]

    def stop(*_: Any) -> None:
        raise TimeoutError(f"took more than {PEER_SECONDS} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(PEER_SECONDS)
    begin = time.perf_counter()
    try:
        importance = tp.importance.MagnitudeImportance(p=1)
        pruner = tp.pruner.MetaPruner(model, inputs, importance=importance, pruning_ratio=RATIO, ignored_layers=[last])
        pruner.step()
        seconds = time.perf_counter() - begin
        model(inputs)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        return {"error": f"{type(error).__name__}: {str(error)[:200]}"}
    finally:
        signal.alarm(0)
    return {"seconds": round(seconds, 2), "parameters": [before, sum(p.numel() for p in model.parameters())]}


def main() -> None:
    """Runs the models named, or all, and writes each line as it comes."""
    warnings.simplefilter("ignore")
    asked = sys.argv[1:] or list(MODELS)
    table: dict[str, Any] = json.loads(RESULTS.read_text())["models"] if RESULTS.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--disable-pip-version-check",
            "--no-deps",
            "--target",
            folder,
            *PACKAGES,
        ]
        subprocess.run(command, check=True)
        sys.path.append(folder)
        for name in asked:
            try:
                made = {"ours": ours(MODELS[name])}
            except Exception as error:
                made = {"ours": {"error": f"{type(error).__name__}: {str(error)[:300]}"}}
            table[name] = {**made, "torchPruning": peer(MODELS[name])}
            print(
                name,
                {k: v for k, v in table[name]["ours"].items() if k != "stays"},
                table[name]["torchPruning"],
                flush=True,
            )
            ordered = {each: table[each] for each in MODELS if each in table}
            about = {"ratio": RATIO, "torch": torch.__version__, "threads": torch.get_num_threads()}
            RESULTS.write_text(json.dumps({"about": about, "models": ordered}, indent=2) + "\n")


if __name__ == "__main__":
    main()
