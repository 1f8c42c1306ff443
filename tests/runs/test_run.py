"""The life of a run on a trainer of a few numbers: opening, saving, stopping, resuming, failing, exporting."""

from __future__ import annotations

import errno
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from carv_3d.errors import CarvError
from carv_3d.io.tables import read_metrics
from carv_3d.runs.checkpoint import load_checkpoint
from carv_3d.runs.progress import Display
from carv_3d.runs.ranks import Ranks
from carv_3d.runs.run import Pace, Run


class Walk:
    """A random walk: its place after n steps says whether any was lost or repeated."""

    def __init__(self) -> None:
        self.step, self.place = 0, 0.0
        self.generator = torch.Generator().manual_seed(0)

    def train_step(self) -> dict[str, float]:
        self.place += float(torch.rand((), generator=self.generator))
        self.step += 1
        return {"step": float(self.step), "seconds": 0.5, "place": self.place}

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "place": self.place, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.place = state["step"], state["place"]
        self.generator.set_state(state["generator"])


class WalkRun(Run):
    columns = ("step", "seconds", "place", "shown")
    command, steps_option, too_large = "carv walk", "most", "memory ran out; walk less"

    def __init__(self, folder: Path, pace: Pace, said: list[str], ranks: Ranks | None = None) -> None:
        folder.mkdir(exist_ok=True)
        super().__init__(Walk(), folder, Display(write=said.append), pace, ranks)
        self.saves: list[int] = []

    def config_text(self) -> str:
        return f"most: {self.pace.steps}\n"  # type: ignore[union-attr]

    def preview(self) -> dict[str, float]:
        return {"shown": float(self.trainer.step)}

    def saved(self) -> None:
        self.saves.append(self.trainer.step)

    def export(self) -> str:
        (self.folder / "output").write_text(str(self.trainer.step))
        return "Done: open output"


def saved_steps(folder: Path) -> list[float]:
    return [row["step"] for row in read_metrics(folder / "metrics.csv")]


def saved_place(folder: Path) -> float:
    place: float = load_checkpoint(folder / "checkpoint")[0]["place"]
    return place


def test_a_run_leaves_its_config_figures_checkpoints_and_outputs(tmp_path: Path) -> None:
    said: list[str] = []
    run = WalkRun(tmp_path / "w", Pace(7, save_steps=3, preview_steps=2), said)
    (tmp_path / "w" / ".x.1.tmp").write_text("what a kill left half written")
    (tmp_path / "w" / "mine.tmp").write_text("the user's own")
    assert run.complete(resume=False) == 0
    assert sorted(os.listdir(run.folder)) == [
        "checkpoint",
        "checkpoint.previous",
        "config.yaml",
        "metrics.csv",
        "mine.tmp",
        "output",
    ]
    assert (run.folder / "config.yaml").read_text() == "most: 7\n"
    assert saved_steps(run.folder) == [1, 2, 3, 4, 5, 6, 7]
    shown = [row["shown"] for row in read_metrics(run.metrics)]
    assert [x for x in shown if x == x] == [2, 4, 6, 7]
    assert run.saves == [3, 6, 7]
    assert run.last == {"step": 7.0, "seconds": 0.5, "place": run.trainer.place, "shown": 7.0}  # type: ignore[attr-defined]
    assert said[-1] == "Done: open output"


def test_checkpoints_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("carv_3d.runs.run.time.monotonic", lambda: now[0])
    step = Walk.train_step
    monkeypatch.setattr(Walk, "train_step", lambda self: now.__setitem__(0, now[0] + 1.0) or step(self))
    run = WalkRun(tmp_path / "w", Pace(10, save_seconds=3.0), [])
    assert run.complete(resume=False) == 0
    assert run.saves == [3, 6, 9, 10]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.usefixtures("heeded_signals")
def test_a_signal_ends_it_after_the_step_at_hand_and_it_is_resumed(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = WalkRun(tmp_path / "whole", Pace(6, save_steps=10), [])
    whole.complete(resume=False)
    step, said = Walk.train_step, list[str]()

    def stopped(self: Walk) -> dict[str, float]:
        if self.step == 1:
            os.kill(os.getpid(), number)
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Walk, "train_step", stopped)
        cut = WalkRun(tmp_path / "cut", Pace(6, save_steps=10), said)
        assert cut.complete(resume=False) == 128 + number
    assert said[-1] == f"Stopped after step 2. Resume with: carv walk --resume --out {tmp_path / 'cut'}"
    assert not (cut.folder / "output").exists()
    again = WalkRun(tmp_path / "cut", Pace(6, save_steps=10), said)
    assert again.complete(resume=True) == 0
    assert "Resumed after step 2." in said
    assert saved_place(again.folder) == saved_place(whole.folder)
    assert saved_steps(again.folder) == saved_steps(whole.folder)


def test_an_ignored_signal_stays_ignored(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    try:
        run = WalkRun(tmp_path / "w", Pace(2), [])
        run.preview = lambda: os.kill(os.getpid(), signal.SIGHUP) or {}  # type: ignore[method-assign, func-returns-value]
        run.pace = Pace(2, preview_steps=1)
        assert run.complete(resume=False) == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_killed_between_two_checkpoints_each_step_is_there_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill is an exception that nothing catches; the row of the step at hand is cut short."""

    class Killed(BaseException):
        pass

    def train(folder: Path, kill_at: int | None, resume: bool) -> None:
        run = WalkRun(folder, Pace(9, save_steps=4), [])
        step = run.trainer.train_step

        def killed() -> dict[str, float]:
            if run.trainer.step == kill_at:
                with run.metrics.open("a") as handle:
                    handle.write("8,0.5")
                raise Killed
            return step()

        run.trainer.train_step = killed  # type: ignore[method-assign]
        run.complete(resume)

    with pytest.raises(Killed):
        train(tmp_path / "cut", 7, False)
    assert saved_steps(tmp_path / "cut") == [1, 2, 3, 4, 5, 6, 7]
    train(tmp_path / "cut", None, True)
    train(tmp_path / "whole", None, False)
    for folder in (tmp_path / "cut", tmp_path / "whole"):
        assert saved_steps(folder) == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert saved_place(tmp_path / "cut") == saved_place(tmp_path / "whole")


def test_a_metrics_csv_that_is_not_its_own_is_kept_and_named(tmp_path: Path) -> None:
    said: list[str] = []
    WalkRun(tmp_path / "w", Pace(4), []).complete(resume=False)
    (tmp_path / "w" / "metrics.csv").write_text("step,loss\n9,1\n")
    assert WalkRun(tmp_path / "w", Pace(6), said).complete(resume=True) == 0
    assert said[:1] == ["Resumed after step 4."]
    assert said[1].startswith("Note: ")
    assert said[1].endswith("it has a column 'loss'; it is kept as metrics.csv.damaged.")
    assert (tmp_path / "w" / "metrics.csv.damaged").read_text() == "step,loss\n9,1\n"
    assert saved_steps(tmp_path / "w") == [5, 6]


def test_fewer_steps_than_are_done_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    WalkRun(tmp_path / "w", Pace(4), []).complete(resume=False)
    before = {p: p.read_bytes() for p in (tmp_path / "w").iterdir()}
    with pytest.raises(CarvError, match="is at step 4, beyond most = 2; give most=4 or more, or none"):
        WalkRun(tmp_path / "w", Pace(2), []).complete(resume=True)
    assert {p: p.read_bytes() for p in (tmp_path / "w").iterdir()} == before
    assert WalkRun(tmp_path / "w", Pace(4), []).complete(resume=True) == 0  # all done: the outputs are made again


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (RuntimeError("CUDA out of memory. Tried to allocate"), "memory ran out; walk less"),
        (MemoryError("Unable to allocate"), "memory ran out; walk less"),
        (OSError(errno.ENOSPC, "No space left on device", "w/x"), "the disk is full: w/x could not be written"),
        (CarvError("a mistake."), "a mistake"),
    ],
)
def test_what_the_user_can_mend_ends_in_what_is_kept(error: Exception, sentence: str, tmp_path: Path) -> None:
    folder = tmp_path / "w"
    for kept, fails_at in (
        (f"no checkpoint was written yet in {folder}", 1),
        (f"the checkpoint of step 2 is intact, resume with: carv walk --resume --out {folder}", 3),
        (f"the checkpoint of step 4 is intact, resume with: carv walk --resume --out {folder}", "export"),
    ):
        run = WalkRun(folder, Pace(4, save_steps=2), [])
        step = run.trainer.train_step

        def failing(run: WalkRun = run, step: Any = step, at: Any = fails_at) -> dict[str, float]:
            if run.trainer.step == at:
                raise error
            return step()  # type: ignore[no-any-return]

        run.trainer.train_step = failing  # type: ignore[method-assign]
        if fails_at == "export":
            run.export = lambda: (_ for _ in ()).throw(error)  # type: ignore[method-assign]
        with pytest.raises(CarvError) as caught:
            run.complete(resume=False)
        assert str(caught.value).startswith(sentence)
        assert str(caught.value).endswith(f"; {kept}")
        for path in folder.iterdir():
            path.unlink()


def test_a_mistake_of_the_program_is_no_sentence(tmp_path: Path) -> None:
    run = WalkRun(tmp_path / "w", Pace(4), [])
    run.trainer.train_step = lambda: {}["nothing"]  # type: ignore[method-assign]
    with pytest.raises(KeyError):
        run.complete(resume=False)


@pytest.mark.usefixtures("heeded_signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_exporting_says_how_to_resume(number: signal.Signals, tmp_path: Path) -> None:
    said: list[str] = []
    before = signal.getsignal(number)
    run = WalkRun(tmp_path / "w", Pace(4), said)

    def export() -> str:
        try:
            signal.raise_signal(number)
            said.append("the first one did not end it")
            return ""
        finally:
            signal.raise_signal(number)  # a second one does not break into the unwinding

    run.export = export  # type: ignore[method-assign]
    assert run.complete(resume=False) == 128 + number
    assert "the first one did not end it" not in said
    resume = f"carv walk --resume --out {tmp_path / 'w'}"
    assert said[-1] == f"Interrupted; the checkpoint of step 4 is intact, resume with: {resume}."
    assert signal.getsignal(number) is before


@pytest.mark.usefixtures("heeded_signals")
def test_a_second_interrupt_ends_it_at_once_and_a_third_is_ignored(tmp_path: Path) -> None:
    said: list[str] = []
    run = WalkRun(tmp_path / "w", Pace(4, save_steps=1), said)
    step = run.trainer.train_step

    def impatient() -> dict[str, float]:
        if run.trainer.step == 2:
            try:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)
            finally:
                os.kill(os.getpid(), signal.SIGINT)
        return step()

    run.trainer.train_step = impatient  # type: ignore[method-assign]
    assert run.complete(resume=False) == 130
    assert said[-1].startswith("Interrupted; the checkpoint of step 2 is intact")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


class Together(Ranks):
    """One of two processes; the other's answers are given."""

    def __init__(self, rank: int, other: list[list[Any]]) -> None:
        self.rank, self.world_size, self.other = rank, 2, other

    def gather(self, value: Any) -> list[Any]:
        if value is None or not self.other:
            return [value, value]
        return [value, self.other.pop(0)] if self.rank == 0 else [self.other.pop(0), value]


def test_several_processes_save_and_stop_together_and_the_first_alone_writes(tmp_path: Path) -> None:
    answers: list[list[Any]] = [[0, False], [0, True], [signal.SIGTERM, False]]
    first = WalkRun(tmp_path / "first", Pace(9), [], Together(0, [list(a) for a in answers]))
    second = WalkRun(tmp_path / "second", Pace(9, preview_steps=1), [], Together(1, [list(a) for a in answers]))
    for run in (first, second):
        collected = []
        state = run.trainer.state_dict
        run.trainer.state_dict = lambda: collected.append(1) or state()  # type: ignore  # noqa: B023
        assert run.complete(resume=False) == 128 + signal.SIGTERM
        assert run.saves == [2, 3]
        assert len(collected) == 2  # every process gives its part
    assert saved_steps(first.folder) == [1, 2, 3]
    assert os.listdir(second.folder) == []


def test_nothing_is_written_before_all_processes_have_read(tmp_path: Path) -> None:
    class Waiting(Together):
        def gather(self, value: Any) -> list[Any]:
            if value is None:
                met.append(sorted(os.listdir(run.folder)))
            return super().gather(value)

    met: list[list[str]] = []
    run = WalkRun(tmp_path / "w", Pace(1), [], Waiting(0, [[0, False]]))
    assert run.complete(resume=False) == 0
    assert met[0] == []
    assert "output" in met[-1]  # nobody leaves before it is written


def test_a_run_that_fails_after_it_was_resumed_names_its_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "a walk"
    WalkRun(folder, Pace(2), []).complete(resume=False)
    run = WalkRun(folder, Pace(4), [])
    run.trainer.train_step = lambda: (_ for _ in ()).throw(CarvError("a mistake."))  # type: ignore[method-assign]
    kept = f"the checkpoint of step 2 is intact, resume with: carv walk --resume --out '{folder}'"
    with pytest.raises(CarvError, match=f"a mistake; {re.escape(kept)}$"):
        run.complete(resume=True)


def test_a_checkpoint_that_was_taken_away_is_not_called_intact(tmp_path: Path) -> None:
    run = WalkRun(tmp_path / "w", Pace(9, save_steps=2), [])
    step = run.trainer.train_step

    def removed() -> dict[str, float]:
        if run.trainer.step == 3:
            os.rename(run.folder, tmp_path / "moved")
        return step()

    run.trainer.train_step = removed  # type: ignore[method-assign]
    gone = f"the checkpoint of step 2 is no longer in {run.folder}; if the folder was moved, name its new place"
    with pytest.raises(CarvError, match=f"{re.escape(gone)}: carv walk --resume --out FOLDER$"):
        run.complete(resume=False)
    assert WalkRun(tmp_path / "moved", Pace(9), []).complete(resume=True) == 0
    assert saved_steps(tmp_path / "moved") == list(range(1, 10))


def test_a_signal_in_the_last_step_leaves_the_outputs_to_a_resumed_run(tmp_path: Path) -> None:
    run = WalkRun(tmp_path / "w", Pace(2), [])
    step = run.trainer.train_step
    run.trainer.train_step = lambda: os.kill(os.getpid(), signal.SIGTERM) or step()  # type: ignore
    run.pace = Pace(1)
    assert run.complete(resume=False) == 128 + signal.SIGTERM
    assert not (run.folder / "output").exists()
    assert WalkRun(run.folder, Pace(1), []).complete(resume=True) == 0
    assert (run.folder / "output").read_text() == "1"


def test_what_is_shown_is_the_last_that_was_finite(tmp_path: Path) -> None:
    run = WalkRun(tmp_path / "w", Pace(1), [])
    for place in (1.0, float("nan"), float("inf")):
        run.append({"step": 1.0, "place": place})
    assert run.last == {"step": 1.0, "place": 1.0}


def test_what_is_not_saved_for_long_is_saved_before_a_preview(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = WalkRun(tmp_path / "w", Pace(9, save_steps=100, preview_steps=4), [])
    monkeypatch.setattr("carv_3d.runs.run.time.monotonic", lambda: 20.0 * run.trainer.step)  # seconds
    seen: list[tuple[int, int | None]] = []

    def preview() -> dict[str, float]:
        seen.append((run.trainer.step, run.saved_step))
        return {}

    run.preview = preview  # type: ignore[method-assign]
    run.open(resume=False)
    assert run.train() == 0
    assert seen == [(4, 3), (8, 7), (9, 7)]  # step 8 is 20 s after 7: a kill costs no more
    assert run.saves == [3, 7, 9]


def test_a_configuration_that_is_taken_away_is_written_anew(tmp_path: Path) -> None:
    said: list[str] = []
    run = WalkRun(tmp_path / "run", Pace(4, save_steps=2), said)
    run.watchers.append(lambda row, stopped: (run.folder / "config.yaml").unlink() if row["step"] == 1 else None)
    assert run.complete(resume=False) == 0
    assert (run.folder / "config.yaml").read_text() == "most: 4\n"
    assert said.count(f"Note: {run.folder / 'config.yaml'} was gone, and is written anew.") == 1
