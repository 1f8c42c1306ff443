"""Each page as a browser shows it: narrow and wide, light and dark, from a file, with the keyboard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import trimesh
from browser import CHROMIUM, Page, browser
from PIL import Image
from written_pages import written_pages

from carv_3d.report.gallery import Card, render_gallery, thumbnail
from carv_3d.report.page import write_report

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
PAGES = ("report", "compare", "attribution", "gallery")
PROMPT = "a red mug with a handle so long that its name does not fit into one line of a telephone"
TEXT_CONTRAST = """
(() => {
  const light = (text) => {
    const [r, g, b] = text.match(/[\\d.]+/g).map(Number).map((c) => c / 255)
      .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    const color = getComputedStyle(element).backgroundColor;
    return color === "rgba(0, 0, 0, 0)" && element.parentElement ? ground(element.parentElement) : color;
  };
  const ratios = [...document.querySelectorAll("h1, h2, h3, p, td, th, span, b, figcaption, a, summary, footer")]
    .filter((element) => element.innerText && element.checkVisibility())
    .map((element) => [light(getComputedStyle(element).color), light(ground(element))])
    .map(([a, b]) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
  return Math.min(...ratios);
})()
"""  # WCAG 2.1, the least contrast ratio of a text and what is behind it
SMALLEST_TEXT = """
Math.min(...[...document.querySelectorAll("svg text")].map((text) =>
  parseFloat(getComputedStyle(text).fontSize) * text.ownerSVGElement.getBoundingClientRect().width
    / text.ownerSVGElement.viewBox.baseVal.width))
"""  # of charts, in pixels


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of each kind, with a model, images and curves in them."""
    out, rng = tmp_path_factory.mktemp("pages"), np.random.default_rng(0)
    with pytest.MonkeyPatch.context() as patch:
        _, compare, attribution = written_pages(out, patch, PROMPT)
    (out / "compare.html").write_text(compare, encoding="utf-8")
    (out / "attribution.html").write_text(attribution, encoding="utf-8")
    trimesh.creation.box((1, 0.5, 0.25)).export(out / "asset.glb")
    Image.fromarray(rng.integers(0, 255, (64, 128, 3), np.uint8)).save(out / "preview.png")
    seconds = [f"seconds_{part}" for part in ("render", "encode", "denoise", "backward")]
    rows = [",".join(str(x) for x in (n, 1 / n, *rng.random(4))) for n in range(1, 200)]
    (out / "metrics.csv").write_text("\n".join([",".join(["step", "snr_step", *seconds]), *rows]))
    config = {"system": {"prompt_processor": {"prompt": PROMPT}}, "seed": 0}
    write_report(out, config, {"steps": "200", "teacher": "carv-tiny", "seed": "0"})
    cards = [Card(PROMPT, "a", "PSNR 20 dB", thumbnail(out / "preview.png"), True), Card("b", "b", "waits", "", False)]
    (out / "gallery.html").write_text(render_gallery("two prompts", cards), encoding="utf-8")
    return out


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize(("width", "height"), [(390, 844), (1600, 1000)])
def test_a_page_fits_its_window_and_can_be_read(tab: Page, folder: Path, name: str, width: int, height: int) -> None:
    shown = {}
    for scheme in ("light", "dark"):
        tab.open(folder / f"{name}.html", width, height, scheme)
        assert tab.ask("document.documentElement.scrollWidth") <= width  # nothing to scroll sideways for
        assert tab.ask("[...document.images].every((image) => image.alt && image.naturalWidth > 0)")
        assert tab.ask("document.querySelectorAll('h1').length === 1 && document.documentElement.lang === 'en'")
        assert tab.ask(TEXT_CONTRAST) >= 4.5
        if name == "report":
            assert tab.ask("document.querySelectorAll('svg').length") >= 2
            assert tab.ask(SMALLEST_TEXT) >= 8.5
        if name == "compare":  # a wide table scrolls in its card, and no word of it is broken
            assert tab.ask("document.querySelector('.figures td').getBoundingClientRect().width") > 100
        shown[scheme] = tab.screenshot()
        assert tab.trouble == []
    assert shown["light"].mean() > 150 > 100 > np.median(shown["dark"])
    assert len(np.unique(shown["light"].reshape(-1, 3), axis=0)) > 30  # more than an empty page


def test_arrow_keys_turn_the_model(tab: Page, folder: Path) -> None:
    tab.open(folder / "report.html", 900, 900)
    tab.until("document.querySelector('model-viewer').loaded === true")
    angle = "document.querySelector('model-viewer').getCameraOrbit().theta"
    tab.ask("document.querySelector('model-viewer').autoRotate = false")
    tab.ask("document.querySelector('model-viewer').shadowRoot.querySelector('.userInput').focus()")
    before = tab.ask(angle)
    for _ in range(3):
        tab.press("ArrowRight")
    tab.until(f"Math.abs({angle} - {before}) > 0.1")
    assert tab.trouble == []
