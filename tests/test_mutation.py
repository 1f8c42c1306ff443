"""`benchmarks/mutation.py`: some faults by themselves never replace the table of all."""

from __future__ import annotations

from pathlib import Path

import mutation
import pytest


@pytest.mark.parametrize(
    ("words", "written"),
    [
        ([], "table.csv"), (["--only", "schedule"], None), (["--area", "core"], None),
        (["--area", "io", "--out", "x.csv"], "x.csv"),
    ],
    ids=["all", "by text", "a list", "a list to a file"],
)  # fmt: skip
def test_the_table_is_of_all_faults(
    words: list[str], written: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fault = mutation.Mutant("carv_3d/schedule.py", "a", "b", "tests")
    monkeypatch.setattr(mutation, "areas", lambda: {"core": [fault], "io": [fault]})
    monkeypatch.setattr(mutation, "TABLE", tmp_path / "table.csv")
    monkeypatch.setattr(mutation, "ENVIRONMENT", {})
    monkeypatch.setattr(mutation, "run_all", lambda chosen, workers: ((*item, "killed") for item in chosen))
    monkeypatch.setattr("sys.argv", ["mutation.py", *words])
    assert mutation.main() == 0
    assert [path.name for path in tmp_path.iterdir()] == ([] if written is None else [written])
