"""A trial in short: which trainings become shorter, and what is measured of one that runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from modelpress.api.load import load_file
from modelpress.cli import init as init_module
from modelpress.cli.init import Wanted, init, prunable
from modelpress.cli.preflight import recipe_of, unfit
from modelpress.local.errors import UsageError
from modelpress.local.estimate import estimate
from modelpress.local.plan import plan_run
from modelpress.local.sources import load_documents
from modelpress_runner.runs import analyze, probe

CODE = """
import torch
from torch import nn
import modelpress as mp

def create():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(64, 2))
    data, wanted = torch.randn(64, 1, 6, 6), torch.randint(0, 2, (64,))

    def step(batch, model):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    def fit(model, optimizer, step, scheduler, max_steps, max_epochs):
        for _ in range(max_steps or 4 * max_epochs):
            optimizer.zero_grad()
            step((data, wanted), model).backward()
            optimizer.step()

    def score(model):
        return float((model(data).argmax(1) == wanted).float().mean())

    optimizer = mp.trace(torch.optim.SGD)(model.parameters(), lr=0.1)
    return mp.Subject(model, mp.TorchEvaluator(fit, optimizer, step, evaluating_func=score), data[:1])
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with code, which is the working directory."""
    (tmp_path / "probed_net.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_length_is_cut_and_nothing_is_made_longer() -> None:
    """Epochs to one or two, steps to 8 or 16; a training whose parts count its steps stays whole."""
    stages = [
        {"prune": {"schedule": {"type": "agp", "rounds": 3, "train": {"epochs": 5}}}},
        {"distill": {"maxSteps": 100}},
        {"finetune": {"epochs": 1}},
        {"together": {"epochs": 4, "of": [{"prune": {"schedule": {"endStep": 9}}}, {"distill": {}}]}},
    ]
    assert probe.shortened(stages, 2) == [
        {"prune": {"schedule": {"type": "agp", "rounds": 3, "train": {"epochs": 2}}}},
        {"distill": {"maxSteps": 16}},
        {"finetune": {"epochs": 1}},
        stages[3],
    ]
    assert probe.training_lengths(stages) == [5, 100, 1, 4]
    assert probe.training_lengths(probe.shortened(stages, 1)) == [1, 8, 1, 4]


def test_a_first_sweep_is_written_run_in_short_and_judged(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """init writes what suits the model; its first trial runs twice, and what it takes is set against the limits."""

    def in_this_process(request: dict) -> dict:
        (folder / "asked.json").write_text(json.dumps(request))
        assert analyze.main([str(folder / "asked.json"), str(folder / "told.json")]) == 0
        return json.loads((folder / "told.json").read_text())

    monkeypatch.setattr(init_module, "run_analysis", in_this_process)
    file = folder / "sweep.yaml"
    assert init(Wanted("probed_net:create", folder), file) == 0
    (loaded,) = load_file(file)
    spec = loaded.obj.spec
    entries = spec.template.spec.stages[0].prune.config_list
    assert [(entry.op_names_re, entry.sparsity) for entry in entries] == [(["0"], 0.5), (["2"], 0.5)]
    assert [item.float.max for item in spec.search_space] == [0.75, 0.75]
    assert [item.metric for item in spec.objectives] == ["default", "latencyMs"]
    assert spec.screening.stages == 1
    assert file.read_text().startswith("# Looks for smaller forms of probed_net:create: ")

    document = yaml.safe_load(file.read_text())
    document["spec"]["template"]["spec"]["runner"] = {"resources": {"limits": {"memory": "64Mi"}}}
    document["spec"]["template"]["spec"]["activeDeadlineSeconds"] = 100_000
    document["spec"]["template"]["spec"]["benchmark"] = {"warmup": 0, "iterations": 1}
    file.write_text(yaml.safe_dump(document))
    plan = plan_run(load_documents(str(file))[0], cwd=folder)
    recipe, parameters = recipe_of(plan)
    assert set(parameters) == {item.name for item in spec.search_space}
    request = {"spec": recipe.to_dict(), "codePath": plan.code_path, "basePath": plan.base_path, "quick": 600.0}
    (folder / "asked.json").write_text(json.dumps(request))
    assert probe.main([str(folder / "asked.json"), str(folder / "told.json")]) == 0
    found = json.loads((folder / "told.json").read_text())
    assert [run["stages"][1]["steps"] for run in found["runs"]] == [4, 8]
    assert found["lengths"] == {"probe": [[0, 1], [0, 2]], "recipe": [0, 3]}
    told = estimate(found, 1000.0)
    assert told.compressed["macs"] < told.baseline["macs"]
    (problem,) = unfit(plan, recipe, told)
    assert problem.startswith("spec.template.spec.runner.resources.limits.memory: a trial takes ")


def test_a_sweep_that_could_not_be_written_is_refused_before_the_model_is_looked_at(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that is not there, a file that is; a task, which code has not."""
    monkeypatch.setattr(init_module, "run_analysis", lambda request: pytest.fail("the model was looked at"))
    wanted = Wanted("probed_net:create", folder)
    with pytest.raises(UsageError, match=r"^--output: cannot write none/sweep\.yaml: No such file or directory; "):
        init(wanted, Path("none/sweep.yaml"))
    (folder / "sweep.yaml").write_text("mine")
    with pytest.raises(UsageError, match=r"^--output: sweep\.yaml is there already; "):
        init(wanted, Path("sweep.yaml"))
    assert (folder / "sweep.yaml").read_text() == "mine"
    with pytest.raises(UsageError, match=r"^--task: is of a pretrained model .*; leave it out"):
        init(Wanted("probed_net:create", folder, task="causal-lm"), None)


def test_layers_of_one_kind_share_an_entry() -> None:
    """Numbers in names are left open, unless that takes in a layer that cannot lose channels; narrow ones stay."""
    facts = {
        "layers": [{"name": name} for name in ("a.0.fc", "a.1.fc", "b.0", "b.1", "c", "tiny", "head")],
        "groups": [
            {"layers": ["a.0.fc"], "channels": 32},
            {"layers": ["a.1.fc"], "channels": 16},
            {"layers": ["b.0"], "channels": 64},
            {"layers": ["b.0", "c"], "channels": 48},
            {"layers": ["tiny"], "channels": 4},
        ],
    }
    found = prunable(facts)
    assert [(item.patterns, item.name, item.layers, item.channels, item.most) for item in found] == [
        ((r"b\.0", "c"), "sparsity_b_0", 3, 48, 0.8),
        ((r"a\.[0-9]+\.fc",), "sparsity_a_fc", 2, 16, 0.75),
    ]
