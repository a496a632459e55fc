"""Everything that is checked on a device, each by one function that gives a sentence or raises."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import modelpress as mp
from gpu_check import decoder
from gpu_check.rows import NotHere
from gpu_check.tasks import EVALUATORS, STEPS, Task, need, recipe
from modelpress_runner.errors import UserCodeError

LIMIT = 3.5  # multiples of the weights that prune and finetune of a decoder may take at most
TORCH = (2, 11)


def all_checks(device: str, size: str) -> dict[str, Callable[[], str]]:
    """The checks by name, in the order in which they run.

    Args:
        device: "cpu" or "cuda".
        size: of the decoder, a key of decoder.SIZES.
    """
    checks: dict[str, Callable[[], str]] = {"machine": lambda: machine(device)}
    for name in EVALUATORS:
        checks[f"trains: {name}"] = lambda name=name: trains(name, device)  # type: ignore[misc]
    checks |= {
        "trains: own loop": lambda: own_loop(device),
        "mixed precision with a scaler": lambda: scaled(device),
        "scores stay on the device": lambda: scores(device),
        "shrink, proof and artifact": lambda: shrinks(device),
        "checkpoint and resume": lambda: resumes(device),
        "process group of one": lambda: group(device),
        "latency": lambda: latency(device, "eager"),
        "latency, compiled": lambda: latency(device, "compiled"),
        f"decoder, {size}": lambda: large(device, size),
    }
    return checks


def machine(device: str) -> str:
    """Versions that modelpress is for, and a device that works."""
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    assert version >= TORCH, f"torch is {torch.__version__}; {TORCH[0]}.{TORCH[1]} or newer is needed"
    assert (3, 11) <= sys.version_info[:2] < (3, 14), f"Python is {platform.python_version()}"
    where = platform.processor() or platform.machine()
    if device == "cuda":
        assert torch.cuda.is_available(), "torch sees no GPU"
        major, minor = torch.cuda.get_device_capability()
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        where = f"{torch.cuda.get_device_name()} ({major}.{minor}, {memory:.0f} GiB, CUDA {torch.version.cuda})"
    probe = torch.ones(8, device=device).sum()
    assert float(probe) == 8.0
    return f"torch {torch.__version__}, Python {platform.python_version()}, {where}"


def trains(name: str, device: str) -> str:
    """An evaluator prunes, shrinks, trains and scores on the device."""
    task, model, evaluator, stages = EVALUATORS[name](device)
    result = mp.compress(model, stages, evaluator, seed=1)
    return _judged(task, result)


def own_loop(device: str) -> str:
    """A loop of the user's own, by callbacks."""
    task = Task(device)
    stages = recipe()[:1]
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=0.01)
    with mp.prepare_compression(
        task.model, stages, evaluator=task.evaluate, dummy_input=task.x[:1], optimizers=optimizer, seed=1
    ) as compression:
        callbacks = compression.callbacks
        callbacks.on_train_begin()
        for number, batch in enumerate(task.batches(STEPS, None)):
            callbacks.on_step_begin(number)
            optimizer.zero_grad()
            task.step(batch, task.model).backward()
            callbacks.on_before_optimizer_step()
            optimizer.step()
            callbacks.on_after_optimizer_step()
        callbacks.on_train_end()
    return _judged(task, compression.result)


def _judged(task: Task, result: Any) -> str:
    before, after = (result.metrics[side] for side in ("baseline", "compressed"))
    assert task.seen == {task.device.type}, f"trained on {', '.join(sorted(task.seen)) or 'nothing'}"
    assert after["parameters"] < before["parameters"], "nothing was shrunk"
    assert math.isfinite(after["default"])
    assert all(bool(torch.isfinite(p).all()) for p in result.model.parameters())
    return f"{before['parameters']:.0f} -> {after['parameters']:.0f} parameters, score {after['default']:.3f}"


def scaled(device: str) -> str:
    """Autocast with a GradScaler: masks hold, weights move, and scores by gradients are those of unscaled ones."""
    dtype = torch.float16 if device == "cuda" else torch.bfloat16
    seen: list[float] = []

    def evaluator(task: Task, enabled: bool) -> mp.TorchEvaluator:
        scaler = torch.amp.GradScaler(device, enabled=enabled, init_scale=2.0**10)

        def step(batch: torch.Tensor, model: Any) -> torch.Tensor:
            with torch.autocast(device, dtype=dtype):
                return task.step(batch, model)

        def train(model: Any, optimizer: Any, training_step: Any, scheduler: Any, max_steps: Any, epochs: Any) -> None:
            for batch in task.batches(max_steps, epochs):
                optimizer.zero_grad()
                scaler.scale(training_step(batch, model)).backward()
                scaler.step(optimizer)
                scaler.update()
            seen.append(scaler.get_scale())

        return task.evaluator(training_func=train, training_step=step)

    kept = []
    for enabled in (True, False):
        task = Task(device)
        given = recipe("taylor", shrink=False, scores={"steps": 4})
        result = mp.compress(task.model, given, evaluator(task, enabled), seed=1)
        weight, mask = result.model.conv2.weight, result.masks["conv2"]["weight"]
        assert bool((weight[mask == 0] == 0).all()), "a pruned weight is not zero"
        assert mask.device == weight.device
        assert 0.4 < float((mask == 0).float().mean()) < 0.6
        kept.append(mask.flatten(1).any(dim=1))
    same = float((kept[0] == kept[1]).float().mean())
    assert same >= 0.8, f"with a scaler only {same:.0%} of the channels are decided as without one"
    return f"{str(dtype).removeprefix('torch.')}, scale {seen[0]:.0f}; {same:.0%} of channels as without a scaler"


class _Copies(TorchDispatchMode):
    """Counts the bytes that go from the device to main memory."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name
        source = args[1] if name == "aten::copy_" else args[0] if args else None
        if name == "aten::_local_scalar_dense":
            self.bytes += source.element_size() if source.device.type != "cpu" else 0
        elif name in ("aten::_to_copy", "aten::copy_") and isinstance(source, torch.Tensor):
            to = out if name == "aten::_to_copy" else args[0]
            if source.device.type != "cpu" and to.device.type == "cpu":
                self.bytes += source.numel() * source.element_size()
        return out


def scores(device: str) -> str:
    """Scores and masks of every method: what comes to main memory is a number for each channel, no weight."""
    if device == "cpu":
        raise NotHere("the device is main memory; needs a GPU")
    from modelpress.api.v1alpha1 import Prune
    from modelpress_runner.methods.context import StageContext
    from modelpress_runner.stages.prune import PruneStage

    said = []
    for algorithm in ("l1", "l2", "taylor", "level"):
        model = nn.Sequential(nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 1024)).to(device)
        inputs = torch.randn(32, 1024, device=device)

        def train(model: Any, optimizer: Any, training_step: Any, s: Any, steps: Any, e: Any, x: Any = inputs) -> None:
            for _ in range(steps):
                optimizer.zero_grad()
                training_step(x, model).backward()
                optimizer.step()

        evaluator = mp.TorchEvaluator(
            train,
            lambda parameters: torch.optim.SGD(parameters, lr=0.0),
            lambda batch, model: model(batch).square().mean(),
        )
        entry = {"opTypes": ["Linear"], "sparsity": 0.5}
        prune = Prune.model_validate({"algorithm": algorithm, "configList": [entry], "speedup": False})
        context = StageContext(model, evaluator, None, 0)
        with _Copies() as copies:
            PruneStage(prune, 0, "spec.stages[0].prune").round(context, 1)
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        assert copies.bytes <= weights / 50, f"{algorithm} brought {copies.bytes} bytes of {weights} to main memory"
        assert all(m.device.type == device for named in context.masks.values() for m in named.values())
        said.append(f"{algorithm} {copies.bytes} B")
    return f"of {weights / 2**20:.0f} MiB of weights to main memory: {', '.join(said)}"


def shrinks(device: str) -> str:
    """A convolutional net and a transformer are shrunk by proof; their artifacts give the same outputs."""

    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(50, 32)
            self.layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
            self.out = nn.Linear(32, 2)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.out(self.layer(self.table(ids)).mean(dim=1))

    torch.manual_seed(0)
    task = Task(device)
    ids = torch.randint(0, 50, (2, 7), device=device)
    linear = [{"op_names": ["layer.linear1"], "sparsity": 0.5}]
    said = []
    for model, inputs, stages in (
        (task.model, task.x[:2], recipe()[:1]),
        (Words().to(device), ids, [{"prune": {"algorithm": "l1", "config_list": linear}}]),
    ):
        result = mp.compress(model, stages, dummy_input=inputs, seed=1)
        assert result.edits, "nothing was cut"
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            opened = mp.load(result.save(f"{folder}/artifact"))
            expected = result.model.eval()(inputs).cpu()
            gap = float((opened(inputs.cpu()) - expected).abs().max() / expected.abs().max())
        assert gap < 1e-3, f"the program's outputs differ by {gap:.2g}"
        before, after = (result.metrics[side]["parameters"] for side in ("baseline", "compressed"))
        said.append(f"{type(model).__name__} {before:.0f} -> {after:.0f} (gap {gap:.1g})")
    return "; ".join(said)


class _BreakError(Exception):
    """Ends a training in its middle."""


def resumes(device: str) -> str:
    """A training that broke off goes on from its checkpoint, bit for bit."""
    results = []
    with _deterministic(), _environment("MODELPRESS_CHECKPOINT_STEPS", "2"):
        for broken in (False, True):
            task = Task(device)
            left = [5] if broken else []

            def step(batch: torch.Tensor, model: Any, left: list[int] = left, step: Any = task.step) -> torch.Tensor:
                if left:
                    left[0] -= 1
                    if left[0] == 0:
                        left.clear()
                        raise _BreakError("on purpose")
                return step(batch, model)

            with tempfile.TemporaryDirectory() as folder:
                for attempt in range(2):
                    try:
                        given = task.evaluator(training_step=step)
                        result = mp.compress(task.model, recipe(), given, seed=1, checkpoint=folder)
                        break
                    except UserCodeError as error:
                        if not broken or attempt or "on purpose" not in str(error):
                            raise
            results.append(result)
    weights = [dict(result.model.named_parameters()) for result in results]
    differing = [name for name in weights[0] if not torch.equal(weights[0][name], weights[1][name])]
    assert not differing, f"other weights than without a break: {', '.join(differing)}"
    executed = results[1].metrics["training"]
    assert executed["steps"] == STEPS, executed
    return (
        f"bit for bit: {executed['steps']} steps, {executed['executed']} made by both attempts, with a break in step 5"
    )


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    with _environment("CUBLAS_WORKSPACE_CONFIG", ":4096:8"):
        torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def group(device: str) -> str:
    """A process group of one rank: NCCL on a GPU, gloo elsewhere; DistributedDataParallel trains in it."""
    import torch.distributed as distributed
    from torch.nn.parallel import DistributedDataParallel

    backend = "nccl" if device == "cuda" else "gloo"
    with tempfile.TemporaryDirectory() as folder:
        store = f"file://{Path(folder) / 'store'}"
        distributed.init_process_group(backend, init_method=store, rank=0, world_size=1)
        try:
            total = torch.full((4,), 3.0, device=device)
            distributed.all_reduce(total)
            assert total.tolist() == [3.0] * 4
            task = Task(device)

            def train(model: Any, optimizer: Any, training_step: Any, *rest: Any) -> None:
                wrapped = DistributedDataParallel(model)
                task.train(wrapped, optimizer, training_step, *rest)

            evaluator = task.evaluator(training_func=train, parallel=False)
            result = mp.compress(task.model, recipe(), evaluator, seed=1)
            said = _judged(task, result)
        finally:
            distributed.destroy_process_group()
    return f"{backend}: {said}"


def latency(device: str, target: str) -> str:
    """A wide net is timed beside its half, by the device's own events where there are any."""
    if target == "compiled":
        _check_compiler(device)
    torch.manual_seed(0)
    width = 2048 if device == "cuda" else 256
    model = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)).to(device)
    inputs = torch.randn(8, width, device=device)
    result = mp.compress(
        model,
        [{"prune": {"algorithm": "l1", "config_list": [{"op_names": ["0"], "sparsity": 0.75}]}}],
        dummy_input=inputs,
        target={"format": target, "device": device},
        benchmark={"warmup": 5, "iterations": 30, "batchSize": 8},
    )
    timing = result.metrics["timing"]
    assert timing["device"] == device, timing
    assert timing["target"] == target, timing
    before, after = timing["dense"]["medianMs"], timing["compressed"]["medianMs"]
    assert after > 0
    assert before > 0
    clock = "events" if device == "cuda" else "the clock"
    return f"by {clock}: {before:.3f} -> {after:.3f} ms (iqr {timing['dense']['iqrMs']:.3f})"


def _check_compiler(device: str) -> None:
    if device == "cuda":
        need("triton")
    if not any(map(shutil.which, (os.environ.get("CC", "gcc"), os.environ.get("CXX", "g++"), "clang"))):
        raise NotHere("this machine has no C compiler, which torch.compile calls")


def large(device: str, size: str) -> str:
    """Prune, shrink and finetune a bfloat16 decoder; its peak memory by phase."""
    need("transformers")
    if device == "cuda":
        wanted = 2 * LIMIT * 1.2e9
        free = torch.cuda.mem_get_info()[0]
        if size == "1B" and free < wanted:
            raise NotHere(f"the GPU has {free / 2**30:.0f} GiB free, and {wanted / 2**30:.0f} may be needed")
    done = decoder.run(size, device)
    print("\n".join(decoder.table(done)), flush=True)
    assert done.left < done.parameters
    if size != "tiny":  # whose weights are nothing beside the interpreter's own memory
        assert done.most <= LIMIT, f"{done.most:.2f} times the weights, and {LIMIT} are allowed"
    worst = max(done.peaks, key=lambda name: done.peaks[name])
    sizes = f"{done.parameters / 1e6:.1f} M -> {done.left / 1e6:.1f} M parameters"
    return f"{sizes}; peak {done.peaks[worst] / 2**20:.0f} MiB, {done.most:.2f} x weights, in {worst}"
