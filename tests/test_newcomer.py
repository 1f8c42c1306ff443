"""`benchmarks/newcomer.py` finds every block of the README, and fails where a block does."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import newcomer
import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_blocks_of_the_readme_are_found_and_its_promises_read() -> None:
    parts = newcomer.blocks(README)
    commands = [block.text for block in parts if block.kind == "sh"]
    assert commands[:2] == ['./install.sh carv generate "a red mug"', "./install.sh pytest"]
    (threestudio,) = (command for command in commands if command.startswith("carv threestudio"))
    assert "\\" not in threestudio
    assert threestudio.endswith("stable-diffusion-2-1-base")  # a command of two lines is one block
    assert sum(block.kind == "python" for block in parts) == README.count("```python")
    assert {path.name for path in newcomer.promised(README)} == {"report.html", "asset.glb", "turntable.mp4"}


@pytest.mark.parametrize("broken", ["nothing", "sh", "python"])
def test_the_first_block_that_fails_ends_it(broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def run(command: list[str], **how: Any) -> Any:
        calls.append(command)
        assert "SECRET" not in how["env"]
        fails = (broken == "sh" and "pytest" in command[-1]) or (broken == "python" and command[1] == "python")
        return subprocess.CompletedProcess(command, 3 if fails else 0)

    monkeypatch.setenv("SECRET", "x")
    monkeypatch.setattr(newcomer.subprocess, "run", run)
    outcomes = newcomer.run_blocks(tmp_path, README, None)
    count = len(newcomer.blocks(README))
    expected = {"nothing": count, "sh": 2, "python": 3}[broken]
    assert len(outcomes) == expected
    assert outcomes[-1].state.startswith("status 3") is (broken != "nothing")
    assert sum(x.state.startswith("not run") for x in outcomes) == (3 if broken == "nothing" else 0)
    newcomer.write(tmp_path / "x.csv", outcomes, 12.0, "abc")
    rows = (tmp_path / "x.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == expected + 2
