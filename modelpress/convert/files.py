"""From files of another tool to the YAML of a recipe, with notes."""

from __future__ import annotations

import copy
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from modelpress.api import plugins
from modelpress.api.errors import Problem, SpecError
from modelpress.api.load import load_dict
from modelpress.api.semantic import job_problems, sweep_problems
from modelpress.api.v1alpha1 import CompressionSweep

from . import auptimizer, neural_compressor, nni
from .drafts import Draft
from .notes import HEADINGS, Computed, Note
from .reading import Source, read
from .scripts import ARGUMENTS, Script

TOOLS = ("nni", "auptimizer", "neural-compressor")
_WIDTH = 118


@dataclass(frozen=True)
class Converted:
    """What came of files.

    Attributes:
        tool: whose they are, one of TOOLS.
        documents: CompressionJobs and CompressionSweeps as plain data; each is valid.
        notes: what was translated, what means something else, what has no counterpart; by file in the order given.
    """

    tool: str
    documents: list[dict[str, Any]]
    notes: list[tuple[str, Note]]

    def remarks(self) -> list[str]:
        """The notes in words: a heading for each kind, and a line for each note."""
        several = len({file for file, _ in self.notes}) > 1
        out: list[str] = []
        for kind, heading in HEADINGS.items():
            found = [(file, note) for file, note in self.notes if note.kind == kind]
            if found:
                out.append(f"{heading}:")
                out += [f"  - {f'{file}: ' if several else ''}{note}" for file, note in found]
        return out

    def yaml(self) -> str:
        """The documents as YAML, with the notes as comments before them."""
        head: list[str] = []
        for line in self.remarks():
            indent = "    " if line.startswith("  ") else ""
            head += textwrap.wrap(line, _WIDTH - 2, subsequent_indent=indent, break_long_words=False)
        comments = "".join(f"# {line}\n" for line in head)
        return comments + "---\n".join(
            yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=_WIDTH, allow_unicode=True)
            for document in self.documents
        )


class _Dumper(yaml.SafeDumper):
    """Short lists and mappings of plain values in one line, as people write them; no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
        plain = all(not isinstance(item, dict | list) for item in sequence)
        return super().represent_sequence(tag, sequence, flow_style=plain)


def convert_files(
    paths: Sequence[str],
    *,
    tool: str | None = None,
    model: str | None = None,
    algorithm: str | None = None,
) -> Converted:
    """Converts files; several of Neural Compressor become one recipe, with their stages in the order of the files.

    Args:
        paths: JSON, YAML or Python.
        tool: one of TOOLS; None: what the files look like.
        model: module:attribute, or a script that ends with .py; None: what the files say.
        algorithm: of config lists that name none.

    Raises:
        SpecError: a file cannot be read or converted; all that was found is listed.
    """
    plugins.load()
    block: dict[str, Any] = {}
    if model is not None:
        block = {"script": model} if model.endswith(".py") else {"entrypoint": model}
    sources = [read(path) for path in paths]
    if tool is None:
        tool = _tool(sources)
    drafts: list[Draft] = []
    for source in sources:
        found = _drafts(tool, source, block, algorithm)
        source.book.check()
        if tool == "neural-compressor" and drafts:
            _join(drafts[0], found)
        else:
            drafts += found
    if not any(draft.stages for draft in drafts):
        raise SpecError([_nothing(source) for source in sources])
    documents = _apart(drafts, sources[0])
    _check(documents, sources)
    notes = [(source.book.file, note) for source in sources for note in source.book.notes]
    return Converted(tool, documents, notes)


def _tool(sources: Sequence[Source]) -> str:
    for source in sources:
        if source.script is None and auptimizer.detect(source.top):
            return "auptimizer"
        if neural_compressor.detect(source.top, source.script):
            return "neural-compressor"
        if nni.detect(source.top, source.script):
            return "nni"
    message = "it looks like no configuration of NNI, Auptimizer or Neural Compressor"
    fix = f"say whose it is with --from {' | '.join(TOOLS)}"
    raise SpecError([Problem("", message, fix, sources[0].book.file)])


def _drafts(tool: str, source: Source, model: dict[str, Any], algorithm: str | None) -> list[Draft]:
    if tool == "nni":
        return nni.convert(source.top, source.script, model, algorithm)
    if tool == "neural-compressor":
        return neural_compressor.convert(source.top, source.script, model)
    if source.script is not None:
        fix = "name its JSON file; scripts stay as they are"
        raise SpecError([Problem("", "Auptimizer's experiments are JSON, not Python", fix, source.book.file)])
    return auptimizer.convert(source.top, model, algorithm)


def _join(first: Draft, others: Sequence[Draft]) -> None:
    for other in others:
        first.stages += other.stages
        if first.model.get("script") is None and other.model:
            first.model = first.model or other.model
        for key, value in other.spec.items():
            held = first.spec.get(key)
            if isinstance(held, list):
                first.spec[key] = [*held, *(item for item in value if item not in held)]
            else:
                first.spec[key] = {**held, **value} if isinstance(held, dict) else value


def _nothing(source: Source) -> Problem:
    missing = [str(note) for note in source.book.notes if note.kind == "missing"]
    why = f" ({'; '.join(missing)})" if missing else ""
    message = f"nothing in it becomes a stage of a recipe{why}"
    fix = "name the file that compresses too, in one call: modelpress convert PRUNING FILE"
    if source.script is not None and (named := _yaml_named_in(source.script)) is not None:
        fix = f"its configuration is in {named}; convert that"
    return Problem("", message, fix, source.book.file)


def _yaml_named_in(script: Script) -> str | None:
    """The YAML file that a script of Neural Compressor 1.x gives to a call: Quantization('conf.yaml')."""
    for _, call in script.calls:
        for value in call[ARGUMENTS]:
            text = value.source if isinstance(value, Computed) else value
            if isinstance(text, str) and text.endswith((".yaml", ".yml")):
                return text
    return None


def _apart(drafts: Sequence[Draft], source: Source) -> list[dict[str, Any]]:
    """The documents, each with a name of its own."""
    documents = [draft.document(source.book) for draft in drafts if draft.stages]
    taken: set[str] = set()
    for document in documents:
        name, number = document["metadata"]["name"], 2
        while name in taken:
            name, number = f"{document['metadata']['name']}-{number}", number + 1
        document["metadata"]["name"] = name
        taken.add(name)
    return documents


def _check(documents: Sequence[dict[str, Any]], sources: Sequence[Source]) -> None:
    """Raises what is wrong with the documents, in terms of what was converted."""
    for document in documents:
        problems = _problems(document)
        if problems:
            otherwise = _by_script(document)
            raise SpecError(
                Problem(
                    problem.path,
                    f"the recipe that it becomes is not valid: {problem.message}",
                    problem.fix + otherwise,
                    sources[0].book.file,
                )
                for problem in problems
            )


def _by_script(document: dict[str, Any]) -> str:
    """The other way, where the recipe of a script would be valid: its training loop says what the file does not."""
    copied = copy.deepcopy(document)
    spec = copied["spec"].get("template", copied)["spec"]
    entrypoint = spec["model"].get("entrypoint")
    spec["model"] = {"script": "train.py"}
    if entrypoint is None or _problems(copied):
        return ""
    return f"; or give --model the script whose training loop it is, train.py say, in place of {entrypoint}"


def _problems(document: dict[str, Any]) -> Sequence[Problem]:
    try:
        made = load_dict(document)
        return sweep_problems(made.spec) if isinstance(made, CompressionSweep) else job_problems(made.spec)
    except SpecError as error:
        return error.problems
