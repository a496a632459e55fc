"""Wrong inputs that only a running model can show: a run ends with the documented exit code, names the field and what
to do, tells no traceback, and leaves nothing that looks like a result. One of each end goes through `modelpress run`,
with what that finds itself; the others through the runner that it starts."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import yaml
from warm_processes import WarmProcesses

CODE = Path(__file__).parent / "code"
RECIPE: dict[str, Any] = {
    "apiVersion": "modelpress.dev/v1alpha1",
    "kind": "CompressionJob",
    "metadata": {"name": "wrong"},
    "spec": {
        "model": {"entrypoint": "tiny:create"},
        "code": {"path": "code"},
        "stages": [
            {"prune": {"configList": [{"opNames": ["conv1"], "sparsity": 0.5}], "speedup": False}},
            {"finetune": {"epochs": 1}},
        ],
        "benchmark": {"warmup": 0, "iterations": 1},
        "backoffLimit": 0,
    },
}
INVALID, FAILED = 2, 1
SHELL = ("no-such-module", "code-folder-missing", "scoring-raises", "store-is-a-file", "store-without-credentials")


class Case(NamedTuple):
    name: str
    exit_code: int
    says: tuple[str, ...]  # each must be in the output
    changes: dict[str, Any]  # dotted path below spec -> value
    environment: Mapping[str, str] = MappingProxyType({})


def prune(**settings: Any) -> list[dict[str, Any]]:
    return [{"prune": {"configList": [{"opNames": ["conv1"], "sparsity": 0.5}], "speedup": False} | settings}]


def entry(**selection: Any) -> list[dict[str, Any]]:
    return prune(configList=[selection | {"sparsity": 0.5}])


CASES = [
    Case("no-such-module", INVALID, ("spec.model.entrypoint", "tinny", "tiny"), {"model.entrypoint": "tinny:create"}),
    Case(
        "no-such-attribute", INVALID, ("spec.model.entrypoint", "creat", "create"), {"model.entrypoint": "tiny:creat"}
    ),
    Case(
        "syntax-error",
        INVALID,
        ("spec.model.entrypoint", "broken_syntax.py:1"),
        {"model.entrypoint": "broken_syntax:create"},
    ),
    Case(
        "module-raises",
        INVALID,
        ("spec.model.entrypoint", "import_raises.py"),
        {"model.entrypoint": "import_raises:create"},
    ),
    Case(
        "needs-a-package",
        INVALID,
        ("spec.model.entrypoint", "not_installed_anywhere"),
        {"model.entrypoint": "needs_package:create"},
    ),
    Case("not-callable", INVALID, ("spec.model.entrypoint", "int"), {"model.entrypoint": "tiny:not_a_function"}),
    Case(
        "entrypoint-raises",
        INVALID,
        ("spec.model.entrypoint", "the label file is missing", "tiny.py"),
        {"model.entrypoint": "tiny:raises"},
    ),
    Case("returns-none", INVALID, ("spec.model.entrypoint", "None"), {"model.entrypoint": "tiny:nothing"}),
    Case("returns-three", INVALID, ("spec.model.entrypoint", "(model, evaluator)"), {"model.entrypoint": "tiny:three"}),
    Case(
        "model-is-no-module",
        INVALID,
        ("spec.model.entrypoint", "str", "torch.nn.Module"),
        {"model.entrypoint": "tiny:no_module"},
    ),
    Case(
        "evaluator-is-a-number",
        INVALID,
        ("spec.model.entrypoint", "int", "evaluator"),
        {"model.entrypoint": "tiny:no_evaluator"},
    ),
    Case("argument-missing", INVALID, ("spec.model.args", "width"), {"model.entrypoint": "tiny:needs_width"}),
    Case(
        "argument-unknown",
        INVALID,
        ("spec.model.args", "widht"),
        {"model.entrypoint": "tiny:needs_width", "model.args": {"widht": 3}},
    ),
    Case("code-folder-missing", INVALID, ("spec.code.path", "nowhere"), {"code.path": "nowhere"}),
    Case(
        "name-matches-nothing",
        INVALID,
        ("spec.stages[0].prune.configList[0].opNames", "conv9", "conv1"),
        {"stages": entry(opNames=["conv9"])},
    ),
    Case(
        "type-matches-nothing",
        INVALID,
        ("spec.stages[0].prune.configList[0].opTypes", "Conv3d"),
        {"stages": entry(opTypes=["Conv3d"])},
    ),
    Case(
        "regex-matches-nothing",
        INVALID,
        ("spec.stages[0].prune.configList[0].opNamesRe", "block"),
        {"stages": entry(opNamesRe=["block.*"])},
    ),
    Case(
        "shrinks-the-output",
        INVALID,
        ("spec.stages[0].prune.configList[0]", "fc", "output"),
        {"stages": prune(configList=[{"opNames": ["fc"], "sparsity": 0.5}], speedup=True)},
    ),
    Case("nan-score", INVALID, ("nan", "evaluating_func", "finite"), {"model.entrypoint": "tiny:nan_score"}),
    Case("text-score", INVALID, ("str", "evaluating_func"), {"model.entrypoint": "tiny:text_score"}),
    Case("no-default-metric", INVALID, ("default", "accuracy"), {"model.entrypoint": "tiny:no_default"}),
    Case("reserved-metric", INVALID, ("macs", "measures", "rename"), {"model.entrypoint": "tiny:reserved"}),
    Case("scoring-raises", FAILED, ("validation", "tiny.py"), {"model.entrypoint": "tiny:scoring_raises"}),
    Case(
        "unknown-constraint-metric",
        INVALID,
        ("spec.constraints[0].metric", "perplexity", "default"),
        {"constraints": [{"metric": "perplexity", "max": 3}]},
    ),
    Case(
        "relative-to-zero",
        INVALID,
        ("InvalidSpec: spec.constraints[0].maxRelativeLoss", "dense model is 0", "use maxAbsoluteLoss"),
        {"model.entrypoint": "tiny:zero_score", "constraints": [{"metric": "default", "maxRelativeLoss": 0.1}]},
    ),
    Case(
        "nothing-to-train-with",
        INVALID,
        ("spec.stages[1].finetune", "training_func"),
        {"model.entrypoint": "tiny:no_training"},
    ),
    Case("training-moves-nothing", FAILED, ("no weight", "optimizer"), {"model.entrypoint": "tiny:trains_nothing"}),
    Case("training-diverges", FAILED, ("fc.weight", "NaN"), {"model.entrypoint": "tiny:trains_to_nan"}),
    Case(
        "cannot-shrink",
        INVALID,
        ("spec.stages[0].prune",),
        {"model.entrypoint": "needs_graph:create", "stages": prune(speedup=True, speedupTimeoutSeconds=20)},
    ),
    Case(
        "weights-missing",
        INVALID,
        ("spec.model.weights.uri", "nowhere.safetensors"),
        {"model.weights": {"uri": "nowhere.safetensors"}},
    ),
    Case(
        "weights-of-another-model",
        INVALID,
        ("spec.model.weights", "other.weight"),
        {"model.weights": {"uri": "{folder}/other.safetensors"}},
    ),
    Case(
        "weights-are-a-pickle",
        INVALID,
        ("spec.model.weights", "weights_only"),
        {"model.weights": {"uri": "{folder}/evil.pth"}},
    ),
    Case(
        "weights-checksum",
        INVALID,
        ("spec.model.weights.sha256",),
        {"model.weights": {"uri": "{folder}/other.safetensors", "sha256": "0" * 64}},
    ),
    Case(
        "pt2-of-a-branching-model",
        FAILED,
        ("spec.target.format", "data-dependent", "eager"),
        {"model.entrypoint": "tiny:branches_on_data", "target": {"format": "pt2"}},
    ),
    Case("store-is-a-file", INVALID, ("spec.store.uri", "taken", "folder"), {"store": {"uri": "{folder}/taken"}}),
    Case(
        "store-without-credentials",
        FAILED,
        ("s3://bucket/x", "AWS_ACCESS_KEY_ID"),
        {"store": {"uri": "s3://bucket/x", "endpoint": "http://127.0.0.1:9"}},
    ),
    Case(
        "store-unreachable",
        FAILED,
        ("s3://bucket/x", "http://127.0.0.1:9"),
        {"store": {"uri": "s3://bucket/x", "endpoint": "http://127.0.0.1:9"}},
        {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"},
    ),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the code, and files that must be refused."""
    import torch
    from safetensors.torch import save_file

    shutil.copytree(CODE, tmp_path / "code", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "code" / "broken_syntax.txt").rename(tmp_path / "code" / "broken_syntax.py")
    (tmp_path / "code" / "import_raises.py").write_text("raise ValueError('no licence found')\n")
    (tmp_path / "code" / "needs_package.py").write_text("import not_installed_anywhere\n")
    save_file({"other.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    torch.save({"x": Bomb(tmp_path / "exploded")}, tmp_path / "evil.pth")
    (tmp_path / "taken").write_text("a file where a folder should be")
    return tmp_path


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def job_of(case: Case, folder: Path) -> dict[str, Any]:
    """The recipe with what is wrong in it."""
    job = copy.deepcopy(RECIPE)
    for path, value in case.changes.items():
        *parents, last = path.split(".")
        target = job["spec"]
        for key in parents:
            target = target.setdefault(key, {})
        target[last] = json.loads(json.dumps(value).replace("{folder}", str(folder)))
    return job


def environment_of(case: Case) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("AWS_")} | dict(case.environment)


def judge(case: Case, code: int, output: str, folder: Path, log: str = "") -> None:
    """The exit code, the field or file, no traceback but in a runner's log, and no manifest."""
    flat = " ".join(output.split())
    assert code == case.exit_code, output + log
    for text in case.says:
        assert text in flat, f"{text!r} is not in:\n{output}\n{log}"
    assert "Traceback" not in output
    assert not (folder / "exploded").exists()
    assert not list(folder.rglob("manifest.json"))
    assert not [path for path in folder.rglob("best*") if {"modelpress-runs", "out"} & set(path.parts)]


@pytest.mark.parametrize("case", [case for case in CASES if case.name in SHELL], ids=lambda case: case.name)
def test_the_command_ends_with_the_exit_code_and_says_what_to_do(case: Case, folder: Path) -> None:
    """`modelpress run`, from the file on."""
    (folder / "job.yaml").write_text(yaml.safe_dump(job_of(case, folder)))
    command = [sys.executable, "-m", "modelpress.cli", "run", "job.yaml", "--no-progress"]
    done = subprocess.run(
        command, cwd=folder, env=environment_of(case), capture_output=True, text=True, timeout=180, check=False
    )
    judge(case, done.returncode, done.stdout + done.stderr, folder)


@pytest.mark.parametrize("case", [case for case in CASES if case.name not in SHELL], ids=lambda case: case.name)
def test_the_runner_ends_with_the_exit_code_and_says_what_to_do(
    case: Case, folder: Path, runners: WarmProcesses
) -> None:
    """What `modelpress run` starts, by the request that it writes."""
    spec = {"store": {"uri": str(folder / "out")}, **job_of(case, folder)["spec"]}
    request = {
        "purpose": "trial",
        "namespace": "default",
        "name": "wrong",
        "uid": "12345678-0000",
        "attempt": 1,
        "runUid": "1aaaaaaa-bbbb",
        "root": "default/wrong-12345678",
        "prefix": "default/wrong-12345678",
        "codePath": str(folder / "code"),
        "basePath": str(folder),
        "spec": spec,
    }
    (folder / "request.json").write_text(json.dumps(request))
    files = ["--request", "request.json", "--result", "result.json", "--progress", "progress.jsonl"]
    code, log = runners.run(files, folder, environment_of(case))
    result = json.loads((folder / "result.json").read_text())
    judge(case, code, f"{result['reason']}: {result['message']}", folder, log)
