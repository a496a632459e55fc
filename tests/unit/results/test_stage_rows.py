"""What each stage did, as rows of texts."""

from __future__ import annotations

from modelpress.results.stage_rows import COLUMNS, stage_rows

BASELINE = {"default": 0.9963, "parameters": 94_730.0, "macs": 2_670_000.0, "sizeBytes": 380_000.0, "latencyMs": 1.5}
STAGES = [
    {"name": "0-prune", "score": {"default": 0.5}, "parameters": 24_000, "macs": 700_000, "steps": 0, "seconds": 1.25},
    {
        "name": "tune",
        "score": {"default": 0.99},
        "parameters": 24_000,
        "macs": 700_000,
        "steps": 40,
        "seconds": 75.0,
        "sizeBytes": 96_000,
        "latencyMs": 0.625,
    },
]


def test_a_row_for_the_dense_model_and_one_for_each_stage() -> None:
    assert COLUMNS == ("stage", "score", "parameters", "MACs", "bytes", "latency ms", "steps", "time")
    assert stage_rows(BASELINE, STAGES) == [
        ("dense", "0.9963", "94.7k", "2.67M", "380k", "1.5", "", ""),
        ("0-prune", "0.5", "24k", "700k", "", "", "", "1.2 s"),
        ("tune", "0.99", "24k", "700k", "96k", "0.625", "40", "1:15"),
    ]


def test_a_stage_of_another_trial_says_so() -> None:
    first, second = STAGES
    assert [row[-1] for row in stage_rows(BASELINE, [{**first, "cached": True}, second])] == [
        "",
        "from another trial",
        "1:15",
    ]


def test_one_stage_needs_no_table() -> None:
    assert stage_rows(BASELINE, STAGES[:1]) == []


def test_what_is_not_as_expected_is_left_blank() -> None:
    odd = {"name": 7, "score": "high", "parameters": None, "macs": float("nan"), "steps": True, "seconds": "soon"}
    assert stage_rows({}, [odd, {}]) == [
        ("dense", "", "", "", "", "", "", ""),
        ("0", "", "", "", "", "", "", ""),
        ("1", "", "", "", "", "", "", ""),
    ]
