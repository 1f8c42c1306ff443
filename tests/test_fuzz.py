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
