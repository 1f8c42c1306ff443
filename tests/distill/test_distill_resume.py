"""`carv distill` stopped, killed, damaged and resumed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from commands import kill_at_first_checkpoint, refusal
from distill_command import rows, same, words

from carv_3d.cli import main as cli
from carv_3d.distill.loop import Distillation
from carv_3d.distill.request import read_settings
from carv_3d.io.files import locked
from carv_3d.runs.checkpoint import load_checkpoint


@pytest.mark.usefixtures("heeded_signals")
def test_a_run_that_is_stopped_and_resumed_is_the_same(
    sd_folder: Path, place: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    step, done = Distillation.train_step, []

    def interrupted(self: Distillation) -> dict[str, float]:
        done.append(1)
        if len(done) == 2:
            os.kill(os.getpid(), 2)  # Ctrl-C, during the second step
        return step(self)

    monkeypatch.setattr(Distillation, "train_step", interrupted)
    assert cli.main(words(place, sd_folder, "steps=4", "--out", "cut")) == 130
    assert "Resume with: carv distill --resume --out cut" in capsys.readouterr().out
    assert len(rows("cut")) == 2
    with open("cut/metrics.csv", "a") as handle:
        handle.write("3,0.1,")  # a line that a kill cut short
    assert cli.main(["distill", "--resume", "--out", "cut"]) == 0
    assert "Done: the one-step model is in cut/model" in capsys.readouterr().out
    assert len(done) == 4
    assert rows("cut") == rows(whole)
    assert same(*(load_checkpoint(Path(run, "checkpoint"))[0] for run in ("cut", whole)))


def test_a_finished_run_is_made_longer_with_fewer_samples(whole: Path) -> None:
    assert cli.main(["distill", "--resume", "--out", "whole", "steps=5"]) == 0
    assert len(rows(whole)) == 5
    # where memory ran out
    assert cli.main(["distill", "--resume", "--out", "whole", "steps=6", "batch_size=1", "precision=bf16"]) == 0
    fourth, fifth, sixth = (int(r["nfe"]) for r in rows(whole)[3:])
    assert 2 * (sixth - fifth) == fifth - fourth
    settings = read_settings(whole)
    assert (settings.options.batch_size, settings.options.precision) == (1, "bf16")


def test_a_damaged_checkpoint_is_replaced_by_the_one_before(whole: Path, capsys: Any) -> None:
    assert cli.main(["distill", "--resume", "--out", "whole", "steps=5"]) == 0
    good = (whole / "checkpoint").read_bytes()
    (whole / "checkpoint").write_bytes(good[: len(good) // 2])
    assert cli.main(["distill", "--resume", "--out", "whole"]) == 0
    assert "truncated or damaged" in capsys.readouterr().out
    (whole / "checkpoint").write_bytes(b"")
    (whole / "checkpoint.previous").write_bytes(b"x")
    assert cli.main(["distill", "--resume", "--out", "whole"]) == 2
    assert "no checkpoint in whole can be read" in capsys.readouterr().err


def test_a_run_is_not_resumed_with_what_would_change_it(sd_folder: Path, place: Path, whole: Path, capsys: Any) -> None:
    before = {p: p.read_bytes() for p in whole.iterdir() if p.is_file()}
    for more, message in (
        (["num_draws=4"], "num_draws = 2, and --resume cannot change it to 4"),
        (["--seed", "3"], "seed = 0, and --resume cannot change it to 3"),
        (["carv-tiny"], "and --resume cannot change it to 'carv-tiny'"),
        (["steps=3"], "the run in whole is at step 4, beyond steps = 3; give steps=4 or more"),
    ):
        assert message in refusal(capsys, "distill", "--resume", "--out", "whole", *more)
    with locked(whole):
        message = refusal(capsys, "distill", "--resume", "--out", "whole")
    assert "another run is at work in whole" in message
    (place / "prompts.txt").write_text("a green house\n")
    assert "holds other prompts" in refusal(capsys, "distill", "--resume", "--out", "whole")
    assert "is not an empty folder" in refusal(capsys, *words(place, sd_folder, "--out", "whole"))
    assert {p: p.read_bytes() for p in whole.iterdir() if p.is_file()} == before


@pytest.mark.slow
def test_killed_and_resumed_is_the_same_run(sd_folder: Path, place: Path, capsys: Any) -> None:
    asked = words(place, sd_folder, "steps=8", "preview_every=100", "save_every=0")
    killed_at = kill_at_first_checkpoint(Path("cut"), *asked)
    assert killed_at < 8
    assert not Path("cut/model").exists()
    last = Path("cut/metrics.csv").read_text().splitlines()[-1]
    with open("cut/metrics.csv", "a") as handle:  # a kill may come between a step's row and its checkpoint
        handle.write(f"{killed_at + 1},{last.partition(',')[2]}\n")
    Path("cut/.checkpoint.123.tmp.new").write_text("half")
    assert cli.main(["distill", "--resume", "--out", "cut"]) == 0
    assert f"Resumed after step {killed_at}" in capsys.readouterr().out
    assert cli.main([*asked, "--out", "whole"]) == 0
    assert rows("cut") == rows("whole")
    assert same(*(load_checkpoint(Path(run, "checkpoint"))[0] for run in ("cut", "whole")))
    assert sorted(os.listdir("cut")) == sorted(os.listdir("whole"))
