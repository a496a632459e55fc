"""The user's code: putting it on sys.path, and a digest of it."""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import os
import sys
from pathlib import Path

from modelpress_runner.errors import InvalidModelError

# Folders that hold no code of the user's own.
_SKIPPED = frozenset({"__pycache__", "venv", "env", "node_modules", "site-packages", "modelpress-runs"})


def use(path: str | None) -> None:
    """Puts the code folder first on sys.path; PYTHONPATH and everything else stay as they are.

    Raises:
        InvalidModelError: there is no such folder.
    """
    if path is None:
        return
    if not Path(path).is_dir():
        raise InvalidModelError(f"there is no folder {path}; correct the path", "spec.code.path")
    if path in sys.path:
        sys.path.remove(path)
    sys.path.insert(0, path)
    importlib.invalidate_caches()


def digest(path: str | None, module: str) -> str:
    """sha256 over relative paths and contents of the user's *.py files, sorted by path.

    With a code folder: all of its *.py files, but for hidden folders, virtual environments, __pycache__ and
    modelpress-runs. Without one: the file or package on sys.path that holds `module`; "" if there is none. Other files
    (data, configuration) are not part of it.
    """
    if path is not None:
        return _of_folder(Path(path))
    top = module.partition(".")[0]
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return ""
    if spec is None:
        return ""
    if spec.submodule_search_locations:
        return _of_folder(Path(next(iter(spec.submodule_search_locations))))
    if spec.origin is None or not isinstance(spec.loader, importlib.machinery.SourceFileLoader):
        return ""
    return _of_files(Path(spec.origin).parent, [Path(spec.origin)])


def digest_of(path: str | None, script: Path) -> str:
    """As `digest`, of a script: the code folder's files, or, without one, the script alone."""
    return _of_folder(Path(path)) if path is not None else _of_files(script.parent, [script])


def _of_folder(folder: Path) -> str:
    files: list[Path] = []
    for current, folders, names in os.walk(folder):
        here = Path(current)
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and name not in _SKIPPED and not (here / name / "pyvenv.cfg").exists()
        ]
        files += [here / name for name in names if name.endswith(".py") and not name.startswith(".")]
    return _of_files(folder, files)


def _of_files(root: Path, files: list[Path]) -> str:
    total = hashlib.sha256()
    for relative, file in sorted((file.relative_to(root).as_posix(), file) for file in files):
        try:
            content = file.read_bytes()
        except OSError:  # a dangling link, or a file that went away meanwhile
            continue
        total.update(f"{relative}\0{len(content)}\0".encode())
        total.update(content)
    return total.hexdigest()
