"""The images of `carv variance`."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.figure import Figure
from variance_scene import SETTINGS, made_up, setting

from carv_3d.variance import charts
from carv_3d.variance.benchmark import Batch
from carv_3d.variance.charts import write_charts
from carv_3d.variance.figures import Timesteps, rows, timesteps


def test_images_are_written(tmp_path: Path) -> None:
    from PIL import Image

    table = rows(7, SETTINGS, made_up((7.0, 3.0), (9.0, 5.0)))
    by_t = timesteps([Batch({}, {}, {}, [(t, 1.0 + t) for t in range(100)])], torch.ones(100), 0, 99)
    for name in write_charts(tmp_path, table, {7: by_t}):
        with Image.open(tmp_path / name) as image:
            assert len(image.convert("L").getcolors() or [0] * 9) > 8


def test_a_line_of_the_chart_is_a_method_at_its_draws() -> None:
    settings = [setting(1, K, name) for K in (2, 8) for name in ("uniform", "is")]
    seconds = {s.key: {"step": float(s.K), "denoise": 1.0} for s in settings}
    v_in = {s.key: 8.0 / s.K / (1 + (s.method.name == "is")) for s in settings}
    table = rows(7, settings, [Batch(v_in, {"1,0,0": 1.0}, seconds, [])] * 8, settings[0])
    colors = {"uniform": "#000000", "is": "#ff0000"}
    by_t = Timesteps([10.0, 30.0], [2.0, 1.0], [0.25, 0.75], [0.5, 0.5], 0.9)
    axes = [Figure().subplots() for _ in range(4)]
    for axis, draw in zip(axes, (charts._variance, charts._ecm, charts._re, charts._by_timestep)):
        draw(axis, table, by_t, colors)
    x, y = axes[0].get_lines()[1].get_data()
    assert (list(x), list(y)) == ([2000, 8000], [3, 1.5])
    papers = [list(line.get_data()[1]) for line in axes[1].get_lines() if line.get_marker() == "x"]
    assert papers == [[2.6], [3.0], []]  # of the two methods, and the legend's
    assert axes[1].get_legend_handles_labels()[1] == ["the paper, (1, 8)", "uniform, R = 1", "is, R = 1"]
    is_line = [bar for bar in axes[2].containers if bar.get_label() == "is, R = 1"]
    assert len(axes[2].containers) == len(is_line) == 1  # RE of uniform is 1
    assert list(is_line[0].lines[0].get_data()[1]) == [5 / 3, 2 / 1.5]
    assert [bar.get_height() for bar in axes[3].patches] == [1.0, 0.5]
