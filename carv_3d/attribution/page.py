"""The page of `carv attribute`: offline, with every image in it, and nothing unescaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path

import torch

from carv_3d.attribution.images import Image, TrainingImages
from carv_3d.attribution.queries import Query
from carv_3d.attribution.scores import Scores
from carv_3d.io.files import write_atomic
from carv_3d.report.charts import Series, line_chart
from carv_3d.version import __version__

SHOWN = 18  # images at either end
ROWS = 50  # of the table
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
Z = 1.96


def write_page(
    folder: Path, query: Query, images: TrainingImages, scores: Scores, method: str, facts: Mapping[str, str]
) -> Path:
    """Write `folder/report.html`. scores: (1, N). facts: label -> value, for the head."""
    path = folder / "report.html"
    write_atomic(path, render_page(query, images, scores, method, facts))
    return path


def render_page(query: Query, images: TrainingImages, scores: Scores, method: str, facts: Mapping[str, str]) -> str:
    """The page of `write_page` as a string."""
    values = scores.values[0]
    spread = float(values.std()) if len(values) > 1 and float(values.std()) > 0 else 1.0
    scaled, errors = (values - values.mean()) / spread, scores.moderated_errors()[0] / spread
    facts = {**facts, **_noise(errors)}
    n = len(images)
    best = scores.top(0, min(SHOWN, n))
    worst = [i for i in scores.top(0, min(SHOWN, n), least=True) if i not in best]

    def cards(chosen: Sequence[int]) -> str:
        return "".join(_card(images, i, float(scaled[i]), float(errors[i])) for i in chosen)

    rows = "".join(
        f"<tr><td>{rank}</td><td>{escape(images.key(i))}</td><td>{escape(images.caption(i))}</td>"
        f"<td>{float(scaled[i]):.2f}</td><td>{_interval(float(scaled[i]), float(errors[i]))}</td></tr>"
        for rank, i in enumerate(scores.top(0, min(ROWS, n)), 1)
    )
    numbers = "".join(f"<div><b>{escape(v)}</b><span>{escape(k)}</span></div>" for k, v in facts.items())
    asked = "".join(
        f"<figure>{_image(image, caption or query.title)}<figcaption>{escape(caption)}</figcaption></figure>"
        for image, caption in zip(query.images, query.captions)
    )
    note = f'<p class="note">{escape(query.note)}</p>' if query.note else ""
    least = f'<h2>Least influential</h2><section class="card strip">{cards(worst)}</section>' if worst else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(query.title)} · what made it · carv_3d</title>
<style>{_asset("report.css")}{_asset("attribution.css")}</style>
</head>
<body>
<main>
<h1>{escape(query.title)}</h1>
<p class="sub">Which of {n:,} training images made it, by carv_3d {escape(__version__)}.</p>
<section class="card strip query">{asked}</section>
{note}
<section class="facts">{numbers}</section>
<h2>Most influential</h2>
<section class="card strip">{cards(best)}</section>
{least}
<h2>All scores</h2>
<section class="grid">
<div class="card"><h3>From the highest to the lowest</h3>
<p class="note">Few images matter where the line falls steeply.</p>{_curve(scaled)}</div>
<div class="card"><h3>What the numbers mean</h3>
<p class="note">The method: {escape(method)}. A high score says that training on the image lowered the model's loss
on the query; a score is relative to the others, in standard deviations over all training images. Behind ± stands
1.96 standard errors, of the random timesteps and noises that the gradients are estimated with: images whose intervals
overlap are not told apart. It says nothing of how right the method is.</p></div>
</section>
<h2>The first {min(ROWS, n)}</h2>
<section class="card"><table class="ranks"><tr><th></th><th>image</th><th>caption</th><th>score</th>
<th>95 %</th></tr>{rows}</table>
<p class="note">All {n:,} are in scores.csv, as they came from the method.</p></section>
<footer>This page needs no network.</footer>
</main>
</body>
</html>
"""


def _noise(errors: torch.Tensor) -> dict[str, str]:
    if not bool(errors.isfinite().all()):
        return {}
    return {"of the scores' variance is the draws' noise": f"{min(1.0, float(errors.square().mean())):.0%}"}


def _card(images: TrainingImages, index: int, value: float, error: float) -> str:
    caption = images.caption(index) or images.key(index)
    margin = f" ± {Z * error:.2f}" if error == error else ""
    return (
        f"<figure>{_image(images.image(index), caption)}"
        f"<figcaption><b>{value:.2f}</b>{margin}<br>{escape(caption)}</figcaption></figure>"
    )


def _interval(value: float, error: float) -> str:
    return f"{value - Z * error:.2f} to {value + Z * error:.2f}" if error == error else "—"


def _image(image: Image, words: str) -> str:
    from PIL import Image as Pillow

    buffer = io.BytesIO()
    Pillow.fromarray(image).save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img src="data:image/png;base64,{data}" alt="{escape(words, quote=True)}">'


def _curve(scaled: torch.Tensor) -> str:
    ordered = scaled.sort(descending=True).values.tolist()
    step = max(1, len(ordered) // 400)
    index = sorted({*range(0, len(ordered), step), len(ordered) - 1})
    return line_chart([Series("score", [i + 1 for i in index], [ordered[i] for i in index])], "rank", "score")


def _asset(name: str) -> str:
    return (resources.files("carv_3d") / "assets" / name).read_text(encoding="utf-8")
