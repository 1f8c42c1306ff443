"""`compare.html`: ratios, curves and the assets side by side to turn, in one page that needs no network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from carv_3d.compare.metrics import AXIS_LABELS, AXIS_NOTES, metric
from carv_3d.compare.records import AXES, RunRecord
from carv_3d.compare.tables import Comparison
from carv_3d.report.charts import COLORS, Series, line_chart
from carv_3d.report.page import asset_text, data_uri, facts_section, model_viewer, page
from carv_3d.stats.bootstrap import MIN_RUNS, Interval
from carv_3d.version import __version__

MAX_MODELS = 24  # models in the page, of about 2 MB each


def render_page(c: Comparison, command: str, facts: Sequence[tuple[str, str]]) -> str:
    """The page; `command` makes it again, `facts` are label -> value for its head. What a user wrote is escaped."""
    title = f"{' · '.join(c.methods)}"
    models, has_models = _models(c)
    counts = {"methods": str(len(c.methods)), "prompts": str(len(c.prompts)), "runs": str(len(c.runs)), **dict(facts)}
    again = f'<section class="card"><p class="note">This page again:</p><pre>{escape(command)}</pre></section>'
    body = f"""<h1>{escape(title)}</h1>
<p class="sub">A comparison of runs, made by carv_3d {escape(__version__)}. The baseline is
<b>{escape(c.methods[0])}</b>.</p>
{facts_section(counts)}
{_score_tables(c)}
<h2>Curves</h2>
{_curves(c)}
<h2>The assets</h2>
{models}
<h2>Runs and settings</h2>
{_settings(c)}
{again if command else ""}"""
    tabs = "".join(f"#by-{axis}:checked ~ .axis-{axis} {{ display: block; }}\n" for axis in _axes(c))
    return page(title, body, has_models, asset_text("compare.css") + tabs)


def _swatch(c: Comparison, method: str) -> str:
    color = COLORS[c.methods.index(method) % len(COLORS)]
    return f'<span class="swatch" style="background:{color}"></span>{escape(method)}'


def _score_tables(c: Comparison) -> str:
    """The ratios to reach the baseline's final score, and the final scores."""
    if not c.finals:
        return (
            '<p class="note">These runs logged no score of which higher is better (IoU, the classifier, CLIP), so '
            "there is nothing to be reached; --score NAME names a logged metric that is one.</p>"
        )
    axes = [axis for axis in AXES if any(r.axis == axis for r in c.times)]
    parts = []
    count = f" of {len(c.prompts)} prompts" if len(c.prompts) > 1 else ""
    if axes:
        rows = [
            f"<tr><td>{escape(metric(name).title)}</td><td>{_swatch(c, method)}</td>"
            + "".join(f"<td>{_ratio(c, name, method, axis)}</td>" for axis in axes)
            + f"<td>{len(c.select(method))} + {len(c.select(c.methods[0]))}{count}</td></tr>"
            for name in dict.fromkeys(r.metric for r in c.times)
            for method in c.methods[1:]
        ]
        head = "".join(f"<th>{AXIS_LABELS[axis]}</th>" for axis in axes)
        parts.append(
            f'<h2>To reach the final score of {escape(c.methods[0])}</h2><section class="card wide">'
            '<p class="note">What a method needs, divided by what the baseline needs, until the mean over prompts '
            "and seeds first comes to the baseline's mean at its end: 0.5 is half. In brackets is the 95 % bootstrap "
            f"interval, from {MIN_RUNS} runs a side on, or {MIN_RUNS} prompts where there are several; prompts and "
            "seeds are resampled together for both sides. Where a method never came there, the ratio up to which it "
            "was tried is given.</p>"
            f'<table class="figures"><tr><th>Score</th><th>Method</th>{head}<th>Runs</th></tr>{"".join(rows)}</table>'
            "</section>"
        )
    finals = "".join(
        f"<tr><td>{escape(metric(f.metric).title)}</td><td>{_swatch(c, f.method)}</td>"
        f"<td>{Interval(f.mean, f.low, f.high).text('.3f')}</td><td>{f.runs}{count}</td><td>{f.steps:.0f}</td>"
        f"<td>{'—' if math.isnan(f.seconds) else f'{f.seconds:.0f}'}</td></tr>"
        for f in c.finals
    )
    parts.append(
        '<h2>At the end</h2><section class="card wide"><table class="figures"><tr><th>Score</th><th>Method</th>'
        f"<th>Mean</th><th>Runs</th><th>Steps</th><th>Seconds</th></tr>{finals}</table></section>"
    )
    return "".join(parts)


def _ratio(c: Comparison, name: str, method: str, axis: str) -> str:
    for r in c.times:
        if (r.metric, r.method, r.axis, r.prompt) == (name, method, axis, ""):
            return escape(r.text())
    return "—"


def _axes(c: Comparison) -> list[str]:
    """The axes that there are curves against, seconds first."""
    drawn = [axis for axis in AXES if any(a == axis for _, a in c.curves)]
    return sorted(drawn, key=lambda axis: axis != "seconds")


def _curves(c: Comparison) -> str:
    axes = _axes(c)
    if not axes:
        return '<p class="note">No metric was recorded more than once.</p>'
    buttons, sections = [], []
    for axis in axes:
        checked = " checked" if axis == axes[0] else ""
        buttons.append(
            f'<input type="radio" name="axis" id="by-{axis}"{checked}>'
            f'<label for="by-{axis}">&nbsp;against&nbsp;{AXIS_LABELS[axis]}</label> '
        )
        cards = []
        for name in c.metrics:
            curves = {curve.method: curve for curve in c.curves.get((name, axis), ())}
            series = [
                Series(m, *(v.tolist() for v in (curve.x, curve.mean, curve.low, curve.high)))
                if (curve := curves.get(m))
                else Series(m, [], [])
                for m in c.methods
            ]
            what = metric(name)
            chart = line_chart(series, AXIS_LABELS[axis], what.label)
            if chart:
                head = f'<h3>{escape(what.title)}</h3><p class="note">{escape(what.meaning)}</p>'
                cards.append(f'<div class="card">{head}{chart}</div>')
        note = f'<p class="note">{AXIS_NOTES[axis]} Lines are means over prompts and seeds, each as far as its '
        note += f"shortest run; bands are 95 % bootstrap intervals of the mean, from {MIN_RUNS} runs on, or "
        note += f"{MIN_RUNS} prompts where there are several.</p>"
        sections.append(f'<div class="axis axis-{axis}">{note}<section class="grid">{"".join(cards)}</section></div>')
    return f'<div class="tabs-and-curves">{"".join(buttons)}{"".join(sections)}</div>'


def _models(c: Comparison) -> tuple[str, bool]:
    """The assets, prompt by prompt with the methods next to each other, and whether there is any model to turn."""
    parts, shown, left_out = [], 0, 0
    for prompt in c.prompts:
        seeds = sorted({run.seed for run in c.runs if run.prompt == prompt})
        cards = []
        for method in c.methods:
            runs = sorted(c.select(method, prompt), key=lambda run: run.seed)
            chosen = next((run for run in runs if (run.folder / "asset.glb").exists()), runs[0])
            left_out += len(runs) - 1
            card, model = _model(c, chosen, shown < MAX_MODELS)
            shown += model
            cards.append(card)
        words = f"{len(seeds)} seeds" if len(seeds) > 1 else f"seed {seeds[0]}"
        parts.append(
            f"<h3>{escape(prompt or 'unknown prompt')}</h3>"
            f'<p class="note">{words}</p><section class="models">{"".join(cards)}</section>'
        )
    note = "Drag to turn, scroll to come nearer. Of each prompt and method the first seed is shown"
    note += f"; {left_out} further run(s) are in the tables." if left_out else "."
    return f'<p class="note">{note}</p>{"".join(parts)}', shown > 0


def _model(c: Comparison, run: RunRecord, room: bool) -> tuple[str, bool]:
    asset = data_uri(run.folder / "asset.glb", "model/gltf-binary") if room else ""
    image = data_uri(run.folder / "preview.png", "image/png")
    if asset:
        inside = model_viewer(asset)
    elif image:
        inside = f'<img class="views" src="{image}" alt="The object from all around">'
    else:
        inside = '<p class="note">This run left neither a mesh nor an image.</p>'
    scores = [
        f"{metric(n).label} {y[-1]:.2f}" for n in ("iou", "classifier_object") if len(y := run.series(n, "steps")[1])
    ]
    figures = escape(", ".join(scores).replace("probability", "classifier"))
    caption = f'<p class="caption"><span>{_swatch(c, run.method)}</span><span>{figures}</span></p>'
    return f'<div class="card">{inside}{caption}</div>', bool(asset)


def _settings(c: Comparison) -> str:
    """Where the methods' settings differ, and what must be known of some runs."""
    first = {method: c.select(method)[0].settings for method in c.methods}
    keys = sorted({key for settings in first.values() for key in settings})
    differing = [key for key in keys if len({settings.get(key) for settings in first.values()}) > 1]
    rows = "".join(
        f"<tr><td>{escape(key)}</td>"
        + "".join(f"<td>{escape(first[method].get(key, '—'))}</td>" for method in c.methods)
        + "</tr>"
        for key in differing
    )
    head = "".join(f"<th>{_swatch(c, method)}</th>" for method in c.methods)
    table = f'<table class="figures"><tr><th>Where they differ</th>{head}</tr>{rows}</table>'
    notes = "".join(f"<li>{escape(note)}</li>" for note in c.notes)
    notes = f'<section class="card"><p class="note">To be known:</p><ul class="note">{notes}</ul></section>'
    same = '<p class="note">Their settings are the same.</p>'
    return f'<section class="card wide">{table if rows else same}</section>{notes if c.notes else ""}'
