"""Foundations of every API type: camelCase keys, unknown keys refused, bounded strings and numbers."""

import datetime as dt
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, ClassVar, NamedTuple, get_args

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, PlainSerializer, ValidationInfo, model_validator
from pydantic.alias_generators import to_camel, to_snake
from pydantic_core import PydanticCustomError

GROUP = "modelpress.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

# Validation context under which Python callers may write snake_case and the spellings of older tools. YAML never may:
# the API server knows one spelling only, and both must give the same verdict.
PYTHON_SPELLING = {"spelling": "python"}


def plain(word: str) -> str:
    """A name as it is compared with others: `L1Filter_Pruner` is `l1filterpruner`."""
    return word.replace("_", "").replace("-", "").lower()


class Cel(NamedTuple):
    """A validation rule of the CRD in the Common Expression Language, `self` being the object."""

    rule: str
    message: str


def cel_exactly_one(*keys: str) -> Cel:
    """The CEL counterpart of exactly_one, of keys in camelCase."""
    given = " + ".join(f"(has(self.{key}) ? 1 : 0)" for key in keys)
    return Cel(f"{given} == 1", f"exactly one of {', '.join(keys)} is needed")


class ApiModel(BaseModel):
    """A structural object: camelCase keys, unknown keys refused, a null is an absent key (as the API server has it)."""

    model_config = ConfigDict(
        defer_build=True,
        alias_generator=to_camel,
        validate_by_alias=True,
        validate_by_name=False,
        serialize_by_alias=True,
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
    )

    def __init__(self, /, **data: Any) -> None:
        """Code constructs objects by field name, or by alias; data from outside (model_validate) takes aliases only."""
        self.__pydantic_validator__.validate_python(data, self_instance=self, by_alias=True, by_name=True)

    # As on pydantic's own BaseModel.__init__: validating a document need not go through this constructor.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    # Spellings of older tools, accepted under PYTHON_SPELLING: {"sparse_ratio": "sparsity"}.
    other_spellings: ClassVar[dict[str, str]] = {}

    # Earlier names of keys, in camelCase, under every spelling: {"speedup": "shrink"}. What is written has the new one.
    earlier_names: ClassVar[dict[str, str]] = {}

    # What other tools have and this object has not, under no spelling: key -> what to write instead.
    elsewhere: ClassVar[dict[str, str]] = {}

    # Values of other tools by field: {"algorithm": {"l1_filter": "did you mean l1?"}}.
    other_values: ClassVar[dict[str, dict[str, str]]] = {}

    # Those of them that mean one of ours, accepted under PYTHON_SPELLING, as `plain` has them: {"algorithm":
    # {"l1filter": "l1"}}.
    value_spellings: ClassVar[dict[str, dict[str, str]]] = {}

    # The CEL counterparts of this class's validators, inherited ones included: the API server refuses what we refuse.
    cel_rules: ClassVar[tuple[Cel, ...]] = ()

    @model_validator(mode="before")
    @classmethod
    def _spell(cls, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, dict):
            return value
        if info.context and info.context.get("spelling") == "python":
            value = cls._to_our_values(cls._to_camel_keys(value))
        given = {key: item for key, item in value.items() if item is not None}
        return cls._renamed(given) if cls.earlier_names.keys() & given.keys() else given

    @classmethod
    def _renamed(cls, value: dict[str, Any]) -> dict[str, Any]:
        for old, new in cls.earlier_names.items():
            if old in value and new in value:
                raise PydanticCustomError(
                    "two_spellings",
                    "'{first}' is the earlier name of '{second}'; give one of them",
                    {"first": old, "second": new},
                )
        return {cls.earlier_names.get(key, key): item for key, item in value.items()}

    @classmethod
    def _to_camel_keys(cls, value: dict[str, Any]) -> dict[str, Any]:
        known = {name: field.alias or name for name, field in cls.model_fields.items()}
        known |= {old: known[name] for old, name in cls.other_spellings.items()}
        known |= {to_snake(old): new for old, new in cls.earlier_names.items()} | cls.earlier_names
        out: dict[str, Any] = {}
        origin: dict[str, str] = {}
        for key, item in value.items():
            target = known.get(key, key)
            if target in out:
                raise PydanticCustomError(
                    "two_spellings",
                    "'{first}' and '{second}' are two spellings of one key; give one of them",
                    {"first": origin[target], "second": key},
                )
            out[target], origin[target] = item, key
        return out

    @classmethod
    def _to_our_values(cls, value: dict[str, Any]) -> dict[str, Any]:
        return {
            key: cls.value_spellings[key].get(plain(item), item)
            if key in cls.value_spellings and isinstance(item, str)
            else item
            for key, item in value.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """The object as JSON-ready data with camelCase keys; absent values are left out."""
        return self.model_dump(mode="json", exclude_none=True)


class ContractModel(ApiModel):
    """What two versions of modelpress may say to each other: keys that a newer one adds are ignored by an older one."""

    model_config = ConfigDict(extra="ignore")


def in_words(names: Iterable[str]) -> str:
    """['a', 'b', 'c'] -> 'a, b or c'."""
    listed = list(names)
    return listed[0] if len(listed) == 1 else f"{', '.join(listed[:-1])} or {listed[-1]}"


def exactly_one(model: BaseModel, *names: str) -> str:
    """The one field of `names` that is set.

    Raises:
        PydanticCustomError: none or several are set.
    """
    given = [name for name in names if getattr(model, name) is not None]
    if len(given) != 1:
        keys = {name: type(model).model_fields[name].alias or to_camel(name) for name in names}
        listed, found = ", ".join(keys.values()), ", ".join(keys[name] for name in given) or "none of them"
        raise PydanticCustomError(
            "exactly_one", "exactly one of {listed} is needed; found {found}", {"listed": listed, "found": found}
        )
    return given[0]


def rebuild(*changed: type[ApiModel]) -> None:
    """Lets types whose fields have changed, and every type of this package that may hold them, validate anew.

    Args:
        changed: held ones before those that hold them.
    """
    done: set[type[ApiModel]] = set()

    def build(kind: type[ApiModel]) -> None:
        if kind not in done:
            done.add(kind)
            for field in kind.model_fields.values():
                for held in _held(field.annotation):
                    build(held)
            kind.model_rebuild(force=True)

    for each in (*changed, *_subclasses(ApiModel)):
        build(each)


def _held(annotation: Any) -> Iterator[type[ApiModel]]:
    """The types of this package in an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, ApiModel):
        yield annotation
    for part in get_args(annotation):
        yield from _held(part)


def _subclasses(kind: type[ApiModel]) -> Iterator[type[ApiModel]]:
    for each in kind.__subclasses__():
        yield each
        yield from _subclasses(each)


def plain_text(value: Any) -> Any:
    """An integer is as good as its text: cpu: 2."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _rfc3339(value: dt.datetime) -> str:
    return value.astimezone(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# RFC 3339 in UTC with milliseconds, so that the order of events inside one second survives.
Time = Annotated[AwareDatetime, Field(strict=False), PlainSerializer(_rfc3339, return_type=str, when_used="json")]

Name = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[A-Za-z_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?$")]
Text = Annotated[str, Field(max_length=1024)]
Scalar = bool | int | float | Annotated[str, Field(max_length=256)]  # a parameter's value
MAX_URI = 2048
Uri = Annotated[str, Field(min_length=1, max_length=MAX_URI)]
ModuleName = Annotated[str, Field(min_length=1, max_length=512)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
