"""What a teacher gave is kept: it is asked once for each sample, never for another's, and by one trial for all."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from small_task import Task
from torch import nn

from modelpress.api.stages.distill import DistillRules
from modelpress.api.v1alpha1 import Distill, Stage
from modelpress.store import open_store
from modelpress_runner.engine.run import run_stages
from modelpress_runner.methods.distill.kept_outputs import KeptOutputs
from modelpress_runner.runs.shared_files import StoredFiles
from modelpress_runner.subject.subject import Subject
from modelpress_runner.training.calls import Call

ROOM = 1 << 20


class Teacher(nn.Module):
    """Counts the samples that it is asked for."""

    def __init__(self, mixes: bool = False) -> None:
        super().__init__()
        self.mixes, self.asked = mixes, 0
        with torch.random.fork_rng():
            torch.manual_seed(5)
            self.layer = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.asked += len(x)
        return self.layer(x - x.mean(0) if self.mixes else x)


def distil(task: Task, teacher: nn.Module, cache: dict[str, Any] | None, files: Any = None, epochs: int = 3) -> Any:
    block = {"distill": {"epochs": epochs, **({} if cache is None else {"teacherCache": cache})}}
    subject = Subject(task.model, task.evaluator(), teacher=teacher)
    return run_stages(subject, [Stage.model_validate(block)], seed=3, scores=False, files=files)


def kept(teacher: nn.Module, notes: list[str] | None = None, **changes: Any) -> KeptOutputs:
    given: dict[str, Any] = {"top": None, "limit": ROOM, "files": None, "repeats": False}
    return KeptOutputs(teacher, **(given | changes), note=([] if notes is None else notes).append)


def call(x: torch.Tensor, **kwargs: Any) -> Call:
    return Call((x,), kwargs, None)


def test_it_is_asked_once_for_each_sample():
    """Three shuffled epochs of 32 samples: 32 and the look at one alone; the student learns what it learns without."""
    plain, task = Task(), Task()
    distil(plain, Teacher(), None)
    teacher = Teacher()
    outcome = distil(task, teacher, {})
    assert teacher.asked == 32 + (1 + 8)
    assert outcome.stages[0]["teacherCache"] == {"samples": 96, "known": 64}
    for name, value in task.model.state_dict().items():
        torch.testing.assert_close(value, plain.model.state_dict()[name], rtol=1e-4, atol=1e-6, msg=name)


def test_a_changed_sample_is_another():
    """One bit of one input, another argument, another type: each is asked for anew, and gets its own answer."""
    teacher = Teacher().eval()
    outputs, x = kept(teacher), torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    first = outputs.outputs(call(x))["output"]
    changed = x.clone()
    changed[1, 2] = torch.nextafter(changed[1, 2], torch.tensor(math.inf))
    asked = teacher.asked
    torch.testing.assert_close(outputs.outputs(call(changed))["output"], teacher.layer(changed).detach())
    assert teacher.asked == asked + 1
    assert torch.equal(outputs.outputs(call(x.flip(0)))["output"], first.flip(0))
    assert teacher.asked == asked + 1
    assert outputs.record == {"samples": 9, "known": 5}


@pytest.mark.parametrize("top", [1, 2])
def test_the_greatest_are_kept_and_the_softmax_has_its_mass(top):
    """Of 3, 1, 0, -1 the greatest stay; the others share what is left at temperature 1."""
    logits = torch.tensor([[3.0, 1.0, 0.0, -1.0], [0.0, 5.0, 0.0, 1.0]])
    teacher = nn.Identity()
    outputs = kept(teacher, top=top)
    first, again = (outputs.outputs(call(logits))["output"] for _ in range(2))
    assert torch.equal(first, again)
    rest = [math.exp(v) for v in (3.0, 1.0, 0.0, -1.0)[top:]]
    wanted = [3.0, 1.0][:top] + [math.log(sum(rest) / len(rest))] * len(rest)
    torch.testing.assert_close(first[0], torch.tensor(wanted))
    torch.testing.assert_close(first.exp().sum(1), logits.exp().sum(1))


def test_another_trial_need_not_ask(tmp_path):
    """The second of a sweep finds all; a teacher with other weights finds nothing; so does who keeps less of them."""
    files = StoredFiles(open_store(str(tmp_path)), "team/sweep-1")
    distil(Task(), Teacher(), {}, files, epochs=1)
    second = Teacher()
    assert distil(Task(), second, {}, files, epochs=1).stages[0]["teacherCache"] == {"samples": 32, "known": 32}
    assert second.asked == 1 + 8
    other = Teacher()
    with torch.no_grad():
        other.layer.bias += 1
    assert distil(Task(), other, {}, files, epochs=1).stages[0]["teacherCache"]["known"] == 0
    assert len(list((tmp_path / "team/sweep-1/stages/files").iterdir())) == 2


def test_a_damaged_file_is_passed_over(tmp_path, caplog):
    """Neither noise nor a file of other tensors stops a trial."""
    files = StoredFiles(open_store(str(tmp_path)), "team/sweep-1")
    distil(Task(), Teacher(), {}, files, epochs=1)
    (path,) = (tmp_path / "team/sweep-1/stages/files").glob("*/*.safetensors")
    path.write_bytes(path.read_bytes()[:40])
    assert distil(Task(), Teacher(), {}, files, epochs=1).stages[0]["teacherCache"]["known"] == 0
    assert "cannot be read" in caplog.text


def test_data_that_is_drawn_anew_is_told_and_not_handed_on(tmp_path):
    """Each epoch adds noise: no sample comes again, and nothing of it is left for others."""
    files, task, teacher = StoredFiles(open_store(str(tmp_path)), "r"), Task(), Teacher()
    step = task.training_step
    task.training_step = lambda batch, model: step((batch[0] + 0.01 * torch.randn(batch[0].shape), batch[1]), model)
    outcome = distil(task, teacher, {}, files)
    assert outcome.stages[0]["teacherCache"]["known"] == 0
    assert [note for note in outcome.notes if "augments its data anew" in note and "teacherCache" in note]
    assert not (tmp_path / "r").exists()


def test_a_teacher_that_looks_at_the_whole_batch_is_asked_each_time():
    """Its answers are those without a cache, to the bit."""
    plain, task, teacher = Task(), Task(), Teacher(mixes=True)
    distil(plain, Teacher(mixes=True), None)
    outcome = distil(task, teacher, {})
    assert [note for note in outcome.notes if "depends on the others in its batch" in note]
    assert all(torch.equal(value, plain.model.state_dict()[name]) for name, value in task.model.state_dict().items())
    assert teacher.asked == 96 + (1 + 8)


def test_memory_has_an_end():
    """Room for two samples of 16 + 8 bytes: the others are asked for each time."""
    notes: list[str] = []
    teacher = Teacher().eval()
    outputs, x = kept(teacher, notes, limit=50), torch.eye(4)
    outputs.outputs(call(x))
    asked = teacher.asked
    torch.testing.assert_close(outputs.outputs(call(x))["output"], teacher.layer(x).detach())
    assert teacher.asked == asked + 2
    assert [note for note in notes if "kept for 2 samples" in note]


@pytest.mark.parametrize(
    ("block", "path"),
    [
        ({"teacher": {"student": True}, "layerMappings": [{"student": "a", "teacher": "b"}]}, "x.teacherCache"),
        ({"layerMappings": [{"student": "a"}]}, "x.teacherCache"),
        ({"lossWeights": [1.0, 0.0], "layerMappings": [{"student": "a"}]}, "x.teacherCache"),
        ({"lossTypes": ["task", "MSE"], "teacherCache": {"topK": 3}}, "x.teacherCache.topK"),
        ({"teacherCache": {"maxMemory": "0"}}, "x.teacherCache.maxMemory"),
    ],
)
def test_where_it_makes_no_sense_it_is_refused(block, path):
    """By the path of what is wrong."""
    given = Distill.model_validate({"epochs": 1, "teacherCache": {}} | block)
    assert [problem.path for problem in DistillRules().problems(given, "x")] == [path]
