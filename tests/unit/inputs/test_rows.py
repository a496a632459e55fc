"""Reading the splits of the data: every format, and what may be wrong with a file."""

from __future__ import annotations

import json
import subprocess

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet
from torch.utils.data import DataLoader

from modelpress_runner.errors import InvalidSpecError
from modelpress_runner.inputs.rows import Rows, read
from modelpress_runner.inputs.rows import _image as image_of


def written(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_csv_is_text_by_its_header(tmp_path):
    """Quotes, commas and line breaks inside values, a byte order mark, empty lines; values stay text."""
    path = written(tmp_path, "a.csv", '\ufefftext,label\n"a, ""b""",1\n\n"two\nlines",x\n')
    rows = read(path, "csv", "train")
    assert rows.columns == ("text", "label")
    assert list(rows) == [{"text": 'a, "b"', "label": "1"}, {"text": "two\nlines", "label": "x"}]


def test_jsonl_and_parquet_keep_types(tmp_path):
    """Numbers, lists and nulls are what they were."""
    rows = [{"text": "a", "n": 1, "tags": ["x", "y"]}, {"text": "b", "n": None, "tags": []}]
    path = written(tmp_path, "a.jsonl", "".join(json.dumps(row) + "\n\n" for row in rows))
    assert list(read(path, "jsonl", "train")) == rows
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert list(read(tmp_path / "a.parquet", "parquet", "train")) == rows


def test_folders_of_images_are_labels(tmp_path):
    """Images of all depths come as RGB when they are asked for; hidden folders and other files do not count."""
    for name, mode in (("cat/b.png", "L"), ("cat/a.jpg", "RGB"), ("dog/deep/c.png", "RGBA"), (".hidden/d.png", "L")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, (3, 2)).save(tmp_path / name)
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    rows = read(tmp_path, "imageFolder", "train")
    assert rows.column("label") == ["cat", "cat", "dog"]
    assert [np.asarray(row["image"]).shape for row in rows] == [(2, 3, 3)] * 3
    (tmp_path / "dog" / "deep" / "c.png").write_bytes(b"no image")
    with pytest.raises(InvalidSpecError, match=r"^spec\.data\.train\.uri: deep/c\.png is no readable image"):
        rows[2]


@pytest.mark.parametrize(
    ("form", "content", "message"),
    [
        ("csv", "", "holds no rows"),
        ("csv", "text,label\n", "holds no rows"),
        ("csv", "a,a\n1,2\n", "the header of file names 'a' twice"),
        ("csv", "a,b\n1,2\n1,2,3\n", "line 3 of file has 3 values, its header 2"),
        ("csv", 'a\n"x\n', "is no csv"),
        ("csv", b"a\n\xff\n", "is not UTF-8"),
        ("jsonl", "\n", "holds no rows"),
        ("jsonl", '{"a": 1}\n{a}\n', "line 2 of file is no JSON"),
        ("jsonl", "[1]\n", "line 1 of file is no JSON object"),
        ("jsonl", '{"a": 1}\n{"a": 1, "b": 2}\n', "row 2 of file has a column 'b' and row 1 has none"),
        ("jsonl", '{"a": 1, "b": 2}\n{"a": 1}\n', "row 1 of file has a column 'b' and row 2 has none"),
        ("parquet", "text", "is no readable parquet file"),
        ("imageFolder", "text", "is no folder"),
    ],
)
def test_damaged_files_are_said_in_one_sentence(form, content, message, tmp_path):
    """The file, the line and what is wrong, at the field that names it."""
    with pytest.raises(InvalidSpecError) as caught:
        read(written(tmp_path, "file", content), form, "validation")
    assert str(caught.value).startswith("spec.data.validation.uri: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_folders_without_images(tmp_path):
    """No folder of a class, and one without an image."""
    with pytest.raises(InvalidSpecError, match="holds no folders"):
        read(tmp_path, "imageFolder", "train")
    (tmp_path / "cat").mkdir()
    with pytest.raises(InvalidSpecError, match="holds no rows"):
        read(tmp_path, "imageFolder", "train")


def test_a_data_loader_takes_rows():
    """Rows are a map-style data set; slices are rows again; an unknown column names the near one."""
    rows = Rows([{"x": float(number)} for number in range(5)], ["x"], "train")
    assert [batch["x"].tolist() for batch in DataLoader(rows, batch_size=2)] == [[0, 1], [2, 3], [4]]
    assert list(rows[1:3]) == [{"x": 1.0}, {"x": 2.0}]
    with pytest.raises(InvalidSpecError, match=r"^spec\.data\.train\.uri: data\.train has no column 'y'; it has x"):
        rows.column("y")


def test_a_row_in_hand_may_be_changed():
    """Rows are given out as copies."""
    rows = Rows([{"x": 1}], ["x"])
    rows[0]["x"] = 2
    next(iter(rows))["x"] = 3
    assert rows[0] == {"x": 1}


@given(
    st.lists(
        st.fixed_dictionaries(
            {"text": st.text(min_size=1), "n": st.integers() | st.floats(allow_nan=False, allow_infinity=False)}
        ),
        min_size=1,
        max_size=5,
    )
)
def test_what_json_writes_is_what_is_read(tmp_path_factory, rows):
    """Any text survives a way through jsonl, whatever line breaks of Unicode are in it."""
    path = tmp_path_factory.mktemp("rows") / "a.jsonl"
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8", newline="\n")
    assert list(read(path, "jsonl", "train")) == rows


@pytest.mark.parametrize("form", ["EPS", "PDF", "ICO"])
def test_formats_go_by_a_list(tmp_path, monkeypatch, form):
    """Whatever the name says: no format is read that is not in the list, and no other program is started for one."""

    def refuse(*_, **__):
        raise AssertionError("a program was started")

    (tmp_path / "cat").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "cat" / "x.png", form)
    monkeypatch.setattr(subprocess, "check_call", refuse)
    monkeypatch.setattr(subprocess, "Popen", refuse)
    with pytest.raises(InvalidSpecError, match=r"cat/x\.png is no readable image"):
        image_of(tmp_path / "cat" / "x.png", "spec.data.train.uri")


def test_pixels_are_bounded(tmp_path):
    """A few KiB that unfold into gigabytes are refused by the size that they announce."""
    Image.new("1", (8192, 8192)).save(tmp_path / "x.png")
    with pytest.raises(InvalidSpecError, match="has 8192 x 8192 pixels, more than 33554432"):
        image_of(tmp_path / "x.png", "spec.data.train.uri")


@pytest.mark.parametrize(("value", "count"), [(1, 2_000_000), ("x" * 100_000, 5_000), ([1] * 1000, 2_000)])
def test_equal_rows_are_bounded_by_the_file(value, count, tmp_path):
    """What repeats itself takes a few KiB in the file, and gigabytes as rows."""
    column = pa.repeat(pa.scalar(value), count)
    parquet.write_table(pa.table({"a": column}), tmp_path / "x.parquet", compression="zstd")
    assert (tmp_path / "x.parquet").stat().st_size < 2**18
    with pytest.raises(InvalidSpecError, match="more than is read of one so small; write it without equal rows"):
        read(tmp_path / "x.parquet", "parquet", "train")


def test_a_deep_line_is_no_json(tmp_path):
    """Depth ends in a sentence with the line."""
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n{"a": ' + "[" * 50_000 + "]" * 50_000 + "}\n")
    with pytest.raises(InvalidSpecError, match=r"line 2 of x.jsonl is no JSON \(it is nested deeper than 64 levels\)"):
        read(tmp_path / "x.jsonl", "jsonl", "train")
