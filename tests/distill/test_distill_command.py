"""`carv distill` from end to end on a model small enough: folder, resuming, a kill, bad input, the variance table."""

from __future__ import annotations

import csv
import dataclasses
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import loaded_by, refusal
from distill_command import SMALL, rows, words
from small import small
from torch import Tensor

from carv_3d.cli import main as cli
from carv_3d.distill import command, variance_command
from carv_3d.distill.command import DistillRun
from carv_3d.distill.loop import Distillation
from carv_3d.distill.options import DistillOptions
from carv_3d.distill.request import DistillRequest, Settings, read_settings, resolve
from carv_3d.errors import CarvError
from carv_3d.runs.checkpoint import load_checkpoint
from carv_3d.runs.progress import Display
from carv_3d.runs.ranks import Ranks
from carv_3d.runs.run import Pace
from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher


def test_a_run_leaves_what_it_should(sd_folder: Path, whole: Path) -> None:
    assert sorted(os.listdir(whole)) == ["checkpoint", "config.yaml", "metrics.csv", "model", "previews"]
    state = load_checkpoint(whole / "checkpoint")[0]
    model = StableDiffusionTeacher.load("whole/model", device="cpu")  # like any other teacher, with what was learnt
    averaged = {k.removeprefix("unet."): v for k, v in state["average"].items()}
    for name, value in model.unet.state_dict().items():
        torch.testing.assert_close(value, averaged[name].to(value), rtol=0, atol=1e-6)
    assert sorted(os.listdir(whole / "previews")) == ["step-00002.png", "step-00004.png"]
    figures = rows(whole)
    assert [r["step"] for r in figures] == ["1", "2", "3", "4"]
    assert figures[0]["nfe"] == str(2 + 3 * 2 * 2 + 2 * 2)
    assert figures[0]["snr"] != ""
    assert figures[1]["classifier_object"] != ""
    settings = read_settings(whole)
    assert (settings.model, settings.options.num_draws, settings.options.steps) == (str(sd_folder), 2, 4)


def test_bad_input_is_one_sentence_and_nothing_is_written(
    sd_folder: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (place / "empty.txt").write_text("\n \n")
    (place / "odd.txt").write_text("a red zeppelin\n")
    (place / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    broken = place / "broken"
    shutil.copytree(sd_folder, broken)
    (broken / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"short")
    (place / "bare").mkdir()
    cases = [
        (["distill"], "the model is missing"),
        (["distill", "a", "b"], "2 models were given"),
        (["distill", "carv-tiny", "num_drws=4"], "unknown option 'num_drws'; did you mean 'num_draws'?"),
        (["distill", "carv-tiny", "num_draws=0"], "num_draws is 0"),
        (["distill", "carv-tiny", "num_draws=x"], "num_draws is 'x'; it must be a whole number"),
        (["distill", "carv-tiny", "num_draws=3", "antithetic=true"], "draws come in pairs"),
        (["distill", "carv-tiny", "--sed", "4"], "did you mean --seed?"),
        (["distill", str(place / "none"), f"prompts={place / 'prompts.txt'}"], "no diffusion model at"),
        (["distill", str(broken), f"prompts={place / 'prompts.txt'}"], "is cut off at 5 bytes"),
        (["distill", str(sd_folder)], "has no prompts of its own: name a text file"),
        (["distill", str(sd_folder), "prompts=none.txt"], "none.txt is missing; write one prompt on each line"),
        (["distill", str(sd_folder), f"prompts={place / 'empty.txt'}"], "holds no prompts"),
        (["distill", str(sd_folder), f"prompts={place / 'bytes.txt'}"], "is not text in UTF-8"),
        (["distill", "carv-tiny", f"prompts={place / 'odd.txt'}"], "zeppelin"),
        (["distill", "nosuchfolder"], "no diffusion model at"),
        (["distill", str(place / "bare")], "the diffusion model cannot be used: "),
        (["distill", "owner/name"], "owner/name has no prompts of its own"),
        (["distill", "variance", "nosuch"], "no diffusion model at"),
        (["distill", "variance", str(place / "bare")], "bare is neither a run of carv distill (it"),
        (["distill", "--resume", "--out", "nothing"], "there is no run to resume in nothing"),
        (["distill", "--resume"], "which run to resume is not said"),
        (["distill", "--resume", "carv-tiny"], "there is no run to resume in outputs/distill-carv-tiny-0"),
        (words(place, sd_folder, "--out", str(place / "prompts.txt" / "x")), "cannot"),
        (["distill", "variance"], "the model or run is missing"),
        (["distill", "variance", "carv-tiny", "--settings", "8by4"], "the setting '8by4' cannot be read"),
        (["distill", "variance", "carv-tiny", "--settings", "8x3+antithetic"], "come in pairs"),
        (["distill", "variance", "carv-tiny", "--settings", "8x4,8x1,8x04"], "named twice"),
        (["distill", "variance", "carv-tiny", "--pairs", "1"], "pairs is 1"),
        (["distill", "variance", "carv-tiny", "--budget", "0"], "--budget is 0"),
    ]
    for arguments, message in cases:
        assert message in refusal(capsys, *arguments)
    inside = str(place / "prompts.txt" / "x")  # said before a model is loaded
    monkeypatch.setattr(StableDiffusionTeacher, "load", lambda *a, **k: pytest.fail("a model was loaded"))
    for arguments in (words(place, sd_folder, "--out", inside), ["distill", "variance", "carv-tiny", "--out", inside]):
        assert f"cannot write {inside}" in refusal(capsys, *arguments)
    half = refusal(capsys, "distill", "carv-tiny", "precision=fp16", "device=cpu", "--out", str(place / "half"))
    assert "precision is fp16, which needs CUDA" in half
    assert "named twice" in refusal(capsys, "distill", "variance", "carv-tiny", "--settings", "8x4,8x4")
    for field in dataclasses.fields(DistillOptions):
        if field.name not in variance_command.COUNTING:
            value = getattr(DistillOptions(), field.name)
            word = f"{field.name}={list(value) if isinstance(value, tuple) else value}"
            message = refusal(capsys, "distill", "variance", "carv-tiny", "guidance_scale=2", word)
            assert f"{field.name} does not count here" in message
            assert "--settings 8x16+strat" in message
    (place / "other").mkdir()
    (place / "other" / "config.yaml").write_text("seed: 1\n")
    message = refusal(capsys, "distill", "--resume", "--out", str(place / "other"))
    assert "is of no run of carv distill" in message


@pytest.mark.parametrize("where", ["generate", "backward", "images"])
def test_memory_that_runs_out_is_one_sentence(
    where: str, sd_folder: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    whole, calls = getattr(Distillation, where), []

    def short(self: Distillation, *arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return whole(self, *arguments, **named)

    monkeypatch.setattr(Distillation, where, short)
    arguments = words(place, sd_folder, "steps=3", "preview_every=1", "save_every=0", "--out", "run")
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    said = "memory ran out on batch_size=2 samples: lower batch_size, or set precision=bf16; the checkpoint of step 1"
    assert said in err
    assert load_checkpoint(Path("run/checkpoint"))[0]["step"] == 1

    def wrong(self: Distillation, *arguments: Any, **named: Any) -> Any:
        raise RuntimeError("a mistake of its own")

    monkeypatch.setattr(Distillation, where, wrong)
    with pytest.raises(RuntimeError, match="a mistake of its own"):
        cli.main(["distill", "--resume", "--out", "run"])


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
@pytest.mark.parametrize("where", ["load_teacher", "Distillation"])
def test_memory_that_runs_out_while_the_model_is_loaded_is_one_sentence(
    where: str, more: list[str], sd_folder: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def short(*arguments: Any, **named: Any) -> Any:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(f"carv_3d.distill.command.{where}", short)
    said = refusal(capsys, *words(place, sd_folder, "--out", "run", *more))
    assert "memory ran out on batch_size=2 samples: lower batch_size, or set precision=bf16" in said
    assert not Path("run").exists()


def test_a_run_is_bound_to_no_folder_that_it_was_begun_in(
    sd_folder: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (place / "here" / "model").symlink_to(sd_folder)
    begun = ["distill", "model", *SMALL, "steps=1", "prompts=../prompts.txt", "--out", "run"]
    assert cli.main(begun) == 0
    settings = read_settings(Path("run"))
    assert settings.model == str(place / "here" / "model")
    assert settings.options.prompts == str(place / "prompts.txt")
    monkeypatch.chdir(place)
    for named in ([], ["here/model"], [str(sd_folder), "prompts=here/../prompts.txt"]):
        assert cli.main(["distill", *named, "--resume", "--out", "here/run"]) == 0, capsys.readouterr().err
        assert read_settings(Path("here/run")) == settings
    (place / "other.txt").write_text("a red mug\n")
    for changed in (["carv-tiny"], ["prompts=other.txt"]):
        assert "--resume cannot change it" in refusal(capsys, "distill", *changed, "--resume", "--out", "here/run")
    capsys.readouterr()
    assert cli.main(["distill", "variance", "here/run", "--settings", "2x1", "--pairs", "2", "--out", "v"]) == 0
    for name in ("carv-tiny", "owner/name"):  # names are no paths
        assert resolve(DistillRequest(model=name))[0] == Settings(name, DistillOptions())


def test_a_dry_run_writes_nothing(sd_folder: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    unwritable = place / "prompts.txt" / "run"
    asked = words(place, sd_folder, "--dry-run", "--out", str(unwritable))
    assert f"cannot write {unwritable}" in refusal(capsys, *asked)
    assert cli.main(words(place, sd_folder, "--dry-run")) == 0
    out = capsys.readouterr().out
    assert "num_draws: 2" in out
    assert "# time: about" in out
    assert "# folder: outputs/distill-" in out
    line = re.search(r"# checkpoint: about (\S+) GB, kept twice", out)
    assert line is not None
    monkeypatch.chdir(place)
    assert cli.main(words(place, sd_folder, "steps=1", "--out", "run")) == 0
    assert float(line[1]) * 1e9 == pytest.approx(os.path.getsize("run/checkpoint"), rel=0.3)  # the zip's own included
    monkeypatch.chdir(place / "here")
    assert os.listdir() == []


def full(path: Path, data: str) -> None:
    raise CarvError(f"the disk is full: {path} could not be written; free some space and try again")


def test_the_variance_of_a_model_and_of_a_run(
    sd_folder: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    few = ["--settings", "2x1,2x2+strat", "--pairs", "2"]
    model = [str(sd_folder), f"prompts={place / 'prompts.txt'}", "device=cpu"]
    assert cli.main(["distill", "variance", *model, *few, "--out", "v"]) == 0
    out = capsys.readouterr().out
    assert "at step 0: gradients of" in out
    with open("v/variance.csv", newline="") as handle:
        table = list(csv.DictReader(handle))
    assert [row["setting"] for row in table] == ["2x1", "2x2+strat"]
    assert all(float(row["variance"]) > 0 and row["pairs"] == "2" for row in table)
    assert "2x2+strat" in out
    assert "is not an empty folder" in refusal(capsys, "distill", "variance", *model, *few, "--out", "v")
    assert cli.main(words(place, sd_folder, "steps=1", "--out", "run")) == 0
    assert cli.main(["distill", "variance", "run", *few, "--out", "w"]) == 0
    assert "run at step 1" in capsys.readouterr().out
    assert Path("w/variance.csv").read_text() != Path("v/variance.csv").read_text()
    for folder in ("v", "w"):
        assert os.listdir(folder) == ["variance.csv"]
    monkeypatch.setattr("carv_3d.distill.variance.write_atomic", full)
    assert cli.main(["distill", "variance", *model, *few, "--out", "x"]) == 2
    captured = capsys.readouterr()
    assert "2x2+strat" in captured.out  # what was measured is shown, if it cannot be kept
    assert "the disk is full" in captured.err
    assert not Path("x").exists()
    assert "a run has its own" in refusal(capsys, "distill", "variance", "run", "num_draws=2")


def test_the_device_is_the_stored_runs_and_cuda_is_not_taken_for_granted(
    sd_folder: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert cli.main(["distill", *words(place, sd_folder, "steps=0")[1:]]) == 0  # device=cpu
    asked = []

    class Several(Ranks):
        device = torch.device("cpu")  # as accelerate has it where there is no GPU

    def joined(cpu: bool = False) -> Ranks:
        asked.append(cpu)
        return Several()

    monkeypatch.setattr(command, "join", joined)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["distill", str(sd_folder), "--resume"]) == 0, capsys.readouterr().err
    assert cli.main(["distill", "--resume", "--out", f"outputs/{os.listdir('outputs')[0]}"]) == 0
    assert asked == [True, True]
    message = refusal(capsys, *words(place, sd_folder, "device=cuda"))
    assert "device is cuda, but torch sees no GPU here" in message
    assert asked == [True, True, False]


def test_distilling_loads_no_scenes() -> None:
    imports = "from carv_3d.distill import command, export, variance_command"
    assert not loaded_by(imports, "nerfacc", "carv_3d.scenes", "carv_3d.generate.trainer")


def test_a_run_keeps_its_pace_and_shows_the_same_noise_every_time(tmp_path: Path) -> None:
    distillation = small(steps=7, save_every=90.0, preview_every=3, preview_prompts=2)
    run = DistillRun(distillation, Settings("model", distillation.options), tmp_path, Display(quiet=True))
    assert run.pace == Pace(7, save_seconds=90.0, preview_steps=3)
    seeds: list[int] = []

    def images(prompts: list[str], seed: int) -> Tensor:
        seeds.append(seed)
        return torch.zeros(len(prompts), 3, 8, 8)

    distillation.images = images  # type: ignore[method-assign]
    for distillation.step in (3, 6):
        run.preview()
    assert seeds == [0, 0]
    assert sorted(path.name for path in (tmp_path / "previews").iterdir()) == ["step-00003.png", "step-00006.png"]
