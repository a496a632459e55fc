"""JSON as people write it: a reader that mends what is beyond doubt, and says so.

Python's words and quotes, comments, commas that are missing between members or stand behind the last one, and
full-width punctuation are read as what they stand for. Anything else that is wrong is an error with its line.
"""

from __future__ import annotations

import bisect
import re
from typing import Any

from modelpress.api.depth import MAX_DEPTH
from modelpress.api.errors import Location, Problem, SpecError

WIDE = {"，": ",", "：": ":", "“": '"', "”": '"', "‘": "'", "’": "'", "（": "(", "）": ")"}
_WORDS: dict[str, Any] = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}
_PYTHON = ("True", "False", "None")
_NUMBER = re.compile(r"[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?(?![\w.])")
_WORD = re.compile(r"[A-Za-z_]\w*")
_SPACE = re.compile(r"(\s|#[^\n]*|//[^\n]*)*")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "/": "/", "\\": "\\", '"': '"', "'": "'"}
_OPEN = {"{": "}", "[": "]", "(": ")"}


class Reader:
    """Reads one value.

    Attributes:
        lines: line (from 1) of each key and list entry.
        mended: line and sentence of each thing that was mended.
    """

    def __init__(self, text: str, file: str) -> None:
        self.lines: dict[Location, int] = {}
        self.mended: list[tuple[int, str]] = []
        self._file = file
        self._text = text
        self._ends = [found.start() for found in re.finditer("\n", text)]
        for wide in WIDE:
            at = self._text.find(wide)
            if at >= 0:
                self._mend(at, f"the full-width {wide} was read as {WIDE[wide]}")
                self._text = self._text.replace(wide, WIDE[wide])
        self._at = 0
        self._said: set[str] = set()

    def read(self) -> Any:
        """The value.

        Raises:
            SpecError: it cannot be read.
        """
        value = self._value(())
        self._skip()
        if self._at < len(self._text):
            raise self._wrong("text follows the end of the configuration", "remove it, or close the bracket before it")
        return value

    def _value(self, location: Location) -> Any:
        if len(location) > MAX_DEPTH:
            raise self._wrong(f"nested deeper than {MAX_DEPTH} levels", "write it flatter")
        self._skip()
        character = self._peek()
        if not character:
            raise self._wrong("the file ends where a value is expected", "close what was opened, and save it whole")
        if character in _OPEN:
            return self._members(location, character)
        if character in "\"'":
            if character == "'":
                self._once("texts in single quotes are Python, not JSON; they were read as texts")
            return self._string(character)
        if found := _NUMBER.match(self._text, self._at):
            self._at = found.end()
            text = found.group()
            return float(text) if re.search(r"[.eE]", text) else int(text)
        if found := _WORD.match(self._text, self._at):
            word = found.group()
            if word not in _WORDS:
                raise self._wrong(f"the word {word} is no value", f'put it in quotes: "{word}"')
            self._at = found.end()
            if word in _PYTHON:
                self._once(f"{word} is Python, not JSON; it was read as {str(word).lower().replace('none', 'null')}")
            return _WORDS[word]
        raise self._wrong(f"the character {character!r} begins no value", "remove it, or put the text in quotes")

    def _members(self, location: Location, opening: str) -> Any:
        """What stands between brackets: a mapping, or a list."""
        begin = self._line()
        self._at += 1
        mapping: dict[str, Any] = {}
        items: list[Any] = []
        count = 0
        while True:
            self._skip()
            if self._peek() == _OPEN[opening]:
                self._at += 1
                return mapping if opening == "{" else items
            if not self._peek():
                fix = f"add '{_OPEN[opening]}'"
                raise self._wrong(f"the '{opening}' of line {begin} is not closed", fix)
            line = self._line()
            if opening == "{":
                key = self._key()
                if key in mapping:
                    raise self._wrong(f"the key {key!r} stands twice in one mapping", "keep one of them")
                self.lines[(*location, key)] = line
                mapping[key] = self._value((*location, key))
            else:
                self.lines[(*location, count)] = line
                items.append(self._value((*location, count)))
            count += 1
            self._comma(_OPEN[opening])

    def _key(self) -> str:
        character = self._peek()
        if character not in ("'", '"'):
            raise self._wrong(f"a key must be a text in quotes, found {character!r}", 'write it as "key": value')
        if character == "'":
            self._once("texts in single quotes are Python, not JSON; they were read as texts")
        key = self._string(character)
        self._skip()
        if self._peek() != ":":
            raise self._wrong(f"a ':' is missing behind the key {key!r}", f'write "{key}": value')
        self._at += 1
        return key

    def _comma(self, closing: str) -> None:
        behind = self._at
        self._skip()
        if self._peek() == ",":
            comma = self._at
            self._at += 1
            self._skip()
            if self._peek() == closing:
                self._mend(comma, f"the comma before '{closing}' is too much; it was left out")
        elif self._peek() and self._peek() != closing:
            if self._peek() not in "\"'{[(":
                raise self._wrong(f"found {self._peek()!r} where a ',' or '{closing}' is expected", "add the comma")
            self._mend(behind, "a comma is missing behind this value; it was added")

    def _string(self, quote: str) -> str:
        begin, out = self._at, []
        self._at += 1
        while (character := self._peek()) != quote:
            if not character or character == "\n":
                self._at = begin
                raise self._wrong("a text is not closed in its line", f"add {quote} at its end")
            self._at += 1
            if character == "\\":
                escape = self._peek()
                self._at += 1
                if escape == "u":
                    digits = self._text[self._at : self._at + 4]
                    if not re.fullmatch(r"[0-9a-fA-F]{4}", digits):
                        raise self._wrong("\\u needs four hexadecimal digits", "correct it")
                    character = chr(int(digits, 16))
                    self._at += 4
                else:
                    # Patterns such as '\d+' are written in both ways; Python keeps the backslash.
                    character = _ESCAPES.get(escape, f"\\{escape}")
            out.append(character)
        self._at += 1
        return "".join(out)

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _skip(self) -> None:
        found = _SPACE.match(self._text, self._at)
        assert found is not None
        if found.group().strip():
            self._once("comments are no part of JSON; they were passed over")
        self._at = found.end()

    def _line(self, at: int | None = None) -> int:
        return bisect.bisect_left(self._ends, self._at if at is None else at) + 1

    def _mend(self, at: int, sentence: str) -> None:
        self.mended.append((self._line(at), sentence))

    def _once(self, sentence: str) -> None:
        if sentence not in self._said:
            self._said.add(sentence)
            self._mend(self._at, sentence)

    def _wrong(self, message: str, fix: str) -> SpecError:
        return SpecError([Problem("", message, fix, self._file, self._line())])
