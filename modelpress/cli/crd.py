"""`modelpress crd`: the CustomResourceDefinitions, generated from the API types and those of plug-ins."""

from __future__ import annotations

from pathlib import Path

from modelpress.api import plugins
from modelpress.api.crd import render, write
from modelpress.local.errors import UsageError

from .exits import Exit


def print_crds(folder: Path | None) -> int:
    """Print them as one YAML stream, or write one file each into `folder`; the exit code.

    Raises:
        UsageError: the folder cannot be written.
    """
    plugins.load()
    if folder is None:
        for name, text in render().items():
            separator = "" if text.startswith("---") else "---\n"
            print(f"{separator}# {name}\n{text}" if separator else text, end="" if text.endswith("\n") else "\n")
        return Exit.DONE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write(folder)
    except OSError as error:
        raise UsageError(f"--output: cannot write into {folder}: {error.strerror}; name a writable folder") from error
    for name in render():
        print(folder / name)
    return Exit.DONE
