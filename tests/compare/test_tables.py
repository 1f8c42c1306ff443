"""The tables of a comparison, by hand."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_runs import made_run, rising

from carv_3d.compare.records import RunRecord, columns
from carv_3d.compare.tables import compare, write_tables
from carv_3d.compare.write import terminal_table
from carv_3d.stats.bootstrap import MIN_RUNS


def read(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def sides(n: int) -> list[RunRecord]:
    """Two methods, of which the score of the second rises and falls."""
    base = [made_run({0: 0.0, 10: 0.5 + 0.1 * s}, "base", seed=s) for s in range(n)]
    return base + [made_run({0: 0.0, 5: 1.0, 10: 0.75}, "ours", seed=s, steps=2.0) for s in range(n)]


def test_a_final_score_is_a_runs_last_and_not_its_best() -> None:
    finals = {final.method: final for final in compare(sides(2), ["base", "ours"]).finals}
    assert (finals["ours"].mean, finals["ours"].steps, finals["ours"].seconds) == (0.75, 20, 10)
    assert (finals["base"].mean, finals["base"].runs) == (pytest.approx(0.55), 2)
    assert math.isnan(finals["base"].low)
    many = {final.method: final for final in compare(sides(MIN_RUNS), ["base", "ours"]).finals}
    assert many["base"].mean == pytest.approx(0.7)
    assert many["base"].low < many["base"].mean < many["base"].high
    assert (many["ours"].low, many["ours"].high) == pytest.approx((0.75, 0.75))


def test_the_tables_hold_what_was_compared(tmp_path: Path) -> None:
    runs = [*sides(2), *(rising(m, 0.1, "b", 7) for m in ("base", "ours"))]
    comparison = compare(runs, ["base", "ours"])
    write_tables(tmp_path, comparison)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["curves.csv", "final.csv", "runs.csv", "time_to_target.csv"]
    ratios = read(tmp_path / "time_to_target.csv")
    assert [(r["axis"], r["prompt"], r["runs"], r["baseline_runs"]) for r in ratios] == [
        (axis, *count) for axis in ("steps", "seconds") for count in (("", "3", "3"), ("a", "2", "2"), ("b", "1", "1"))
    ]
    assert {(r["metric"], r["method"], r["low"], r["high"]) for r in ratios} == {("iou", "ours", "", "")}
    prompt_a = next(r for r in ratios if (r["axis"], r["prompt"]) == ("seconds", "a"))
    assert float(prompt_a["target"]) == pytest.approx(0.55)
    assert float(prompt_a["ratio"]) == pytest.approx(0.275, abs=0.01)
    assert float(prompt_a["tried"]) == pytest.approx(1.0, abs=0.01)
    assert [(r["method"], r["prompt"], r["seed"], r["steps"]) for r in read(tmp_path / "runs.csv")] == [
        ("base", "a", "0", "10"), ("base", "a", "1", "10"), ("ours", "a", "0", "20"), ("ours", "a", "1", "20"),
        ("base", "b", "7", "40"), ("ours", "b", "7", "40"),
    ]  # fmt: skip
    curves = [r for r in read(tmp_path / "curves.csv") if (r["axis"], r["method"]) == ("seconds", "ours")]
    assert (curves[0]["x"], curves[-1]["x"], curves[-1]["runs"], curves[-1]["low"]) == ("0", "10", "3", "")
    assert float(curves[-1]["mean"]) == pytest.approx((2 * 0.75 + 1 - math.exp(-1)) / 3, abs=1e-5)
    finals = [(r["method"], r["runs"], r["independent"]) for r in read(tmp_path / "final.csv")]
    assert finals == [("base", "3", "2"), ("ours", "3", "2")]
    assert {r["independent"] for r in ratios if r["prompt"] == ""} == {curves[-1]["independent"]} == {"2"}
    assert all(line.endswith(" (3 runs of 2 prompts)") for line in terminal_table(comparison))
    assert [run.seed for run in comparison.select("ours", "a")] == [0, 1]
    assert len(comparison.select("base")) == 3


def test_the_ratio_of_a_prompt_is_that_of_its_own_runs_alone() -> None:
    rng = np.random.default_rng(0)
    runs = [
        made_run({0: 0.0, 10: float(end)}, method, prompt, seed)
        for method, low in (("base", 1.0), ("ours", 2.0)) for prompt in "ab"
        for seed, end in enumerate(low + rng.uniform(size=6))
    ]  # fmt: skip
    prompt_a = [run for run in runs if run.prompt == "a"]
    both, alone = compare(runs, ["base", "ours"]), compare(prompt_a, ["base", "ours"])
    (expected,) = [ratio for ratio in alone.times if ratio.axis == "seconds"]
    (expected_ratio,) = [ratio for ratio in both.times if (ratio.axis, ratio.prompt) == ("seconds", "a")]
    assert expected_ratio.low < expected_ratio.ratio < expected_ratio.high
    assert replace(expected_ratio, prompt="") == expected


def test_bands_are_written_with_their_lower_end_first(tmp_path: Path) -> None:
    write_tables(tmp_path, compare(sides(MIN_RUNS), ["base", "ours"]))
    row = [r for r in read(tmp_path / "curves.csv") if r["method"] == "base"][-1]
    assert float(row["low"]) < float(row["mean"]) < float(row["high"])


def test_the_terminal_says_how_many_runs_a_ratio_is_of() -> None:
    lines = terminal_table(compare([*sides(2), made_run({0: 0.0, 10: 0.6}, "base", seed=9)], ["base", "ours"]))
    assert [line.partition(":")[0] for line in lines] == ["ours", "ours"]
    assert lines[1].startswith("ours: iou, seconds to the baseline's final 0.567: 0.2")
    assert lines[1].endswith(" (2 and 3 runs)")
    assert terminal_table(compare(sides(5), ["base", "ours"]))[0].endswith("] (5 runs)")


def test_a_metric_that_stands_still_has_no_curve_and_one_that_some_lack_none_for_them() -> None:
    runs = sides(1)
    runs[0].metrics["snr"] = np.array([1.0, 2.0])
    for run in runs:
        run.metrics["flat"] = np.zeros(len(run.metrics["iou"]))
    comparison = compare(runs, ["base", "ours"], ["snr"])
    assert comparison.metrics == ["iou", "snr"]
    assert [curve.method for curve in comparison.curves["snr", "seconds"]] == ["base"]
    assert [final.method for final in comparison.finals if final.metric == "snr"] == ["base"]
    assert {ratio.metric for ratio in comparison.times} == {"iou"}


def test_a_series_is_what_is_known_by_rising_x() -> None:
    rows = [{"step": 3.0, "iou": 0.3}, {"step": 1.0, "iou": 0.1}, {"step": 2.0}, {"step": math.nan, "iou": 0.9}]
    values = columns(rows)
    run = RunRecord("m", "a", 0, Path(), {"steps": values["step"]}, {"iou": values["iou"]})
    x, y = run.series("iou", "steps")
    assert (x.tolist(), y.tolist()) == ([1, 3], [0.1, 0.3])
    assert len(run.series("iou", "seconds")[0]) == len(run.series("psnr", "steps")[1]) == 0
