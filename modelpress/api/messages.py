"""Plain words for validation errors: what was expected, what was found, and what to write instead."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from .v1alpha1.base import in_words as in_words

DNS_LABEL = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"

# pattern of a type -> (what it means, what to do)
PATTERNS: dict[str, tuple[str, str]] = {
    DNS_LABEL: (
        "lower-case letters, digits and '-', first a letter, last a letter or digit",
        "rename it, for example to {slug}",
    ),
    r"^(1xchannel|channelx1|[1-9][0-9]{0,3}x[1-9][0-9]{0,3}|[1-9][0-9]{0,2}:[1-9][0-9]{0,2})$": (
        "a block such as 4x1 (outputs x inputs), 1xchannel or channelx1, or N:M, which keeps N weights of every M",
        "write for example 4x1 or 2:4",
    ),
    r"^u?int[2-8]$": ("a type from int2 to int8 or from uint2 to uint8", "write for example int8"),
    r"^(affine|symmetric)$": ("affine or symmetric", "write one of them"),
    r"^(auto|[1-9][0-9]{0,3})$": ("a number from 1 to 9999, or auto", "write for example 8"),
    r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$": (
        "lower-case letters, digits and '-', first and last a letter or digit",
        "rename it, for example to {slug}",
    ),
    r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*$": (
        "module:attribute",
        "name the Python module and, after a colon, the function or class in it, as in {entrypoint}",
    ),
    r"^(/[^/~]*(~[01][^/~]*)*)+$": (
        "a JSON Pointer into template.spec, such as /stages/0/prune/sparsity",
        "begin with '/' and separate keys and indices (from 0) by '/', as in {pointer}",
    ),
    r"^[0-9a-f]{64}$": ("64 hexadecimal digits in lower case", "copy it from the output of sha256sum"),
    r"^[0-9a-f]{40}([0-9a-f]{24})?$": (
        "the full hash of a commit: 40 or 64 hexadecimal digits in lower case",
        "copy it from the output of git rev-parse HEAD",
    ),
    r"^((https?|ssh)://|[A-Za-z0-9_.-]+@[A-Za-z0-9.-]+:)[!-~]+$": (
        "the URL of a git repository",
        "begin with https://, http:// or ssh://, or write it as in git@host:path",
    ),
    r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$": (
        "lower-case letters, digits and any of - ., first and last a letter or digit",
        "copy the object's name, for example from kubectl get",
    ),
    r"^[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*$": (
        "a relative path whose parts begin with a letter, a digit or '_'",
        "write it without a '/' before it, without '..' and without spaces",
    ),
    r"^[A-Za-z0-9][A-Za-z0-9._/-]*$": (
        "a commit, tag or branch: letters, digits and any of . _ / -, first a letter or digit",
        "copy it from the repository's page",
    ),
    r"^[A-Za-z0-9._-]+$": ("letters, digits and any of . _ -", "copy the key from the ConfigMap"),
    r"^[A-Za-z0-9][A-Za-z0-9._:/@-]*$": (
        "the name of an image",
        "write it as in registry.example.com/team/runner:1.0",
    ),
    r"^[0-9]+(\.[0-9]+)?(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$": (
        "a quantity such as 2, 500m or 16Gi",
        "write a number, with a unit of Kubernetes if need be",
    ),
    r"^[A-Za-z_][A-Za-z0-9_./@-]*$": (
        "letters, digits and any of _ . / @ -, first a letter or '_'",
        "rename the metric",
    ),
    r"^[A-Za-z_][A-Za-z0-9_]*$": ("letters, digits and '_', first a letter or '_'", "rename it, for example to {word}"),
    r"^[A-Za-z_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?$": (
        "letters, digits and any of _ . -, first a letter or '_', last a letter, digit or '_'",
        "rename it, for example to {word}",
    ),
    r"^([A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?)?$": (
        "letters, digits and any of _ . -, first and last a letter or digit",
        "rename it, for example to {word}",
    ),
    r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?$": (
        "letters, digits and any of _ . -, with a domain and '/' before it if need be",
        "rename it, for example to {word}",
    ),
    r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$": ("a reason in CamelCase", "rename it, for example to {word}"),
}

# error type of pydantic -> (words, kind of value wanted)
_TYPES: dict[str, tuple[str, str]] = {
    "string_type": ("must be text", "str"),
    "int_type": ("must be an integer", "int"),
    "float_type": ("must be a number", "float"),
    "bool_type": ("must be true or false", "bool"),
    "list_type": ("must be a list", "list"),
    "dict_type": ("must be a mapping", "dict"),
    "model_type": ("must be a mapping", "dict"),
    "model_attributes_type": ("must be a mapping", "dict"),
    "mapping_type": ("must be a mapping", "dict"),
    "datetime_type": ("must be a time such as 2026-01-31T12:00:00Z", ""),
    "datetime_parsing": ("must be a time such as 2026-01-31T12:00:00Z", ""),
    "datetime_from_date_parsing": ("must be a time such as 2026-01-31T12:00:00Z", ""),
    "timezone_aware": ("must be a time with a time zone, such as 2026-01-31T12:00:00Z", ""),
    "finite_number": ("must be a finite number", ""),
    "int_parsing_size": ("must be an integer of at most 64 bits", ""),
}

_BOUNDS: dict[str, str] = {
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "string_too_long": "must have at most {max_length} characters",
    "string_too_short": "must have at least {min_length} characters",
    "too_long": "must have at most {max_length} entries",
    "too_short": "must have at least {min_length} entries",
}

FIXES: dict[str, str] = {
    "greater_than": "give a larger value",
    "greater_than_equal": "give a larger value",
    "less_than": "give a smaller value",
    "less_than_equal": "give a smaller value",
    "string_too_long": "shorten it",
    "string_too_short": "give it some text",
    "too_long": "remove some",
    "too_short": "add one, or leave the key out",
    "list_type": "begin each entry on a line of its own with '- '",
    "dict_type": "write keys with values below it",
    "model_type": "write keys with values below it",
    "range_order": "exchange them",
    "range_log_step": "remove one of them",
    "range_log_min": "raise min, or remove log",
    "distinct": "remove one of them",
    "finite_number": "write a plain number",
    "int_parsing_size": "give a smaller number",
}

# Keys of a search space.
_SEARCHED = frozenset({"_type", "_value", "range", "min", "max", "choice", "values", "low", "high"})
_CREDENTIALS = re.compile(r"://[^/\s@]*@")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


def typed_message(kind: str, context: Mapping[str, Any], union: bool, mapped: bool = False) -> tuple[str, str] | None:
    """What was expected by an error of this type, and the kind of value; None: not an error of types or bounds.

    Args:
        kind: of the error, as pydantic has it.
        context: its numbers.
        union: several kinds are allowed.
        mapped: one value, or a mapping of such.
    """
    if kind in _BOUNDS:
        return _singular(_BOUNDS[kind].format(**{name: _number(value) for name, value in context.items()})), ""
    if mapped:
        return "must be one value for all, or a mapping of targets to values", ""
    if union:
        return "must be text, a number, true or false", "scalar"
    return _TYPES.get(kind)


def typed_fix(wanted: str, value: Any) -> str | None:
    """What to write instead of `value` where a value of kind `wanted` is needed; None: nothing particular."""
    if wanted == "str":
        if isinstance(value, bool):
            return "YAML reads an unquoted on, off, yes, no, y or n as true or false: put the text in quotes"
        if isinstance(value, int | float):
            return f'put it in quotes: "{_number(value)}"'
        return "give one text" if isinstance(value, list | dict) else "add a value"
    if wanted in ("int", "float") and isinstance(value, dict) and _SEARCHED & value.keys():
        return "write one number; what is to be searched stands in the searchSpace of a CompressionSweep"
    if wanted in ("int", "float"):
        if isinstance(value, str):
            return _number_fix(wanted, value)
        if isinstance(value, bool):
            return "write a number; YAML reads an unquoted on, off, yes, no, y or n as true or false"
        return f"write {round(value)}" if isinstance(value, float) and abs(value) < 1e15 else "write one number"
    if wanted == "bool":
        if isinstance(value, str) and value.lower() in ("true", "yes", "on", "y"):
            return "write true, without quotes"
        if isinstance(value, str) and value.lower() in ("false", "no", "off", "n"):
            return "write false, without quotes"
        return "write true or false"
    if wanted == "list" and not isinstance(value, dict):
        return f"write [{_number(value)}]"
    if wanted == "scalar":
        return "give one plain value; no list and no mapping"
    return None


def fix_pattern(pattern: str, value: str) -> tuple[str, str]:
    """What a pattern means in words, and what to do about `value`, which does not match it."""
    rule, fix = PATTERNS[pattern]
    slug = re.sub(r"[^a-z0-9]+", "-", value.lower()).strip("-")
    return rule, fix.format(
        slug=slug if re.match("[a-z]", slug) else f"m-{slug}".rstrip("-"),
        word=re.sub(r"^(?=[0-9]|$)", "p", re.sub(r"[^A-Za-z0-9_]+", "_", value).strip("_")),
        entrypoint=_entrypoint_like(value),
        pointer="/" + re.sub(r"[\[\].]+", "/", value).strip("/") if value.strip("/~") else "/stages/0/prune/sparsity",
    )


def describe(value: Any) -> str:
    """A value as a person would call it, short."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"the text {cut(_CREDENTIALS.sub('://***@', value))!r}"
    if isinstance(value, int | float):
        return cut(_number(value))
    if isinstance(value, dict):
        return "a mapping" if value else "an empty mapping"
    if isinstance(value, list | tuple | set):
        return f"a {type(value).__name__} of {len(value)}" if value else f"an empty {type(value).__name__}"
    return f"a {type(value).__name__}"


def keys_in_words(names: Iterable[str], limit: int = 12) -> str:
    """Names in order, the first few of them where there are many."""
    listed = list(names)
    return ", ".join(listed[:limit]) + (f" and {len(listed) - limit} more" if len(listed) > limit else "")


def _number_fix(wanted: str, value: str) -> str:
    text = value.strip().replace("_", "")
    if not _NUMBER.fullmatch(text):
        percent = text.removesuffix("%")
        if percent != text and _NUMBER.fullmatch(percent) and wanted == "float":
            return f"write {_number(float(percent) / 100)}"
        return "write a plain number"
    number = float(text)
    if abs(number) == float("inf"):
        return "write a finite number"
    if wanted == "int" and number != int(number):
        return f"write {round(number)}"
    plain = _number(number)
    if "e" in text.lower():
        return f"YAML 1.1 reads {text} as text: write {_with_point(plain)}"
    return f"write {plain}, without quotes"


def _with_point(plain: str) -> str:
    mantissa, mark, exponent = plain.partition("e")
    return plain if not mark or "." in mantissa else f"{mantissa}.0e{exponent}"


def _entrypoint_like(value: str) -> str:
    path = value.removesuffix(".py").replace("/", ".").strip(". ")
    module, _, attribute = path.rpartition(".")
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.]*", path) and module:
        return f"{module}:{attribute}"
    return f"{path}:create" if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", path) else "digits:create"


def _number(value: Any) -> str:
    if isinstance(value, int) and value.bit_length() > 1024:
        return f"an integer of {value.bit_length()} bits"  # Python writes no decimal number of any length
    return str(int(value)) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else str(value)


def _singular(text: str) -> str:
    return text.replace(" 1 entries", " 1 entry").replace(" 1 characters", " 1 character")


def cut(text: str, length: int = 60) -> str:
    """The text, or the beginning of it."""
    return text if len(text) <= length else text[: length - 1] + "…"
