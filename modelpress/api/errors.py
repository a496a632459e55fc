"""What is wrong with a specification, for people: where, what, and what to do about it."""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.alias_generators import to_camel, to_snake
from pydantic_core import ErrorDetails

from .messages import FIXES, describe, fix_pattern, in_words, keys_in_words, typed_fix, typed_message
from .v1alpha1 import reasons
from .v1alpha1.base import ApiModel, plain

Location = tuple[str | int, ...]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: where (`path` in YAML spelling, "" for a whole file), what, and what to do."""

    path: str
    message: str
    fix: str
    file: str | None = None
    line: int | None = None  # from 1
    reason: str = reasons.INVALID_SPEC  # a condition reason: InvalidSpec or NotOnCluster

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}: " if self.file and self.line else f"{self.file}: " if self.file else ""
        return f"{where}{self.path}{': ' if self.path else ''}{self.message}; {self.fix}"

    def under(self, prefix: str) -> Problem:
        """The same problem of an object that lies at `prefix`."""
        return dataclasses.replace(self, path=join(prefix, self.path))

    def at(self, file: str | None, line: int | None) -> Problem:
        """The same problem, in this file and line."""
        return dataclasses.replace(self, file=file, line=line)


class SpecError(Exception):
    """A specification cannot be used. `str(error)` is what a user reads: one line for each problem."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(map(str, self.problems)))


def join(prefix: str, path: str) -> str:
    """'spec' and 'stages[0]' -> 'spec.stages[0]'."""
    if not prefix or not path:
        return prefix or path
    return prefix + path if path.startswith("[") else f"{prefix}.{path}"


def format_location(location: Iterable[str | int]) -> str:
    """('spec', 'stages', 0, 'prune') -> 'spec.stages[0].prune'."""
    out = ""
    for part in location:
        out = join(out, f"[{part}]" if isinstance(part, int) else part)
    return out


def near(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` most likely stands for, regardless of case, `_` and `-`; None if none is near."""
    names = {plain(name): name for name in known}
    if plain(word) in names:
        return names[plain(word)]
    found = difflib.get_close_matches(plain(word), list(names), n=1, cutoff=0.7)
    return names[found[0]] if found else None


def problems_of(error: ValidationError, model: type[ApiModel], *, root: str = "") -> list[Problem]:
    """The problems behind pydantic's errors of validating `model`, in YAML spelling, below the path `root`."""
    return [problem.under(root) for problem, _ in located_problems(error, model)]


def located_problems(error: ValidationError, model: type[ApiModel]) -> list[tuple[Problem, Location]]:
    """Like problems_of, each with its location as keys and indices, for looking up lines."""
    found: dict[Location, tuple[Problem, Location]] = {}
    explained: set[Location] = set()
    details = error.errors(include_url=False)
    for detail in details[:MAX_PROBLEMS]:
        location, annotation, is_key = _resolve(model, detail["loc"])
        if detail["type"] == "extra_forbidden":
            problem, meant = _unknown_key(model, location)
            if meant:
                explained.add((*location[:-1], meant))
        else:
            problem = _problem(detail, location, annotation, is_key, model)
        # A union reports every branch; a person needs one sentence, of the branch that came nearest.
        if location not in found or (annotation_is_union(annotation) and not detail["type"].endswith("_type")):
            found[location] = (problem, location)
    missing = {location for location, (problem, _) in found.items() if problem.message == _REQUIRED}
    told = [pair for location, pair in found.items() if location not in missing & explained]
    if (more := len(details) - MAX_PROBLEMS) > 0:
        told.append(
            (Problem("", f"{more} more {'problems' if more > 1 else 'problem'}", "correct these first"), told[-1][1])
        )
    return told


MAX_PROBLEMS = 100  # of one document that are explained
_REQUIRED = "is required"


def _value_of_another_tool(model: type[ApiModel], location: Location, value: str) -> str | None:
    """What to write instead of another tool's name for the value of a field."""
    _, owner, _ = _resolve(model, location[:-1])
    if not (isinstance(owner, type) and issubclass(owner, ApiModel)):
        return None
    hints = {plain(name): hint for name, hint in owner.other_values.get(to_snake(str(location[-1])), {}).items()}
    return hints.get(plain(value))


def _problem(detail: ErrorDetails, location: Location, annotation: Any, is_key: bool, model: type[ApiModel]) -> Problem:
    path = format_location(location)
    kind, context, value = detail["type"], detail.get("ctx", {}), detail.get("input")
    if kind == "missing":
        return Problem(path, _REQUIRED, _how_to_add(location, annotation))
    if kind == "literal_error":
        known = [str(name) for name in _literals(annotation)]
        nearest = near(value, known) if isinstance(value, str) else None
        message = f"must be {in_words(known)}, found {describe(value)}"
        if isinstance(value, str) and (hint := _value_of_another_tool(model, location, value)):
            return Problem(path, message, hint)
        if nearest:
            return Problem(path, message, f"did you mean {nearest}?")
        fix = None if isinstance(value, str) else typed_fix("str", value)
        return Problem(path, message, fix or (f"write {known[0]}" if len(known) == 1 else "write one of them"))
    if (
        kind in ("string_pattern_mismatch", "string_too_long")
        and isinstance(value, str)
        and (hint := _value_of_another_tool(model, location, value))
    ):
        return Problem(path, f"{describe(value)} is not to be had", hint)
    if kind == "string_pattern_mismatch":
        rule, fix = fix_pattern(str(context["pattern"]), str(value))
        what = f"the key {value!r}" if is_key else describe(value)
        return Problem(path, f"must be {rule}, found {what}", fix)
    if typed := typed_message(kind, context, annotation_is_union(annotation), _takes_mapping(annotation)):
        expected, wanted = typed
        to_do = (typed_fix(wanted, value) if wanted else None) or FIXES.get(kind, "correct the value")
        return Problem(path, f"{'a key ' * is_key}{expected}, found {describe(value)}", to_do)
    if kind == "exactly_one":
        fix = "add one of them" if context["found"] == "none of them" else "keep one of them and remove the others"
        return Problem(path, detail["msg"], fix)
    # The API's own rules say "what; what to do".
    what, _, to_do = detail["msg"].partition("; ")
    return Problem(path, what, to_do or FIXES.get(kind, "correct the value"))


def _how_to_add(location: Location, annotation: Any) -> str:
    key = str(location[-1])
    literals = _literals(annotation)
    if literals:
        return f"add '{key}: {literals[0]}'" if len(literals) == 1 else f"add {key}: {in_words(map(str, literals))}"
    return f"add {key}"


def _unknown_key(model: type[ApiModel], location: Location) -> tuple[Problem, str | None]:
    """The problem, and the known key that was probably meant."""
    _, owner, _ = _resolve(model, location[:-1])
    key, path = str(location[-1]), format_location(location)
    holder = owner if isinstance(owner, type) and issubclass(owner, ApiModel) else model
    known = {name: field.alias or name for name, field in holder.model_fields.items()}
    if key in holder.other_spellings:
        meant = known[holder.other_spellings[key]]
        return Problem(path, f"'{key}' is another tool's spelling", f"write {meant}"), meant
    if key in known:
        return Problem(path, f"unknown key '{key}': keys are written in camelCase", f"write {known[key]}"), known[key]
    if key in holder.elsewhere or to_snake(key) in holder.elsewhere:
        return Problem(path, f"unknown key '{key}'", holder.elsewhere.get(key) or holder.elsewhere[to_snake(key)]), None
    message = f"unknown key '{key}'"
    if nearest := near(key, known.values()):
        return Problem(path, message, f"did you mean {nearest}?"), nearest
    elsewhere = _fields_above(model, location, key)
    if elsewhere:
        return Problem(path, message, f"{key} belongs to {elsewhere}; move it there"), None
    return Problem(path, message, f"remove it; known here: {keys_in_words(known.values())}"), None


def _fields_above(model: type[ApiModel], location: Location, key: str) -> str | None:
    """The nearest object above that knows the key: wrong indentation is the most frequent reason for one too many."""
    for length in range(len(location) - 2, -1, -1):
        _, owner, _ = _resolve(model, location[:length])
        if isinstance(owner, type) and issubclass(owner, ApiModel):
            known = {field.alias or name for name, field in owner.model_fields.items()} | owner.earlier_names.keys()
            if to_camel(key) in known or key in known:
                return format_location(location[:length]) or "the top of the document"
    return None


def _resolve(model: type[ApiModel], loc: Sequence[str | int]) -> tuple[Location, Any, bool]:
    """Pydantic's location without its marks of union branches and keys; the annotation there; whether it is a key."""
    annotation: Any = model
    location: list[str | int] = []
    for part in loc:
        annotation = _strip(annotation)
        if part == "[key]" and part is loc[-1]:
            return tuple(location), str, True
        if isinstance(annotation, type) and issubclass(annotation, ApiModel):
            location.append(part)
            names = {field.alias or name: field for name, field in annotation.model_fields.items()}
            field = names.get(str(part)) or annotation.model_fields.get(str(part))
            annotation = field.annotation if field else Any
        elif get_origin(annotation) in (list, dict, Mapping):
            location.append(part)
            annotation = get_args(annotation)[-1]
        elif annotation_is_union(annotation):
            continue  # the name of a branch
        elif annotation is Any:
            location.append(part)
    return tuple(location), _strip(annotation), False


def _strip(annotation: Any) -> Any:
    """The annotation without Annotated and without None."""
    while True:
        if get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
            continue
        if annotation_is_union(annotation):
            rest = [arg for arg in get_args(annotation) if arg is not types.NoneType]
            if len(rest) == 1:
                annotation = rest[0]
                continue
        return annotation


def annotation_is_union(annotation: Any) -> bool:
    """Whether several types are allowed."""
    return get_origin(annotation) in (Union, types.UnionType)


def _takes_mapping(annotation: Any) -> bool:
    """Whether a mapping is one of several types that are allowed."""
    if not annotation_is_union(annotation):
        return False
    return any(dict in (get_origin(each), *map(get_origin, get_args(each))) for each in get_args(annotation))


def _literals(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) is Literal else ()
