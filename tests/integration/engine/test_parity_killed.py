"""A finetuning whose process gets SIGTERM at a random step, and another that goes on: the user's own plain script.

The script runs in a process that does not know of modelpress; each attempt is a runner process of its own.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from modelpress.result import ExitCode

pytestmark = pytest.mark.long

SUPPORT = Path(__file__).parents[2] / "support"
SEED, EPOCHS = 11, 3
KINDS = ["loop", "epoch", "lightning", "trainer", "trainer function", "zero 0", "zero 1", "zero 2", "zero 3"]

PLAIN = '''
"""The user's own script."""
import json
import random
import sys

import numpy as np
import torch


def script_of(kind, folder):
    import plain_scripts

    if kind == "loop":
        return plain_scripts.LoopScript()
    if kind == "epoch":
        return plain_scripts.EpochScript()
    if kind == "own loop":
        return plain_scripts.OwnLoopScript()
    if kind.startswith("zero"):
        return plain_scripts.EngineScript(int(kind[-1]))
    if kind == "lightning":
        from plain_lightning import LightningScript

        return LightningScript()
    from plain_trainer import TrainerScript

    return TrainerScript(folder, own=kind == "trainer function")


if __name__ == "__main__":
    kind, folder, seed, epochs = sys.argv[1:]
    script = script_of(kind, folder)

    def begin():
        random.seed(int(seed))
        np.random.seed(int(seed))
        torch.manual_seed(int(seed))

    script.begin = begin
    begin()
    script.plain(None, int(epochs))
    assert not [name for name in sys.modules if name.startswith("modelpress")]
    torch.save(getattr(script, "trained", None) or script.model.state_dict(), f"{folder}/plain.pt")
    print(json.dumps(script.trace))
'''

NOTED = '''
"""A script that writes down each micro batch, and gets SIGTERM behind number $TEST_TERM."""
import json
import os
import signal
import tempfile

from plain import script_of


def noted_script_of(kind):
    script = script_of(kind, tempfile.mkdtemp())
    saw = script.saw

    def noted(samples, optimizer):
        saw(samples, optimizer)
        with open(os.environ["TEST_TRACE"], "a") as file:
            file.write(json.dumps(script.trace[-1]) + "\\n")
        if str(len(script.trace)) == os.environ.get("TEST_TERM"):
            os.kill(os.getpid(), signal.SIGTERM)

    script.saw = noted
    return script
'''

LOOP = '''
"""The loop of the user's own, with modelpress's callbacks."""
import sys

import torch
from noted import noted_script_of

import modelpress as mp

script = noted_script_of("own loop")
optimizer, scheduler = script.made(script.model)
compression = mp.prepare_compression(
    script.model, dummy_input=torch.zeros(2, 4), optimizers=optimizer, lr_schedulers=scheduler
)
script.train(compression.callbacks, compression.epochs(int(sys.argv[1].partition("=")[2])), optimizer, scheduler)
'''

TASK = '''
"""The same for modelpress."""
import torch.nn.functional as F
from noted import noted_script_of

import modelpress as mp


def create(kind: str):
    script = noted_script_of(kind)
    x = script.data.tensors[0][:1]
    if kind == "loop":
        optimizer, scheduler = script.made(script.model, mp.trace)
        return script.model, mp.TorchEvaluator(
            script.training_func, optimizer, script.training_step, scheduler, x, script.accuracy
        )
    if kind.startswith("zero"):
        return script.model, mp.DeepspeedTorchEvaluator(
            script.training_func, script.training_step, script.config, script.factory, script.schedule,
            dummy_input=x, evaluating_func=script.accuracy,
        )
    if kind == "lightning":
        import lightning.pytorch as pl
        from plain_lightning import ARGUMENTS

        return script.model, mp.LightningEvaluator(mp.trace(pl.Trainer)(**ARGUMENTS), script.data_module, x)
    if kind == "trainer":
        return script.model, mp.TransformersEvaluator(script.trainer(make=mp.trace(script.kind())), x)
    if kind == "trainer function":
        return script.model, mp.TransformersEvaluator(script.trainer, x)

    class Module(mp.CompressionModule):
        def model(self):
            return script.model

        def evaluator(self):
            return script.accuracy

        def example_inputs(self):
            return x

        def optimizer_factory(self):
            return script.factory

        def criterion(self):
            return F.cross_entropy

        def post_compress_finetuning_trainer(self, algorithm_name):
            return script.trainer

    return Module()
'''


def plain_script(bench, kind, folder, seed):
    """Trace and weights of the user's own script; beside it in the code folder is what modelpress runs."""
    for source in SUPPORT.glob("plain_*.py"):
        shutil.copy(source, bench.code)
    for name, text in {"plain": PLAIN, "noted": NOTED, "task": TASK, "loop": LOOP}.items():
        (bench.code / f"{name}.py").write_text(text)
    command = [sys.executable, str(bench.code / "plain.py"), kind, str(folder), str(seed), str(EPOCHS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), torch.load(folder / "plain.pt")


def killed_and_gone_on(bench, spec, at, seen):
    """The micro batches of an attempt that gets SIGTERM behind number `at`, and of a second one; metrics, weights."""
    environment = {"TEST_TRACE": str(seen)}
    code, message, log = bench.run(bench.request(1, spec=spec), **environment, TEST_TERM=str(at))
    assert (code, message["reason"]) == (ExitCode.TERMINATED, "RunnerTerminated"), log
    first = len(seen.read_text().splitlines())
    code, _, log = bench.run(bench.request(2, spec=spec), **environment)
    assert code == ExitCode.DONE, log
    traced = [json.loads(line) for line in seen.read_text().splitlines()]
    artifact = bench.artifact()
    return (
        traced[:first],
        traced[first:],
        json.loads(artifact["metrics.json"].read_text()),
        load_file(artifact["model.safetensors"]),
    )


def different(one, two):
    """The names of tensors that are not the same bit for bit."""
    return {name for name in one.keys() | two.keys() if not torch.equal(one[name], two[name])}


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_finetuning_is_the_users_own_script(bench, kind, tmp_path):
    """Weights, learning rates and the order of the samples, bit for bit."""
    seed = int(np.random.SeedSequence([SEED, 0]).generate_state(1, np.uint32)[0])
    trace, expected = plain_script(bench, kind, tmp_path, seed)
    at = random.Random(kind).randrange(1, 2 * len(trace) // 3)
    spec = {
        "model": {"entrypoint": "task:create", "args": {"kind": kind}},
        "stages": [{"finetune": {"epochs": EPOCHS}}],
        "target": {"format": "eager"},
        "seed": SEED,
    }
    before, behind, metrics, weights = killed_and_gone_on(bench, spec, at, tmp_path / "trace")
    assert at <= len(before) < len(trace)
    assert before + behind == trace
    assert different(weights, expected) == set()
    assert metrics["training"]["repeated"] == 0
    assert [note for note in metrics["notes"] if "anew" in note] == []


def test_a_killed_loop_of_the_users_own_is_the_plain_loop(bench, tmp_path):
    """It goes on from the epoch that was under way, and both attempts see in it what the plain loop sees."""
    trace, expected = plain_script(bench, "own loop", tmp_path, SEED)
    epoch = len(trace) // EPOCHS
    at = random.Random("own loop").randrange(epoch + 1, 2 * epoch)
    spec = {
        "model": {"script": "loop.py", "args": {"epochs": EPOCHS}},
        "stages": [
            {"prune": {"algorithm": "level", "speedup": False, "configList": [{"opNames": ["0"], "sparsity": 0.5}]}}
        ],
        "target": {"format": "eager"},
        "seed": SEED,
    }
    before, behind, metrics, weights = killed_and_gone_on(bench, spec, at, tmp_path / "trace")
    assert at <= len(before) < 2 * epoch
    assert before == trace[: len(before)]
    assert behind == trace[epoch:]
    assert different(weights, expected) == set()
    assert metrics["training"]["steps"] == len(trace) // 2
    assert [note for note in metrics["notes"] if "anew" in note or "no checkpoints" in note] == []
