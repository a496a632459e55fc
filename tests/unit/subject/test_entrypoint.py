"""Entrypoints: every accepted form, and one sentence for everything that is wrong."""

from __future__ import annotations

import hashlib
import itertools
import sys
import textwrap

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from modelpress.api.v1alpha1 import Model, Source
from modelpress_runner.errors import InvalidModelError, InvalidSpecError
from modelpress_runner.subject.compression_module import ModuleEvaluator
from modelpress_runner.subject.entrypoint import find, load_weights
from modelpress_runner.usercode import location as code

HEADER = """
import torch
from torch import nn

import modelpress as mp


def score(model):
    return 1.0


def net(width=2):
    return nn.Linear(3, width)

"""
_numbers = itertools.count()


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module of a new name into a code folder; gives its name."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    code.use(str(tmp_path))
    names = []

    def write(text, name=None):
        name = name or f"entry_{next(_numbers)}"
        path = tmp_path / f"{name.replace('.', '/')}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(HEADER + textwrap.dedent(text))
        names.append(name)
        return name

    yield write
    for name in names:
        sys.modules.pop(name, None)


def subject(entrypoint, args=None, train=True, seed=0):
    model = Model.model_validate({"entrypoint": entrypoint, "args": args})
    return find(model).subject(model, seed=seed, train=train)


def test_pairs_and_subjects_are_taken(module):
    """(model, evaluator) with a function or an Evaluator, and mp.Subject."""
    name = module("""
        def pair(width=2):
            return net(width), score

        def full():
            return mp.Subject(net(), mp.TorchEvaluator(evaluating_func=score), example_inputs=torch.zeros(1, 3))

        class Zoo:
            @staticmethod
            def small():
                return [net(), score]
    """)
    pair = subject(f"{name}:pair", {"width": 5})
    assert pair.model.out_features == 5
    assert pair.evaluator.evaluate(pair.model) == {"default": 1.0}
    assert subject(f"{name}:full").dummy_input.shape == (1, 3)
    assert isinstance(subject(f"{name}:Zoo.small").model, nn.Linear)


def test_compression_modules_are_taken_as_class_and_from_a_function(module):
    """Arguments go to model(), pretrain is called only where the model must be trained."""
    name = module("""
        class Task(mp.CompressionModule):
            @classmethod
            def model(cls, width=2):
                return net(width)

            @classmethod
            def evaluator(cls):
                return score

            @classmethod
            def pretrain(cls, model):
                nn.init.ones_(model.weight)

        def give():
            return Task
    """)
    entry = subject(f"{name}:Task", {"width": 4})
    assert isinstance(entry.evaluator, ModuleEvaluator)
    assert bool((entry.model.weight == 1).all())
    assert entry.model.out_features == 4
    assert not bool((subject(f"{name}:Task", train=False).model.weight == 1).all())
    assert bool((subject(f"{name}:give").model.weight == 1).all())


def test_train_is_passed_to_those_who_ask(module):
    """True to build, False where weights will be replaced; never to a function without that keyword."""
    name = module("""
        seen = []

        def asks(*, train=True):
            seen.append(train)
            return net(), score

        def takes_anything(**kwargs):
            seen.append(kwargs)
            return net(), score
    """)
    subject(f"{name}:asks")
    subject(f"{name}:asks", train=False)
    subject(f"{name}:takes_anything", {"depth": 1})
    assert sys.modules[name].seen == [True, False, {"depth": 1}]


def test_the_call_is_seeded(module):
    """Equal seeds give equal initial weights."""
    name = module("def pair():\n    return net(), score")
    one, two, three = (subject(f"{name}:pair", seed=seed).model.weight for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, three)


@pytest.mark.parametrize(
    ("text", "attribute", "args", "message"),
    [
        ("def create(): pass", "creat", None, "has no 'creat'; did you mean create"),
        ("model = net()", "model", None, "is a Linear; it must be a CompressionModule, or a function"),
        ("create = 3", "create", None, "is a int; it must be a CompressionModule"),
        ("def create(): pass", "create", None, "returned nothing .None.; it must return .model, evaluator."),
        ("def create(): return net()", "create", None, "returned a Linear"),
        ("def create(): return net(), score, 1", "create", None, "returned a tuple of 3"),
        ("def create(): return 3, score", "create", None, "returned a pair, but the model is a int"),
        ("def create(): return net(), 0.5", "create", None, "returned a pair, but the evaluator is a float"),
        ("def create(): return net, score", "create", None, "but the model is a function"),
        ("def create(): raise OSError('no data')", "create", None, r"raised OSError: no data \(.*entry_\d+\.py:\d+\)"),
        ("def create(): exit()", "create", None, "raised SystemExit"),
        ("def create(width): pass", "create", None, r"spec\.model\.args: .*needs the argument 'width'"),
        ("def create(width=1): pass", "create", {"widht": 2}, r"spec\.model\.args\.widht: .*did you mean width"),
        ("def create(): pass", "create", {"depth": 2}, "takes no argument 'depth'"),
        ("1 / 0", "create", None, r"importing entry_\d+ raised ZeroDivisionError.*entry_\d+\.py:\d+\)"),
        ("def create(:", "create", None, r"raised SyntaxError: invalid syntax \(.*entry_\d+\.py:15\)"),
        ("import torhc", "create", None, "raised ModuleNotFoundError: No module named 'torhc'"),
        ("class T(mp.CompressionModule): pass", "T", None, r"T does not define model\(\)"),
        (
            "class T(mp.CompressionModule):\n    @classmethod\n    def model(cls): return net()",
            "T",
            None,
            r"spec\.model\.entrypoint: T does not define evaluator\(\)",
        ),
    ],
)
def test_everything_wrong_is_one_sentence(module, text, attribute, args, message):
    """With the field and, for the user's own errors, file and line."""
    name = module(text)
    with pytest.raises(InvalidModelError, match=message) as info:
        subject(f"{name}:{attribute}", args)
    assert str(info.value).startswith("spec.model.")
    assert "\n" not in str(info.value)


def test_a_missing_module_lists_near_names(module, tmp_path):
    """On the path and inside a package."""
    module("", "nets.vision")
    module("", "nets.__init__")
    with pytest.raises(InvalidModelError, match=r"no module 'netz' on the Python path; set .*; did you mean nets"):
        subject("netz:create")
    model = Model.model_validate({"entrypoint": "netz:create"})
    with pytest.raises(InvalidModelError, match=r"in the folder of spec.code, .*; did you mean nets"):
        find(model, str(tmp_path))
    with pytest.raises(InvalidModelError, match=r"no module 'vison' in the package nets; did you mean vision"):
        subject("nets.vison:create")


def test_a_name_that_is_taken_is_said(module, tmp_path):
    """A module of the user's that the standard library hides cannot be found by importing it."""
    module("def create(): pass", "json")
    model = Model.model_validate({"entrypoint": "json:create"})
    import json

    with pytest.raises(InvalidModelError, match=r"the name 'json' is taken by .*rename your module"):
        find(model, str(tmp_path))
    sys.modules["json"] = json


def test_weights_are_loaded_strictly(module, tmp_path):
    """safetensors and plain .pth; names, shapes and digests must fit."""
    name = module("def create():\n    return net(), score")
    state = {"weight": torch.full((2, 3), 7.0), "bias": torch.zeros(2)}
    save_file(state, tmp_path / "good.safetensors")
    torch.save({"state_dict": state}, tmp_path / "good.pth")

    def load(uri, sha256=None, path=str(tmp_path)):
        made = subject(f"{name}:create")
        load_weights(made, Source.model_validate({"uri": uri, "sha256": sha256}), path)
        return made.model.weight

    digest = hashlib.sha256((tmp_path / "good.safetensors").read_bytes()).hexdigest()
    assert bool((load("good.safetensors", digest) == 7).all())
    assert bool((load(str(tmp_path / "good.pth")) == 7).all())
    assert bool((load(f"file://{tmp_path}/good.safetensors") == 7).all())
    with pytest.raises(InvalidModelError, match=r"spec\.model\.weights\.sha256: good\.safetensors has sha256 "):
        load("good.safetensors", "0" * 64)
    with pytest.raises(InvalidSpecError, match=r"^spec\.model\.weights\.uri: there is no file"):
        load("none.safetensors")
    with pytest.raises(InvalidSpecError, match=r"^spec\.model\.weights\.uri: there is no file"):
        load(f"file://{tmp_path}/none.safetensors")
    for tensors, message in (
        ({"weight": torch.zeros(2, 3)}, "missing in the file: bias"),
        ({**state, "extra": torch.zeros(1)}, "not in the model: extra"),
        ({**state, "bias": torch.zeros(3)}, r"bias is \(3,\) in the file and \(2,\) in the model"),
    ):
        save_file(tensors, tmp_path / "bad.safetensors")
        with pytest.raises(InvalidModelError, match=rf"^spec\.model\.weights\.uri: bad\.safetensors .*{message}"):
            load("bad.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"12345678 not a tensor")
    with pytest.raises(InvalidModelError, match="is no readable safetensors file"):
        load("bad.safetensors")
    torch.save(nn.Linear(3, 2), tmp_path / "bad.pth")
    with pytest.raises(InvalidModelError, match=r"bad\.pth does not load with weights_only"):
        load("bad.pth")


def test_tied_weights_need_one_name_only(tmp_path):
    """What shares memory is written once and fills all of its names."""
    from modelpress_runner.export import state as weights

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
            self.b.weight = self.a.weight

    one, two = Tied(), Tied()
    weights.save(one, tmp_path / "tied.safetensors")
    tensors = weights.read(tmp_path / "tied.safetensors")
    assert len(tensors) == 3
    weights.load_strict(two, tensors, "the file")
    assert torch.equal(two.b.weight, one.a.weight)
    assert weights.state_digest(one) == weights.state_digest(two)


def test_the_digest_of_code_sees_python_files_only(tmp_path):
    """Contents and paths count; hidden folders, environments, caches and results do not."""
    (tmp_path / "a.py").write_text("x = 1")
    first = code.digest(str(tmp_path), "a")
    for folder in (".git", "venv", "__pycache__", "modelpress-runs", "own-env"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "b.py").write_text("")
    (tmp_path / "own-env" / "pyvenv.cfg").write_text("")
    (tmp_path / "data.csv").write_text("1")
    (tmp_path / "gone.py").symlink_to(tmp_path / "nowhere")
    assert code.digest(str(tmp_path), "a") == first
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.py").write_text("")
    second = code.digest(str(tmp_path), "a")
    assert second != first
    (tmp_path / "a.py").write_text("x = 2")
    assert code.digest(str(tmp_path), "a") not in (first, second)


def test_code_on_the_path_is_digested_by_its_module(module, tmp_path):
    """Without a code folder it is the file or package that holds the entrypoint; none, and it is empty."""
    name = module("")
    (tmp_path / "other.py").write_text("changed = 1")
    first = code.digest(None, name)
    assert len(first) == 64
    (tmp_path / "other.py").write_text("changed = 2")
    assert code.digest(None, name) == first
    assert code.digest(None, "there_is_no_such_module") == ""
    assert code.digest(None, "sys") == ""


def test_a_code_folder_that_is_not_there_is_said():
    """With its field."""
    with pytest.raises(InvalidModelError, match=r"spec\.code\.path: there is no folder /nowhere"):
        code.use("/nowhere")
