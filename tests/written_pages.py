"""Each kind of page that this package writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_runs import rising

from carv_3d.attribution.data_report import DataReport
from carv_3d.attribution.page import render_page
from carv_3d.attribution.queries import Query
from carv_3d.attribution.ranking import Ranking
from carv_3d.attribution.scores import Scores
from carv_3d.compare.write import write_comparison
from carv_3d.report.page import write_report


class OneImage:
    """A training image."""

    name = "x"
    report = DataReport([("<img src=http://a>", "<img src=http://a>")], [("<img src=http://a>", "")])

    def __len__(self) -> int:
        return 1

    def key(self, index: int) -> str:
        return "http://a/b.png"

    caption = key

    def image(self, index: int) -> Any:
        return np.zeros((4, 4, 3), np.uint8)

    def labels(self, index: int) -> dict[str, str]:
        return {}

    def fingerprint(self) -> str:
        return ""


def written_pages(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> list[str]:
    """The pages of a run, a comparison and an attribution, of users who wrote `text` wherever they could."""
    monkeypatch.setattr("carv_3d.compare.write.write_plots", lambda *_: None)  # its images lie next to the page
    (folder / "asset.glb").write_bytes(b"glTF")
    (folder / "metrics.csv").write_text("step,seconds,snr_step\n1,0.5,2\n2,0.5,3\n")
    write_report(folder, {"system": {"prompt_processor": {"prompt": text}}, "seed": 0}, {})
    runs = [rising(method, speed, text) for method, speed in (("a", 1.0), ("b", 2.0))]
    write_comparison(folder, runs)
    query = Query(text, "a", [np.zeros((4, 4, 3), np.uint8)], ["a"], "")
    scores = Scores(torch.tensor([[1.0]]), torch.tensor([[0.1]]))
    ranking = Ranking(0.9, 0.001, torch.tensor([0.75]), 1)
    attribution = render_page(query, OneImage(), scores, "relatif", {}, (8, 8), ranking)
    return [*((folder / name).read_text(encoding="utf-8") for name in ("report.html", "compare.html")), attribution]
