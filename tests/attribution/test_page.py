"""The page of `carv attribute`: what it names, and that nothing in it is loaded or unescaped."""

from __future__ import annotations

import csv
import re

import numpy as np
import pytest
import torch

from carv_3d.attribution.command import scores_csv
from carv_3d.attribution.data_report import DataReport
from carv_3d.attribution.page import render_page
from carv_3d.attribution.queries import Query
from carv_3d.attribution.ranking import Ranking
from carv_3d.attribution.scores import Scores

NASTY = """<script>alert("x")</script>'"><img src=x onerror=alert(1)>"""


class OneImage:
    name = "one"
    report = DataReport(left_out=[(NASTY, NASTY)], duplicates=[(NASTY, NASTY)])

    def __len__(self) -> int:
        return 2

    def key(self, index: int) -> str:
        return NASTY

    def caption(self, index: int) -> str:
        return NASTY

    def image(self, index: int) -> np.ndarray:
        return np.zeros((4, 4, 3), np.uint8)

    def labels(self, index: int) -> dict[str, str]:
        return {}

    def fingerprint(self) -> str:
        return ""


RANKED = Ranking(0.9, 0.001, torch.tensor([0.75, 0.25]), 1)


def test_an_image_is_named_where_the_ranking_differs_from_chance() -> None:
    scores = Scores(torch.tensor([[1.0, -1.0]]), torch.tensor([[0.1, 0.1]]))
    query = Query("q", "q", [np.zeros((4, 4, 3), np.uint8)], ["q"], "")
    noise = Ranking(0.1, 0.4, torch.tensor([0.5, 0.5]), 1)
    named, unnamed = (render_page(query, OneImage(), scores, "m", {}, (2, 8), r) for r in (RANKED, noise))
    assert ("75%" in named, "Most influential" in named, "distinguishable" in named) == (True, True, False)
    assert ("Most influential" in unnamed, "Not distinguishable from chance" in unnamed) == (False, True)
    assert (named.count("<img"), unnamed.count("<img")) == (3, 1)  # the query, and each image
    assert "p = 0.4" in unnamed
    rows = list(csv.DictReader(scores_csv(scores, OneImage(), RANKED).splitlines()))
    assert [row["in_top_1"] for row in rows] == ["0.75", "0.25"]


def test_the_page_loads_nothing_and_escapes_everything() -> None:
    scores = Scores(torch.tensor([[1.0, -1.0]]), torch.tensor([[0.1, float("nan")]]))
    query = Query(NASTY, NASTY, [np.zeros((4, 4, 3), np.uint8)], [NASTY], NASTY)
    page = render_page(query, OneImage(), scores, NASTY, {NASTY: NASTY}, (8, 8), RANKED)
    assert "<script" not in page
    assert "onerror=alert(1)>" not in page.replace("&gt;", "")
    assert re.findall(r'(?:src|href|url|poster)\s*[=(]\s*["\']?(?!data:)[^"\'\s>&]+', page.replace("src=x", "")) == []
    assert re.findall(r"https?://", page) == []
    assert "default-src 'none'" in page


@pytest.mark.parametrize(("groups", "shown"), [((2, 8), False), ((8, 2), False), ((7, 8), False), ((8, 9), True)])
def test_an_interval_takes_eight_independent_groups_of_draws(groups: tuple[int, int], shown: bool) -> None:
    scores = Scores(torch.tensor([[1.0, -1.0]]), torch.tensor([[0.1, 0.3]]))
    query = Query("q", "q", [np.zeros((4, 4, 3), np.uint8)], ["q"], "")
    page = render_page(query, OneImage(), scores, "m", {}, groups, RANKED)
    assert ("± 0." in page, "95 %" in page, "<td>0.71</td><td>0." in page) == (shown,) * 3
    assert ("Intervals take 8 independent groups" in page) != shown
    assert f"{groups[0]} an image, {groups[1]} a query image" in page
    assert "variance is the draws" in page
