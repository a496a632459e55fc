"""Problems and their words."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import ValidationError

from modelpress.api import crd
from modelpress.api.errors import Problem, SpecError, join, near, problems_of
from modelpress.api.messages import PATTERNS, describe, fix_pattern, in_words
from modelpress.api.v1alpha1 import (
    PYTHON_SPELLING,
    ApiModel,
    CompressionJob,
    CompressionSweep,
    Prune,
    Stage,
    algorithms,
)


def told(model: type[ApiModel], data: Any, **options: Any) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(data, context=options.pop("context", None))
    return [str(problem) for problem in problems_of(caught.value, model, **options)]


def test_a_problem_reads_as_one_sentence() -> None:
    """File, line, path, fault and remedy, each left out where unknown."""
    problem = Problem("spec.seed", "must be at least 0", "give a larger value")
    assert str(problem) == "spec.seed: must be at least 0; give a larger value"
    assert str(problem.at("a.yaml", 3)) == "a.yaml:3: spec.seed: must be at least 0; give a larger value"
    assert str(Problem("", "is empty", "write it", "a.yaml")) == "a.yaml: is empty; write it"
    assert problem.under("items[0]").path == "items[0].spec.seed"
    assert join("stages", "[0].prune") == "stages[0].prune"


def test_an_error_is_all_its_problems() -> None:
    """str() of the error has one line for each problem."""
    error = SpecError([Problem("a", "is wrong", "mend it"), Problem("b", "is wrong", "mend it")])
    assert str(error) == "a: is wrong; mend it\nb: is wrong; mend it"


def test_root_comes_before_the_path() -> None:
    """Callers that validate a part say where it lies."""
    assert told(Prune, {"algorithm": "l9", "configList": [{}]}, root="stages[2].prune") == [
        f"stages[2].prune.algorithm: must be {in_words(algorithms.names('prune'))}, found the text 'l9'; "
        "write one of them"
    ]


def test_paths_are_in_yaml_spelling_for_python_callers_too() -> None:
    """A caller who writes snake_case reads the documented names."""
    data = {"prune": {"config_list": [{"op_types": ["Conv2d"], "sparse_ratio": 1.5}]}}
    assert told(Stage, data, context=PYTHON_SPELLING, root="stages[0]") == [
        "stages[0].prune.configList[0].sparsity: must be below 1, found 1.5; give a smaller value"
    ]


def test_a_misspelt_required_key_is_one_problem() -> None:
    """The key that is missing because of it is not told again; one that is missing besides is."""
    assert told(Prune, {"configlist": [{}]}) == ["configlist: unknown key 'configlist'; did you mean configList?"]
    others = len(Prune.model_fields) - 12
    assert told(Prune, {"zebra": 1}) == [
        "configList: is required; add configList",
        "zebra: unknown key 'zebra'; remove it; known here: algorithm, configList, sparsity, sparsityThreshold, "
        f"exact, minSparsity, maxSparsity, pattern, roundTo, scope, schedule, scores and {others} more",
    ]


@pytest.mark.parametrize(
    ("word", "known", "found"),
    [
        ("config_list", ["configList"], "configList"),
        ("MAXTRIALS", ["maxTrials", "max"], "maxTrials"),
        ("spasity", ["scope", "sparsity"], "sparsity"),
        ("zebra", ["scope", "sparsity"], None),
        ("x", [], None),
    ],
)
def test_near(word: str, known: list[str], found: str | None) -> None:
    """Case and separators do not matter, a slip of the finger is found, a far word is not."""
    assert near(word, known) == found


def test_every_pattern_of_the_types_has_words_and_a_remedy_that_matches() -> None:
    """No regular expression reaches a user, and the suggested name is itself accepted."""
    patterns: set[str] = set()

    def walk(schema: Any) -> None:
        if isinstance(schema, dict):
            patterns.update(schema.get("patternProperties", {}))
            if isinstance(schema.get("pattern"), str):
                patterns.add(schema["pattern"])
            for value in schema.values():
                walk(value)
        elif isinstance(schema, list):
            for value in schema:
                walk(value)

    for model in (CompressionJob, CompressionSweep):
        walk(model.model_json_schema())
    assert len(patterns) > 5
    assert patterns <= PATTERNS.keys()
    for pattern in patterns:
        for value in ("Digits_L1", "1st try", "a.b", "stages[0].prune", "ä", "", "-", "/"):
            rule, fix = fix_pattern(pattern, value)
            assert rule
            if example := re.search(r"(?:for example to|as in) (\S+)$", fix):
                assert re.fullmatch(pattern, example[1]), (pattern, value, fix)


def test_patterns_mean_the_same_in_both_engines() -> None:
    """Only constructs that Rust's regex, Go's RE2 and Python share: no lookaround, no class that is Unicode in one."""
    for text in [*PATTERNS, *crd.render().values()]:
        assert not re.search(r"\(\?[=!<]", text)
        assert not re.search(r"pattern: .*\\[wdsb]", text)
    assert not any(re.search(r"\\[wdsbWDSB]", pattern) for pattern in PATTERNS)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "nothing"),
        (True, "true"),
        (2.0, "2"),
        (0.25, "0.25"),
        ("a", "the text 'a'"),
        ("b" * 80, "the text '" + "b" * 59 + "…'"),
        ([], "an empty list"),
        ({"a": 1}, "a mapping"),
    ],
)
def test_describe(value: Any, text: str) -> None:
    """Values are called by names of YAML, not of Python."""
    assert describe(value) == text


def test_in_words() -> None:
    """Lists read as in a sentence."""
    assert [in_words("a"), in_words("ab"), in_words("abc")] == ["a", "a or b", "a, b or c"]
