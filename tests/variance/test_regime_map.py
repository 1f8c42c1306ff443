"""The map of `benchmarks/regime_map.py`: where points are kept, and earlier maps read again."""

from __future__ import annotations

import csv
import runpy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import carv_3d
from carv_3d.errors import CarvError

FILE = Path(carv_3d.__file__).parents[1] / "benchmarks" / "regime_map.py"
pytestmark = pytest.mark.skipif(not FILE.exists(), reason="an installation without benchmarks")


@pytest.fixture
def script() -> dict[str, Any]:
    return runpy.run_path(str(FILE))


def test_every_point_has_its_own_files(script: dict[str, Any], tmp_path: Path) -> None:
    places = [p for s in (3, 3.5, 20) for step in (30, 150) for p in script["places"](tmp_path, s, step)]
    assert len(set(places)) == 12


def test_the_lines_of_an_earlier_map(script: dict[str, Any], tmp_path: Path) -> None:
    line = script["Regime"](3.5, 30, 0.25, 0.1, 0.4, "is+strat", 1, 8, 1.5, 1.25, 2.0, 3.0)
    path = tmp_path / "regimes.csv"
    with path.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, [name for name in asdict(line) if name != "batches"], extrasaction="ignore")
        writer.writeheader()
        writer.writerow(asdict(line))
    assert script["lines"](path) == [line]  # of a version that did not say how many batches
    another = script["Regime"](1.0, 30, 1.0, 0.2, 0.3, "is", 1, 4, 1.0, 1.0, 1.0, 3.0)
    script["image"]([line, another], tmp_path / "m.png")
    assert (tmp_path / "m.png").read_bytes().startswith(b"\x89PNG")
    path.write_text("a,b\n1,2\n")
    with pytest.raises(CarvError, match=r"^--also \S+ is no regimes.csv"):
        script["lines"](path)
    with pytest.raises(CarvError, match=r"none\.csv is missing; name the regimes\.csv of another map with --also"):
        script["lines"](tmp_path / "none.csv")
