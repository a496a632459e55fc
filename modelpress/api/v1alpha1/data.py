"""The data of a job: what is trained on, what is scored on, and what calibrates."""

from pathlib import PurePosixPath
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from .base import ApiModel, Cel, Uri
from .code import Sha256

DataFormat = Literal["csv", "jsonl", "parquet", "imageFolder"]

# What a suffix says; a URI without one is a folder.
SUFFIXES: dict[str, DataFormat] = {".csv": "csv", ".jsonl": "jsonl", ".parquet": "parquet", "": "imageFolder"}


class DataSource(ApiModel):
    """A file with rows, or a folder of images."""

    uri: Uri = Field(
        description="s3://, gs://, az://, file:// or, on one machine, a path: relative to code.path, or to the YAML "
        "file where there is none. An s3:// one is read from the endpoint and region of spec.store."
    )
    format: DataFormat | None = Field(
        default=None,
        description="csv: with a header line, UTF-8. jsonl: one JSON object a line. parquet: needs the extra data. "
        "imageFolder: a folder with one folder of images for each class. None: what the suffix says, a folder without "
        "one being an imageFolder.",
    )
    sha256: Sha256 | None = Field(default=None, description="Of the file; checked before it is read.")

    @property
    def form(self) -> DataFormat | None:
        """The format that is given, or that the suffix says; None: neither does."""
        return self.format or SUFFIXES.get(PurePosixPath(self.uri.rstrip("/")).suffix.lower())


class CalibrationData(DataSource):
    """What methods look at that need to see data, but no labels."""

    samples: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=512, description="So many rows from the beginning, at most."
    )


class Data(ApiModel):
    """Splits of the data. huggingFace reads them; an entrypoint that takes the keyword `data` gets them."""

    train: DataSource | None = Field(default=None, description="What training goes over.")
    validation: DataSource | None = Field(default=None, description="What the score is taken on.")
    calibration: CalibrationData | None = Field(default=None, description="What methods look at that need activations.")

    cel_rules: ClassVar[tuple[Cel, ...]] = (
        Cel(
            "has(self.train) || has(self.validation) || has(self.calibration)",
            "one of train, validation, calibration is needed",
        ),
    )

    @model_validator(mode="after")
    def _any(self) -> Self:
        if not self.splits:
            raise PydanticCustomError(
                "no_data", "one of train, validation, calibration is needed; add one, or leave data out", {}
            )
        return self

    @property
    def splits(self) -> dict[str, DataSource]:
        """The splits that are given, by name."""
        given = {"train": self.train, "validation": self.validation, "calibration": self.calibration}
        return {name: split for name, split in given.items() if split is not None}
