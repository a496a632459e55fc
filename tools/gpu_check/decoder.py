"""Prune, shrink and finetune a decoder of random weights through mp.compress, with its peak memory by phase."""

from __future__ import annotations

import gc
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gpu_check.memory import Peaks, watching

TOKENS = 16  # of the one sequence of a batch

# What mp.compress does, by the functions that do it.
PHASES = {
    "modelpress_runner.in_process.compress:copied": "copy",
    "modelpress_runner.measure.measuring:Measuring.dense": "measure",
    "modelpress_runner.measure.measuring:Measuring.compressed": "measure",
    "modelpress_runner.stages.prune:find_dependencies": "dependencies",
    "modelpress_runner.stages.prune:prove_structure": "proof",
    "modelpress_runner.stages.prune:prove": "proof",
    "modelpress_runner.methods.prune.round:Round.scores": "score",
    "modelpress_runner.stages.prune:collect": "score",
    "modelpress_runner.stages.prune:round_masks": "mask",
    "modelpress_runner.stages.prune:apply_masks": "mask",
    "modelpress_runner.stages.prune:replay": "shrink",
    "modelpress_runner.stages.drop:prove": "proof",
    "modelpress_runner.stages.drop:replay": "shrink",
    "modelpress_runner.methods.drop.layers:influences": "score",
    "modelpress_runner.training.session:Session.train": "finetune",
}


@dataclass(frozen=True)
class Size:
    """Widths of a decoder."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    vocabulary: int


SIZES = {
    "tiny": Size(64, 128, 2, 4, 256),
    "400M": Size(1024, 4096, 20, 16, 32000),
    "1B": Size(2048, 8192, 15, 16, 32000),
}


@dataclass(frozen=True)
class Run:
    """What one run took.

    Attributes:
        parameters: of the decoder.
        weights: its bytes.
        peaks: bytes by phase.
        seconds: by phase.
        base: bytes of the process before the decoder was built.
        left: parameters behind the shrink.
        portable: whether a program was exported; None: nothing was.
    """

    parameters: int
    weights: int
    peaks: dict[str, int]
    seconds: dict[str, float]
    base: int
    left: int
    portable: bool | None

    @property
    def most(self) -> float:
        """The largest peak, in multiples of the weights."""
        return max(self.peaks.values()) / self.weights


class Decoder(nn.Module):
    """A Llama from transformers that gives its logits."""

    def __init__(self, size: Size, dtype: torch.dtype) -> None:
        super().__init__()
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            hidden_size=size.hidden,
            intermediate_size=size.intermediate,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=size.heads,
            vocab_size=size.vocabulary,
            max_position_embeddings=2 * TOKENS,
            use_cache=False,
            attn_implementation="sdpa",
        )
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            self.llama = LlamaForCausalLM(config)
        finally:
            torch.set_default_dtype(before)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.llama(input_ids=input_ids, use_cache=False).logits


def evaluator(vocabulary: int, device: str) -> Any:
    """Trains on random tokens by SGD, which keeps nothing beside the weights."""
    import modelpress as mp

    def step(batch: torch.Tensor, model: nn.Module) -> torch.Tensor:
        logits = model(batch)
        return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten())

    def train(
        model: Any, optimizers: Any, training_step: Any, lr_schedulers: Any, max_steps: Any, max_epochs: Any
    ) -> None:
        generator = torch.Generator().manual_seed(1)
        for _ in range(max_steps or max_epochs):
            batch = torch.randint(0, vocabulary, (1, TOKENS), generator=generator).to(device)
            optimizers.zero_grad()
            training_step(batch, model).backward()
            optimizers.step()

    return mp.TorchEvaluator(
        training_func=train,
        optimizers=lambda parameters: torch.optim.SGD(parameters, lr=0.01),
        training_step=step,
        dummy_input=torch.randint(0, vocabulary, (1, TOKENS), generator=torch.Generator().manual_seed(0)).to(device),
    )


def run(size: str, device: str = "cpu", algorithm: str = "l1", export: bool = False) -> Run:
    """Half of the channels inside of every MLP go, then three steps of training, or a fourth of the layers.

    Args:
        size: key of SIZES.
        device: "cpu" or "cuda".
        algorithm: of the prune stage; "level" leaves the shape as it is. With "+depth" behind it layers go as well,
            by what they do to their inputs, and nothing is trained.
        export: whether the artifact is written, too.
    """
    from transformers import LlamaForCausalLM  # noqa: F401

    import modelpress as mp
    import modelpress_runner.in_process.compress  # noqa: F401

    widths = SIZES[size]
    torch.manual_seed(0)
    portable = None
    with Peaks(device) as peaks:
        with peaks.phase("load"):
            with torch.device(device):
                model = Decoder(widths, torch.bfloat16)
            gc.collect()
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        parameters = sum(p.numel() for p in model.parameters())
        algorithm, _, depth = algorithm.partition("+")
        names = ["gate_proj", "up_proj", "down_proj"] if algorithm == "level" else ["gate_proj", "up_proj"]
        entry = {"op_names": [f"llama.model.layers.{n}.mlp.{name}" for n in range(widths.layers) for name in names]}
        with watching(PHASES, peaks.phase), peaks.phase("rest"):
            using = evaluator(widths.vocabulary, device)
            behind = {"dropLayers": {"count": widths.layers // 4}} if depth else {"finetune": {"max_steps": 3}}
            result = mp.compress(
                model,
                [{"prune": {"algorithm": algorithm, "config_list": [{**entry, "sparsity": 0.5}]}}, behind],
                using,
                calibration_data=[using.dummy_input],
            )
        if export:
            with peaks.phase("export"), tempfile.TemporaryDirectory() as folder:
                result.save(f"{folder}/artifact")
                portable = any(Path(folder).rglob("model.pt2"))
    left = sum(p.numel() for p in result.model.parameters())
    return Run(parameters, weights, peaks.peaks, peaks.seconds, peaks.base, left, portable)


def table(done: Run) -> list[str]:
    """Lines: phase, bytes, multiples of the weights, seconds."""
    head = f"{done.parameters / 1e6:.0f} M parameters, {done.weights / 2**20:.0f} MiB of weights"
    lines = [f"{head}; {done.left / 1e6:.0f} M parameters at the end"]
    for name, peak in done.peaks.items():
        lines.append(
            f"  {name:<13} {peak / 2**20:7.0f} MiB  {peak / done.weights:5.2f} x weights  {done.seconds[name]:7.1f} s"
        )
    return lines
