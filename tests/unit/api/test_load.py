"""Loading files and mappings: what the YAML corpus cannot show."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelpress.api.errors import SpecError
from modelpress.api.load import MAX_FILE_BYTES, load_dict, load_file
from modelpress.api.v1alpha1 import CompressionJob, CompressionSweep
from modelpress.api.yaml_loader import parse

JOB = """apiVersion: modelpress.dev/v1alpha1
kind: CompressionJob
metadata: {name: one}
spec:
  model: {entrypoint: "digits:create"}
  stages:
  - finetune: {epochs: 1}
"""


def job(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "modelpress.dev/v1alpha1",
        "kind": "CompressionJob",
        "metadata": {"name": "one"},
        "spec": {"model": {"entrypoint": "digits:create"}, "stages": [{"finetune": {"epochs": 1}}], **spec},
    }


def problem_of(file: Path) -> str:
    with pytest.raises(SpecError) as caught:
        load_file(file)
    assert len(caught.value.problems) == 1
    return str(caught.value)


def test_documents_come_with_their_lines(tmp_path: Path) -> None:
    """A file may hold several objects; each knows the line it begins in, and empty documents are skipped."""
    file = tmp_path / "two.yaml"
    file.write_text("# first\n" + JOB + "---\n# nothing\n---\n" + JOB.replace("one", "two"))
    loaded = load_file(file)
    assert [(item.obj.metadata.name, item.line) for item in loaded] == [("one", 2), ("two", 12)]
    assert all(isinstance(item.obj, CompressionJob) and item.file == file for item in loaded)


def test_every_problem_of_a_file_is_told_at_once(tmp_path: Path) -> None:
    """Problems of several documents come together, sorted by line."""
    file = tmp_path / "bad.yaml"
    file.write_text(
        JOB.replace("epochs: 1", "epochs: 0") + "---\n" + JOB.replace("model:", "modle:") + "---\nkind: [\n"
    )
    with pytest.raises(SpecError) as caught:
        load_file(file)
    told = [(problem.line, problem.path) for problem in caught.value.problems]
    assert told == [(7, "spec.stages[0].finetune.epochs"), (13, "spec.modle"), (18, "")]
    assert str(caught.value).splitlines()[0] == (
        f"{file}:7: spec.stages[0].finetune.epochs: must be at least 1, found 0; give a larger value"
    )


def test_lines_point_at_the_key(tmp_path: Path) -> None:
    """A problem deep in a block has the line of its own key, a missing key that of its parent."""
    file = tmp_path / "bad.yaml"
    prune = "  - prune:\n      algorithm: l1\n"
    file.write_text(JOB + prune + "      configList:\n      - sparsity: 0.5\n      - sparsity: 2\n")
    assert problem_of(file).startswith(f"{file}:12: spec.stages[1].prune.configList[1].sparsity: must be below 1")
    file.write_text(JOB + prune)
    assert problem_of(file).startswith(f"{file}:8: spec.stages[1].prune.configList: is required")


def test_unreadable_files(tmp_path: Path) -> None:
    """Each way in which a file cannot be read has its own sentence."""
    assert "there is no such file; check the path" in problem_of(tmp_path / "absent.yaml")
    assert "is a folder; name a YAML file in it" in problem_of(tmp_path)
    assert "cannot be read: " in problem_of(tmp_path / "a\0b")
    empty = tmp_path / "empty.yaml"
    empty.write_text("")
    assert "holds no object" in problem_of(empty)
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(JOB.encode() + "# größer\n".encode("latin-1"))
    assert problem_of(latin) == f"{latin}:8: is not UTF-8: byte 0xf6 in line 8; save it as UTF-8 text"
    large = tmp_path / "large.yaml"
    large.write_text("#" * (MAX_FILE_BYTES + 1))
    assert f"is larger than {MAX_FILE_BYTES} bytes" in problem_of(large)
    control = tmp_path / "control.yaml"
    control.write_bytes(b"a: 1\nb: \x07\n")
    assert f"{control}:2: not valid YAML: the character U+0007 may not stand in a text file" in problem_of(control)


def test_byte_order_mark_and_windows_line_ends_are_fine(tmp_path: Path) -> None:
    """Files of Windows editors load."""
    file = tmp_path / "windows.yaml"
    file.write_bytes(b"\xef\xbb\xbf" + JOB.replace("\n", "\r\n").encode())
    assert load_file(file)[0].obj.metadata.name == "one"


def test_status_in_a_file_is_ignored(tmp_path: Path) -> None:
    """A file says what is wished; a status copied from a cluster has no effect, as with the API server."""
    file = tmp_path / "copied.yaml"
    file.write_text(JOB + "status: {phase: Succeeded, nonsense: 1}\n")
    loaded = load_file(file)[0].obj
    assert isinstance(loaded, CompressionJob)
    assert loaded.status.phase is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 100000),
        ("5.0", 5),
        ("-0.0", 0),
        (".5", 0.5),
        ("1_000", 1000),
        ("010", 8),
        ("0o10", 8),
        ("0x1F", 31),
        ("-0b11", -3),
        ("08", 8),
        ("+7", 7),
        ("1:30", "1:30"),
        ("2026-01-31", "2026-01-31"),
        ("y", True),
        ("Off", False),
        ("yES", "yES"),
        ("~", None),
        ("'on'", "on"),
        ("1.2.3", "1.2.3"),
        ("-", None),
        ("=", "="),
        ("_1", "_1"),
        ("9007199254740993.0", 9007199254740992),
        ("1e300", 1e300),
    ],
)
def test_plain_scalars_are_read_as_in_kubernetes(text: str, value: Any) -> None:
    """Numbers, words and dates get the value and type that they have after kubectl and JSON."""
    documents, problems = parse(f"key: {text}\n")
    if text == "-":  # an empty list entry where a value should be
        assert problems
        return
    assert not problems
    assert documents[0].data == {"key": value}
    assert type(documents[0].data["key"]) is type(value)


HOLD, WHOLE, FINITE = "not a number that JSON's readers can hold", "not an integer", "no counterpart in JSON"


@pytest.mark.parametrize("digits", [5_000, 900_000])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0b1{}", HOLD),
        ("-0b1{}", HOLD),
        ("0x1{}", HOLD),
        ("0o1{}", HOLD),
        ("01{}", HOLD),
        ("0b1_{}", HOLD),
        ("!!int '0b1{}'", HOLD),
        ("1{}", WHOLE),
        ("+1_{}", WHOLE),
        ("!!int 1:{}", WHOLE),
        ("1{}.5", FINITE),
        ("1e1{}", FINITE),
        ("-1e+1{}", FINITE),
        ("!!float 1{}", FINITE),
    ],
)
def test_numbers_of_many_digits_end_with_their_line(text: str, message: str, digits: int) -> None:
    """Whatever the base: what a float cannot hold is refused, in no more time than the text takes to be read."""
    documents, problems = parse("first: 1\nkey: " + text.format("0" * digits) + "\n")
    assert not documents
    (problem,) = problems
    assert problem.line == 2
    assert message in problem.message
    assert len(str(problem)) < 300


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-9{}", 0), ("0.1{}", 0.1), ("0b{}1", 1), ("1:{}", str), ("0x1.{}", str), ("0b_{}2", str), ("9:9_{}", str)],
)
def test_long_plain_scalars_that_are_no_large_numbers_are_read(text: str, value: Any) -> None:
    """Small numbers with many digits are numbers; sexagesimal ones and what only looks like a number are texts."""
    written = text.format("0" * 300_000)
    documents, problems = parse(f"key: {written}\n")
    assert not problems
    assert documents[0].data == {"key": written if value is str else value}


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_text_gives_documents_or_problems(text: str) -> None:
    """No text makes the reader fail otherwise than with problems that say what to do."""
    _, problems = parse(text)
    for problem in problems:
        assert problem.message
        assert problem.fix


TOKENS = [
    "!!int ",
    "!!float ",
    "!!bool ",
    "!!null ",
    "!!str ",
    "!!seq ",
    "!!map ",
    "!!set ",
    "!own ",
    "<<: ",
    "? ",
    ": ",
]
TOKENS += [
    "a: ",
    "b: ",
    "- ",
    "&x ",
    "*x ",
    "[",
    "]",
    "{",
    "}",
    ", ",
    "\n",
    "\n  ",
    "---\n",
    "1",
    "-",
    ".inf",
    "on",
    "'",
    '"',
]


@settings(deadline=None)
@given(st.lists(st.sampled_from(TOKENS), max_size=14).map("".join))
def test_any_punctuation_gives_documents_or_problems(text: str) -> None:
    """The same for texts of YAML's own signs, which reach deeper into the reader."""
    _, problems = parse(text)
    for problem in problems:
        assert problem.fix


def test_load_dict_takes_python_spelling_only_when_asked() -> None:
    """snake_case and older tools' names work in Python, and are refused with the right name elsewhere."""
    prune = {"prune": {"config_list": [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}], "speedup": False}}
    data = job(stages=[prune])
    data["api_version"] = data.pop("apiVersion")
    loaded = load_dict(data, python_spelling=True)
    assert isinstance(loaded, CompressionJob)
    assert loaded.to_dict()["spec"]["stages"][0]["prune"]["configList"] == [
        {"opTypes": ["Conv2d"], "exclude": False, "sparsity": 0.5}
    ]
    with pytest.raises(SpecError, match="apiVersion: is required; write apiVersion instead of api_version"):
        load_dict(data)
    data["apiVersion"] = data.pop("api_version")
    with pytest.raises(SpecError) as caught:
        load_dict(data)
    assert str(caught.value).splitlines() == [
        "spec.stages[0].prune.config_list: unknown key 'config_list': keys are written in camelCase; write configList",
    ]


def test_two_spellings_of_one_key_are_an_error() -> None:
    """Nobody can say which of two values was meant."""
    data = job(stages=[{"prune": {"config_list": [{"sparsity": 0.5, "sparse_ratio": 0.6}]}}])
    with pytest.raises(SpecError) as caught:
        load_dict(data, python_spelling=True)
    assert str(caught.value) == (
        "spec.stages[0].prune.configList[0]: 'sparsity' and 'sparse_ratio' are two spellings of one key; "
        "give one of them"
    )
    with pytest.raises(SpecError, match="apiVersion: 'apiVersion' and 'api_version' are two spellings"):
        load_dict({**job(), "api_version": "modelpress.dev/v1alpha1"}, python_spelling=True)


def test_load_dict_takes_tuples_and_whole_floats() -> None:
    """What JSON would make of Python data is accepted as such."""
    loaded = load_dict(job(stages=({"finetune": {"epochs": 2.0}},)))
    assert isinstance(loaded, CompressionJob)
    assert loaded.spec.stages[0].finetune is not None
    assert loaded.spec.stages[0].finetune.epochs == 2


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "a specification must be a mapping, found an empty list"),
        (job(seed=math.nan), "spec.seed: must be a finite number, found nan"),
        (job(model={"entrypoint": "a:b", "args": {"f": print}}), "spec.model.args.f: must be plain data, found a"),
        (job(model={"entrypoint": "a:b", "args": {1: 2}}), "spec.model.args: a key must be text, found 1"),
        (job(benchmark={"iterations": "1e2"}), "YAML 1.1 reads 1e2 as text: write 100"),
    ],
)
def test_load_dict_refuses_what_json_cannot_carry(data: Any, message: str) -> None:
    """Objects of Python, odd keys and numbers without a value are named with their path."""
    with pytest.raises(SpecError) as caught:
        load_dict(data)
    assert message in str(caught.value)


def test_load_dict_survives_a_dict_that_contains_itself() -> None:
    """Endless data is refused, not followed."""
    args: dict[str, Any] = {}
    args["again"] = args
    with pytest.raises(SpecError, match="containing itself"):
        load_dict(job(model={"entrypoint": "a:b", "args": args}))


def test_load_dict_gives_sweeps_too() -> None:
    """The kind decides the type."""
    data = {
        "apiVersion": "modelpress.dev/v1alpha1",
        "kind": "CompressionSweep",
        "metadata": {"name": "s"},
        "spec": {
            "template": {"spec": job()["spec"]},
            "searchSpace": [{"name": "seed", "paths": ["/seed"], "int": {"min": 0, "max": 3}}],
            "objectives": [{"metric": "default"}],
            "maxTrials": 4,
        },
    }
    assert isinstance(load_dict(data), CompressionSweep)


def test_of_many_problems_a_hundred_are_explained(tmp_path: Path) -> None:
    """A file of nothing but mistakes gets a report that can be read, and the number of the others."""
    file = tmp_path / "many.yaml"
    file.write_text(JOB + "  stagez: 1\n" + "".join(f"  key{index}: 1\n" for index in range(1_000)))
    with pytest.raises(SpecError) as caught:
        load_file(file)
    assert len(caught.value.problems) == 101
    assert str(caught.value.problems[-1]).endswith(": 901 more problems; correct these first")
