"""The fuzz command: it knows a bad end when it sees one, and a short run of it, always of the same inputs."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzz
import fuzz_files
import pytest
from fuzz_guard import BAD, FINE, HANG, REFUSED, TRACEBACK, WRONG, Case, run

from carv_3d.errors import CarvError


def fail(error: BaseException) -> Callable[[], Any]:
    def call() -> None:
        raise error

    return call


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        (Case("", call=lambda: None), FINE),
        (Case("", call=lambda: None, must_refuse=True), WRONG),
        (Case("", call=fail(CarvError("a is 1; give 2"))), REFUSED),
        (Case("", call=fail(CarvError("two\nlines"))), REFUSED),
        (Case("", call=fail(KeyError("a"))), TRACEBACK),
        (Case("", call=lambda: time.sleep(5)), HANG),
        (Case("", call=lambda: Path("canary").touch()), WRONG),
        (Case("", ("generate",)), REFUSED),
        (Case("", ("--version",)), FINE),
    ],
)
def test_an_end_is_what_it_is(case: Case, kind: str, tmp_path: Path) -> None:
    outcome = run(case, tmp_path / "base", limit=0.05 if kind == HANG else 30)
    assert outcome.kind == kind, outcome
    assert list(tmp_path.iterdir()) == []


AREAS = {
    "model-json": 8,
    "weights": 8,
    "config": 8,
    "prompts": 5,
    "options-dry-run": 6,
    "flags": 10,
    "class-generate": 30,
}


@pytest.mark.parametrize("area", AREAS)
def test_a_few_inputs_end_well(area: str, sd_folder: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "m").symlink_to(sd_folder)
    (base / "p.txt").write_text("a red mug\n")
    fuzz_files.build_config(base)
    for part in fuzz.areas()[area][1] - {"m", "p.txt", "c.yaml"}:  # of other commands, which refuse their absence
        (base / part).mkdir()
    ends = []

    def execute(number: int, case: Case) -> None:
        ends.append((case.note, run(case, base)))

    fuzz.explore(fuzz.areas()[area][0](base), seed=1, count=AREAS[area], execute=execute)
    assert len(ends) >= AREAS[area] // 2
    assert [end for end in ends if end[1].kind in BAD] == []


def test_inputs_are_spread_evenly_over_fast_and_slow_areas(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that is made up: what fast areas leave of their time the slow ones have, and all of those alike."""
    now, cost = [0.0], {"fast": 0.01, "a": 1.0, "b": 1.0, "slow": 4.0}
    everything = [fuzz.Area(name, None, 50) for name in cost]
    monkeypatch.setattr(fuzz.time, "monotonic", lambda: now[0])

    def advance(area: fuzz.Area, seconds: float) -> None:
        ends = now[0] + seconds
        while now[0] < ends and area.last < area.share:
            now[0] += cost[area.name]
            area.last += 1
        area.whole = area.last == area.share

    fuzz.spread(everything, 200, advance)
    done = {area.name: area.last for area in everything}
    assert (done["fast"], done["a"], done["b"]) == (50, 50, 50)
    assert 20 <= done["slow"] <= 30
    assert now[0] <= 210


def test_a_survey_counts_each_area(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "fuzz.csv"
    words = ["--area", "class-vsd,class-estimator,class-distill", "--inputs", "30", "--seed", "3", "--minutes", "2"]
    assert fuzz.main([*words, "--out", str(out)]) == 0
    rows = [line.split(",") for line in out.read_text().splitlines()]
    assert [row[:2] for row in rows[1:]] == [
        ["class-vsd", "10"], ["class-estimator", "10"], ["class-distill", "10"], ["all", "30"]
    ]  # fmt: skip
