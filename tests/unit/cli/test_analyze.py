"""What comes of a sensitivity analysis: curves, a search space, a budget to start from."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from modelpress.api.stages import rules
from modelpress.api.v1alpha1 import Stage
from modelpress.cli import analyze as module
from modelpress.cli.analyze import analyze, search_bounds, starting_budget
from modelpress.cli.curves import COLOURS, curves
from modelpress.local.errors import UsageError

SVG = "{http://www.w3.org/2000/svg}"


def rows(*layers: tuple[tuple[str, ...], dict[float, float]], dense: float = 1.0) -> list[dict[str, Any]]:
    """Rows as the analysis gives them."""
    out: list[dict[str, Any]] = [{"layers": [], "sparsity": 0.0, "score": dense}]
    for names, points in layers:
        out += [{"layers": list(names), "sparsity": share, "score": score} for share, score in points.items()]
    return out


FOUND = rows((("a", "b"), {0.25: 0.99, 0.5: 0.97}), (("c",), {0.25: 0.5, 0.5: 1.0}), (("d",), {0.25: 1.0, 0.5: 0.995}))


def test_a_budget_is_what_each_layer_bears_alone() -> None:
    """.015 may go: of a and b .25 of 300 MACs each, of d half of 200, and c nothing: 1 - (150 + 100) / 1000."""
    macs = {"a": 300, "b": 300, "c": 100, "d": 200, "e": 100}
    [stage] = starting_budget(FOUND, "maximize", 0.015, "l2", macs)["stages"]
    assert stage["prune"] == {
        "algorithm": "l2",
        "budget": {"metric": "macs", "maxRatio": 0.75},
        "configList": [
            {"opNames": ["a", "b"], "maxSparsity": 0.25},
            {"opNames": ["c"], "maxSparsity": 0.0},
            {"opNames": ["d"], "maxSparsity": 0.5},
        ],
    }
    prune = Stage.model_validate(stage).prune
    assert prune is not None
    assert not list(rules("prune").problems(prune, "prune"))


def test_bounds_leave_out_what_bears_nothing() -> None:
    """Of a score that is to be small alike."""
    found = search_bounds(FOUND, "maximize", 0.03, "l1")
    assert [entry["opNames"] for entry in found["stages"][0]["prune"]["configList"]] == [["a", "b"], ["d"]]
    small = rows((("a",), {0.25: 1.005, 0.5: 2.0}))
    assert search_bounds(small, "minimize", 0.01, "l1")["stages"][0]["prune"]["configList"] == [
        {"opNames": ["a"], "sparsity": 0.25}
    ]


def test_curves_are_lines_from_the_dense_score() -> None:
    """One for each set of layers, at equal scores equally high; names are texts, whatever they hold."""
    svg = ElementTree.fromstring(curves(rows((("<a> & b",), {0.5: 1.0, 0.25: 0.9}), (("c",), {0.5: 0.8}))))
    drawn = [
        path.attrib["d"]
        for path in svg.iter(f"{SVG}path")
        if path.find(f"{SVG}title") is not None and path.attrib["stroke"] in COLOURS[:2]
    ]
    first, second = ([[float(number) for number in point.split()] for point in d[1:].split("L")] for d in drawn)
    assert [len(first), len(second)] == [3, 2]
    assert first[0] == second[0]
    assert first[0][1] == first[2][1] < first[1][1] < second[1][1]
    assert first[1][0] - first[0][0] == pytest.approx(first[2][0] - first[1][0], abs=0.11)
    assert "<a> & b" in [text.text for text in svg.iter(f"{SVG}text")]


def test_forty_layers_have_room() -> None:
    """The picture grows with its legend, and lines of one colour are dashed otherwise."""
    svg = ElementTree.fromstring(curves(rows(*(((f"layer{n}",), {0.5: n / 40}) for n in range(40)))))
    texts = [text for text in svg.iter(f"{SVG}text") if (text.text or "").startswith("layer")]
    assert len(texts) == 40
    assert float(texts[-1].attrib["y"]) < float(svg.attrib["height"])
    strokes = {
        (path.attrib["stroke"], path.attrib["stroke-dasharray"])
        for path in svg.iter(f"{SVG}path")
        if path.find(f"{SVG}title") is not None
    }
    assert len(strokes) == 28


@pytest.mark.parametrize("option", ["--csv", "--plot", "--bounds", "--budget"])
def test_a_file_that_could_not_be_written_is_told_first(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the file is read, and long before the model is scored layer by layer."""
    monkeypatch.setattr(module, "load_documents", lambda source: pytest.fail("the file was read"))
    names = {"--csv": "table", "--plot": "plot", "--bounds": "bounds", "--budget": "budget"}
    paths: dict[str, Any] = dict.fromkeys(names.values()) | {names[option]: tmp_path / "none" / "out"}
    with pytest.raises(UsageError, match=f"^{option}: cannot write .*none/out: No such file or directory; name a "):
        analyze("sensitivity", "job.yaml", sparsities=None, tolerance=0.02, **paths)
