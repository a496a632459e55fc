"""No honest model is refused: what the zoo exports to calls operators of the list alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import program_zoo
import pytest

from modelpress_runner.export.pt2 import graphcheck, program
from modelpress_runner.export.pt2.quiet import quiet


@pytest.mark.parametrize("source", [program_zoo.plain, pytest.param(program_zoo.pretrained, marks=pytest.mark.long)])
def test_honest_models_pass(source: Callable[..., object]) -> None:
    """Each passes the check in eval and in train form, and calls nothing that a caller would have to name."""
    seen = 0
    for name, (model, inputs) in source():
        for training in (False, True):
            with warnings.catch_warnings(), quiet():
                warnings.simplefilter("ignore")
                document = program._document(program._trace(model, inputs, training=training))
            graphcheck.check_program(document, name)
            assert graphcheck.unlisted(document) == set(), name
            seen += 1
    assert seen > 20
