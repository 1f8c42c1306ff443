"""One loader for all families, and every command with a Stable Diffusion XL folder: it works, or says why not."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_host import tiny_config

from carv_3d.attribution.encoded import EncodedImages
from carv_3d.attribution.folder_images import FolderImages
from carv_3d.cli import main as cli
from carv_3d.errors import CarvError
from carv_3d.generate.teachers import Teachers
from carv_3d.generate.trainer import TextTo3D
from carv_3d.runs.checkpoint import module_fingerprint
from carv_3d.teachers import single_file
from carv_3d.teachers.availability import resolve_model
from carv_3d.teachers.families import STABLE_DIFFUSION, STABLE_DIFFUSION_XL
from carv_3d.teachers.load import find_model, load_teacher
from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher
from carv_3d.teachers.stable_diffusion_xl import StableDiffusionXLTeacher


def test_the_folder_says_which_teacher_it_is_for(sd_folder: Path, xl_folder: Path) -> None:
    for folder, family, kind in (
        (sd_folder, STABLE_DIFFUSION, StableDiffusionTeacher),
        (xl_folder, STABLE_DIFFUSION_XL, StableDiffusionXLTeacher),
    ):
        assert find_model(str(folder)) == (folder, family)
        teacher = load_teacher(str(folder), device="cpu")
        assert type(teacher) is kind
        assert teacher.name == str(folder)
        assert find_model(str(folder), only=family) == (folder, family)
    assert find_model("carv-tiny")[1] is STABLE_DIFFUSION


def test_options_reach_the_teacher_and_the_search(xl_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_teacher(str(xl_folder), device="cpu", with_text=False).text is None
    asked = []
    monkeypatch.setattr(single_file, "resolve_model", lambda name, local, *_: asked.append((name, local)) or xl_folder)
    for local in (True, False):
        find_model("owner/name", local)
        monkeypatch.setattr(StableDiffusionTeacher, "load", lambda name, **options: options)
        assert load_teacher("owner/name", local_files_only=local) == {"local_files_only": local, "folder": xl_folder}
    assert asked == [("owner/name", local) for local in (True, True, False, False)]


def test_a_folder_is_looked_for_once_and_in_the_given_cache(xl_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def resolve(name: str, local: bool, cache: str | None, family: Any) -> Path:
        asked.append((name, cache))
        return resolve_model(str(xl_folder), local, cache, family)

    monkeypatch.setattr(single_file, "resolve_model", resolve)
    teacher = load_teacher("owner/name", device="cpu", cache_dir="elsewhere", with_text=False)
    assert type(teacher) is StableDiffusionXLTeacher
    assert asked == [("owner/name", "elsewhere")] * 2  # as Stable Diffusion 1 or 2, then as XL; not again to load it


def test_what_is_no_teacher_is_one_sentence(xl_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CarvError, match="there is no such folder"):
        load_teacher(str(tmp_path / "none"))
    said = "holds Stable Diffusion XL, and this test works with Stable Diffusion 1.x or 2.x alone: name such a model"
    for function in (find_model, load_teacher):
        with pytest.raises(CarvError, match=said):
            function(str(xl_folder), only=STABLE_DIFFUSION, use="this test")


# --- the commands


def test_generate_variance_and_compare_train_on_xl(xl_folder: Path) -> None:
    config = tiny_config(
        xl_folder, "system.prompt_processor.use_perp_neg=true", "system.prompt_processor.fine_views=false"
    )
    teacher = Teachers().load(config)  # compare's
    assert isinstance(teacher, StableDiffusionXLTeacher)
    trainer = TextTo3D(config)  # generate's and variance's load their own
    assert isinstance(trainer.teacher._teacher, StableDiffusionXLTeacher)
    before = [p.detach().clone() for p in trainer.field.parameters()]
    row = trainer.train_step()
    assert row["skipped"] == 0
    assert row["grad_norm"] > 0
    assert not all(map(torch.equal, before, trainer.field.parameters()))


def test_a_dry_run_names_the_xl_folder(xl_folder: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    measured = Mock()
    monkeypatch.setattr("carv_3d.generate.dry_run.TextTo3D", measured)
    monkeypatch.setattr("carv_3d.generate.dry_run.print_costs", measured)
    model = f"system.guidance.pretrained_model_name_or_path={xl_folder}"
    assert cli.main(["generate", "a red mug", "--dry-run", model]) == 0
    assert f"# model: {xl_folder}, {xl_folder}" in capsys.readouterr().out


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two images, one with a caption, in a folder next to the one to be in."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("CARV_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(2):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    (folder / "0.txt").write_text("a red mug")
    return folder


def test_attribute_takes_xl(xl_folder: Path, images: Path, capsys: Any) -> None:
    small = ["num_draws=2", "antithetic=false", "query_draws=8", "dim=16", "--method", "cosine", "--out", "a"]
    model = ["--model", str(xl_folder), "--training-images", str(images)]
    assert cli.main(["attribute", str(images / "1.png"), "--prompt", "a mug", *model, *small]) == 0, capsys.readouterr()
    with open("a/scores.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert {row["image"] for row in rows} == {"0.png", "1.png"}
    assert all(abs(float(row["score"])) > 0 for row in rows)


def test_latents_of_another_text_encoder_are_others(
    xl_folder: Path, sd_teacher: Any, images: Path, tmp_path: Path
) -> None:
    teacher = load_teacher(str(xl_folder), device="cpu")
    folder = FolderImages(images, 16)

    def fingerprint(teacher: Any) -> str:
        return EncodedImages(folder, teacher, tmp_path / f"store {len(list(tmp_path.iterdir()))}").fingerprint()

    text = teacher.text_parts
    assert [encoder for encoder, _ in text] == list(teacher.text.encoders)
    assert text[0][1]["context"] == 20
    assert text[1][1]["words"] == teacher.text.tokenizers[1].get_vocab()
    before = fingerprint(teacher)
    assert before == fingerprint(teacher)
    teacher.text.empty_is_zero = False
    assert fingerprint(teacher) != before
    teacher.text.empty_is_zero = True
    with torch.no_grad():
        next(teacher.text.encoders[1].parameters()).add_(1)
    assert fingerprint(teacher) != before
    # one text encoder: as stores of before the second family have it
    ((encoder, config),) = sd_teacher.text_parts
    assert encoder is sd_teacher.text_encoder
    own = {k: v for k, v in encoder.config.to_dict().items() if k != "transformers_version"}
    assert config == {**own, "context": sd_teacher.context_length, "words": sd_teacher.tokenizer.get_vocab()}
    assert fingerprint(sd_teacher).endswith(f"-{module_fingerprint(encoder, config=config)}")


@pytest.mark.parametrize("words", [["distill"], ["distill", "--dry-run"], ["distill", "variance"]])
def test_distill_says_why_it_takes_no_xl(words: list[str], xl_folder: Path, images: Path, capsys: Any) -> None:
    Path("prompts.txt").write_text("a red mug")
    assert cli.main([*words, str(xl_folder), "prompts=prompts.txt"]) == 2
    (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("carv: ")]
    assert "holds Stable Diffusion XL, and carv distill, which trains a UNet on one text encoder and exports" in said
    assert said.endswith("works with Stable Diffusion 1.x or 2.x alone: name such a model.")
    assert sorted(path.name for path in Path().iterdir()) == ["prompts.txt"]
