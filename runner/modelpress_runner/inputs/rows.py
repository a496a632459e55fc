"""Rows of a split of the data: csv, jsonl and parquet files, and folders of images."""

from __future__ import annotations

import csv
import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

from modelpress.api.v1alpha1 import DataFormat
from modelpress.plainjson import json_of
from modelpress_runner.errors import InvalidSpecError, first_line

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".tif", ".tiff"})
# Formats whose readers are Pillow's own; EPS, for one, would start another program.
_IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "PPM", "TIFF")
MAX_PIXELS = 32 * 2**20


class Rows(Sequence[dict[str, Any]]):
    """Rows as dicts by column; len(), indexing, slices and iteration work, so that a DataLoader takes it as it is.

    Values of csv are text. Those of an imageFolder are {"image": an RGB image of Pillow, read when the row is,
    "label": the name of its folder}.

    Args:
        rows: each row's values.
        columns: their names, in order.
        name: of the split, for messages: "validation".
    """

    def __init__(self, rows: Sequence[dict[str, Any]], columns: Sequence[str], name: str = "data") -> None:
        self._rows, self.columns, self.name = rows, tuple(columns), name

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> Rows: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | Rows:
        if isinstance(index, slice):
            return Rows(self._rows[index], self.columns, self.name)
        return self._opened(self._rows[index])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(self._opened, self._rows)

    def column(self, name: str) -> list[Any]:
        """The values of one column, of all rows; images are not opened for it.

        Raises:
            InvalidSpecError: there is no such column.
        """
        self.need(name)
        return [row[name] for row in self._rows]

    def need(self, name: str, path: str | None = None) -> None:
        """Raises InvalidSpecError if there is no column `name`, which the field at `path` asks for."""
        if name in self.columns:
            return
        near = difflib.get_close_matches(name, self.columns, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(self.columns)}"
        raise InvalidSpecError(f"{self.where} has no column {name!r}; {hint}", path or f"spec.data.{self.name}.uri")

    @property
    def where(self) -> str:
        """What messages call it."""
        return f"data.{self.name}"

    def _opened(self, row: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(row.get("image"), Path):
            return dict(row)
        return {**row, "image": _image(row["image"], f"spec.data.{self.name}.uri")}


def read(path: Path, form: DataFormat, name: str) -> Rows:
    """The rows of a file or folder.

    Args:
        path: of the file; of the folder of an imageFolder.
        form: its format.
        name: of the split.

    Raises:
        InvalidSpecError: damaged, empty, of another format, or in need of a package that is not there.
    """
    where = f"spec.data.{name}.uri"
    reader = {"csv": _csv, "jsonl": _jsonl, "parquet": _parquet, "imageFolder": _images}[form]
    try:
        rows, columns = reader(path, where)
    except UnicodeDecodeError as error:
        raise InvalidSpecError(
            f"{path.name} is not UTF-8 ({error.reason} at byte {error.start}); convert it", where
        ) from error
    if not rows:
        raise InvalidSpecError(f"{path.name} holds no rows; give data, or remove the split", where)
    return Rows(rows, columns, name)


def _csv(path: Path, where: str) -> tuple[list[dict[str, Any]], list[str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            columns = next(reader, [])
            if len(set(columns)) != len(columns):
                twice = next(name for name in columns if columns.count(name) > 1)
                raise InvalidSpecError(f"the header of {path.name} names {twice!r} twice; rename one column", where)
            rows = []
            for values in reader:
                if not values:
                    continue
                if len(values) != len(columns):
                    message = (
                        f"line {reader.line_num} of {path.name} has {len(values)} values, its header {len(columns)}"
                    )
                    raise InvalidSpecError(f"{message}; put quotes around values with commas", where)
                rows.append(dict(zip(columns, values, strict=True)))
        except csv.Error as error:
            raise InvalidSpecError(
                f"line {reader.line_num} of {path.name} is no csv: {error}; correct it", where
            ) from error
    return rows, columns


def _jsonl(path: Path, where: str) -> tuple[list[dict[str, Any]], list[str]]:
    rows: list[dict[str, Any]] = []
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json_of(line)
            except ValueError as error:
                message = f"line {number} of {path.name} is no JSON ({first_line(error)}); give one object a line"
                raise InvalidSpecError(message, where) from error
            if not isinstance(row, dict):
                message = f'line {number} of {path.name} is no JSON object; write it as in {{"text": "..."}}'
                raise InvalidSpecError(message, where)
            if rows and row.keys() != rows[0].keys():
                odd = min(row.keys() ^ rows[0].keys())
                has, other = (number, 1) if odd in row else (1, number)
                message = (
                    f"row {has} of {path.name} has a column {odd!r} and row {other} has none; give all rows the same"
                )
                raise InvalidSpecError(message, where)
            rows.append(row)
    return rows, list(rows[0]) if rows else []


def _parquet(path: Path, where: str) -> tuple[list[dict[str, Any]], list[str]]:
    try:
        from pyarrow import ArrowException, parquet
    except ModuleNotFoundError as error:
        message = "reading parquet needs pyarrow; install it with pip install 'modelpress[data]'"
        raise InvalidSpecError(message, where) from error
    size = path.stat().st_size
    rows: list[dict[str, Any]] = []
    try:
        with parquet.ParquetFile(path) as file:
            columns: list[str] = file.schema_arrow.names
            groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
            values = sum(group.column(index).num_values for group in groups for index in range(group.num_columns))
            numbers = sum(group.total_byte_size for group in groups)
            _check_parquet(path, size, max(values, file.metadata.num_rows), numbers, where)
            values = numbers = 0
            for batch in file.iter_batches(batch_size=256):
                values, numbers = values + batch.num_rows * max(1, batch.num_columns), numbers + batch.nbytes
                _check_parquet(path, size, values, numbers, where)
                rows += batch.to_pylist()
    except (ArrowException, OSError, MemoryError) as error:
        raise InvalidSpecError(
            f"{path.name} is no readable parquet file: {first_line(error)}; write it anew", where
        ) from error
    return rows, columns


def _check_parquet(path: Path, size: int, values: int, numbers: int, where: str) -> None:
    """Equal values take next to nothing in the file, and all their room in memory."""
    if values > 2**17 + size // 2 or numbers > 2**25 + 64 * size:
        message = f"{path.name} holds {values} values of {numbers} bytes in a file of {size} bytes"
        raise InvalidSpecError(f"{message}, more than is read of one so small; write it without equal rows", where)


def _images(path: Path, where: str) -> tuple[list[dict[str, Any]], list[str]]:
    if not path.is_dir():
        raise InvalidSpecError(f"{path.name} is no folder; give one with one folder of images for each class", where)
    folders = sorted(item for item in path.iterdir() if item.is_dir() and not item.name.startswith("."))
    if not folders:
        raise InvalidSpecError(f"{path.name} holds no folders; put the images of each class into one", where)
    rows = [
        {"image": file, "label": folder.name}
        for folder in folders
        for file in sorted(folder.rglob("*"))
        if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()
    ]
    return rows, ["image", "label"]


def _image(path: Path, where: str) -> Any:
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        message = "reading images needs Pillow; install it with pip install 'modelpress[data]'"
        raise InvalidSpecError(message, where) from error
    try:
        # Left to itself Pillow goes by the content, whatever the name says, and starts programs for some formats.
        with Image.open(path, formats=_IMAGE_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"it has {image.width} x {image.height} pixels, more than {MAX_PIXELS}")
            return image.convert("RGB")
    except Exception as error:  # its readers raise whatever the bytes bring up
        name = f"{path.parent.name}/{path.name}"
        raise InvalidSpecError(f"{name} is no readable image: {first_line(error)}; replace it", where) from error
