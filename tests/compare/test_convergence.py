"""`benchmarks/convergence.py`: both sides tried alike, and the best of each by its final IoU."""

from __future__ import annotations

import runpy
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import carv_3d
from carv_3d.errors import CarvError

FILE = Path(carv_3d.__file__).parents[1] / "benchmarks" / "convergence.py"
pytestmark = pytest.mark.skipif(not FILE.exists(), reason="an installation without benchmarks")


@pytest.fixture
def script() -> dict[str, Any]:
    return runpy.run_path(str(FILE))


@pytest.mark.parametrize("scene", ["default", "voxel", "hash-grid"])
def test_both_sides_are_tried_alike(script: dict[str, Any], scene: str) -> None:
    start = script["SCENES"][scene]
    variants = script["variants"](start)
    assert Counter(m.name.split("-")[0] for m in variants) == {"baseline": 6, "carv": 6}
    by_side = {side: [m for m in variants if m.name.startswith(side)] for side in start.allocations}
    assert [script["learning_rate"](m) for m in by_side["baseline"]] == [
        script["learning_rate"](m) for m in by_side["carv"]
    ]
    config = by_side["carv"][-1].load("a black hat", 0, [], start.config)
    guidance = config.system.guidance
    assert (config.data.batch_size, guidance.num_draws) == start.allocations["carv"][-1]
    assert (guidance.proposal, guidance.stratify, guidance.antithetic) == ("weight", "render", True)
    assert config.system.optimizer.args.lr == start.rates[-1]
    guidance = by_side["baseline"][0].load("a black hat", 0, [], start.config).system.guidance
    assert (guidance.proposal, guidance.stratify, guidance.antithetic) == ("uniform", "none", False)


def test_the_best_of_a_side_by_its_final_iou(script: dict[str, Any], tmp_path: Path, capsys: Any) -> None:
    variants = script["variants"](replace(script["SCENES"]["hash-grid"], rates=(0.02, 0.04, 0.08)))
    lines = ["metric,method,mean"]
    for i, m in enumerate(variants):
        lines += [f"iou,{m.name},{0.5 + 0.01 * (i in (1, 11)) + (0.2 if i == 4 else 0)}", f"psnr,{m.name},{99 - i}"]
    (tmp_path / "final.csv").write_text("\n".join(lines) + "\n")
    assert script["best"](tmp_path, "baseline", variants) is variants[4]
    assert "end of the rates" not in capsys.readouterr().out
    assert script["best"](tmp_path, "carv", variants) is variants[11]
    assert "at the end of the rates that were tried" in capsys.readouterr().out


def test_the_table_has_the_means_and_ratios_of_the_sweep(script: dict[str, Any], tmp_path: Path) -> None:
    sides = [script["method"]("baseline", (2, 1), 0.04), script["method"]("carv", (1, 2), 0.04)]
    finals, ratios = ["metric,method,runs,mean,low,high"], ["metric,axis,prompt,ratio,low,high,tried"]
    for score in ("iou", "psnr", "classifier_object"):
        finals += [
            f"{score},{side.name},{3 + i},0.{i + 1},0.05,{'' if score == 'iou' else 0.9}"
            for i, side in enumerate(sides)
        ]
    ratios += ["psnr,seconds,,0.5,0.4,0.8,1", "psnr,steps,,inf,0.7,inf,1.5", "psnr,nfe,a red mug,9,9,9,9"]
    (tmp_path / "final.csv").write_text("\n".join(finals) + "\n")
    (tmp_path / "time_to_target.csv").write_text("\n".join(ratios) + "\n")
    lines = script["table"](script["figures"](tmp_path, sides)).splitlines()
    assert lines[2].startswith("| classifier: object | 3 + 4 | 0.100 [0.050, 0.900] | 0.200 [0.050, 0.900] | — |")
    ratios_of_psnr = "| 0.50 [0.40, 0.80] | not reached (above 1.50) [from 0.70] | — |"
    assert lines[3] == f"| PSNR | 3 + 4 | 0.100 [0.050, 0.900] | 0.200 [0.050, 0.900] {ratios_of_psnr}"
    assert lines[4].startswith("| IoU | 3 + 4 | ")


@pytest.mark.parametrize("words", [["--budget", "0"], ["--prompts", "11"], ["--seeds", "0"], ["--points", "0"]])
def test_what_cannot_be_meant(script: dict[str, Any], words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["convergence.py", *words])
    with pytest.raises(CarvError, match="must be above 0"):
        script["main"]()
