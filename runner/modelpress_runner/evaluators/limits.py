"""Whether a training function kept to what it was given: its limits, and the schedulers."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from modelpress_runner.evaluators.optimizer_state import plain

_PLACES = {"max_steps": 4, "max_epochs": 5}  # among the positional arguments


class Limits:
    """One call of a training function.

    Args:
        function: called with six positional arguments, the last two of them max_steps and max_epochs.
        max_steps: what it is given.
        max_epochs: what it is given.
        schedulers: what it is to step.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        max_steps: int | None,
        max_epochs: int | None,
        schedulers: Sequence[Any],
    ) -> None:
        self._function = function
        self._given = "max_epochs" if max_steps is None else "max_steps"
        self._value = max_epochs if max_steps is None else max_steps
        self._schedulers = list(schedulers)
        self._before = [_place(each) for each in self._schedulers]

    def remarks(self) -> list[str]:
        """Once the call is over: what it left aside."""
        out = []
        if self._value is not None and not _reads(self._function, _PLACES[self._given]):
            out.append(
                f"training_func never looks at its {self._given}, which was {self._value}: it trains as long as it "
                "likes, whatever the recipe says"
            )
        for scheduler, before in zip(self._schedulers, self._before, strict=True):
            if _place(scheduler) == before:
                out.append(
                    f"the scheduler {type(scheduler).__name__} was never stepped, so the learning rate stayed as it "
                    "was; call its step() in training_func"
                )
        return out


def _place(scheduler: Any) -> Any:
    count = getattr(scheduler, "_step_count", getattr(scheduler, "last_epoch", None))
    return plain(scheduler.state_dict()) if count is None else count


def _reads(function: Any, place: int) -> bool:
    """Whether a function reads its positional argument number `place`, counted from 0; True where nobody can tell."""
    if isinstance(function, types.MethodType):
        function, place = function.__func__, place + 1
    if not isinstance(function, types.FunctionType) or inspect.unwrap(function) is not function:
        return True
    code = function.__code__
    if place >= code.co_argcount:
        return True
    name = code.co_varnames[place]
    return name in set(_names(code))


def _names(code: types.CodeType) -> Iterator[str]:
    """Local variables that code reads, and those that functions inside of it share."""
    import dis

    yield from code.co_cellvars
    for each in dis.get_instructions(code):
        if each.opname.startswith("LOAD_FAST") or each.opname.endswith("LOAD_FAST"):
            values = each.argval if isinstance(each.argval, tuple) else (each.argval,)
            yield from (str(value) for value in values)
