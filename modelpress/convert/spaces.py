"""Search spaces: what NNI and Auptimizer write in the place of a value, as parameters of a CompressionSweep."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from modelpress.api.v1alpha1.base import in_words

from .notes import Field

# {"float": {...}}, {"int": {...}} or {"categorical": {...}}, as a parameter of a sweep has it.
Body = dict[str, Any]
Reader = Callable[[Field], Body | None]

_NNI = ("choice", "uniform", "quniform", "loguniform", "qloguniform", "randint")


def of_nni(field: Field) -> Body | None:
    """What {"_type": ..., "_value": [...]} means; None: the field is a plain value. A problem if it means nothing."""
    if not field.has("_type"):
        return None
    kind, value = field.take("_type"), field.take("_value")
    if kind is None or value is None or not isinstance(value.data, list):
        field.wrong(
            "a search space needs _type and a list as _value", 'write {"_type": "uniform", "_value": [0.1, 0.9]}'
        )
        return {}
    name = str(kind.data)
    if name == "choice":
        return _categorical(value)
    if name not in _NNI:
        kind.wrong(f"the distribution {name} has no counterpart", f"use {in_words(_NNI)}")
        return {}
    numbers = [number for item in value.entries() if (number := item.number()) is not None]
    wanted = 3 if name.startswith("q") else 2
    if len(numbers) != wanted:
        value.wrong(
            f"{name} takes {wanted} numbers, found {len(value.data)}",
            "write [least, greatest" + (", step]" if wanted == 3 else "]"),
        )
        return {}
    if name == "randint":
        value.say("changed", "randint leaves its end out; max is one less than it")
        return {"int": {"min": int(numbers[0]), "max": int(numbers[1]) - 1}}
    body: Body = {"min": float(numbers[0]), "max": float(numbers[1])}
    if name == "quniform":
        body["step"] = float(numbers[2])
        value.say("changed", "quniform counts its steps from 0, and here they count from min")
    elif name == "qloguniform":
        value.say("changed", "a logarithmic range has no steps here; the step was left out")
    if "log" in name:
        body["log"] = True
    return {"float": body}


def of_auptimizer(field: Field) -> Body | None:
    """What {"range": ..., "type": ...} means; None: the field is a plain value."""
    if not field.has("range"):
        return None
    given, kind = field.take("range"), field.take("type")
    assert given is not None
    name = str(kind.data) if kind is not None else "choice"
    if kind is None:
        field.say("changed", "a range without a type is a choice between its values")
    interval, count = field.take("interval"), field.take("n")
    if count is not None:
        count.say("missing", "a number of points belongs to Auptimizer's grid; give a step")
    field.leave()
    if name == "choice":
        return _categorical(given)
    if name not in ("float", "int"):
        (kind or field).wrong(f"must be float, int or choice, found {name}", "write one of them")
        return {}
    numbers = [number for item in given.entries() if (number := item.number()) is not None]
    if len(numbers) != 2:
        given.wrong(f"a range of type {name} is [least, greatest]", "give two numbers, or write type: choice")
        return {}
    convert: Callable[[float], float] = float if name == "float" else int
    body: Body = {"min": convert(numbers[0]), "max": convert(numbers[1])}
    if interval is not None and (step := interval.number()) is not None:
        body["step"] = convert(step)
    return {name: body}


def _categorical(value: Field) -> Body:
    plain = [item.data for item in value.entries()]
    if not plain or any(not isinstance(item, str | int | float) for item in plain):
        value.wrong("a choice is a list of texts and numbers", "write it as [a, b]")
        return {}
    return {"categorical": {"values": plain}}


def first(body: Body) -> Any:
    """A value of it."""
    kind, settings = next(iter(body.items()))
    return settings["values"][0] if kind == "categorical" else settings["min"]


class Space:
    """Fills blocks of a template from a configuration, and collects the parameters that are found on the way.

    Attributes:
        parameters: as `searchSpace` has them.
    """

    def __init__(self, reader: Reader = lambda field: None) -> None:
        self._reader = reader
        self.expand = False  # what is added now has a value for each of its entry's layers
        self.parameters: list[dict[str, Any]] = []

    def put(
        self,
        block: dict[str, Any],
        key: str,
        field: Field | None,
        pointer: str,
        name: str,
        check: Callable[[Field], Any],
    ) -> Body | None:
        """Puts a value into a block.

        Args:
            key: of the block.
            pointer: JSON Pointer of the block in the template's spec.
            name: of the parameter, if it is one.
            check: gives the value of a field that is no search space; None: a problem was noted.

        Returns:
            The search space that stood there, if one did.
        """
        if field is None:
            return None
        body = self._reader(field)
        if body is None:
            value = check(field)
            if value is not None:
                block[key] = value
            return None
        if body:
            for bound in (body[kind] for kind in body if kind != "categorical"):
                for end in ("min", "max"):
                    check(Field(bound[end], field.book, field.location))
            block[key] = first(body)
            self.add(name, [f"{pointer}/{key}"], body, **({"expand": True} if self.expand else {}))
        return body

    def add(self, name: str, paths: list[str], body: Body, **more: Any) -> None:
        """Adds a parameter, under a name that no other has; `more` are further keys of it."""
        word = re.sub(r"\W", "_", name)[:50]
        taken = {parameter["name"] for parameter in self.parameters}
        number = 2
        unique = word
        while unique in taken:
            unique, number = f"{word}_{number}", number + 1
        self.parameters.append({"name": unique, "paths": paths, **body, **more})
