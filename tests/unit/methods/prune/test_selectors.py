"""Every selector of an entry has a part in what is selected, or is named in an error."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from modelpress.api.v1alpha1 import Prune
from modelpress_runner.errors import InvalidSpecError
from modelpress_runner.methods.prune.selection import select


def _net() -> nn.Sequential:
    inner = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())
    return nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), inner, nn.Flatten(), nn.Linear(4, 2))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"opTypes": ["Conv", "Linear"]}, r"opTypes: no module is of type 'Conv'; near: Conv2d"),
        ({"opTypes": ["Linear", "Conv2D"]}, r"opTypes: no module is of type 'Conv2D'; near: Conv2d"),
        ({"opTypes": ["Linear", "Conv1d"]}, r"opTypes: no module is of type 'Conv1d'"),
        ({"opNames": ["0", "1"]}, r"opNames: selects nothing: '1' is a ReLU; l1 prunes"),
        ({"opNames": ["0", "2"]}, r"opNames: selects nothing: '2' is a Sequential; .*\['2\\\..\*'\] takes what is ins"),
        ({"opNames": ["0", "4"], "opTypes": ["Conv2d"]}, r"opNames: .*'4' is a Linear; the entry takes only Conv2d"),
        ({"opNamesRe": ["0", "[13]"]}, r"opNamesRe: '\[13\]' selects nothing: '1' is a ReLU, ?"),
        ({"opNames": ["2.*"]}, r"no module '2\.\*'; it looks like an expression: opNamesRe takes those"),
        ({"opNames": ["0", "none"]}, r"no module 'none'"),
    ],
)
def test_a_selector_without_a_part_is_an_error(entry: dict[str, Any], message: str) -> None:
    """Although others of the same entry select something."""
    message = message.replace(", ?", "")
    with pytest.raises(InvalidSpecError, match=message):
        select(_net(), Prune.model_validate({"configList": [{**entry, "sparsity": 0.5}]}), "p")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"opNames": ["4", "2"]}, r"'2' is a Sequential; it holds no parameters of its own; .*takes what is inside"),
        ({"opTypes": ["Linear", "BatchNorm2d"]}, r"no module is of type 'BatchNorm2d'"),
        ({"opNamesRe": ["4", "[13]"]}, r"'\[13\]' selects nothing"),
    ],
)
def test_nothing_is_spared_that_was_not_found(entry: dict[str, Any], message: str) -> None:
    """A slip in an excluding entry would prune what was to be spared."""
    entries = [{"opTypes": ["default"], "sparsity": 0.5}, {**entry, "exclude": True}]
    with pytest.raises(InvalidSpecError, match=rf"configList\[1\]\..*{message}"):
        select(_net(), Prune.model_validate({"configList": entries}), "p")


def test_selectors_that_all_have_a_part() -> None:
    """Names and types meet; the order is the model's."""
    entry = {"opNames": ["4", "0"], "opNamesRe": [r"2\..*"], "opTypes": ["default"], "sparsity": 0.5}
    assert list(select(_net(), Prune.model_validate({"configList": [entry]}), "p").choices) == ["0", "2.0", "4"]
