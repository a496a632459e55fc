"""Whatever stands in a file: a valid recipe comes out, or a SpecError; never another exception."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelpress.api.errors import SpecError
from modelpress.api.load import load_dict
from modelpress.convert import TOOLS, convert_files

FOLDER = Path(__file__).parents[2] / "corpus/convert"
_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 12),
    st.floats(-1, 2),
    st.sampled_from(["", "l1", "4x1", "2:4", "qat", "Conv2d", "max", "choice", "(", "True", "1h"]),
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=2),
        st.dictionaries(st.sampled_from(["_type", "_value", "range", "type", "weight", "sparsity"]), inner, max_size=2),
    ),
    max_leaves=4,
)


def places(data: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Of all values below."""
    found = [at] if at else []
    pairs = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in pairs:
        found += places(value, (*at, key))
    return found


def replaced(data: Any, at: tuple[Any, ...], value: Any) -> Any:
    """The data with another value at a place."""
    if not at:
        return value
    copy = dict(data) if isinstance(data, dict) else list(data)
    copy[at[0]] = replaced(copy[at[0]], at[1:], value)
    return copy


@cache
def corpus() -> list[tuple[str, Any]]:
    """The files that are data, with their tools."""
    import yaml

    from modelpress.convert.reading import read

    found = []
    for file in sorted(FOLDER.iterdir()):
        if file.suffix == ".json":
            found.append(("auptimizer", read(str(file)).top.data))
        elif file.suffix == ".yaml" and not file.name.endswith(".expected.yaml"):
            found.append(("nni" if "nni" in file.name else "neural-compressor", read(str(file)).top.data))
    space = {"_name": "l1", "config_list::Conv2d::::sparsity": {"_type": "uniform", "_value": [0.1, 0.5]}}
    found.append(("nni", {"algorithm_name": {"_type": "choice", "_value": [space]}}))
    pruners = yaml.safe_load("[{target_sparsity: 0.5, pattern: '2:4', op_names: [a.*], start_step: 1, end_step: 9}]")
    found.append(("neural-compressor", pruners))
    found.append(("nni", [{"sparsity": 0.5, "op_types": ["Conv2d"], "op_names_re": ["a"], "granularity": [4, 1]}]))
    return found


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_values_of_any_kind(data: st.DataObject, tmp_path: Path) -> None:
    """One or two values of a good file are replaced."""
    tool, config = data.draw(st.sampled_from(corpus()))
    for _ in range(data.draw(st.integers(1, 2))):
        found = places(config)
        if found:
            config = replaced(config, data.draw(st.sampled_from(found)), data.draw(_VALUES))
    file = tmp_path / "any.json"
    file.write_text(json.dumps(config))
    try:
        made = convert_files([str(file)], tool=tool)
    except SpecError:
        return
    for document in made.documents:
        load_dict(document)
    assert made.yaml()


@pytest.mark.parametrize("tool", TOOLS)
@given(text=st.text(alphabet="{}[]:,'\"ab1.#\\\n True", max_size=40))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_texts_of_any_kind(tool: str, text: str, tmp_path: Path) -> None:
    """As JSON, as YAML, as Python."""
    for suffix in ("json", "yaml", "py"):
        file = tmp_path / f"any.{suffix}"
        file.write_text(text)
        with pytest.raises(SpecError):
            convert_files([str(file)], tool=tool)
