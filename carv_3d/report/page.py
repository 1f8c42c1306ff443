"""`report.html`: one offline page with the model to turn, the turntable, the curves and the settings.

The page is built from the files of a run's folder alone, so it can be made again at any time. Everything that
came from a user is escaped; a strict content policy in the page keeps it from loading anything.
"""

from __future__ import annotations

import base64
import math
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from carv_3d.errors import CarvError
from carv_3d.io.files import open_file, write_atomic
from carv_3d.io.structured import RESTORE
from carv_3d.io.tables import read_metrics
from carv_3d.report.charts import Series, line_chart
from carv_3d.version import __version__

POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; media-src data:; base-uri 'none'; "
    "form-action 'none'"
)
MAX_BYTES = 2**28  # of a file within a page
BEGINNINGS = {
    "model/gltf-binary": (0, b"glTF"), "image/png": (0, b"\x89PNG\r\n\x1a\n"), "image/gif": (0, b"GIF8"),
    "video/mp4": (4, b"ftyp"),
}  # fmt: skip
VIEWER_POLICY = "script-src 'unsafe-inline' 'wasm-unsafe-eval' blob:; connect-src data: blob:; worker-src blob:"

# Column of metrics.csv -> title, label of the y axis, what it shows.
CURVES: tuple[tuple[tuple[str, ...], str, str, str], ...] = (
    (
        ("classifier_object", "classifier_color", "classifier_material"),
        "The classifier's score",
        "probability",
        "The probability of the prompt's object, color and material by a classifier that has no part in the run.",
    ),
    (
        ("snr_step",),
        "Signal-to-noise ratio of the gradient",
        "SNR",
        "Of a step's gradient, cameras and noise draws together, over some 30 steps: higher means less noise.",
    ),
    (
        ("ess",),
        "Effective sample size of the weights",
        "draws",
        "How many equally weighted draws the K importance-weighted ones of a render are worth.",
    ),
    (
        ("seconds_render", "seconds_encode", "seconds_denoise", "seconds_backward"),
        "Seconds per step",
        "seconds",
        "The parts of a step: rendering, encoding, the K denoisings and one backward pass.",
    ),
    (("opacity",), "Mean opacity", "opacity", "The share of the image that the object covers."),
    (
        ("grad_norm",),
        "Norm of the latent gradient",
        "norm",
        "Of the loss, after the mean over draws and renders; threestudio's own guidance logs R times that.",
    ),
)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """`{"a": {"b": 1}}` -> `[("a.b", "1")]`, in order."""
    out: list[tuple[str, str]] = []
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            out += flatten(value, name + ".")
        else:
            out.append((name, "—" if value is None else str(value)))
    return out


def write_report(folder: Path, config: Mapping[str, Any], facts: Mapping[str, str]) -> Path:
    """Write `folder/report.html` from the files next to it.

    Args:
        folder: holds asset.glb, turntable.mp4 (or .gif), preview.png and metrics.csv; one that is missing
            is left out of the page.
        config: the resolved configuration, as a nested mapping; the title is its prompt.
        facts: short figures for the head of the page, label -> value.
    """
    path = folder / "report.html"
    write_atomic(path, render_report(folder, config, facts))
    return path


def render_report(folder: Path, config: Mapping[str, Any], facts: Mapping[str, str]) -> str:
    """The page of `write_report` as a string."""
    prompt = str(config["system"]["prompt_processor"]["prompt"])
    rows = read_metrics(folder / "metrics.csv")
    settings = "".join(f"<tr><td>{escape(k)}</td><td>{escape(v)}</td></tr>" for k, v in flatten(config))
    command = f"carv generate {shlex.quote(prompt)} --config config.yaml"
    asset = data_uri(folder / "asset.glb", "model/gltf-binary")
    views = data_uri(folder / "preview.png", "image/png")
    body = f"""<h1>{escape(prompt)}</h1>
<p class="sub">A 3D asset from a text prompt, made by carv_3d {escape(__version__)}.</p>
<section class="hero">
{_model(asset)}
{_turntable(folder)}
</section>
{facts_section(facts)}
{_views(views)}
<h2>How the run went</h2>
{_curves(rows)}
<h2>Settings</h2>
<section class="card">
<p class="note">The same run again, from the folder of this page:</p>
<pre>{escape(command)}</pre>
<details><summary>All settings</summary><table>{settings}</table></details>
</section>"""
    return page(prompt, body, viewer=bool(asset))


def page(title: str, body: str, viewer: bool, style: str = "") -> str:
    """A whole offline page around `body` (HTML), with the 3D viewer's code where `viewer` is set.

    `title` is escaped; `style` is CSS that is added to the report's.
    """
    policy = f"{POLICY}; {VIEWER_POLICY}" if viewer else POLICY
    code = asset_text("model-viewer/model-viewer.min.js").split("//# sourceMappingURL=")[0] if viewer else ""
    credit = " 3D viewer: &lt;model-viewer&gt; 4.4.0, © Google LLC, Apache-2.0." if viewer else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)} · carv_3d</title>
<style>{asset_text("report.css")}{style}</style>
</head>
<body>
<main>
{body}
<footer>This page needs no network.{credit}</footer>
</main>
{f'<script type="module">{code}</script>' if viewer else ""}
</body>
</html>
"""


def facts_section(facts: Mapping[str, str]) -> str:
    """The short figures at the head of a page, label -> value."""
    figures = "".join(f"<div><b>{escape(v)}</b><span>{escape(k)}</span></div>" for k, v in facts.items())
    return f'<section class="facts">{figures}</section>'


def model_viewer(asset: str) -> str:
    """The element that shows a model (a data URI) and lets it be turned."""
    return (
        f'<model-viewer src="{asset}" alt="The 3D model" camera-controls auto-rotate '
        'rotation-per-second="24deg" interaction-prompt="none" shadow-intensity="0.6" exposure="1.1" '
        'camera-orbit="30deg 72deg auto" tone-mapping="neutral">'
        '<div slot="progress-bar"></div></model-viewer>'
    )


def _model(asset: str) -> str:
    if not asset:
        return '<div class="card"><p class="note">No mesh was made: the run had not ended.</p></div>'
    return (
        f'<div class="card">{model_viewer(asset)}'
        '<p class="caption"><span>Drag or use the arrow keys to turn, scroll to zoom.</span>'
        f'<a download="asset.glb" href="{asset}">asset.glb</a></p></div>'
    )


def _views(image: str) -> str:
    if not image:
        return ""
    tag = f'<img class="views" src="{image}" alt="The object from all around">'
    return f'<h2>Views</h2><section class="card">{tag}</section>'


def _turntable(folder: Path) -> str:
    video = data_uri(folder / "turntable.mp4", "video/mp4")
    if video:
        words = 'aria-label="The object turning" autoplay loop muted playsinline controls'
        media = f'<video src="{video}" {words}></video>'
    else:
        image = data_uri(folder / "turntable.gif", "image/gif")
        if not image:
            return '<div class="card"><p class="note">No turntable was made: the run had not ended.</p></div>'
        media = f'<img src="{image}" alt="The object turning">'
    caption = '<p class="caption"><span>Rendered from the radiance field itself.</span></p>'
    return f'<div class="card">{media}{caption}</div>'


def _curves(rows: Sequence[Mapping[str, float]]) -> str:
    cards = []
    window = max(1, len(rows) // 20)
    for columns, title, y_label, explanation in CURVES:
        series = []
        for column in columns:
            points = [(r["step"], r[column]) for r in rows if column in r and math.isfinite(r[column])]
            name = column.split("_", 1)[-1] if len(columns) > 1 else column
            series.append(Series(name, [p[0] for p in points], [p[1] for p in points]))
        dense = max((len(s.points) for s in series), default=0) > 60
        timing = columns[0].startswith("seconds")  # its first step warms up and would flatten the others
        chart = line_chart(series, "step", y_label, window if dense else 1, robust=timing)
        if chart:
            head = f'<h3>{escape(title)}</h3><p class="note">{escape(explanation)}</p>'
            cards.append(f'<div class="card">{head}{chart}</div>')
    if not cards:
        return '<p class="note">No step has been recorded.</p>'
    return f'<section class="grid">{"".join(cards)}</section>'


def data_uri(path: Path, kind: str) -> str:
    """The file as a data URI of MIME type `kind`, '' where it is missing; CarvError where it is another file."""
    if not path.exists():
        return ""
    with open_file(path, RESTORE, MAX_BYTES) as handle:
        data = handle.read(MAX_BYTES)
    place, first = BEGINNINGS.get(kind, (0, b""))
    if data[place : place + len(first)] != first:
        raise CarvError(f"{path} does not begin as a file of its kind ({kind}); {RESTORE}, or delete it")
    return bytes_uri(data, kind)


def bytes_uri(data: bytes, kind: str) -> str:
    """A data URI of MIME type `kind`."""
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def asset_text(name: str) -> str:
    """A text file of the package's assets."""
    return (resources.files("carv_3d") / "assets" / name).read_text(encoding="utf-8")
