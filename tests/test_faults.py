"""The fault harness sees a loss where there is one, and a short run of it on the extension loses nothing."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import fault_subjects
import faults
import pytest
import torch
from fault_subjects import COLUMNS, STEPS, Subject

from carv_3d.errors import CarvError
from carv_3d.io.tables import append_row, read_metrics, write_rows
from carv_3d.runs.checkpoint import has_checkpoint, load_checkpoint, save_checkpoint


def counting(forgets: bool = False) -> Callable[[], int]:
    """Work of a few numbers that saves at each second step; a bad one begins again where it is resumed."""

    def steps(folder: Path) -> None:
        step, total = 0, torch.zeros(1)
        if has_checkpoint(folder / "checkpoint"):
            state = load_checkpoint(folder / "checkpoint")[0]
            step, total = state["step"], torch.zeros(1) if forgets else state["total"]
        write_rows(folder / "metrics.csv", COLUMNS, read_metrics(folder / "metrics.csv", step))
        while step < STEPS:
            step, total = step + 1, total + step
            append_row(folder / "metrics.csv", COLUMNS, {"step": float(step), "seconds": 0.0})
            if step % 2 == 0:
                save_checkpoint(folder / "checkpoint", {"step": step, "total": total})

    def work() -> int:
        try:
            Path("w").mkdir(exist_ok=True)
            steps(Path("w"))
        except CarvError as error:
            print(f"carv: {error}")
            return 2
        return 0

    return work


def subject(forgets: bool = False) -> Subject:
    return Subject(counting(), counting(forgets), "w", ())


def tried(work: Subject, kind: str, numbers: range, place: Path) -> list[faults.Trial]:
    whole = faults.undisturbed(work, place / f"whole-{kind}")
    return [faults.trial(work, kind, random.Random(number), place / "t", whole) for number in numbers]


@pytest.mark.parametrize("kind", ["eio", "full"])
def test_nothing_is_lost_and_what_ends_says_so(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "mount", lambda *_: False)
    trials = tried(subject(), kind, range(6), tmp_path)
    assert any(t.struck for t in trials)
    assert [t for t in trials if t.lost or not t.plain or t.again > 2] == []


def test_a_loss_is_seen(tmp_path: Path) -> None:
    trials = tried(subject(forgets=True), "eio", range(6), tmp_path)
    assert any("differs in ['w: state.total']" in t.lost for t in trials)
    refusing = Subject(counting(), lambda: 2, "w", ())
    assert all("cannot be resumed" in t.lost for t in tried(refusing, "slow", range(1), tmp_path))


def test_an_end_without_a_sentence_is_seen(tmp_path: Path) -> None:
    def fails() -> int:
        raise KeyError("a")

    work = Subject(counting(), counting(), "w", ())
    whole = faults.undisturbed(work, tmp_path / "whole")
    kinds = {"eio": lambda rng, measured: fails}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faults, "KINDS", kinds)
        assert not faults.trial(work, "eio", random.Random(0), tmp_path / "t", whole).plain


def test_a_kill_of_the_extensions_host_loses_nothing(sd_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "m").symlink_to(sd_folder)
    (result,) = tried(fault_subjects.subjects()["extension"], "kill", range(1), tmp_path)
    assert result.lost == ""
