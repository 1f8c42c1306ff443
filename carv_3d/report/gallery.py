"""`gallery.html`: the runs of one command next to each other, each with its image, its figures and a link."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import quote

from carv_3d.errors import CarvError
from carv_3d.io.images import opened_image
from carv_3d.report.page import asset_text, facts_section, page
from carv_3d.version import __version__

WIDTH = 512  # of an image, in pixels: the page of 500 runs has some 15 MB


@dataclass(frozen=True)
class Card:
    """One run. folder: of the run, within the page's. words: its state and figures, or what went wrong."""

    prompt: str
    folder: str
    words: str


def render_gallery(out: Path, title: str, cards: Sequence[Card]) -> str:
    """The page of the runs in `out`. What a user wrote is escaped; a missing image is said, not shown."""
    shown = "".join(_card(out, card) for card in cards)
    made = sum((out / card.folder / "report.html").exists() for card in cards)
    body = f"""<h1>{escape(title)}</h1>
<p class="sub">3D assets from text prompts, made by carv_3d {escape(__version__)}.</p>
{facts_section({"prompts": f"{len(cards):,}", "assets": f"{made:,}"})}
<section class="models">{shown}</section>"""
    return page(title, body, viewer=False, style=asset_text("compare.css"))


def _card(out: Path, card: Card) -> str:
    image, title = thumbnail(out / card.folder / "preview.png"), escape(card.prompt)
    inside = '<p class="note">No image yet.</p>'
    if image:
        inside = f'<img class="views" src="{image}" alt="{title}, from all around">'
    if (out / card.folder / "report.html").exists():
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
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode('ascii')}"
