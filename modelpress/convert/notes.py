"""What a conversion says about itself: what was translated, what means something else here, what has no counterpart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from modelpress.api.errors import Location, Problem, SpecError, format_location
from modelpress.api.messages import describe as described

# mended: the file was malformed, and what was meant is beyond doubt. todo: the configuration does not hold it.
Kind = Literal["mended", "translated", "changed", "missing", "todo"]

HEADINGS: dict[Kind, str] = {
    "mended": "Was malformed, and is mended",
    "translated": "Translated",
    "changed": "Means something else here",
    "missing": "Has no counterpart",
    "todo": "Is for you to say",
}


@dataclass(frozen=True)
class Computed:
    """A value that a script computes when it runs; `source` is its text."""

    source: str


def describe(value: Any) -> str:
    """A value, for messages."""
    return f"the expression {value.source}" if isinstance(value, Computed) else described(value)


@dataclass(frozen=True)
class Note:
    """One remark. `path` is a field of the converted file, "" for all of it; `line` counts from 1."""

    kind: Kind
    path: str
    text: str
    line: int | None = None

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line else ""
        return f"{where}{self.path}{': ' if self.path else ''}{self.text}"


@dataclass
class Book:
    """The lines of a file's values, and what was said of them.

    Attributes:
        file: its name, for messages.
        lines: line (from 1) of each key and list entry.
    """

    file: str
    lines: Mapping[Location, int] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def line_of(self, location: Location) -> int | None:
        """The line of the deepest part of a location that is known."""
        for length in range(len(location), 0, -1):
            if location[:length] in self.lines:
                return self.lines[location[:length]]
        return None

    def say(self, kind: Kind, location: Location, text: str) -> None:
        """Notes something about a field; once."""
        note = Note(kind, format_location(location), text, self.line_of(location))
        if note not in self.notes:
            self.notes.append(note)

    def wrong(self, location: Location, message: str, fix: str) -> None:
        """Notes that a field cannot be used."""
        self.problems.append(Problem(format_location(location), message, fix, self.file, self.line_of(location)))

    def check(self) -> None:
        """Raises what `wrong` was told, all of it, as a SpecError."""
        if self.problems:
            raise SpecError(self.problems)


class Field:
    """A value of a file that is being converted: plain data that knows its place, and which of its keys were read.

    What nobody has read in the end has no counterpart: `leave` says so.
    """

    def __init__(self, data: Any, book: Book, location: Location = ()) -> None:
        self.data, self.book, self.location = data, book, location
        self._read: set[str] = set()

    @property
    def path(self) -> str:
        """Where it is, for messages."""
        return format_location(self.location)

    def has(self, *names: str) -> bool:
        """Whether it is a mapping that holds one of these keys, with a value."""
        return isinstance(self.data, dict) and any(self.data.get(name) is not None for name in names)

    def take(self, *names: str) -> Field | None:
        """The value of the first of these keys that has one; all of them count as read."""
        if not isinstance(self.data, dict):
            return None
        self._read |= set(names)
        for name in names:
            if self.data.get(name) is not None:
                return Field(self.data[name], self.book, (*self.location, name))
        return None

    def entries(self) -> list[Field]:
        """The entries of a list; a single value is a list of one."""
        if not isinstance(self.data, list):
            return [self]
        return [Field(item, self.book, (*self.location, index)) for index, item in enumerate(self.data)]

    def members(self) -> Iterator[tuple[str, Field]]:
        """Keys and values of a mapping."""
        for key in self.data if isinstance(self.data, dict) else ():
            value = self.take(key)
            if value is not None:
                yield key, value

    def mapping(self) -> bool:
        """Whether it is a mapping; if not, that is a problem."""
        if not isinstance(self.data, dict):
            self.wrong(f"must be a mapping, found {describe(self.data)}", "write it as {key: value}")
        return isinstance(self.data, dict)

    def number(self, least: float | None = None, most: float | None = None, *, below: bool = False) -> float | None:
        """The number; None and a problem if it is none, or outside of [least, most], or not below `most`."""
        value = self.data
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.wrong(f"must be a number, found {describe(value)}", "write a number")
            return None
        if least is not None and value < least:
            self.wrong(f"must be at least {least:g}, found {value:g}", "give a larger value")
            return None
        if most is not None and (value > most or (below and value == most)):
            bound = "below" if below else "at most"
            self.wrong(f"must be {bound} {most:g}, found {value:g}", "give a smaller value")
            return None
        return value

    def whole(self, least: int = 0) -> int | None:
        """The whole number; None and a problem if it is none."""
        value = self.number(least)
        if value is None:
            return None
        if int(value) != value:
            self.wrong(f"must be a whole number, found {value:g}", "round it")
            return None
        return int(value)

    def text(self) -> str | None:
        """The text; None and a problem if it is none."""
        if not isinstance(self.data, str) or not self.data:
            self.wrong(f"must be text, found {describe(self.data)}", "put it in quotes")
            return None
        return self.data

    def names(self) -> list[str]:
        """A list of texts, or one text."""
        return [name for item in self.entries() if (name := item.text()) is not None]

    def boolean(self) -> bool:
        """True or false; a problem if it is neither. Texts that say so count: Auptimizer's documents quote them."""
        if isinstance(self.data, bool):
            return self.data
        if isinstance(self.data, str) and self.data.lower() in ("true", "false"):
            self.say("mended", f"the text {self.data!r} was read as {self.data.lower()}")
            return self.data.lower() == "true"
        self.wrong(f"must be true or false, found {describe(self.data)}", "write true or false, without quotes")
        return False

    def say(self, kind: Kind, text: str) -> None:
        """Notes something about it."""
        self.book.say(kind, self.location, text)

    def wrong(self, message: str, fix: str) -> None:
        """Notes that it cannot be used."""
        self.book.wrong(self.location, message, fix)

    def leave(self, why: Mapping[str, str] | None = None, known: Iterable[str] = ()) -> None:
        """Says of each key that nobody has read that it has no counterpart.

        Args:
            why: reasons by key.
            known: keys that need no remark.
        """
        if not isinstance(self.data, dict):
            return
        for key, value in self.data.items():
            if key in self._read or key in known or value is None:
                continue
            text = (why or {}).get(key, "is not known here, and was left out")
            self.book.say("missing", (*self.location, key), text)
