"""`modelpress convert`: configurations of other tools as YAML."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from modelpress.control_characters import escape_control_characters
from modelpress.convert import convert_files

from .exits import Exit
from .outputs import check_output, write_output


def convert(
    files: Sequence[str], *, tool: str | None, model: str | None, algorithm: str | None, output: Path | None
) -> int:
    """Print the YAML, or write it into `output` and print the notes; the exit code.

    Raises:
        SpecError: a file cannot be converted.
        UsageError: the output cannot be written.
    """
    check_output("--output", output, new=True)
    converted = convert_files(files, tool=tool, model=model, algorithm=algorithm)
    text = converted.yaml()
    if output is None:
        sys.stdout.write(text)
        return Exit.DONE
    write_output("--output", output, text, new=True)
    for line in converted.remarks():
        print(escape_control_characters(line))
    print(f"{output}: {len(converted.documents)} object{'s' if len(converted.documents) != 1 else ''}")
    return Exit.DONE
