"""What is valid stays valid with all defaults written out: API servers, searches and records do that."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelpress.api.load import load_file
from modelpress.api.semantic import job_problems, sweep_problems
from modelpress.api.v1alpha1 import CompressionSweep

CORPUS = sorted((Path(__file__).parents[2] / "corpus" / "accept").glob("*.yaml"))


@pytest.mark.parametrize("file", CORPUS, ids=lambda path: path.stem)
def test_defaults_that_are_written_out_change_nothing(file: Path) -> None:
    """The same problems, most often none."""
    for loaded in load_file(file):
        spec = loaded.obj.spec
        judge = sweep_problems if isinstance(loaded.obj, CompressionSweep) else job_problems
        assert judge(type(spec).model_validate(spec.to_dict())) == judge(spec)
