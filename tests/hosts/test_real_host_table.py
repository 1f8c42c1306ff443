"""`benchmarks/real_host.sh`: what it refuses, and the table that it ends with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CASES = """<testsuites><testsuite>
<testcase classname="tests.real_host.test_parity" name="a"/>
<testcase classname="tests.real_host.test_parity" name="b"><failure message="x"/></testcase>
<testcase classname="tests.real_host.test_parity" name="c"><failure message="x"/><error message="y"/></testcase>
<testcase classname="tests.real_host.test_real_runs" name="d"><skipped message="z"/></testcase>
</testsuite></testsuites>"""


def test_the_table_counts_by_file_and_stack(tmp_path: Path) -> None:
    (tmp_path / "today.xml").write_text(CASES)
    (tmp_path / "pinned.xml").write_text(CASES.replace('<skipped message="z"/>', ""))
    script = ROOT / "benchmarks" / "real_host" / "table.py"
    files = [str(tmp_path / name) for name in ("today.xml", "pinned.xml", "gone.xml")]
    done = subprocess.run([sys.executable, str(script), *files], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "| tests | today | pinned |",
        "|---|---|---|",
        "| test_parity | 2 failed, 1 passed | 2 failed, 1 passed |",
        "| test_real_runs | 1 skipped | 1 passed |",
        "skipped, today: 1, z",
    ]


@pytest.mark.parametrize("words", [[], ["--setup"], ["/nowhere"], ["--setup", "/nowhere"]])
def test_without_a_checkout_it_says_how_it_is_called(words: list[str]) -> None:
    script = ROOT / "benchmarks" / "real_host.sh"
    done = subprocess.run(["bash", str(script), *words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.startswith("usage: benchmarks/real_host.sh [--setup] CHECKOUT")) == (2, True)
