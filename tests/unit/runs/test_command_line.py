"""Options of scripts: any name that a command line can have."""

from __future__ import annotations

import sys

import pytest

from modelpress.api.semantic import job_problems
from modelpress.api.v1alpha1 import CompressionJobSpec
from modelpress_runner.errors import InvalidModelError
from modelpress_runner.evaluators.score import score_of
from modelpress_runner.runs.script import _refused, command_line


def _problems(form: dict[str, str], name: str) -> list[str]:
    stages = [{"prune": {"algorithm": "level", "speedup": False, "configList": [{"sparsity": 0.5}]}}]
    spec = CompressionJobSpec.model_validate({"model": {**form, "args": {name: 16}}, "stages": stages})
    return [str(problem) for problem in job_problems(spec) if "args" in problem.path]


def test_options_with_hyphens_are_passed_as_they_are() -> None:
    """A keyword of an entrypoint has none."""
    for name in ("batch-size", "batch_size", "optim.lr", "b"):
        assert _problems({"script": "train.py"}, name) == []
        assert command_line({name: 16}) == [f"--{name}=16"]
    for name in ("--batch-size", "batch size", "-b", "a=b"):
        [problem] = _problems({"script": "train.py"}, name)
        assert "without the dashes before it" in problem
    [problem] = _problems({"entrypoint": "a:b"}, "batch-size")
    assert "cannot be the name of a keyword argument" in problem


def test_an_option_that_the_script_does_not_know_is_told() -> None:
    """Only where argparse refused it: exit code 2 may mean other things."""
    import argparse

    with pytest.raises(SystemExit) as raised:
        argparse.ArgumentParser().parse_args(["--batch_size=16"])
    error = _refused(raised.value, "train.py", ["--batch_size=16"])
    assert isinstance(error, InvalidModelError)
    assert error.path == "spec.model.args"
    assert "train.py does not take the command line --batch_size=16" in str(error)
    with pytest.raises(SystemExit) as raised:
        sys.exit(2)
    assert _refused(raised.value, "train.py", []) is raised.value


def test_a_metric_that_is_no_number_is_to_be_left_out() -> None:
    """The score itself has to be one."""
    with pytest.raises(InvalidModelError, match=r"metric 'report', returned a str; leave it out, or give a number"):
        score_of({"default": 0.5, "report": "text"})
    with pytest.raises(InvalidModelError, match=r"metric 'default', returned a str; give a number"):
        score_of({"default": "text"})
