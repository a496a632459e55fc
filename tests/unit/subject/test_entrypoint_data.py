"""The keyword `data` of an entrypoint: which entrypoints get it, what it is, and what is said where it does not fit."""

from __future__ import annotations

import itertools
import sys
import textwrap

import pytest

from modelpress.api.v1alpha1 import Model
from modelpress_runner.errors import InvalidModelError
from modelpress_runner.inputs.rows import Rows
from modelpress_runner.subject.entrypoint import find
from modelpress_runner.usercode import location as code

HEADER = """
from torch import nn

import modelpress as mp

"""
DATA = {"train": Rows([{"x": 1}, {"x": 2}], ["x"], "train")}
_numbers = itertools.count()


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module of a new name into a code folder; gives its name."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    code.use(str(tmp_path))
    names = []

    def write(text):
        names.append(f"data_entry_{next(_numbers)}")
        (tmp_path / f"{names[-1]}.py").write_text(HEADER + textwrap.dedent(text))
        return names[-1]

    yield write
    for name in names:
        sys.modules.pop(name, None)


def subject(name, data, args=None):
    model = Model.model_validate({"entrypoint": f"{name}:create", "args": args})
    return find(model, data=data).subject(model, seed=0, train=True)


@pytest.mark.parametrize("signature", ["data", "data=None", "*, data", "**keywords"])
def test_an_entrypoint_that_takes_data_gets_the_splits(signature, module):
    """A dict of split -> rows, whichever way it takes the keyword."""
    body = "data = keywords['data']" if signature == "**keywords" else "pass"
    name = module(f"""
        def create({signature}):
            {body}
            return nn.Linear(len(data["train"]), 1), lambda model: sum(row["x"] for row in data["train"])
    """)
    made = subject(name, DATA)
    assert made.model.in_features == 2
    assert made.evaluator.evaluate(made.model)["default"] == 3


def test_a_compression_module_gets_it_with_its_model(module):
    """The classmethod model takes the keyword."""
    name = module("""
        class create(mp.CompressionModule):
            @classmethod
            def model(cls, data):
                return nn.Linear(len(data["train"]), 1)

            @classmethod
            def evaluator(cls):
                return lambda model: 1.0
    """)
    assert subject(name, DATA).model.in_features == 2


def test_without_data_in_the_recipe_its_own_default_stands(module):
    """No split, no keyword; a value in args is the user's."""
    name = module("""
        def create(data=3):
            return nn.Linear(data, 1), lambda model: 1.0
    """)
    assert subject(name, None).model.in_features == 3
    assert subject(name, None, {"data": 5}).model.in_features == 5


@pytest.mark.parametrize(
    ("signature", "data", "args", "path", "message"),
    [
        ("", DATA, None, "spec.data", "takes no keyword data, so nothing would read it"),
        ("data", None, None, "spec.data", "needs data; add spec.data, or data to args"),
        ("data", DATA, {"data": 1}, "spec.model.args.data", "the keyword data is given twice"),
    ],
)
def test_what_does_not_fit_is_said_at_its_field(signature, data, args, path, message, module):
    """Data that nobody reads, data that is missing, data given twice."""
    name = module(f"""
        def create({signature}):
            return nn.Linear(1, 1), lambda model: 1.0
    """)
    with pytest.raises(InvalidModelError) as caught:
        subject(name, data, args)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
