"""Which modules a configList selects, and what it says when it selects none."""

from __future__ import annotations

import pytest
from torch import nn

from modelpress.api.v1alpha1 import Prune
from modelpress_runner.errors import InvalidSpecError
from modelpress_runner.methods.prune.selection import Choice, select
from modelpress_runner.methods.selectors import class_names

PATH = "spec.stages[1].prune"


class Block(nn.Module):
    """Two convolutions and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)
        self.conv2 = nn.Conv2d(3, 3, 1)


class MyLinear(nn.Linear):
    """A user's own layer."""


class Net(nn.Module):
    """conv, blocks.0, blocks.1, words, fc1, fc2."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 1)
        self.blocks = nn.Sequential(Block(), Block())
        self.words = nn.Embedding(4, 4)
        self.fc1 = nn.Linear(2, 2)
        self.fc2 = MyLinear(2, 2)


CONVS = ["conv", "blocks.0.conv1", "blocks.0.conv2", "blocks.1.conv1", "blocks.1.conv2"]


def chosen(*entries: dict[str, object], **stage: object) -> dict[str, Choice]:
    """The choices of a stage with these entries, 0.5 by default."""
    return select(Net(), Prune.model_validate({"sparsity": 0.5, "configList": list(entries), **stage}), PATH).choices


@pytest.mark.parametrize(
    ("entry", "names"),
    [
        ({}, [*CONVS, "fc1", "fc2"]),
        ({"opTypes": ["default"]}, [*CONVS, "fc1", "fc2"]),
        ({"opTypes": ["Conv2d"]}, CONVS),
        ({"opTypes": ["Linear"]}, ["fc1", "fc2"]),
        ({"opTypes": ["MyLinear"]}, ["fc2"]),
        ({"opNames": ["fc1", "conv"]}, ["conv", "fc1"]),
        ({"opNamesRe": [r"blocks\.0\..*"]}, ["blocks.0.conv1", "blocks.0.conv2"]),
        ({"opNames": ["fc1"], "opNamesRe": [r".*conv2"]}, ["blocks.0.conv2", "blocks.1.conv2", "fc1"]),
        ({"opNamesRe": [r"blocks.*|fc1"], "opTypes": ["Conv2d"]}, CONVS[1:]),
        ({"algorithm": "level", "opTypes": ["default", "Embedding"]}, [*CONVS, "words", "fc1", "fc2"]),
    ],
)
def test_names_and_types_intersect(entry: dict[str, object], names: list[str]) -> None:
    """(opNames or opNamesRe, else all) that are of opTypes, else of the method's own; in the model's order."""
    assert list(chosen(entry)) == names


def test_types_are_known_by_their_bases() -> None:
    """A user's subclass of Linear is a Linear."""
    assert class_names(MyLinear(1, 1)) == ["MyLinear", "Linear"]


def test_later_entries_override_field_by_field() -> None:
    """What an entry leaves out stays as earlier entries, then the stage, have it."""
    got = chosen(
        {"opTypes": ["Conv2d"], "sparsity": 0.3, "scope": "global"},
        {"opNames": ["conv"], "sparsity": 0.7},
        {"opNames": ["fc1"], "algorithm": "l2", "schedule": {"type": "agp", "rounds": 2}},
        schedule={"type": "linear", "rounds": 4},
    )
    rows = {
        name: (c.algorithm, c.sparsity, c.scope, c.schedule.type, c.schedule.rounds, c.entry, c.named)
        for name, c in got.items()
    }
    assert rows == {
        "conv": ("l1", 0.7, "global", "linear", 4, 1, True),
        **dict.fromkeys(CONVS[1:], ("l1", 0.3, "global", "linear", 4, 0, False)),
        "fc1": ("l2", 0.5, "local", "agp", 2, 2, True),
    }


def test_exclude_wins_over_later_entries() -> None:
    """An excluded module stays out even if a later entry names it."""
    selection = select(
        Net(),
        Prune.model_validate(
            {
                "sparsity": 0.5,
                "configList": [
                    {"opTypes": ["default"]},
                    {"opNames": ["fc1"], "exclude": True},
                    {"opNamesRe": [r"blocks\.1\..*"], "exclude": True},
                    {"opNames": ["fc1"], "sparsity": 0.9},
                ],
            }
        ),
        PATH,
    )
    assert list(selection.choices) == ["conv", "blocks.0.conv1", "blocks.0.conv2", "fc2"]
    assert selection.excluded == {"fc1", "blocks.1.conv1", "blocks.1.norm", "blocks.1.conv2"}


@pytest.mark.parametrize(
    ("entries", "path", "message"),
    [
        ([{"opNames": ["fc3"]}], "configList[0].opNames", "the model has no module 'fc3'; near: fc"),
        ([{}, {"opNames": ["conv", "blok.0.conv1"]}], "configList[1].opNames", "near: blocks.0.conv1"),
        ([{"opNamesRe": ["fc"]}], "configList[0].opNamesRe", "'fc' matches no module; it must match a whole name"),
        ([{"opNamesRe": ["("]}], "configList[0].opNamesRe", "'(' is no regular expression: "),
        ([{"opTypes": ["Conv1d"]}], "configList[0].opTypes", "no module is of type 'Conv1d'; near: Conv2d"),
        (
            [{"opNames": ["fc1"], "opTypes": ["Conv2d"]}],
            "configList[0].opTypes",
            "no module that the entry names is of type 'Conv2d'",
        ),
        ([{"opNames": ["words"]}], "configList[0].opNames", "'words' is a Embedding; l1 prunes Conv1d"),
        (
            [{"opNames": ["blocks"]}],
            "configList[0].opNames",
            "'blocks' is a Sequential; l1 prunes Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, "
            "ConvTranspose3d, Linear, Conv1D, MultiheadAttention, Embedding, LSTM, GRU, RNN, LSTMCell, GRUCell, "
            "RNNCell; "
            "opNamesRe: ['blocks\\..*'] takes what is inside",
        ),
        ([{}, {"opNames": ["blocks"], "exclude": True}], "configList[1].opNames", "holds no parameters of its own"),
        ([{"opTypes": ["BatchNorm2d"]}], "configList[0].opTypes", "'blocks.0.norm' is a BatchNorm2d; l1 prunes"),
        ([{"opNames": ["fc1"]}, {"opTypes": ["Linear"], "exclude": True}], "configList", "is excluded again"),
        (
            [{"sparsity": 0.2, "schedule": {"type": "agp", "rounds": 1, "initialSparsity": 0.4}}],
            "configList[0].schedule.initialSparsity",
            "initialSparsity 0.4 is above the sparsity 0.2 of 'conv'",
        ),
    ],
)
def test_what_selects_nothing_is_refused_with_its_path(
    entries: list[dict[str, object]], path: str, message: str
) -> None:
    """The message names the field, what is wrong, and what is near."""
    with pytest.raises(InvalidSpecError) as raised:
        chosen(*entries)
    assert raised.value.path == f"{PATH}.{path}"
    assert message in str(raised.value)


def test_a_module_without_any_sparsity_is_refused() -> None:
    """Neither an entry nor the stage gives one; a later entry for the same module may."""
    entries = [{"opTypes": ["Linear"]}, {"opNames": ["fc1"], "sparsity": 0.5}]
    with pytest.raises(InvalidSpecError, match="'fc2' is selected without a sparsity") as raised:
        chosen(*entries, sparsity=None)
    assert raised.value.path == f"{PATH}.configList[0].sparsity"
    assert list(chosen(*entries, {"opNames": ["fc2"], "sparsity": 0.1}, sparsity=None)) == ["fc1", "fc2"]


def test_a_model_that_is_one_layer_is_selected_by_its_type() -> None:
    """The root module has the empty name."""
    prune = Prune.model_validate({"sparsity": 0.5, "configList": [{"opTypes": ["Linear"]}]})
    assert list(select(nn.Linear(2, 2), prune, PATH).choices) == [""]
