"""The page of `carv attribute`: offline, with every image in it, and nothing unescaped."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import torch

from carv_3d.attribution.images import Image, TrainingImages
from carv_3d.attribution.queries import Query
from carv_3d.attribution.ranking import Ranking
from carv_3d.attribution.scores import Scores
from carv_3d.report.charts import Series, line_chart
from carv_3d.report.page import asset_text, bytes_uri, facts_section, page
from carv_3d.stats.bootstrap import MIN_SAMPLES
from carv_3d.version import __version__

SHOWN = 20  # images at either end
ROWS = 50  # of the table
Z = 1.96
_UNKNOWN = """<h2>Not distinguishable from chance</h2>
<section class="card"><p class="note">The noise of the draws could have made this ranking, so no image is named. More
draws (num_draws, query_draws) or another image may change that.</p></section>"""


def render_page(
    query: Query,
    images: TrainingImages,
    scores: Scores,
    method: str,
    facts: Mapping[str, str],
    groups: tuple[int, int],
    ranking: Ranking,
) -> str:
    """The page as a string.

    Args:
        query: what was asked about.
        images: N training images.
        scores: (1, N).
        method: what the scores are, in words.
        facts: label -> value, for the head.
        groups: independent groups of draws of a training image, and of an image of the query; intervals are shown from
            `MIN_SAMPLES` of either.
        ranking: whether the scores differ from chance; without that no image is named.
    """
    count = min(groups)
    values = scores.values[0]
    spread = float(values.std()) if len(values) > 1 and float(values.std()) > 0 else 1.0
    scaled, errors = (values - values.mean()) / spread, scores.moderated_errors(max(1, count - 1))[0] / spread
    grouped = f"{groups[0]} an image, {groups[1]} a query image"
    facts = {**facts, "independent groups of draws": grouped, **_noise(errors)}
    if count < MIN_SAMPLES:
        errors = torch.full_like(errors, float("nan"))
    n = len(images)
    shown = _ranked(images, scores, _Numbers(scaled, errors, ranking)) if ranking.differs_from_chance else _UNKNOWN
    body = f"""<h1>{escape(query.title)}</h1>
<p class="sub">Which of {n:,} training images made it, by carv_3d {escape(__version__)}.</p>
<section class="card strip query">{_query_images(query)}</section>
{f'<p class="note">{escape(query.note)}</p>' if query.note else ""}
{facts_section(facts)}
{shown}
<h2>All scores</h2>
<section class="grid">
<div class="card"><h3>From the highest to the lowest</h3>
<p class="note">Few images matter where the line falls steeply.</p>{_curve(scaled)}</div>
<div class="card"><h3>What the numbers mean</h3>
<p class="note">The method: {escape(method)}. A high score means that training on the image lowered the model's
loss on the query. A score is relative to the others, in standard deviations over all training images.
{_interval_words(count)} {escape(ranking.words())} It does not measure whether the method is right.</p></div>
</section>
<p class="note">All {n:,} are in scores.csv, as the method gave them.</p>
{images.report.html()}"""
    return page(f"{query.title} · its training images", body, viewer=False, style=asset_text("attribution.css"))


def _query_images(query: Query) -> str:
    return "".join(
        f"<figure>{_image(image, caption or query.title)}<figcaption>{escape(caption)}</figcaption></figure>"
        for image, caption in zip(query.images, query.captions)
    )


@dataclass(frozen=True)
class _Numbers:
    """(N,) scores and their standard errors in standard deviations over the items, and what their ranking is worth."""

    scaled: torch.Tensor
    errors: torch.Tensor
    ranking: Ranking


def _ranked(images: TrainingImages, scores: Scores, numbers: _Numbers) -> str:
    """The images at either end, and the table of the first."""
    n, rows = len(images), min(ROWS, len(images))
    best = scores.top(0, min(SHOWN, n))
    worst = [i for i in scores.top(0, min(SHOWN, n), least=True) if i not in best]
    least = "".join(_card(images, i, numbers, False) for i in worst)
    return f"""<h2>Most influential</h2>
<p class="note">The percentage is the probability that the image is among the {numbers.ranking.count} that would lead
after ever more draws; by chance it is {numbers.ranking.count / n:.2%}.</p>
<section class="card strip">{"".join(_card(images, i, numbers, True) for i in best)}</section>
{f'<h2>Least influential</h2><section class="card strip">{least}</section>' if least else ""}
<h2>The first {rows}</h2>
<section class="card">{_ranks(images, scores.top(0, rows), numbers)}</section>"""


def _ranks(images: TrainingImages, chosen: Sequence[int], numbers: _Numbers) -> str:
    known, ranking = bool(numbers.errors.isfinite().any()), numbers.ranking
    rows = "".join(
        f"<tr><td>{rank}</td><td>{escape(images.key(i))}</td><td>{escape(images.caption(i))}</td>"
        f"<td>{float(numbers.scaled[i]):.2f}</td>"
        f"{_interval(float(numbers.scaled[i]), float(numbers.errors[i])) if known else ''}"
        f"<td>{float(ranking.probabilities[i]):.0%}</td></tr>"
        for rank, i in enumerate(chosen, 1)
    )
    interval = "<th>95 %</th>" if known else ""
    head = f"<th></th><th>image</th><th>caption</th><th>score</th>{interval}<th>in the top {ranking.count}</th>"
    return f'<table class="ranks"><tr>{head}</tr>{rows}</table>'


def _interval_words(count: int) -> str:
    """What the page says of intervals where the smaller number of groups is `count`."""
    errors = "standard errors of the random timesteps and noises of the gradients"
    if count < MIN_SAMPLES:
        return f"Intervals take {MIN_SAMPLES} independent groups of draws; scores.csv has {errors}."
    return f"The ± is {Z} {errors}: images whose intervals overlap are not\ndistinguished."


def _noise(errors: torch.Tensor) -> dict[str, str]:
    if not bool(errors.isfinite().all()):
        return {}
    return {"of the scores' variance is the draws' noise": f"{min(1.0, float(errors.square().mean())):.0%}"}


def _card(images: TrainingImages, index: int, numbers: _Numbers, top: bool) -> str:
    caption = images.caption(index) or images.key(index)
    error = float(numbers.errors[index])
    margin = f" ± {Z * error:.2f}" if error == error else ""
    chance = f" · {float(numbers.ranking.probabilities[index]):.0%}" if top else ""
    return (
        f"<figure>{_image(images.image(index), caption)}"
        f"<figcaption><b>{float(numbers.scaled[index]):.2f}</b>{margin}{chance}<br>{escape(caption)}</figcaption></figure>"
    )


def _interval(value: float, error: float) -> str:
    return f"<td>{value - Z * error:.2f} to {value + Z * error:.2f}</td>" if error == error else "<td>—</td>"


def _image(image: Image, words: str) -> str:
    from PIL import Image as Pillow

    buffer = io.BytesIO()
    Pillow.fromarray(image).save(buffer, "PNG", optimize=True)
    return f'<img src="{bytes_uri(buffer.getvalue(), "image/png")}" alt="{escape(words, quote=True)}">'


def _curve(scaled: torch.Tensor) -> str:
    ordered = scaled.sort(descending=True).values.tolist()
    step = max(1, len(ordered) // 400)
    index = sorted({*range(0, len(ordered), step), len(ordered) - 1})
    return line_chart([Series("score", [i + 1 for i in index], [ordered[i] for i in index])], "rank", "score")
