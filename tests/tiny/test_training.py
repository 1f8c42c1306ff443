import json
import math
import os
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from carv_3d.errors import CarvError
from carv_3d.runs.checkpoint import load_checkpoint
from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher
from carv_3d.tiny import denoiser, train
from carv_3d.tiny.stage import StagePlan, StageTrainer, run_stage
from carv_3d.tiny.tokens import LENGTH, build_tokenizer
from carv_3d.tiny.vocabulary import all_words


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    return build_tokenizer(folder), folder


def test_every_known_word_is_one_token_and_others_are_pieces(words) -> None:
    tokenizer, _ = words
    assert all(len(tokenizer(w).input_ids) == 3 for w in all_words())
    assert len(tokenizer("zebra").input_ids) > 3


def run(
    folder: Path, steps: int, stop_after: int | None = None, made_with: dict | None = None
) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    module = nn.Linear(3, 1)

    def stage_loss(step: int, generator: torch.Generator) -> torch.Tensor:
        if step == stop_after:
            raise KeyboardInterrupt
        x = torch.randn(16, 3, generator=generator)
        return (module(x) - x.sum(1, keepdim=True)).square().mean()

    options = StagePlan(steps, lr=0.05, seed=1, save_every=0.0)
    return run_stage("s", module, stage_loss, options, folder, made_with or {"seed": 1}, log=lambda m: None)


def test_what_a_stage_begins_with_is_left_out_where_it_is_done(tmp_path) -> None:
    module, begun = nn.Linear(1, 1), []

    def train_to(steps: int) -> None:
        run_stage(
            "s", module, lambda step, g: module.weight.sum(), StagePlan(steps, lr=0.1, seed=0), tmp_path, {},
            on_begin=lambda: begun.append(module.weight.item()), log=lambda m: None,
        )  # fmt: skip

    first = module.weight.item()
    train_to(3)
    trained = module.weight.item()
    train_to(3)
    assert begun == [first]
    nn.init.zeros_(module.weight)
    train_to(4)
    assert begun == [first, trained]  # the checkpoint's weights are in place


@pytest.mark.parametrize("between_renames", [False, True])
def test_a_resumed_stage_ends_with_the_same_weights(tmp_path, between_renames) -> None:
    whole = run(tmp_path / "whole", 30)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", 30, stop_after=17)
    if between_renames:  # a kill within a save: only the one before the newest is there
        os.replace(tmp_path / "cut" / "s.pt", tmp_path / "cut" / "s.pt.previous")
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut", 30, stop_after=17)  # resumes, not from the beginning
        assert load_checkpoint(tmp_path / "cut" / "s.pt.previous")[0]["step"] == 17
    resumed = run(tmp_path / "cut", 30)
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)


def test_a_checkpoint_made_with_other_values_is_refused(tmp_path) -> None:
    run(tmp_path, 3)
    with pytest.raises(CarvError, match="other values of seed"):
        run(tmp_path, 5, made_with={"seed": 2})


def test_a_stage_learns(tmp_path) -> None:
    weights = run(tmp_path, 300)
    torch.testing.assert_close(weights["weight"], torch.ones(1, 3), atol=0.05, rtol=0)


def test_the_rate_warms_up_and_falls_along_a_cosine(tmp_path) -> None:
    module = nn.Linear(1, 1)
    trainer = StageTrainer(module, lambda step, g: module.weight.sum(), StagePlan(800, 0.1, 0), {}, tmp_path / "s.pt")
    rates = []
    for step in (0, 99, 199, 400, 799):
        trainer.step = step
        trainer.train_step()
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    fall = [0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / 800)) for step in (0, 99, 199, 400, 799)]
    assert rates == pytest.approx([0.1 * up * f for up, f in zip((1 / 200, 0.5, 1, 1, 1), fall)])
    assert rates[-1] == pytest.approx(0.001, rel=0.01)


def test_each_step_has_random_numbers_of_its_own_by_the_seed(tmp_path) -> None:
    module, seeds = nn.Linear(1, 1), {}
    for seed in (3, 4):

        def step_loss(step, g, seed=seed):
            seeds[seed, step] = g.initial_seed()
            return module.weight.sum()

        trainer = StageTrainer(module, step_loss, StagePlan(9, 0.1, seed), {}, tmp_path / "s.pt")
        for _ in range(4):
            trainer.train_step()
    assert len(set(seeds.values())) == len(seeds) == 8


def test_slower_parameters_move_by_their_share(tmp_path) -> None:
    module = nn.ModuleDict({"text": nn.Linear(1, 1, bias=False), "unet": nn.Linear(1, 1, bias=False)})
    for m in module.values():
        nn.init.zeros_(m.weight)
    options = StagePlan(40, lr=0.1, seed=0, slower={"text.": 0.25}, weight_decay=0.0)
    run_stage(
        "s", module, lambda step, g: (module["text"].weight + module["unet"].weight).sum(), options, tmp_path, {},
        log=lambda m: None,
    )  # fmt: skip
    torch.testing.assert_close(module["text"].weight, 0.25 * module["unet"].weight)
    assert module["unet"].weight.item() < -0.1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--unet-steps", "0"],
        ["--text-batch", "0"],
        ["--init", "nowhere"],
        ["--unet-precision", "fp8"],
        ["--unet-lr", "-1"],
        ["--vae-lr", "nan"],
        ["--seed", "-1"],
        ["--work", f"{__file__}/x"],
    ],
)
def test_bad_options_end_in_one_sentence(arguments, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        train.main(arguments)
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_stopped_training_ends_without_a_traceback(monkeypatch, capsys) -> None:
    def stopped(_) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "train", stopped)
    with pytest.raises(SystemExit) as stop:
        train.main([])
    assert stop.value.code == 130
    assert capsys.readouterr().err == ""


def test_training_further_keeps_the_tokenizer_that_the_model_came_with(tmp_path, words) -> None:
    init, numbers = tmp_path / "init", json.loads((words[1] / "vocab.json").read_text())
    (init / "vae").mkdir(parents=True)
    (init / "vae" / "config.json").write_text("{}")
    shutil.copytree(words[1], init / "tokenizer")
    numbers["es</w>"], numbers["en</w>"] = numbers["en</w>"], numbers["es</w>"]
    (init / "tokenizer" / "vocab.json").write_text(json.dumps(numbers))
    options = train.TrainOptions(work=tmp_path / "work", out=tmp_path / "out", init=init)
    tokenizer = train.load_tokenizer(options)
    assert tokenizer.model_max_length == LENGTH
    assert tokenizer("a red mug").input_ids == words[0]("a red mug").input_ids
    assert json.loads((options.work / "tokenizer" / "vocab.json").read_text()) == numbers


def test_from_nothing_to_a_folder_that_samples(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setitem(denoiser.UNET, "block_out_channels", (32, 32, 64))
    few = ["--images", "8", "--vae-steps", "2", "--vae-batch", "2", "--text-steps", "2", "--text-batch", "2",
           "--unet-steps", "2", "--unet-batch", "2", "--threads", str(torch.get_num_threads())]  # fmt: skip
    folders = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    train.main([*folders, *few, "--unet-precision", "fp32", "--no-compile"])
    assert "denoiser: fp32 products, not compiled" in capsys.readouterr().out
    teacher = StableDiffusionTeacher.load(str(tmp_path / "out"))
    z, t = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([500])
    assert teacher.eps_hat(z, t, teacher.text_embeddings(["a red mug"])).isfinite().all()
    with pytest.raises(SystemExit) as stop:  # a checkpoint of other products is not resumed
        train.main([*folders, *few, "--unet-precision", "bf16", "--no-compile"])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "was made with other values of unet_precision" in said
    assert said.count("\n") == 1


def test_each_step_has_numbers_of_its_own_and_the_average_is_what_is_given(tmp_path) -> None:
    module, drawn, saved = nn.Linear(1, 1, bias=False), [], []
    nn.init.ones_(module.weight)

    def loss(step: int, generator: torch.Generator) -> torch.Tensor:
        drawn.append(float(torch.rand((), generator=generator)))
        return module.weight.sum()

    options = StagePlan(4, lr=0.5, seed=0, ema=0.9)
    given = run_stage(
        "s", module, loss, options, tmp_path, {}, on_save=lambda w, step: saved.append((w["weight"].item(), step)),
        log=lambda m: None,
    )  # fmt: skip
    assert len(set(drawn)) == 4
    average = load_checkpoint(tmp_path / "s.pt")[0]["average"]["weight"].item()
    assert given["weight"].item() == average != module.weight.item()
    assert saved == [(average, 4)]
