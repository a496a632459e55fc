"""Audits the locks of requirements/: everything pinned, with hashes, one version everywhere, from the index alone.

Usage: python tools/audit.py      exits with 1 and a line for each finding.

Known vulnerabilities are another matter: whoever can reach a database of them runs pip-audit over the same files
(docs/design/0025-who-may-do-what.md).
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
_HASH = re.compile(r"--hash=(\S+)")


def entries(text: str) -> Iterator[tuple[str, list[str]]]:
    """Each requirement of a lock with its hashes."""
    for line in text.replace("\\\n", " ").splitlines():
        line = line.strip()
        if line and not line.startswith("#"):
            yield line.partition(" --hash=")[0].strip(), _HASH.findall(line)


def findings(locks: dict[str, str], project: dict[str, list[str]]) -> Iterator[str]:
    """What is wrong.

    Args:
        locks: texts by name of file.
        project: the requirements of pyproject.toml by the name of their list.
    """
    versions: dict[tuple[str, str], tuple[str, str]] = {}
    for name, text in locks.items():
        for entry, hashes in entries(text):
            if entry.startswith("-"):
                yield f"{name}: the option {entry.split()[0]} names an index or another file; a lock has neither"
                continue
            requirement = Requirement(entry)
            pins = [one for one in requirement.specifier if one.operator == "==" and "*" not in one.version]
            if requirement.url or len(pins) != 1 or len(requirement.specifier) != 1:
                yield f"{name}: {entry} is not pinned to one version"
                continue
            if not hashes or any(not re.fullmatch("sha256:[0-9a-f]{64}", each) for each in hashes):
                yield f"{name}: {entry} has no sha256"
            key = canonicalize_name(requirement.name), str(requirement.marker or "")
            first = versions.setdefault(key, (pins[0].version, name))
            if first[0] != pins[0].version:
                yield f"{name}: {requirement.name} is {pins[0].version}, in {first[1]} {first[0]}"
    for where, requirements in project.items():
        for text in requirements:
            wanted = Requirement(text)
            for (package, _), (version, name) in versions.items():
                if package == canonicalize_name(wanted.name) and version not in wanted.specifier:
                    yield f"{name}: {package} {version} is not {wanted.specifier}, as {where} of pyproject.toml says"


def main() -> int:
    """Prints the findings."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        told = tomllib.load(file)
    project = {"build-system": told["build-system"]["requires"], "dependencies": told["project"]["dependencies"]}
    project |= {f"extra {name}": found for name, found in told["project"]["optional-dependencies"].items()}
    locks = {path.name: path.read_text() for path in sorted((ROOT / "requirements").glob("*.txt"))}
    found = list(findings(locks, project))
    for line in found:
        print(f"audit: requirements/{line}", file=sys.stderr)
    return 1 if found or not locks else 0


if __name__ == "__main__":
    sys.exit(main())
