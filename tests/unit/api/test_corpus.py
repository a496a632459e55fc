"""Every file of the corpus gets the verdict that its first line announces."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelpress.api.errors import Problem, SpecError
from modelpress.api.load import load_file
from modelpress.api.semantic import job_problems, sweep_problems
from modelpress.api.v1alpha1 import CompressionJob

CORPUS = Path(__file__).parents[2] / "corpus"


def files(folder: str) -> list[pytest.param]:
    return [pytest.param(path, id=path.stem) for path in sorted((CORPUS / folder).glob("*.yaml"))]


def expectation(path: Path) -> tuple[str, str]:
    head = path.read_text(encoding="utf-8").partition("\n")[0]
    assert head.startswith("# expect:"), f"{path} announces no verdict"
    where, _, message = head.removeprefix("# expect:").partition("|")
    return where.strip(), message.strip()


def semantic(path: Path) -> list[Problem]:
    return [
        problem
        for item in load_file(path)
        for problem in (
            job_problems(item.obj.spec) if isinstance(item.obj, CompressionJob) else sweep_problems(item.obj.spec)
        )
    ]


def check(problems: list[Problem], path: Path) -> None:
    where, message = expectation(path)
    told = "\n".join(map(str, problems))
    assert any(problem.path == where and message in f"{problem.message}; {problem.fix}" for problem in problems), told
    for problem in problems:
        assert problem.message
        assert problem.fix
        assert "\n" not in str(problem)
    assert "Traceback" not in told
    assert "pydantic" not in told


@pytest.mark.parametrize("path", files("accept"))
def test_accepted_files_have_no_problem(path: Path) -> None:
    """A good file loads, has no semantic problem, and survives a way through plain data."""
    assert semantic(path) == []
    for item in load_file(path):
        assert type(item.obj).model_validate(item.obj.to_dict()) == item.obj


@pytest.mark.parametrize("path", files("reject") + files("beyond") + files("syntax"))
def test_rejected_files_name_field_fault_and_remedy(path: Path) -> None:
    """A file that breaks the schema or YAML is refused with the announced path and message, the file and a line."""
    with pytest.raises(SpecError) as caught:
        load_file(path)
    check(caught.value.problems, path)
    for problem in caught.value.problems:
        assert problem.file == str(path)
        assert problem.line is not None or "holds no object" in problem.message
        assert str(problem) in str(caught.value)


@pytest.mark.parametrize("path", files("reject"))
def test_one_fault_is_one_problem(path: Path) -> None:
    """Each rejected file has one fault, and a person reads one sentence about it."""
    with pytest.raises(SpecError) as caught:
        load_file(path)
    assert len(caught.value.problems) == 1 or path.stem == "categorical_of_lists", str(caught.value)


@pytest.mark.parametrize("path", files("semantic"))
def test_semantic_faults_come_after_the_schema(path: Path) -> None:
    """A semantically wrong file loads, and its problem has the announced path and message."""
    check(semantic(path), path)


def test_corpus_is_large_enough() -> None:
    """The corpus is what guards the agreement with the API server, so it must not shrink away."""
    assert len(files("accept")) >= 15
    assert len(files("reject")) + len(files("semantic")) >= 45
    assert len(files("syntax")) >= 10
