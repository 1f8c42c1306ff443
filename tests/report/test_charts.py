"""Line charts: where points stand, what is drawn for each line, legend, bands and outliers."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from carv_3d.report.charts import COLORS, HEIGHT, LEFT, RIGHT, WIDTH, Series, line_chart, nice_ticks, smooth


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
    assert Series("a", [0, 1, math.inf, 3], [math.inf, 1, 2, -math.inf]).points == [(1, 1)]


def test_a_robust_chart_is_not_flattened_by_one_outlier() -> None:
    y = [100.0] + [1.0, 2.0] * 50
    heights = []
    for robust in (False, True):
        tree = ElementTree.fromstring(line_chart([Series("a", range(101), y)], "x", "y", robust=robust))
        path = next(iter(tree.iter("path"))).get("d", "")
        points = [float(p.split(",")[1]) for p in path[1:].split("L")]
        heights.append(points[1] - points[2])
    assert heights[1] > 20 * heights[0]


def marks(svg: str) -> dict[str, list[dict[str, str]]]:
    """The attributes of an SVG's elements by tag."""
    drawn: dict[str, list[dict[str, str]]] = {}
    for element in ElementTree.fromstring(svg).iter():
        drawn.setdefault(element.tag, []).append({**element.attrib, "text": element.text or ""})
    return drawn


def points(d: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (p.split(",") for p in d.strip("MZ").split("L"))]


def test_ends_of_the_x_axis_are_the_ends_of_the_image() -> None:
    (path,) = marks(line_chart([Series("a", [3, 4, 7], [1.0, 2.0, 3.0])], "x", "y"))["path"]
    assert [x for x, _ in points(path["d"])] == [LEFT, LEFT + (WIDTH - LEFT - RIGHT) / 4, WIDTH - RIGHT]
    assert path["stroke"] == COLORS[0]


def test_ticks_stand_at_their_values_with_zero_where_the_line_comes_near_it() -> None:
    near = marks(line_chart([Series("a", [0, 10], [1.0, 10.0])], "x", "y"))
    labels = {t["text"]: t for t in near["text"] if t.get("text-anchor") == "end"}
    assert list(labels) == ["0", "5", "10"]
    grid = [float(g["y1"]) for g in near["line"] if g["class"] == "grid"]
    assert [float(t["y"]) - 4 for t in labels.values()] == grid
    (path,) = near["path"]
    assert points(path["d"])[1][1] == grid[-1]  # 10 is drawn at the tick of 10
    assert grid[0] == HEIGHT - 38
    far = marks(line_chart([Series("a", [0, 10], [6.0, 10.0])], "x", "y"))
    assert "0" not in [t["text"] for t in far["text"] if t.get("text-anchor") == "end"]
    assert points(far["path"][0]["d"])[0][1] < HEIGHT - 38  # a little room below the lowest


def test_a_long_legend_has_rows_within_the_image_and_the_frame_makes_room() -> None:
    lines = [Series("a name of a length", range(3), [0, 1, 2]) for _ in range(5)]
    drawn = marks(line_chart(lines, "x", "y"))
    legend = [(float(text["x"]), float(text["y"])) for text in drawn["text"] if "text-anchor" not in text]
    assert len(legend) == 5
    assert len({y for _, y in legend}) == 3  # two in a row
    assert all(x + 6.6 * 18 <= WIDTH for x, _ in legend)
    highest = min(y for path in drawn["path"] for _, y in points(path["d"]))
    assert highest > max(y for _, y in legend)


def test_a_legend_names_the_lines_that_are_drawn_in_their_colors() -> None:
    lines = [Series("a", [0, 1], [0.0, 1.0]), Series("gone", [0], [math.nan]), Series("c", [0, 1], [1.0, 0.0])]
    drawn = marks(line_chart(lines, "x", "y"))
    assert [r["fill"] for r in drawn["rect"]] == [COLORS[0], COLORS[2]]
    assert [p["stroke"] for p in drawn["path"]] == [COLORS[0], COLORS[2]]
    names = [t["text"] for t in drawn["text"] if t["class"] == "tick" and "text-anchor" not in t]
    assert names == ["a", "c"]
    assert "rect" not in marks(line_chart(lines[:2], "x", "y"))
    tall, short = (points(marks(line_chart(s, "x", "y"))["path"][0]["d"]) for s in (lines[:1], lines))
    assert short[1][1] == pytest.approx(tall[1][1] + 18 * 1 / 1.06, abs=0.1)  # room for the legend


def test_a_smoothed_line_is_drawn_faint_beneath_its_mean() -> None:
    line = Series("a", list(range(6)), [0.0, 3.0, 0.0, 3.0, 0.0, 3.0])
    faint, mean = marks(line_chart([line], "x", "y", window=3))["path"]
    assert faint["stroke-opacity"] == ".25"
    assert mean["stroke-width"] == "2"
    assert faint["d"] == marks(line_chart([line], "x", "y"))["path"][0]["d"]
    heights = [y for _, y in points(mean["d"])]
    assert heights[0] == pytest.approx(sum(y for _, y in points(faint["d"])[:2]) / 2, abs=0.1)
    assert len(marks(line_chart([line], "x", "y", window=6))["path"]) == 1  # too short to be smoothed


def test_a_band_goes_along_its_upper_end_and_back_along_the_lower() -> None:
    line = Series("a", [0, 1, 2], [2.0, 2.0, 2.0], [1.0, 1.0, math.nan], [3.0, 4.0, 5.0])
    assert line.band == [(0, 1.0, 3.0), (1, 1.0, 4.0)]
    band, path = marks(line_chart([line], "x", "y"))["path"]
    assert band["d"].endswith("Z")
    xs, ys = zip(*points(band["d"]))
    assert xs == (LEFT, LEFT + (WIDTH - LEFT - RIGHT) / 2, LEFT + (WIDTH - LEFT - RIGHT) / 2, LEFT)
    assert ys[1] < ys[0] < points(path["d"])[0][1] < ys[2] == ys[3]


def test_a_single_point_is_a_dot() -> None:
    drawn = marks(line_chart([Series("a", [5], [1.0])], "x", "y"))
    (dot,) = drawn["circle"]
    assert (float(dot["cx"]), float(dot["cy"])) == points(drawn["path"][0]["d"])[0]
    assert dot["fill"] == COLORS[0]
    assert "circle" not in marks(line_chart([Series("a", [5, 6], [1.0, 1.0])], "x", "y"))


def test_what_lies_above_a_robust_axis_is_drawn_at_its_end() -> None:
    y = [1.0] * 50 + [2.0] * 49 + [100.0]
    path = marks(line_chart([Series("a", range(100), y)], "x", "y", robust=True))["path"][0]
    assert points(path["d"])[-1][1] == 14  # the top of the frame
    assert points(path["d"])[60][1] == pytest.approx(14 + (HEIGHT - 38 - 14) * (1 - 2 / (2.5 * 1.06)), abs=0.1)
