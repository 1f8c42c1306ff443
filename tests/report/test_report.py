"""The report: offline, escaped, and readable whatever is missing."""

from __future__ import annotations

import math
import re
from html import unescape
from pathlib import Path
from xml.etree import ElementTree

import pytest

from carv_3d.config.reader import to_mapping
from carv_3d.generate.config import load_config
from carv_3d.io.tables import read_metrics
from carv_3d.report.charts import HEIGHT, Series, line_chart, nice_ticks, smooth
from carv_3d.report.page import flatten, render_report, write_report

NASTY = """<script>alert("x")</script>'"><img src=x onerror=alert(1)></script>&amp; ${a} {b}"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "asset.glb").write_bytes(b"glTF-model")
    (tmp_path / "turntable.mp4").write_bytes(b"film")
    (tmp_path / "turntable.gif").write_bytes(b"GIF89a")
    (tmp_path / "preview.png").write_bytes(b"png")
    (tmp_path / "metrics.csv").write_text(
        "step,seconds,snr_step,ess,classifier_object\n1,0.5,0.25,3.9,\n2,0.4,0.5,3.8,0.7\n3,0.4,nan,3.9,\n4,0.4"
    )
    return tmp_path


def page_of(folder: Path, prompt: str = "a red mug") -> str:
    return render_report(folder, to_mapping(load_config(prompt=prompt)), {"steps": "3", "<b>": "<i>"})


def without_viewer(page: str) -> str:
    return re.sub(r'<script type="module">.*?</script>', "", page, flags=re.DOTALL)


def test_it_shows_model_film_views_curves_and_settings(folder: Path) -> None:
    page = page_of(folder)
    assert "data:model/gltf-binary;base64,Z2xURi1tb2RlbA==" in page
    assert "data:video/mp4;base64,ZmlsbQ==" in page
    assert "data:image/png;base64,cG5n" in page
    assert without_viewer(page).count("<svg") == 3  # the classifier's score, SNR and the effective sample size
    assert "<td>system.guidance.num_draws</td><td>2</td>" in page
    assert "customElements" in page  # the viewer's own code


def test_it_loads_nothing_from_anywhere(folder: Path) -> None:
    page = without_viewer(page_of(folder))
    assert re.findall(r'(?:src|href|url|poster)\s*[=(]\s*["\']?(?!data:)[^"\'\s>]+', page) == []
    assert re.findall(r"https?://", page) == []
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert "default-src 'none'" in policy[1]
    assert "http" not in policy[1]
    assert "*" not in policy[1]


def test_whatever_a_user_wrote_is_text(folder: Path) -> None:
    page = without_viewer(page_of(folder, NASTY))
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "<i>" not in page  # facts too
    assert unescape(re.search(r"<h1>(.*?)</h1>", page)[1]) == NASTY  # type: ignore[index]


def test_the_inlined_viewer_cannot_end_its_script_early(folder: Path) -> None:
    scripts = re.findall(r'<script type="module">(.*?)</script>', page_of(folder), re.DOTALL)
    assert len(scripts) == 1
    assert len(scripts[0]) > 500_000
    assert "sourceMappingURL" not in scripts[0]


def test_missing_files_leave_a_note_in_their_place(tmp_path: Path) -> None:
    page = page_of(tmp_path)
    assert "No mesh was made" in page
    assert "No turntable was made" in page
    assert "No step has been recorded" in page
    assert "model-viewer>" not in without_viewer(page).split("<footer>")[0].split("</style>")[1]


def test_without_a_film_the_gif_stands_in(folder: Path) -> None:
    (folder / "turntable.mp4").unlink()
    assert '<img src="data:image/gif;base64,R0lGODlh"' in page_of(folder)


def test_it_is_written_into_the_folder(folder: Path) -> None:
    path = write_report(folder, to_mapping(load_config(prompt="ein Häuschen")), {})
    assert path == folder / "report.html"
    assert "ein Häuschen" in path.read_text(encoding="utf-8")


def test_metrics_are_read_with_gaps_and_without_a_torn_line(folder: Path) -> None:
    rows = read_metrics(folder / "metrics.csv")
    assert [r["step"] for r in rows] == [1.0, 2.0, 3.0]
    assert math.isnan(rows[0]["classifier_object"])
    assert rows[1]["classifier_object"] == 0.7
    assert [r["step"] for r in read_metrics(folder / "metrics.csv", last_step=2)] == [1.0, 2.0]
    assert read_metrics(folder / "nothing.csv") == []


def test_flatten_known_value() -> None:
    assert flatten({"a": {"b": 1, "c": None}, "d": [1, 2]}) == [("a.b", "1"), ("a.c", "—"), ("d", "[1, 2]")]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (-0.03, 0.021, [-0.02, 0, 0.02]),
        (5, 5, [5]),
    ],
)
def test_nice_ticks_known_values(low: float, high: float, ticks: list[float]) -> None:
    assert nice_ticks(low, high) == pytest.approx(ticks)


def test_smooth_keeps_a_line_and_its_length() -> None:
    assert smooth([2.0] * 7, 5) == [2.0] * 7
    assert smooth([0.0, 0.0, 9.0, 0.0, 0.0], 3) == [0.0, 3.0, 3.0, 3.0, 0.0]
    assert smooth([1.0, 2.0, 9.0, 2.0, 1.0], 3, robust=True) == [1.5, 2.0, 2.0, 2.0, 1.5]


def test_a_chart_is_well_formed_and_its_points_stand_where_they_should() -> None:
    svg = line_chart([Series("<a&b>", [0, 1, 2], [0.0, 1.0, math.nan]), Series("c", [0], [1])], "x<y", "y")
    tree = ElementTree.fromstring(svg)
    paths = [p.get("d", "") for p in tree.iter("path")]
    xy = [tuple(map(float, p.split(","))) for p in paths[0][1:].split("L")]
    assert len(xy) == 2  # the NaN is left out
    assert xy[1][0] > xy[0][0]
    assert xy[1][1] < xy[0][1] < HEIGHT  # upwards is up
    assert "<a&b>" in [t.text for t in tree.iter("text")]
    assert line_chart([Series("a", [1], [math.nan])], "x", "y") == ""


def test_a_robust_chart_is_not_flattened_by_one_outlier() -> None:
    y = [100.0] + [1.0, 2.0] * 50
    heights = []
    for robust in (False, True):
        tree = ElementTree.fromstring(line_chart([Series("a", range(101), y)], "x", "y", robust=robust))
        path = next(iter(tree.iter("path"))).get("d", "")
        points = [float(p.split(",")[1]) for p in path[1:].split("L")]
        heights.append(points[1] - points[2])
    assert heights[1] > 20 * heights[0]
