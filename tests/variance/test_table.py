"""The table over prompts of `benchmarks/variance_table.py`: known values, and what cannot be meant."""

from __future__ import annotations

import json
import math
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

import carv_3d
from carv_3d.errors import CarvError
from carv_3d.stats.bootstrap import Interval
from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher
from carv_3d.variance.command import VarianceRequest

FILE = Path(carv_3d.__file__).parents[1] / "benchmarks" / "variance_table.py"
pytestmark = pytest.mark.skipif(not FILE.exists(), reason="an installation without benchmarks")


@pytest.fixture
def script() -> dict[str, Any]:
    return runpy.run_path(str(FILE))


def row(ecm: float, re: str, seconds: float) -> dict[str, str]:
    place = {
        "step": "30",
        "method": "strat",
        "R": "1",
        "K": "4",
        "batches": "9",
        "paper_ecm": "",
        "paper_re": "1.00-3.00",
    }
    numbers = {"seconds": seconds, "seconds_denoise": 0.2, "upstream_share": 0.5, "ecm": ecm, "ecm_bound": 2.0}
    return {**place, **{k: str(v) for k, v in numbers.items()}, "re": re}


def test_a_method_over_another_from_the_same_batches(script: dict[str, Any], tmp_path: Path) -> None:
    """ "is" has half of the variance of "uniform" and five quarters of its seconds, in every block of both prompts."""
    settings = VarianceRequest(source=Path("x"), K=(4,), methods=("uniform", "is")).settings()
    folders = [tmp_path / name for name in ("a", "b")]
    for folder, scale in zip(folders, (1.0, 3.0)):
        folder.mkdir()
        batches = []
        for i in range(8):
            size = scale * (1 + i)  # batches differ, but for both alike
            v_in = {"2,1,uniform": 9.0, "1,4,uniform": 3 * size, "1,4,is": size}
            seconds = {"2,1,uniform": 1.0, "1,4,uniform": 2.0, "1,4,is": 2.5}
            steps = {k: {"step": v, "denoise": 1.0} for k, v in seconds.items()}
            batches.append({"v_in": v_in, "s_out2": {"2,0,0": 1.0, "1,0,0": size}, "seconds": steps, "norms": []})
        (folder / "batches.json").write_text(json.dumps({"batches": {"30": batches}}))
    lines = script["over"](folders, settings, "uniform").splitlines()
    assert lines[2:] == ["| 30 | is | (1, 4) | 0.50 (0.50–0.50) | 1.60 [1.60, 1.60] |"]
    low, high = Interval(2.0, 1.0, 4.0), Interval(8.0, 4.0, 16.0)
    both = script["pooled"]([low, high])
    assert both.value == pytest.approx(4.0)
    for unknown in (Interval(8.0, -0.5, 20.0), Interval(8.0)):
        alone = script["pooled"]([low, unknown])
        assert (alone.value, alone.known) == (pytest.approx(4.0), False)
    assert math.isnan(script["pooled"]([low, Interval(-1.0)]).value)
    assert both.high / both.value == pytest.approx(2 ** (1 / 2**0.5))  # independent: 1/sqrt 2 of one's, in logs


def test_figures_over_prompts(script: dict[str, Any]) -> None:
    tables = [[row(0.5, "1.0", 0.5)], [row(2.0, "4.0", 0.78)]]
    line = script["table"](tables).splitlines()[-1]
    # a draw: 0.05 s of denoising over (0.64 - 0.2) s; geometric means 1 and 2
    expected = (
        "| 30 | strat | (1, 4) | 9 | 0.11 | 50% | 1.00 (0.50–2.00) | — | 2.00 | 50% | 2.00 (1.00–4.00) | 1.00-3.00 |"
    )
    assert line == expected
    endless = {**row(0.5, "1.0", 0.5), "ecm_bound": "inf"}
    assert "| 0.50 | — | — | — | 1.00 |" in script["table"]([[endless]]).splitlines()[-1]
    alone = script["table"]([[row(1.5, "", 0.5)]]).splitlines()[-1]
    assert alone == "| 30 | strat | (1, 4) | 9 | 0.17 | 50% | 1.50 | — | 2.00 | 75% | — | 1.00-3.00 |"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompts", "6"], "--prompts is 6; it must be 1 to 5"),
        (["--draws", "0"], r"K is \[0\]; it must be a list of numbers from 1 to 1024"),
        (["--budget", "0"], "budget is 0"),
        (["--methods", "strap"], "there is no method 'strap'"),
    ],
)
def test_what_cannot_be_is_said_before_any_work(
    script: dict[str, Any], arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StableDiffusionTeacher, "load", lambda *a, **k: pytest.fail("a model was loaded"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [FILE.name, *arguments])
    with pytest.raises(CarvError, match=message):
        script["main"]()
    assert list(tmp_path.iterdir()) == []
