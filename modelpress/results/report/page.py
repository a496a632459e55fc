"""The page itself: summary, plot and table put into page.html. Everything that comes from a trial is escaped."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Sequence
from html import escape
from importlib.resources import files

from modelpress import formatting
from modelpress.results.trials import Trial

from .findings import Findings
from .frame import Frame
from .layers import layers_section
from .plot import plot, sentence
from .search import search_section, sureness

MAX_CELLS = 60_000  # a page stays below some 6 MB; trials.csv has everything
MIN_ROWS = 200
_FIRST = ("default", "parameters", "macs", "sizeBytes", "latencyMs", "throughput")


def render(found: Findings) -> bytes:
    """report.html in UTF-8; equal arguments give equal bytes.

    It loads nothing, and by its own policy runs no script but the one in page.html.
    """
    frame, trials = found.frame, found.trials
    parameters = sorted({name for trial in trials for name in trial.parameters})
    metrics = _metrics(frame, trials)
    shown = _shown(frame, trials, 3 + len(parameters) + len(metrics))
    # page.html has no markers but these, and what is put in is not looked at again.
    texts = {
        "title": escape(frame.title),
        "summary": _summary(found) + _rungs(frame, trials),
        "plot": plot(frame, trials),
        "constraints": _constraints(frame) + search_section(found) + layers_section(found.best),
        "note": _note(trials, shown),
        "table": _table(found, shown, parameters, metrics),
        "data": frame.to_json(),
    }
    pieces = files(__package__).joinpath("page.html").read_text(encoding="utf-8").split("@@")
    script = _between(pieces[-1], "<script>", "</script>")
    style = _between(pieces[0] + pieces[2], "<style>", "</style>")
    texts["policy"] = f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'"
    pieces[1::2] = [texts[name] for name in pieces[1::2]]
    return "".join(pieces).encode()


def _between(text: str, start: str, end: str) -> str:
    return text.partition(start)[2].rpartition(end)[0]


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _metrics(frame: Frame, trials: Sequence[Trial]) -> list[str]:
    """Columns of metrics: objectives, constrained ones, the usual ones, all others."""
    known = {name for trial in trials for name in trial.compressed}
    objectives = [metric for metric, _ in frame.objectives]
    constrained = [constraint.metric for constraint in frame.constraints]
    return [name for name in dict.fromkeys((*objectives, *constrained, *_FIRST, *sorted(known))) if name in known]


def _shown(frame: Frame, trials: Sequence[Trial], columns: int) -> list[Trial]:
    """The trials of the table: all, or as many as a page can carry, the best, the front and the newest first."""
    room = max(MIN_ROWS, MAX_CELLS // columns)
    if len(trials) <= room:
        return list(trials)
    ranked = sorted(
        trials, key=lambda trial: (trial.number != frame.best, trial.number not in frame.front, -trial.number)
    )
    return sorted(ranked[:room], key=lambda trial: trial.number)


def _note(trials: Sequence[Trial], shown: Sequence[Trial]) -> str:
    if len(shown) == len(trials):
        return ""
    return (
        f"<p>{len(shown)} of {len(trials)} trials are listed: the best, the front and the newest. "
        "trials.csv beside this file has all of them.</p>"
    )


def _summary(found: Findings) -> str:
    frame, trials, best = found.frame, found.trials, found.best
    counts: dict[str, int] = {}
    for trial in trials:
        counts[trial.state] = counts.get(trial.state, 0) + 1
    states = ", ".join(f"{count} {state.lower()}" for state, count in sorted(counts.items(), key=lambda kv: -kv[1]))
    missed = sum(bool(frame.missed(trial)) for trial in trials)
    parts = [f"{len(trials)} trials: {states}" if trials else "no trials"]
    if missed:
        parts.append(f"{missed} miss a constraint")
    uncertain = sum(bool(frame.uncertain(trial)) for trial in trials)
    if uncertain:
        parts.append(f"of {uncertain} the spread of the latency leaves a constraint open")
    if frame.front:
        parts.append(f"{len(frame.front)} on the Pareto front")
    lines = [f"<p>{escape('; '.join(parts))}.</p>"]
    if best is not None:
        numbers = [metric for metric in _metrics(frame, [best])[:5] if metric in best.compressed]
        said = ", ".join(f"{name} {formatting.with_change(name, best.compressed, best.baseline)}" for name in numbers)
        chosen = formatting.parameters(best.parameters)
        lines.append(
            f'<p><a class="best" href="#t{best.number}">Best: trial {best.number}</a> '
            f"<code>{escape(chosen)}</code> {escape(said)}</p>"
        )
        lines.append(sureness(found))
    lines.append(f"<p><code>{escape(frame.uri)}</code></p>")
    return "\n".join(lines)


def _rungs(frame: Frame, trials: Sequence[Trial]) -> str:
    """Both rankings of a sweep with two rungs, side by side."""
    rungs = frame.screening
    if rungs is None or not rungs.promoted:
        return ""
    objectives = [metric for metric, _ in frame.objectives]
    by_number = {trial.number: trial for trial in trials}
    places = {number: place for place, number in enumerate(rungs.recovered, 1)}

    def cell(number: int) -> str:
        found = by_number.get(number)
        values = found.compressed if found is not None else {}
        said = ", ".join(f"{name} {formatting.number(name, values[name])}" for name in objectives if name in values)
        return f'<td><a href="#t{number}">trial {number}</a> {escape(said)}</td>'

    rows = "".join(
        f'<tr><td class="number">{place}</td>{cell(item.screened)}'
        f'<td class="number">{places.get(item.number, "")}</td>{cell(item.number)}</tr>'
        for place, item in enumerate(rungs.promoted, 1)
    )
    told = "" if rungs.rank_correlation is None else f" Rank correlation (Spearman): {rungs.rank_correlation:.2f}."
    return (
        f"<h2>Two rungs</h2><p>{len(rungs.promoted)} trials went on from the first stages.{told}</p>"
        "<table><thead><tr><th>before</th><th>first stages</th><th>after</th><th>whole recipe</th></tr></thead>"
        f"<tbody>{rows}</tbody></table>"
    )


def _constraints(frame: Frame) -> str:
    if not frame.constraints:
        return ""
    lines = "".join(f"<li>{escape(sentence(constraint))}</li>" for constraint in frame.constraints)
    return f"<h2>Constraints</h2><ul>{lines}</ul>"


# Table ---------------------------------------------------------------------------------------------------------------


def _table(found: Findings, shown: Sequence[Trial], parameters: Sequence[str], metrics: Sequence[str]) -> str:
    heads = [
        _head("trial", "number"),
        _head("state"),
        *(_head(name) for name in parameters),
        *(_head(formatting.HEADINGS.get(name, name), "number", name) for name in metrics),
    ]
    rows = [_row(found.frame, trial, parameters, metrics, found.apart.get(trial.number)) for trial in shown]
    return f"<thead><tr>{''.join(heads)}</tr></thead>\n<tbody>\n" + "\n".join(rows) + "\n</tbody>"


def _head(text: str, kind: str = "", name: str | None = None) -> str:
    title = f' title="{escape(name)}"' if name is not None and name != text else ""
    css = f' class="{kind}"' if kind else ""
    return f'<th scope="col"{css}{title}><button type="button">{escape(text)}</button></th>'


def _row(
    frame: Frame, trial: Trial, parameters: Sequence[str], metrics: Sequence[str], apart: str | None = None
) -> str:
    missed, uncertain = frame.missed(trial), frame.uncertain(trial)
    marks = [
        word
        for word, given in (
            ("best", trial.number == frame.best),
            ("front", trial.number in frame.front),
            ("missed", bool(missed)),
            ("uncertain", bool(uncertain)),
            ("apart", apart is not None),
        )
        if given
    ]
    why = missed or uncertain or ([trial.record.message] if trial.record and trial.state == "Failed" else [])
    title = f' title="{escape(" ".join(why)[:600])}"' if any(why) else ""
    phrases = {
        "missed": "misses a constraint",
        "uncertain": "a constraint is uncertain",
        "apart": f"not comparable: {apart}",
    }
    words = [phrases.get(mark, mark) for mark in marks]
    said = f"<small>{escape(', '.join(words))}</small>" if words else ""
    cells = [
        f'<td class="number">{trial.number}</td>',
        f'<td class="state"{title}>{escape(trial.state)}{said}</td>',
        *(_parameter(trial.parameters.get(name)) for name in parameters),
        *(_metric(name, trial) for name in metrics),
    ]
    css = f' class="{" ".join(marks)}"' if marks else ""
    return f'<tr id="t{trial.number}"{css}>{"".join(cells)}</tr>'


def _parameter(value: bool | int | float | str | None) -> str:
    if value is None:
        return "<td></td>"
    if isinstance(value, bool | str):
        return f"<td>{escape(str(value).lower() if isinstance(value, bool) else value)}</td>"
    return f'<td class="number" data-v="{value!r}">{value:.6g}</td>'


def _metric(name: str, trial: Trial) -> str:
    """The compressed model's number, and below it the dense model's with the change."""
    value = trial.compressed.get(name)
    if value is None or not math.isfinite(value):
        return "<td></td>"
    dense = trial.baseline.get(name)
    before = ""
    if dense is not None:
        change = formatting.change(value, dense)
        before = f"<small>from {formatting.number(name, dense)}{f', {change}' if change else ''}</small>"
    return f'<td class="number" data-v="{value!r}">{escape(formatting.number(name, value))}{before}</td>'
