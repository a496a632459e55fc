"""The distill stage: whose outputs count for how much, what its layers learn, and what stays as it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_task import Task
from torch import nn

import modelpress as mp
from modelpress.api.errors import SpecError
from modelpress.api.v1alpha1 import Stage
from modelpress.store import open_store
from modelpress_runner.engine.checkpoint import Checkpointer
from modelpress_runner.engine.run import run_stages
from modelpress_runner.errors import CompressionError, InvalidModelError, InvalidSpecError
from modelpress_runner.process.stopping import Stopped
from modelpress_runner.subject.subject import Subject

HALVED = {"prune": {"algorithm": "l1", "configList": [{"opNames": ["0"], "sparsity": 0.5}]}}


def distill(**block: Any) -> Stage:
    return Stage.model_validate({"distill": {"epochs": 1, **block}})


def run(task: Task, *stages: Stage, **options: Any) -> Any:
    subject = Subject(task.model, task.evaluator(), teacher=options.pop("teacher", None))
    return run_stages(subject, stages, seed=3, scores=False, **options)


def teacher_net(width: int = 5) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(9)
        return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 2))


@pytest.mark.parametrize(
    ("block", "term"),
    [
        ({}, lambda s, t: F.kl_div(s.log_softmax(1), t.softmax(1), reduction="batchmean")),
        (
            {"temperature": 4.0, "lossWeights": [0.25, 2.0]},
            lambda s, t: 16 * F.kl_div((s / 4).log_softmax(1), (t / 4).softmax(1), reduction="batchmean"),
        ),
        ({"lossTypes": ["CE", "MSE"], "lossWeights": [0.0, 1.0]}, F.mse_loss),
    ],
)
def test_one_step_is_that_of_the_sum(task, block, term):
    """One step from a teacher of the code's own, against the same step written out."""
    teacher, plain = teacher_net(), copy.deepcopy(task.model)
    own, taught = block.get("lossWeights", [0.5, 0.5])
    seen: list[torch.Tensor] = []
    step = task.training_step

    def noted(batch, model):
        seen.append(batch[0])
        return step(batch, model)

    task.training_step = noted
    run(task, Stage.model_validate({"distill": {"maxSteps": 1, **block}}), teacher=teacher)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    x = seen[0]
    outputs = plain.train()(x)
    loss = own * F.cross_entropy(outputs, (x[:, 0] > 0).long()) + taught * term(outputs, teacher.eval()(x).detach())
    loss.backward()
    optimizer.step()
    for name, value in task.model.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name], msg=name)


def test_the_dense_model_teaches_the_smaller_one(task):
    """Behind a shrink it learns the dense outputs; the dense object that it learns from stays as it was."""
    dense = copy.deepcopy(task.model)
    dense[0].weight.requires_grad_(False)
    before = copy.deepcopy(dense.state_dict())
    outcome = run(
        task,
        Stage.model_validate(HALVED),
        distill(epochs=30, lossTypes=["task", "MSE"], lossWeights=[0.0, 1.0]),
        dense=dense,
    )
    assert task.model[0].weight.shape == (3, 4)
    error = F.mse_loss(task.model.eval()(task.x), dense.eval()(task.x)).item()
    # What the halved model gives by itself, trained on its own loss alone.
    other = Task()
    run(other, Stage.model_validate(HALVED), Stage.model_validate({"finetune": {"epochs": 30}}))
    assert error < 0.2 * F.mse_loss(other.model.eval()(task.x), dense(task.x)).item()
    assert dense.training is False
    assert (dense[0].weight.requires_grad, dense[3].weight.requires_grad) == (False, True)
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())
    assert all(not module._forward_hooks for module in (*dense.modules(), *task.model.modules()))
    record = outcome.stages[1]
    assert (record["teacher"], record["lossTypes"], record["temperature"]) == ("self", ["task", "MSE"], 1.0)


def test_without_an_object_it_is_copied(task):
    """Nobody gave a dense model: the teacher is a copy from before the first stage."""
    teacher = copy.deepcopy(task.model).eval()
    run(task, Stage.model_validate(HALVED), distill(epochs=30, lossTypes=["task", "MSE"], lossWeights=[0.0, 1.0]))
    error = F.mse_loss(task.model.eval()(task.x), teacher(task.x)).item()
    assert error < 0.3 * teacher(task.x).var().item()


def test_layers_learn_through_a_projector(task):
    """The halved layer 0 learns from the dense one's; the 6x3 projector trains along and is no part of the model."""
    dense = copy.deepcopy(task.model).eval()
    mapping = {"student": "0", "weight": 1.0}
    run(
        task,
        Stage.model_validate(HALVED),
        distill(epochs=20, lossWeights=[0.0, 0.0], layerMappings=[mapping]),
        dense=dense,
    )
    assert [tuple(value.shape) for value in task.model.parameters()] == [(3, 4), (3,), (3,), (3,), (2, 3), (2,)]
    # The best linear map from the student's layer to the teacher's is as good as three channels allow.
    with torch.no_grad():
        student, wanted = task.model[0](task.x), dense[0](task.x)
        wanted = wanted - dense[0].bias
        student = student - task.model[0].bias
        left = wanted - student @ torch.linalg.lstsq(student, wanted).solution
        _, values, _ = torch.linalg.svd(wanted)
        least = (values[3:] ** 2).sum()
    assert left.square().sum() < 1.2 * least + 0.05 * wanted.square().sum()


@pytest.mark.parametrize("after", [3, 6])
def test_a_stopped_run_goes_on_with_its_projectors(task, after, tmp_path):
    """Stopped within the training, it ends with the weights of one that was left alone."""
    stages = [Stage.model_validate(HALVED), distill(epochs=2, layerMappings=[{"student": "0"}, {"student": "3"}])]
    run(task, *stages)
    other = Task()
    steps = [0]

    def stop() -> None:
        steps[0] += 1
        if steps[0] > after:
            raise Stopped

    store = open_store(str(tmp_path))
    with pytest.raises(Stopped):
        run(other, *stages, stop=stop, checkpointer=Checkpointer(store, "", "same", 1, every=1))
    other = Task()
    outcome = run(other, *stages, checkpointer=Checkpointer(store, "", "same", 2))
    assert outcome.steps == 8
    for name, value in other.model.state_dict().items():
        assert torch.equal(value, task.model.state_dict()[name]), name


def test_shallow_layers_learn_from_deep_ones(task):
    """The gradient goes into the shallow layer alone; the task's loss has no weight here."""
    before = copy.deepcopy(task.model.state_dict())
    mapping = {"student": "0", "teacher": "1", "lossType": "cosine"}
    run(task, distill(epochs=10, teacher={"student": True}, lossWeights=[0.0, 1.0], layerMappings=[mapping]))
    after = task.model.state_dict()
    assert not torch.equal(after["0.weight"], before["0.weight"])
    assert torch.equal(after["1.weight"], before["1.weight"])
    assert torch.equal(after["3.weight"], before["3.weight"])

    def alike(state: dict[str, torch.Tensor]) -> float:
        task.model.load_state_dict(state)
        x = task.model[0](task.x)
        return F.cosine_similarity(x, F.batch_norm(x, None, None, training=True), dim=1).mean().item()

    assert alike(after) > alike(before) + 0.01


def test_an_entrypoint_teaches(task, tmp_path, monkeypatch):
    """A function that returns a model, with arguments; random numbers of the run stay as they were."""
    (tmp_path / "teachers.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "def create(scale):\n"
        "    torch.manual_seed(5)\n"
        "    net = nn.Linear(4, 2)\n"
        "    net.weight.data.mul_(scale)\n"
        "    return net\n"
        "def broken():\n"
        "    raise ValueError('no')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    wanted = {"lossTypes": ["task", "MSE"], "lossWeights": [0.0, 1.0], "epochs": 2}
    run(task, distill(teacher={"entrypoint": "teachers:create", "args": {"scale": 3.0}}, **wanted))
    other = Task()
    with torch.random.fork_rng():
        torch.manual_seed(5)
        net = nn.Linear(4, 2)
    net.weight.data.mul_(3.0)
    run(other, distill(**wanted), teacher=net)
    assert torch.equal(task.model[0].weight, other.model[0].weight)
    for entrypoint, message in (
        ("teachers:create", r"spec.stages\[0\].distill.teacher.args: teachers:create needs the argument 'scale'"),
        (
            "teachers:creat",
            r"spec.stages\[0\].distill.teacher.entrypoint: teachers has no 'creat'; did you mean create",
        ),
        ("teachers:broken", r"spec.stages\[0\].distill.teacher.entrypoint: teachers:broken raised ValueError: no"),
    ):
        with pytest.raises(InvalidModelError, match=message):
            run(Task(), distill(teacher={"entrypoint": entrypoint}))


def test_together_with_pruning(task):
    """One training prunes and distils; the mask holds and the outputs are near the dense ones."""
    dense = copy.deepcopy(task.model).eval()
    part = {
        "prune": {
            "algorithm": "level",
            "shrink": False,
            "configList": [{"opNames": ["0"], "sparsity": 0.5}],
            "schedule": {"type": "agp", "startStep": 1, "endStep": 20, "frequency": 5},
        }
    }
    taught = {"distill": {"lossTypes": ["task", "MSE"], "lossWeights": [0.0, 1.0]}}
    run(task, Stage.model_validate({"together": {"epochs": 40, "of": [part, taught]}}))
    assert int((task.model[0].weight == 0).sum()) == 12
    assert F.mse_loss(task.model.eval()(task.x), dense(task.x)) < 0.3 * dense(task.x).var()


# What goes wrong ------------------------------------------------------------------------------------------------------


def parts_only(batch, model):
    return model[3](model[2](model[1](model[0](batch[0])))).square().mean()


def test_a_loss_from_parts_of_the_model_has_no_call(task):
    """There is nothing to compare."""
    task.training_step = parts_only
    with pytest.raises(InvalidModelError, match=r"let the training step call model\(...\), not parts of it"):
        run(task, distill())


def test_what_a_teacher_must_give(task):
    """The same classes."""
    with pytest.raises(CompressionError, match=r"the teacher's output is \(8, 3\) and the model's \(8, 2\)"):
        run(task, distill(), teacher=nn.Linear(4, 3))
    with pytest.raises(InvalidSpecError, match="the code gives no teacher"):
        run(task, distill(teacher={"given": True}))
    with pytest.raises(InvalidModelError, match="the teacher is the model itself, which changes"):
        Subject(task.model, None, teacher=task.model)
    with pytest.raises(InvalidModelError, match="the teacher is a str"):
        Subject(task.model, None, teacher="best")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("mapping", "error", "message"),
    [
        ({"student": "4"}, InvalidSpecError, r"layerMappings\[0\].student: the model has no module '4'"),
        ({"studentRe": "fc.*"}, InvalidSpecError, r"layerMappings\[0\].studentRe: no module of the model has a name"),
        ({"student": "0", "teacher": "9"}, InvalidSpecError, r"\[0\].teacher: the teacher has no module '9'"),
        ({"student": "0", "teacher": "4"}, InvalidSpecError, r"'0' gives \(1, 6\) and the teacher's '4' \(1, 2, 1\)"),
    ],
)
def test_layers_that_are_not_there_or_do_not_fit(task, mapping, error, message):
    """Each with its place."""
    teacher = nn.Sequential(*copy.deepcopy(task.model), nn.Unflatten(1, (2, 1)), nn.Flatten())
    with pytest.raises(error, match=message):
        run(task, distill(layerMappings=[mapping]), teacher=teacher)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"lossTypes": ["KL", "KL"]}, "the first of lossTypes is task, the loss of the training itself, not KL"),
        ({"lossTypes": ["task", "task"]}, "the second of lossTypes is KL, CE, MSE or cosine, not task"),
        ({"lossWeights": [1.0, 0.0]}, "its weight is 0, and there are no layerMappings"),
        ({"teacher": {"student": True}}, "a model that learns from its own deeper layers needs to know which"),
        (
            {"teacher": {"student": True}, "layerMappings": [{"student": "0"}]},
            "a layer learns nothing from itself",
        ),
        (
            {"teacher": {"self": True, "given": True}},
            "exactly one of self, entrypoint, weights, huggingFace, student, given is needed",
        ),
        ({"teacher": {"self": True, "args": {}}}, "args are those of an entrypoint"),
        ({"layerMappings": [{"student": "0", "weight": 0.0}]}, "a weight of 0 has no effect"),
        ({"layerMappings": [{"studentRe": "("}]}, "is no regular expression"),
        ({"layerMappings": [{"studentRe": ".*", "teacher": "0"}]}, "write student, not studentRe"),
        ({"epochs": None}, "nothing says how long to train"),
        ({"maxSteps": 1}, "epochs and maxSteps are two lengths"),
        ({"temperature": 0.0}, "must be above 0, found 0"),
    ],
)
def test_blocks_that_are_refused(task, block, message):
    """Before anything runs, in one sentence."""
    with pytest.raises(SpecError, match=message):
        mp.compress(task.model, [{"distill": {"epochs": 1, **block}}], task.evaluator())


def test_a_part_has_no_length(task):
    """The training that it goes along with has one."""
    stage = {"together": {"epochs": 1, "of": [{"distill": {"epochs": 1}}]}}
    with pytest.raises(SpecError, match="the training that it goes along with says how long"):
        mp.compress(task.model, [stage], task.evaluator())


def test_other_tools_spellings(task):
    """CE as the training's own loss, snake_case, and NNI's keys of a link."""
    mapping = {"student": "0", "link": "0", "lambda": 0.5, "apply_method": "MSE"}
    stages = [{"distill": {"max_epochs": 1, "loss_types": ["CE", "KL"], "layer_mappings": [mapping]}}]
    result = mp.compress(task.model, stages, task.evaluator())
    assert result.metrics["stages"][0]["lossTypes"] == ["CE", "KL"]
