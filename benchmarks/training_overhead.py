"""What finetuning through modelpress takes beyond the user's own plain script, for each evaluator.

Both sides train the same network on the same samples in the same order, to the same weights (which is checked), each in
a process of its own on the same core, and take turns: a block of steps by one, then a block by the other, so that a
busy machine slows both alike. Counted is processor time: that of the training thread, and that of the thread which
writes checkpoints. Reported are, as the difference of the two sides:

- fixed: what comes before the first batch and behind the last one;
- a step: the median over the pairs of blocks without a checkpoint;
- a checkpoint: what the blocks with one take more, and the time of the thread that writes it;
- and from these how much longer a training of 30 s is, with as many checkpoints as it has (training/pace.py).

Usage: python benchmarks/training_overhead.py [--steps 300] [--rounds 2] [--only TorchEvaluator ...]
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import hashlib
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "support"))  # the scripts that the tests compare with

FEATURES, WIDTH, BATCH, ROWS = 64, 768, 128, 2560  # a step of two batches takes some 12 ms on one core
PER_EPOCH = ROWS // BATCH // 2  # optimizer steps
BLOCK = 5  # of them
SEED = 11
SECONDS = 30.0  # of the training that the ratio is for
MOST = 0.03


def net() -> Any:
    """Three wide layers with dropout between them."""
    from torch import nn

    body = [nn.Linear(FEATURES, WIDTH), nn.ReLU(), nn.Dropout(0.1), nn.Linear(WIDTH, WIDTH), nn.ReLU()]
    return nn.Sequential(*body, nn.Dropout(0.1), nn.Linear(WIDTH, 2))


def options() -> dict[str, Any]:
    """Network and data of a script."""
    import torch
    from torch.utils.data import TensorDataset

    x = torch.randn(ROWS, FEATURES, generator=torch.Generator().manual_seed(0))
    return {"net": net, "data": TensorDataset(x, (x[:, 0] > 0).long(), torch.arange(ROWS)), "batch": BATCH}


def torch_evaluator(folder: Path) -> tuple[Any, Any]:
    """A loop of PyTorch's."""
    from plain_scripts import LoopScript

    import modelpress as mp

    script = LoopScript(**options())
    optimizer, scheduler = script.made(script.model, mp.trace)
    return script, mp.TorchEvaluator(script.training_func, optimizer, script.training_step, scheduler)


def compression_module(folder: Path) -> tuple[Any, Any]:
    """A function for one epoch."""
    import torch.nn.functional as F
    from plain_scripts import EpochScript

    import modelpress as mp
    from modelpress_runner.subject.compression_module import subject_of

    script = EpochScript(**options())

    class Module(mp.CompressionModule):
        def model(self) -> Any:
            return script.model

        def evaluator(self) -> Any:
            return script.accuracy

        def optimizer_factory(self) -> Any:
            return script.factory

        def criterion(self) -> Any:
            return F.cross_entropy

        def post_compress_finetuning_trainer(self, algorithm_name: str) -> Any:
            return script.trainer

    return script, subject_of(Module()).evaluator


def lightning(folder: Path) -> tuple[Any, Any]:
    """One fit of Lightning's."""
    import lightning.pytorch as pl
    from plain_lightning import ARGUMENTS, LightningScript

    import modelpress as mp

    script = LightningScript(**options())
    return script, mp.LightningEvaluator(mp.trace(pl.Trainer)(**ARGUMENTS), script.data_module)


def transformers(folder: Path) -> tuple[Any, Any]:
    """A Trainer of Hugging Face's."""
    from plain_trainer import TrainerScript

    import modelpress as mp

    script = TrainerScript(folder, **options())
    return script, mp.TransformersEvaluator(script.trainer)


def deepspeed(stage: int) -> Callable[[Path], tuple[Any, Any]]:
    """A loop over an engine of DeepSpeed's."""

    def make(folder: Path) -> tuple[Any, Any]:
        from plain_scripts import EngineScript

        import modelpress as mp

        script = EngineScript(stage, **options())
        evaluator = mp.DeepspeedTorchEvaluator(
            script.training_func, script.training_step, script.config, script.factory, script.schedule
        )
        return script, evaluator

    return make


KINDS: dict[str, Callable[[Path], tuple[Any, Any]]] = {
    "TorchEvaluator": torch_evaluator,
    "CompressionModule": compression_module,
    "LightningEvaluator": lightning,
    "TransformersEvaluator": transformers,
    "DeepspeedTorchEvaluator, ZeRO 0": deepspeed(0),
    "DeepspeedTorchEvaluator, ZeRO 2": deepspeed(2),
}


class Turns:
    """The marks of one side: the processor time of its blocks, while the other side waits."""

    def __init__(self, script: Any, mine: int, others: int) -> None:
        self._mine, self._others = mine, others
        self.blocks: list[float] = []
        self.before = self.behind = 0.0
        self._batches, self._began = 0, time.thread_time()
        saw = script.saw

        def marked(samples: Any, optimizer: Any) -> None:
            saw(samples, optimizer)
            if self._batches % (2 * BLOCK) == 0:
                self._hand_over()
            self._batches += 1

        script.saw = marked

    def _hand_over(self) -> None:
        took = time.thread_time() - self._began
        if self._batches:
            self.blocks.append(took)
        else:
            self.before = took
        with contextlib.suppress(BrokenPipeError):
            os.write(self._others, b".")
        os.read(self._mine, 1)  # nothing where the other side has ended
        self._began = time.thread_time()

    def begin(self) -> None:
        """The training begins; behind a collection of the garbage that imports left, which either side may set off."""
        gc.collect()
        self._began = time.thread_time()

    def end(self) -> None:
        """The last block with what is behind it; what the block itself takes is subtracted by who compares."""
        self.behind = time.thread_time() - self._began
        os.close(self._others)


def side_of(name: str, kind: str, steps: int, mine: int, others: int) -> dict[str, Any]:
    """One side of a training, in this process."""
    import torch

    from modelpress_runner.runtime import rng

    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):  # one core for both: cores of a busy machine are not alike
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    warnings.simplefilter("ignore")
    epochs = max(1, steps // PER_EPOCH)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        script, evaluator = KINDS[kind](Path(folder))
        checkpoints: list[list[float]] = []
        written = [0.0]
        turns = Turns(script, mine, others)
        if name == "script":
            script.begin = lambda: rng.seed_all(rng.derive(SEED, 0))
            script.begin()
            turns.begin()
            script.plain(None, epochs)
        else:
            through_modelpress(script, evaluator, epochs, Path(folder), turns, checkpoints, written)
        turns.end()
        weights = getattr(script, "trained", None) or script.model.state_dict()
    digest = hashlib.sha256()
    for key, value in sorted(weights.items()):
        digest.update(key.encode() + value.detach().contiguous().numpy().tobytes())
    return {
        "before": turns.before,
        "behind": turns.behind,
        "blocks": turns.blocks,
        "checkpoints": checkpoints,
        "written": written[0],
        "weights": digest.hexdigest(),
    }


def through_modelpress(
    script: Any, evaluator: Any, epochs: int, folder: Path, turns: Turns, checkpoints: list[Any], written: list[float]
) -> None:
    """A finetune stage with checkpoints in a folder; notes the blocks in which there was one."""
    from modelpress.api.v1alpha1 import Stage
    from modelpress.store import open_store
    from modelpress_runner.engine.checkpoint import Checkpointer
    from modelpress_runner.engine.keeping import StepKeeper
    from modelpress_runner.engine.run import run_stages
    from modelpress_runner.subject.subject import Subject

    save = StepKeeper.save

    def noted(keeper: StepKeeper, inside: Any) -> None:
        checkpoints.append(len(turns.blocks))
        save(keeper, inside)

    StepKeeper.save = noted  # type: ignore[method-assign]
    stages = [Stage.model_validate({"finetune": {"epochs": epochs}})]
    checkpointer = Checkpointer(open_store(str(folder / "store")), "", "benchmark")
    turns.begin()
    run_stages(Subject(script.model, evaluator), stages, seed=SEED, scores=False, checkpointer=checkpointer)
    written[0] = checkpointer.written_seconds


def paired(kind: str, steps: int) -> dict[str, dict[str, Any]]:
    """Both sides once, taking turns."""
    ends = [os.pipe(), os.pipe()]
    # Memory that is freed stays with the process: whether the heap's end is given back after each step, and faulted in
    # again, hangs on what lies there, and makes a step faster or slower by a third on either side.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}
    sides = {}
    for number, name in enumerate(("script", "modelpress")):
        mine, others = ends[number][0], ends[1 - number][1]
        command = [sys.executable, __file__, "--side", name, "--only", kind, "--steps", str(steps)]
        command += ["--ends", str(mine), str(others)]
        sides[name] = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, pass_fds=(mine, others), env=environment
        )
    os.write(ends[0][1], b".")
    for pair in ends:
        for each in pair:
            os.close(each)
    found = {}
    for name, process in sides.items():
        out, _ = process.communicate()
        if process.returncode:
            raise SystemExit(f"the {name} of {kind} ended with {process.returncode}")
        found[name] = json.loads(out.splitlines()[-1])
    if found["script"]["weights"] != found["modelpress"]["weights"]:
        raise SystemExit(f"{kind}: the two sides did not train to the same weights")
    return found


def measured(kind: str, rounds: int, steps: int) -> dict[str, float]:
    """The figures of one evaluator."""
    differences, extras, fixed, written, count, all_blocks = [], [], [], 0.0, 0, []
    for _ in range(rounds):
        found = paired(kind, steps)
        script, ours = found["script"], found["modelpress"]
        pairs = list(zip(ours["blocks"], script["blocks"], strict=True))
        marked = set(ours["checkpoints"])
        plain = [one - other for number, (one, other) in enumerate(pairs) if number not in marked]
        differences += plain
        all_blocks += script["blocks"]
        middle = statistics.median(plain)
        extras += [pairs[number][0] - pairs[number][1] - middle for number in marked if number < len(pairs)]
        # Both ends hold the same work of the script.
        fixed.append(sum(ours[end] - script[end] for end in ("before", "behind")))
        written, count = written + ours["written"], count + len(ours["checkpoints"]) + 2
    block = statistics.median(all_blocks)
    step, checkpoint = statistics.median(differences) / BLOCK, statistics.median(extras) if extras else 0.0
    beside = written / count
    whole = SECONDS + statistics.median(fixed) + step * SECONDS / (block / BLOCK)
    whole += checkpoints_within(SECONDS, checkpoint + beside) * (checkpoint + beside)
    return {
        "stepMilliseconds": 1000 * block / BLOCK,
        "fixedSeconds": statistics.median(fixed),
        "microsecondsAStep": 1e6 * step,
        "checkpointSeconds": checkpoint,
        "checkpointBesideSeconds": beside,
        "ratio": whole / SECONDS,
        "checkpointsSeen": len(extras),
        "blocks": len(differences),
    }


def checkpoints_within(seconds: float, cost: float) -> int:
    """How many checkpoints a training of so many seconds has, where each costs `cost`."""
    from modelpress_runner.training.pace import CHECKPOINT_SHARE, LEAST, SPREAD

    now = last = 0.0
    count = 0
    while now < seconds:
        now += 0.01
        if now - last >= max(cost / CHECKPOINT_SHARE if count else LEAST, LEAST + SPREAD * now):
            last, count = now, count + 1
    return count


def main() -> None:
    """Runs the benchmark and writes its result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps of a training")
    parser.add_argument("--only", nargs="*", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--output", type=Path, default=HERE / "results" / "training_overhead.json")
    parser.add_argument("--side", choices=("script", "modelpress"), help=argparse.SUPPRESS)
    parser.add_argument("--ends", type=int, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(side_of(arguments.side, arguments.only[0], arguments.steps, *arguments.ends)))
        return
    result: dict[str, Any] = {
        "benchmark": "training_overhead",
        "machine": {"python": platform.python_version(), "cpu": platform.machine(), "load": os.getloadavg()[0]},
        "rounds": arguments.rounds,
        "steps": arguments.steps,
        "limit": MOST,
        "evaluators": {},
    }
    print(f"{'':34}   a step   more a step    fixed  checkpoint  beside it  at {SECONDS:.0f} s")
    for name in arguments.only:
        found = result["evaluators"][name] = measured(name, arguments.rounds, arguments.steps)
        line = f"{name:34} {found['stepMilliseconds']:6.2f} ms  {found['microsecondsAStep']:8.0f} us "
        line += f"{found['fixedSeconds']:7.3f} s {found['checkpointSeconds']:9.3f} s "
        print(line + f"{found['checkpointBesideSeconds']:8.3f} s {found['ratio'] - 1:+8.1%}", flush=True)
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    above = [name for name, each in result["evaluators"].items() if each["ratio"] > 1 + MOST]
    if above:
        raise SystemExit(f"more than {MOST:.0%} above the script: {', '.join(above)}")


if __name__ == "__main__":
    main()
