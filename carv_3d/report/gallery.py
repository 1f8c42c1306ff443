"""`gallery.html`: the runs of one command next to each other, each with its image, its figures and a link."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import quote

from carv_3d.errors import CarvError
from carv_3d.io.images import opened_image
from carv_3d.report.page import asset_text, bytes_uri, facts_section, page
from carv_3d.version import __version__

WIDTH = 512  # of an image, in pixels: the page of 500 runs has some 15 MB


@dataclass(frozen=True)
class Card:
    """One run.

    Args:
        prompt: of the run.
        folder: of the run, within the page's.
        words: its state and figures, or what went wrong.
        image: its preview as a data URI, see `thumbnail`; "" for none.
        done: whether it has a report to link to.
    """

    prompt: str
    folder: str
    words: str
    image: str
    done: bool


def render_gallery(title: str, cards: Sequence[Card]) -> str:
    """The page of some runs. What a user wrote is escaped; a missing image is said, not shown."""
    shown = "".join(map(_card, cards))
    made = sum(card.done for card in cards)
    body = f"""<h1>{escape(title)}</h1>
<p class="sub">3D assets from text prompts, made by carv_3d {escape(__version__)}.</p>
{facts_section({"prompts": f"{len(cards):,}", "assets": f"{made:,}"})}
<section class="models">{shown}</section>"""
    return page(title, body, viewer=False, style=asset_text("compare.css"))


def _card(card: Card) -> str:
    title = escape(card.prompt)
    inside = '<p class="note">No image yet.</p>'
    if card.image:
        inside = f'<img class="views" src="{card.image}" alt="{title}, from all around">'
    if card.done:
        title = f'<a href="{escape(quote(card.folder))}/report.html">{title}</a>'
    caption = f'<p class="caption"><span>{title}</span><span>{escape(card.words)}</span></p>'
    return f'<div class="card">{inside}{caption}</div>'


def thumbnail(path: Path) -> str:
    """An image of at most `WIDTH` pixels as a data URI; "" where it is missing or cannot be read."""
    if not path.is_file():
        return ""
    try:
        with opened_image(path) as image:
            small = image.convert("RGB")
            small.thumbnail((WIDTH, WIDTH))
            data = io.BytesIO()
            small.save(data, "JPEG", quality=88)
    except CarvError:
        return ""
    return bytes_uri(data.getvalue(), "image/jpeg")
