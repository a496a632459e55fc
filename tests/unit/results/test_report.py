"""report.html: what it shows, that it loads nothing, and that nothing of a trial can run in it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from modelpress.api.v1alpha1 import Constraint, Objective
from modelpress.result import RunRecord
from modelpress.results.report import Frame, ReportError, findings, refresh, render, standing_frame
from modelpress.results.report.plot import plot
from modelpress.results.trials import Trial, read_trials
from modelpress.store import layout, manifest, open_store
from modelpress.store.manifest import Manifest, RunMetrics

DENSE = {"default": 0.9, "macs": 1000.0}


def drawn(shown: Frame, trials: list[Trial]) -> bytes:
    """The page of these trials."""
    return render(findings(shown, trials))


class Page(HTMLParser):
    """The elements of a page: (tag, attributes), texts of rows, and what stands inside of script and style."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self.rows: list[list[str]] = []
        self._inside = ""
        self._in_cell = False
        self.feed(page.decode())
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""
        if tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        if self._inside in self.raw:
            self.raw[self._inside].append(data)
        elif self._in_cell:
            self.rows[-1][-1] += (" " if self._inside == "small" else "") + data

    def find(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        return [
            found
            for name, found in self.tags
            if name == tag and all(found.get(key.rstrip("_").replace("_", "-")) == v for key, v in attributes.items())
        ]


def trial(number: int, score: float = 0.9, macs: float = 500.0, **more: Any) -> Trial:
    """A trial that succeeded."""
    made = Manifest(
        attempt=1,
        files=[],
        spec_digest="d",
        metrics=RunMetrics(baseline=DENSE, compressed={"default": score, "macs": macs}),
    )
    record = {
        "phase": "Succeeded",
        "reason": "Succeeded",
        "name": f"sweep-{number}",
        "trial": {"number": number, "parameters": more.pop("parameters", {"sparsity": 0.5})},
    }
    return Trial(number, f"trials/{number:05d}", manifest=made, record=RunRecord.model_validate(record | more))


def frame(**changes: Any) -> Frame:
    given: dict[str, Any] = {
        "title": "digits",
        "uri": "s3://out/default/digits-01234567",
        "objectives": (("default", "maximize"), ("macs", "minimize")),
        "constraints": (Constraint(metric="macs", max_ratio=0.5), Constraint(metric="default", max_relative_loss=0.1)),
        "best": 1,
        "front": frozenset({1, 2}),
    }
    return Frame(**{**given, **changes})


TRIALS = [trial(0, 0.5, 600.0), trial(1, 0.9, 400.0), trial(2, 0.85, 200.0), trial(3, 0.84, 300.0)]


def test_an_uncertain_constraint_is_a_state_of_its_own() -> None:
    """It is said in the trial's row, with the numbers on the pointer, and among the sums; it is not missed."""
    said = "latencyMs lies between 0.8 and 1.2, which leaves maxRatio 0.5 open"
    unsure = trial(1, 0.9, 400.0, constraintsMet=False, uncertain=[said])
    both = trial(2, 0.5, 400.0, constraintsMet=False, unmet=["default lost"], uncertain=[said])
    text = drawn(frame(best=0, front=frozenset({0})), [trial(0, 0.9, 400.0), unsure, both])
    states = [row[1] for row in Page(text).rows[1:]]
    assert states == ["Succeeded best, front", "Succeeded a constraint is uncertain", "Succeeded misses a constraint"]
    assert f'title="{said}"' in text.decode()
    assert "1 miss a constraint; of 1 the spread of the latency leaves a constraint open" in text.decode()


def test_the_table_has_all_trials_before_and_after() -> None:
    """One row for each trial: parameters, then each metric with the dense model's and the change."""
    failed = Trial(4, "trials/00004", record=RunRecord(phase="Failed", reason="RunnerFailed", message="boom", name="x"))
    page = Page(drawn(frame(), [*TRIALS, failed]))
    assert page.rows == [
        ["trial", "state", "sparsity", "score", "MACs"],
        ["0", "Succeeded misses a constraint", "0.5", "0.5 from 0.9, -44.4%", "600 from 1k, -40.0%"],
        ["1", "Succeeded best, front", "0.5", "0.9 from 0.9, 0.0%", "400 from 1k, -60.0%"],
        ["2", "Succeeded front", "0.5", "0.85 from 0.9, -5.6%", "200 from 1k, -80.0%"],
        ["3", "Succeeded", "0.5", "0.84 from 0.9, -6.7%", "300 from 1k, -70.0%"],
        ["4", "Failed", "", "", ""],
    ]
    assert page.find("td", class_="state")[4]["title"] == "boom"


def test_layers_of_the_best_trial_that_lose_most_come_first() -> None:
    """From its last quantizing stage; what a record has of odd kinds is left blank, and nothing of it can run."""
    one = trial(1, 0.9, 400.0)
    assert one.manifest is not None
    layers = [
        {"name": "stem", "weight": "int8", "input": "uint8", "sqnrDb": 41.26, "bytesBefore": 400, "bytesAfter": 104},
        {"name": EVIL, "weight": "int4", "sqnrDb": 12.5, "bytesBefore": 4000, "bytesAfter": 520},
        {"name": "odd", "weight": ["int8"], "sqnrDb": "high", "bytesBefore": None},
        "nothing",
    ]
    stages = [{"method": "mixedPrecision", "layers": [{"name": "no"}]}, {"method": "quantize", "layers": layers}]
    one.manifest.metrics.stages.extend(stages)
    text = drawn(frame(), [one])
    page = Page(text)
    assert not page.find("img")
    assert [row for row in page.rows if row[0] in ("stem", EVIL, "odd")] == [
        [EVIL, "int4", "", "", "12.5", "4k", "520"],
        ["stem", "int8", "uint8", "", "41.3", "400", "104"],
        ["odd", "", "", "", "", "", ""],
    ]
    layers[0] |= {"msBefore": 4.0, "msAfter": 1.25}
    page = Page(drawn(frame(), [one]))
    assert [row[7:] for row in page.rows if row[0] in ("stem", "odd")] == [["4", "1.25"], ["", ""]]
    assert b"Layers of trial 1" in text
    assert b"Layers of trial" not in drawn(frame(best=None), [one])


def test_the_plot_marks_each_kind_of_trial() -> None:
    """Best, front, kept and missed trials, the dense model, and each bound as a line over a shaded side."""
    page = Page(drawn(frame(), TRIALS))
    kinds = {d["data-n"]: (d["class"] or "").split()[1] for _, d in page.tags if "data-n" in d}
    assert kinds == {"0": "missed", "1": "best", "2": "front", "3": "kept"}
    assert len([d for d in page.find("path", class_="dense") if "l7 7l-7 7l-7 -7z" in (d["d"] or "")]) == 2
    assert len(page.find("path", class_="bound")) == len(page.find("rect", class_="beyond")) == 2


def test_bounds_lie_where_the_constraint_ends() -> None:
    """With 1000 MACs dense, at most half of them is at 500, and all to the right is shaded."""
    picture = plot(frame(objectives=(("default", "maximize"), ("macs", "minimize"))), TRIALS)
    at = float(re.findall(r'<path class="bound" d="M([\d.]+) ', picture)[0])
    shaded = re.findall(r'<rect class="beyond" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', picture)[0]
    # The axis runs from 200 - 6 % of 800 to 1000 + 6 % of 800, over 74 to 842.
    assert at == pytest.approx(74 + (500 - 152) / (1048 - 152) * 768, abs=0.06)
    assert float(shaded[0]) == pytest.approx(at)
    assert float(shaded[0]) + float(shaded[1]) == pytest.approx(842, abs=0.11)


def test_the_front_is_drawn_as_steps() -> None:
    """Between two trials of the front the cheaper one's score is what is attained: across first, then up."""
    picture = plot(frame(constraints=()), TRIALS)
    (path,) = re.findall(r'<path class="front" d="([^"]+)"', picture)
    assert re.fullmatch(r"M[\d.]+ [\d.]+H[\d.]+V[\d.]+", path)


def test_one_objective_is_plotted_by_trial() -> None:
    """The line is the best so far; a trial that misses a constraint does not count."""
    given = frame(objectives=(("macs", "minimize"),), front=frozenset({2}), best=2)
    (path,) = re.findall(r'<path class="front" d="([^"]+)"', plot(given, TRIALS))
    assert path.count("H") == 2  # 400 at trial 1, 200 from trial 2 to the last
    assert "of each trial" in plot(given, TRIALS)


def test_equal_values_and_single_trials_can_be_plotted() -> None:
    """A range of no width is no division by zero."""
    assert plot(frame(objectives=(("default", "maximize"), ("macs", "minimize"))), [TRIALS[1]]).startswith("<svg")
    same = [trial(n, 0.0, 0.0) for n in range(3)]
    assert plot(frame(constraints=()), same).startswith("<svg")


EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)> \" ' & @@data@@"


def test_nothing_of_a_trial_can_run() -> None:
    """Names, parameters and messages are text: no element, no attribute of theirs, and the policy allows one script."""
    evil = trial(1, parameters={"x": EVIL[:256]}, unmet=[EVIL])
    failed = Trial(2, "trials/00002", record=RunRecord(phase="Failed", reason="x", message=EVIL, name=EVIL))
    constraints = (Constraint(metric="gone", min=1.0),)
    page = Page(drawn(frame(title=EVIL, uri=EVIL, constraints=constraints), [evil, failed]))
    assert [d.get("type") for d in page.find("script")] == ["application/json", None]
    assert not page.find("img")
    assert not [name for _, found in page.tags for name in found if name.startswith("on") or name == "style"]
    assert page.rows[1][2] == EVIL
    assert page.find("td", class_="state")[1]["title"] == EVIL
    policy = page.find("meta", http_equiv="Content-Security-Policy")[0]["content"] or ""
    for kind, text in (("style", page.raw["style"][0]), ("script", page.raw["script"][-1])):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none';")


def test_it_loads_nothing() -> None:
    """No element names another file or host."""
    page = Page(drawn(frame(), TRIALS))
    links = [found[key] for _, found in page.tags for key in ("src", "href", "action", "data") if key in found]
    assert links == ["#t1"]
    assert not re.search(rb"url\(|@import|https?://", drawn(frame(uri="x"), TRIALS))


def test_a_thousand_trials_fit() -> None:
    """All of a thousand trials are listed in a page of less than 1 MB."""
    trials = [trial(n, n / 1000, 10_000.0 - n, parameters={"sparsity": n / 1000, "rounds": n}) for n in range(1000)]
    made = drawn(frame(), trials)
    assert len(Page(made).rows) == 1001
    assert len(made) < 1_000_000


def test_more_trials_than_fit_are_left_to_the_table() -> None:
    """Best and front stay, then the newest; the page says how many there are, and where all of them are."""
    parameters = {f"p{n}": "x" * 200 for n in range(55)}
    trials = [trial(n, parameters=parameters) for n in range(1500)]
    made = drawn(frame(), trials)
    numbers = [int(row[0]) for row in Page(made).rows[1:]]
    assert numbers == [1, 2, *range(1500 - 998, 1500)]
    assert b"1000 of 1500 trials are listed" in made


def test_a_report_is_the_same_every_time() -> None:
    """Publishing again changes no byte."""
    assert drawn(frame(), TRIALS) == drawn(frame(), TRIALS)


# Written again from the store ----------------------------------------------------------------------------------------


def put(uri: str, *trials: Trial, spec: dict[str, Any] | None = None) -> None:
    """Trials as runners leave them."""
    store = open_store(uri)
    for item in trials:
        assert item.manifest is not None
        assert item.record is not None
        files = []
        if spec is not None:
            text = json.dumps({"spec": spec}).encode()
            store.put_bytes(f"{item.prefix}/1-aaaaaaaa/{layout.JOB}", text)
            digest = hashlib.sha256(text).hexdigest()
            files.append({"path": f"1-aaaaaaaa/{layout.JOB}", "sha256": digest, "bytes": len(text)})
        made = Manifest.model_validate(item.manifest.to_dict() | {"files": files})
        manifest.commit(store, item.prefix, made)
        record = item.record.model_dump_json(exclude_none=True).encode()
        store.put_bytes(f"{item.prefix}/1-aaaaaaaa/{layout.RESULT}", record)


def test_refreshing_finds_best_and_front_anew(tmp_path: Path) -> None:
    """Of a running sweep: constraints from a trial's recipe, objectives as they are likely, then as they are told."""
    spec = {
        "model": {"entrypoint": "a:b"},
        "stages": [{"finetune": {"epochs": 1}}],
        "constraints": [{"metric": "macs", "maxRatio": 0.5}],
    }
    folder = str(tmp_path / "digits-01234567")
    put(folder, *TRIALS, spec=spec)
    store = open_store(folder)
    found = standing_frame(store, "", list(read_trials(store, "").values()))
    assert found.objectives == (("default", "maximize"), ("macs", "minimize"))
    assert (found.title, found.best, found.front) == ("digits", 1, {1, 2})
    where, count = refresh(store, objectives=[Objective(metric="macs")])
    assert (where, count) == (f"{folder}/report.html", 4)
    again = standing_frame(store, "", list(read_trials(store, "").values()))  # what was told is kept in the page
    assert again.objectives == (("macs", "minimize"),)
    assert again.best == 2


def test_refreshing_can_write_elsewhere(tmp_path: Path) -> None:
    """The store is then only read."""
    folder = str(tmp_path / "digits-01234567")
    put(folder, TRIALS[1])
    there = {info.path for info in open_store(folder).list("")}
    where, _ = refresh(open_store(folder), to=tmp_path / "page.html")
    assert Path(where).read_bytes().startswith(b"<!DOCTYPE html>")
    assert {info.path for info in open_store(folder).list("")} == there


def test_another_folder_is_told_apart(tmp_path: Path) -> None:
    """A store's root names the sweeps below it; a folder without any says what to name."""
    put(str(tmp_path / "runs/default/digits-01234567"), TRIALS[1])
    with pytest.raises(ReportError, match=r"no sweep's folder; name one of those below it: .*default/digits-01234567$"):
        refresh(open_store(str(tmp_path / "runs")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ReportError, match="holds no trials; name a sweep's folder"):
        refresh(open_store(str(tmp_path / "empty")))
