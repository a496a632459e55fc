"""Objects as documents: -o json and -o yaml."""

from __future__ import annotations

import json
import sys
from typing import Any

import yaml

from .connection import Raw


def print_document(value: Any, form: str) -> None:
    """Print plain data as JSON or YAML."""
    if form == "json":
        print(json.dumps(value, indent=2))
    else:
        yaml.safe_dump(value, sys.stdout, sort_keys=False)


def as_list(objects: list[Raw]) -> Raw:
    """Several objects as one document, as kubectl writes them."""
    return {"apiVersion": "v1", "kind": "List", "items": objects}


def tidy(obj: Raw) -> Raw:
    """The object without the bookkeeping that nobody reads."""
    meta = {key: value for key, value in (obj.get("metadata") or {}).items() if key != "managedFields"}
    return {**obj, "metadata": meta}
