"""The reference pages say what the types say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from modelpress.api import crd, reference
from modelpress.api.load import load_dict
from modelpress.api.semantic import job_problems, sweep_problems
from modelpress.api.v1alpha1 import CompressionJob, reasons
from modelpress.result import ExitCode

PAGES = sorted((Path(__file__).parents[3] / "docs" / "reference").glob("compression*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_pages_are_up_to_date(page: Path) -> None:
    """Run `python -m modelpress.api.reference docs/reference` after changing a type."""
    text = page.read_text(encoding="utf-8")
    assert "<!-- generated: " in text
    assert reference.refresh(text) == text


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_pages_keep_their_order(page: Path) -> None:
    """Every page of a kind reads in the same order."""
    headings = re.findall(r"^## (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert [heading.split(" with ")[0] for heading in headings] == ["Example", "Writing a spec", "Working", "Status"]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_examples_are_valid(page: Path) -> None:
    """What people copy works."""
    found = re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    for text in found:
        obj = load_dict(yaml.safe_load(text))
        assert (job_problems(obj.spec) if isinstance(obj, CompressionJob) else sweep_problems(obj.spec)) == []


def test_every_field_has_a_meaning() -> None:
    """No row of a field table ends with an empty cell."""
    for part in ("job.spec", "job.status", "sweep.spec", "sweep.status"):
        rows = [line for line in reference._PARTS[part]().splitlines() if line.startswith("| `")]
        assert len(rows) > 10
        assert [row for row in rows if row.endswith("|  |")] == []


def test_tables_show_bounds_and_defaults() -> None:
    """A row has the key, its values with bounds, the default, the meaning."""
    table = reference.fields(
        {
            "type": "object",
            "required": ["a"],
            "properties": {
                "a": {
                    "type": "number",
                    "minimum": 0,
                    "maximum": 1,
                    "exclusiveMaximum": True,
                    "description": "A|b.",
                },
                "b": {"type": "array", "maxItems": 3, "items": {"type": "string", "maxLength": 9}, "description": "B."},
                "c": {
                    "type": "object",
                    "maxProperties": 2,
                    "additionalProperties": {
                        "type": "object",
                        "description": "Inner.",
                        "properties": {"d": {"type": "boolean", "default": False, "description": "D."}},
                    },
                },
            },
        },
        "spec",
    )
    assert [line for line in table.splitlines() if line.startswith("| `")] == [
        "| `a` | number ≥ 0, < 1 | **required** | A\\|b. |",
        "| `b` | list of 0 to 3: text up to 9 |  | B. |",
        "| `c` | map of 0 to 2: object |  | Inner. See `spec.c.*`. |",
        "| `d` | true or false | `false` | D. |",
    ]
    assert "### `spec.c.*`\n\nInner." in table


def test_every_constant_is_documented() -> None:
    """Users and health checks rely on these words, so each has its sentence."""
    values = {value for name, value in vars(reasons).items() if name.isupper()}
    assert values == reference.constants("Condition types").keys() | reference.constants("Reasons").keys()
    assert reference.constants("Condition types")["Complete"] == "terminal: there is a result"


def test_exit_codes_are_documented() -> None:
    """The table of runner exit codes lists exactly the codes that runners use."""
    text = next(page for page in PAGES if page.stem == "compressionjob").read_text(encoding="utf-8")
    table = text.split("The exit code of a runner")[1].split("That of `modelpress run`")[0]
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)] == [code.value for code in ExitCode]


def test_update_writes_changed_pages_only(tmp_path: Path) -> None:
    """Pages without generated parts, and pages that are up to date, are left alone."""
    page, other = tmp_path / "a.md", tmp_path / "b.md"
    page.write_text("x\n<!-- generated: conditions -->\nold\n<!-- end -->\ny\n")
    other.write_text("nothing generated\n")
    assert reference.update(tmp_path) == [page]
    assert "`Stalled`" in page.read_text()
    assert page.read_text().endswith("<!-- end -->\ny\n")
    assert reference.update(tmp_path) == []


def test_unknown_part_is_an_error() -> None:
    """A misspelt marker is told, not left empty."""
    with pytest.raises(KeyError, match=r"job\.spek"):
        reference.refresh("<!-- generated: job.spek -->\n<!-- end -->")


def test_schema_of_tables_is_the_crd() -> None:
    """The tables come from the schema that the API server gets, so every key of it is in them."""
    spec = crd.job_crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    table = reference._PARTS["job.spec"]()
    assert all(f"| `{key}` |" in table for key in spec["properties"])
