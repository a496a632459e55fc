"""Teachers that lie in files: weights for the dense model's kind, and folders of the transformers library."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from small_task import Task
from tiny_models import bert
from torch import nn

from modelpress.api.semantic_job import job_problems
from modelpress.api.v1alpha1 import CompressionJobSpec, Stage
from modelpress_runner.engine.run import run_stages
from modelpress_runner.errors import InvalidModelError, InvalidSpecError
from modelpress_runner.inputs.gather import digest_of, gathered
from modelpress_runner.subject.subject import Subject

WEIGHTS = "spec.stages[0].distill.teacher.weights"
FOLDER = "spec.stages[0].together.of[0].distill.teacher.huggingFace.source"
ALONE = {"lossTypes": ["task", "MSE"], "lossWeights": [0.0, 1.0]}


def distil(task: Task, teacher: Any, sources: dict[str, Path], given: nn.Module | None = None) -> None:
    subject = Subject(task.model, task.evaluator(), teacher=given)
    subject.sources = sources
    stage = Stage.model_validate({"distill": {"epochs": 2, **ALONE, **({"teacher": teacher} if teacher else {})}})
    run_stages(subject, [stage], seed=3, scores=False)


def spec(**block: Any) -> CompressionJobSpec:
    return CompressionJobSpec.model_validate({"model": {"entrypoint": "a:b"}, "stages": [block]})


def test_weights_of_the_same_kind_teach(task, tmp_path):
    """As the model that has them would; the dense one stays as it was."""
    teacher = copy.deepcopy(task.model)
    with torch.no_grad():
        teacher[3].weight.mul_(3)
    save_file(teacher.state_dict(), tmp_path / "t.safetensors")
    distil(task, {"weights": {"uri": "t.safetensors"}}, {WEIGHTS: tmp_path / "t.safetensors"})
    other = Task()
    distil(other, None, {}, teacher)
    assert all(torch.equal(value, other.model.state_dict()[name]) for name, value in task.model.state_dict().items())


def test_what_does_not_fit_is_said_before_anything_trains(task, tmp_path):
    """Weights of another model; and files that nobody fetched."""
    save_file({"other": torch.zeros(1)}, tmp_path / "t.safetensors")
    with pytest.raises(InvalidModelError, match=r"distill.teacher.weights: .*other"):
        distil(task, {"weights": {"uri": "t.safetensors"}}, {WEIGHTS: tmp_path / "t.safetensors"})
    with pytest.raises(InvalidSpecError, match=r"distill.teacher.weights: only a job fetches files"):
        distil(task, {"weights": {"uri": "t.safetensors"}}, {})
    assert task.calls == []


def test_a_folder_of_transformers_teaches(tmp_path):
    """A tiny encoder learns from another one's embeddings, in a training that it goes along with."""
    import transformers

    folder = bert(tmp_path / "teacher")
    teacher = transformers.AutoModel.from_pretrained(folder).eval()
    student = transformers.AutoModel.from_config(teacher.config)
    ids = torch.randint(5, 20, (8, 6), generator=torch.Generator().manual_seed(0))

    def train(model, optimizer, training_step, scheduler, max_steps, max_epochs):
        for _ in range(max_steps):
            optimizer.zero_grad()
            training_step(ids, model).backward()
            optimizer.step()

    import modelpress as mp

    evaluator = mp.TorchEvaluator(
        train,
        mp.trace(torch.optim.Adam)(student.parameters(), lr=3e-3),
        lambda batch, model: model(input_ids=batch).last_hidden_state.sum() * 0,
        dummy_input={"input_ids": ids[:1]},
    )

    def apart() -> float:
        with torch.no_grad():
            mine, theirs = (model.eval()(input_ids=ids).last_hidden_state for model in (student, teacher))
        return float((mine - theirs).square().mean())

    block = {"teacher": {"huggingFace": {"source": {"uri": "teacher"}, "task": "feature-extraction"}}, **ALONE}
    subject = Subject(student, evaluator)
    subject.sources = {FOLDER: folder}
    before = apart()
    stage = Stage.model_validate({"together": {"maxSteps": 30, "of": [{"distill": block}]}})
    run_stages(subject, [stage], seed=3, scores=False)
    assert apart() < 0.5 * before


def test_they_are_fetched_and_belong_to_the_digest(tmp_path):
    """By their field; other content, another digest; a wrong sum is an error."""
    (tmp_path / "t.safetensors").write_bytes(b"one")
    stage = {"distill": {"epochs": 1, "teacher": {"weights": {"uri": "t.safetensors"}}}}
    with gathered(spec(**stage), str(tmp_path)) as inputs:
        assert inputs.sources == {WEIGHTS: tmp_path / "t.safetensors"}
        first = inputs.digest
    (tmp_path / "t.safetensors").write_bytes(b"two")
    with gathered(spec(**stage), str(tmp_path)) as inputs:
        assert inputs.digest != first
    stage["distill"]["teacher"]["weights"]["sha256"] = "0" * 64
    with pytest.raises(InvalidSpecError) as caught, gathered(spec(**stage), str(tmp_path)):
        pass
    assert str(caught.value).startswith(f"{WEIGHTS}.sha256: ")
    assert digest_of(tmp_path / "t.safetensors") in str(caught.value)


@pytest.mark.parametrize(
    ("teacher", "path", "message"),
    [
        ({"weights": {"uri": "t.onnx"}}, f"{WEIGHTS}.uri", "suffixes"),
        (
            {"huggingFace": {"source": {"uri": "hf://a/b/c"}, "task": "causal-lm"}},
            "spec.stages[0].distill.teacher.huggingFace.source.uri",
            "names no repository",
        ),
    ],
)
def test_where_they_lie_is_judged_without_opening_them(teacher, path, message):
    """As of the job's own model."""
    (problem,) = job_problems(spec(distill={"epochs": 1, "teacher": teacher}))
    assert (problem.path, message in problem.message) == (path, True)


def test_a_pod_has_no_folder_of_this_machine():
    """A relative path is none of a pod."""
    problems = job_problems(spec(distill={"epochs": 1, "teacher": {"weights": {"uri": "t.safetensors"}}}), cluster=True)
    assert f"{WEIGHTS}.uri" in [problem.path for problem in problems]
